"""The command as a person uses it: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[2] / "pipelines" / "samples"
FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"


def lightmem(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from lightmem_pipelines.cli import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_loads_neither_ray_nor_a_model():
    code = (
        "import sys; from lightmem_pipelines import cli\n"
        "print(*{'ray', 'torch', 'lancedb', 'transformers'} & sys.modules.keys())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["search", "ada"], 2, "Missing argument 'TEXT'"),
        (["search", "ada", "x", "--since", "soon"], 2, "write it as 2025-06-30"),
        (["search", "ada", "x", "--config", "missing.yaml"], 3, "cannot read the configuration"),
        (["sleep", "--resume", "sleep-1", "--dry-run"], 2, "--resume stands alone"),
        (["sleep", "--resume", "sleep-1", "--all"], 2, "--resume stands alone"),
        (["sleep", "--resume", "sleep-1", "--user", "ada"], 2, "--resume stands alone"),
        (["report", "--store", "nowhere"], 1, "run `lightmem backfill` first"),
        (["backfill", "nowhere.jsonl", "--store", "nowhere"], 1, "names no input"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(words, code, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = lightmem(*words)
    assert out.returncode == code
    assert says in out.stderr
    assert "Traceback" not in out.stderr


def test_a_wrong_key_in_the_configuration_is_named(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("memory: {embeder: {use: hash}}")
    out = lightmem("search", "ada", "x", "--config", str(file))
    assert out.returncode == 3
    assert "mine.yaml" in out.stderr
    assert "memory.embeder" in out.stderr


@pytest.mark.ray
def test_the_sample_goes_through_every_command(tmp_path):
    options = ("--config", str(FAKES), "--store", str(tmp_path / "store"), "--json")
    built = lightmem("backfill", str(SAMPLES), *options)
    assert built.returncode == 4, built.stderr
    report = json.loads(built.stdout)
    messages = report["messages"]
    ended = messages["stored"] + messages["no_facts"] + messages["duplicate"]
    assert messages["read"] == ended + sum(messages["quarantined"].values())
    assert json.loads(lightmem("sleep", *options).stdout)["merged"] >= 1
    hits = json.loads(lightmem("search", "ada", "I moved to Porto", *options).stdout)
    assert "Porto" in hits[0]["memory"]
    shown = json.loads(lightmem("show", hits[0]["id"], *options).stdout)
    assert "Porto" in shown["messages"][0]["content"]
    assert shown["messages"][0]["source"].endswith("chats.jsonl:5")
    assert json.loads(lightmem("report", report["run"], *options).stdout) == report
    assert len(json.loads(lightmem("report", "--all", *options).stdout)) == 2
    old = lightmem("search", "ada", "Porto", "--until", "2025-03-01", *options)
    assert "Porto" not in " ".join(hit["memory"] for hit in json.loads(old.stdout))
