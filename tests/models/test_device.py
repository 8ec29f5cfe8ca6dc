"""The choice of the device, its description, and its errors."""

import pytest
import torch

from offramp.models.device import check_usable, choose_device, computes_bfloat16, device_errors, hardware


def test_auto_is_the_first_gpu_else_the_cpu() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cpu:x"])
def test_unknown_devices_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"device '{name}' is unknown: give auto, cpu, cuda or cuda:N"):
        choose_device(name)


@pytest.mark.parametrize("name", ["meta", "mps"])
def test_devices_that_networks_cannot_run_on_here_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"device '{name}' is not supported"):
        choose_device(name)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="device 'cuda:99' is not there"):
        choose_device("cuda:99")


def test_hardware_names_machine_and_versions() -> None:
    text = hardware(torch.device("cpu"))
    assert f"torch {torch.__version__}" in text
    assert not text.startswith(",")


def test_a_device_that_computes_nothing_is_refused_in_a_sentence() -> None:
    check_usable(torch.device("cpu"))
    # A kind of device that torch has no kernels for here.
    with pytest.raises(ValueError, match=r"^device 'fpga' cannot be used: .*; give --device cpu$"):
        check_usable(torch.device("fpga"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee"), r"2 GiB; lower --batch-size$"),
        (
            torch.AcceleratorError("CUDA error: an illegal memory access\nFor debugging"),
            r"access; start the command again",
        ),
    ],
)
def test_errors_of_a_gpu_are_one_sentence_with_a_way_out(error: RuntimeError, message: str) -> None:
    with pytest.raises(ValueError, match=message), device_errors("lower --batch-size"):
        raise error


def test_what_is_no_error_of_a_gpu_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="a bug"), device_errors("lower --batch-size"):
        raise RuntimeError("a bug")


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)])
def test_gpus_compute_in_bfloat16_from_ampere_on(capability: tuple[int, int], native: bool) -> None:
    assert computes_bfloat16(capability) == native
