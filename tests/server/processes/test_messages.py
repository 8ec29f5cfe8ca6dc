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
from offramp.server.processes.messages import (
    Cancellation,
    Failure,
    Hello,
    Message,
    Refusal,
    State,
    Stream,
    Submission,
    Update,
)

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
states = st.builds(State, st.booleans(), numbers, numbers, seconds, st.lists(numbers).map(tuple))
simple_messages = st.one_of(
    st.builds(Hello, numbers, st.binary(max_size=40)),
    st.builds(Submission, numbers, st.binary(max_size=40), st.lists(numbers), st.text(), st.none() | seconds),
    st.builds(Cancellation, numbers),
    st.just(Refusal()),
    st.builds(Update, st.just([]), st.lists(states)),
)


def received(message: Message) -> Any:
    [back] = Stream().feed(messages.encode(message))
    return back


def comparable(outcome: Answer | EngineError | None) -> object:
    """Arrays and errors do not compare. A frontend says of a stopped engine that it starts again."""
    if isinstance(outcome, Answer):
        return outcome._replace(probabilities_C=outcome.probabilities_C.tolist()), outcome.probabilities_C.dtype
    if isinstance(outcome, EngineError):
        return type(outcome), vars(outcome), None if isinstance(outcome, EngineStopped) else str(outcome)
    return outcome


@given(contracts)
def test_a_contract_arrives_to_the_bit(contract: Contract) -> None:
    back = messages.decode_contract(messages.encode_contract(contract))
    assert back == contract
    assert back.asked.rule.limits.tobytes() == contract.asked.rule.limits.tobytes()


@given(st.lists(st.tuples(numbers, answers | errors | st.none())))
def test_outcomes_of_all_kinds_share_a_message(outcomes) -> None:
    sent = [
        (slot, messages.encode_error(outcome) if isinstance(outcome, EngineError) else outcome)
        for slot, outcome in outcomes
    ]
    back = [
        (slot, messages.decode_error(outcome) if isinstance(outcome, Failure) else outcome)
        for slot, outcome in received(Update(sent, [])).outcomes
    ]
    assert [(slot, comparable(outcome)) for slot, outcome in back] == [
        (slot, comparable(outcome)) for slot, outcome in outcomes
    ]


@pytest.mark.parametrize("error", [DeviceLost("gone"), EngineError("other")])
def test_any_other_error_of_the_engine_is_a_failed_inference(error: EngineError) -> None:
    back = messages.decode_error(messages.encode_error(error))
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
    [(_, back)] = received(Update([(7, answer)], [])).outcomes
    assert isinstance(back.probabilities_C.base, bytes)
    assert len(back.probabilities_C.base) == 3 * 4


@pytest.mark.parametrize("deadline_s", [None, 0.0, 1e-9, 123456.789])
def test_no_deadline_is_not_a_deadline_of_zero(deadline_s: float | None) -> None:
    assert received(Submission(0, b"", [1], "", deadline_s)).deadline_s == deadline_s
