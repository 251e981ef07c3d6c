"""The file of keys, and a running service that takes up what changes in it."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from service.keyring import Keyring
from service.keys import KeysError, create_key, read_keys, revoke_key
from service.limits import Rate
from service.security import Scope
from tests.service.conftest import Serve
from tests.service.support import wait_until


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_key_is_not_in_the_file_and_only_the_owner_reads_it(file: Path) -> None:
    record, key = create_key(file, "line-3", (Scope.SCORE, Scope.REVIEW))
    secret = key.split("_")[2]
    assert len(bytes.fromhex(secret)) == 32
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_keys(file) == (record,)
    found = Keyring(file).find(key)
    assert found == record
    assert found.scopes == (Scope.REVIEW, Scope.SCORE)


def test_other_keys_are_not_found(file: Path) -> None:
    record, key = create_key(file, "line-3", (Scope.SCORE,))
    _, other = create_key(file, "line-4", (Scope.SCORE,))
    prefix, id, secret = key.split("_")
    wrong = secret[:-1] + ("0" if secret[-1] != "0" else "1")
    keyring = Keyring(file)
    for candidate in (
        f"{prefix}_{id}_{wrong}",
        f"{prefix}_{id}_{other.split('_')[2]}",
        f"{prefix}_{'0' * 12}_{secret}",
        f"{prefix}_{id}_{secret.upper()}",
        f"{key}0",
        f" {key}",
        key[:-1],
        secret,
        "",
        "ü",
        record.sha256,
    ):
        assert keyring.find(candidate) is None
    assert keyring.find(key) is not None


def test_revoked_and_expired(file: Path) -> None:
    record, _ = create_key(file, "line-3", ())
    assert record.obstacle() is None
    assert "was revoked at" in (revoke_key(file, record.id).obstacle() or "")
    expired, _ = create_key(file, "line-4", (), timedelta(0))
    assert "expired at" in (expired.obstacle() or "")
    lasting, _ = create_key(file, "line-4", (), timedelta(days=1))
    assert lasting.obstacle() is None
    with pytest.raises(KeysError, match=r"revoked at .* already"):
        revoke_key(file, record.id)
    with pytest.raises(KeysError, match="no key with the id 'nobody'"):
        revoke_key(file, "nobody")


@pytest.mark.parametrize("name", ["", " x", "a" * 65, "line\n3", "../x", "é"])
def test_name_that_is_none(file: Path, name: str) -> None:
    with pytest.raises(KeysError, match="is no name for a key"):
        create_key(file, name, ())
    assert not file.exists()


def test_changes_at_the_same_time_are_all_kept(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = {record.id for record, _ in pool.map(lambda number: create_key(file, f"{number}", ()), range(40))}
    assert {record.id for record in read_keys(file)} == made
    assert len(made) == 40
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_who_owns_the_file_does_after_root_has_changed_it(file: Path) -> None:
    create_key(file, "line-3", ())
    os.chown(file, 4321, 1234)
    record, _ = create_key(file, "line-4", ())
    revoke_key(file, record.id)
    status = file.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (4321, 1234, 0o600)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "EOF"),
        ("[]", "object"),
        ('{"format": 2}', "format"),
        ('{"keys": [{"id": "x"}]}', r"keys\.0.*kind"),
        ('{"keys": [{"kind": "bearer", "id": "x"}]}', r"keys\.0\.bearer\.id"),
        ('{"format": 1, "secret": 1}', "secret"),
    ],
)
def test_file_that_is_none(file: Path, content: str, reason: str) -> None:
    file.write_text(content)
    with pytest.raises(KeysError, match=f"is no keys file: (?!: ).*{reason}"):
        read_keys(file)
    with pytest.raises(KeysError, match="is no keys file"):
        create_key(file, "line-3", ())
    assert file.read_text() == content


def test_file_without_keys_or_absent(file: Path) -> None:
    with pytest.raises(KeysError, match=r"there is no keys file .*plumbline keys create"):
        Keyring(file)
    file.write_text('{"format": 1, "keys": []}')
    with pytest.raises(KeysError, match=r"holds no key.*plumbline keys create"):
        Keyring(file)
    with pytest.raises(KeysError, match="cannot be written"):
        create_key(file.parent / "absent" / "keys.json", "line-3", ())


def test_no_failure_keeps_a_service_from_later_changes(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as a thread that cannot be started: a key that is revoked then must not be accepted for ever."""
    record, key = create_key(file, "line-3", ())
    keyring = Keyring(file)
    monkeypatch.setattr("service.keyring._REFRESH_S", 0.01)
    monkeypatch.setattr(keyring, "_refresh", fail_first(keyring._refresh))

    async def follow() -> None:
        async with keyring.followed():
            revoke_key(file, record.id)
            async with asyncio.timeout(60):
                while (found := keyring.find(key)) is None or found.revoked is None:
                    await asyncio.sleep(0.01)

    asyncio.run(follow())
    assert any("can't start new thread" in str(getattr(entry, "fields", "")) for entry in caplog.records)


def test_a_failure_is_told_once_and_again_when_it_comes_back(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create_key(file, "line-3", ())
    keyring, outcomes = Keyring(file), ["damaged", "damaged", "gone", "", "gone"]

    def refresh() -> None:
        if outcomes and (reason := outcomes.pop(0)):
            raise KeysError(reason)

    monkeypatch.setattr("service.keyring._REFRESH_S", 0.001)
    monkeypatch.setattr(keyring, "_refresh", refresh)

    async def follow() -> None:
        async with keyring.followed(), asyncio.timeout(60):
            while outcomes or len(caplog.records) < 3:
                await asyncio.sleep(0.01)

    asyncio.run(follow())
    assert [getattr(record, "fields", {})["reason"] for record in caplog.records] == ["damaged", "gone", "gone"]


def test_a_change_that_leaves_the_size_is_taken_up(file: Path) -> None:
    _, key = create_key(file, "line-3", ())
    keyring, before = Keyring(file), file.stat()
    file.write_text(file.read_text().replace("line-3", "line-4"))
    os.utime(file, ns=(0, before.st_mtime_ns + 1))
    keyring._refresh()
    assert (found := keyring.find(key)) is not None
    assert found.name == "line-4"


def fail_first(function: Callable[[], None]) -> Callable[[], None]:
    failures = [RuntimeError("can't start new thread")]

    def call() -> None:
        if failures:
            raise failures.pop()
        function()

    return call


def test_running_service_takes_up_changes(
    serve: Serve, models: Path, file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "plumbline.keys")
    monkeypatch.setattr("service.access._FAILURES", Rate(per_second=1000, burst=10_000))  # it asks until it changes
    first, first_key = create_key(file, "line-3", ())

    def status(client: httpx.Client, key: str) -> int:
        return client.get("/v1/categories", headers={"Authorization": f"Bearer {key}"}).status_code

    with serve(models, loaded=False, keys=file) as client:
        assert status(client, first_key) == 200
        _, second_key = create_key(file, "line-4", ())
        wait_until(lambda: status(client, second_key) == 200)
        assert status(client, first_key) == 200
        revoke_key(file, first.id)
        wait_until(lambda: status(client, first_key) == 401)
        changes = [fields for record in caplog.records if (fields := getattr(record, "fields", {})).get("keys")]
        assert changes[-1] == {"keys": [first.id], "accepted": 1}

        # A file that is damaged by hand changes nothing, and is told.
        whole = file.read_text()
        file.write_text(whole[:-20])
        wait_until(lambda: any("keys not read" in record.message for record in caplog.records))
        assert (status(client, first_key), status(client, second_key)) == (401, 200)
        content = json.loads(whole)
        content["keys"] = [key for key in content["keys"] if key["id"] == first.id]
        file.write_text(json.dumps(content))
        wait_until(lambda: status(client, second_key) == 401)
