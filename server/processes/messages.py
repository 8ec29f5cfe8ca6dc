"""Messages between the frontends and the engine process, on a Unix socket.

A message is a msgpack map with its length in front (4 bytes, big-endian). Both ends run the same program, so there is
no version to agree on.

    frontend -> engine process    Hello, Submission, Cancellation
    engine process -> frontend    Refusal, Update
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
    """The first message of a frontend. frontend: its number. digest: see `shared_pictures.Layout`."""

    frontend: int
    digest: bytes


class Submission(msgspec.Struct, tag="submit"):
    """The pictures of one request, which lie in `slots`.

    model: its number in the order served. contract: see `encode_contract`. deadline_s: on the monotonic clock, which
    all processes share.
    """

    model: int
    contract: bytes
    slots: list[int]
    client: str = ""
    deadline_s: float | None = None


class Cancellation(msgspec.Struct, tag="cancel"):
    """Nothing waits for the sample in this slot any more."""

    slot: int


class Refusal(msgspec.Struct, tag="refuse"):
    """The frontend has other models than the engine process."""


class State(msgspec.Struct, frozen=True):
    """State of one model's engine, for one frontend.

    alive: the engine is warm and takes samples. inflight_others: samples in flight of the other frontends. num_clients,
    sample_s: see `admission.Load`. queue_depths: samples of all frontends in front of each stage.
    """

    alive: bool
    inflight_others: int
    num_clients: int
    sample_s: float
    queue_depths: tuple[int, ...]


class Failure(msgspec.Struct):
    """An EngineError: the name of its class, its message, and the facts of `Overloaded` and `EngineStopped`."""

    kind: str
    message: str
    retry_after_s: float = 0.0
    draining: bool = False


class Update(msgspec.Struct, tag="update"):
    """Outcomes of samples, all of one step together, and the state of every model's engine, in the order served.

    outcomes: slot, and the sample's answer or error; None if it was cancelled.
    """

    outcomes: list[tuple[int, Answer | Failure | None]]
    states: list[State]


Message = Hello | Submission | Cancellation | Refusal | Update


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
        """Yield the messages that `data` completes."""
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


# Most requests have one of a few contracts.
@lru_cache(maxsize=1024)
def encode_contract(contract: Contract) -> bytes:
    """For `Submission.contract`."""
    return _encoder.encode(contract)


@lru_cache(maxsize=1024)
def decode_contract(data: bytes) -> Contract:
    """Back from `encode_contract`."""
    return _contracts.decode(data)


def encode_error(error: EngineError) -> Failure:
    """For `Update.outcomes`."""
    facts = (getattr(error, "retry_after_s", 0.0), getattr(error, "draining", False))
    return Failure(type(error).__name__, str(error), *facts)


def decode_error(failure: Failure) -> EngineError:
    """Back from `encode_error`. Errors that a frontend does not tell apart become InferenceFailed."""
    match failure.kind:
        case "Overloaded":
            return Overloaded(failure.retry_after_s)
        case "EngineStopped":
            return EngineStopped(draining=failure.draining, restarts=True)
        case "DeadlineExceeded":
            return DeadlineExceeded(failure.message)
        case _:
            return InferenceFailed(failure.message)
