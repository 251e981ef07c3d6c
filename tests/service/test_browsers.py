"""What a browser may be made to do by the pages of others: DNS rebinding, cross-site requests, CORS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.keys import create_key
from service.settings import SettingsError, load_settings
from tests.service.conftest import Serve
from tests.service.support import CATEGORY, assert_problem, encode, part

SCORE = f"/v1/categories/{CATEGORY}/score"
FRIEND = "https://quality.example"
BYTES = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def friendly(serve: Serve, models: Path) -> Iterator[httpx.Client]:
    """A service with a name, which the pages of a friend may use."""
    with serve(
        models, allowed_hosts="Line-3.plant, inspection.plant", cors_origins=f"{FRIEND}, http://a:8080"
    ) as client:
        yield client


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil", "[::1"]
)
@pytest.mark.parametrize("path", ["/v1/categories", "/healthz", "/docs", "/no/such/page"])
def test_rebound_name_is_refused(client: httpx.Client, host: str, path: str) -> None:
    problem = assert_problem(client.get(path, headers={"Host": host}), 421, "unknown-host", "PLUMBLINE_ALLOWED_HOSTS")
    assert repr(host) in problem["detail"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "192.168.0.7:8000", "[::1]:8000", ""])
def test_own_names_and_addresses(client: httpx.Client, host: str) -> None:
    assert client.get("/v1/categories", headers={"Host": host}).status_code == 200


def test_names_that_are_set(friendly: httpx.Client) -> None:
    for host, status in (("line-3.plant", 200), ("INSPECTION.plant:80", 200), ("localhost", 200), ("plant", 421)):
        assert friendly.get("/v1/categories", headers={"Host": host}).status_code == status


def test_any_name_where_callers_need_keys(serve: Serve, models: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    create_key(file, "line-3", ())
    with serve(models, loaded=False, keys=file) as client:
        assert client.get("/healthz", headers={"Host": "inspection.plant"}).status_code == 200
    with serve(models, loaded=False, keys=file, allowed_hosts="inspection.plant") as client:
        assert client.get("/healthz", headers={"Host": "inspection.plant"}).status_code == 200
        assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": FRIEND},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},  # a form that posts itself
    ],
)
def test_page_of_another_site_is_refused(client: httpx.Client, headers: dict[str, str]) -> None:
    response = client.post(SCORE, content=encode(part(0)), headers=BYTES | headers)
    assert_problem(response, 403, "foreign-origin", "PLUMBLINE_CORS_ORIGINS")
    assert "access-control-allow-origin" not in response.headers


def test_own_page_and_links_to_it(client: httpx.Client) -> None:
    own = str(client.base_url).rstrip("/")
    for headers in (
        {"Origin": own},
        {"Origin": own, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"},
        {"Origin": "https://proxied.example", "Sec-Fetch-Site": "same-origin"},  # a proxy changed Host
    ):
        assert client.post(SCORE, content=encode(part(0)), headers=BYTES | headers).status_code == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/docs", headers=link).status_code == 200


def test_friend_may_ask_and_read(friendly: httpx.Client) -> None:
    ask = {"Origin": FRIEND, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    response = friendly.options(SCORE, headers=ask)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == FRIEND
    assert "authorization" in response.headers["access-control-allow-headers"]
    headers = BYTES | {"Origin": FRIEND, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    response = friendly.post(SCORE, content=encode(part(0)), headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == FRIEND
    assert response.headers["access-control-expose-headers"] == "*"  # those of a heatmap are its numbers
    assert "access-control-allow-credentials" not in response.headers
    assert friendly.options(SCORE, headers=ask | {"Origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("cors_origins", "*"),
        ("cors_origins", "quality.example"),
        ("cors_origins", f"{FRIEND}/"),
        ("cors_origins", "null"),
        ("allowed_hosts", "*"),
        ("allowed_hosts", "http://line-3"),
        ("allowed_hosts", "line-3:80"),
    ],
)
def test_setting_that_is_none(models: Path, setting: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"PLUMBLINE_{setting.upper()} .*is no (origin|host name)"):
        load_settings(models=models, **{setting: value})
