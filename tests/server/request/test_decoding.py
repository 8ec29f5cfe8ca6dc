"""Decoding within limits: lanes, costs, budgets, and cancelled pictures."""

import asyncio
import gc
import io
import struct
import threading
import weakref
from functools import partial

import pytest
from PIL import Image

from offramp.models.preprocess import Preprocessing
from offramp.server.engine.errors import Overloaded
from offramp.server.http.problems import MALFORMED_BODY, Problem
from offramp.server.request import decoding
from offramp.server.request.decoding import DecodeLimits, Decoder, decode_s
from offramp.server.request.lanes import Work
from tests.pictures import chunk

PREPROCESSING = Preprocessing(32)
LIMITS = DecodeLimits(threads=1, max_pixels=30_000_000)


def encoded(size=(24, 40), format: str = "PNG", mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 80).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def blank(side: int, format: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (side, side)).save(buffer, format)
    return buffer.getvalue()


def num_images() -> int:
    return sum(issubclass(type(each), Image.Image) for each in gc.get_objects())


@pytest.fixture
def decoder():
    decoder = Decoder(LIMITS)
    yield decoder
    decoder.close()


async def test_of_several_bad_pictures_the_first_is_named(decoder):
    with pytest.raises(Problem) as caught:
        await decoder.decode([encoded(), b"noise", b"noise"], PREPROCESSING)
    assert caught.value.fields["image"] == 1
    assert decoder.pending == 0


@pytest.mark.parametrize("size", [(32, 32), (500, 400), (3000, 2000)], ids=["inline", "cheap", "dear"])
async def test_a_picture_decodes_the_same_alone_and_among_others(decoder, size):
    data = encoded(size)
    expected = PREPROCESSING.apply(Image.open(io.BytesIO(data)))
    [alone] = await decoder.decode([data], PREPROCESSING)
    among = await decoder.decode([data] * 3, PREPROCESSING)
    assert all((each == expected).all() for each in (alone, *among))


async def test_a_few_bytes_that_claim_many_pixels_are_not_decoded_on_the_event_loop(decoder):
    data = blank(1000, mode="L")
    assert len(data) < decoding.INLINE_BYTES
    asked = asyncio.create_task(decoder.decode([data], PREPROCESSING))
    await asyncio.sleep(0)
    assert decoder.pending == 1
    await asked


async def test_a_small_picture_does_not_wait_for_large_ones(decoder):
    large = asyncio.create_task(decoder.decode([blank(5000)] * 8, PREPROCESSING, "heavy"))
    await asyncio.sleep(0)
    await decoder.decode([encoded((200, 200))], PREPROCESSING, "light")
    assert not large.done()
    large.cancel()


async def test_pictures_whose_request_is_gone_are_not_decoded(decoder):
    begun = asyncio.create_task(decoder.decode([blank(5000)] * 50, PREPROCESSING, "gone"))
    await decoder.decode([blank(3000)], PREPROCESSING, "other")
    begun.cancel()
    # It would come behind the 50, if they were still there: they and it have one client's turns.
    await decoder.decode([blank(3000)], PREPROCESSING, "gone")
    with pytest.raises(asyncio.CancelledError):
        await begun


def test_a_picture_is_given_up_in_the_middle():
    data, gone = encoded((2000, 2000)), False

    def check():
        if gone and source.tell() > len(data) // 2:
            raise OSError("the request was given up")

    source = decoding._Source(data, check)
    image = Image.open(source)
    image.decodermaxblock = decoding.SLICE_BYTES
    gone = True
    with pytest.raises(OSError, match="given up"):
        image.load()
    assert source.tell() <= len(data) // 2 + 2 * decoding.SLICE_BYTES


async def test_reading_metadata_is_given_up_with_its_request(decoder):
    data = encoded()
    data = data[:33] + chunk(b"tEXt") * 100_001 + data[33:]
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    with pytest.raises(Problem, match="the request was given up"):
        decoder._open(decoding._Request("gone", PREPROCESSING, future.get_loop()), data, 0, future)


def many_chunks() -> bytes:
    data = encoded()
    return data[:33] + chunk(b"tEXt") * 1000 + data[33:]


def many_scans() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (128, 128), 90).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 400 + data[-2:]


@pytest.mark.parametrize("make", [many_chunks, many_scans, lambda: run_length_bmp(60)], ids=["chunks", "scans", "runs"])
async def test_a_small_file_that_costs_much_is_not_decoded_on_the_event_loop(decoder, make):
    data = make()
    assert len(data) < decoding.INLINE_BYTES
    request = asyncio.create_task(decoder.decode([data], PREPROCESSING))
    await asyncio.sleep(0)
    assert decoder.pending == 1
    [picture] = await request
    assert picture.shape == (32, 32, 3)


async def test_a_jpeg_of_too_many_scans_is_refused_before_it_is_decoded(decoder):
    [picture] = await decoder.decode([encoded((1000, 1000), "JPEG", progressive=True)], PREPROCESSING)
    data = encoded((5000, 5000), "JPEG", progressive=True, quality=1)
    # Scans that say nothing new, as an attacker repeats them: the last one's bytes again and again.
    last = data.rindex(b"\xff\xda")
    bomb = data[:-2] + data[last:-2] * 400 + data[-2:]
    image = Image.open(io.BytesIO(bomb))
    assert decode_s(image, data) < decoding.MOST_S < decode_s(image, bomb)
    with pytest.raises(Problem) as caught:
        await decoder.decode([bomb], PREPROCESSING)
    assert (caught.value.kind.status, caught.value.fields["image"]) == (413, 0)
    assert picture.shape == (32, 32, 3)


async def test_a_picture_that_takes_more_than_the_memory_is_refused():
    decoder = Decoder(DecodeLimits(threads=1, memory_bytes=8 * 2**20))
    with pytest.raises(Problem) as caught:
        await decoder.decode([encoded((32, 32)), blank(2000)], PREPROCESSING)
    decoder.close()
    assert (caught.value.kind.status, caught.value.fields["image"]) == (413, 1)


async def test_a_client_that_waits_long_already_is_refused_and_another_is_not():
    decoder = Decoder(DecodeLimits(threads=1, max_wait_s=0.05))
    await decoder.decode([blank(5000)], PREPROCESSING, "heavy")
    first = asyncio.create_task(decoder.decode([blank(5000)] * 6, PREPROCESSING, "heavy"))
    await decoder.decode([encoded((300, 300))], PREPROCESSING, "light")
    with pytest.raises(Overloaded):
        await decoder.decode([blank(5000)], PREPROCESSING, "heavy")
    await decoder.decode([encoded((300, 300))], PREPROCESSING, "light")
    first.cancel()
    decoder.close()


async def test_a_first_rush_of_slow_pictures_is_not_taken_in_whole():
    decoder = Decoder(DecodeLimits(threads=1, max_wait_s=0.5))
    data = blank(5000)
    rush = [asyncio.create_task(decoder.decode([data], PREPROCESSING)) for _ in range(20)]
    ended, waiting = await asyncio.wait(rush, return_when=asyncio.FIRST_EXCEPTION)
    assert any(isinstance(task.exception(), Overloaded) for task in ended)
    for task in waiting:
        task.cancel()
    decoder.close()


async def test_a_refused_picture_leaves_no_pixels_behind(decoder):
    truncated = encoded((1200, 1200))[:-100_000]
    gc.collect()
    gc.disable()
    try:
        before = num_images()
        for _ in range(3):
            with pytest.raises(Problem):
                await decoder.decode([encoded((300, 300)), truncated], PREPROCESSING)
            with pytest.raises(Problem):
                await decoder.decode([truncated], PREPROCESSING)
        # The thread lets go of the last one after it has handed over the result.
        await decoder.run("", threading.get_ident)
        assert num_images() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [partial(Problem, MALFORMED_BODY), ValueError], ids=["problem", "bug"])
async def test_an_error_of_what_was_run_leaves_nothing_behind(decoder, kind):
    class Body:
        pass

    def refuse(body):
        raise kind("no")

    body = Body()
    gone = weakref.ref(body)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises((Problem, ValueError)):
            await decoder.run("", refuse, body)
        del body
        # The thread lets go of the last call after it has handed over the result.
        await decoder.run("", threading.get_ident)
        assert gone() is None
    finally:
        gc.enable()


class Exhausted(Preprocessing):
    """Runs out of memory while it works on a picture."""

    def apply(self, image):
        raise MemoryError


async def test_a_failure_leaves_no_pixels_behind(decoder):
    gc.collect()
    gc.disable()
    try:
        before = num_images()
        for num_pictures in (1, 3):
            with pytest.raises(MemoryError):
                await decoder.decode([encoded((300, 300))] * num_pictures, Exhausted(32))
        await decoder.run("", threading.get_ident)
        assert num_images() == before
    finally:
        gc.enable()


async def test_returning_memory_changes_no_predicted_wait(decoder):
    await decoder.decode([blank(3000)], PREPROCESSING)
    mean_s = decoder._slow._mean_s
    await asyncio.gather(*(decoder.return_memory() for _ in range(3)))
    assert decoder._slow._mean_s == mean_s > 0
    ended, begun = threading.Event(), asyncio.Event()

    def busy():
        loop.call_soon_threadsafe(begun.set)
        ended.wait()

    loop = asyncio.get_running_loop()
    decoder._slow.put(Work("other", busy, loop.create_future(), loop))
    await begun.wait()
    wait_s = decoder._slow.wait_s("one")
    returned = [decoder.return_memory() for _ in range(3)]
    assert decoder._slow.wait_s("one") == wait_s > 0
    ended.set()
    await asyncio.gather(*returned)


def run_length_bmp(side: int) -> bytes:
    rows = (b"\x01\x05" * side + b"\x00\x00") * side + b"\x00\x01"
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(rows), 0, 0, 1078) + header + bytes(1024) + rows


async def test_a_run_length_bmp_is_priced_by_its_bytes(decoder):
    [picture] = await decoder.decode([run_length_bmp(100)], PREPROCESSING)
    assert picture.shape == (32, 32, 3)
    with pytest.raises(Problem) as caught:
        await decoder.decode([run_length_bmp(1700)], PREPROCESSING)
    assert caught.value.kind.status == 413


async def test_a_run_length_bmp_of_short_rows_is_priced_by_its_pixels(decoder):
    # Pillow fills each row in Python, pixel by pixel.
    rows = (b"\x01\x05" + b"\x00\x00") * 5000 + b"\x00\x01"
    header = struct.pack("<IiiHHIIiiII", 40, 5000, 5000, 1, 8, 1, len(rows), 0, 0, 256, 0)
    data = b"BM" + struct.pack("<IHHI", 1078 + len(rows), 0, 0, 1078) + header + bytes(1024) + rows
    with pytest.raises(Problem) as caught:
        await decoder.decode([data], PREPROCESSING)
    assert caught.value.kind.status == 413
