"""The records of a json file one after the other, whatever the size of the file."""

import codecs
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

_CHUNK = 1 << 22  # bytes read at a time
_MARGIN = 64  # characters before the end of a chunk in which an error may only mean a cut
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class Entry(NamedTuple):
    """One value of a file.

    Attributes:
        value: what was read; None where it cannot be.
        start: first byte of its text in the file.
        end: the byte after its last one.
        problem: what is wrong, with line and column; empty if nothing is.
        is_last: the problem concerns all that follows, so nothing more comes.
    """

    value: Any
    start: int
    end: int
    problem: str = ""
    is_last: bool = False


def entries(path: str | os.PathLike) -> Iterator[Entry]:
    """Read the values of a list, or of a file with one value a line.

    Memory holds one piece of the file at a time, not the whole. A file `.jsonl` has one value a
    line, and a line that cannot be read is reported alone. Any other file is a list, or, as some
    official files that are called `.json`, one object after the other.

    Args:
        path: UTF-8, with or without a byte order mark.

    Yields:
        Values in order; a problem that ends the reading is the last entry.
    """
    path = pathlib.Path(path)
    at = 0
    try:
        with path.open("rb") as file:
            found = _lines(file) if path.suffix == ".jsonl" else _values(_Text(file))
            for entry in found:
                at = entry.end
                yield entry
    except UnicodeDecodeError as error:
        yield Entry(None, at, at, f"byte {error.start} is not UTF-8", True)
    except OSError as error:
        yield Entry(None, at, at, f"the file cannot be read: {error.strerror}", True)
    except (ValueError, RecursionError) as error:
        yield Entry(None, at, at, _told(error), True)


def read_at(file: BinaryIO, start: int, end: int) -> Any:
    """Return the value whose text is at these bytes of a file."""
    file.seek(start)
    return json.loads(file.read(end - start))


def kind(value: Any) -> str:
    """Return what a json value is, in words for messages."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


def _told(error: Exception, line: int = 0) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {line or error.lineno}, column {error.colno}: {error.msg}"
    problem = "brackets are nested too deeply" if isinstance(error, RecursionError) else str(error)
    return f"line {line}: {problem}" if line else problem


def _lines(file: BinaryIO) -> Iterator[Entry]:
    start = 0
    for number, line in enumerate(file, start=1):
        end = start + len(line)
        skipped = len(codecs.BOM_UTF8) if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
        try:
            text = line[skipped:].decode("utf-8").rstrip("\r\n")
            if text.strip():
                yield Entry(json.loads(text), start + skipped, end)
        except UnicodeDecodeError as error:
            place = start + skipped + error.start
            yield Entry(None, start, end, f"line {number}: byte {place} is not UTF-8")
        except (ValueError, RecursionError) as error:
            yield Entry(None, start, end, _told(error, number))
        start = end


class _Text:
    """The text of a file as a window that moves forward, with its place in the file."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.text, self.pos, self.is_done = "", 0, False
        self._size = _CHUNK
        self._line, self._column = 1, 0  # of the first character of the window
        mark = file.read(len(codecs.BOM_UTF8))
        self.byte = len(mark) if mark == codecs.BOM_UTF8 else 0  # of the current character
        self._pending, self._decoded = (b"" if self.byte else mark), self.byte

    def peek(self) -> str:
        """Go to the next character that is no space and return it; empty at the end."""
        while True:
            match = _SPACE.match(self.text, self.pos)
            end = match.end() if match else self.pos
            self.byte += end - self.pos
            self.pos = end
            if self.pos < len(self.text) or not self._more():
                return self.text[self.pos : self.pos + 1]

    def skip(self) -> None:
        """Step over one character of one byte."""
        self.pos, self.byte = self.pos + 1, self.byte + 1

    def value(self) -> Entry:
        """Read one json value.

        Raises:
            JSONDecodeError: with line and column in the file.
            ValueError: a number is too long.
            RecursionError: brackets are nested too deeply.
        """
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.pos)
                # a number at the end of the window may go on
                if end < len(self.text) or self.is_done:
                    break
            except json.JSONDecodeError as error:
                is_cut = error.pos > len(self.text) - _MARGIN or "Unterminated" in error.msg
                if self.is_done or not is_cut:
                    raise self.located(error) from None
            self._size *= 2  # so that a long value is not tried at every chunk
            self._more()
        self._size = _CHUNK
        text, start = self.text[self.pos : end], self.byte
        self.pos = end
        self.byte += len(text) if text.isascii() else len(text.encode("utf-8"))
        return Entry(value, start, self.byte)

    def error(self, message: str) -> json.JSONDecodeError:
        """Return an error at the current character."""
        return self.located(json.JSONDecodeError(message, self.text, self.pos))

    def located(self, error: json.JSONDecodeError) -> json.JSONDecodeError:
        """Return an error of the window with its line and column in the file."""
        column = error.colno + (self._column if error.lineno == 1 else 0)
        error.lineno, error.colno = error.lineno + self._line - 1, column
        return error

    def _more(self) -> bool:
        """Read on, and forget what lies behind; False at the end of the file."""
        if self.is_done:
            return False
        data, self._pending = self._pending + self._file.read(self._size), b""
        self.is_done = len(data) < self._size
        try:
            fresh = self._decoder.decode(data, self.is_done)
        except UnicodeDecodeError as error:
            held = len(error.object) - len(data)  # bytes of a character that was cut
            error.start += self._decoded - held
            raise
        self._decoded += len(data)
        newline = self.text.rfind("\n", 0, self.pos)
        self._line += self.text.count("\n", 0, self.pos)
        self._column = self._column + self.pos if newline < 0 else self.pos - newline - 1
        self.text, self.pos = self.text[self.pos :] + fresh, 0
        return True


def _values(text: _Text) -> Iterator[Entry]:
    if text.peek() == "[":
        yield from _list(text)
        return
    first = text.value()
    if not text.peek():
        problem = f"the file holds {kind(first.value)}, not a list"
        yield Entry(first.value, first.start, first.end, problem, True)
        return
    if text.peek() != "{":
        raise text.error("Extra data")
    yield first
    while text.peek():
        yield text.value()


def _list(text: _Text) -> Iterator[Entry]:
    text.skip()
    if text.peek() == "]":
        text.skip()
    else:
        while True:
            yield text.value()
            mark = text.peek()
            if mark not in (",", "]") or not mark:
                raise text.error("Expecting ',' delimiter")
            text.skip()
            if mark == "]":
                break
    if text.peek():
        raise text.error("Extra data")
