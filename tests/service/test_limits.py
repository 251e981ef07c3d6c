"""How often a caller may call, and how often somebody may try wrong keys."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access import Access
from service.errors import ProblemError
from service.keyring import Keyring
from service.keys import create_key
from service.limits import Rate, TokenBuckets, network
from service.security import Scope
from service.settings import SettingsError, load_settings
from tests.service.conftest import Serve
from tests.service.support import assert_problem

# Of a bucket that fills so slowly, no test sees a token come back.
SLOW = Rate(per_second=0.001, burst=3)


@given(
    rate=st.builds(Rate, per_second=st.floats(0.01, 100), burst=st.integers(1, 20)),
    steps=st.lists(st.floats(0, 10), min_size=1, max_size=60),
)
def test_no_more_than_the_rate_and_no_longer_wait_than_is_said(rate: Rate, steps: list[float]) -> None:
    buckets, now, taken = TokenBuckets(1), 0.0, 0
    for step in steps:
        now += step
        wait = buckets.take("a", rate, now)
        taken += wait == 0
        assert taken <= rate.burst + now * rate.per_second + 1e-6
        if wait:
            # Just before it there is none; just after it there is, and it is given back by a bucket of its own.
            assert buckets.take("a", rate, now + 0.999 * wait) > 0
            now += 1.001 * wait
            assert buckets.take("a", rate, now) == 0
            taken += 1


def test_buckets_are_apart_and_bounded() -> None:
    buckets = TokenBuckets(2)
    rate = Rate(per_second=1, burst=1)
    assert [buckets.take(who, rate, 0) for who in "abab"] == [0, 0, 1, 1]
    assert buckets.take("c", rate, 0) == 0  # a is forgotten
    assert buckets.take("b", rate, 0) == 1
    assert buckets.take("a", rate, 0) == 0
    assert len(buckets._buckets) == 2


def test_network() -> None:
    assert network("192.0.2.7") == "192.0.2.7"
    assert network("2001:db8::1") == network("2001:db8::2:1") == "2001:db8::/64"
    assert network("2001:db8:0:1::1") != network("2001:db8::1")
    assert network("") == ""


def get(client: httpx.Client, key: str) -> httpx.Response:
    return client.get("/v1/categories", headers={"Authorization": f"Bearer {key}"})


def assert_limited(response: httpx.Response, *mentions: str) -> None:
    assert_problem(response, 429, "rate-limited", *mentions)
    assert 1 <= int(response.headers["retry-after"]) <= 1000


def test_rate_of_a_key(serve: Serve, models: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    _, default = create_key(file, "default", ())
    _, own = create_key(file, "own", (), rate=Rate(per_second=0.002, burst=1))
    _, free = create_key(file, "free", (Scope.SCORE,), rate=Rate(per_second=1e6, burst=1000))
    with serve(models, loaded=False, keys=file, rate_limit=SLOW.per_second, rate_burst=SLOW.burst) as client:
        assert [get(client, default).status_code for _ in range(3)] == [200] * 3
        assert_limited(get(client, default), "of default may make 0.001 requests a second, 3 at once")
        assert get(client, own).status_code == 200
        assert_limited(get(client, own), "of own may make 0.002 requests a second, 1 at once")
        assert [get(client, free).status_code for _ in range(20)] == [200] * 20
        assert [client.get("/healthz").status_code for _ in range(20)] == [200] * 20


def test_rate_of_an_address_where_nobody_needs_a_key(serve: Serve, models: Path) -> None:
    with serve(models, loaded=False, rate_limit=SLOW.per_second, rate_burst=SLOW.burst) as client:
        assert [client.get("/v1/categories").status_code for _ in range(3)] == [200] * 3
        assert_limited(client.get("/v1/categories"), "the address 127.0.0.1 may make")


def test_no_limit_unless_set(serve: Serve, models: Path) -> None:
    with serve(models, loaded=False) as client:
        assert {client.get("/v1/categories").status_code for _ in range(50)} == {200}


def test_wrong_keys_of_an_address(serve: Serve, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.access._FAILURES", SLOW)
    file = tmp_path / "keys.json"
    _, right = create_key(file, "line-3", ())
    with serve(models, loaded=False, keys=file) as client:
        wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
        assert [get(client, wrong).status_code for _ in range(3)] == [401] * 3
        assert_limited(get(client, wrong), "too many wrong keys came from 127.0.0.1")
        signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=x"}
        assert client.get("/2020-11-20/projects", headers=signed).status_code == 429
        assert [get(client, right).status_code for _ in range(3)] == [200] * 3  # others of the address go on
        assert client.get("/v1/categories").status_code == 401  # nothing was tried


def test_two_keys_of_one_name_have_a_rate_each(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    keys = [create_key(file, "line-3", ())[1] for _ in range(2)]
    access = Access(Keyring(file), Rate(per_second=0.001, burst=1))
    for key in keys:
        access.identify(key, "192.0.2.7")
        with pytest.raises(ProblemError, match="of line-3 may make"):
            access.identify(key, "192.0.2.7")


def test_addresses_of_one_network_count_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.access._FAILURES", Rate(per_second=0.001, burst=1))
    file = tmp_path / "keys.json"
    create_key(file, "line-3", ())
    for access, detail in (
        (Access(Keyring(file)), "too many wrong keys"),
        (Access(None, Rate(per_second=0.001, burst=1)), "may make"),
    ):
        with suppress(ProblemError):
            access.identify("wrong", "2001:db8::1")
        with pytest.raises(ProblemError, match=detail):
            access.identify("wrong", "2001:db8::2:1")


@pytest.mark.parametrize(
    ("setting", "value"), [("rate_limit", "0"), ("rate_limit", "inf"), ("rate_limit", "many"), ("rate_burst", "0")]
)
def test_setting_that_is_none(models: Path, setting: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"PLUMBLINE_{setting.upper()} .*'{value}'"):
        load_settings(models=models, **{setting: value})
