"""Follows the forward of any network with torch.fx, and looks only into modules that contain a cut.

Every other module stays whole and runs its own Python code, whatever that code does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn

# The attribute of a GraphModule from which a graph reads whether it runs in training mode.
TRAINING = "training"
# What a forward may raise when it meets torch.fx's proxies, or pictures of a size that it does not take.
FAILURES = (TypeError, ValueError, RuntimeError, AttributeError, NameError, LookupError, AssertionError)


class AttachError(ValueError):
    """A network that cannot be cut as asked; the message names the place, the reason and what to do."""


class Tracer(fx.Tracer):
    """Traces a network of one input, through the modules named in `opened` and into no other.

    outputs: what each call of a module returned, by the module's name. inside: names of the modules whose forward is
    being followed, the innermost last.
    """

    def __init__(self, opened: Collection[str]) -> None:
        super().__init__()
        self.opened = opened
        self.outputs: dict[str, list[Any]] = {}
        self.inside = [""]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.opened

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        # The picture alone: every other parameter of the forward keeps its default.
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["inside"] = self.inside[-1]
        return node

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        # torch.fx sees every module call of the process, also those of other threads and of modules made on the spot.
        if m not in self.submodule_paths:  # type: ignore[operator]
            return forward(*args, **kwargs)
        name = self.path_of_module(m)
        self.inside.append(name)
        output = super().call_module(m, forward, args, kwargs)
        self.inside.pop()
        self.outputs.setdefault(name, []).append(output)
        return output


def trace(network: nn.Module, opened: Collection[str]) -> tuple[fx.Graph, Mapping[str, list[Any]]]:
    """The network's graph, valid in training and in evaluation mode, and the outputs of each module in it by name.

    The network must be a copy: its mode changes, and constants that its forward makes become its attributes. Raises
    AttachError where torch.fx cannot follow, or the two modes differ in more than a flag.
    """
    evaluation, _ = _trace(network.eval(), opened)
    graph, outputs = _trace(network.train(), opened)
    for node, other in zip_longest(list(graph.nodes), evaluation.nodes):
        place = describe(node or other)
        if node is None or other is None or node.op != other.op or not _is_same_target(node, other, network):
            raise _modes_differ(place)
        with graph.inserting_before(node):
            node.args = _merge(node.args, other.args, graph, place)
            node.kwargs = _merge(node.kwargs, other.kwargs, graph, place)
        other.meta["same"] = node
    _read_batch_size_from_the_picture(graph)
    return graph, {name: [getattr(output, "node", output) for output in calls] for name, calls in outputs.items()}


def _modes_differ(place: str) -> AttachError:
    return AttachError(
        f"the forward does something else in training than in evaluation, or from call to call, at {place}: torch.fx "
        "would freeze one. Switch it off, or move it into a small nn.Module of its own: what contains no cut runs as "
        "it is"
    )


def _trace(network: nn.Module, opened: Collection[str]) -> tuple[fx.Graph, Mapping[str, list[Any]]]:
    tracer = Tracer(opened)
    try:
        return tracer.trace(network), tracer.outputs
    except FAILURES as error:
        raise AttachError(
            f"the forward of {_owner(tracer.inside[-1])} ({type(network.get_submodule(tracer.inside[-1])).__name__}) "
            f"cannot be followed: {error}. Cut after or before it rather than inside, or move what torch.fx cannot "
            "follow into a small nn.Module of its own: a module that contains no cut runs as it is"
        ) from error


def _is_same_target(node: fx.Node, other: fx.Node, network: nn.Module) -> bool:
    if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
        # A tensor that the forward makes anew in each trace.
        first, second = (getattr(network, str(constant.target), None) for constant in (node, other))
        if not isinstance(first, Tensor) or not isinstance(second, Tensor) or first.shape != second.shape:
            return False
        return first.is_meta or torch.equal(first, second)
    return bool(node.target == other.target)


def _merge(value: Any, other: Any, graph: fx.Graph, place: str) -> Any:
    """An argument of both modes, from its value in training and its `other` value in evaluation.

    The mode's flag stands in place of each boolean that differs. Raises AttachError where anything else differs.
    """
    if isinstance(value, fx.Node) and isinstance(other, fx.Node) and other.meta.get("same") is value:
        return value
    if type(value) is type(other):
        if isinstance(value, tuple | list) and len(value) == len(other):
            return type(value)(_merge(a, b, graph, place) for a, b in zip(value, other, strict=True))
        if isinstance(value, Mapping) and value.keys() == other.keys():
            return {name: _merge(value[name], other[name], graph, place) for name in value}
        if isinstance(value, slice):
            ends = ((value.start, other.start), (value.stop, other.stop), (value.step, other.step))
            return slice(*(_merge(a, b, graph, place) for a, b in ends))
        if not isinstance(value, fx.Node | tuple | list | Mapping) and value == other:
            return value
        if isinstance(value, bool):
            flag = graph.create_node("get_attr", TRAINING, (), {})
            return flag if value else graph.call_function(operator.not_, (flag,))
    raise _modes_differ(place)


def _read_batch_size_from_the_picture(graph: fx.Graph) -> None:
    """Turn x.shape[0], x.size()[0] and x.size(0) of any tensor into marked nodes, which every part can make itself."""
    picture = next(iter(graph.nodes))
    for node in list(graph.nodes):
        if _is_batch_size(node):
            with graph.inserting_before(node):
                size = graph.call_method("size", (picture, 0))
            size.meta = {"inside": node.meta["inside"], "batch": True}
            node.replace_all_uses_with(size)
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if _is_shape(node) and not node.users:
            graph.erase_node(node)


def _is_shape(node: Any) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_function":
        return node.target is getattr and node.args[1:] == ("shape",)
    return node.op == "call_method" and node.target == "size" and len(node.args) == 1 and not node.kwargs


def _is_batch_size(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target is operator.getitem and bool(node.args[1] == 0) and _is_shape(node.args[0])
    is_first = node.args[1:] == (0,) or node.kwargs == {"dim": 0}
    return node.op == "call_method" and node.target == "size" and is_first


def find_leak(graph: fx.Graph, cut: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """A node before the cut that is needed after it, and the node that needs it; None if only `cut` is needed."""
    nodes = list(graph.nodes)
    position = nodes.index(cut)
    before = {node for node in nodes[:position] if not _can_be_made_anywhere(node)}
    for node in nodes[position + 1 :]:
        for source in node.all_input_nodes:
            if source in before and not node.meta.get("batch"):
                return source, node
    return None


def _can_be_made_anywhere(node: fx.Node) -> bool:
    """Whether a node is an attribute, the mode's flag or the batch size, which each part reads by itself."""
    is_flag = node.target is operator.not_ and all(source.target == TRAINING for source in node.all_input_nodes)
    return node.op == "get_attr" or bool(node.meta.get("batch")) or is_flag


def extract_part(graph: fx.Graph, start: fx.Node, end: fx.Node) -> fx.Graph:
    """The graph from the output of `start` to that of `end`. Both must be cuts without a leak."""
    nodes = list(graph.nodes)
    part = fx.Graph()
    x = part.placeholder("x")
    copies = {start: x}

    def copy(node: fx.Node) -> fx.Node:
        if node not in copies:
            is_batch_size = node.meta.get("batch")
            copies[node] = part.call_method("size", (x, 0)) if is_batch_size else part.node_copy(node, copy)
        return copies[node]

    for node in nodes[nodes.index(start) + 1 : nodes.index(end) + 1]:
        if not node.meta.get("batch"):
            copy(node)
    part.output(copy(end))
    return part


def build_module(graph: fx.Graph, *networks: nn.Module) -> fx.GraphModule:
    """A module that runs the graph with the modules and parameters themselves, of the first network that has them."""
    targets = {node.target: None for node in graph.nodes if node.op in ("call_module", "get_attr")}
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return fx.GraphModule({target: _find_attribute(target, networks) for target in targets}, copy, "Part")


def _find_attribute(target: str, networks: Sequence[nn.Module]) -> Any:
    first = target.partition(".")[0]
    if target != TRAINING and hasattr(fx.GraphModule, first):
        raise AttachError(f"the module or parameter {first!r} has a name that torch.fx keeps for itself: rename it")
    for network in networks:
        with suppress(AttributeError):
            return operator.attrgetter(target)(network)
    raise AssertionError(target)


def copy_input(graph: fx.Graph) -> None:
    """Let a graph work on a copy of its input, which it would otherwise change in place."""
    x = next(iter(graph.nodes))
    with graph.inserting_after(x):
        copy = graph.call_method("clone", (x,))
    x.replace_all_uses_with(copy, lambda user: user is not copy)


def describe(node: fx.Node | None) -> str:
    """A node in words, for messages."""
    if node is None or node.op == "output":
        return "the network's output"
    if node.op == "placeholder":
        return "the picture itself"
    if node.op == "call_module":
        return f"module {node.target!r}"
    if node.op == "get_attr":
        return f"{node.target!r}"
    if _is_shape(node):
        return f"the size of {describe(node.all_input_nodes[0])}"
    name = f".{node.target}" if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
    return f"{name}(…) in the forward of {_owner(node.meta.get('inside', ''))}"


def _owner(name: str) -> str:
    return f"module {name!r}" if name else "the network"
