"""Tells who calls the service, and holds callers to their rates."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from hashlib import sha256

from service.errors import RATE_LIMITED, UNAUTHENTICATED, ProblemError
from service.keyring import Keyring
from service.keys import KeyRecord
from service.limits import Rate, TokenBuckets, network
from service.security import ANONYMOUS, REALM, Caller
from service.sigv4 import ALGORITHM, SignatureError, SignedRequest, check_signature, read_signature

_HINT = "send one as 'Authorization: Bearer KEY' ('plumbline keys create' makes them)"
_INVALID = f'{REALM}, error="invalid_token"'

# Nobody guesses a key of 256 bits; this keeps those who try from filling the log.
_FAILURES = Rate(per_second=0.2, burst=10)
_MOST_BUCKETS = 10_000


class Access:
    """Tells who calls the service.

    Args:
        keyring: the keys that are accepted; None to ask nobody for one.
        rate: of requests that a key may make, unless it has its own, or an address where nobody is asked for a key;
            None for no limit.
    """

    def __init__(self, keyring: Keyring | None, rate: Rate | None = None) -> None:
        self.keyring = keyring
        self._rate = rate
        self._requests = TokenBuckets(_MOST_BUCKETS)
        self._failures = TokenBuckets(_MOST_BUCKETS)

    def identify(self, key: str | None, address: str) -> Caller:
        """The caller who sent a key.

        Args:
            address: where the request came from.

        Raises:
            ProblemError: there is none, or it is not accepted, or not now.
        """
        if self.keyring is None:
            return self._anonymous(address)
        if key is None:
            raise _unauthenticated(f"the request has no key; {_HINT}", REALM)
        record = self.keyring.find(key)
        if record is None:
            raise self._refused(address, f"the key is not known; {_HINT}", _INVALID)
        return self._admitted(record, address, _INVALID)

    async def identify_signer(
        self, request: SignedRequest, service: str, body: Callable[[], Awaitable[bytes]], address: str
    ) -> Caller:
        """The caller who signed a request as clients of AWS do. Reads the body only once the rest is in order.

        Args:
            service: the name that it must be signed for.
            body: reads the body.
            address: where the request came from.

        Raises:
            ProblemError: it is not signed, or by a key that is not accepted, or not now.
        """
        if self.keyring is None:
            return self._anonymous(address)
        try:
            signature = read_signature(request, service, datetime.now(UTC))
            found = self.keyring.secret(signature.access_key_id)
            if found is None:
                raise SignatureError(
                    "the access key id is not known; 'plumbline keys create NAME --kind aws' makes them"
                )
            record, secret = found
            digest = await asyncio.to_thread(sha256, await body())
            check_signature(request, signature, secret, digest.hexdigest())
        except SignatureError as error:
            raise self._refused(address, str(error), ALGORITHM) from error
        return self._admitted(record, address, ALGORITHM)

    def _anonymous(self, address: str) -> Caller:
        if self._rate is not None:
            self._count(network(address), self._rate, f"the address {address}")
        return ANONYMOUS

    def _admitted(self, record: KeyRecord, address: str, challenge: str) -> Caller:
        """The holder of a key, who has shown to hold it and so may learn why it is not accepted."""
        if (obstacle := record.obstacle()) is not None:
            raise self._refused(address, f"{obstacle}; 'plumbline keys create' makes a new one", challenge)
        if (rate := record.rate or self._rate) is not None:
            self._count(record.id, rate, f"the key {record.id} of {record.name}")
        return Caller(record.name, frozenset(record.scopes))

    def _count(self, who: str, rate: Rate, named: str) -> None:
        if wait := self._requests.take(who, rate):
            allowed = f"{rate.per_second:g} requests a second, {rate.burst} at once"
            raise _limited(f"{named} may make {allowed}", wait)

    def _refused(self, address: str, detail: str, challenge: str) -> ProblemError:
        """The problem of who sent a wrong key; others behind the same address go on with theirs."""
        if wait := self._failures.take(network(address), _FAILURES):
            return _limited(f"too many wrong keys came from {address}; a right one is accepted at any time", wait)
        return _unauthenticated(detail, challenge)


def _unauthenticated(detail: str, challenge: str) -> ProblemError:
    return ProblemError(UNAUTHENTICATED, detail, {"WWW-Authenticate": challenge})


def _limited(detail: str, wait_s: float) -> ProblemError:
    seconds = math.ceil(wait_s)
    return ProblemError(RATE_LIMITED, f"{detail}; retry in {seconds} s", {"Retry-After": str(seconds)})
