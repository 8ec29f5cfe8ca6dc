"""Messages between the frontends and the engine process, on a Unix socket.

A message is a msgpack map, behind its length (4 bytes, big-endian). Both ends are the same program on one machine, so
that versions need no negotiation.

    frontend -> engine process    Hello, Submission, Cancellation
    engine process -> frontend    Refusal, State, Outcomes
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from offramp.server.engine.errors import DeadlineExceeded, EngineError, EngineStopped, InferenceFailed, Overloaded
from offramp.server.engine.request import Answer, Contract

LENGTH_BYTES = 4


class Hello(msgspec.Struct, tag="hello"):
    """The first message of a frontend. digest: of its models; see `shared_pictures.Layout`."""

    frontend: int
    digest: bytes


class Submission(msgspec.Struct, tag="submit"):
    """The pictures of one request. model: its number in the order served. contract: encoded. slots: of the pictures.

    deadline_s: on the monotonic clock, which all processes share.
    """

    model: int
    contract: bytes
    slots: list[int]
    client: str = ""
    deadline_s: float | None = None


class Cancellation(msgspec.Struct, tag="cancel"):
    """Nothing waits for these slots any more."""

    slots: list[int]


class Refusal(msgspec.Struct, tag="refuse"):
    """The frontend has other models than the engine process."""


class State(msgspec.Struct, tag="state", frozen=True):
    """State of one model's engine, for one frontend.

    alive: warm, and its thread runs. inflight_others: samples in flight of the other frontends. num_clients, sample_s:
    see `admission.Load`. queue_depths: samples of all frontends in front of each stage.
    """

    model: int
    alive: bool
    inflight_others: int
    num_clients: int
    sample_s: float
    queue_depths: tuple[int, ...]


class Failure(msgspec.Struct, array_like=True):
    """An EngineError. number: its `retry_after_s` or `draining`."""

    kind: str
    message: str = ""
    number: float = 0.0


class Outcomes(msgspec.Struct, tag="outcomes"):
    """Results of slots, all of one step together: one for each submitted slot. Released slots were cancelled."""

    answers: list[tuple[int, Answer]] = []
    failures: list[tuple[int, Failure]] = []
    released: list[int] = []


Message = Hello | Submission | Cancellation | Refusal | State | Outcomes


def _encode_array(array: Any) -> bytes:
    assert isinstance(array, np.ndarray)
    return array.tobytes()


def _decode_array(kind: type, data: bytes) -> Any:
    return np.frombuffer(data, np.float32)


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_decoder = msgspec.msgpack.Decoder(Message, dec_hook=_decode_array)
_contracts = msgspec.msgpack.Decoder(Contract)


def encode(message: Message) -> bytes:
    """The message with its length in front."""
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES) + body


class Stream:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Every message that is complete with `data`."""
        self._rest += data
        start = 0
        while len(self._rest) - start >= LENGTH_BYTES:
            begin = start + LENGTH_BYTES
            end = begin + int.from_bytes(self._rest[start:begin])
            if end > len(self._rest):
                break
            yield _decoder.decode(self._rest[begin:end])
            start = end
        del self._rest[:start]


# Kept: most requests ask for one of a few contracts.
@lru_cache(maxsize=1024)
def encode_contract(contract: Contract) -> bytes:
    """For `Submission.contract`."""
    return _encoder.encode(contract)


@lru_cache(maxsize=1024)
def decode_contract(data: bytes) -> Contract:
    """Back from `encode_contract`."""
    return _contracts.decode(data)


_KINDS = {kind.__name__: kind for kind in (DeadlineExceeded, InferenceFailed)}


def failure(error: EngineError) -> Failure:
    """The error as a message."""
    match error:
        case Overloaded():
            return Failure("Overloaded", number=error.retry_after_s)
        case EngineStopped():
            return Failure("EngineStopped", number=float(error.draining))
        case _:
            kind = type(error).__name__
            return Failure(kind if kind in _KINDS else "InferenceFailed", str(error))


def error(failure: Failure) -> EngineError:
    """Back from `failure`."""
    match failure.kind:
        case "Overloaded":
            return Overloaded(failure.number)
        case "EngineStopped":
            return EngineStopped(draining=bool(failure.number), restarts=True)
        case kind:
            return _KINDS[kind](failure.message)
