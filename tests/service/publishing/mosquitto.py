"""A real Mosquitto broker in a temporary folder, on a free port."""

from __future__ import annotations

import os
import queue
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.service.support import wait_until

_PROGRAM = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
_PASSWORDS = shutil.which("mosquitto_passwd")


class Mosquitto:
    """A broker that can be killed and started again on the same port; it forgets everything in between.

    Args:
        folder: for its configuration.
        user: name and password to ask for; anybody may connect where it is None.
        certificate: file of a certificate and its key, for TLS.
    """

    def __init__(self, folder: Path, user: tuple[str, str] | None = None, certificate: Path | None = None) -> None:
        if _PROGRAM is None:
            pytest.skip("Mosquitto is not installed: apt-get install mosquitto")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        lines = [f"listener {self.port} 127.0.0.1", f"allow_anonymous {str(user is None).lower()}", "persistence false"]
        if os.geteuid() == 0:
            lines.append("user root")  # else it becomes one that cannot read the folder
        if user is not None:
            assert _PASSWORDS is not None
            subprocess.run([_PASSWORDS, "-b", "-c", folder / "passwords", *user], check=True, capture_output=True)
            lines.append(f"password_file {folder / 'passwords'}")
        if certificate is not None:
            lines += [f"certfile {certificate}", f"keyfile {certificate}"]
        self._configuration = folder / "mosquitto.conf"
        self._configuration.write_text("\n".join(lines) + "\n")
        self._log = folder / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        assert _PROGRAM is not None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([_PROGRAM, "-c", self._configuration], stdout=log, stderr=log)
        wait_until(self._listens)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Subscriber:
    """What arrives on all topics of a broker."""

    def __init__(self) -> None:
        self.messages: queue.Queue[paho.MQTTMessage] = queue.Queue()

    def next(self) -> tuple[str, bytes]:
        """The next message: topic and payload."""
        message = self.messages.get(timeout=120)
        return message.topic, bytes(message.payload)


@contextmanager
def subscribed(
    broker: Mosquitto, user: tuple[str, str] | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[Subscriber]:
    """Subscribe to all topics; retained messages come first."""
    subscriber = Subscriber()
    subscriptions: queue.Queue[None] = queue.Queue()
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda client, data, message: subscriber.messages.put(message)
    client.on_subscribe = lambda *arguments: subscriptions.put(None)
    if user is not None:
        client.username_pw_set(*user)
    if tls is not None:
        client.tls_set_context(tls)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    try:
        wait_until(client.is_connected)
        client.subscribe("#", qos=1)
        subscriptions.get(timeout=120)
        yield subscriber
    finally:
        client.disconnect()
        client.loop_stop()
