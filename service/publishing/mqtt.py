"""Results to an MQTT broker, and a retained topic that says whether the service is there."""

from __future__ import annotations

import asyncio
import random
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import aiomqtt

from service.publishing.outbox import Message
from service.publishing.outlet import Outlet, log
from service.settings import Settings, SettingsError
from service.telemetry import Telemetry

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_AT_LEAST_ONCE = 1
_KEEPALIVE_S = 30  # a broker behind a dead cable is noticed within one and a half times that
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 30.0
_FAREWELL_S = 2.0


@dataclass(frozen=True)
class Broker:
    """Where an MQTT broker is, and as whom to connect."""

    host: str
    port: int
    encrypted: bool
    username: str | None = None
    password: str | None = field(default=None, repr=False)


class MqttOutlet(Outlet):
    """Publishes each result to PREFIX/CATEGORY/inspections, at least once and in order; PREFIX/status is retained.

    Raises:
        SettingsError: the broker's address, the prefix or the certificates are wrong.
    """

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        super().__init__("mqtt", settings, telemetry)
        assert settings.mqtt_url is not None
        self._broker = broker_of(settings.mqtt_url.get_secret_value())
        self._tls = _tls_context(settings) if self._broker.encrypted else None
        self._prefix = settings.mqtt_prefix
        self._status = f"{self._prefix}/status"
        self._connected = telemetry.mqtt_connected
        self._connected.set(0)
        self._message: Message | None = None  # under way; kept when the connection breaks
        self._delay_s = _FIRST_DELAY_S
        self._away = False

    async def run(self) -> None:
        """Connect, and again whenever the connection breaks."""
        while True:
            try:
                await self._connect()
            except* Exception as errors:
                self._connected.set(0)
                if not self._away:
                    self._away = True
                    fields = {"to": self._where, "reason": repr(errors.exceptions[0])}
                    expected = all(isinstance(error, aiomqtt.MqttError) for error in errors.exceptions)
                    log.error("mqtt broker not reached", extra={"fields": fields}, exc_info=not expected)
            await asyncio.sleep(self._delay_s * random.uniform(0.5, 1))  # services that lost it together come apart
            self._delay_s = min(2 * self._delay_s, _LONGEST_DELAY_S)

    async def _connect(self) -> None:
        broker = self._broker
        async with aiomqtt.Client(
            broker.host,
            broker.port,
            username=broker.username,
            password=broker.password,
            tls_context=self._tls,
            keepalive=_KEEPALIVE_S,
            will=aiomqtt.Will(self._status, "offline", _AT_LEAST_ONCE, retain=True),
        ) as client:
            await client.publish(self._status, "online", _AT_LEAST_ONCE, retain=True)
            self._connected.set(1)
            self._delay_s, self._away = _FIRST_DELAY_S, False
            log.info("mqtt broker reached", extra={"fields": {"to": self._where}})
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_watch(client))
                    group.create_task(self._publish(client))
            except asyncio.CancelledError:
                self._connected.set(0)
                with suppress(aiomqtt.MqttError):  # the last will is for those who leave without a word
                    await client.publish(self._status, "offline", _AT_LEAST_ONCE, retain=True, timeout=_FAREWELL_S)
                raise

    async def _publish(self, client: aiomqtt.Client) -> None:
        while True:
            if self._message is None:
                self._message = await self.outbox.take()
            topic = f"{self._prefix}/{self._message.category}/inspections"
            await client.publish(topic, self._message.payload, _AT_LEAST_ONCE)  # until the broker has acknowledged it
            self._message = None
            self.outbox.done()
            self.count("delivered")

    @property
    def _where(self) -> str:
        return f"{self._broker.host}:{self._broker.port}"


async def _watch(client: aiomqtt.Client) -> None:
    """Raise when the connection breaks, also while there is nothing to publish."""
    async for _ in client.messages:
        pass


def broker_of(url: str) -> Broker:
    """Read the address of a broker.

    Raises:
        SettingsError: it is not of the form mqtt[s]://[USER:PASSWORD@]HOST[:PORT]; quotes no password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise SettingsError(
            "PLUMBLINE_MQTT_URL (--mqtt-url) is no address of a broker; accepted is mqtt://USER:PASSWORD@HOST:PORT, "
            "mqtts:// for TLS; what is not a letter or digit in user or password is written as %XX"
        )
    username, password = (None if text is None else unquote(text) for text in (parts.username, parts.password))
    return Broker(parts.hostname, port or _PORTS[parts.scheme], parts.scheme == "mqtts", username, password)


def _tls_context(settings: Settings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.mqtt_ca)
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(
            f"PLUMBLINE_MQTT_CA (--mqtt-ca): {str(settings.mqtt_ca)!r} is no readable file of PEM certificates"
        ) from error
