"""Follows the forward of a stranger's network with torch.fx, looking only into modules that contain a cut.

Every other module stays whole and runs its own Python code: what it does inside may be anything.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn

# The name under which a graph's code asks whether it runs in training mode: `self.training` of the GraphModule.
TRAINING = "training"
# What a stranger's forward may raise when it meets torch.fx's proxies, or pictures that it does not take.
FAILURES = (TypeError, ValueError, RuntimeError, AttributeError, NameError, LookupError, AssertionError)


class AttachError(ValueError):
    """A network that cannot be cut as asked; the message names the place, the reason and what to do."""


class Tracer(fx.Tracer):
    """Traces a network of one input, through the modules named in `opened` and into no other.

    returned: by module, what each of its calls gave back. inside: the modules being looked into, the innermost last.
    """

    def __init__(self, opened: Collection[str]) -> None:
        super().__init__()
        self.opened = opened
        self.returned: dict[str, list[Any]] = {}
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
        # Not of this network: made on the spot, or another thread's. torch.fx sees every module call of the process.
        if m not in self.submodule_paths:  # type: ignore[operator]
            return forward(*args, **kwargs)
        name = self.path_of_module(m)
        self.inside.append(name)
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()
        self.returned.setdefault(name, []).append(result)
        return result


def trace(network: nn.Module, opened: Collection[str]) -> tuple[fx.Graph, Mapping[str, list[Any]]]:
    """The network's graph, right in training and in evaluation mode, and by module what its calls returned in it.

    The network's mode is changed, and constants made by its forward become attributes of it: hand over a copy. Raises
    AttachError where torch.fx cannot follow, or the two modes differ in more than a flag.
    """
    evaluation, _ = _trace(network.eval(), opened)
    graph, returned = _trace(network.train(), opened)
    for node, other in zip_longest(list(graph.nodes), evaluation.nodes):
        place = described(node or other)
        if node is None or other is None or node.op != other.op or not _same_target(node, other, network):
            raise AttachError(_MODES.format(place=place))
        with graph.inserting_before(node):
            node.args = _merged(node.args, other.args, graph, place)
            node.kwargs = _merged(node.kwargs, other.kwargs, graph, place)
        other.meta["same"] = node
    _read_batch_size_from_the_picture(graph)
    return graph, {name: [getattr(one, "node", one) for one in results] for name, results in returned.items()}


_MODES = (
    "the forward does something else in training than in evaluation, or from call to call, at {place}: torch.fx would "
    "freeze one. Switch it off, or move it into a small nn.Module of its own: what contains no cut runs as it is"
)


def _trace(network: nn.Module, opened: Collection[str]) -> tuple[fx.Graph, Mapping[str, list[Any]]]:
    tracer = Tracer(opened)
    try:
        return tracer.trace(network), tracer.returned
    except FAILURES as error:
        raise AttachError(
            f"the forward of {_owner(tracer.inside[-1])} ({type(network.get_submodule(tracer.inside[-1])).__name__}) "
            f"cannot be followed: {error}. Cut behind or before it rather than inside, or move what torch.fx cannot "
            "follow into a small nn.Module of its own: a module that contains no cut runs as it is"
        ) from error


def _same_target(node: fx.Node, other: fx.Node, network: nn.Module) -> bool:
    if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
        # A tensor made by the forward, once in each trace.
        mine, theirs = (getattr(network, str(one.target), None) for one in (node, other))
        if not isinstance(mine, Tensor) or not isinstance(theirs, Tensor) or mine.shape != theirs.shape:
            return False
        return mine.is_meta or torch.equal(mine, theirs)
    return bool(node.target == other.target)


def _merged(mine: Any, theirs: Any, graph: fx.Graph, place: str) -> Any:
    """`mine`, with the mode's flag in place of each boolean that the other mode has otherwise."""
    if isinstance(mine, fx.Node) and isinstance(theirs, fx.Node) and theirs.meta.get("same") is mine:
        return mine
    if type(mine) is not type(theirs):
        raise AttachError(_MODES.format(place=place))
    if isinstance(mine, tuple | list) and len(mine) == len(theirs):
        return type(mine)(_merged(one, other, graph, place) for one, other in zip(mine, theirs, strict=True))
    if isinstance(mine, Mapping) and mine.keys() == theirs.keys():
        return {name: _merged(mine[name], theirs[name], graph, place) for name in mine}
    if isinstance(mine, slice):
        parts = [_merged(getattr(mine, at), getattr(theirs, at), graph, place) for at in ("start", "stop", "step")]
        return slice(*parts)
    if not isinstance(mine, fx.Node | tuple | list | Mapping) and mine == theirs:
        return mine
    if isinstance(mine, bool):
        flag = graph.create_node("get_attr", TRAINING, (), {})
        return flag if mine else graph.call_function(operator.not_, (flag,))
    raise AttachError(_MODES.format(place=place))


def _read_batch_size_from_the_picture(graph: fx.Graph) -> None:
    """Turn x.shape[0], x.size()[0] and x.size(0) of any tensor into marked nodes that any part can make."""
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


def crossing(graph: fx.Graph, cut: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """What else than the output of `cut` would have to pass a cut there: a node before it and its user behind it."""
    before: set[fx.Node] = set()
    is_behind = False
    for node in graph.nodes:
        if is_behind and not node.meta.get("batch"):
            for used in node.all_input_nodes:
                if used in before and used.op != "get_attr" and not used.meta.get("batch") and not _is_flag(used):
                    return used, node
        elif not is_behind and node is not cut:
            before.add(node)
        is_behind = is_behind or node is cut
    return None


def _is_flag(node: fx.Node) -> bool:
    return node.target is operator.not_ and all(used.target == TRAINING for used in node.all_input_nodes)


def part(graph: fx.Graph, start: fx.Node, end: fx.Node) -> fx.Graph:
    """The graph from the output of `start` to that of `end`; nothing else may cross either."""
    nodes = list(graph.nodes)
    piece = fx.Graph()
    x = piece.placeholder("x")
    copies = {start: x}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            if node.meta.get("batch"):
                copies[node] = piece.call_method("size", (x, 0))
            else:
                copies[node] = piece.node_copy(node, copied)
        return copies[node]

    for node in nodes[nodes.index(start) + 1 : nodes.index(end) + 1]:
        if not node.meta.get("batch"):
            copied(node)
    piece.output(copied(end))
    return piece


def module_of(graph: fx.Graph, networks: tuple[nn.Module, ...]) -> fx.GraphModule:
    """A module that runs the graph with the very modules and parameters of the first network that has them."""
    attributes: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            attributes[node.target] = _attribute(node.target, networks)
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return fx.GraphModule(attributes, copy, "Part")


def _attribute(target: str, networks: tuple[nn.Module, ...]) -> Any:
    first = target.partition(".")[0]
    if target != TRAINING and hasattr(fx.GraphModule, first):
        raise AttachError(f"the module or parameter {first!r} has a name that torch.fx keeps for itself: rename it")
    found = []
    for network in networks:
        try:
            found.append(operator.attrgetter(target)(network))
        except AttributeError:
            continue
    return found[0]


def copy_input(graph: fx.Graph) -> None:
    """Let a graph work on a copy of its input, which it changes in place and others read."""
    x = next(iter(graph.nodes))
    with graph.inserting_after(x):
        copy = graph.call_method("clone", (x,))
    x.replace_all_uses_with(copy, lambda user: user is not copy)


def described(node: fx.Node | None) -> str:
    """A node in words."""
    if node is None or node.op == "output":
        return "the network's output"
    if node.op == "placeholder":
        return "the picture itself"
    if node.op == "call_module":
        return f"module {node.target!r}"
    if node.op == "get_attr":
        return f"{node.target!r}"
    if _is_shape(node):
        return f"the size of {described(node.all_input_nodes[0])}"
    name = f".{node.target}" if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
    return f"{name}(…) in the forward of {_owner(node.meta.get('inside', ''))}"


def _owner(name: str) -> str:
    return f"module {name!r}" if name else "the network"
