"""The README speaks of what is there."""

from __future__ import annotations

import re
from pathlib import Path

import click

from lightmem_pipelines.cli import lightmem

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = "\n".join(re.findall(r"```\w*\n(.*?)```", README, re.DOTALL))


def test_every_command_exists_with_its_options():
    used = re.findall(r"lightmem (\w+)([^\n#]*)", CODE)
    assert {name for name, _ in used} >= {"backfill", "sleep", "search", "show", "report"}
    for name, rest in used:
        command = lightmem.commands[name]
        if isinstance(command, click.Group):
            command = command.commands[rest.split()[0]]
        known = {option for p in command.params for option in p.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, name


def test_every_make_target_and_file_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets
    for name in re.findall(r"`(\w+\.yaml)`", README):
        assert (ROOT / "pipelines" / "configs" / name).exists(), name


def test_no_figure_is_left_to_be_filled_in():
    assert re.findall(r"@[A-Z]+@|\bTODO\b|\bTBD\b", README) == []
