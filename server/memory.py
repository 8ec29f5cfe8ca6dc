"""What a process of the server does about memory once, before it serves."""

from __future__ import annotations

import gc


def freeze_heap() -> None:
    """Take what is there for granted: the garbage collector looks at later objects alone.

    torch, OpenVINO and the web framework leave hundreds of thousands of objects that never go. A full collection walks
    through all of them, which stops everything for a tenth of a second, and under load there is one every second.
    """
    gc.collect()
    gc.freeze()
