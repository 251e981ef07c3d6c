"""The images and bytes that the service holds for requests that it has not answered, and their bound."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray


class TooMuchHeld(Exception):
    """As many bytes are held as may be; the message says how many that is."""


class Backlog:
    """Counts on the event loop what the service holds in memory for its requests.

    Args:
        max_bytes: of uploads and decoded images together; one image may be larger where nothing else is held.

    Attributes:
        preparing: images that are being decoded, or wait for it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._freed: deque[int] = deque()  # an array may end on any thread
        self.preparing = 0

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        while self._freed:
            self._bytes -= self._freed.popleft()
        return self._bytes

    def check(self) -> None:
        """Refuse where nothing more may be held.

        Raises:
            TooMuchHeld: so it is.
        """
        if self.bytes >= self._max_bytes:
            raise TooMuchHeld(f"images of {self._max_bytes} bytes are held, no more may")

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that counts bytes as held until the block ends; it raises TooMuchHeld."""
        held = 0

        def add(count: int) -> None:
            nonlocal held
            self._take(count)
            held += count

        try:
            yield add
        finally:
            self._bytes -= held

    def keep(self, array: NDArray[Any]) -> None:
        """Count an array for as long as anybody has it.

        Raises:
            TooMuchHeld: and it is not counted.
        """
        self._take(array.nbytes)
        weakref.finalize(array, self._freed.append, array.nbytes).atexit = False

    @contextmanager
    def preparation(self) -> Iterator[None]:
        """Count an image that is being decoded."""
        self.preparing += 1
        try:
            yield
        finally:
            self.preparing -= 1

    def _take(self, count: int) -> None:
        if self.bytes and self.bytes + count > self._max_bytes:
            self.check()
            raise TooMuchHeld(f"with this image more than {self._max_bytes} bytes would be held")
        self._bytes += count
