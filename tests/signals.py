"""Signals that come while another is handled."""

from __future__ import annotations

import sys
from collections.abc import Callable


def called_again(handler: Callable[[], None], at: int) -> int:
    """Call a handler, and once more from within it, as a second signal would.

    Args:
        at: the number, from 1, of the call or return within the handler at which the second comes.

    Returns:
        The number to try next; 0 where the handler has no such point.
    """
    seen = 0

    def profile(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            sys.setprofile(None)
            handler()

    sys.setprofile(profile)
    try:
        handler()
    finally:
        sys.setprofile(None)
    return at + 1 if seen == at else 0
