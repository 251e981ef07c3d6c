from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
import torch

from service.server import run
from service.settings import Settings, SettingsError, command_line_settings, load_settings, unknown_variables


def test_defaults(tmp_path: Path) -> None:
    settings = load_settings(models=tmp_path)
    assert (settings.host, settings.port, settings.device, settings.threads) == ("127.0.0.1", 8000, "auto", None)


def test_environment_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_MODELS", str(tmp_path))
    monkeypatch.setenv("PLUMBLINE_PORT", "8001")
    monkeypatch.setenv("PLUMBLINE_LOG_LEVEL", "WARNING")
    monkeypatch.setenv("PLUMBLINE_THREADS", "")
    assert load_settings(port=None).port == 8001
    assert load_settings(port=8002).port == 8002
    assert load_settings().log_level == "warning"
    assert load_settings().threads is None


def test_variables_that_set_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("PLUMBLINE_"):
            monkeypatch.delenv(name)
    compose = (Path(__file__).parents[2] / "docker-compose.yml").read_text()
    known = {f"PLUMBLINE_{name.upper()}" for name in Settings.model_fields}
    of_kubernetes = {"PLUMBLINE_SERVICE_HOST", "PLUMBLINE_PORT_8000_TCP_ADDR", "plumbline_port"}
    for name in known | of_kubernetes | set(re.findall(r"PLUMBLINE_[A-Z_]+", compose)) - {"PLUMBLINE_"}:
        monkeypatch.setenv(name, "1")
    assert unknown_variables() == []
    monkeypatch.setenv("PLUMBLINE_REQUEST_TIMOUT_S", "30")
    monkeypatch.setenv("PLUMBLINE_SERVICE_TIMEOUT_S", "30")
    assert unknown_variables() == ["PLUMBLINE_REQUEST_TIMOUT_S", "PLUMBLINE_SERVICE_TIMEOUT_S"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("DEVICE", "tpu"),
        ("THREADS", "0"),
        ("QUEUE_SIZE", "-1"),
        ("MAX_UPLOAD_BYTES", "10MB"),
        ("MAX_PIXELS", "0"),
        ("REQUEST_TIMEOUT_S", "inf"),
        ("REQUEST_TIMEOUT_S", "nan"),
        ("REQUEST_TIMEOUT_S", "301"),
        ("HANG_TIMEOUT_S", "0"),
        ("QUEUE_BYTES", "0"),
        ("BATCH_WAIT_MS", "-1"),
        ("LOG_LEVEL", "loud"),
        ("MODELS", "/no/such/folder"),
    ],
)
def test_bad_value_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("PLUMBLINE_MODELS", str(tmp_path))
    monkeypatch.setenv(f"PLUMBLINE_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert f"PLUMBLINE_{name}" in str(caught.value)
    assert value in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLUMBLINE_MODELS", raising=False)
    with pytest.raises(SettingsError, match=r"PLUMBLINE_MODELS \(--models\) is not set"):
        load_settings()


def test_secret_key_is_of_the_environment_and_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_SECRET_KEY", "not to be seen")
    assert "not to be seen" not in repr(load_settings(models=tmp_path))
    assert "secret_key" not in command_line_settings()
    with pytest.raises(SettingsError, match="both set") as caught:
        load_settings(models=tmp_path, secret_key_file=tmp_path / "secret.key")
    assert "not to be seen" not in str(caught.value)


def test_unknown_option(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no setting 'prot'"):
        load_settings(models=tmp_path, prot=1)


def test_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port}"):
            run(load_settings(models=tmp_path, port=port))


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.1"])
def test_host_that_is_not_ours(tmp_path: Path, host: str) -> None:
    with pytest.raises(SettingsError, match=host):
        run(load_settings(models=tmp_path, host=host, port=0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="PLUMBLINE_DEVICE"):
        run(load_settings(models=tmp_path, device="cuda", port=0))
