"""AWS Signature Version 4, against botocore's own signer and a boto3 client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import boto3
import httpx
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from service.keyring import Keyring
from service.keys import KeysError, create_aws_key, create_key, read_keys, revoke_key
from service.sealing import Seal, find_seal, new_secret_key
from service.security import Scope
from service.settings import SettingsError
from service.sigv4 import ALGORITHM, SignatureError, SignedRequest, check_signature, read_signature
from tests.service.conftest import Serve
from tests.service.support import CATEGORY, encode, part, post_head, wait_until

SERVICE = "lookoutvision"
ID, SECRET = "PLUMB0123456789AB", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
PATH = "/2020-11-20/projects/plate/models/1/detect"
URL = f"http://line-3.plant:8000{PATH}"
BODY = b"\x89PNG and so on"


def signed(
    url: str = URL, body: bytes = BODY, method: str = "POST", headers: dict[str, str] | None = None, **options: Any
) -> SignedRequest:
    """What a client of AWS sends."""
    request = sign(url, body, method, headers or {"Content-Type": "image/png"}, **options)
    parts = urlsplit(url)
    sent = {"host": parts.netloc, **{name.lower(): value for name, value in request.headers.items()}}
    return SignedRequest(method, parts.path, parts.query, tuple(sent.items()))


def sign(
    url: str,
    body: bytes,
    method: str,
    headers: dict[str, str],
    *,
    id: str = ID,
    secret: str = SECRET,
    service: str = SERVICE,
    region: str = "eu-central-1",
) -> AWSRequest:
    request = AWSRequest(method=method, url=url, data=body, headers=headers)
    SigV4Auth(Credentials(id, secret), service, region).add_auth(request)
    return request


def changed(request: SignedRequest, name: str, value: str | None) -> SignedRequest:
    headers = tuple((given, text) for given, text in request.headers if given != name)
    added = () if value is None else ((name, value),)
    return SignedRequest(request.method, request.path, request.query, headers + added)


def check(request: SignedRequest, body: bytes = BODY, secret: str = SECRET, now: datetime | None = None) -> None:
    signature = read_signature(request, SERVICE, now or datetime.now(UTC))
    assert signature.access_key_id == ID
    check_signature(request, signature, secret, sha256(body).hexdigest())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="detect"),
        pytest.param({"body": b""}, id="empty body"),
        pytest.param({"url": f"{URL}?b=2&a=1&a=0&empty=&flag&c=%2Fx%20y"}, id="query"),
        pytest.param({"url": f"{URL}?tag=2&tag-key=1&tag.key=0"}, id="names that begin alike"),
        pytest.param({"url": "http://127.0.0.1/projects/a%20b%2Fc~-_.%C3%A9/detect"}, id="encoded path"),
        pytest.param({"headers": {"Content-Type": " image/png ;   a=b", "X-Amz-Meta": "two  spaces"}}, id="spaces"),
        pytest.param({"headers": {"X-Amz-Content-SHA256": sha256(BODY).hexdigest()}}, id="declared hash"),
        pytest.param({"method": "GET", "region": "us-east-1"}, id="other region"),
    ],
)
def test_what_botocore_signs_is_accepted(options: dict[str, Any]) -> None:
    check(signed(**options), body=options.get("body", BODY))


def test_every_part_counts() -> None:
    request = signed()
    check(request)
    signature = request.header("authorization")
    for wrong in (
        SignedRequest("PUT", request.path, request.query, request.headers),
        SignedRequest(request.method, PATH.replace("plate", "plait"), request.query, request.headers),
        SignedRequest(request.method, request.path, "a=1", request.headers),
        changed(request, "host", "evil.example"),
        changed(request, "content-type", "image/jpeg"),
        changed(request, "authorization", signature.replace("eu-central-1", "eu-central-2")),
        changed(request, "authorization", signature[:-1] + ("0" if signature[-1] != "0" else "1")),
    ):
        with pytest.raises(SignatureError, match="does not match the request"):
            check(wrong)
    with pytest.raises(SignatureError, match="does not match the request"):
        check(request, body=BODY + b"x")
    with pytest.raises(SignatureError, match="does not match the request"):
        check(request, secret=SECRET[:-1])


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("authorization", None, "is not signed"),
        ("authorization", "", "is not signed"),
        ("authorization", "Bearer x", "is none of AWS4-HMAC-SHA256"),
        ("authorization", "AWS4-HMAC-SHA256 Credential=x", "is none of"),
        ("x-amz-date", None, "X-Amz-Date is absent"),
        ("x-amz-date", "yesterday", "X-Amz-Date is absent or not"),
        ("x-amz-date", "20010101T000000Z", "another day"),
        ("x-amz-security-token", "unsigned", "leaves out x-amz-security-token"),
    ],
)
def test_not_signed_as_it_must_be(name: str, value: str | None, reason: str) -> None:
    with pytest.raises(SignatureError, match=reason):
        check(changed(signed(), name, value))


def test_unsigned_body_and_foreign_service_are_refused() -> None:
    with pytest.raises(SignatureError, match="unsigned bodies"):
        check(signed(headers={"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}))
    with pytest.raises(SignatureError, match="service 's3', not for 'lookoutvision'"):
        check(signed(service="s3"))
    request = signed()
    without_host = changed(request, "authorization", request.header("authorization").replace(";host", ""))
    with pytest.raises(SignatureError, match="leaves out host"):
        check(without_host)


@pytest.mark.parametrize("minutes", [-6, 6])
def test_clock_skew_is_told(minutes: int) -> None:
    with pytest.raises(SignatureError, match=r"clock skew: .* may differ by 5 minutes"):
        check(signed(), now=datetime.now(UTC) + timedelta(minutes=minutes))
    check(signed(), now=datetime.now(UTC) + timedelta(minutes=minutes / 2))


class TestSealing:
    """Secrets in the file of keys."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "keys.json"

    def test_secret_is_encrypted_and_opened_again(self, file: Path) -> None:
        seal = Seal(new_secret_key(), "here")
        record, secret = create_aws_key(file, "old line", (Scope.SCORE,), seal)
        create_key(file, "line-3", ())
        assert secret not in file.read_text()
        assert Keyring(file, seal).secret(record.access_key_id) == (record, secret)
        assert Keyring(file, seal).secret(record.id) is None
        assert Keyring(file, seal).find(secret) is None
        assert Keyring(file, seal).find(f"plumb_{record.id}_{64 * '0'}") is None
        assert len(read_keys(file)) == 2

    def test_a_key_made_later_is_taken_up(self, file: Path) -> None:
        seal = Seal(new_secret_key(), "here")
        create_key(file, "line-3", ())
        keyring = Keyring(file, seal)
        record, secret = create_aws_key(file, "old line", (Scope.SCORE,), seal)
        keyring._refresh()
        assert keyring.secret(record.access_key_id) == (record, secret)

    def test_other_or_no_secret_key(self, file: Path) -> None:
        create_aws_key(file, "old line", (), Seal(new_secret_key(), "here"))
        with pytest.raises(KeysError, match="PLUMBLINE_SECRET_KEY"):
            Keyring(file)
        with pytest.raises(KeysError, match="cannot be decrypted: it was not encrypted with the key in there"):
            Keyring(file, Seal(new_secret_key(), "there"))

    @pytest.mark.parametrize("secret", ["", "x", "é", "\x00"])
    def test_damaged_secret(self, file: Path, secret: str) -> None:
        seal = Seal(new_secret_key(), "here")
        record, _ = create_aws_key(file, "old line", (), seal)
        content = json.loads(file.read_text())
        content["keys"][0]["sealed_secret"] = secret
        file.write_text(json.dumps(content))
        with pytest.raises(KeysError, match=f"secret of key {record.id} in .* cannot be decrypted"):
            Keyring(file, seal)

    def test_a_key_that_cannot_be_opened_keeps_no_other_from_being_revoked(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Somebody makes a key of the kind aws, of which this service has no secret key."""
        record, key = create_key(file, "line-3", (Scope.SCORE,))
        keyring = Keyring(file)
        monkeypatch.setattr("service.keyring._REFRESH_S", 0.01)

        async def follow() -> None:
            async with keyring.followed():
                sealed, _ = create_aws_key(file, "old line", (Scope.SCORE,), Seal(new_secret_key(), "there"))
                revoke_key(file, record.id)
                async with asyncio.timeout(60):
                    while (found := keyring.find(key)) is None or found.revoked is None:
                        await asyncio.sleep(0.01)
                assert keyring.secret(sealed.access_key_id) is None

        asyncio.run(follow())
        assert any("PLUMBLINE_SECRET_KEY" in str(getattr(entry, "fields", "")) for entry in caplog.records)

    def test_secret_key_in_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "secret.key"
        with pytest.raises(SettingsError, match="cannot be read"):
            find_seal(None, path)
        path.write_text("too short\n")
        with pytest.raises(SettingsError, match=r"secret\.key is no secret key of 32 bytes"):
            find_seal(None, path)
        path.write_text(f"{new_secret_key()}\n")
        assert find_seal(None, path) is not None
        assert find_seal("", None) is None


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Any:
    file, secret_key = tmp_path_factory.mktemp("keys") / "keys.json", new_secret_key()
    seal = Seal(secret_key, "here")
    made = {
        "scorer": create_aws_key(file, "scorer", (Scope.SCORE,), seal),
        "reviewer": create_aws_key(file, "reviewer", (Scope.REVIEW,), seal),
        "former": create_aws_key(file, "former", (Scope.SCORE,), seal),
    }
    revoke_key(file, made["former"][0].id)
    return SimpleNamespace(file=file, secret_key=secret_key, **made)


@pytest.fixture(scope="module")
def url(serve: Serve, models: Path, keys: Any) -> Iterator[str]:
    with serve(models, keys=keys.file, secret_key=keys.secret_key) as client:
        yield str(client.base_url)


def connect(url: str, id: str, secret: str) -> Any:
    return boto3.client(
        SERVICE,
        endpoint_url=url,
        region_name="eu-central-1",
        aws_access_key_id=id,
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}),
    )


def detect(client: Any) -> Any:
    return client.detect_anomalies(
        ProjectName=CATEGORY, ModelVersion="1", Body=encode(part(0)), ContentType="image/png"
    )["DetectAnomalyResult"]


def test_boto3_is_let_in(url: str, keys: Any) -> None:
    record, secret = keys.scorer
    client = connect(url, record.access_key_id, secret)
    assert detect(client)["IsAnomalous"] is False
    assert [project["ProjectName"] for project in client.list_projects(MaxResults=1)["Projects"]] == [CATEGORY]
    assert client.describe_model(ProjectName=CATEGORY, ModelVersion="1")["ModelDescription"]["Status"] == "HOSTED"


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ("wrong secret", "does not match the request"),
        ("unknown id", "the access key id is not known"),
        ("former", "was revoked"),
        ("reviewer", "lacks the scope score"),
    ],
)
def test_boto3_is_refused(url: str, keys: Any, who: str, reason: str) -> None:
    record, secret = keys.scorer
    id, secret = {
        "wrong secret": (record.access_key_id, secret[:-1]),
        "unknown id": ("PLUMB000000000000", secret),
        "former": (keys.former[0].access_key_id, keys.former[1]),
        "reviewer": (keys.reviewer[0].access_key_id, keys.reviewer[1]),
    }[who]
    with pytest.raises(ClientError, match=reason) as caught:
        detect(connect(url, id, secret))
    assert caught.value.response["Error"]["Code"] == "AccessDeniedException"


def test_who_would_change_what_is_in_memory_is_audited(url: str, keys: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Let in or not, as by the other protocols."""
    caplog.set_level("INFO", "plumbline")
    record, secret = keys.scorer
    for given in (secret, secret[:-1]):
        client = connect(url, record.access_key_id, given)
        for change in (client.start_model, client.stop_model):
            more = {"MinInferenceUnits": 1} if change == client.start_model else {}
            with pytest.raises(ClientError, match=r"lacks the scope admin|does not match"):
                change(ProjectName=CATEGORY, ModelVersion="1", **more)
    detect(connect(url, record.access_key_id, secret))

    def told(logger: str) -> list[dict[str, Any]]:
        return [vars(entry)["fields"] for entry in caplog.records if entry.name == logger]

    wait_until(lambda: len(told("plumbline.requests")) == 5)
    audited = [(fields["path"].rpartition("/")[2], fields.get("caller")) for fields in told("plumbline.audit")]
    assert audited == [("start", "scorer"), ("stop", "scorer"), ("start", None), ("stop", None)]


def test_unsigned_is_refused_before_its_body_is_read(url: str) -> None:
    for headers in ({}, {"Authorization": "Bearer x"}):
        response = httpx.post(f"{url}{PATH}", content=BODY, headers=headers, timeout=60)
        assert response.status_code == 403
        assert response.headers["x-amzn-errortype"] == "AccessDeniedException"
        assert "sign" in response.json()["Message"] or ALGORITHM in response.json()["Message"]
    with httpx.Client(base_url=url) as client:
        assert post_head(client, PATH, 1000).startswith("HTTP/1.1 403 ")
