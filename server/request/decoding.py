"""Decoding within limits of time and memory, fair between clients. It stops when its request is cancelled.

The quick lane opens a picture, and its header gives the cost of decoding. A cheap picture is decoded there at once; a
costly one moves to the slow lane, whose threads have a lower priority. So a small picture never waits for large ones.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, TypeVar, cast

from PIL import Image
from PIL.ImageFile import ImageFile

from offramp.models.pictures.check import Check
from offramp.models.pictures.jpeg import jpeg_scans
from offramp.models.preprocess import Preprocessing, decoded_bytes, is_run_length_bmp
from offramp.server.engine.errors import Overloaded
from offramp.server.http.problems import TOO_MANY_PIXELS, Problem
from offramp.server.memory import return_free_memory
from offramp.server.request.images import Picture, decode, open_picture
from offramp.server.request.lanes import PASSED_ON, Lane, Work

MOST_THREADS = 8

# Below these limits, decoding takes less time than the way to another thread and back.
INLINE_BYTES = 16 * 1024
INLINE_PIXELS = 128 * 128
INLINE_PARTS = 250
INLINE_S = 0.001

# Nanoseconds of decoding: upper bounds on a slow core. A progressive JPEG passes all coefficients once a scan, and one
# bit of a later scan is a coefficient. Pillow decodes run-length encoding in Python.
PER_BYTE_NS, PER_PROGRESSIVE_BYTE_NS, PER_RUN_LENGTH_BYTE_NS = 10.0, 25.0, 300.0
PER_PIXEL_NS, PER_JPEG_PIXEL_NS, PER_SCAN_PIXEL_NS, PER_RUN_LENGTH_PIXEL_NS = 30.0, 6.0, 0.5, 100.0

# Predicted seconds: above the first a picture is costly, above the second it is refused.
COSTLY_S, MOST_S = 0.1, 1.5

# Maximum memory of a cheap picture; costly ones share the budget of the slow lane.
CHEAP_BYTES = 24 * 2**20
NICENESS = 10

# Pillow reads this many bytes at a time. Each read checks that the request still waits.
SLICE_BYTES = 16 * 1024

Result = TypeVar("Result")


@dataclass(frozen=True)
class DecodeLimits:
    """Limits of all decoding in one process. threads: 0 for one a core, at most 8. memory_bytes: of the slow lane.

    max_pixels: of one picture. max_wait_s: longest predicted wait for a thread.
    """

    threads: int = 0
    max_pixels: int = 25_000_000
    memory_bytes: int = 400 * 2**20
    max_wait_s: float = 0.5


class Decoder:
    """Decodes the pictures of requests on threads; Pillow releases the interpreter's lock while it decodes.

    Sets Pillow's own limit on pixels, which holds for the whole process.
    """

    def __init__(self, limits: DecodeLimits) -> None:
        threads = limits.threads or min(MOST_THREADS, os.cpu_count() or 1)
        self.pending = 0
        self._limits = limits
        self._quick = Lane("offramp-decode", threads, threads * CHEAP_BYTES)
        self._slow = Lane(
            "offramp-decode-slow", max(1, threads // 2), limits.memory_bytes, NICENESS, return_free_memory, COSTLY_S
        )
        # Not the slow lane: it predicts waits from the durations of its calls.
        self._memory = Lane("offramp-memory", 1, 0, NICENESS)
        Image.MAX_IMAGE_PIXELS = limits.max_pixels
        # The client gets an error for such a picture, and the log needs no warning.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)

    async def decode(self, images: Sequence[bytes], preprocessing: Preprocessing, client: str = "") -> list[Picture]:
        """All pictures of a request, in order. A cancelled call decodes no further pictures.

        Raises the Problem of the first invalid picture, and Overloaded if the wait for a thread is too long.
        """
        if len(images) == 1 and len(images[0]) <= INLINE_BYTES:
            picture = self._decode_inline(images[0], preprocessing)
            if picture is not None:
                return [picture]
        self._check_wait(self._quick, client)
        request = _Request(client, preprocessing, asyncio.get_running_loop())
        self.pending += len(images)
        try:
            results = await asyncio.gather(
                *(self._begin(request, data, at) for at, data in enumerate(images)), return_exceptions=True
            )
        finally:
            self.pending -= len(images)
        error = next((result for result in results if isinstance(result, BaseException)), None)
        if error is None:
            return cast(list[Picture], results)
        try:
            # The error's traceback holds this frame: the frame must not hold the error or pictures.
            del results
            raise error
        finally:
            del error

    async def run(self, client: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run a short function in the quick lane; raises its errors."""
        # No variable for the future: a frame that holds the future of its own error is a reference cycle.
        return await _put(self._quick, client, partial(function, *arguments))

    def return_memory(self) -> asyncio.Future[None]:
        """Return the memory of freed large bodies to the system, on a thread."""
        return _put(self._memory, "", return_free_memory)

    def close(self) -> None:
        """Decode no further pictures. Does not wait for the running ones."""
        for lane in (self._quick, self._slow, self._memory):
            lane.close()

    def _decode_inline(self, data: bytes, preprocessing: Preprocessing) -> Picture | None:
        """Decode a small picture on the event loop; None if it takes longer than the way to a thread."""
        try:
            image = open_picture(data, 0, self._limits.max_pixels, check=_Allowance(INLINE_PARTS))
            if image.width * image.height <= INLINE_PIXELS and decode_s(image, data) <= INLINE_S:
                return decode(image, 0, preprocessing)
        except _UsedUp:
            pass
        return None

    def _begin(self, request: _Request, data: bytes, index: int) -> asyncio.Future[Picture]:
        future: asyncio.Future[Picture] = request.loop.create_future()
        opening = partial(self._open, request, data, index, future)
        self._quick.put(Work(request.client, opening, future, request.loop, CHEAP_BYTES))
        return future

    def _open(self, request: _Request, data: bytes, index: int, future: asyncio.Future[Picture]) -> Any:
        """Decode a cheap picture, or pass a costly one on. Called on a thread of the quick lane."""

        def check() -> None:
            if future.done() or self._quick.closed:
                raise OSError("the request was given up")

        image = open_picture(data, index, self._limits.max_pixels, partial(_Source, check=check), check)
        assert isinstance(image, ImageFile), "Pillow opens files"
        image.decodermaxblock = SLICE_BYTES
        seconds = decode_s(image, data)
        request.preprocessing.draft(image)
        memory_bytes = decoded_bytes(image, request.preprocessing.size)
        if seconds > MOST_S or memory_bytes > self._limits.memory_bytes:
            raise _too_costly(image, index, self._limits.max_pixels)
        decoding = partial(decode, image, index, request.preprocessing)
        if seconds <= COSTLY_S and memory_bytes <= CHEAP_BYTES:
            return decoding()
        if not request.has_costly:
            # Once a request: its own pictures must not refuse it.
            self._check_wait(self._slow, request.client)
            request.has_costly = True
        self._slow.put(Work(request.client, decoding, future, request.loop, memory_bytes))
        return PASSED_ON

    def _check_wait(self, lane: Lane, client: str) -> None:
        wait_s = lane.wait_s(client)
        if wait_s > self._limits.max_wait_s:
            raise Overloaded(retry_after_s=max(1.0, wait_s))


@dataclass(eq=False)
class _Request:
    client: str
    preprocessing: Preprocessing
    loop: asyncio.AbstractEventLoop
    has_costly: bool = False


class _Source(BytesIO):
    """An encoded picture that calls `check` before each read: Pillow reads it in slices."""

    def __init__(self, data: bytes, check: Check) -> None:
        super().__init__(data)
        self._check = check

    def read(self, size: int | None = -1, /) -> bytes:
        self._check()
        return super().read(size)


class _UsedUp(Exception):
    """A picture on the event loop has more parts than it may."""


class _Allowance:
    """A check that may be called `parts` times."""

    def __init__(self, parts: int) -> None:
        self._left = parts

    def __call__(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _UsedUp


def decode_s(image: Image.Image, data: bytes) -> float:
    """Predicted seconds of decoding an opened picture, from its whole size, its bytes and its scans."""
    per_byte_ns, per_pixel_ns = PER_BYTE_NS, PER_PIXEL_NS
    if is_run_length_bmp(image):
        per_byte_ns, per_pixel_ns = PER_RUN_LENGTH_BYTE_NS, PER_RUN_LENGTH_PIXEL_NS
    elif image.format == "JPEG":
        per_pixel_ns = PER_JPEG_PIXEL_NS
        if "progressive" in image.info:
            per_byte_ns = PER_PROGRESSIVE_BYTE_NS
            per_pixel_ns += (jpeg_scans(data) - 1) * PER_SCAN_PIXEL_NS
    return (len(data) * per_byte_ns + image.width * image.height * per_pixel_ns) * 1e-9


def _too_costly(image: Image.Image, index: int, max_pixels: int) -> Problem:
    detail = (
        f"image {index} has {image.width} × {image.height} pixels, and decoding it takes more time or memory than one "
        "picture may: send it smaller, or as a JPEG that is not progressive"
    )
    return Problem(TOO_MANY_PIXELS, detail, image=index, limit_pixels=max_pixels)


def _put(lane: Lane, client: str, run: Callable[[], Result]) -> asyncio.Future[Result]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()
    lane.put(Work(client, run, future, loop))
    return future
