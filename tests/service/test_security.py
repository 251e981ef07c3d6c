"""Who may do what, on a running service that asks for keys, and where it asks nobody."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from service.app import create_app
from service.documentation import STATIC
from service.keys import create_key
from service.limits import Rate
from service.security import Scope
from service.server import run
from service.settings import SettingsError, load_settings
from tests.service.conftest import Serve
from tests.service.support import CATEGORY, assert_problem, encode, part, wait_until

SCORE = f"/v1/categories/{CATEGORY}/score"
BYTES = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def keys(file: Path) -> dict[str, str]:
    """A key for each scope, one without, one that expired."""
    made = {scope.value: create_key(file, f"a-{scope}", (scope,))[1] for scope in Scope}
    made["none"] = create_key(file, "prometheus", ())[1]
    made["expired"] = create_key(file, "former", (Scope.SCORE,), timedelta(0))[1]
    return made


@pytest.fixture(scope="module")
def locked(serve: Serve, models: Path, file: Path, keys: dict[str, str]) -> Iterator[httpx.Client]:
    """A client without a key of a service that asks for one, and that these tests may send wrong ones."""
    with pytest.MonkeyPatch.context() as patch, serve(models, keys=file) as client:
        patch.setattr("service.access._FAILURES", Rate(per_second=1000, burst=10_000))
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_every_operation_but_health_needs_a_key(locked: httpx.Client) -> None:
    document = locked.get("/openapi.json").json()
    open_to_all = {path for _, path, operation in operations(document) if not operation.get("security")}
    assert open_to_all == {"/healthz", "/readyz", "/v2", "/v2/health/live", "/v2/health/ready"}
    for method, path, operation in operations(document):
        if path in open_to_all:
            assert locked.request(method, path).status_code == 200
            continue
        foreign = path.startswith("/2020-11-20")  # AWS says AccessDenied to both
        assert {"403" if foreign else "401", "403", "429"} <= set(operation["responses"])
        address = path.replace("{category}", CATEGORY)
        for headers in ({}, bearer("plumb_0_0"), {"Authorization": "Basic eDp5"}):
            response = locked.request(method, address, headers={**BYTES, **headers}, content=encode(part(0)))
            if method == "POST" or response.status_code != 405:
                assert response.status_code == (403 if foreign else 401), (method, path)
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_no_route_answers_who_has_no_key(locked: httpx.Client, models: Path, file: Path) -> None:
    """Every route there is, in the document or not, by every method, whichever it was made for."""
    health = {"/healthz", "/readyz", "/v2", "/v2/health/live", "/v2/health/ready"}
    pages = {"/docs", "/redoc", "/openapi.json"}
    app = create_app(load_settings(models=models, records="none", keys=file))
    paths = {str(route.path) for route in iter_route_contexts(app.routes) if route.path is not None} - {STATIC}
    assert paths > pages | health | {"/metrics", "/2020-11-20/{operation:path}", SCORE.replace(CATEGORY, "{category}")}
    answered = set()
    for path in paths:
        foreign = path.startswith("/2020-11-20")
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
            status = locked.request(method, re.sub(r"\{[^}]*\}", "1", path)).status_code
            known = not foreign or method not in ("OPTIONS", "TRACE")  # AWS has no status for a wrong method
            if status not in ((403,) if foreign and known else (400,) if foreign else (401, 405)):
                answered.add((method, path, status))
    assert answered == {(method, path, 200) for method in ("GET", "HEAD") for path in pages | health}


def test_no_key(locked: httpx.Client) -> None:
    response = locked.post(SCORE, content=encode(part(0)), headers=BYTES)
    assert_problem(response, 401, "unauthenticated", "no key", "Authorization: Bearer KEY")
    assert response.headers["www-authenticate"] == 'Bearer realm="plumbline"'


@pytest.mark.parametrize("key", ["plumb_000000000000_" + "0" * 64, "x", "\xff" * 10, "a" * 5000])
def test_unknown_key(locked: httpx.Client, key: str) -> None:
    response = locked.get("/v1/categories", headers=[(b"authorization", b"Bearer " + key.encode("latin-1"))])
    assert_problem(response, 401, "unauthenticated", "not known")
    assert response.headers["www-authenticate"] == 'Bearer realm="plumbline", error="invalid_token"'
    assert key not in response.text


def test_expired_key(locked: httpx.Client, keys: dict[str, str]) -> None:
    response = locked.get("/v1/categories", headers=bearer(keys["expired"]))
    assert_problem(response, 401, "unauthenticated", "former expired at")


def test_scopes(locked: httpx.Client, keys: dict[str, str]) -> None:
    answers = {name: locked.post(SCORE, content=encode(part(0)), headers=BYTES | bearer(keys[name])) for name in keys}
    assert answers.pop("score").status_code == 200
    assert answers.pop("expired").status_code == 401
    for name, answer in answers.items():
        assert_problem(answer, 403, "forbidden", "lacks the scope score", "a-" if name != "none" else "prometheus")
        assert 'error="insufficient_scope", scope="score"' in answer.headers["www-authenticate"]


def test_what_every_known_caller_may_read(locked: httpx.Client, keys: dict[str, str]) -> None:
    for path in ("/metrics", "/v1/categories", f"/v1/categories/{CATEGORY}"):
        for name, key in keys.items():
            assert locked.get(path, headers=bearer(key)).status_code == (401 if name == "expired" else 200)
        assert locked.get(path).status_code == 401


def test_what_anybody_may_read(locked: httpx.Client) -> None:
    assert locked.get("/readyz").json() == {"ready": True}  # and no names of products
    for path in ("/healthz", "/docs", "/redoc", "/openapi.json"):
        assert locked.get(path).status_code == 200


def test_caller_is_in_the_log(locked: httpx.Client, keys: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "plumbline.requests")
    locked.post(SCORE, content=encode(part(0)), headers=BYTES | bearer(keys["score"]))

    def scored() -> list[dict[str, Any]]:
        logged = [getattr(record, "fields", {}) for record in caplog.records]
        return [fields for fields in logged if fields.get("path") == SCORE]

    wait_until(lambda: bool(scored()))  # it is logged after it is answered; so is what was asked before
    assert scored()[-1]["caller"] == "a-score"


def test_the_path_is_in_the_log_as_it_came(locked: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    """Not without what a parser of URLs leaves out: the audit log would name a category that nobody asked for."""
    caplog.set_level("INFO", "plumbline")
    locked.delete(f"/v1/categories/{CATEGORY[:2]}%0A{CATEGORY[2:]}/drift")
    wait_until(lambda: len(caplog.records) >= 2)
    told = {vars(entry)["fields"]["path"] for entry in caplog.records if entry.name.startswith("plumbline.")}
    assert told == {f"/v1/categories/{CATEGORY[:2]}\n{CATEGORY[2:]}/drift"}


def test_key_in_the_query_is_no_key(locked: httpx.Client, keys: dict[str, str]) -> None:
    """It would stand in the logs of every proxy."""
    response = locked.post(SCORE, params={"key": keys["score"]}, content=encode(part(0)), headers=BYTES)
    assert_problem(response, 401, "unauthenticated")


class TestAddress:
    """Where a service may listen without keys."""

    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    def test_public_without_keys_is_refused(self, models: Path, host: str) -> None:
        with pytest.raises(SettingsError, match=r"plumbline keys create .*--keys keys.json.*--allow-anonymous"):
            run(load_settings(models=models, host=host, port=0))

    def test_public_when_told_so(self, serve: Serve, models: Path) -> None:
        with serve(models, loaded=False, host="0.0.0.0", allow_anonymous=True) as client:
            assert client.get("/v1/categories").status_code == 200

    def test_public_with_keys(self, serve: Serve, models: Path, file: Path, keys: dict[str, str]) -> None:
        with serve(models, loaded=False, host="0.0.0.0", keys=file) as client:
            assert client.get("/v1/categories").status_code == 401
            assert client.get("/v1/categories", headers=bearer(keys["none"])).status_code == 200

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.8.8.8"])
    def test_loopback(self, serve: Serve, models: Path, host: str) -> None:
        with serve(models, loaded=False, host=host) as client:
            assert client.get("/v1/categories").status_code == 200
            # A key that a client sends all the same does no harm.
            assert client.get("/v1/categories", headers=bearer("x")).status_code == 200

    def test_keys_that_are_not_there(self, models: Path, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="there is no keys file"):
            run(load_settings(models=models, port=0, keys=tmp_path / "keys.json"))

    def test_keys_and_anonymous_contradict(self, models: Path, file: Path) -> None:
        with pytest.raises(SettingsError, match=r"PLUMBLINE_KEYS .* and PLUMBLINE_ALLOW_ANONYMOUS .* both set"):
            load_settings(models=models, keys=file, allow_anonymous=True)
