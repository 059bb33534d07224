"""Reading big JSON files record by record, with the place of every defect.

A LaMP file is one JSON list, or an object whose "golds" is the list. It is decoded in chunks, so that memory holds one
record and one chunk, whatever the file's size. JSON Lines files are read line by line.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from personalization.errors import DataError

CHUNK_BYTES = 1 << 18
CUT_OFF = "the file ends in the middle; it was cut off, fetch or write it again"
_SPACE = " \t\r\n"
_NUMBER_GOES_ON = ("", *".eE+-0123456789")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; ValueError where a key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _problem(error: json.JSONDecodeError) -> str:
    """What a decoding error at the end of the file, or in the middle of it, means."""
    rest = error.doc[error.pos :].strip()
    cut_off = "Unterminated string" in error.msg or any(word.startswith(rest) for word in ("true", "false", "null"))
    return CUT_OFF if cut_off else f"not JSON: {error.msg} near {rest[:20]!r}"


class _Stream:
    """A window over a UTF-8 file: `text[at:]` is what has been read and not yet decoded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("rb")
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.ended, self.record = "", 0, False, 0

    def fail(self, problem: str) -> DataError:
        return DataError(f"{self.path}: record {self.record}: {problem}")

    def read(self) -> None:
        """Drop what was decoded and append at least one chunk; double the window for a record longer than it."""
        size = max(CHUNK_BYTES, len(self.text) - self.at)
        data = self.file.read(size)
        self.ended = len(data) < size
        try:
            more = self.decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            place = self.file.tell() - len(data) + error.start
            raise self.fail(f"byte {place} is not UTF-8; save the file as UTF-8") from None
        self.text, self.at = self.text[self.at :] + more, 0

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.read()

    def take(self, allowed: str) -> str:
        """Consume one of the allowed characters."""
        found = self.peek()
        if found == "":
            raise self.fail(CUT_OFF)
        if found not in allowed:
            raise self.fail(f"found {found!r} where one of {' '.join(allowed)} must stand")
        self.at += 1
        return found

    def value(self) -> Any:
        """Decode one JSON value."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                near_end = "Unterminated string" in error.msg or error.pos >= len(self.text) - 16
                if not near_end or self.ended:
                    raise self.fail(_problem(error)) from None
            except (RecursionError, ValueError) as error:
                raise self.fail(f"cannot be decoded: {error}") from None
            else:
                if self.ended or self.text[end : end + 1] not in _NUMBER_GOES_ON:
                    self.at = end
                    return value
            self.read()

    def items(self) -> Iterator[Any]:
        """The items of a list, one after the other."""
        self.take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            self.record += 1
            yield self.value()
            if self.take(",]") == "]":
                return


def stream_records(path: Path, head: dict[str, Any] | None = None) -> Iterator[tuple[int, Any]]:
    """(number from 1, record) of a JSON list, a "golds" object or JSON Lines.

    `head` takes the other fields of a "golds" object. Raises DataError naming the file and record where the text is not
    what it must be.
    """
    try:
        yield from _json_lines(path) if path.suffix == ".jsonl" else _json(path, {} if head is None else head)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def _json(path: Path, head: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    stream = _Stream(path)
    with stream.file:
        if not stream.peek():
            raise DataError(f"{path}: the file is empty")
        if stream.peek() == "[":
            for record in stream.items():
                yield stream.record, record
        else:
            yield from _golds(stream, head)
        if stream.peek():
            raise stream.fail("text after the end of the list")


def _golds(stream: _Stream, head: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    """The records of an object under "golds"; DataError saying what the object looks like where it has none."""
    found = False
    stream.take("{")
    while stream.peek() != "}":
        key = stream.value()
        stream.take(":")
        if key == "golds" and stream.peek() == "[":
            found = True
            for record in stream.items():
                yield stream.record, record
        else:
            head[key] = stream.value()
        if stream.peek() != "}":
            stream.take(",}")
    stream.take("}")
    if not found:
        raise DataError(f"{stream.path}: {_other_layout(head, stream.peek() == '{')}")


def _other_layout(found: dict[str, Any], goes_on: bool) -> str:
    """What an object without "golds" is instead, and what to do."""
    if goes_on:
        return 'several objects, one after the other (JSON Lines): name the file .jsonl, with answers as "output"'
    keys = ", ".join(map(repr, list(found)[:5])) + (", ..." if len(found) > 5 else "")
    if {"input", "output", "profile", "query"} & set(found):
        return "a single record, not a list of records: put [ ] around it"
    lists = [key for key, value in found.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if lists:
        return f'an object whose list stands under {lists[0]!r}: write the list alone, or name it "golds"'
    if found and all(isinstance(value, dict | str) for value in found.values()):
        return f'an object of records by their ids ({keys}): write a list of records, each with its "id"'
    return f"an object with {keys or 'nothing in it'}: write a list of records"


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield number, _DECODER.decode(text)
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: record {number}: byte {error.start} of the line is not UTF-8") from None
            except json.JSONDecodeError as error:
                raise DataError(f"{path}: record {number}: not JSON: {error.msg} at column {error.colno}") from None
            except (RecursionError, ValueError) as error:
                raise DataError(f"{path}: record {number}: cannot be decoded: {error}") from None
