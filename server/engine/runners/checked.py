"""A fast runner whose answers are compared with the reference, and its replacement if they differ."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch

from offramp.models.bundle import Bundle
from offramp.server.engine.errors import DeviceLost, EngineError
from offramp.server.engine.runners.agreement import NUM_PICTURES, largest_difference
from offramp.server.engine.runners.failures import as_sentence
from offramp.server.engine.runners.runner import Runner, StepOutput
from offramp.server.engine.runners.torch_runner import TorchRunner

logger = logging.getLogger(__name__)

# Largest difference of a probability from the reference, by precision. In float32 only the order of sums may differ: a
# larger difference means that another network was converted.
LARGEST_DIFFERENCES = {"bfloat16": 0.1, "float16": 0.03, "float32": 1e-3}

TAKE_TORCH = "serve it with --runner torch"


@runtime_checkable
class FastRunner(Runner, Protocol):
    """A runner that computes in a precision of its own."""

    @property
    def precision(self) -> str:
        """The name of the type that features and weights have."""
        ...


class CheckedRunner:
    """A fast runner, or the reference in eager torch if the fast runner cannot run the network.

    name: of the fast runner, for messages. make: makes it for a precision; "auto" is the fastest. precisions: from
    narrow to wide. The warm-up compares the answers with the reference, and takes the next wider precision if they
    differ; without precisions it compares nothing. falls_back: whether the reference may replace the fast runner;
    otherwise ValueError or EngineError says why it fails.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        name: str,
        make: Callable[[str], FastRunner],
        precisions: Sequence[str],
        falls_back: bool,
    ) -> None:
        self._bundle, self._device, self._name = bundle, device, name
        self._make, self._precisions, self._falls_back = make, precisions, falls_back
        self._fast: FastRunner | None = None
        self._try(lambda: self._load("auto"))

    @property
    def chosen(self) -> Runner:
        """The runner that computes; after the warm-up it does not change."""
        return self._fast or self._reference

    @property
    def num_stages(self) -> int:
        """K."""
        return self._bundle.net.num_exits

    def run(self, stage: int, states: Sequence[Any]) -> StepOutput:
        """Stage 1..K over a batch."""
        return self.chosen.run(stage, states)

    def warm_up(self, max_batch_size: int) -> None:
        """Warm the fast runner up and check its answers. Raises DeviceLost, and the errors of the class."""
        self._try(lambda: self._check(max_batch_size))
        if self._fast is None:
            with as_sentence("torch", "give another --device, or a smaller --max-batch-size"):
                self._reference.warm_up(max_batch_size)

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except DeviceLost:
            raise
        except (ValueError, EngineError, ImportError) as error:
            self._fast = None
            if not self._falls_back:
                raise
            logger.warning("%s runs in plain torch: %s", self._bundle.name, error)

    def _load(self, precision: str) -> None:
        # Free the memory of the runner before first.
        self._fast = None
        with as_sentence(self._name, TAKE_TORCH):
            self._fast = self._make(precision)

    def _check(self, max_batch_size: int) -> None:
        while (fast := self._fast) is not None:
            with as_sentence(self._name, TAKE_TORCH):
                fast.warm_up(max_batch_size)
                if not self._precisions:
                    return
                batch_size = min(NUM_PICTURES, max_batch_size)
                difference = largest_difference(fast, self._reference, self._bundle.preprocessing.size, batch_size)
            # NaN must count as a difference.
            if difference <= LARGEST_DIFFERENCES[fast.precision]:
                return
            self._widen(fast.precision, difference)

    def _widen(self, precision: str, difference: float) -> None:
        wider = self._precisions[self._precisions.index(precision) + 1 :]
        if not wider:
            raise ValueError(
                f"{self._name} computes another network than this: probabilities differ by {difference:.3g} in "
                f"{precision}; does its forward decide by what it is given? {TAKE_TORCH.capitalize()}"
            )
        logger.warning(
            "%s runs in %s: in %s its probabilities differ by %.2f", self._bundle.name, wider[0], precision, difference
        )
        self._load(wider[0])

    @cached_property
    def _reference(self) -> TorchRunner:
        return TorchRunner(self._bundle, self._device)
