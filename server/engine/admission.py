"""Admission: refuse requests so that waits stay short and no client takes all of the engine. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.server.engine.errors import Overloaded

# Part of the room for clients with few samples, so that one client never fills the engine.
RESERVE = 0.125


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What the engine has to do. num_clients: clients with samples in flight. sample_s: seconds of work a sample."""

    inflight: int
    num_clients: int
    sample_s: float

    @property
    def wait_s(self) -> float:
        """Seconds of work of all samples in flight: the wait of a new one after them."""
        return self.sample_s * self.inflight


@dataclass(frozen=True, slots=True)
class Admission:
    """Limits of one engine. max_samples: in flight at once. max_wait_s: longest predicted wait of a new sample."""

    max_samples: int = 1024
    max_wait_s: float = 0.5

    def check_size(self, num_pictures: int) -> None:
        """Raises ValueError for more pictures than the engine ever holds."""
        if num_pictures > self.max_samples:
            raise ValueError(
                f"{num_pictures} pictures at once are out of range: this engine holds at most {self.max_samples}; "
                "send fewer, or raise --max-queue"
            )

    def refusal(self, num_pictures: int, own: int, load: EngineLoad) -> Overloaded | None:
        """The error for a client that has `own` samples in flight and sends so many more; None if they have room.

        Clients take turns, so a sample waits for those of its own client and for as many of each other client.
        """
        others = load.num_clients - bool(own)
        wait_s = load.sample_s * min(load.inflight, (own + 1) * (others + 1) - 1)
        reserve = int(RESERVE * self.max_samples)
        room = self.max_samples - reserve if own > reserve else self.max_samples
        if load.inflight + num_pictures > room or wait_s > self.max_wait_s:
            return Overloaded(retry_after_s=max(1.0, wait_s))
        return None
