"""What a process of the server does about its memory."""

from __future__ import annotations

import ctypes
import gc


def freeze_heap() -> None:
    """Take what is there for granted: the garbage collector looks at later objects alone.

    torch, OpenVINO and the web framework leave hundreds of thousands of objects that never go. A full collection walks
    through all of them, which stops everything for a tenth of a second, and under load there is one every second.
    """
    gc.collect()
    gc.freeze()


def return_free_memory() -> None:
    """Return free memory of the C library to the system.

    glibc keeps what was freed, for each thread apart: after large pictures that is most of a process. Other C
    libraries have no such call, and return memory by themselves.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
