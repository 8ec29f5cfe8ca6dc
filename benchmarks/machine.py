"""What a figure must come with: hardware, versions, date and command."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("offramp", "torch", "openvino", "numpy", "pillow"),
    *("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "aiohttp"),
)


def provenance() -> dict[str, Any]:
    """The first part of every result file."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(sys.orig_argv),
        "machine": {
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpus": gpu_models(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "load_average_before": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version(), **package_versions()},
    }


def plain_options(options: Any) -> dict[str, str]:
    """The options dataclass of a benchmark as texts, without the paths of this machine's data and output."""
    return {name: str(value) for name, value in asdict(options).items() if name not in ("data_root", "output")}


def command_line(arguments: list[str]) -> str:
    """The command as one would type it, without the paths of this machine's interpreter and scripts."""
    rest = arguments[1:]
    if rest[:1] == ["-m"]:
        return " ".join(["python", *rest])
    return " ".join([Path(rest[0]).name, *rest[1:]]) if rest else "python"


def package_versions() -> dict[str, str]:
    """Installed versions; what is not installed is left out."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def cpu_model() -> str:
    """As the kernel names it, else as Python does."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def gpu_models() -> list[str]:
    """NVIDIA GPUs as their driver names them, without asking torch."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
