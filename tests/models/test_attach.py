"""A stranger's network cut into stages: the same answers to the bit, later stages not run, and what cannot be cut."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.models.attach import AttachError, attach_exits
from offramp.models.backbones import BACKBONES, Architecture
from offramp.models.backbones.backbone import Backbone
from offramp.models.config import ModelConfig
from offramp.models.multi_exit import MultiExitNet

SIZE = 32
CUTS = ["stem", "grow", "deep.second"]
PICTURES = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


class Counter(nn.Module):
    """Lets everything pass and counts how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Joint(nn.Module):
    """Skip, concatenation, functional dropout, and control flow that torch.fx cannot follow."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels // 2, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels // 2)
        self.side = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        if x.shape[0] > 1 and self.training:
            y = F.dropout2d(y, 0.3)
        side = self.side(x)
        return torch.cat([y + side, side], dim=1)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU())
        self.third = Joint(16, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(x + self.first(x)))


class Stranger(nn.Module):
    """What people write: in-place activations, functional calls, sizes read from tensors, a softmax at the end."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.grow = Joint(8, 16)
        self.deep = Deep()
        self.counter = Counter()
        self.scale = nn.Parameter(torch.full((24, 1, 1), 0.9))
        self.hidden = nn.Linear(24, 12)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, classes))

    def forward(self, x: Tensor, temperature: float | None = None) -> Tensor:
        batch = x.shape[0]
        x = self.act(self.stem(x))
        x = self.grow(x) + torch.linspace(-0.1, 0.1, 16)[:, None, None]
        x = self.counter(self.deep(F.relu_(x))) * self.scale
        x = F.adaptive_avg_pool2d(nn.ReLU()(x), 1).reshape(batch, -1)
        x = F.dropout(F.relu(self.hidden(x)), 0.25, self.training)
        x = self.classifier(x)
        if temperature is not None:
            x = x / temperature
        return F.log_softmax(x, dim=1)


def stranger(seed: int = 0) -> Stranger:
    torch.manual_seed(seed)
    network = Stranger()
    with torch.no_grad():
        network.train()(PICTURES * 2 + 1)
    network.counter.calls = 0
    return network.eval()


def seeded(seed: int) -> None:
    torch.manual_seed(seed)


def in_stages(backbone: Backbone, x_BCHW: Tensor, training: bool) -> tuple[list[Tensor], Tensor]:
    """Features behind every stage, and the last head's logits."""
    features = []
    for stage in backbone.stages:
        x_BCHW = stage.train(training)(x_BCHW)
        features.append(x_BCHW)
    assert backbone.classifier is not None
    return features, backbone.classifier.train(training)(x_BCHW)[1]


@pytest.fixture
def stranger_net() -> Iterator[MultiExitNet]:
    BACKBONES["stranger"] = Architecture(lambda config: attach_exits(Stranger(), CUTS, config.input_size), 64)
    try:
        torch.manual_seed(0)
        yield MultiExitNet(ModelConfig("stranger", 5, input_size=SIZE))
    finally:
        del BACKBONES["stranger"]


@pytest.mark.parametrize("training", [False, True])
def test_the_stages_one_after_another_are_the_network_to_the_bit(training: bool) -> None:
    network = stranger()
    whole = deepcopy(network).train(training)
    backbone = attach_exits(network, CUTS, SIZE)
    for batch in (4, 1) if not training else (4,):
        seeded(3)
        expected = whole(PICTURES[:batch])
        seeded(3)
        features, logits_BC = in_stages(backbone, PICTURES[:batch], training)
        assert torch.equal(logits_BC.log_softmax(dim=1), expected)
        assert [x.shape[1] for x in features] == list(backbone.channels) == [8, 16, 16, 24]
        # The last stage ends before the pooling, which is the head's.
        assert [x.shape[-1] for x in features] == [32, 16, 16, 8]
    after = [stage.state_dict() for stage in backbone.stages]
    assert torch.equal(after[1]["grow.norm.running_mean"], whole.state_dict()["grow.norm.running_mean"])


def test_the_mode_is_followed_in_every_part() -> None:
    backbone = attach_exits(stranger(), CUTS, SIZE)
    seeded(0)
    _, first = in_stages(backbone, PICTURES, training=True)
    _, second = in_stages(backbone, PICTURES, training=True)
    _, third = in_stages(backbone, PICTURES, training=False)
    _, fourth = in_stages(backbone, PICTURES, training=False)
    assert not torch.equal(first, second)
    assert torch.equal(third, fourth)


def test_attaching_changes_nothing_of_the_network_nor_of_the_process() -> None:
    network = stranger()
    network.grow.train()
    before, names = deepcopy(network.state_dict()), set(vars(network))
    modes = [module.training for module in network.modules()]
    state = torch.get_rng_state()
    attach_exits(network, CUTS, SIZE)
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert before.keys() == after.keys()
    assert [module.training for module in network.modules()] == modes
    assert set(vars(network)) == names
    assert network.counter.calls == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_the_stages_hold_the_networks_own_weights_under_their_own_names() -> None:
    network = stranger()
    backbone = attach_exits(network, CUTS, SIZE)
    assert dict(backbone.stages[0].named_parameters())["stem.weight"] is network.stem.weight
    assert "grow.norm.running_var" in backbone.stages[1].state_dict()
    assert [name for name, _ in backbone.stages[2].named_modules() if name in ("deep.first", "deep.second.0")]
    assert set(dict(backbone.stages[3].named_parameters())) >= {"deep.third.conv.weight", "scale"}
    assert backbone.classifier is not None
    assert backbone.classifier.classifier is network.classifier[1]
    assert backbone.classifier.embedding_size == 12
    held = [p for part in (*backbone.stages, backbone.classifier) for p in part.parameters()]
    assert {id(p) for p in held} == {id(p) for p in network.parameters()}


def test_pretrained_weights_stay_and_the_new_heads_are_drawn(stranger_net: MultiExitNet) -> None:
    torch.manual_seed(0)
    network = Stranger()
    assert torch.equal(stranger_net.state_dict()["stages.0.stem.weight"], network.stem.weight)
    assert torch.equal(stranger_net.state_dict()["heads.3.classifier.bias"], network.state_dict()["classifier.1.bias"])
    assert not stranger_net.state_dict()["heads.0.classifier.bias"].any()


def test_later_stages_are_not_run() -> None:
    network = stranger()
    backbone = attach_exits(network, CUTS, SIZE)
    x_BCHW = PICTURES
    for stage in backbone.stages[:3]:
        x_BCHW = stage(x_BCHW)
    assert network.counter.calls == 0
    backbone.stages[3](x_BCHW)
    assert network.counter.calls == 1


def test_features_that_a_head_reads_are_not_changed_by_the_next_stage(stranger_net: MultiExitNet) -> None:
    features, _ = stranger_net.run_stage(1, PICTURES)
    before = features.clone()
    assert (before < 0).any()
    stranger_net.run_stage(2, features)
    assert torch.equal(features, before)
    pictures = PICTURES.clone()
    stranger_net(pictures)
    assert torch.equal(pictures, PICTURES)


def test_every_parameter_learns(stranger_net: MultiExitNet) -> None:
    logits = stranger_net.train()(PICTURES).logits
    labels_B = torch.tensor([0, 1, 2, 3])
    torch.stack([F.cross_entropy(logits_BC, labels_B) for logits_BC in logits]).sum().backward()
    still = [name for name, p in stranger_net.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_the_network_copies_and_builds_without_weights(stranger_net: MultiExitNet) -> None:
    copy = deepcopy(stranger_net).eval()
    expected = stranger_net.eval()(PICTURES).logits
    assert all(map(torch.equal, copy(PICTURES).logits, expected))
    with torch.no_grad():
        copy.get_parameter("stages.0.stem.weight").zero_()
    assert all(map(torch.equal, stranger_net(PICTURES).logits, expected))
    with torch.device("meta"):
        shadow = MultiExitNet(stranger_net.config)
    assert all(p.is_meta for p in shadow.parameters())
    assert shadow.state_dict().keys() == stranger_net.state_dict().keys()


def test_features_may_lie_channels_last_as_while_serving(stranger_net: MultiExitNet) -> None:
    net = stranger_net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x_BCHW, expected = PICTURES, stranger_net(PICTURES).logits
    for stage in range(1, net.num_exits + 1):
        x_BCHW, logits_BC = net.run_stage(stage, x_BCHW.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(logits_BC, expected[stage - 1], rtol=1e-4, atol=1e-5)


def test_two_networks_of_one_class_have_nothing_in_common() -> None:
    first, second = stranger(1), stranger(2)
    backbones = [attach_exits(first, CUTS, SIZE), attach_exits(second, ["grow"], SIZE)]
    assert [len(backbone.stages) for backbone in backbones] == [4, 2]
    for network, backbone in zip((first, second), backbones, strict=True):
        assert torch.equal(in_stages(backbone, PICTURES, False)[1].log_softmax(1), network.eval()(PICTURES))


def test_modules_of_other_threads_run_while_a_network_is_traced() -> None:
    done = threading.Event()
    other, results = nn.Linear(2, 2), []

    def compute() -> None:
        results.append(other(torch.ones(1, 2)))
        done.set()

    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            if not done.is_set():
                threading.Thread(target=compute).start()
                done.wait(30)
            return self.conv(x)

    network = chain(waits=Waits())
    attach_exits(network, ["waits.conv"], SIZE)
    assert torch.equal(results[0], other(torch.ones(1, 2)))


class Chain(nn.Module):
    """The given modules, then what every chain has: a convolution, pooling, a classifier; `forward` may be given."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor] | None, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.names = list(modules)
        self.tail = nn.Conv2d(4, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)
        self.path = forward

    def forward(self, x: Tensor) -> Tensor:
        if self.path is not None:
            return self.path(self, x)
        for name in self.names:
            x = getattr(self, name)(x)
        return self.end(x)

    def end(self, x: Tensor) -> Tensor:
        return self.fc(self.tail(x).mean((2, 3)))


def chain(forward: Callable[[Any, Tensor], Tensor] | None = None, **modules: nn.Module) -> Chain:
    return Chain(forward, **modules)


def a(**more: nn.Module) -> dict[str, nn.Module]:
    return {"a": nn.Conv2d(3, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 3, padding=1), **more}


def grown(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else x + 1


class Lasting(nn.Module):
    """(B, H, W, C) between its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).permute(0, 2, 3, 1)


class Back(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class Twins(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Integers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.order: Tensor
        self.register_buffer("order", torch.tensor([2, 1, 0, 3]))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.order]


class Locked(nn.Identity):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Viewing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1).view(x.shape)


def hooked() -> Chain:
    network = chain(**a())
    network.register_forward_hook(lambda module, inputs, output: output * 2)
    return network


def shared() -> Chain:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    network = chain(a=conv, b=nn.Conv2d(4, 3, 1), c=nn.Conv2d(3, 4, 3, padding=1))
    network.get_submodule("c").register_parameter("weight", network.get_parameter("a.weight"))
    return network


class Ends(nn.Module):
    """A convolution, then the given end."""

    def __init__(self, end: Callable[[Any, Tensor], object], **modules: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        for name, module in modules.items():
            self.add_module(name, module)
        self.end = end

    def forward(self, x: Tensor) -> object:
        return self.end(self, self.b(self.a(x)))


REFUSED: dict[str, tuple[nn.Module, Sequence[str], str]] = {
    "no list": (chain(**a()), "a", r"at='a' names no modules: give a list"),
    "no names": (chain(**a()), [], r"at=\[\] names no modules"),
    "a misspelt name": (Stranger(), ["deep.secnd"], r"Stranger has no module 'deep.secnd': did you mean 'deep.second'"),
    "a strange name": (chain(**a()), ["zzz"], r"no module 'zzz': it is made of 'a', 'b', 'tail', 'fc'$"),
    "the network itself": (chain(**a()), [""], r"no module ''"),
    "wrong order": (chain(**a()), ["b", "a"], r"module 'a' runs before 'b' does: .* in running order"),
    "the same twice": (chain(**a()), ["a", "a"], r"module 'a' ends where 'a' does: give each point once"),
    "one point, two names": (Stranger(), ["deep.third", "deep"], r"'deep' ends where 'deep.third' does"),
    "called twice": (
        chain(lambda net, x: net.end(net.b(net.b(net.a(x)))), **a()),
        ["b"],
        r"module 'b' runs 2 times: cut after a module that runs exactly once",
    ),
    "never called": (chain(lambda net, x: net.end(net.a(x)), **a()), ["b"], r"'b' is never called by the forward"),
    "behind the classifier": (Stranger(), ["stem", "classifier"], r"'classifier' returns \(B, 5\), not a feature map"),
    "nothing behind": (chain(**a()), ["tail"], r"nothing with weights runs between module 'tail' and .* leave it out"),
    "a branch on values": (
        chain(lambda net, x: net.end(net.b(grown(net.a(x)))), **a()),
        ["a"],
        r"forward of the network \(Chain\) cannot be followed: .*control flow.*small nn.Module of its own",
    ),
    "a branch on the batch": (
        chain(a=nn.Conv2d(3, 4, 1), inner=Deep(), b=Joint(4, 4)),
        ["b.conv"],
        r"forward of module 'b' \(Joint\) cannot be followed",
    ),
    "a skip": (
        chain(lambda net, x: net.end(net.b(y := net.a(x)) + y), **a()),
        ["a", "b"],
        r"after module 'b': add\(…\) in the forward of the network needs module 'a' from before.*possible is 'a'",
    ),
    "a skip inside": (
        Stranger(),
        ["deep.first"],
        r"'deep.first': add\(…\) in the forward of module 'deep' needs relu_",
    ),
    "another size than the batch's": (
        chain(lambda net, x: net.end(F.interpolate(net.b(net.a(x)), size=x.shape[-2:])), **a()),
        ["a"],
        r"no cut after module 'a': the size of the picture itself needs the picture itself from before the cut",
    ),
    "tokens": (chain(a=nn.Conv2d(3, 4, 8, 8), b=nn.Flatten(2), c=nn.Unflatten(2, (4, 4))), ["b"], r"\(B, 4, 16\), not"),
    "channels last": (
        chain(lambda net, x: net.end(net.back(net.last(x))), last=Lasting(), back=Back()),
        ["last"],
        r"'last' returns \(B, 16, 16, 4\), not a feature map \(B, C, H, W\) with H = W, which exits need; .* 'back'",
    ),
    "several tensors": (
        chain(lambda net, x: net.end(net.pair(net.b(net.a(x)))[0]), pair=Twins(), **a()),
        ["pair"],
        r"'pair' returns no single tensor, not a feature map",
    ),
    "no Linear": (Ends(lambda net, x: x.mean((2, 3))), ["a"], r"ends with \.mean\(…\) in the forward .* no nn.Linear"),
    "a convolution as classifier": (
        Ends(lambda net, x: net.c(x).mean((2, 3)), c=nn.Conv2d(4, 5, 1)),
        ["a"],
        r"no nn.Linear: its last layer must be",
    ),
    "dropout behind the classifier": (
        Ends(lambda net, x: net.drop(net.fc(x.mean((2, 3)))), fc=nn.Linear(4, 5), drop=nn.Dropout()),
        ["a"],
        r"ends with module 'drop', and no nn.Linear",
    ),
    "two answers": (
        Ends(lambda net, x: (net.fc(x.mean((2, 3))), x), fc=nn.Linear(4, 5)),
        ["a"],
        r"answers with a tuple, not with one tensor \(B, classes\)",
    ),
    "an answer a pixel": (
        Ends(lambda net, x: net.fc(x), fc=nn.Linear(32, 5)),
        ["a"],
        r"classifier 'fc' takes 4 dimensions",
    ),
    "a training branch": (
        chain(lambda net, x: net.end(net.b(net.a(x) + (1 if net.training else 0))), **a()),
        ["a"],
        r"something else in training than in evaluation.* at add\(…\) in the forward of the network",
    ),
    "an extra layer in training": (
        chain(lambda net, x: net.end(net.b(F.relu(net.a(x)) if net.training else net.a(x))), **a()),
        ["a"],
        r"something else in training",
    ),
    "frozen noise": (
        chain(lambda net, x: net.end(net.b(net.a(x) + torch.rand(4, 1, 1))), **a()),
        ["a"],
        r"or from call to call",
    ),
    "shared weights": (shared(), ["a"], r"'a.weight' of stage 1 and 'c.weight' of stage 2 are the same weights"),
    "shared module": (
        chain(lambda net, x: net.end(net.b(net.tail2(net.b(net.a(x))))), tail2=nn.Conv2d(4, 4, 1), **a()),
        ["tail2"],
        r"'b.weight' of stage 1 and 'b.weight' of stage 2 are the same weights",
    ),
    "integers": (chain(a=nn.Conv2d(3, 4, 1), c=Integers()), ["a"], r"'c.order' of stage 2 holds no floats"),
    "views": (
        chain(lambda net, x: net.end(net.b(net.view(net.a(x)))), view=Viewing(), **a()),
        ["a"],
        r"part 2 fails where features lie channels-last in memory, .* use reshape instead of view: ",
    ),
    "a hook on the whole": (hooked(), ["a"], r"answers otherwise than whole \(in evaluation\)"),
    "too small pictures": (
        chain(a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 33)),
        ["a"],
        r"Chain does not take pictures \(3, 3, 32, 32\): .*size",
    ),
    "no weights yet": (chain(a=nn.LazyConv2d(4, 3), b=nn.Conv2d(4, 4, 1)), ["a"], r"'a' has no weights yet"),
    "a name of torch.fx": (
        chain(graph=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1)),
        ["graph"],
        r"'graph' has a name that",
    ),
    "what cannot be copied": (chain(lock=Locked(), **a()), ["a"], r"Chain cannot be copied: cannot pickle"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_reason_and_remedy(case: str) -> None:
    network, at, message = REFUSED[case]
    with pytest.raises(AttachError, match=message):
        attach_exits(network, at, SIZE)
