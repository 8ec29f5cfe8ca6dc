"""Batch sizes that fast runners prepare for; a batch between two of them is filled up to the larger."""

from __future__ import annotations


def buckets(max_batch_size: int) -> tuple[int, ...]:
    """The batch sizes that a stage is prepared for: 1, 2, 4, 8, 12, 16, 24, 32, 48, … max_batch_size.

    Powers of two, and from 8 on what lies between them, so that at most a third of a batch is padding where rows cost
    time; below 8 a step hardly notices them. Raises ValueError for a size below 1.
    """
    if max_batch_size < 1:
        raise ValueError(f"max_batch_size {max_batch_size} is out of range: a step needs at least 1 sample")
    powers = [2**exponent for exponent in range(max_batch_size.bit_length())]
    between = [power * 3 // 2 for power in powers if power >= 8]
    return tuple(sorted({size for size in (*powers, *between) if size < max_batch_size} | {max_batch_size}))
