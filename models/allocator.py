"""What the C library does with memory that was freed: kept for the next image, not given back and taken anew."""

from __future__ import annotations

import ctypes
import os

# mallopt's parameters, from glibc's malloc.h; both are limits of what is kept, in bytes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 64 * 2**20  # of one allocation; feature maps of an image are a few MiB to some tens
MOST_KEPT = 256 * 2**20  # at the end of the heap


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for a program to call when it starts.

    By default glibc gives a large block back when it is freed, and every page of the next one costs a fault: thousands
    an image, a tenth of the time of an inspection. Blocks above ``LARGEST_KEPT`` still go back, and so does what is
    free above ``MOST_KEPT``. Where the environment says how (``MALLOC_*``, ``GLIBC_TUNABLES``), or the C library is
    another, all stays as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
    mallopt(_TRIM_THRESHOLD, MOST_KEPT)
