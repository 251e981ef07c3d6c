"""Which failed calls are tried again, and when."""

from __future__ import annotations

import random
import ssl
import time
from dataclasses import dataclass

from .errors import ConnectionFailed, DeadlineExceeded, PlumblineError, ProblemError


@dataclass(frozen=True)
class Retries:
    """Tries again what may be, after a wait that doubles and is drawn at random: not all clients come back at once.

    - 429 and 503 with Retry-After: the service refused and did nothing. Waits at least as long as it says.
    - No connection could be made: nothing was sent.
    - 502 and 504 of a proxy and broken connections, only where a second call does no harm: all but scoring, which
      makes a record of every image.

    Args:
        attempts: most tries of one call, the first included; 1 never tries again.
        first_s: longest wait before the second try.
        longest_s: limit of the doubling.
    """

    attempts: int = 10
    first_s: float = 0.2
    longest_s: float = 5.0


class Attempts:
    """The tries of one call.

    Args:
        timeout_s: for all of them together, the waits included.
    """

    def __init__(self, retries: Retries, timeout_s: float) -> None:
        self._retries = retries
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._made = 0
        self._last: PlumblineError | None = None

    def begin(self) -> float:
        """The seconds that are left for one try.

        Raises:
            DeadlineExceeded: none are.
        """
        self._made += 1
        if (left := self._deadline - time.monotonic()) <= 0:
            raise DeadlineExceeded(f"no answer came within {self._timeout_s:g} s") from self._last
        return left

    def wait_after(self, error: PlumblineError, *, repeatable: bool) -> float:
        """How many seconds to wait before the next try.

        Args:
            repeatable: whether a call that was perhaps already done may be done again.

        Raises:
            PlumblineError: ``error`` itself, where there is to be no other try or it would come too late.
        """
        self._last = error
        retries = self._retries
        if self._made >= retries.attempts or not _may_be_repeated(error, repeatable):
            raise error
        wait = random.uniform(0, min(retries.longest_s, retries.first_s * 2 ** (self._made - 1)))
        if isinstance(error, ProblemError):
            wait += error.retry_after_s or 0
        if time.monotonic() + wait >= self._deadline:
            raise error
        return wait


def _may_be_repeated(error: PlumblineError, repeatable: bool) -> bool:
    if isinstance(error, ConnectionFailed):
        return (repeatable or not error.sent) and not _is_about_tls(error)
    if isinstance(error, ProblemError):
        refused = error.status in (429, 503) and error.retry_after_s is not None
        of_a_proxy = error.status in (502, 504) and error.kind is None
        return refused or (of_a_proxy and repeatable)
    return False


def _is_about_tls(error: BaseException) -> bool:
    """A certificate that is not trusted will not be at the next try."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
