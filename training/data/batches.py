"""Batches of uint8 pictures on a device, in an order that depends on the seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from training.data.errors import DataError
from training.data.image_set import FolderSet, ImageSet

Batch = tuple[torch.Tensor, torch.Tensor]


class Batches:
    """Walks over a set in batches of (images_BHWC uint8, labels_B int64), both on `device`.

    An ImageSet is copied to the device once, and batches are gathered there; one that would take more than half of a
    GPU's free memory stays in host memory. A FolderSet is decoded on the fly by `workers` processes (0: in this one).
    Raises DataError for a batch size below 1, negative workers, or a set too small for a single batch.
    """

    def __init__(
        self,
        dataset: ImageSet | FolderSet,
        batch_size: int,
        device: torch.device,
        shuffle: bool,
        drop_last: bool,
        workers: int = 0,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"the batch size must be at least 1; got {batch_size}")
        if workers < 0:
            raise DataError(f"the number of workers must be at least 0; got {workers}")
        least = batch_size if drop_last else 1
        if len(dataset) < least:
            raise DataError(
                f"{len(dataset)} pictures are too few for one batch of {batch_size}, at least {least} are "
                "needed; choose a smaller batch size or add pictures"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.device = device
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.workers = workers
        self._resident: Batch | None = None
        if isinstance(dataset, ImageSet):
            home = device if _fits(dataset.images_NHWC.nbytes, device) else torch.device("cpu")
            images_NHWC = torch.from_numpy(dataset.images_NHWC).to(home)
            self._resident = images_NHWC, torch.from_numpy(dataset.labels_N).to(home)

    def __len__(self) -> int:
        """Batches an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def epoch(self, seed: int | None = None) -> Iterator[Batch]:
        """One walk over the set; with shuffle the order is a pure function of `seed`, on every device.

        Raises DataError when shuffle is on and no seed is given, and while walking for a broken picture.
        """
        chunks = self._order(seed).split(self.batch_size)[: len(self)]
        if isinstance(self.dataset, FolderSet):
            return self._decode(self.dataset, chunks)
        assert self._resident is not None
        return self._gather(chunks, *self._resident)

    def _order(self, seed: int | None) -> torch.Tensor:
        if not self.shuffle:
            return torch.arange(len(self.dataset))
        if seed is None:
            raise DataError("a shuffled epoch needs a seed; give a whole number, such as the epoch's index")
        return torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(seed))

    def _gather(
        self, chunks: tuple[torch.Tensor, ...], images_NHWC: torch.Tensor, labels_N: torch.Tensor
    ) -> Iterator[Batch]:
        for chunk in chunks:
            index_B = chunk.to(images_NHWC.device, non_blocking=True)
            images_BHWC, labels_B = images_NHWC.index_select(0, index_B), labels_N.index_select(0, index_B)
            yield images_BHWC.to(self.device), labels_B.to(self.device)

    def _decode(self, pictures: FolderSet, chunks: tuple[torch.Tensor, ...]) -> Iterator[Batch]:
        loader: DataLoader[Batch | DataError] = DataLoader(
            _BatchReader(pictures),
            batch_size=None,
            sampler=[chunk.tolist() for chunk in chunks],
            num_workers=self.workers,
            collate_fn=_as_read,
            pin_memory=self.device.type == "cuda",
            # Else the loader draws from torch's global generator, and a walk would change what follows it.
            generator=torch.Generator(),
        )
        for read in loader:
            if isinstance(read, DataError):
                raise read
            images_BHWC, labels_B = read
            yield images_BHWC.to(self.device, non_blocking=True), labels_B.to(self.device, non_blocking=True)


class _BatchReader(Dataset[Batch | DataError]):
    """Decodes whole batches. A broken picture comes back as a value, since an error raised in a worker
    reaches the user wrapped in the worker's traceback."""

    def __init__(self, pictures: FolderSet) -> None:
        self.pictures = pictures

    def __getitem__(self, indices: list[int]) -> Batch | DataError:
        try:
            images, labels = zip(*(self.pictures[i] for i in indices), strict=True)
        except DataError as error:
            return error
        return torch.from_numpy(np.stack(images)), torch.tensor(labels, dtype=torch.int64)


def _as_read(read: Any) -> Any:
    return read


def _fits(size_bytes: int, device: torch.device) -> bool:
    return device.type != "cuda" or size_bytes <= torch.cuda.mem_get_info(device)[0] // 2
