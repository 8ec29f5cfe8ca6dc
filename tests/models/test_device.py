"""Which device runs, and what a card says of it."""

import pytest
import torch

from models.device import choose_device, hardware


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
