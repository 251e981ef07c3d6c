"""What becomes of an inspection besides its answer."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from service.inspection import Inspection


class Sink(AbstractAsyncContextManager[Any], Protocol):
    """Takes every inspection; entered when the service starts, left when the last request was answered."""

    async def take(self, inspection: Inspection) -> None:
        """Called after the score and before the answer, so it must be quick: real work belongs in a task of its own.

        Raises:
            ProblemError: the answer must not be given.
        """
