"""Messages between the frontends and the engine process arrive as they were sent, however the bytes are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.models.exit_policy import ExitReason, ExitRule
from offramp.server.engine.errors import (
    DeadlineExceeded,
    DeviceLost,
    EngineError,
    EngineStopped,
    InferenceFailed,
    Overloaded,
)
from offramp.server.engine.request import Answer, Contract, ExitPlan, Promise, Visit
from offramp.server.processes import messages
from offramp.server.processes.messages import Cancellation, Hello, Message, Outcomes, Refusal, State, Stream, Submission

numbers = st.integers(0, 2**32 - 1)
seconds = st.floats(0, 1e9)
shares = st.floats(0, 1)
confidences = st.floats(0, 1, width=32)
promises = st.builds(Promise, shares, st.booleans())


@st.composite
def plans(draw) -> ExitPlan:
    thresholds = tuple(draw(st.lists(shares, min_size=1, max_size=8)))
    max_exit = draw(st.integers(1, len(thresholds) + 1))
    return ExitPlan(ExitRule(thresholds, draw(st.integers(1, max_exit)), max_exit), draw(st.none() | promises))


contracts = st.builds(
    Contract, plans(), st.lists(plans(), max_size=4).map(tuple), st.lists(plans(), max_size=4).map(tuple)
)
visits = st.builds(Visit, st.integers(1, 1000), st.integers(0, 2**31), confidences)
answers = st.builds(
    Answer,
    st.lists(visits, min_size=1, max_size=6).map(tuple),
    st.lists(confidences, min_size=1, max_size=20).map(lambda values: np.array(values, np.float32)),
    seconds,
    seconds,
    st.sampled_from(ExitReason),
    seconds,
    st.none() | promises,
)
errors = st.one_of(
    st.builds(Overloaded, seconds),
    st.builds(EngineStopped, draining=st.booleans()),
    st.builds(DeadlineExceeded, st.text()),
    st.builds(InferenceFailed, st.text()),
)
simple_messages = st.one_of(
    st.builds(Hello, numbers, st.binary(max_size=40)),
    st.builds(Submission, numbers, st.binary(max_size=40), st.lists(numbers), st.text(), st.none() | seconds),
    st.builds(Cancellation, st.lists(numbers)),
    st.just(Refusal()),
    st.builds(State, numbers, st.booleans(), numbers, numbers, seconds, st.lists(numbers).map(tuple)),
)


def received(message: Message) -> Any:
    [back] = Stream().feed(messages.encode(message))
    return back


def comparable(answer: Answer) -> object:
    """An array has no single truth."""
    return answer._replace(probabilities_C=answer.probabilities_C.tolist()), answer.probabilities_C.dtype


def described(error: EngineError) -> object:
    """The frontend says of a stopped engine that it starts again, so its message differs."""
    return type(error), vars(error), None if isinstance(error, EngineStopped) else str(error)


@given(contracts)
def test_a_contract_arrives_to_the_bit(contract: Contract) -> None:
    back = messages.decode_contract(messages.encode_contract(contract))
    assert back == contract
    assert back.asked.rule.limits.tobytes() == contract.asked.rule.limits.tobytes()


@given(st.lists(st.tuples(numbers, answers)), st.lists(st.tuples(numbers, errors)), st.lists(numbers))
def test_outcomes_of_all_kinds_share_a_message(answered, failed, released) -> None:
    outcomes = Outcomes(answered, [(slot, messages.failure(error)) for slot, error in failed], released)
    back = received(outcomes)
    assert [(slot, comparable(answer)) for slot, answer in back.answers] == [
        (slot, comparable(answer)) for slot, answer in answered
    ]
    decoded = [(slot, messages.error(failure)) for slot, failure in back.failures]
    assert [(slot, described(error)) for slot, error in decoded] == [(slot, described(error)) for slot, error in failed]
    assert back.released == released


@pytest.mark.parametrize("error", [DeviceLost("gone"), EngineError("other")])
def test_any_other_error_of_the_engine_is_a_failed_inference(error: EngineError) -> None:
    back = messages.error(messages.failure(error))
    assert (type(back), str(back)) == (InferenceFailed, str(error))


@given(st.lists(simple_messages, max_size=6), st.lists(st.integers(1, 12)))
def test_messages_arrive_whole_and_in_order_however_the_stream_is_cut(sent, cuts) -> None:
    data = b"".join(map(messages.encode, sent))
    stream, back = Stream(), list[Message]()
    for cut in [*cuts, len(data)]:
        piece, data = data[:cut], data[cut:]
        back += stream.feed(piece)
    assert back == sent


def test_probabilities_of_an_answer_do_not_keep_the_message_alive() -> None:
    answer = Answer((Visit(1, 2, 0.5),), np.full(3, 0.25, np.float32), 0.1, 0.2, ExitReason.FINAL, 0.3)
    [(_, back)] = received(Outcomes([(7, answer)])).answers
    assert isinstance(back.probabilities_C.base, bytes)
    assert len(back.probabilities_C.base) == 3 * 4


@pytest.mark.parametrize("deadline_s", [None, 0.0, 1e-9, 123456.789])
def test_no_deadline_is_not_a_deadline_of_zero(deadline_s: float | None) -> None:
    assert received(Submission(0, b"", [1], "", deadline_s)).deadline_s == deadline_s
