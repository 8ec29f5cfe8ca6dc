"""The operator's own networks: from a module that the operator names to a bundle without code."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from offramp.models.backbones import BACKBONES
from offramp.models.backbones.plugins import BackbonesError, load_backbones
from offramp.models.bundle import Bundle, BundleError, load_bundle, rounded, save_bundle
from offramp.models.config import ModelConfig
from offramp.models.cost import count_cost
from offramp.models.multi_exit import MultiExitNet
from tests.project import PROJECT

EXAMPLE = PROJECT / "docs" / "examples" / "my_nets.py"
GUIDE = PROJECT / "docs" / "own-network.md"

TINY = """
from torch import nn

from offramp.models.attach import attach_exits


class Tiny(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        return self.fc(self.b(self.a(x).relu()).mean((2, 3)))


def build(config):
    return attach_exits(Tiny(config.num_classes), ["a"], config.input_size)
"""


pytestmark = pytest.mark.usefixtures("own_networks")


def written(folder: Path, text: str, name: str = "stranger_nets") -> str:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def bundle_of(net: MultiExitNet, like: Bundle) -> Bundle:
    calibration = replace(
        like.calibration, temperatures=(1.0,) * net.num_exits, ensemble_weights=(0.0,) * net.num_exits
    )
    preprocessing = replace(like.preprocessing, size=net.config.input_size)
    return replace(like, config=net.config, net=net, preprocessing=preprocessing, calibration=calibration, exits=())


def test_a_file_brings_its_networks_once(tmp_path: Path) -> None:
    source = written(tmp_path, TINY + 'BACKBONES = {"tiny_a": build, "tiny_b": build}')
    assert load_backbones(source) == ("tiny_a", "tiny_b")
    assert BACKBONES["tiny_a"].standard_width == 64
    assert load_backbones(f" {source}, ") == ("tiny_a", "tiny_b")
    assert load_backbones("") == ()


def test_a_module_is_found_by_its_name_too(tmp_path: Path) -> None:
    written(tmp_path, TINY + 'BACKBONES = {"tiny": build}', "named_nets")
    sys.path.append(str(tmp_path))
    assert load_backbones("named_nets") == ("tiny",)


def test_a_network_of_ones_own_goes_into_a_bundle_and_back(tmp_path: Path, tiny_bundle: Bundle) -> None:
    load_backbones(written(tmp_path, TINY + 'BACKBONES = {"tiny": build}'))
    torch.manual_seed(0)
    net = MultiExitNet(replace(tiny_bundle.config, architecture="tiny"))
    net.train()(torch.randn(4, 3, 32, 32))
    save_bundle(bundle_of(net.eval(), tiny_bundle), tmp_path / "bundle", "card")
    loaded, expected = load_bundle(tmp_path / "bundle").net, rounded(net)
    x_BCHW = torch.randn(2, 3, 32, 32)
    assert all(map(torch.equal, loaded(x_BCHW).logits, expected(x_BCHW).logits))
    assert loaded.state_dict().keys() >= {"stages.0.a.weight", "heads.1.classifier.bias"}

    del BACKBONES["tiny"]
    with pytest.raises(
        BundleError, match=r"architecture 'tiny' is unknown: .*of your own, name its module with --back"
    ):
        load_bundle(tmp_path / "bundle")


def test_a_builder_that_needs_real_numbers_is_counted_too(tmp_path: Path) -> None:
    needs = (
        TINY + "\nimport torch\ndef drops(config):\n    torch.linspace(0, 1, 3).tolist()\n    return build(config)\n"
    )
    load_backbones(written(tmp_path, needs + 'BACKBONES = {"tiny": drops}'))
    before = torch.get_rng_state()
    cost = count_cost(ModelConfig("tiny", 3, input_size=32))
    assert cost.stage_multiply_adds == (15 * 15 * 4 * 27, 13 * 13 * 6 * 36)
    assert cost.head_multiply_adds[-1] == 6 * 3
    assert torch.equal(torch.get_rng_state(), before)


def test_the_example_is_decent_and_small() -> None:
    assert load_backbones(str(EXAMPLE)) == ("split_net",)
    config = ModelConfig("split_net", 10, input_size=64)
    net, cost = MultiExitNet(config).train(), count_cost(config)
    assert 30e6 < cost.backbone_multiply_adds < 60e6
    assert min(cost.stage_multiply_adds) > 5e6
    loss = torch.stack([logits_BC.square().mean() for logits_BC in net(torch.randn(4, 3, 64, 64)).logits]).sum()
    loss.backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import no_such_package_at_all",
            r"cannot be imported: ModuleNotFoundError: .*no_such_package.*_nets.py, line 1",
        ),
        ("x = 1\n1 / 0", r"cannot be imported: ZeroDivisionError: division by zero \(stranger_nets.py, line 2\)$"),
        ("def build(:", r"cannot be imported: SyntaxError"),
        ("x = 1", r'names no networks: write BACKBONES = {"my_net": build} into it$'),
        ("BACKBONES = {}", r"names no networks"),
        ("BACKBONES = ['a']", r"names no networks"),
        (TINY + 'BACKBONES = {"resnet18": build}', r"the name 'resnet18' is taken: choose another"),
        (TINY + 'BACKBONES = {"my net": build}', r"name 'my net' is not usable: give up to 23 letters"),
        (TINY + 'BACKBONES = {"tiny": Tiny(3)}', None),
        ('BACKBONES = {"tiny": 3}', r"'tiny' is a int, not a function"),
    ],
)
def test_a_module_that_cannot_be_used_is_refused_with_the_reason(
    text: str, message: str | None, tmp_path: Path
) -> None:
    before = dict(BACKBONES)
    source = written(tmp_path, text)
    if message is None:
        load_backbones(source)
        return
    with pytest.raises(BackbonesError, match=f"^{re.escape(source)}.*{message}"):
        load_backbones(source)
    assert before == BACKBONES


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nets/none.py", r"^nets/none.py: no such file; give a Python file"),
        ("no_such_module_at_all", r"^no_such_module_at_all: there is no such module; give the path of its file"),
    ],
)
def test_what_is_not_there_is_named(source: str, message: str) -> None:
    with pytest.raises(BackbonesError, match=message):
        load_backbones(source)


def test_two_files_of_one_name_are_not_confused(tmp_path: Path) -> None:
    load_backbones(written(tmp_path / "first", TINY + 'BACKBONES = {"tiny_a": build}'))
    second = written(tmp_path / "second", TINY + 'BACKBONES = {"tiny_b": build}')
    with pytest.raises(BackbonesError, match="another module named 'stranger_nets' comes first"):
        load_backbones(second)


def test_a_builder_that_forgets_the_exits_or_the_classes_is_told(tmp_path: Path) -> None:
    text = TINY + 'BACKBONES = {"bare": lambda config: Tiny(3), "tiny": lambda config: build(ModelConfig("x", 7))}'
    load_backbones(written(tmp_path, text + "\nfrom offramp.models.config import ModelConfig"))
    with pytest.raises(BackbonesError, match=r"build of 'bare' returns a Tiny, not a Backbone: .*attach_exits"):
        MultiExitNet(ModelConfig("bare", 3))
    with pytest.raises(BackbonesError, match=r"'tiny' answers with 7 classes where 3 are wanted"):
        MultiExitNet(ModelConfig("tiny", 3))


def guide_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("block", guide_blocks(), ids=lambda block: re.findall(r"BACKBONES = {\"(\w+)", block)[0])
def test_the_guides_networks_build(block: str, tmp_path: Path, tiny_bundle: Bundle) -> None:
    for package in re.findall(r"^import (torchvision|timm)$", block, flags=re.MULTILINE):
        try:
            __import__(package)
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"{package} is not here, or not for this torch: {error}")
    (name,) = load_backbones(written(tmp_path, block, "guide_nets"))
    config = ModelConfig(name, 3, input_size=64, head="light")
    net = MultiExitNet(config).eval()
    assert net.num_exits == 4
    assert min(count_cost(config).stage_multiply_adds) > 0
    save_bundle(bundle_of(net, tiny_bundle), tmp_path / "bundle", "card")
    load_bundle(tmp_path / "bundle")
