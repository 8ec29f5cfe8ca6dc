"""Admission: which requests the engine takes in, so that waits stay short and clients share it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from server.engine.errors import Overloaded

# Part of the room that only clients with few samples get, so that one client never fills the engine.
RESERVE = 0.125


@dataclass(frozen=True, slots=True)
class Load:
    """What the engine has in hand. pace_s: seconds of work a sample; num_clients: those with samples in flight."""

    inflight: int
    num_clients: int
    pace_s: float

    @property
    def wait_s(self) -> float:
        """What all samples in flight still take, as a new one behind them would wait."""
        return self.pace_s * self.inflight


@dataclass(frozen=True, slots=True)
class Admission:
    """Limits of one engine. max_samples: in flight at once. max_wait_s: longest predicted wait of a new sample."""

    max_samples: int = 1024
    max_wait_s: float = 0.5

    def refusal(self, num_pictures: int, own: int, load: Load) -> Overloaded | None:
        """Why a client with `own` samples in flight may not send so many more now; None where it may.

        Clients take turns, so a sample waits for those of its own client and for as many of each other client.
        """
        others = load.num_clients - bool(own)
        wait_s = load.pace_s * min(load.inflight, (own + 1) * (others + 1) - 1)
        reserve = int(RESERVE * self.max_samples)
        room = self.max_samples - reserve if own > reserve else self.max_samples
        if load.inflight + num_pictures > room or wait_s > self.max_wait_s:
            return Overloaded(retry_after_s=max(1.0, wait_s))
        return None
