"""The text of /metrics, rendered between other work: it takes at most a twentieth of the event loop's time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from prometheus_client import Metric, generate_latest
from prometheus_client.registry import Collector

# Longest time between two pauses for other work; a single family may take longer.
SLICE_S = 0.001

# Largest share of the time that is spent on rendering.
SHARE = 0.05


class Exposition:
    """Renders what a collector collects. Scrapes that wait share the next text; each gets a text begun after it came.

    clock: in seconds. sleep: lets other work run for so many seconds.
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
        # Others may wait for the same text when this client hangs up.
        return await asyncio.shield(self._next)

    async def _wait_and_render(self) -> bytes:
        async with self._rendering:
            await self._sleep(max(0.0, self._due_s - self._clock()))
            self._next = None
            return await self._render()

    async def _render(self) -> bytes:
        parts, busy_s, since_s = list[bytes](), 0.0, self._clock()
        for family in self._collector.collect():
            parts.append(generate_latest(_Collected([family])))
            if (slice_s := self._clock() - since_s) > SLICE_S:
                busy_s += slice_s
                await self._sleep(0.0)
                since_s = self._clock()
        now_s = self._clock()
        self._due_s = now_s + (busy_s + now_s - since_s) * (1 / SHARE - 1)
        return b"".join(parts)


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        return self._families
