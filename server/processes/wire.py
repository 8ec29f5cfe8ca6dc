"""What frontends and the engine process say to each other, as bytes on a Unix socket.

A frame is the length of its body (uint32), its kind (uint8) and the body; all little-endian.

frontend -> engine process
    HELLO     which frontend, and the digest of the models it has loaded
    SUBMIT    pictures of one request: model, contract, and the slots that the pictures lie in
    CANCEL    slots whose answer nobody wants any more
engine process -> frontend
    REFUSED   the digest is not that of the engine's own models
    STATE     how one model's engine stands: sent when it has changed
    OUTCOMES  what became of slots, all of one step together; exactly one record for each slot submitted

Both ends are one program on one machine, so there is no negotiation of versions. Nothing here is ever read from
the network.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, lru_cache

import numpy as np

from models.exit_policy import ExitReason, ExitRule
from server.engine.errors import DeadlineExceeded, EngineError, EngineStopped, InferenceFailed, Overloaded
from server.engine.request import Answer, Contract, Promise, Rung, Visit


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    SUBMIT = 2
    CANCEL = 3
    REFUSED = 4
    STATE = 5
    OUTCOMES = 6


@dataclass(frozen=True, slots=True)
class Hello:
    """A frontend's first words. digest: of what it knows of the models; see `shared_pictures.Layout`."""

    frontend: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Submission:
    """The pictures of one request, by the slots they lie in. model: its place in the order served.

    client: digest of the client's name, the same in all frontends.
    """

    model: int
    contract: Contract
    slots: tuple[int, ...]
    client: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """How the engine of a model stands, as one frontend is told.

    alive: warm, and its thread runs. inflight_others: samples in flight that are not this frontend's.
    num_clients, pace_s: as in `admission.Load`, of all frontends.
    queue_depths: waiting in front of each stage, everybody's.
    """

    model: int
    alive: bool
    inflight_others: int
    num_clients: int
    pace_s: float
    queue_depths: tuple[int, ...]


# What became of a slot; None where it was given up and there is nothing to tell.
Outcome = Answer | EngineError | None

_HEAD = struct.Struct("<IB")
_HELLO = struct.Struct("<I")
# Model, slots, stricter and looser rungs, deadline, client.
# Then the rungs: thresholds, depth bounds, promise (NaN for none).
_SUBMIT = struct.Struct("<HHHHd8s")
_RUNG = struct.Struct("<HHHd?")
_STATE = struct.Struct("<HBIIdH")
_ANSWER = struct.Struct("<IBBHIdddb")
_ERROR = struct.Struct("<IBdI")
_VISIT = "IId"

_REASONS = tuple(ExitReason)
_REASON_NUMBERS = {reason: number for number, reason in enumerate(_REASONS)}


class _Code(IntEnum):
    """What became of a slot."""

    ANSWERED = 0
    RELEASED = 1
    OVERLOADED = 2
    STOPPED = 3
    TOO_LATE = 4
    FAILED = 5


class Frames:
    """Cuts a stream of bytes into frames, however they arrive."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Kind and body of every frame that is complete with `data`."""
        self._rest += data
        start = 0
        while len(self._rest) - start >= _HEAD.size:
            length, kind = _HEAD.unpack_from(self._rest, start)
            end = start + _HEAD.size + length
            if end > len(self._rest):
                break
            yield Kind(kind), bytes(self._rest[start + _HEAD.size : end])
            start = end
        del self._rest[:start]


def hello(message: Hello) -> bytes:
    """A HELLO frame."""
    return _frame(Kind.HELLO, _HELLO.pack(message.frontend) + message.digest)


def parse_hello(body: bytes) -> Hello:
    """Back from `hello`."""
    (frontend,) = _HELLO.unpack_from(body)
    return Hello(frontend, body[_HELLO.size :])


def submit(model: int, contract: Contract, slots: Sequence[int], client: str = "") -> bytes:
    """A SUBMIT frame."""
    rungs = (Rung(contract.rule, contract.promise), *contract.stricter, *contract.looser)
    deadline_s = math.nan if contract.deadline_s is None else contract.deadline_s
    head = _SUBMIT.pack(model, len(slots), len(contract.stricter), len(contract.looser), deadline_s, _digest(client))
    return _frame(Kind.SUBMIT, b"".join([head, _slots(slots), *map(_rung, rungs)]))


def parse_submission(body: bytes) -> Submission:
    """Back from `submit`."""
    model, num_slots, num_stricter, num_looser, deadline_s, client = _SUBMIT.unpack_from(body)
    numbers = _numbers("I", num_slots)
    (rule, promise), *others = _parse_rungs(body[_SUBMIT.size + numbers.size :])
    assert len(others) == num_stricter + num_looser
    contract = Contract(
        rule,
        None if math.isnan(deadline_s) else deadline_s,
        promise,
        tuple(others[:num_stricter]),
        tuple(others[num_stricter:]),
    )
    return Submission(model, contract, numbers.unpack_from(body, _SUBMIT.size), client.hex())


@lru_cache(maxsize=4096)
def _digest(client: str) -> bytes:
    return hashlib.blake2b(client.encode(), digest_size=8).digest()


@lru_cache(maxsize=1024)
def _rung(rung: Rung) -> bytes:
    thresholds, promise = rung.rule.thresholds, rung.promise or Promise(math.nan, False)
    head = _RUNG.pack(len(thresholds), rung.rule.min_exit, rung.rule.max_exit, *promise)
    return head + _numbers("d", len(thresholds)).pack(*thresholds)


@lru_cache(maxsize=1024)
def _parse_rungs(data: bytes) -> tuple[Rung, ...]:
    # Kept, because most requests ask for one of a few operating points, and checking a rule anew costs 10 µs.
    rungs, start = [], 0
    while start < len(data):
        num_thresholds, min_exit, max_exit, max_disagreement, certified = _RUNG.unpack_from(data, start)
        numbers = _numbers("d", num_thresholds)
        rule = ExitRule(numbers.unpack_from(data, start + _RUNG.size), min_exit, max_exit)
        promise = None if math.isnan(max_disagreement) else Promise(max_disagreement, certified)
        rungs.append(Rung(rule, promise))
        start += _RUNG.size + numbers.size
    return tuple(rungs)


def cancel(slots: Sequence[int]) -> bytes:
    """A CANCEL frame."""
    return _frame(Kind.CANCEL, _slots(slots))


def parse_cancelled(body: bytes) -> tuple[int, ...]:
    """The slots of a CANCEL frame."""
    return _numbers("I", len(body) // 4).unpack(body)


def refused() -> bytes:
    """A REFUSED frame."""
    return _frame(Kind.REFUSED, b"")


def state(message: State) -> bytes:
    """A STATE frame."""
    depths = message.queue_depths
    load = message.inflight_others, message.num_clients, message.pace_s
    body = _STATE.pack(message.model, message.alive, *load, len(depths))
    return _frame(Kind.STATE, body + _slots(depths))


def parse_state(body: bytes) -> State:
    """Back from `state`."""
    model, alive, inflight_others, num_clients, pace_s, num_stages = _STATE.unpack_from(body)
    depths = _numbers("I", num_stages).unpack_from(body, _STATE.size)
    return State(model, bool(alive), inflight_others, num_clients, pace_s, depths)


def outcomes(records: Iterable[bytes]) -> bytes:
    """An OUTCOMES frame from what `outcome` made."""
    return _frame(Kind.OUTCOMES, b"".join(records))


def outcome(slot: int, result: Outcome) -> bytes:
    """The record of one slot."""
    if isinstance(result, Answer):
        return _answer(slot, result)
    number, text = 0.0, ""
    match result:
        case None:
            code = _Code.RELEASED
        case Overloaded():
            code, number = _Code.OVERLOADED, result.retry_after_s
        case EngineStopped():
            code, number = _Code.STOPPED, float(result.draining)
        case DeadlineExceeded():
            code, text = _Code.TOO_LATE, str(result)
        case _:
            code, text = _Code.FAILED, str(result)
    encoded = text.encode()
    return _ERROR.pack(slot, code, number, len(encoded)) + encoded


def parse_outcomes(body: bytes) -> Iterator[tuple[int, Outcome]]:
    """Slot and outcome of every record in an OUTCOMES frame."""
    start = 0
    while start < len(body):
        # Both sorts of record begin with the slot and the code.
        if body[start + 4] == _Code.ANSWERED:
            slot, answer, start = _parse_answer(body, start)
            yield slot, answer
            continue
        slot, code, number, length = _ERROR.unpack_from(body, start)
        end = start + _ERROR.size + length
        yield slot, _error(code, number, body[end - length : end].decode())
        start = end


def _answer(slot: int, answer: Answer) -> bytes:
    visited, probabilities_C = answer.visited, answer.probabilities_C
    head = _ANSWER.pack(
        slot,
        _Code.ANSWERED,
        _REASON_NUMBERS[answer.reason],
        len(visited),
        len(probabilities_C),
        answer.latency_s,
        answer.queue_s,
        answer.inference_s,
        answer.rung,
    )
    numbers = [number for visit in visited for number in (visit.exit, visit.class_id, visit.confidence)]
    return head + _numbers(_VISIT, len(visited)).pack(*numbers) + probabilities_C.tobytes()


def _parse_answer(body: bytes, start: int) -> tuple[int, Answer, int]:
    """Slot, answer, and where the next record begins."""
    slot, _, reason, num_visits, num_classes, latency_s, queue_s, inference_s, rung = _ANSWER.unpack_from(body, start)
    start += _ANSWER.size
    visits = _numbers(_VISIT, num_visits)
    numbers = iter(visits.unpack_from(body, start))
    visited = tuple(Visit(*triple) for triple in zip(numbers, numbers, numbers, strict=True))
    start += visits.size
    # Copied: aligned, writable, and no reason to keep the whole step's frame.
    probabilities_C = np.frombuffer(body, np.float32, num_classes, start).copy()
    answer = Answer(visited, probabilities_C, queue_s, inference_s, _REASONS[reason], latency_s, rung)
    return slot, answer, start + probabilities_C.nbytes


def _error(code: int, number: float, text: str) -> EngineError | None:
    match code:
        case _Code.RELEASED:
            return None
        case _Code.OVERLOADED:
            return Overloaded(number)
        case _Code.STOPPED:
            return EngineStopped(draining=bool(number))
        case _Code.TOO_LATE:
            return DeadlineExceeded(text)
        case _:
            return InferenceFailed(text)


@cache
def _numbers(kind: str, count: int) -> struct.Struct:
    return struct.Struct("<" + kind * count)


def _slots(slots: Sequence[int]) -> bytes:
    return _numbers("I", len(slots)).pack(*slots)


def _frame(kind: Kind, body: bytes) -> bytes:
    return _HEAD.pack(len(body), kind) + body
