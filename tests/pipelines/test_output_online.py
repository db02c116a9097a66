"""`lightmem report` and `show` of what a server has done."""

import json
from pathlib import Path

from click.testing import CliRunner

from lightmem_core import load_config
from lightmem_core.online.service import Incoming
from lightmem_core.online.writer import OnlineWriter
from lightmem_pipelines.cli import lightmem

FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"


def told(uri: str, *command: str) -> str:
    result = CliRunner().invoke(lightmem, [*command, "--store", uri])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_servers_runs_are_reported_and_its_changes_shown(tmp_path: Path):
    uri = str(tmp_path / "store")
    writer = OnlineWriter(load_config(FAKES, uri=uri), wait_s=0)
    writer.add("ada", "s1", [Incoming("user", text, at) for at, text in enumerate("abb")])
    writer.flush("ada")
    writer.sleep("ada")
    first, *_ = entries = writer.shared.store.shards[0].entries_of(["ada"])
    writer.delete("ada", first.id)
    assert "running" in told(uri, "report", writer.shared.run_id)
    writer.close()
    ended = told(uri, "report", writer.shared.run_id)
    assert ["accepted", "3"] in [line.split() for line in ended.splitlines()]
    listed = json.loads(told(uri, "report", "--all", "--json"))
    assert {run["kind"]: run["status"] for run in listed} == {"online": "done", "sleep": "done"}
    assert "1 merged into a later one" in told(uri, "report", listed[0]["run"])
    assert "deleted" in told(uri, "history", first.id)
    assert len(entries) == 2
    assert told(uri, "show", first.id).startswith("1 January 1970 user: a")
