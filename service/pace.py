"""How long work takes here, by what was measured of late."""

from __future__ import annotations

import statistics
import time

_KEPT = 16
# A measurement must not refuse work for ever: nothing would be measured again where all is refused.
_VALID_S = 60.0


class Pace:
    """Seconds that one piece of work took, the last few times; 0 where that is not known. Of any thread."""

    def __init__(self) -> None:
        self._recent: tuple[float, ...] = ()
        self._noted_at = 0.0

    def note(self, seconds: float) -> None:
        """Add a measurement."""
        self._recent = (*self._recent, seconds)[-_KEPT:]
        self._noted_at = time.monotonic()

    @property
    def typical_s(self) -> float:
        """What it should take."""
        valid = self._valid()  # once: it may end to be valid between two looks
        return statistics.median_low(valid) if valid else 0.0

    @property
    def fastest_s(self) -> float:
        """What it takes at least, by two measurements: a single one may be of a machine that had stalled."""
        valid = self._valid()
        return min(valid) if len(valid) > 1 else 0.0

    def _valid(self) -> tuple[float, ...]:
        return self._recent if time.monotonic() - self._noted_at < _VALID_S else ()
