"""Request bodies: raw picture, multipart form or JSON, each parsed into a ParsedRequest."""

from __future__ import annotations

import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from offramp.server.http.problems import (
    BODY_TOO_LARGE,
    INVALID_IMAGE,
    INVALID_PARAMETER,
    MALFORMED_BODY,
    OVERLOADED,
    TOO_MANY_IMAGES,
    UNSUPPORTED_MEDIA_TYPE,
    Problem,
    retry_after,
)
from offramp.server.request.images import MEDIA_TYPES, image_format
from offramp.server.request.multipart import parse_multipart
from offramp.server.request.parameters import Parameters, merge_parameters, quoted, short
from offramp.server.request.uploads import Upload

FORM, JSON, ANY = "multipart/form-data", "application/json", "application/octet-stream"

# Media type of curl's -d and --data-binary without a Content-Type of its own. -d leaves out line ends.
CURL = "application/x-www-form-urlencoded"
CURL_HINT = "(with curl: --data-binary @FILE, not -d)"
UNTYPED = ("", CURL)

# Names of other programs for a format, old and new.
SYNONYMS = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/jfif": "image/jpeg",
    "image/x-png": "image/png",
    "image/apng": "image/png",
    "image/x-ms-bmp": "image/bmp",
    "image/x-bmp": "image/bmp",
    "image/x-windows-bmp": "image/bmp",
}

MAX_PARAMETERS = 64
# Maximum number of values of a JSON body in addition to its pictures: far more than any parameters have.
MAX_JSON_VALUES = 2**17


@dataclass(frozen=True)
class ParsedRequest:
    """The encoded pictures of a request, in order, and its unchecked parameters.

    body_names: names of the pictures in this kind of body.
    """

    images: list[bytes]
    parameters: dict[str, Any]
    body_names: Sequence[str] = ()


# Pictures of a body, its parameters with repeated names, and the names of pictures in this kind of body.
Content = tuple[list[bytes], list[tuple[str, Any]], Sequence[str]]


async def read_body(headers: Headers, receive: Receive, limit_bytes: int, upload: Upload) -> bytes:
    """Read the whole body, and reserve the memory of each part that arrives. Raises ClientDisconnect if it is cut off.

    Raises Problem as soon as possible: 413 for a body that is too large, 503 if there is no memory for it.
    """
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        detail = f"the body is encoded as {encoding[:40]!r}: send it without Content-Encoding"
        raise Problem(UNSUPPORTED_MEDIA_TYPE, detail)
    announced = headers.get("content-length", "")
    if announced.isdecimal():
        if int(announced) > limit_bytes:
            raise _too_large(limit_bytes)
        if not upload.announce(int(announced)):
            raise _no_memory()
    chunks, size_bytes, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        size_bytes += len(chunk)
        if size_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        if not upload.grow(size_bytes):
            raise _no_memory()
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def parse_query(query: bytes) -> list[tuple[str, str]]:
    """Names and values of a query string. Raises Problem (422) for more than MAX_PARAMETERS."""
    if not query:
        return []
    try:
        return parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError as error:
        detail = f"the query string has more than {MAX_PARAMETERS} parameters"
        raise Problem(INVALID_PARAMETER, detail) from error


def parse_body(content_type: str, body: bytes, query: list[tuple[str, str]], max_images: int) -> ParsedRequest:
    """Pictures and parameters of a body, merged with those of the query string.

    Raises Problem: 400 for malformed JSON or multipart, 413 for too many pictures, 415 for another media type,
    422 for an empty body, two values of a parameter, or invalid base64.
    """
    if not body:
        raise Problem(INVALID_IMAGE, "the body is empty: send a picture (does the file exist?)")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == JSON:
        images, given, names = _parse_json(body, max_images)
    elif media_type == FORM:
        images, given, names = _parse_form(content_type, body, max_images)
    else:
        images, given, names = _parse_raw(media_type, body), [], ()
    return ParsedRequest(images, merge_parameters(query, given) if query or given else {}, names)


def check_has_pictures(submission: ParsedRequest) -> None:
    """Raises Problem (422). Called after the parameters are checked: a picture may have come under a wrong name."""
    if not submission.images:
        name = submission.body_names[0]
        raise Problem(INVALID_IMAGE, f"the body has no picture: give at least one as {name!r}")


def _parse_raw(media_type: str, body: bytes) -> list[bytes]:
    format = image_format(body)
    if media_type in UNTYPED and format is None:
        raise _unsupported(f"the body is not a JPEG, PNG, WebP, BMP or GIF picture {CURL_HINT}")
    standard = SYNONYMS.get(media_type, media_type)
    if standard not in (*UNTYPED, ANY, *MEDIA_TYPES):
        raise _unsupported(f"the media type {media_type[:80]!r} is not supported")
    declared = MEDIA_TYPES.get(standard)
    if declared and format and declared != format:
        raise _unsupported(f"the body is a {format} picture and its Content-Type {media_type}: correct it")
    return [body]


def _parse_json(body: bytes, max_images: int) -> Content:
    # Counted before parsing: a value takes up to 60 times its bytes. Base64 has none of these characters.
    values = sum(map(body.count, (b",", b"{", b"[")))
    if values > max_images + MAX_JSON_VALUES:
        detail = f"the JSON body has {values} values, the limit is {max_images} pictures and {MAX_JSON_VALUES} others"
        raise Problem(TOO_MANY_IMAGES, detail, limit_images=max_images)
    try:
        content = json.loads(body, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise Problem(MALFORMED_BODY, f"the body is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(content, _Pairs):
        raise Problem(MALFORMED_BODY, 'the JSON body must be an object, such as {"images": ["<base64>"]}')
    if len(content) > MAX_PARAMETERS:
        raise Problem(INVALID_PARAMETER, f"the JSON object has more than {MAX_PARAMETERS} names")
    # A JSON text may hold half of a surrogate pair, which no name can hold.
    names = [name.encode("utf-8", "replace").decode() for name, _ in content]
    given = [(name, _plain(value)) for name, (_, value) in zip(names, content, strict=True)]
    lists = [value for name, value in given if name == "images"]
    if len(lists) > 1:
        raise Problem(INVALID_PARAMETER, "'images' is given twice: give one list", parameters=["images"])
    encoded = lists[0] if lists else []
    if not isinstance(encoded, list):
        raise Problem(INVALID_PARAMETER, "images must be a list of base64 strings", parameters=["images"])
    _check_count(len(encoded), max_images)
    images = [_decode_base64(text, index) for index, text in enumerate(encoded)]
    return images, [pair for pair in given if pair[0] != "images"], ["images"]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its repeated names."""


def _plain(value: Any) -> Any:
    """A parameter's value with objects as dicts, to the depth of a list of objects."""
    if isinstance(value, _Pairs):
        return dict(value)
    if isinstance(value, list):
        return [dict(item) if isinstance(item, _Pairs) else item for item in value]
    return value


def _decode_base64(text: Any, index: int) -> bytes:
    try:
        if not isinstance(text, str):
            raise ValueError("it is not a string")
        return binascii.a2b_base64(text, strict_mode=True)
    except (ValueError, binascii.Error) as error:
        detail = f"images[{index}] is not valid base64: {error}; encode the file's bytes alone, without line breaks"
        raise Problem(INVALID_IMAGE, detail, image=index) from error


def _parse_form(content_type: str, body: bytes, max_images: int) -> Content:
    parts = parse_multipart(content_type, body, max_images + MAX_PARAMETERS)
    for part in parts:
        if part.is_file and part.name not in ("image", *Parameters.model_fields):
            detail = (
                f"{quoted(part.name)} is unknown and has a file: did you mean 'image'? The parts of a form are image, "
                f"once for each picture, and the parameters {', '.join(Parameters.model_fields)}"
            )
            raise Problem(INVALID_PARAMETER, detail, parameters=short([part.name]))
    images = [part.content for part in parts if part.name == "image"]
    _check_count(len(images), max_images)
    given = [(part.name, part.content.decode("utf-8", "replace")) for part in parts if part.name != "image"]
    return images, given, ["image"]


def _check_count(count: int, max_images: int) -> None:
    if count > max_images:
        detail = f"the request has {count} pictures, the limit is {max_images}: send them in several requests"
        raise Problem(TOO_MANY_IMAGES, detail, limit_images=max_images)


def _no_memory() -> Problem:
    detail = "the server holds as many uploads as its memory allows; try again, or send smaller pictures"
    return Problem(OVERLOADED, detail, retry_after(1))


def _too_large(limit_bytes: int) -> Problem:
    detail = f"the body is larger than the limit of {limit_bytes} bytes: send fewer or smaller pictures"
    return Problem(BODY_TOO_LARGE, detail, limit_bytes=limit_bytes)


def _unsupported(what: str) -> Problem:
    accepted = [*MEDIA_TYPES, ANY, FORM, JSON]
    return Problem(UNSUPPORTED_MEDIA_TYPE, f"{what}; accepted are {', '.join(accepted)}", accepted=accepted)
