"""What a client is told of an error."""

import pytest
from starlette.exceptions import HTTPException

from lightmem_core.errors import (
    ConfigError,
    ConflictError,
    LLMUnavailableError,
    NotFoundError,
    RequestError,
    StoreError,
)
from lightmem_core.formats.fields import BadField
from lightmem_serve.errors import told


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        (RequestError("the filter is wrong"), 400, True),
        (ConfigError("there is no reranker"), 400, True),
        (ConflictError("several came of it"), 409, True),
        (BadField("no_text", "content holds no text"), 422, True),
        (NotFoundError("the user has no memory"), 404, False),
        (StoreError("/data/store is another's"), 503, False),
        (LLMUnavailableError("http://llm is gone"), 503, False),
        (TimeoutError("slow"), 504, False),
    ],
)
def test_what_a_client_can_do_something_about_is_told(error: Exception, status: int, shown: bool):
    with pytest.raises(HTTPException) as refusal, told():
        raise error
    assert refusal.value.status_code == status
    assert (str(error) in refusal.value.detail) == shown


@pytest.mark.parametrize("error", [ValueError("lance: /data/x"), KeyError("column"), OSError("x")])
def test_a_fault_of_the_server_is_no_wrong_request(error: Exception):
    with pytest.raises(type(error)), told():
        raise error
