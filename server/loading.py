"""From bundle folders to running models."""

from __future__ import annotations

from pathlib import Path

import torch

from models.bundle import EMBEDDED, load_bundle
from models.cost import count_cost
from server.engine.engine import Engine
from server.engine.runners.torch_runner import TorchRunner
from server.metrics import Metrics
from server.registry import Registry, ServedModel
from server.settings import Settings


def load_registry(settings: Settings, metrics: Metrics) -> Registry:
    """Load every bundle and put it before an engine, not yet started.

    Raises ValueError (BundleError among them) that names the bundle or device and what is wrong with it.
    """
    device = choose_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return Registry([_load(path, device, settings, metrics) for path in settings.model or [EMBEDDED]])


def choose_device(name: str) -> torch.device:
    """The torch device of a name; "auto" is the first GPU, else the CPU. Raises ValueError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown: choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} is not there: torch sees {torch.cuda.device_count()} GPUs; choose cpu or auto"
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported: choose auto, cpu, cuda or cuda:N")
    return device


def _load(path: Path, device: torch.device, settings: Settings, metrics: Metrics) -> ServedModel:
    bundle = load_bundle(path)
    cost = count_cost(bundle.config)
    runner = TorchRunner(bundle, device)
    engine = Engine(
        runner,
        metrics.add_model(bundle, cost, str(device)),
        max_batch_size=settings.max_batch_size,
        max_samples=settings.max_queue,
        max_wait_s=settings.max_wait_s,
    )
    return ServedModel(bundle, cost, str(device), engine, lambda: runner.warm_up(settings.max_batch_size))
