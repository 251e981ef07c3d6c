"""How the threads of torch's OpenMP wait for each other: in a loop for a moment, then asleep."""

from __future__ import annotations

import os

_SPIN_COUNT = 20_000  # turns of the loop, about 0.1 ms: most operations of a network follow sooner


def wait_briefly() -> None:
    """Let a thread that has nothing to do leave its core to others soon, for a program to call before it imports torch.

    By default GNU's OpenMP has it wait in a loop for 300,000 turns, about a millisecond after every operation, in
    which a service can do nothing else on that core: read, decode, answer. Child processes
    inherit it. What ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY`` say in the environment stays; another OpenMP ignores it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPIN_COUNT))
