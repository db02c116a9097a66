"""What the commands share: their options, the configuration and how results are printed."""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TypeVar

import click

from lightmem_core.config import Config, load_config

F = TypeVar("F", bound=Callable[..., Any])
RAY_WRITES = 40  # so many of its last ones, two a line, are shown beside an error


def common(command: F) -> F:
    """The options of every command."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs."),
        click.option("--store", metavar="URI", help="The store; overrides the configuration."),
        click.option(
            "--config", "path", metavar="FILE", type=click.Path(), help="The configuration (YAML)."
        ),
    ):
        command = option(command)
    return command


def budget(command: F) -> F:
    """The options of a command that may ask a language model."""
    for option in (
        click.option(
            "--budget-money",
            type=click.FloatRange(min=0),
            metavar="X",
            help="Stop when the LLM calls of this run cost as much, by the configured prices.",
        ),
        click.option(
            "--budget-tokens",
            type=click.IntRange(min=0),
            metavar="N",
            help="Stop when the LLM calls of this run took as many tokens, in and out.",
        ),
    ):
        command = option(command)
    return command


def config_of(path: str | None, store: str | None) -> Config:
    return load_config(path, uri=store)


def print_result(value: Any, text: str, as_json: bool) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2) if as_json else text)


class LastWritten(io.TextIOBase):
    """A stream that keeps the last of what is written to it."""

    def __init__(self, writes: int):
        self.pieces: deque[str] = deque(maxlen=writes)

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return len(text)


@contextmanager
def notes_shown() -> Iterator[None]:
    """Say what can be done about a run that was cut off, by an error or by the keyboard.

    What Ray prints meanwhile is shown then, too. Otherwise nothing is wrong: Ray warns of processes
    that start, and of those that end as they are to end.
    """
    said = LastWritten(RAY_WRITES)
    try:
        with redirect_stdout(said):
            yield
    except BaseException as error:
        click.echo("".join(said.pieces), err=True, nl=False)
        for note in getattr(error, "__notes__", ()):
            click.echo(f"lightmem: {note}", err=True)
        raise
