"""Results told by MQTT, to a real broker that also goes away and comes back."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service.publishing.mqtt import Broker, broker_of
from service.settings import SettingsError, load_settings
from tests.service.conftest import Serve
from tests.service.publishing.mosquitto import Mosquitto, subscribed
from tests.service.support import CATEGORY, answer_of, encode, part, process, samples, wait_until

TOPIC = f"plumbline/{CATEGORY}/inspections"
STATUS = "plumbline/status"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    broker.start()
    yield broker
    broker.kill()


def score(client: httpx.Client, **query: str) -> dict[str, Any]:
    files = {"image": encode(part(101))}
    return answer_of(client.post(f"/v1/categories/{CATEGORY}/score", files=files, params=query))


def connected(client: httpx.Client) -> list[float]:
    return samples(client, "plumbline_mqtt_connected")


def waiting(client: httpx.Client) -> list[float]:
    return samples(client, "plumbline_results_waiting", to="mqtt")


def published(client: httpx.Client, outcome: str) -> list[float]:
    return samples(client, "plumbline_results_published_total", outcome=outcome, to="mqtt")


def test_results_arrive_as_they_were_answered(serve: Serve, models: Path, broker: Mosquitto) -> None:
    with subscribed(broker) as subscriber:
        with serve(models, mqtt_url=f"mqtt://127.0.0.1:{broker.port}") as client:
            assert subscriber.next() == (STATUS, b"online")
            answer = score(client, part="P 1", lot="L 7")
            topic, payload = subscriber.next()
            result = json.loads(payload)
            assert topic == TOPIC
            assert datetime.fromisoformat(result.pop("time")).tzinfo is not None
            assert result == answer | {"part": "P 1", "lot": "L 7"}
            answer = score(client)
            assert json.loads(subscriber.next()[1]).keys() == answer.keys() | {"time"}
            wait_until(lambda: published(client, "delivered") == [2])
            assert connected(client) == [1]
        assert subscriber.next() == (STATUS, b"offline")
    with subscribed(broker) as subscriber:  # who comes later finds it retained
        assert subscriber.next() == (STATUS, b"offline")


def test_prefix(serve: Serve, models: Path, broker: Mosquitto) -> None:
    with (
        subscribed(broker) as subscriber,
        serve(models, mqtt_url=f"mqtt://127.0.0.1:{broker.port}", mqtt_prefix="hall/3") as client,
    ):
        assert subscriber.next() == ("hall/3/status", b"online")
        score(client)
        assert subscriber.next()[0] == f"hall/3/{CATEGORY}/inspections"


def test_broker_goes_and_comes_back(serve: Serve, models: Path, broker: Mosquitto) -> None:
    with serve(models, mqtt_url=f"mqtt://127.0.0.1:{broker.port}") as client:
        wait_until(lambda: connected(client) == [1])
        broker.kill()
        wait_until(lambda: connected(client) == [0])
        ids = [score(client)["id"] for _ in range(3)]
        assert sum(published(client, "delivered")) == 0
        assert waiting(client) == [3]
        broker.start()
        with subscribed(broker) as subscriber:
            seen = [subscriber.next() for _ in range(4)]
            topics = [topic for topic, _ in seen]
            assert STATUS in topics
            assert [json.loads(payload)["id"] for topic, payload in seen if topic == TOPIC] == ids
        wait_until(lambda: waiting(client) == [0])


def test_a_broker_that_was_never_there_stops_nothing(serve: Serve, models: Path, tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    with serve(models, mqtt_url=f"mqtt://127.0.0.1:{broker.port}", outbox_bytes=5000) as client:
        ids = [score(client)["id"] for _ in range(20)]
        assert client.get("/readyz").status_code == 200
        [lost] = published(client, "lost")
        assert 0 < lost < 20
        broker.start()
        try:
            wait_until(lambda: waiting(client) == [0])
            with subscribed(broker) as subscriber:
                assert subscriber.next() == (STATUS, b"online")
                newest = score(client)["id"]
                assert json.loads(subscriber.next()[1])["id"] == newest
        finally:
            broker.kill()
        assert newest not in ids


def test_an_address_that_cannot_be_asked(serve: Serve, models: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serve(models, mqtt_url=f"mqtt://{'a' * 70}.example") as client:
        wait_until(lambda: "mqtt broker not reached" in caplog.text)
        score(client)
        assert waiting(client) == [1]


def test_last_will(models: Path, broker: Mosquitto, tmp_path: Path) -> None:
    """Who is killed says nothing; the broker does."""
    mqtt_url = f"mqtt://127.0.0.1:{broker.port}"
    with subscribed(broker) as subscriber, process(models, tmp_path / "log", mqtt_url=mqtt_url) as (service, _):
        assert subscriber.next() == (STATUS, b"online")
        service.kill()
        assert subscriber.next() == (STATUS, b"offline")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and a certificate of 127.0.0.1 that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = tmp_path_factory.mktemp("certificate") / "broker.pem"
    file.write_bytes(made.public_bytes(pem) + private)
    return file


class TestSecure:
    USER = ("line 3", "p@ss:w/ord")

    @pytest.fixture
    def broker(self, tmp_path: Path, certificate: Path) -> Iterator[Mosquitto]:
        broker = Mosquitto(tmp_path, self.USER, certificate)
        broker.start()
        yield broker
        broker.kill()

    def test_user_and_password_over_tls(
        self, serve: Serve, models: Path, broker: Mosquitto, certificate: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        tls = ssl.create_default_context(cafile=certificate)
        url = f"mqtts://line%203:p%40ss%3Aw%2Ford@127.0.0.1:{broker.port}"
        with (
            subscribed(broker, self.USER, tls) as subscriber,
            serve(models, mqtt_url=url, mqtt_ca=certificate) as client,
        ):
            assert subscriber.next() == (STATUS, b"online")
            answer = score(client)
            assert json.loads(subscriber.next()[1])["id"] == answer["id"]
        assert self.USER[1] not in caplog.text

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho drops the refused TLS socket
    @pytest.mark.parametrize(("user", "trusted"), [("line%203:wrong", True), ("line%203:p%40ss%3Aw%2Ford", False)])
    def test_who_is_not_let_in_or_not_trusted(
        self,
        serve: Serve,
        models: Path,
        broker: Mosquitto,
        certificate: Path,
        caplog: pytest.LogCaptureFixture,
        user: str,
        trusted: bool,
    ) -> None:
        url = f"mqtts://{user}@127.0.0.1:{broker.port}"
        with serve(models, mqtt_url=url, mqtt_ca=certificate if trusted else None) as client:
            wait_until(lambda: "mqtt broker not reached" in caplog.text)
            score(client)
            assert connected(client) == [0]
            assert waiting(client) == [1]
        assert "results not told" in caplog.text


class TestSettings:
    def test_address(self) -> None:
        assert broker_of("mqtt://broker") == Broker("broker", 1883, False)
        assert broker_of("mqtts://a%20b:c%40@[::1]:99/") == Broker("::1", 99, True, "a b", "c@")
        assert "c@" not in repr(broker_of("mqtts://a:c%40@host"))

    @pytest.mark.parametrize(
        "url",
        ["broker:1883", "http://broker", "mqtt://", "mqtt://:9", "mqtt://a:b:c", "mqtt://s3cret@a/x", "mqtt://[::1"],
    )
    def test_no_address(self, serve: Serve, models: Path, url: str) -> None:
        with pytest.raises(SettingsError, match="PLUMBLINE_MQTT_URL") as error, serve(models, mqtt_url=url):
            pass
        assert "s3cret" not in str(error.value)

    @pytest.mark.parametrize("prefix", ["", "/a", "a/", "a//b", "a/#", "+/a", "$SYS/a"])
    def test_no_prefix(self, models: Path, prefix: str) -> None:
        with pytest.raises(SettingsError, match="PLUMBLINE_MQTT_PREFIX"):
            load_settings(models=models, mqtt_prefix=prefix)

    def test_no_certificates(self, serve: Serve, models: Path, tmp_path: Path) -> None:
        file = tmp_path / "ca.pem"
        file.write_text("none")
        for path in (file, tmp_path / "absent.pem"):
            with (
                pytest.raises(SettingsError, match="PLUMBLINE_MQTT_CA"),
                serve(models, mqtt_url="mqtts://127.0.0.1", mqtt_ca=path),
            ):
                pass
