"""Bundles: what is saved comes back, what is broken is refused by file and cause, what was there is not lost."""

from __future__ import annotations

import json
import os
import pickle
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from offramp.models.bundle import (
    CARD,
    DESCRIPTION,
    WEIGHTS,
    Bundle,
    BundleError,
    _swap,
    load_bundle,
    rounded,
    save_bundle,
)
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing


def outputs(bundle: Bundle) -> list[torch.Tensor]:
    x_BCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits: list[torch.Tensor] = bundle.net(x_BCHW).logits
    return logits


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_comes_back_as_it_was_saved(tiny_bundle: Bundle, saved_bundle: Path) -> None:
    loaded = load_bundle(saved_bundle)
    assert replace(loaded, net=tiny_bundle.net) == tiny_bundle
    assert not loaded.net.training
    assert {p.dtype for p in loaded.net.parameters()} == {torch.float32}
    assert (saved_bundle / CARD).read_text(encoding="utf-8") == "# the card\n"
    assert sorted(path.name for path in saved_bundle.iterdir()) == sorted([DESCRIPTION, WEIGHTS, CARD])


def test_a_loaded_network_answers_to_the_bit_as_its_rounded_self(tiny_bundle: Bundle, saved_bundle: Path) -> None:
    expected = outputs(replace(tiny_bundle, net=rounded(tiny_bundle.net)))
    assert all(map(torch.equal, outputs(load_bundle(saved_bundle)), expected))
    assert not torch.equal(outputs(tiny_bundle)[0], expected[0])


def test_saving_again_changes_no_weight(saved_bundle: Path, tmp_path: Path) -> None:
    save_bundle(load_bundle(saved_bundle), tmp_path / "again", "# the card\n")
    assert contents(tmp_path / "again") == contents(saved_bundle)


def test_kernels_are_stored_in_half_and_statistics_in_full_precision(saved_bundle: Path) -> None:
    stored = load_file(saved_bundle / WEIGHTS)
    assert all(t.dtype == (torch.float16 if t.ndim > 1 else torch.float32) for t in stored.values())
    assert not any(name.endswith("num_batches_tracked") for name in stored)


def test_every_file_can_be_read_by_whoever_the_umask_lets(saved_bundle: Path) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in saved_bundle.iterdir()}
    probe = saved_bundle.parent / "probe"
    probe.touch()
    assert modes == {stat.S_IMODE(probe.stat().st_mode)}


def test_an_existing_bundle_is_replaced_whole(tiny_bundle: Bundle, saved_bundle: Path) -> None:
    (saved_bundle / "stale.txt").touch()
    save_bundle(replace(tiny_bundle, version="2", labels=("a", "b", "c")), saved_bundle, "new card")
    assert load_bundle(saved_bundle).labels == ("a", "b", "c")
    assert sorted(path.name for path in saved_bundle.iterdir()) == sorted([DESCRIPTION, WEIGHTS, CARD])
    assert [path.name for path in saved_bundle.parent.iterdir()] == [saved_bundle.name]


def test_a_bundle_is_made_in_a_folder_that_is_not_there_yet(tiny_bundle: Bundle, tmp_path: Path) -> None:
    save_bundle(tiny_bundle, tmp_path / "a" / "b" / "bundle", "card")
    assert load_bundle(tmp_path / "a" / "b" / "bundle").name == "tiny"


@contextmanager
def files_no_larger_than(size_bytes: int) -> Iterator[None]:
    """The kernel refuses longer files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size_bytes", [100, 20_000])
def test_a_disk_that_takes_no_more_leaves_the_old_bundle(
    size_bytes: int, tiny_bundle: Bundle, saved_bundle: Path
) -> None:
    before = contents(saved_bundle.parent)
    with files_no_larger_than(size_bytes), pytest.raises(BundleError, match=r"bundle: the bundle could not be written"):
        save_bundle(replace(tiny_bundle, version="2"), saved_bundle, "card")
    assert contents(saved_bundle.parent) == before
    assert [path.name for path in saved_bundle.parent.iterdir()] == [saved_bundle.name]


def test_the_old_bundle_comes_back_when_the_new_one_cannot_be_moved_in(saved_bundle: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    with pytest.raises(FileNotFoundError):
        _swap(tmp_path / "never written", saved_bundle, tmp_path / "previous")
    assert contents(tmp_path) == before


def test_a_file_where_a_folder_should_be_is_refused_and_kept(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match=r"could not be written .*; free disk space or choose another path"):
        save_bundle(tiny_bundle, tmp_path / "file" / "bundle", "card")
    with pytest.raises(BundleError, match=r"is there already and is not a bundle; choose another path"):
        save_bundle(tiny_bundle, tmp_path / "file", "card")
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_folder_of_other_things_is_never_replaced(tiny_bundle: Bundle, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_text("mine")
    with pytest.raises(BundleError, match=r"photos: is there already and is not a bundle"):
        save_bundle(tiny_bundle, photos, "card")
    assert contents(tmp_path) == {"photos/holiday.jpg": b"mine"}


def refused(folder: Path, file: str, cause: str) -> None:
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    message = str(caught.value)
    assert message.startswith(str(folder / file) + ":"), message
    assert cause in message, message


def edit(folder: Path, **fields: Any) -> None:
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_refused(share: float, saved_bundle: Path) -> None:
    path = saved_bundle / WEIGHTS
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(saved_bundle, WEIGHTS, "not a whole safetensors file")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_description_is_refused(share: float, saved_bundle: Path) -> None:
    path = saved_bundle / DESCRIPTION
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(saved_bundle, DESCRIPTION, "not valid JSON")


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"[" * 200_000, b"not json"])
def test_a_description_that_is_no_json_is_refused(text: bytes, saved_bundle: Path) -> None:
    (saved_bundle / DESCRIPTION).write_bytes(text)
    refused(saved_bundle, DESCRIPTION, "not valid JSON")


@pytest.mark.parametrize(("text", "kind"), [("[1]", "list"), ("null", "NoneType"), ('"x"', "str"), ("3", "int")])
def test_json_that_is_no_object_is_refused(text: str, kind: str, saved_bundle: Path) -> None:
    (saved_bundle / DESCRIPTION).write_text(text)
    refused(saved_bundle, DESCRIPTION, f"holds a {kind}, not an object")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_an_unknown_format_version_is_refused(version: object, saved_bundle: Path) -> None:
    edit(saved_bundle, format_version=version)
    refused(saved_bundle, DESCRIPTION, f"format version {version!r} is unknown; this Offramp reads version 1")


def test_every_field_is_needed(saved_bundle: Path) -> None:
    path = saved_bundle / DESCRIPTION
    whole = json.loads(path.read_text())
    # Older bundles have neither certificate nor fronts.
    for name in whole.keys() - {"format_version", "certificate", "fronts"}:
        path.write_text(json.dumps({field: value for field, value in whole.items() if field != name}))
        refused(saved_bundle, DESCRIPTION, f"the field {name!r} is missing")


@pytest.mark.parametrize(
    ("field", "value", "cause"),
    [
        ("labels", ["a", "b"], "2 labels for 3 classes"),
        ("labels", "abc", "labels is not a list of strings"),
        ("labels", [1, 2, 3], "labels is not a list of strings"),
        ("labels", None, "labels is not a list of strings"),
        ("name", "../up", "name '../up' is not usable"),
        ("name", 7, "expected string"),
        ("version", "", "version '' is not usable"),
        ("threshold", 1.5, "threshold 1.5 is out of range"),
        ("threshold", float("nan"), "NaN is no JSON number"),
        ("threshold", "high", "could not convert"),
        ("calibration", {"temperatures": [1, 1, 1], "carries": [0, 0, 0]}, "calibration for 3 exits"),
        ("calibration", {"temperatures": [1, 1, 1, 0], "carries": [0, 0, 0, 0]}, "temperatures (1, 1, 1, 0) are out"),
        ("calibration", [1, 2], "must be a mapping"),
        ("preprocessing", {"size": 64}, "makes pictures of 64 pixels, the network takes 32"),
        ("preprocessing", {"size": 32, "mean": ["a", "b", "c"]}, "must be real number"),
        ("preprocessing", {"size": 32, "shear": 1}, "unexpected keyword argument 'shear'"),
        ("config", {"architecture": "resnet81", "num_classes": 3}, "did you mean 'resnet18'?"),
        ("config", {"architecture": 18, "num_classes": 3}, ""),
        (
            "config",
            {"architecture": "resnet18", "num_classes": 10**6},
            "num_classes 1000000 is out of range: give 2 to 100000",
        ),
        ("config", [], "must be a mapping"),
        ("exits", None, "not iterable"),
        ("exits", [{"exit": 1}], "exits describes 1 exits, the network has 4"),
        ("operating_points", ["0.5"], "must be lists of objects"),
        ("training", 3, "not iterable"),
    ],
)
def test_a_field_that_makes_no_sense_is_refused(field: str, value: object, cause: str, saved_bundle: Path) -> None:
    edit(saved_bundle, **{field: value})
    refused(saved_bundle, DESCRIPTION, cause)


def test_a_missing_tensor_is_refused(saved_bundle: Path) -> None:
    rewrite(saved_bundle, lambda tensors: tensors.__delitem__("stages.1.0.conv1.weight"))
    refused(saved_bundle, WEIGHTS, "1 tensors are missing, such as 'stages.1.0.conv1.weight'")


def test_an_extra_tensor_is_refused(saved_bundle: Path) -> None:
    rewrite(saved_bundle, lambda tensors: tensors.update(stowaway=torch.zeros(1)))
    refused(saved_bundle, WEIGHTS, "1 tensors too many, such as 'stowaway'")


def test_a_tensor_of_another_shape_is_refused(saved_bundle: Path) -> None:
    rewrite(saved_bundle, lambda tensors: tensors.update({"heads.3.classifier.bias": torch.zeros(4)}))
    refused(saved_bundle, WEIGHTS, "tensor 'heads.3.classifier.bias' has shape [4], the network needs [3]")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, saved_bundle: Path) -> None:
    rewrite(saved_bundle, lambda tensors: tensors["heads.0.classifier.weight"][1, 2].fill_(value))
    refused(saved_bundle, WEIGHTS, "tensor 'heads.0.classifier.weight' holds values that are not finite numbers")


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(torch.int8, "I8"), (torch.int64, "I64"), (torch.bool, "BOOL"), (torch.float8_e4m3fn, "F8_E4M3")],
)
def test_tensors_of_another_type_are_refused(dtype: torch.dtype, kind: str, saved_bundle: Path) -> None:
    rewrite(saved_bundle, lambda tensors: tensors.update({"heads.3.classifier.bias": torch.zeros(3).to(dtype)}))
    refused(saved_bundle, WEIGHTS, f"tensor 'heads.3.classifier.bias' is of type {kind}; weights are F16 or F32")


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_pickle_in_place_of_the_weights_is_refused_and_never_executed(saved_bundle: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    for payload in (pickle.dumps(Trap(sprung)), b""):
        (saved_bundle / WEIGHTS).write_bytes(payload)
        refused(saved_bundle, WEIGHTS, "not a whole safetensors file")
    torch.save(Trap(sprung), saved_bundle / WEIGHTS)
    refused(saved_bundle, WEIGHTS, "not a whole safetensors file")
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("field", ["training", "fronts", "certificate"])
@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (nested(300), "is nested deeper than 32 levels: flatten it"),
        (2**63, "is a whole number of more than 64 bits"),
        (-(2**63) - 1, "is a whole number of more than 64 bits"),
        ("half a pair: \ud83d", "holds '\\ud83d', which is no character"),
        ({"\udcff": 1}, "holds '\\udcff', which is no character"),
    ],
)
def test_what_could_not_be_served_as_json_is_refused(field: str, value: object, cause: str, saved_bundle: Path) -> None:
    edit(saved_bundle, **{field: {"deep": [0, value]}})
    refused(saved_bundle, DESCRIPTION, cause)
    refused(saved_bundle, DESCRIPTION, f"model.json: {field}.deep.1")


def test_a_number_too_large_for_any_float_is_refused(saved_bundle: Path) -> None:
    edit(saved_bundle, training={"loss": 12345.678})
    path = saved_bundle / DESCRIPTION
    path.write_text(path.read_text().replace("12345.678", "1e999"))
    refused(saved_bundle, DESCRIPTION, "training.loss is inf: give a finite number")


def test_labels_and_names_that_are_no_texts_are_refused(saved_bundle: Path) -> None:
    edit(saved_bundle, labels=["a", "b", "\udc80"])
    refused(saved_bundle, DESCRIPTION, "labels.2 holds '\\udc80', which is no character: leave it out")


def test_a_description_beyond_all_bounds_is_not_read(saved_bundle: Path) -> None:
    os.truncate(saved_bundle / DESCRIPTION, 1 << 40)
    refused(saved_bundle, DESCRIPTION, "1,099,511,627,776 bytes long, above the limit of 8,388,608")


def peak_bytes(call: Callable[[], object]) -> int:
    """Memory that a call takes at most, above what was taken before."""

    def status_bytes(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    call()
    return status_bytes("VmHWM") - before


@pytest.mark.skipif(sys.platform != "linux", reason="measures the peak of memory as Linux reports it")
@pytest.mark.parametrize(
    ("config", "file", "cause"),
    [
        (
            {"architecture": "resnet18", "width": 256},
            WEIGHTS,
            "the network needs [",
        ),
        ({"architecture": "resnet152", "width": 512}, DESCRIPTION, "parameters, above the limit of 500,000,000"),
        ({"architecture": "resnet18", "width": 4, "num_classes": 100_000}, WEIGHTS, "the network needs [100000"),
    ],
)
def test_a_network_that_its_file_does_not_hold_takes_no_memory(
    config: dict, file: str, cause: str, saved_bundle: Path
) -> None:
    edit(saved_bundle, config={"num_classes": 3, "input_size": 32} | config)
    edit(saved_bundle, labels=["x"] * config.get("num_classes", 3))
    load_bundle_or_none(saved_bundle)
    assert peak_bytes(lambda: refused(saved_bundle, file, cause)) < 150e6


def load_bundle_or_none(path: Path) -> None:
    with suppress(BundleError):
        load_bundle(path)


@pytest.mark.parametrize("longer", [1, 100 * 2**30])
def test_weights_longer_than_their_header_tells_are_refused(longer: int, saved_bundle: Path) -> None:
    size = (saved_bundle / WEIGHTS).stat().st_size
    os.truncate(saved_bundle / WEIGHTS, size + longer)
    refused(
        saved_bundle, WEIGHTS, "not a whole safetensors file (Error while deserializing header: incomplete metadata"
    )


@pytest.mark.parametrize(
    ("header", "cause"),
    [
        (b"[]", "invalid type: sequence"),
        (b"[" * 99_999, "invalid type: sequence"),
        (b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}', "number out of range"),
        (b'{"a": {"dtype": "F32"}}', "missing field `shape`"),
    ],
)
def test_a_malformed_header_is_refused(header: bytes, cause: str, saved_bundle: Path) -> None:
    (saved_bundle / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    refused(saved_bundle, WEIGHTS, cause)


def test_a_header_without_end_is_not_read(saved_bundle: Path) -> None:
    (saved_bundle / WEIGHTS).write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    refused(saved_bundle, WEIGHTS, "header too large")


def test_an_input_that_takes_for_ever_is_refused_before_it_is_run(saved_bundle: Path, tiny_bundle: Bundle) -> None:
    torch.manual_seed(0)
    config = replace(tiny_bundle.config, width=32, head="light")
    save_bundle(replace(tiny_bundle, config=config, net=MultiExitNet(config).eval()), saved_bundle, "card")
    assert load_bundle(saved_bundle).cost.sequential_multiply_adds[-1] > 1e8
    edit(saved_bundle, config=asdict(config) | {"input_size": 1024}, preprocessing={"size": 1024})
    refused(saved_bundle, DESCRIPTION, "one picture takes more than 64 billion multiply-adds, or a layer more than 67")


def test_a_loaded_network_lies_in_memory_of_its_own(saved_bundle: Path) -> None:
    loaded = load_bundle(saved_bundle)
    before = outputs(loaded)
    (saved_bundle / WEIGHTS).write_bytes(bytes((saved_bundle / WEIGHTS).stat().st_size))
    assert all(map(torch.equal, outputs(loaded), before))
    tensors = list(loaded.net.state_dict().values())
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert all(parameter.requires_grad for parameter in loaded.net.parameters())


def test_loading_imports_nothing_that_takes_seconds() -> None:
    load = "import sys; from offramp.models.bundle import EMBEDDED, load_bundle; load_bundle(EMBEDDED)"
    code = f"{load}; print('sympy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_missing_files_are_named(saved_bundle: Path, tmp_path: Path) -> None:
    refused(
        tmp_path / "nowhere", DESCRIPTION, "no such file; a bundle is a folder with model.json and model.safetensors"
    )
    (saved_bundle / WEIGHTS).unlink()
    refused(saved_bundle, WEIGHTS, "no such file")
    (saved_bundle / DESCRIPTION).unlink()
    refused(saved_bundle, DESCRIPTION, "no such file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "two words"}, "name 'two words' is not usable: give up to 64 letters"),
        ({"name": "x" * 65}, "is not usable"),
        ({"version": "-1"}, "version '-1' is not usable"),
        ({"labels": ("a", "b")}, "2 labels for 3 classes: give one a class"),
        ({"threshold": -0.01}, r"threshold -0.01 is out of range: give a number in \[0, 1\]"),
        ({"preprocessing": Preprocessing(64)}, "makes pictures of 64 pixels, the network takes 32"),
    ],
)
def test_a_bundle_that_makes_no_sense_cannot_be_built(changes: dict, message: str, tiny_bundle: Bundle) -> None:
    with pytest.raises(ValueError, match=message):
        replace(tiny_bundle, **changes)
