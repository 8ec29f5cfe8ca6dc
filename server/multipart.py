"""multipart/form-data (RFC 7578) that lies in memory, cut into its named parts."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.problems import MALFORMED_BODY, TOO_MANY_IMAGES, Problem


def parse_multipart(content_type: str, body: bytes, most_parts: int) -> list[tuple[str, bytes]]:
    """Name and content of every part, in order.

    Raises Problem: 400 for a body that is malformed, cut off, or has a part without a name; 413 for too many parts.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise Problem(MALFORMED_BODY, "the Content-Type of the multipart body names no boundary")
    form = _Form(most_parts)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_header_field": form.header_field,
                "on_header_value": form.header_value,
                "on_header_end": form.header_end,
                "on_part_data": form.content,
                "on_end": form.end,
            },
        )
        parser.write(body)
    except FormParserError as error:
        raise Problem(MALFORMED_BODY, f"the multipart body is malformed: {str(error)[:200]}") from error
    if not form.is_whole:
        raise Problem(MALFORMED_BODY, "the multipart body is cut off: its last boundary is missing")
    return [(_name(part), bytes(part.data)) for part in form.parts]


@dataclass
class _Part:
    header: bytes = b""
    value: bytes = b""
    disposition: bytes = b""
    data: bytearray = field(default_factory=bytearray)


class _Form:
    """Collects what the parser calls out."""

    def __init__(self, most_parts: int) -> None:
        self.parts: list[_Part] = []
        self.is_whole = False
        self._most_parts = most_parts

    def begin(self) -> None:
        if len(self.parts) == self._most_parts:
            raise Problem(TOO_MANY_IMAGES, f"the form has more than {self._most_parts} parts")
        self.parts.append(_Part())

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].value += data[start:end]

    def header_end(self) -> None:
        part = self.parts[-1]
        if part.header.lower() == b"content-disposition":
            part.disposition = part.value
        part.header = part.value = b""

    def content(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += data[start:end]

    def end(self) -> None:
        self.is_whole = True


def _name(part: _Part) -> str:
    name = parse_options_header(part.disposition)[1].get(b"name")
    if name is None:
        raise Problem(MALFORMED_BODY, "a part of the multipart body has no name in its Content-Disposition")
    return name.decode("utf-8", "replace")
