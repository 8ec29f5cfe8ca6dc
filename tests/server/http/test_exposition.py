"""The text of /metrics, made in slices and not too often."""

import asyncio

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily

from offramp.server.http.exposition import SLICE_S, Exposition


class Time:
    """Passes during sleeps and collections only."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(round(seconds, 6))
        self.now_s += seconds
        await asyncio.sleep(0)


class Slow:
    """Metrics that each take metric_s. texts: how many were begun."""

    def __init__(self, time: Time, metric_s: float, num_metrics: int) -> None:
        self.texts = 0
        self._time, self._metric_s, self._num_metrics = time, metric_s, num_metrics

    def collect(self):
        self.texts += 1
        for number in range(self._num_metrics):
            self._time.now_s += self._metric_s
            yield GaugeMetricFamily(f"a{number}", "A number.", value=self.texts)


def exposition(metric_s: float, num_metrics: int) -> tuple[Exposition, Slow, Time]:
    time = Time()
    slow = Slow(time, metric_s, num_metrics)
    return Exposition(slow, time.clock, time.sleep), slow, time


async def test_the_text_is_prometheuss_own():
    registry = CollectorRegistry()
    for name in "ab":
        Counter(name, "Counts.", ["kind"], registry=registry).labels("x").inc()
    assert await Exposition(registry).text() == generate_latest(registry)


async def test_others_work_after_each_slice():
    one, _, time = exposition(0.75 * SLICE_S, 5)
    await one.text()
    assert time.slept_s == [0, 0, 0]


async def test_a_text_takes_a_twentieth_of_the_time():
    one, _, time = exposition(0.01, 4)
    await one.text()
    began_s = time.now_s
    await one.text()
    # 0.04 s each, with a pause between.
    assert time.slept_s.pop(5) == 0.76
    assert not any(time.slept_s)
    assert round(time.now_s - began_s, 6) == 0.8


async def test_scrapes_that_come_together_share_a_text_and_later_ones_do_not():
    one, slow, _ = exposition(0.01, 2)
    first, second = (asyncio.create_task(one.text()) for _ in range(2))
    while not slow.texts:  # noqa: ASYNC110 - what changes here knows nothing of events
        await asyncio.sleep(0)
    third = asyncio.create_task(one.text())
    assert b"a1 1.0" in await first
    assert await first is await second
    assert b"a1 2.0" in await third


async def test_a_client_that_hangs_up_does_not_take_the_text_from_others():
    one, _, _ = exposition(0.01, 2)
    first, second = (asyncio.create_task(one.text()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert b"a1 1.0" in await second
