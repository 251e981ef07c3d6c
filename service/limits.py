"""How often somebody may do something: token buckets, in memory and bounded."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PerSecond = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Burst = Annotated[int, Field(ge=1)]


class Rate(BaseModel):
    """So many a second on average, ``burst`` of them at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_second: PerSecond
    burst: Burst


class TokenBuckets:
    """A bucket for each of those who were seen last; it begins full and fills up again.

    Args:
        most: buckets that are kept. Whoever was not seen for longest is forgotten, so begins again with a full one.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when there were so many

    def take(self, who: str, rate: Rate, now: float | None = None) -> float:
        """Take a token.

        Args:
            now: seconds of a clock that does not go back; None for the system's.

        Returns:
            0 if there was one, else the seconds until there is.
        """
        now = time.monotonic() if now is None else now
        tokens, since = self._buckets.pop(who, (float(rate.burst), now))
        tokens = min(rate.burst, tokens + (now - since) * rate.per_second)
        wait = max(0.0, (1 - tokens) / rate.per_second)
        self._buckets[who] = (tokens if wait else tokens - 1, now)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return wait


def network(address: str) -> str:
    """Who an address belongs to: itself, or the /64 of an IPv6 address, since its holder has all of that."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False))
