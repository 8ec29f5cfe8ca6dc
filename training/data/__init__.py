"""Pictures for training: read, checked, split and batched."""

from training.data.batches import Batches
from training.data.errors import DataError
from training.data.image_set import FolderSet, ImageSet
from training.data.parts import Pictures
from training.data.shard_set import ShardSet
from training.data.splits import Splits, load_splits

__all__ = ["Batches", "DataError", "FolderSet", "ImageSet", "Pictures", "ShardSet", "Splits", "load_splits"]
