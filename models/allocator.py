"""What the C library does with memory that was freed: kept for the next image, not given back and taken anew."""

from __future__ import annotations

import ctypes
import os

MIB = 2**20
# mallopt's parameters, from glibc's malloc.h, with the variable that sets each and the values to try, in this order.
# Before 2.35, glibc accepts no larger limit of what is mapped than 32 MiB.
_SETTINGS = (
    ("MALLOC_MMAP_THRESHOLD_", -3, (256 * MIB, 32 * MIB)),  # a block this large goes back when it is freed
    ("MALLOC_TRIM_THRESHOLD_", -1, (1024 * MIB,)),  # more than this at the end of the heap goes back
    ("MALLOC_ARENA_MAX", -8, (1,)),  # one heap for all threads: those of other threads are of 64 MiB
)


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for a program to call when it starts.

    By default glibc gives a large block back when it is freed, and every page of the next one costs a fault: thousands
    an image, a tenth of the time of an inspection. What a variable of the environment says (``MALLOC_TRIM_THRESHOLD_``
    and so on, ``GLIBC_TUNABLES`` for all) stays, and so does a C library other than glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or "GLIBC_TUNABLES" in os.environ:
        return
    for variable, parameter, values in _SETTINGS:
        if variable not in os.environ:
            any(mallopt(parameter, value) for value in values)  # the first that is accepted
