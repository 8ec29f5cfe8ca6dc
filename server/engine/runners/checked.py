"""A fast runner that has to be right, and what takes its place where it is not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from offramp.models.bundle import Bundle
from offramp.server.engine.errors import DeviceLost, EngineError
from offramp.server.engine.runners.agreement import NUM_TRIALS, largest_difference
from offramp.server.engine.runners.failures import as_sentence
from offramp.server.engine.runners.runner import Runner, StepOutput
from offramp.server.engine.runners.torch_runner import TorchRunner

logger = logging.getLogger(__name__)

# Where a probability differs by more than this from the reference's, a lower precision is not this network's. In the
# same precision only sums in another order may differ; more is another network than the one that was converted.
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
    """A fast runner; where it cannot run the network, the reference, in eager torch.

    name: of the fast one, for messages. make: gives it in a precision, "auto" for the fastest. precisions: which there
    are, wider and wider; with them its answers are compared with the reference's once it is warm, and where they differ
    the next wider one takes its place. Without them it serves unchecked. falls_back: whether the reference may take its
    place in the end; where not, ValueError or EngineError says why.
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
        self._reference: TorchRunner | None = None
        self._try(lambda: self._load("auto"))

    @property
    def chosen(self) -> Runner:
        """The runner that computes, known for good once it is warm."""
        return self._fast or self._torch()

    @property
    def num_stages(self) -> int:
        """K."""
        return self._bundle.net.num_exits

    def run(self, stage: int, states: Sequence[Any]) -> StepOutput:
        """Stage 1..K over a batch."""
        return self.chosen.run(stage, states)

    def warm_up(self, max_batch_size: int) -> None:
        """Warm the fast runner up and check its answers; raises DeviceLost, and what the class says."""
        self._try(lambda: self._check(max_batch_size))
        if self._fast is None:
            with as_sentence("torch", "give another --device, or a smaller --max-batch-size"):
                self._torch().warm_up(max_batch_size)

    def _try(self, step: Callable[[], None]) -> None:
        cause = None
        try:
            step()
        except DeviceLost:
            raise
        except (ValueError, EngineError, ImportError) as error:
            self._fast = None
            if not self._falls_back:
                raise
            cause = str(error)
        if cause is not None:
            logger.warning("%s runs in plain torch: %s", self._bundle.name, cause)

    def _load(self, precision: str) -> None:
        # The one before gives its memory back first.
        self._fast = None
        with as_sentence(self._name, TAKE_TORCH):
            self._fast = self._make(precision)

    def _check(self, max_batch_size: int) -> None:
        while (fast := self._fast) is not None:
            with as_sentence(self._name, TAKE_TORCH):
                fast.warm_up(max_batch_size)
                if not self._precisions:
                    return
                batch_size = min(NUM_TRIALS, max_batch_size)
                difference = largest_difference(fast, self._torch(), self._bundle.preprocessing.size, batch_size)
            # Not "more than": it may be no number.
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

    def _torch(self) -> TorchRunner:
        if self._reference is None:
            self._reference = TorchRunner(self._bundle, self._device)
        return self._reference
