"""Messages between frontends and the engine process come out as they went in, however the bytes are cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.exit_policy import ExitReason, ExitRule
from server.engine.errors import DeadlineExceeded, EngineStopped, InferenceFailed, Overloaded
from server.engine.request import Answer, Contract, Promise, Rung, Visit
from server.processes import wire

slots = st.integers(0, 2**32 - 1)
seconds = st.floats(0, 1e9)
shares = st.floats(0, 1)
confidences = st.floats(0, 1, width=32)


@st.composite
def rungs(draw) -> Rung:
    thresholds = tuple(draw(st.lists(shares, min_size=1, max_size=8)))
    max_exit = draw(st.integers(1, len(thresholds) + 1))
    rule = ExitRule(thresholds, draw(st.integers(1, max_exit)), max_exit)
    return Rung(rule, draw(st.none() | st.builds(Promise, shares, st.booleans())))


@st.composite
def contracts(draw) -> Contract:
    asked, ladder = draw(rungs()), st.lists(rungs(), max_size=4).map(tuple)
    return Contract(asked.rule, draw(st.none() | seconds), asked.promise, draw(ladder), draw(ladder))


@st.composite
def answers(draw) -> Answer:
    visits = st.builds(Visit, st.integers(1, 1000), st.integers(0, 2**31), confidences)
    probabilities_C = np.array(draw(st.lists(confidences, min_size=1, max_size=20)), np.float32)
    visited = tuple(draw(st.lists(visits, min_size=1, max_size=6)))
    queue_s, inference_s, latency_s = draw(seconds), draw(seconds), draw(seconds)
    return Answer(
        visited,
        probabilities_C,
        queue_s,
        inference_s,
        draw(st.sampled_from(ExitReason)),
        latency_s,
        draw(st.integers(-9, 9)),
    )


errors = st.one_of(
    st.builds(Overloaded, seconds),
    st.builds(EngineStopped, draining=st.booleans()),
    st.builds(DeadlineExceeded, st.text()),
    st.builds(InferenceFailed, st.text()),
)


def body_of(frame: bytes) -> bytes:
    [(_, body)] = wire.Frames().feed(frame)
    return body


def facts(outcome: wire.Outcome) -> object:
    """What can be compared of an outcome: an array has no single truth, an exception no equality."""
    if isinstance(outcome, Answer):
        probabilities_C = outcome.probabilities_C
        return outcome._replace(probabilities_C=probabilities_C.tobytes()), probabilities_C.dtype  # type: ignore[arg-type]
    return None if outcome is None else (type(outcome), str(outcome), vars(outcome))


@given(st.integers(0, 2**16 - 1), contracts(), st.lists(slots, min_size=1, max_size=70))
def test_a_submission_keeps_its_contract_to_the_bit(model, contract, slots):
    message = wire.parse_submission(body_of(wire.submit(model, contract, slots)))
    assert (message.model, message.slots) == (model, tuple(slots))
    assert message.contract == contract
    assert message.contract.rule.limits.tobytes() == contract.rule.limits.tobytes()


@given(st.lists(st.tuples(slots, st.none() | answers() | errors), max_size=8))
def test_outcomes_of_all_sorts_share_a_message(outcomes):
    body = body_of(wire.outcomes(wire.outcome(slot, outcome) for slot, outcome in outcomes))
    parsed = [(slot, facts(outcome)) for slot, outcome in wire.parse_outcomes(body)]
    assert parsed == [(slot, facts(outcome)) for slot, outcome in outcomes]


@given(
    st.integers(0, 2**16 - 1),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    seconds,
    st.lists(st.integers(0, 2**32 - 1), max_size=9),
)
def test_a_state_comes_back(model, alive, others, clients, pace_s, depths):
    state = wire.State(model, alive, others, clients, pace_s, tuple(depths))
    assert wire.parse_state(body_of(wire.state(state))) == state


@given(st.lists(slots, max_size=9), st.integers(0, 2**32 - 1), st.binary(max_size=40))
def test_slots_and_digests_come_back(slots, frontend, digest):
    assert wire.parse_cancelled(body_of(wire.cancel(slots))) == tuple(slots)
    assert wire.parse_hello(body_of(wire.hello(wire.Hello(frontend, digest)))) == wire.Hello(frontend, digest)


@given(st.lists(st.binary(max_size=30), max_size=6), st.lists(st.integers(1, 12)))
def test_frames_come_whole_and_in_order_however_the_stream_is_cut(digests, cuts):
    stream = b"".join(wire.hello(wire.Hello(0, digest)) for digest in digests)
    frames, found = wire.Frames(), []
    for cut in [*cuts, len(stream)]:
        piece, stream = stream[:cut], stream[cut:]
        found += [wire.parse_hello(body).digest for _, body in frames.feed(piece)]
    assert found == digests


def test_probabilities_of_an_answer_may_be_written_to_and_keep_no_message_alive():
    answer = Answer((Visit(1, 2, 0.5),), np.full(3, 0.25, np.float32), 0.1, 0.2, ExitReason.FINAL, 0.3)
    [(_, parsed)] = wire.parse_outcomes(body_of(wire.outcomes([wire.outcome(7, answer)])))
    assert isinstance(parsed, Answer)
    assert parsed.probabilities_C.flags.owndata
    assert parsed.probabilities_C.flags.writeable


@pytest.mark.parametrize("deadline_s", [None, 0.0, 1e-9, 123456.789])
def test_no_deadline_is_not_a_deadline_of_zero(deadline_s):
    contract = Contract(ExitRule.uniform(0.5, 4), deadline_s)
    message = wire.parse_submission(body_of(wire.submit(0, contract, [1])))
    assert message.contract.deadline_s == deadline_s
