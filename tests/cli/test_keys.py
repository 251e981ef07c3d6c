"""``plumbline keys``: what the person who gives out keys types."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.keyring import Keyring
from service.sealing import Seal
from tests.cli.conftest import Run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_create_list_revoke(run: Run, file: Path) -> None:
    made = run("keys", "create", "line-3", "--scope", "score", "--expires", "90", "--keys", file, "--json")
    key = made.result["key"]
    assert made.output.count(key) == 1
    record = Keyring(file).find(key)
    assert record is not None
    assert (record.name, [*record.scopes], record.obstacle()) == ("line-3", ["score"], None)
    assert record.expires is not None
    assert (record.expires - record.created).days == 90
    limited = run("keys", "create", "old", "--rate-limit", "0.5", "--rate-burst", "3", "--keys", file, "--json")
    assert limited.result["rate"] == {"per_second": 0.5, "burst": 3}
    for_people = run("keys", "create", "admin", "--scope", "admin", "--scope", "review", "--keys", file)
    assert Keyring(file).find(for_people.output.splitlines()[1]) is not None

    listed = run("keys", "list", "--keys", file, "--json")
    assert [(entry["name"], entry["scopes"]) for entry in listed.result["keys"]] == [
        ("line-3", ["score"]),
        ("old", []),
        ("admin", ["admin", "review"]),
    ]
    assert key not in listed.output
    assert "sha256" not in listed.output

    assert run("keys", "revoke", record.id, "--keys", file).status == 0
    assert "was revoked at" in run("keys", "list", "--keys", file).output.splitlines()[0]
    found = Keyring(file).find(key)
    assert found is not None
    assert found.obstacle() is not None


def test_key_to_sign_with(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PLUMBLINE_SECRET_KEY", raising=False)
    monkeypatch.delenv("PLUMBLINE_SECRET_KEY_FILE", raising=False)
    create = ("keys", "create", "old line", "--kind", "aws", "--scope", "score", "--keys", file, "--json")
    run(*create).assert_refused(2, "PLUMBLINE_SECRET_KEY", "plumbline keys new-secret")
    assert not file.exists()
    secret_key = run("keys", "new-secret").output
    (tmp_path / "secret.key").write_text(secret_key)
    by_file = run(*create, "--secret-key-file", tmp_path / "secret.key")
    monkeypatch.setenv("PLUMBLINE_SECRET_KEY", secret_key.strip())
    by_environment = run(*create)
    monkeypatch.setenv("PLUMBLINE_SECRET_KEY", run("keys", "new-secret").output.strip())
    by_file_all_the_same = run(*create, "--secret-key-file", tmp_path / "secret.key")
    keyring = Keyring(file, Seal(secret_key, "here"))
    for made in (by_file, by_environment, by_file_all_the_same):
        secret = made.result["aws_secret_access_key"]
        found = keyring.secret(made.result["aws_access_key_id"])
        assert found is not None
        assert (found[0].name, found[1]) == ("old line", secret)
        assert "sealed_secret" not in made.result
    assert "aws" in run("keys", "list", "--keys", file).output


def test_file_of_the_environment(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_KEYS", str(file))
    assert run("keys", "create", "prometheus").status == 0
    assert "prometheus" in run("keys", "list").output


def test_wrong_arguments(run: Run, file: Path) -> None:
    run("keys", "list", "--keys", file, "--json").assert_refused(2, str(file), "plumbline keys create")
    run("keys", "create", "a/b", "--keys", file, "--json").assert_refused(2, "'a/b'")
    run("keys", "create", "a", "--scope", "all", "--keys", file).assert_refused(2, "'score', 'review', 'admin'")
    run("keys", "create", "a", "--expires", "40000", "--keys", file).assert_refused(2, "40000 days")
    run("keys", "create", "a", "--rate-limit", "0", "--keys", file).assert_refused(2, "--rate-limit", "0")
    assert run("keys", "create", "a", "--keys", file).status == 0
    run("keys", "revoke", "b", "--keys", file, "--json").assert_refused(2, "'b'", "plumbline keys list")


def test_serving_to_everybody_needs_a_key_or_a_word(run: Run, models: Path) -> None:
    refused = run("serve", "--models", models, "--host", "0.0.0.0", "--port", "0", "--json")
    refused.assert_refused(2, "plumbline keys create", "--allow-anonymous")
