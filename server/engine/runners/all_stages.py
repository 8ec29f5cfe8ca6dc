"""One batch through every stage: for warming up, measuring and comparing. Nobody leaves early."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from offramp.server.engine.runners.runner import Runner, StepOutput

Pictures = Sequence[npt.NDArray[np.uint8]]


def walk(runner: Runner, pictures: Pictures) -> Iterator[StepOutput]:
    """The output of every stage in turn, its states kept already: a batch that stays together to the end."""
    states: Sequence[object] = pictures
    for stage in range(1, runner.num_stages + 1):
        output = runner.run(stage, states)
        states = output.keep(range(len(pictures))) if stage < runner.num_stages else ()
        yield output


def stage_seconds(runner: Runner, pictures: Pictures, clock: Callable[[], float]) -> list[float]:
    """What each stage takes, keeping the states of all included. clock: monotonic seconds."""
    times, before_s = [], clock()
    for _ in walk(runner, pictures):
        after_s = clock()
        times.append(after_s - before_s)
        before_s = after_s
    return times


def blank(size: int, number: int) -> Pictures:
    """Black pictures (size, size, 3), for what does not depend on what is in them."""
    return [np.zeros((size, size, 3), np.uint8)] * number
