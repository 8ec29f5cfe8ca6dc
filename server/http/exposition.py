"""The text of /metrics, rendered between other work, in at most a twentieth of the event loop's time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from prometheus_client import Metric, generate_latest
from prometheus_client.registry import Collector

# Longest time between two pauses for other work; a single metric may take longer.
SLICE_S = 0.001

# Largest share of the time for rendering.
SHARE = 0.05


class Exposition:
    """Renders the metrics of a collector. Waiting scrapes share the next text, which begins after the scrape arrived.

    clock: in seconds. sleep: lets other work run for a number of seconds.
    """

    def __init__(
        self,
        collector: Collector,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._collector = collector
        self._clock = clock
        self._sleep = sleep
        self._next: asyncio.Task[bytes] | None = None
        self._rendering = asyncio.Lock()
        self._due_s = 0.0

    async def text(self) -> bytes:
        """Prometheus's text format."""
        if self._next is None:
            self._next = asyncio.create_task(self._wait_and_render())
        # Shielded: other scrapes may wait for the same text when this client hangs up.
        return await asyncio.shield(self._next)

    async def _wait_and_render(self) -> bytes:
        async with self._rendering:
            await self._sleep(max(0.0, self._due_s - self._clock()))
            self._next = None
            return await self._render()

    async def _render(self) -> bytes:
        parts, busy_s, since_s = list[bytes](), 0.0, self._clock()
        for metric in self._collector.collect():
            parts.append(generate_latest(_Collected([metric])))
            if (slice_s := self._clock() - since_s) > SLICE_S:
                busy_s += slice_s
                await self._sleep(0.0)
                since_s = self._clock()
        now_s = self._clock()
        self._due_s = now_s + (busy_s + now_s - since_s) * (1 / SHARE - 1)
        return b"".join(parts)


class _Collected(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        return self._metrics
