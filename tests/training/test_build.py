"""From options to recipe, method and network, and what is refused there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.models.bundle import Bundle, load_bundle, save_bundle
from offramp.models.config import ModelConfig
from offramp.models.cost import count_cost
from offramp.models.exit_policy import Calibration
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing
from offramp.training import build
from offramp.training.augment.mixing import Mixing
from offramp.training.build import build_config, build_method, build_recipe, check_labels, load_sources, with_margins
from offramp.training.data import FolderSet, ImageSet
from offramp.training.methods import METHODS, Method
from offramp.training.options import TrainOptions
from offramp.training.recipes import imagenet, journal, short
from offramp.training.teacher import external_teacher

LABELS = ("blue", "green", "red")
SaveBundle = Callable[..., Path]


def build_network(options: TrainOptions, method: Method, labels: tuple[str, ...], size: int) -> MultiExitNet:
    return build.build_network(options, method, labels, size, load_sources(options).start)


def input_size(options: TrainOptions) -> int:
    return build.input_size(options, load_sources(options).start)


def bundle_name(options: TrainOptions) -> str:
    return build.bundle_name(options, load_sources(options).start)


def identity(options: TrainOptions) -> dict:
    return load_sources(options).identity(options)


@pytest.fixture
def options(tmp_path: Path) -> TrainOptions:
    return TrainOptions("photos", tmp_path / "run")


@pytest.fixture
def save(tmp_path: Path) -> SaveBundle:
    """Writes the bundle of an untrained network and gives its path."""

    def write(name: str = "start", labels: tuple[str, ...] = LABELS, seed: int = 0, **config: object) -> Path:
        torch.manual_seed(seed)
        described = ModelConfig("resnet18", len(labels), **{"width": 8, "input_size": 16, **config})  # type: ignore[arg-type]
        net = MultiExitNet(described).eval()
        calibration = Calibration.neutral(net.num_exits)
        bundle = Bundle(name, "1", described, Preprocessing(16), labels, calibration, threshold=0.5, net=net)
        save_bundle(bundle, tmp_path / name, "card")
        return tmp_path / name

    return write


def test_recipes_are_changed_by_the_options_given_alone(options: TrainOptions) -> None:
    preprocessing = Preprocessing(16, mean=(0.1, 0.2, 0.3))
    recipe = build_recipe(options, preprocessing)
    assert recipe.augmentation.mean_colour == (26, 51, 76)
    assert replace(recipe, augmentation=short().augmentation) == short()
    longer = build_recipe(replace(options, recipe="journal", epochs=9), preprocessing)
    assert replace(longer, augmentation=journal().augmentation) == journal(9)


def test_options_reach_augmentation_mixing_and_optimiser(options: TrainOptions) -> None:
    given = replace(
        options, policy="rand", cutout=3, erase=0.25, mixup=0.2, cutmix=1.0, smoothing=0.1,
        optimizer="muon", muon_rate=0.05, ema=0.9, accumulate=4, backbone_share=0.5, batch_size=64, learning_rate=0.2,
    )  # fmt: skip
    recipe = build_recipe(given, Preprocessing(16))
    assert (recipe.augmentation.policy, recipe.augmentation.cutout, recipe.augmentation.erase) == ("rand", 3, 0.25)
    assert (recipe.mixing, recipe.smoothing) == (Mixing(0.2, 1.0), 0.1)
    assert (recipe.optimizer, recipe.muon_rate, recipe.ema, recipe.accumulate) == ("muon", 0.05, 0.9, 4)
    assert (recipe.backbone_share, recipe.batch_size, recipe.learning_rate) == (0.5, 64, 0.2)


def test_an_unknown_recipe_or_method_is_refused(options: TrainOptions) -> None:
    with pytest.raises(ValueError, match="recipe 'long' is unknown: choose one of journal, short"):
        build_recipe(replace(options, recipe="long"), Preprocessing(16))
    with pytest.raises(ValueError, match="method 'magic' is unknown: choose one of baseline, dsn"):
        build_method(replace(options, method="magic"))


def test_methods_are_changed_by_the_options_given_alone(options: TrainOptions) -> None:
    assert build_method(options) == METHODS["journal"]
    given = replace(options, method="scan", alpha=0.1, beta=0.0, temperature=2.0, feature_term="comment")
    expected = replace(METHODS["scan"], alpha=0.1, beta=0.0, temperature=2.0, feature_term="comment")
    assert build_method(given) == expected


def test_the_network_is_as_described(options: TrainOptions) -> None:
    plain = build_config(options, METHODS["journal"], 3, 32)
    assert (plain.architecture, plain.width, plain.head, plain.exits) == ("resnet18", 64, "journal", ())
    given = replace(options, architecture="resnet34", width=8, head="light", exits="2,4")
    config = build_config(given, METHODS["journal"], 3, 32)
    assert (config.architecture, config.width, config.head, config.exits) == ("resnet34", 8, "light", (2, 4))


def test_the_baseline_is_the_plain_network(options: TrainOptions) -> None:
    config = build_config(replace(options, width=8), METHODS["baseline"], 3, 32)
    assert config.exits == (4,)
    assert MultiExitNet(config).num_exits == 1
    with pytest.raises(ValueError, match="method baseline has no early exits: leave --exits 2,4 out"):
        build_config(replace(options, exits="2,4"), METHODS["baseline"], 3, 32)


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        ("two", "exits 'two' are not numbers: give stages such as 2,4"),
        ("", "exits '' are not numbers"),
        ("4,2", r"exits \[4, 2\] are not stages in rising order"),
        ("0,4", r"exits \[0, 4\] are not stages in rising order"),
        ("1,2", r"exits \[1, 2\] do not fit resnet18: it has 4 stages, and the last exit is stage 4"),
    ],
)
def test_exits_that_do_not_exist_are_refused(options: TrainOptions, exits: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(replace(options, width=8, exits=exits), METHODS["dsn"], LABELS, 16)


def test_a_run_can_start_from_a_bundle(options: TrainOptions, save: SaveBundle) -> None:
    path = save(exits=(2, 4))
    start = replace(options, start_from=path)
    net = build_network(start, METHODS["journal"], LABELS, input_size(start))
    torch.manual_seed(0)
    original = MultiExitNet(net.config)
    assert net.config.exits == (2, 4)
    for name, tensor in original.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name].float(), tensor.float(), rtol=1e-3, atol=1e-4)


def test_other_classes_get_new_classifiers(options: TrainOptions, save: SaveBundle) -> None:
    path = save()
    labels = ("cat", "dog")
    net = build_network(replace(options, start_from=path), METHODS["journal"], labels, 16)
    old = build_network(replace(options, start_from=path), METHODS["journal"], LABELS, 16).state_dict()
    assert net.config.num_classes == 2
    for name, tensor in net.state_dict().items():
        assert (".classifier." in name) or torch.equal(tensor, old[name])
    assert net.state_dict()["heads.0.classifier.weight"].shape == (2, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnet34"}, "has architecture resnet18, not resnet34: leave --architecture as the bundle"),
        ({"width": 16}, "has width 8, not 16"),
        ({"head": "light"}, "has head journal, not light"),
        ({"exits": "4"}, r"has exits \(\), not \(4,\)"),
    ],
)
def test_a_start_of_another_network_is_refused(
    options: TrainOptions, save: SaveBundle, changes: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(replace(options, start_from=save(), **changes), METHODS["journal"], LABELS, 16)
    with pytest.raises(ValueError, match="has input_size 16, not 32"):
        build_network(replace(options, start_from=save()), METHODS["journal"], LABELS, 32)


def test_the_plain_method_cannot_start_from_a_network_with_exits(options: TrainOptions, save: SaveBundle) -> None:
    with pytest.raises(ValueError, match=r"method baseline has no early exits, the bundle .* has: choose dsn"):
        build_network(replace(options, start_from=save()), METHODS["baseline"], LABELS, 16)
    net = build_network(replace(options, start_from=save("plain", exits=(4,))), METHODS["baseline"], LABELS, 16)
    assert net.num_exits == 1


def test_pruning_needs_a_start(options: TrainOptions) -> None:
    with pytest.raises(ValueError, match="--prune needs a trained network: name its bundle with --start-from"):
        build_network(replace(options, prune=0.5), METHODS["journal"], LABELS, 16)
    with pytest.raises(
        ValueError, match=r"--prune 1.5 is out of range: give the share that stays, above 0 and below 1"
    ):
        build_network(replace(options, prune=1.5), METHODS["journal"], LABELS, 16)


def test_a_start_can_be_pruned(options: TrainOptions, save: SaveBundle) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed (the prune extra)")
    path = save(width=16)
    whole = build_network(replace(options, start_from=path), METHODS["journal"], LABELS, 16)
    pruned = build_network(replace(options, start_from=path, prune=0.5), METHODS["journal"], LABELS, 16)
    before, after = (count_cost(net.config).sequential_multiply_adds[-1] for net in (whole, pruned))
    assert 0.45 <= after / before <= 0.55
    assert pruned.num_exits == 4


def test_a_pruned_start_goes_to_other_classes_too(options: TrainOptions, save: SaveBundle, tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed (the prune extra)")
    pruned = build_network(replace(options, start_from=save(width=16), prune=0.5), METHODS["journal"], LABELS, 16)
    calibration = Calibration.neutral(4)
    save_bundle(
        Bundle("p", "1", pruned.config, Preprocessing(16), LABELS, calibration, threshold=0.5, net=pruned),
        tmp_path / "pruned",
        "card",
    )
    net = build_network(replace(options, start_from=tmp_path / "pruned"), METHODS["journal"], ("cat", "dog"), 16)
    assert count_cost(net.config).stage_multiply_adds == count_cost(pruned.config).stage_multiply_adds
    assert net(torch.randn(2, 3, 16, 16)).logits[0].shape == (2, 2)


def test_the_input_size_is_the_given_else_the_starts_else_the_datas(options: TrainOptions, save: SaveBundle) -> None:
    assert input_size(options) == 64
    assert input_size(replace(options, dataset="cifar100")) == 32
    assert input_size(replace(options, dataset="cifar100", input_size=48)) == 48
    assert input_size(replace(options, start_from=save())) == 16


def test_sources_tell_bundles_apart_by_their_weights(options: TrainOptions, save: SaveBundle) -> None:
    first, second = save("first"), save("second", seed=1)
    assert set(identity(options).values()) == {None}
    both = identity(replace(options, start_from=first, teacher=second))
    assert both.keys() == {"start_from", "teacher", "teacher_weight", "teacher_temperature"}
    assert both["start_from"] != both["teacher"]
    assert identity(replace(options, start_from=second))["start_from"] == both["teacher"]


def test_a_teacher_must_take_the_same_pictures_and_know_the_same_classes(save: SaveBundle) -> None:
    path, cpu = save(), torch.device("cpu")
    bundle = load_bundle(path)
    teacher = external_teacher(bundle, path, 16, LABELS, cpu, weight=0.3, temperature=2.0)
    assert (teacher.bundle.name, teacher.weight, teacher.temperature) == ("start", 0.3, 2.0)
    with pytest.raises(ValueError, match="takes pictures of 16 pixels, the student 32: give --input-size 16"):
        external_teacher(bundle, path, 32, LABELS, cpu, 0.5, 4.0)
    with pytest.raises(ValueError, match="knows other classes than the data set"):
        external_teacher(bundle, path, 16, ("a", "b", "c"), cpu, 0.5, 4.0)


def test_classes_must_be_the_bundles_in_their_order() -> None:
    check_labels(("a", "b"), ("a", "b"))
    with pytest.raises(ValueError, match=r"has 3 classes, the bundle 2; they differ in c: give the data set"):
        check_labels(("a", "b"), ("a", "b", "c"))
    with pytest.raises(ValueError, match="they differ in their order"):
        check_labels(("a", "b"), ("b", "a"))


@pytest.mark.parametrize("name", ["two words", "-dash", "", "x" * 65])
def test_a_name_that_no_bundle_takes_is_refused(options: TrainOptions, name: str) -> None:
    with pytest.raises(ValueError, match="is not usable: give up to 64 letters"):
        bundle_name(replace(options, name=name))


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("cifar100", "cifar100-resnet18"),
        ("data/my_photos/", "my_photos-resnet18"),
        ("data/two words (new)", "two-words-new-resnet18"),
        ("data/.hidden", "hidden-resnet18"),
        ("data/写真", "resnet18"),
        ("data/" + "x" * 100, "x" * 40 + "-resnet18"),
    ],
)
def test_a_model_is_named_after_its_data(options: TrainOptions, dataset: str, expected: str) -> None:
    assert bundle_name(replace(options, dataset=dataset)) == expected


def test_a_model_is_named_after_its_architecture(options: TrainOptions, save: SaveBundle) -> None:
    assert bundle_name(replace(options, architecture="resnet34")) == "photos-resnet34"
    assert bundle_name(replace(options, start_from=save())) == "photos-resnet18"


def test_a_folder_given_as_a_dot_has_a_name_too(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path / "pets")
    assert bundle_name(replace(options, dataset=".")) == "pets-resnet18"
    assert bundle_name(replace(options, dataset=".", name="given")) == "given"


def test_pictures_decoded_on_demand_keep_a_margin_for_resized_crops(tmp_path: Path) -> None:
    files = FolderSet(tmp_path, ("a.png",), np.zeros(1, np.int64), ("a",), Preprocessing(224, 0.875))
    held = ImageSet(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int64), ("a",))
    assert with_margins(files, imagenet()).preprocessing == Preprocessing(256)  # type: ignore[union-attr]
    assert with_margins(files, short()) is files
    assert with_margins(held, imagenet()) is held
