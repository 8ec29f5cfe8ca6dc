"""Batches of uint8 pictures on a device, in an order that depends on the seed alone."""

from __future__ import annotations

import logging
import multiprocessing
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from offramp.training.data.image_set import DataError, FolderSet, ImageSet, Int64Array, Pictures, UInt8Array

logger = logging.getLogger(__name__)

Batch = tuple[torch.Tensor, torch.Tensor]

# Longest wait for a batch of the decoding processes, far above the time of the largest batch.
TIMEOUT_S = 1800


@dataclass(eq=False)
class Batches:
    """Passes over a set, in batches of (images_BHWC uint8, labels_B int64), both on `device`.

    An ImageSet is copied to the device once, and batches are gathered there. A set larger than half of a GPU's free
    memory stays in host memory. A FolderSet is decoded on demand by `workers` processes (0: by this one). The workers
    live on between passes, decode two batches each in advance, and serve one pass at a time. Batches travel in shared
    memory, or through pipes when it is too small, with one warning in the log.

    timeout_s: longest wait for a batch of the decoding processes.
    rank, world_size: of data-parallel training. `batch_size` is that of one process. The batches of all ranks, one
    after the other, are the batch of a single process with batch size world_size·batch_size. Every rank takes the same
    number of steps. In a short last batch (drop_last off), some ranks may get fewer pictures, or no picture.
    Raises DataError for a batch size below 1, negative workers, a rank out of range, or a set too small for a batch.
    """

    dataset: Pictures
    batch_size: int
    device: torch.device
    shuffle: bool = False
    drop_last: bool = False
    workers: int = 0
    rank: int = 0
    world_size: int = 1
    timeout_s: float = TIMEOUT_S
    _resident: Batch | None = field(init=False, default=None)
    _decoder: _Decoder | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        dataset, device, world_size = self.dataset, self.device, self.world_size
        if self.batch_size < 1:
            raise DataError(f"the batch size must be at least 1; got {self.batch_size}")
        if self.workers < 0:
            raise DataError(f"the number of workers must be at least 0; got {self.workers}")
        if not 0 <= self.rank < world_size:
            raise DataError(f"the rank must be 0 to {world_size - 1}, of {world_size} processes; got {self.rank}")
        whole = self.batch_size * world_size
        least = whole if self.drop_last else 1
        if len(dataset) < least:
            raise DataError(
                f"{len(dataset)} pictures are too few for one batch of {whole}, at least {least} are "
                "needed; choose a smaller batch size or add pictures"
            )
        if isinstance(dataset, ImageSet):
            home = device if _fits(dataset.images_NHWC.nbytes, device) else torch.device("cpu")
            images_NHWC = torch.from_numpy(dataset.images_NHWC).to(home)
            self._resident = images_NHWC, torch.from_numpy(dataset.labels_N).to(home)
        else:
            self._decoder = _Decoder(dataset, device, self.workers, self.timeout_s)

    def __len__(self) -> int:
        """Batches an epoch, the same for every rank."""
        whole, rest = divmod(len(self.dataset), self.batch_size * self.world_size)
        return whole if self.drop_last or not rest else whole + 1

    def epoch(self, seed: int | None = None, start: int = 0) -> Iterator[Batch]:
        """One pass over the set. With shuffle, the order is a function of `seed` alone, on every device.

        start: the first batch, to resume an epoch; the batches before it are not read.
        Raises DataError for shuffle without a seed, for a start beyond the end, for a broken picture, and for decoding
        processes that end or give no batch in time.
        """
        if not 0 <= start <= len(self):
            raise DataError(f"an epoch of {len(self)} batches can start at 0 to {len(self)}; got {start}")
        chunks = self._order(seed).split(self.batch_size * self.world_size)[start : len(self)]
        if self.world_size > 1:
            chunks = tuple(chunk.tensor_split(self.world_size)[self.rank] for chunk in chunks)
        if self._decoder is not None:
            return self._decoder.read(chunks)
        assert self._resident is not None
        return self._gather(chunks, *self._resident)

    def _order(self, seed: int | None) -> torch.Tensor:
        if not self.shuffle:
            return torch.arange(len(self.dataset))
        if seed is None:
            raise DataError("a shuffled epoch needs a seed; give a whole number, such as the epoch's index")
        return torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(seed))

    def _gather(
        self, chunks: Sequence[torch.Tensor], images_NHWC: torch.Tensor, labels_N: torch.Tensor
    ) -> Iterator[Batch]:
        for chunk in chunks:
            index_B = chunk.to(images_NHWC.device, non_blocking=True)
            images_BHWC, labels_B = images_NHWC.index_select(0, index_B), labels_N.index_select(0, index_B)
            yield images_BHWC.to(self.device), labels_B.to(self.device)


class _Decoder:
    """One DataLoader for all passes, so that its workers start once."""

    def __init__(self, pictures: FolderSet, device: torch.device, workers: int, timeout_s: float) -> None:
        self.device = device
        self._schedule = _Schedule()
        self._pass: object = None
        self._warned = False
        if workers and (cause := _no_queues(workers)):
            logger.warning(
                "decoding processes cannot start (%s): this process decodes alone; give the container more shared "
                "memory (docker run --shm-size 1g)",
                cause,
            )
            workers = 0
        loader: DataLoader[Batch | _ByValue | DataError] = DataLoader(
            _BatchReader(pictures),
            batch_size=None,
            sampler=self._schedule,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            timeout=timeout_s if workers else 0,
            # Otherwise the loader draws from torch's global generator, and a pass changes later draws.
            generator=torch.Generator(),
        )
        # In a reference cycle, such as an exception's traceback, the loader's queues can close before its workers stop.
        # The end of the process then waits for the workers for ever. The finalizer releases the loader first.
        self._loader = [loader]
        weakref.finalize(self, self._loader.clear).atexit = False

    def read(self, chunks: Sequence[torch.Tensor]) -> Iterator[Batch]:
        self._schedule.chunks = chunks
        self._pass = chunks
        for batch in self._batches():
            if isinstance(batch, DataError):
                raise batch
            images_BHWC, labels_B = self._tensors(batch) if isinstance(batch, _ByValue) else batch
            yield images_BHWC.to(self.device, non_blocking=True), labels_B.to(self.device, non_blocking=True)
            assert self._pass is chunks, "workers serve one pass at a time, and a newer one has begun"

    def _batches(self) -> Iterator[Batch | _ByValue | DataError]:
        try:
            yield from self._loader[0]
        except RuntimeError as error:
            # The loader's messages about its workers. Errors inside a worker begin with other words.
            if not str(error).startswith("DataLoader"):
                raise
            raise DataError(
                f"the decoding processes give no more pictures ({error}); free memory or give fewer --workers, "
                "0 for none"
            ) from error

    def _tensors(self, batch: _ByValue) -> Batch:
        if not self._warned:
            self._warned = True
            logger.warning(
                "shared memory is too small for decoded pictures (%s): they come through pipes, which is slower; give "
                "the container more (docker run --shm-size 1g), or fewer --workers",
                batch.cause,
            )
        return torch.from_numpy(batch.images_BHWC), torch.from_numpy(batch.labels_B)


def _no_queues(workers: int) -> str:
    """Why the queues of the workers cannot be made; empty when they can. Their semaphores are files of /dev/shm."""
    try:
        # One for each worker, one for their results, and three for the semaphores of the loader's events.
        _ = [multiprocessing.Queue() for _ in range(workers + 4)]
    except OSError as error:
        return str(error)
    return ""


class _Schedule(Sampler[Int64Array]):
    """The indices of each batch of the current pass."""

    chunks: Sequence[torch.Tensor] = ()

    def __iter__(self) -> Iterator[Int64Array]:
        return map(torch.Tensor.numpy, self.chunks)

    def __len__(self) -> int:
        return len(self.chunks)


@dataclass(frozen=True)
class _ByValue:
    """A batch that did not fit into shared memory. cause: the operating system's message."""

    images_BHWC: UInt8Array
    labels_B: Int64Array
    cause: str


class _BatchReader(Dataset[Batch | _ByValue | DataError]):
    """Decodes whole batches. A broken picture is returned as a value, because an error raised in a worker reaches the
    user inside the worker's traceback."""

    def __init__(self, pictures: FolderSet) -> None:
        self.pictures = pictures

    def __getitem__(self, indices: Int64Array) -> Batch | _ByValue | DataError:
        size = self.pictures.preprocessing.size
        images_BHWC = torch.empty((len(indices), size, size, 3), dtype=torch.uint8)
        labels_B = torch.empty(len(indices), dtype=torch.int64)
        cause = _share(images_BHWC, labels_B) if get_worker_info() else ""
        rows, labels = images_BHWC.numpy(), labels_B.numpy()
        try:
            for row, index in enumerate(indices.tolist()):
                rows[row], labels[row] = self.pictures[index]
        except DataError as error:
            return error
        return _ByValue(rows, labels, cause) if cause else (images_BHWC, labels_B)


def _share(*tensors: torch.Tensor) -> str:
    """Move tensors to shared memory. Returns the cause when they do not fit, else an empty text.

    In the queue's own thread the error would lose the batch silently, and its receiver would wait for ever.
    """
    try:
        for tensor in tensors:
            tensor.share_memory_()
    except RuntimeError as error:
        return str(error)
    return ""


def _unchanged(batch: Any) -> Any:
    return batch


def _fits(size_bytes: int, device: torch.device) -> bool:
    return device.type != "cuda" or size_bytes <= torch.cuda.mem_get_info(device)[0] // 2
