"""Files in JSON: decoded while the body arrives, so that their text is never in memory as a whole.

A body of 32 MiB would otherwise be there as bytes, as text, and as a value, until its images are
made.
"""

import codecs
import json
import re
from collections.abc import Callable, Collection
from typing import Any

from serve_app.ingress.data_uri import FileDecoder
from serve_app.ingress.http_errors import InvalidJson
from serve_app.ingress.input_file import InputFile

_STRUCTURE = re.compile(rb'[\[\]{}"]')
_ESCAPE = 6  # bytes of the longest escape: a backslash, u and four digits
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\(?:u[0-9a-fA-F]{4}|["\\/bfnrt]))*+')  # up to its end
_CONTROLS = bytes(range(32))  # which a string may only contain as escapes (RFC 8259, section 7)
_MAX_TOKENS = 100_000  # brackets and strings: far more than a body of legal length has values
_MAX_KEY = 64  # bytes


class JsonFiles:
    """The files in the lists of some fields of an object, and the rest of its JSON text.

    In the rest, an empty string stands for each file.
    """

    def __init__(self, fields: Collection[str]) -> None:
        self._fields = fields
        self._files: list[InputFile] = []
        self._rest = bytearray()
        self._state: Callable[[JsonFiles, bytes, int], int] = JsonFiles._outside
        self._carry = b""  # the beginning of an escape
        self._tokens = 0
        self._depth = 0
        self._is_list = False  # of files
        self._start = 0  # of the newest string in the rest
        self._key = ""  # that string, if it may be a key
        self._decoder: FileDecoder | None = None  # of the file that arrives; None: it is none
        self._characters = codecs.getincrementaldecoder("utf-8")()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body. Raises `InvalidJson`."""
        data = self._carry + data
        self._carry = b""
        position = 0
        while position < len(data):
            position = self._state(self, data, position)

    def finish(self, parse: Callable[[bytes], Any]) -> Any:
        """Return the value of the rest, as `parse` reads it, with the files at their places."""
        value = parse(bytes(self._rest + self._carry))
        files = iter(self._files)
        if isinstance(value, dict):
            for field, items in value.items():
                if field in self._fields and isinstance(items, list):
                    value[field] = [
                        next(files, item) if isinstance(item, str) else item for item in items
                    ]
        return value

    def _outside(self, data: bytes, position: int) -> int:
        """Read up to the next bracket or string; return the position behind it."""
        found = _STRUCTURE.search(data, position)
        end = found.end() if found else len(data)
        self._rest += data[position:end]
        if found:
            self._tokens += 1
            if self._tokens > _MAX_TOKENS:
                raise InvalidJson("the body has too many values")
            self._enter(found.group())
        return end

    def _enter(self, token: bytes) -> None:
        match token:
            case b"[" | b"{":
                self._depth += 1
                if self._depth == 2:
                    self._is_list = token == b"[" and self._key in self._fields
            case b"]" | b"}":
                self._depth -= 1
            case _ if self._is_list and self._depth == 2:
                self._decoder = FileDecoder()
                self._characters.reset()
                self._state = JsonFiles._in_file
            case _:
                self._start = len(self._rest)
                self._state = JsonFiles._in_text

    def _in_text(self, data: bytes, position: int) -> int:
        """Read a string that stays in the rest."""
        text, end = self._in_string(data, position)
        self._rest += text
        if end:
            string = self._rest[self._start : self._start + _MAX_KEY + 1]
            self._key = _key(bytes(string)) if len(string) <= _MAX_KEY else ""
            self._close()
        return position + len(text) + end + len(self._carry)

    def _in_file(self, data: bytes, position: int) -> int:
        """Read a string that is a file."""
        text, end = self._in_string(data, position)
        try:
            self._characters.decode(text, final=bool(end))
        except UnicodeDecodeError:
            raise InvalidJson("the body is not valid JSON") from None
        self._decode(text)
        if end:
            self._files.append(self._file())
            self._close()
        return position + len(text) + end + len(self._carry)

    def _in_string(self, data: bytes, position: int) -> tuple[bytes, int]:
        """Return the text of a string from there on, and 1 if its closing quote follows, else 0.

        The beginning of an escape at the end of the data becomes the carry.
        """
        found = _IN_STRING.match(data, position)
        stop = found.end() if found else position
        if stop < len(data) and data[stop] != ord('"'):
            if len(data) - stop >= _ESCAPE:
                raise InvalidJson("the body is not valid JSON")
            self._carry = data[stop:]
        return data[position:stop], int(stop < len(data) and not self._carry)

    def _decode(self, text: bytes) -> None:
        if len(text.translate(None, _CONTROLS)) < len(text):
            raise InvalidJson("the body is not valid JSON")
        if self._decoder is None:
            return
        try:
            self._decoder.feed(_unescaped(text))
        except ValueError:
            self._decoder = None

    def _file(self) -> InputFile:
        try:
            return InputFile(self._decoder.finish() if self._decoder else None)
        except ValueError:
            return InputFile(None)

    def _close(self) -> None:
        self._rest += b'"'
        self._decoder = None
        self._state = JsonFiles._outside


def _unescaped(text: bytes) -> bytes:
    """Return the characters of a part of a JSON string. Raises `ValueError`."""
    plain = text.replace(b"\\/", b"/")  # as PHP writes every one of them
    return plain if b"\\" not in plain else str(json.loads(b'"%b"' % text)).encode()


def _key(text: bytes) -> str:
    try:
        return str(json.loads(b'"%b"' % text))
    except ValueError:
        return ""
