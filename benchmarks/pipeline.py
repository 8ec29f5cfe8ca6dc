"""Pictures a second of the training's data pipeline alone: read, decode, resize, batch, copy to the device.

    python -m benchmarks.pipeline photos --size 224 --workers 0,4,8

Compare it with the pictures a second that training reports: the pipeline keeps a device fed when it is the faster of
the two. Measures a folder of classes as it is and as shards of the same pictures, which are written to a temporary
folder; or shards alone. Every figure is of whole epochs in a shuffled order, each after one that is not counted.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.command_line import command_line
from benchmarks.errors import BenchmarkError
from benchmarks.machine import provenance
from benchmarks.processes import PROC, cpu_s_of
from benchmarks.stats import spread
from benchmarks.tables import pipeline_section
from models.device import choose_device, hardware
from models.preprocess import Preprocessing
from training.data import Batches, FolderSet, ShardSet
from training.data.image_folder import read_image_folder
from training.data.shard_files import find_shards
from training.data.shards import read_shards

SHARD_PICTURES = 1_000
HOLDOUT_SEED = 0


def parse_workers(text: str) -> tuple[int, ...]:
    """ "0,4" -> (0, 4). Raises ValueError for anything that is no list of different numbers of 0 to 256."""
    try:
        workers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"workers {text!r}: give whole numbers, separated by commas") from None
    if not all(0 <= count <= 256 for count in workers) or len(set(workers)) != len(workers):
        raise ValueError(f"workers {text!r}: give different numbers of 0 to 256")
    return workers


@dataclass(frozen=True)
class PipelineOptions:
    """Options of `python -m benchmarks.pipeline`."""

    path: Annotated[str, typer.Argument(help="A folder of classes, or shards: a folder or a pattern in braces.")]
    workers: Annotated[str, typer.Option(help="Numbers of decoding processes, separated by commas.")] = "0,1,2,4"
    size: Annotated[int, typer.Option(min=8, max=2048, help="Side of the decoded pictures in pixels.")] = 224
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a batch.")] = 64
    pictures: Annotated[
        int, typer.Option(min=2, help="Most to take, spread over the training set; two a class at least.")
    ] = 4096
    rounds: Annotated[int, typer.Option(min=1, help="Measured epochs of each line, interleaved.")] = 3
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto"
    output: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("benchmarks/results/pipeline.json")

    def __post_init__(self) -> None:
        parse_workers(self.workers)


def run(options: PipelineOptions) -> int:
    """Pictures a second of the data pipeline alone, by form and number of decoding processes.

    python -m benchmarks.pipeline photos --size 224 --workers 0,4,8
    """
    document = measure(options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    typer.echo(f"{pipeline_section(document)}\n\nwritten to {options.output}")
    typer.echo(json.dumps(document))
    return 0


def measure(options: PipelineOptions) -> dict[str, Any]:
    """The result document. Raises DataError for pictures that cannot be used."""
    device = choose_device(options.device)
    head = {"benchmark": "pipeline", **provenance()}
    with forms_of(options) as forms:
        walks = {
            (form, workers): Batches(
                pictures, options.batch_size, device, shuffle=True, drop_last=True, workers=workers
            )
            for form, pictures in forms.items()
            for workers in parse_workers(options.workers)
        }
        counted = {place: [] for place in walks}  # type: dict[tuple[str, int], list[Walk]]
        for number in range(options.rounds + 1):
            for place, batches in walks.items():
                walk = timed_walk(batches, seed=number)
                # The first epoch starts the processes and brings the files into the page cache.
                if number:
                    counted[place].append(walk)
        first = next(iter(forms.values()))
        mean_bytes = np.mean([len(_content(first, i)) for i in range(min(len(first), SHARD_PICTURES))])
        walks.clear()
    return {
        **head,
        "device": hardware(device),
        "threads": torch.get_num_threads(),
        "pictures": len(first),
        "mean_file_bytes": round(float(mean_bytes)),
        "size": options.size,
        "batch_size": options.batch_size,
        "rounds_each": options.rounds,
        "rows": [
            {"form": form, "workers": workers, **summary(walks_of)} for (form, workers), walks_of in counted.items()
        ],
        "rounds": [
            {"form": form, "workers": workers, "round": number, **asdict(walk)}
            for (form, workers), walks_of in counted.items()
            for number, walk in enumerate(walks_of, 1)
        ],
    }


@dataclass(frozen=True)
class Walk:
    """One epoch: pictures a second, CPU milliseconds a picture of all processes, and how many cores that was.

    Fewer cores than there are processes to decode: others had the rest. cpu_ms tells the cost even then. None where
    there is no /proc.
    """

    pictures_per_s: float
    cpu_ms: float | None
    cores_used: float | None


def summary(walks: Sequence[Walk]) -> dict[str, Any]:
    """Median and extremes over the rounds."""
    values = {name: [asdict(walk)[name] for walk in walks] for name in ("pictures_per_s", "cpu_ms", "cores_used")}
    return {name: None if None in found else asdict(spread(found)) for name, found in values.items()}


def timed_walk(batches: Batches, seed: int) -> Walk:
    """One epoch, until its last batch is on the device."""
    count, cpu_before_s, start = 0, cpu_s(), perf_counter()
    for _, labels_B in batches.epoch(seed):
        count += len(labels_B)
    if batches.device.type == "cuda":
        torch.cuda.synchronize(batches.device)
    seconds, cpu_after_s = perf_counter() - start, cpu_s()
    if cpu_before_s is None or cpu_after_s is None:
        return Walk(count / seconds, None, None)
    used_s = cpu_after_s - cpu_before_s
    return Walk(count / seconds, 1e3 * used_s / count, used_s / seconds)


def cpu_s() -> float | None:
    """CPU time of this process and of its decoding processes so far; the idle ones of other lines add nothing."""
    if not PROC.exists():
        return None
    workers = [process.pid for process in multiprocessing.active_children()]
    return sum(cpu_s_of(pid) for pid in [os.getpid(), *workers] if pid is not None)


@contextmanager
def forms_of(options: PipelineOptions) -> Iterator[dict[str, FolderSet | ShardSet]]:
    """The training pictures as "folder" and as "shards" of the same, or, where `path` is shards, as these alone."""
    preprocessing = Preprocessing(options.size)
    files = find_shards(options.path, Path())
    with tempfile.TemporaryDirectory() as scratch:
        if files is not None:
            shards = read_shards(files, preprocessing, HOLDOUT_SEED, cache=None).train
            yield {"shards": shards.subset(_spread_out(len(shards), options.pictures))}
            return
        if not Path(options.path).is_dir():
            raise BenchmarkError(f"{options.path} is neither a folder nor a pattern of shards; give one of these")
        everything = read_image_folder(Path(options.path), preprocessing, HOLDOUT_SEED).train
        folder = everything.subset(_spread_out(len(everything), options.pictures))
        write_shards(folder, Path(scratch))
        files = find_shards(scratch, Path())
        assert files is not None
        written = read_shards(files, preprocessing, HOLDOUT_SEED, cache=None)
        yield {"folder": folder, "shards": written.train}


def write_shards(pictures: FolderSet, target: Path) -> None:
    """The files as they are, with their classes, in `target/train-000000.tar` and on, and one picture a class for
    test, so that training has them all."""
    (target / "classnames.json").write_text(json.dumps(pictures.class_names))
    one_each = np.unique(pictures.labels_N, return_index=True)[1]
    parts = [("test", one_each)]
    parts += [
        ("train", part)
        for part in np.split(np.arange(len(pictures)), range(SHARD_PICTURES, len(pictures), SHARD_PICTURES))
    ]
    for number, (part, indices) in enumerate(parts):
        with tarfile.open(target / f"{part}-{number:06d}.tar", "w") as tar:
            for index in indices.tolist():
                path = pictures.root / pictures.names[index]
                _add(tar, f"{index:08d}{path.suffix.lower()}", path.read_bytes())
                _add(tar, f"{index:08d}.cls", str(pictures.labels_N[index]).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _spread_out(count: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _content(pictures: FolderSet | ShardSet, index: int) -> bytes:
    return pictures.read(index) if isinstance(pictures, ShardSet) else pictures.paths[index].read_bytes()


if __name__ == "__main__":
    command_line(PipelineOptions, run)
