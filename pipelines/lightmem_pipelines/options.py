"""What the commands share: their options, the configuration and how results are printed."""

from __future__ import annotations

import io
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TypeVar

import click

from lightmem_core.config import Config, load_config

F = TypeVar("F", bound=Callable[..., Any])
# Ray warns of processes that start, and of those that end as they are to end and are replaced. If
# a run fails, these lines may say why: the last ones are shown then.
EXPECTED = (
    "worker processes have been started",
    "A worker died or was killed while executing a task",
    "so the task will be retried",
)
KEPT_WRITES = 40  # two a line


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


class RayMessages(io.TextIOBase):
    """What Ray prints goes to standard error, but for what is as it should be: that is kept."""

    def __init__(self) -> None:
        self.kept: deque[str] = deque(maxlen=KEPT_WRITES)
        self._keeps = False

    def write(self, text: str) -> int:
        if text.strip():  # else it is the end of the line before
            self._keeps = any(part in text for part in EXPECTED)
        if self._keeps:
            self.kept.append(text)
        else:
            sys.stderr.write(text)
        return len(text)


@contextmanager
def notes_shown() -> Iterator[None]:
    """Say what can be done about a run that was cut off, by an error or by the keyboard. Standard
    output is the result's: Ray's messages go elsewhere."""
    messages = RayMessages()
    try:
        with redirect_stdout(messages):
            yield
    except BaseException as error:
        click.echo("".join(messages.kept), err=True, nl=False)
        for note in getattr(error, "__notes__", ()):
            click.echo(f"lightmem: {note}", err=True)
        raise
