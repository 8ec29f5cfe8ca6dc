"""Checks on a copy of the network: the shapes that it makes, and whether its parts together give its answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from offramp.models.attach.tracing import FAILURES, AttachError, build_module, copy_input

# Batch norm needs more than one picture. Hardly another size in a network is 3, apart from the colours.
BATCH_SIZE = 3
# The parts run the same operations in the same order; a wrong cut is off by far more.
TOLERANCE = 1e-4

_MODE = {False: "evaluation", True: "training"}
_WHERE = {
    torch.preserve_format: "by itself",
    torch.channels_last: "where features lie channels-last in memory, as while serving; use reshape instead of view",
}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class NetworkCopy:
    """A copy of a network, on the CPU or on torch's meta device, and the side of the pictures that it takes."""

    network: nn.Module
    input_size: int

    @property
    def is_meta(self) -> bool:
        """Whether the copy has shapes only, and computes nothing."""
        return any(weight.is_meta for weight in self.network.parameters())

    def pictures(self) -> Tensor:
        """A batch (B, 3, H, W) of normal noise, the same every time."""
        shape = (BATCH_SIZE, 3, self.input_size, self.input_size)
        x_BCHW = torch.randn(shape, generator=torch.Generator("cpu"), device="cpu")
        return x_BCHW.to("meta") if self.is_meta else x_BCHW


def copy_network(network: nn.Module, input_size: int) -> NetworkCopy:
    """A copy to run checks on. Raises AttachError when the network cannot be copied."""
    try:
        copy = NetworkCopy(deepcopy(network), input_size)
    except FAILURES as error:
        raise AttachError(
            f"{type(network).__name__} cannot be copied: {error}. Training and pruning copy networks: keep out of its "
            "modules what copy.deepcopy does not take"
        ) from error
    return copy if copy.is_meta else NetworkCopy(copy.network.cpu(), input_size)


def find_shapes(copy: NetworkCopy, graph: fx.Graph) -> Mapping[fx.Node, Shape]:
    """The shape of every tensor in the graph. Raises AttachError when the network does not take its pictures."""
    recorder, x_BCHW = _ShapeRecorder(copy.network.eval(), graph), copy.pictures()
    try:
        with torch.no_grad(), _fixed_seed():
            recorder.run(x_BCHW)
    except FAILURES as error:
        raise AttachError(
            f"{type(copy.network).__name__} does not take pictures {tuple(x_BCHW.shape)}: {error}. "
            "Give an input_size that it takes"
        ) from error
    return recorder.shapes


class _ShapeRecorder(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, garbage_collect_values=True, graph=graph)
        self.extra_traceback = False
        self.shapes: dict[fx.Node, Shape] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # A module may change a list that it is given, which the lists of a graph refuse.
        return super().call_module(target, tuple(list(a) if isinstance(a, list) else a for a in args), kwargs)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        return value


def is_feature_map(shape: Shape) -> bool:
    """Whether a shape is (B, C, H, W) with H = W; (B, H, W, C) can pass for it where W = C."""
    return len(shape) == 4 and shape[0] == BATCH_SIZE and shape[2] == shape[3]


def check_parts(copy: NetworkCopy, parts: Sequence[fx.Graph], end: fx.Graph) -> None:
    """Run the parts one after another, then `end` (the classifier), and compare the answers with the network's.

    A part that changes its input in place is rewritten to work on a copy, since a head reads the same features. Raises
    AttachError when the answers differ, or a part does not take features that lie channels-last, as while serving.
    """
    changing: set[int] = set()
    for training in (False, True):
        network = copy.network.train(training)
        answer = _run(deepcopy(network), [*parts, end], copy.pictures(), changing)
        with torch.no_grad(), _fixed_seed():
            expected = network(copy.pictures())
        if not copy.is_meta and not _is_close(answer, expected):
            raise AttachError(
                f"cut into parts, the network answers otherwise than whole (in {_MODE[training]}): its forward keeps a "
                "state between calls, or hooks or a replaced forward change a module that contains a cut; move that "
                "into a small nn.Module of its own"
            )
    _run(copy.network.eval(), parts, copy.pictures(), changing, torch.channels_last)
    for index in changing:
        copy_input(parts[index])


def _run(
    network: nn.Module,
    parts: Sequence[fx.Graph],
    x: Tensor,
    changing: set[int],
    layout: torch.memory_format = torch.preserve_format,
) -> Tensor:
    """The output of the last part. The index of each part that changes its input is added to `changing`."""
    with torch.no_grad(), _fixed_seed():
        for index, part in enumerate(parts):
            module = build_module(part, network).train(network.training)
            features = x.clone(memory_format=layout)
            version = features._version
            try:
                x = module(features)
            except RuntimeError as error:
                raise AttachError(f"part {index + 1} fails {_WHERE[layout]}: {error}") from error
            if features._version != version:
                changing.add(index)
    return x


def _is_close(answer: Tensor, expected: Tensor) -> bool:
    if answer.shape != expected.shape:
        return False
    margin = TOLERANCE * float(expected.nan_to_num().abs().max())
    return torch.allclose(answer, expected, rtol=0.0, atol=margin, equal_nan=True)


@contextmanager
def _fixed_seed() -> Iterator[None]:
    """The same random numbers each time; the process's own generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield
