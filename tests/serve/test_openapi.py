"""Requests that the documented schema allows, and many that it does not: never a fault of the
server, and never an answer that is not documented."""

from contextlib import suppress
from inspect import iscoroutinefunction
from unittest import SkipTest

import pytest
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi_checks

from lightmem_serve.routes_jobs import KINDS

CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
]


@schemathesis.serializer(*KINDS)
def as_lines(ctx, value):
    return str(value).encode("utf-8", "surrogatepass")


SETTINGS = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_documented_and_none_is_a_fault(any_server, llm_endpoint, mode):
    """On a server of its own, which it may reset, and whose model answers whatever it is asked."""
    llm_endpoint.plan(says="OK")
    check_all(any_server, mode)


def check_all(server, mode):
    server.say("known", "I moved to Porto in May")
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    checked = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if (mode, operation.label) == (GenerationMode.NEGATIVE, "POST /jobs"):
            continue  # any text is a job: its lines are wrong, not the request
        cases = operation.as_strategy(generation_mode=mode)

        @SETTINGS
        @given(case=cases)
        def check(case):
            case.call_and_validate(headers={"X-API-Key": server.key}, checks=CHECKS)

        with suppress(SkipTest, Unsatisfiable):  # where nothing about a request can be wrong
            check()
            checked += 1
    assert checked >= 12


def test_what_routes_depend_on_is_awaited(server):
    """A plain function would be called in another thread, and be waited for."""

    def calls(dependant):
        return [dependant.call, *(c for d in dependant.dependencies for c in calls(d))]

    routes = [route for route in server.app.routes if isinstance(route, APIRoute)]
    assert len(routes) >= 12
    assert [c for r in routes for c in calls(r.dependant) if not iscoroutinefunction(c)] == []


def test_every_route_documents_what_may_go_wrong(server):
    schema = server.done("GET", "/openapi.json", key="")
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            answers = operation["responses"]
            assert {"200", "400", "401", "403", "422", "429", "503"} <= answers.keys(), path
            assert operation.get("description") or operation["summary"]
            for status, answer in answers.items():
                assert answer["description"], (method, path, status)
                assert answer.get("content"), (method, path, status)
