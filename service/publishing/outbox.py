"""What waits to be told to one receiver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from models.prediction import Verdict


@dataclass(frozen=True)
class Message:
    """The result of one inspection, as JSON."""

    id: UUID
    category: str
    verdict: Verdict
    payload: bytes


class Outbox:
    """Messages in the order they came, kept in memory; of more than it may hold, the oldest are lost.

    A receiver that is away must not stop the line, nor take the memory that scoring needs. What was inspected is in the
    records all the same.

    Args:
        max_bytes: of the payloads that wait.
        lost: called for each message that is lost.
    """

    def __init__(self, max_bytes: int, lost: Callable[[], None]) -> None:
        self._max_bytes = max_bytes
        self._lost = lost
        self._bytes = 0
        self._queue: asyncio.Queue[Message] = asyncio.Queue()

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, message: Message) -> None:
        """Add a message."""
        self._queue.put_nowait(message)
        self._bytes += len(message.payload)
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._queue.get_nowait().payload)
            self.done()
            self._lost()

    async def take(self) -> Message:
        """Wait for the next message; ``done`` says when it is no longer under way."""
        message = await self._queue.get()
        self._bytes -= len(message.payload)
        return message

    def done(self) -> None:
        """A message that was taken needs no more work."""
        self._queue.task_done()

    async def drained(self) -> None:
        """Wait until no message waits or is under way."""
        await self._queue.join()
