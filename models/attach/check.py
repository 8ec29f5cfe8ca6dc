"""A trial of a stranger's network on a copy: what shapes it makes, and whether its parts are together the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from offramp.models.attach.tracing import FAILURES, AttachError, copy_input, module_of

# More than one picture, for batch norm; and hardly another size in a network, apart from the colours, is 3.
TRIAL_BATCH = 3
# The parts run the network's own operations in its own order; a wrong cut is off by far more.
TOLERANCE = 1e-4

_MODE = {False: "evaluation", True: "training"}
_WHERE = {
    torch.preserve_format: "by itself",
    torch.channels_last: "where features lie channels-last in memory, as while serving; use reshape instead of view",
}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Trial:
    """A copy of a network, on the CPU or on torch's meta device, to be tried on square pictures."""

    network: nn.Module
    input_size: int

    @property
    def is_meta(self) -> bool:
        """Whether there are shapes only, and nothing to compute with."""
        return any(weight.is_meta for weight in self.network.parameters())

    def pictures(self) -> Tensor:
        """A batch (B, 3, H, W) of normal noise, the same every time."""
        shape = (TRIAL_BATCH, 3, self.input_size, self.input_size)
        x_BCHW = torch.randn(shape, generator=torch.Generator("cpu"), device="cpu")
        return x_BCHW.to("meta") if self.is_meta else x_BCHW


def trial_of(network: nn.Module, input_size: int) -> Trial:
    """Raises AttachError when the network cannot be copied."""
    try:
        trial = Trial(deepcopy(network), input_size)
    except FAILURES as error:
        raise AttachError(
            f"{type(network).__name__} cannot be copied: {error}. Training and pruning copy networks: keep out of its "
            "modules what copy.deepcopy does not take"
        ) from error
    return trial if trial.is_meta else Trial(trial.network.cpu(), input_size)


def shapes_of(trial: Trial, graph: fx.Graph) -> Mapping[fx.Node, Shape]:
    """The shape of every tensor in the graph. Raises AttachError when the network does not take its pictures."""
    recorder, x_BCHW = _Shapes(trial.network.eval(), graph), trial.pictures()
    try:
        with torch.no_grad(), _seeded():
            recorder.run(x_BCHW)
    except FAILURES as error:
        raise AttachError(
            f"{type(trial.network).__name__} does not take pictures {tuple(x_BCHW.shape)}: {error}. "
            "Give an input_size that it takes"
        ) from error
    return recorder.shapes


class _Shapes(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, garbage_collect_values=True, graph=graph)
        self.extra_traceback = False
        self.shapes: dict[fx.Node, Shape] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # A module may change a list that it is given; a graph's own lists refuse that.
        return super().call_module(target, tuple(list(a) if isinstance(a, list) else a for a in args), kwargs)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        return value


def is_feature_map(shape: Shape) -> bool:
    """(B, C, H, W) of square pictures, as far as a shape can tell it from (B, H, W, C)."""
    return len(shape) == 4 and shape[0] == TRIAL_BATCH and shape[2] == shape[3]


def check_parts(trial: Trial, parts: Sequence[fx.Graph], end: fx.Graph) -> None:
    """Run the parts one after another, then `end` (the classifier): the answers must be those of the network.

    A part that changes its input in place is made to work on a copy, since a head reads the same features. Raises
    AttachError when the answers differ, or a part does not take features that lie channels-last, as serving hands them.
    """
    changing: set[int] = set()
    for training in (False, True):
        network = trial.network.train(training)
        answer = _run(deepcopy(network), [*parts, end], trial.pictures(), changing)
        with torch.no_grad(), _seeded():
            expected = network(trial.pictures())
        if not trial.is_meta and not _same(answer, expected):
            raise AttachError(
                f"cut into parts, the network answers otherwise than whole (in {_MODE[training]}): its forward keeps a "
                "state between calls, or hooks or a replaced forward change a module that contains a cut; move that "
                "into a small nn.Module of its own"
            )
    _run(trial.network.eval(), parts, trial.pictures(), changing, torch.channels_last)
    for index in changing:
        copy_input(parts[index])


def _run(
    network: nn.Module,
    parts: Sequence[fx.Graph],
    x: Tensor,
    changing: set[int],
    layout: torch.memory_format = torch.preserve_format,
) -> Tensor:
    """The answer of the parts, one after another; those that change their input are added to `changing`."""
    with torch.no_grad(), _seeded():
        for index, part in enumerate(parts):
            module = module_of(part, (network,)).train(network.training)
            features = x.clone(memory_format=layout)
            version = features._version
            try:
                x = module(features)
            except RuntimeError as error:
                raise AttachError(f"part {index + 1} fails {_WHERE[layout]}: {error}") from error
            if features._version != version:
                changing.add(index)
    return x


def _same(answer: Tensor, expected: Tensor) -> bool:
    if answer.shape != expected.shape:
        return False
    margin = TOLERANCE * float(expected.nan_to_num().abs().max())
    return torch.allclose(answer, expected, rtol=0.0, atol=margin, equal_nan=True)


@contextmanager
def _seeded() -> Iterator[None]:
    """The same random numbers each time, and the process's own left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield
