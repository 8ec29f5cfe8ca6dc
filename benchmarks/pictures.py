"""Real test pictures as a folder of PNG files, which the load generator reads without any of our other packages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkError

LABELS = "labels.json"


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures 00000.png, 00001.png, …; labels: the true class name of each."""

    folder: Path
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def write_pictures(png: list[bytes], labels: list[str], folder: Path) -> Pictures:
    """Write the pictures and their labels into `folder`."""
    for index, content in enumerate(png):
        (folder / f"{index:05d}.png").write_bytes(content)
    (folder / LABELS).write_text(json.dumps(labels))
    return Pictures(folder, tuple(labels))


def read_pictures(folder: Path) -> list[bytes]:
    """The files' contents, in order. Raises BenchmarkError where there are none."""
    pictures = [path.read_bytes() for path in sorted(folder.glob("*.png"))]
    if not pictures:
        raise BenchmarkError(f"{folder}: no pictures to send; a load needs at least one 00000.png")
    return pictures


def export_test_pictures(dataset: str, data_root: Path, limit: int, folder: Path) -> Pictures:
    """Write the first `limit` test pictures (0: all) of cifar10 or cifar100, in the official order.

    Raises ValueError for another name, and DataError where the files are not found.
    """
    import io

    from PIL import Image

    from training.data.cifar import LAYOUTS, read_cifar

    if dataset not in LAYOUTS:
        raise ValueError(f"dataset {dataset!r} is unknown here: choose one of {', '.join(LAYOUTS)}")
    test = read_cifar(dataset, data_root).test
    count = min(limit or len(test), len(test))
    png = []
    for image_HWC in test.images_NHWC[:count]:
        buffer = io.BytesIO()
        Image.fromarray(image_HWC).save(buffer, "png")
        png.append(buffer.getvalue())
    labels = [test.class_names[label] for label in test.labels_N[:count].tolist()]
    return write_pictures(png, labels, folder)
