"""Pictures for training: read, checked, split and batched."""

from offramp.training.data.batches import Batches
from offramp.training.data.image_set import DataError, FolderSet, ImageSet, Pictures
from offramp.training.data.splits import Splits, load_splits

__all__ = ["Batches", "DataError", "FolderSet", "ImageSet", "Pictures", "Splits", "load_splits"]
