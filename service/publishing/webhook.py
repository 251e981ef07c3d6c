"""Results to a webhook: an HTTP POST each, signed, and tried again for a while where that may help."""

from __future__ import annotations

import asyncio
import hmac
import random
import time
from dataclasses import dataclass
from importlib import metadata

import httpx

from models.prediction import Verdict
from service.publishing.outbox import Message
from service.publishing.outlet import Outlet, log
from service.settings import Settings, SettingsError
from service.telemetry import Telemetry

SIGNATURE_HEADER = "X-Plumbline-Signature"
ID_HEADER = "X-Plumbline-Id"

_LANES = 4  # results under way to one receiver: one that it chokes on does not keep all others waiting
_TIMEOUT_S = 10.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 60.0
_RETRIED = {408, 425, 429}  # and 5xx
_MOST_ANSWER_BYTES = 65_536


@dataclass(frozen=True)
class Target:
    """A receiver's address, and the verdicts that it is to be told of."""

    url: httpx.URL
    verdicts: frozenset[Verdict]


class WebhookOutlet(Outlet):
    """Posts each result to a URL, at least once; redirects are not followed.

    Args:
        target: as ``target_of`` reads it.

    Raises:
        SettingsError: the target is wrong, or there is no secret to sign with.
    """

    def __init__(self, name: str, target: str, settings: Settings, telemetry: Telemetry) -> None:
        super().__init__(name, settings, telemetry)
        if settings.webhook_secret is None:
            raise SettingsError(
                "PLUMBLINE_WEBHOOKS (--webhooks) is set and PLUMBLINE_WEBHOOK_SECRET (--webhook-secret) is not: "
                "results are signed with it; set it here and at the receiver"
            )
        self._target = target_of(target)
        self._secret = settings.webhook_secret.get_secret_value().encode()
        self._give_up_s = settings.webhook_give_up_s

    def wants(self, verdict: Verdict) -> bool:
        """Whether the receiver's address names the verdict, or none."""
        return verdict in self._target.verdicts

    async def run(self) -> None:
        """Post what waits."""
        headers = {"Content-Type": "application/json", "User-Agent": f"plumbline/{metadata.version('plumbline')}"}
        async with (
            httpx.AsyncClient(headers=headers, timeout=_TIMEOUT_S, follow_redirects=False) as client,
            asyncio.TaskGroup() as lanes,
        ):
            for _ in range(_LANES):
                lanes.create_task(self._lane(client))

    async def _lane(self, client: httpx.AsyncClient) -> None:
        while True:
            message = await self.outbox.take()
            reason: str | None
            try:
                reason = await self._deliver(client, message)
            except Exception as error:  # such as a host name that cannot be one
                reason = repr(error)
            self.outbox.done()
            if reason is None:
                self.count("delivered")
            else:
                self.count("refused")
                log.error("result refused", extra={"fields": {"to": self.name, "id": message.id, "reason": reason}})

    async def _deliver(self, client: httpx.AsyncClient, message: Message) -> str | None:
        """Try until it is received or there is no use; gives the reason why not."""
        deadline, delay = time.monotonic() + self._give_up_s, _FIRST_DELAY_S
        while True:
            try:
                status = await self._post(client, message)
            except httpx.HTTPError as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                if 200 <= status < 300:
                    return None
                reason = f"status {status}"
                if status < 500 and status not in _RETRIED:
                    return reason
            pause = delay * random.uniform(0.5, 1)
            if time.monotonic() + pause > deadline:
                return f"{reason}, for {self._give_up_s:g} s"
            self.count("retried")
            await asyncio.sleep(pause)
            delay = min(2 * delay, _LONGEST_DELAY_S)

    async def _post(self, client: httpx.AsyncClient, message: Message) -> int:
        headers = {
            ID_HEADER: str(message.id),
            SIGNATURE_HEADER: signature(self._secret, int(time.time()), message.payload),
        }
        async with client.stream("POST", self._target.url, content=message.payload, headers=headers) as response:
            received = 0
            async for chunk in response.aiter_raw():  # to its end, so that the connection can be used again
                received += len(chunk)
                if received > _MOST_ANSWER_BYTES:
                    break
            return response.status_code


def signature(secret: bytes, timestamp: int, payload: bytes) -> str:
    """The value of the signature's header: HMAC-SHA256 over the time of sending and the body."""
    return f"t={timestamp},v1={hmac.digest(secret, b'%d.%b' % (timestamp, payload), 'sha256').hex()}"


def target_of(text: str) -> Target:
    """Read a receiver: a URL, which may end in # and the verdicts it is to be told of with + between.

    Raises:
        SettingsError: it is not of that form; quotes no more than the verdicts, because a URL may hold a password.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise SettingsError("PLUMBLINE_WEBHOOKS (--webhooks): accepted are http:// and https:// URLs, commas between")
    names = url.fragment.split("+") if url.fragment else list(Verdict)
    if unknown := set(names) - set(Verdict):
        raise SettingsError(
            f"PLUMBLINE_WEBHOOKS (--webhooks): {', '.join(sorted(unknown))!r} is no verdict; after # come some of "
            f"{', '.join(Verdict)}, with + between"
        )
    return Target(url.copy_with(fragment=None), frozenset(map(Verdict, names)))
