"""The elements of a JSON array, or of objects one after another, without reading all of it.

The standard decoder is tried on a window of text that grows until an element fits. It accepts the
same JSON as everywhere else and bounds depth, where event parsers spend memory on it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from lightmem_core.formats.rows import rejected

CHUNK = 1 << 20
SPACE = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder()


class Broken(Exception):
    """What follows in the window is no element."""


class Window:
    """The text of a file from `at` on, as far as it is needed. Bytes that are not UTF-8 are kept
    as surrogates, which JSON text itself cannot hold."""

    def __init__(self, file: BinaryIO, limit: int):
        self.file, self.limit = file, limit
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.text, self.at, self.ended = "", 0, False

    def grow(self) -> None:
        rest = self.text[self.at :]
        if len(rest) > self.limit:
            raise Broken(f"no element ends within {self.limit:,} characters")
        data = self.file.read(max(CHUNK, len(rest)))  # doubles, so that retries stay linear
        self.text, self.at = rest + self.decoder.decode(data, final=not data), 0
        self.ended = not data

    def peek(self) -> str:
        """The next character that is no space, empty at the end of the file."""
        while True:
            found = SPACE.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.grow()

    def skip(self, mark: str) -> bool:
        found = self.peek() == mark
        self.at += found
        return found

    def take(self) -> tuple[object, str]:
        """The next element and its text."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:  # a number may go on
                    text, self.at = self.text[self.at : end], end
                    return value, text
            except RecursionError as error:
                raise Broken("nested too deeply") from error
            except ValueError as error:
                if self.ended:
                    raise Broken(f"{error}, counted from the start of the element") from error
            self.grow()


def elements(file: BinaryIO, path: str, limit: int) -> Iterator[tuple[object, str]]:
    """Each element with its source, "path:#1" on. A broken one is rejected and ends the file."""
    window, number = Window(file, limit), 1
    array = window.skip("[")
    try:
        while window.peek() not in (("]", "") if array else ("",)):
            value, text = window.take()
            source = f"{path}:#{number}"
            if text.isascii() or is_text(text):
                yield value, source
            else:
                yield rejected(source, "not_utf8", "bytes that are not UTF-8", text), source
            number += 1
            if array and not window.skip(",") and window.peek() not in ("]", ""):
                raise Broken("no comma between two elements")
        if array and not window.skip("]"):
            raise Broken("the array is not closed; was the file cut off?")
        if window.peek():
            raise Broken("the array ends before the file does")
    except Broken as error:
        rest = window.text[window.at : window.at + limit]
        source = f"{path}:#{number}"
        yield rejected(source, "bad_json", f"the rest is skipped: {error}", rest), source


def is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
