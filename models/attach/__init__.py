"""Exits for any network: `attach_exits` cuts an nn.Module after named modules, so that later parts need not run.

A cut is possible after a module if later parts need only its output, one feature map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from offramp.models.attach.check import NetworkCopy, Shape, check_parts, copy_network, find_shapes, is_feature_map
from offramp.models.attach.tracing import AttachError as AttachError
from offramp.models.attach.tracing import build_module, describe, extract_part, find_leak, trace
from offramp.models.backbones.backbone import Backbone
from offramp.models.heads import Head

# What may follow the classifier: these keep the order of the classes, and exits answer with logits.
_ORDER_KEEPING_MODULES = (nn.Identity, nn.Flatten, nn.Softmax, nn.LogSoftmax)
_ORDER_KEEPING_CALLS = (F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, torch.flatten)
_ORDER_KEEPING_METHODS = ("softmax", "log_softmax", "flatten")


class AttachedHead(Head):
    """The end of a network: its own pooling of the last feature map, and its own linear classifier."""

    def __init__(self, pool: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.pool = pool
        self.classifier = classifier

    def embed(self, features_BCHW: Tensor) -> Tensor:
        embedding_BD: Tensor = self.pool(features_BCHW)
        return embedding_BD


def attach_exits(network: nn.Module, at: Sequence[str], input_size: int) -> Backbone:
    """Cut `network` after the modules named in `at`, in the order in which they run.

    Stage k runs up to and including module k. One more stage runs from there to the last feature map. The network's own
    pooling and linear classifier are the last head. The stages hold the network's own modules and weights, under their
    own names. `network` takes normalised floats (B, 3, input_size, input_size) and answers with (B, classes). A softmax
    after its classifier is left out.

    Raises AttachError with the reason and what to do when a name does not exist or is out of order, when more than one
    tensor would pass a cut, when features are not (B, C, H, W), when parts share weights, when the network does not end
    with a linear classifier, or when torch.fx cannot follow the forward of a module that contains a cut.
    """
    names = _first_names(network, at)
    copy = copy_network(network, input_size)
    traced = _trace_to_classifier(copy, names)
    graph, classifier = traced.graph, traced.classifier
    cuts = [*_cut_nodes(traced, names), traced.last_feature_map]
    points = [next(iter(graph.nodes)), *cuts, _embedding(traced)]
    parts = [extract_part(graph, start, end) for start, end in pairwise(points)]
    check_parts(copy, parts, extract_part(graph, points[-1], _answer(graph)))

    # Constants that the forward made are attributes of the copy alone.
    *stages, pool = [build_module(part, network, copy.network) for part in parts]
    linear = network.get_submodule(str(classifier.target))
    assert isinstance(linear, nn.Linear)
    channels = [traced.shapes[node][1] for node in cuts]
    backbone = Backbone(stages, channels, AttachedHead(pool, linear), initialised=True)
    _check_weights(backbone)
    return backbone


@dataclass(frozen=True)
class _TracedNetwork:
    """A network and its graph. outputs: what each module in it returned, by name. classifier: the last Linear."""

    network: nn.Module
    graph: fx.Graph
    outputs: Mapping[str, list[Any]]
    classifier: fx.Node
    shapes: Mapping[fx.Node, Shape]

    @cached_property
    def position(self) -> Mapping[fx.Node, int]:
        """Each node's place in running order."""
        return {node: index for index, node in enumerate(self.graph.nodes)}

    @cached_property
    def last_feature_map(self) -> fx.Node:
        """The end of the last stage: the last possible cut before the features are pooled to one pixel."""
        maps = [node for node in self.position if self.is_cuttable(node)]
        wide = [node for node in maps if self.shapes[node][-1] > 1]
        return (wide or maps)[-1]

    def is_cuttable(self, node: fx.Node) -> bool:
        """Whether the node is the picture or gives a feature map, and later nodes need nothing else from before it."""
        is_map = node in self.shapes and is_feature_map(self.shapes[node])
        return is_map and self.position[node] < self.position[self.classifier] and not find_leak(self.graph, node)

    def has_weights_behind(self, cut: fx.Node) -> bool:
        """Whether a module with parameters runs between the cut and the last feature map."""
        after = list(self.graph.nodes)[self.position[cut] + 1 : self.position[self.last_feature_map] + 1]
        modules = [self.network.get_submodule(str(node.target)) for node in after if node.op == "call_module"]
        return any(True for module in modules for _ in module.parameters())

    def possible_cuts(self) -> str:
        """The called modules after which a cut is possible, for messages."""
        names = [
            repr(name)
            for name, outputs in self.outputs.items()
            if len(outputs) == 1 and isinstance(node := outputs[0], fx.Node) and node in self.position
            if self.is_cuttable(node) and self.has_weights_behind(node)
        ]
        return f"possible is {', '.join(names)}" if names else "there is no place for a cut among its neighbours"


def _first_names(network: nn.Module, at: Sequence[str]) -> list[str]:
    """The first name that the network has for each module in `at`. Raises AttachError for unknown and lazy modules."""
    if isinstance(at, str) or not at:
        raise AttachError(f"at={at!r} names no modules: give a list such as ['layer1', 'layer2']")
    modules = dict(network.named_modules(remove_duplicate=False))
    first_names = {module: name for name, module in network.named_modules()}
    for name in at:
        if not name or name not in modules:
            near = get_close_matches(name, list(modules)[1:], n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
            tops = ", ".join(repr(top) for top, _ in network.named_children())
            raise AttachError(f"{type(network).__name__} has no module {name!r}: {hint or f'it is made of {tops}'}")
    for name, module in modules.items():
        if any(map(is_lazy, (*module.parameters(recurse=False), *module.buffers(recurse=False)))):
            raise AttachError(f"module {name!r} has no weights yet: run a picture through the network first")
    return [first_names[modules[name]] for name in at]


def _trace_to_classifier(copy: NetworkCopy, names: Sequence[str]) -> _TracedNetwork:
    """The graph in which all cuts and the last Linear are nodes: modules that contain one are opened."""
    network = copy.network
    # All modules around a cut: "a" and "a.b" for "a.b.c".
    opened = {name[:end] for name in names for end, letter in enumerate(name) if letter == "."}
    while True:
        graph, outputs = trace(network, opened)
        node = _answer(graph)
        while _keeps_order(node, network):
            node = node.all_input_nodes[0]
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Linear):
            return _TracedNetwork(network, graph, outputs, node, find_shapes(copy, graph))
        if module is None or not any(True for _ in module.children()):
            raise AttachError(
                f"the network ends with {describe(node)}, and no nn.Linear: its last layer must be one, whose output "
                "(B, classes) is the answer (a softmax may follow)"
            )
        opened.add(str(node.target))


def _answer(graph: fx.Graph) -> fx.Node:
    answer = next(node for node in graph.nodes if node.op == "output").args[0]
    if not isinstance(answer, fx.Node):
        raise AttachError(
            f"the network answers with a {type(answer).__name__}, not with one tensor (B, classes): switch off further "
            "outputs, or wrap it in a module that returns the logits alone"
        )
    return answer


def _keeps_order(node: fx.Node, network: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), _ORDER_KEEPING_MODULES)
    if node.op == "call_method":
        return node.target in _ORDER_KEEPING_METHODS
    return node.op == "call_function" and node.target in _ORDER_KEEPING_CALLS


def _cut_nodes(traced: _TracedNetwork, names: Sequence[str]) -> list[fx.Node]:
    cuts: list[fx.Node] = []
    for name in names:
        node = _cut_node(traced, name)
        if cuts and traced.position[node] <= traced.position[cuts[-1]]:
            how = "ends where" if node is cuts[-1] else "runs before"
            raise AttachError(
                f"module {name!r} {how} {names[len(cuts) - 1]!r} does: give each point once, in running order"
            )
        cuts.append(node)
    if not traced.has_weights_behind(cuts[-1]):
        raise AttachError(
            f"nothing with weights runs between module {names[-1]!r} and the end of the network's feature maps: leave "
            "it out; the last exit always stands at the end"
        )
    return cuts


def _cut_node(traced: _TracedNetwork, name: str) -> fx.Node:
    outputs = traced.outputs.get(name, [])
    if len(outputs) != 1:
        often = f"runs {len(outputs)} times" if outputs else "is never called by the forward"
        raise AttachError(f"module {name!r} {often}: cut after a module that runs exactly once")
    node = outputs[0]
    shape = traced.shapes.get(node)
    if shape is None or not is_feature_map(shape):
        what = "no single tensor" if shape is None else f"(B, {', '.join(map(str, shape[1:]))})"
        raise AttachError(
            f"module {name!r} returns {what}, not a feature map (B, C, H, W) with H = W, which exits need; "
            f"{traced.possible_cuts()}"
        )
    if traced.position[node] > traced.position[traced.classifier]:
        raise AttachError(f"module {name!r} ends after the classifier: leave it out, the last exit is there")
    if leak := find_leak(traced.graph, node):
        raise AttachError(
            f"no cut after module {name!r}: {describe(leak[1])} needs {describe(leak[0])} from before the cut, and "
            f"only the module's own output may pass, since the picture may leave there; {traced.possible_cuts()}"
        )
    return node  # type: ignore[no-any-return]


def _embedding(traced: _TracedNetwork) -> fx.Node:
    embedding = traced.classifier.all_input_nodes[0]
    if len(traced.shapes[embedding]) != 2:
        raise AttachError(
            f"the classifier {traced.classifier.target!r} takes {len(traced.shapes[embedding])} dimensions, not two, "
            "(B, D): flatten or pool before it"
        )
    return embedding


def _check_weights(backbone: Backbone) -> None:
    """Raise AttachError where parts share a tensor, or a bundle could not store one."""
    owners: dict[int, str] = {}
    parts = {f"stage {index}": stage for index, stage in enumerate(backbone.stages, 1)}
    for part_name, module in {**parts, "the last head": backbone.classifier}.items():
        assert module is not None
        for name, value in module.state_dict(keep_vars=True).items():
            here = f"{name!r} of {part_name}"
            if not isinstance(value, Tensor) or not (value.is_floating_point() or name.endswith("num_batches_tracked")):
                raise AttachError(
                    f"{here} holds no floats, and a bundle keeps no other: register it with persistent=False "
                    "in a module that contains no cut"
                )
            if id(value) in owners:
                raise AttachError(
                    f"{owners[id(value)]} and {here} are the same weights: parts must not share any; cut where both "
                    "uses lie in one part, or give each its own"
                )
            owners[id(value)] = here
