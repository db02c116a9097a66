"""The command as a person uses it: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightmem_pipelines.options import KEPT_WRITES, notes_shown

SAMPLES = Path(__file__).parents[2] / "pipelines" / "samples"
FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"


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
def test_an_error_is_one_line_that_says_what_to_do(
    words, code, says, command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    out = command(*words)
    assert out.returncode == code
    assert says in out.stderr
    assert "Traceback" not in out.stderr


def test_a_wrong_key_in_the_configuration_is_named(command, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("memory: {embeder: {use: hash}}")
    out = command("search", "ada", "x", "--config", str(file))
    assert out.returncode == 3
    assert "mine.yaml" in out.stderr
    assert "memory.embeder" in out.stderr


PLANNED = "(raylet) A worker died or was killed while executing a task, {}\n"


def said(*lines: str, failing: bool = False) -> None:
    with notes_shown():
        for line in lines:
            sys.stdout.write(line)
        if failing:
            raise ZeroDivisionError


def test_what_ray_expects_is_shown_beside_an_error_alone(capsys):
    said("(raylet) The disk is full", "\n", PLANNED.format(1).rstrip(), "\n")
    assert capsys.readouterr() == ("", "(raylet) The disk is full\n")
    lines = [PLANNED.format(number) for number in range(99)]
    with pytest.raises(ZeroDivisionError):
        said(*lines, failing=True)
    assert capsys.readouterr() == ("", "".join(lines[-KEPT_WRITES:]))


@pytest.mark.ray
def test_the_sample_goes_through_every_command(launch, command, tmp_path):
    """The first of them starts a Ray of its own."""
    options = ("--config", str(FAKES), "--store", str(tmp_path / "store"), "--json")
    built = launch("backfill", SAMPLES, *options, node=True)
    out, err = built.communicate(timeout=300)
    assert built.returncode == 4, err
    report = json.loads(out)
    messages = report["messages"]
    ended = messages["stored"] + messages["no_facts"] + messages["duplicate"]
    assert messages["read"] == ended + sum(messages["quarantined"].values())
    assert json.loads(command("sleep", *options).stdout)["merged"] >= 1
    hits = json.loads(command("search", "ada", "I moved to Porto", *options).stdout)
    assert "Porto" in hits[0]["memory"]
    shown = json.loads(command("show", hits[0]["id"], *options).stdout)
    assert "Porto" in shown["messages"][0]["content"]
    assert shown["messages"][0]["source"].endswith("chats.jsonl:5")
    assert json.loads(command("report", report["run"], *options).stdout) == report
    assert len(json.loads(command("report", "--all", *options).stdout)) == 2
    old = command("search", "ada", "Porto", "--until", "2025-03-01", *options)
    assert "Porto" not in " ".join(hit["memory"] for hit in json.loads(old.stdout))
