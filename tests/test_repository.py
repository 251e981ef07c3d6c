"""The repository's own promises: versions, constraints, rooms, Compose files and the console script."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("models", "training", "service", "cli", "client", "benchmarks")
VERBS = (
    "demo",
    "train",
    "evaluate",
    "score",
    "serve",
    "tune",
    "keys",
    "models",
    "benchmark",
    "reproduce",
    "analyse",
    "data",
    "explain",
    "export",
)
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_version_is_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert compose("docker-compose.yml")["services"]["plumbline"]["image"] == f"plumbline:{version}"


def test_constraints_are_names_and_versions_and_pin_every_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    wrong = [line for line in lines if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[0-9][0-9a-z.]*", line)]
    assert wrong == []
    assert lines == sorted(set(lines))
    project = PROJECT["project"]
    entries = project["dependencies"] + project["optional-dependencies"]["dev"]
    named = {re.split(r"[<>=!~\[ ]", entry)[0] for entry in entries}
    assert named - {line.split("==")[0] for line in lines} == set()


def test_every_import_is_a_declared_dependency() -> None:
    packages = packages_distributions()
    declared = {canonical(re.split(r"[<>=!~\[ ]", entry)[0]) for entry in PROJECT["project"]["dependencies"]}
    declared.add("triton")  # torch for CUDA brings it, in the version that it needs; nothing else imports it
    undeclared = {
        f"{file.relative_to(ROOT)}: {module}"
        for room in ROOMS
        for file in (ROOT / room).rglob("*.py")
        if file.name != "peers_worker.py"  # it runs in an environment of its own: make peers-env
        for module in imported_modules(file) - set(ROOMS) - sys.stdlib_module_names
        if declared.isdisjoint(map(canonical, packages.get(module, ())))
    }
    assert undeclared == set()


def test_import_contract_holds_and_covers_every_room() -> None:
    built = {room for room in ROOMS if (ROOT / room / "__init__.py").exists()}
    assert set(PROJECT["tool"]["importlinter"]["root_packages"]) == built
    result = run(Path(sys.executable).with_name("lint-imports"))
    assert result.returncode == 0, result.stdout


def test_compose_is_private_and_the_override_drops_the_gpu() -> None:
    service = compose("docker-compose.yml")["services"]["plumbline"]
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert all("127.0.0.1" in port for port in service["ports"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert compose("docker-compose.cpu.yml")["services"]["plumbline"]["deploy"] is None


def test_compose_asks_for_keys_that_only_their_own_service_writes() -> None:
    services = compose("docker-compose.yml")["services"]
    assert services["plumbline"]["environment"]["PLUMBLINE_KEYS"] == "${PLUMBLINE_KEYS-/keys/keys.json}"
    mounts = {
        name: [volume for volume in services[name]["volumes"] if volume["target"] == "/keys"]
        for name in ("plumbline", "keys")
    }
    assert [volume["read_only"] for volume in mounts["plumbline"]] == [True]
    assert [volume.get("read_only", False) for volume in mounts["keys"]] == [False]
    assert services["keys"]["network_mode"] == "none"
    assert services["keys"]["profiles"] == ["tools"]
    assert services["keys"]["image"] == services["plumbline"]["image"]


def test_compose_terminates_tls_for_this_machine_unless_told_otherwise() -> None:
    proxy = compose("docker-compose.yml")["services"]["tls"]
    assert proxy["profiles"] == ["tls"]
    assert all("127.0.0.1" in port for port in proxy["ports"])
    assert (proxy["read_only"], proxy["cap_drop"]) == (True, ["ALL"])
    (configuration,) = (volume for volume in proxy["volumes"] if volume["target"].endswith("Caddyfile"))
    text = (ROOT / configuration["source"]).read_text()
    assert "reverse_proxy {$PLUMBLINE_UPSTREAM:plumbline:8000}" in text
    for name in re.findall(r"\{\$(\w+)", text):
        assert name in (*proxy["environment"], "PLUMBLINE_UPSTREAM")


def test_compose_monitors_on_request_and_for_this_machine() -> None:
    content = compose("docker-compose.yml")
    for name, secret in (("prometheus", "metrics_key"), ("grafana", "grafana_password")):
        service = content["services"][name]
        assert service["profiles"] == ["monitoring"]
        assert all("127.0.0.1" in port for port in service["ports"])
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert re.fullmatch(r"\$\{[A-Z]+_IMAGE:-[a-z/]+:v?\d+\.\d+\.\d+\}", service["image"])
        assert service["secrets"] == [secret]
        assert content["secrets"][secret]["file"].startswith("${PLUMBLINE_SECRETS:-./secrets}/")
        assert all((ROOT / volume["source"]).exists() for volume in service["volumes"] if volume["type"] == "bind")


@pytest.mark.parametrize("files", [("docker-compose.yml",), ("docker-compose.yml", "docker-compose.cpu.yml")])
def test_docker_compose_accepts_the_files(files: tuple[str, ...]) -> None:
    if shutil.which("docker") is None or run("docker", "compose", "version").returncode != 0:
        pytest.skip("docker compose is not installed")
    result = run("docker", "compose", *(part for file in files for part in ("-f", file)), "config")
    assert result.returncode == 0, result.stderr
    assert ("nvidia" in result.stdout) == (len(files) == 1)


@pytest.mark.parametrize(
    "script", [ROOT / ".ci" / "run", *sorted((ROOT / "benchmarks").glob("*.sh"))], ids=lambda path: path.name
)
def test_shell_scripts_can_be_parsed(script: Path) -> None:
    result = run("bash", "-n", script)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_console_script_has_the_verb(verb: str) -> None:
    result = run(Path(sys.executable).with_name("plumbline"), verb, "--help")
    assert result.returncode == 0, result.stderr
    assert verb in result.stdout


@pytest.mark.parametrize(
    "document", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name
)
def test_what_a_document_names_exists(document: Path) -> None:
    """Files of ours, files that it links to, and verbs of the program."""
    text = document.read_text(encoding="utf-8")
    files = re.findall(rf"`((?:{'|'.join((*ROOMS, 'tests', 'docker', 'docs'))})/[\w./-]*)`", text)
    assert [name for name in files if not (ROOT / name).exists()] == []
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text)
    assert [link for link in links if not (document.parent / link).exists()] == []
    verbs = re.findall(r"(?:^    |`)plumbline (\w+)", text, re.MULTILINE)
    assert [verb for verb in verbs if verb not in VERBS] == []


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_modules(file: Path) -> set[str]:
    """Top-level names of all absolute imports of a source file, also those inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def compose(name: str) -> dict[str, Any]:
    """The parsed file, Compose's own ``!reset`` read as null."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!reset", lambda loader, node: None)
    content: dict[str, Any] = yaml.load((ROOT / name).read_text(), Loader=Loader)
    return content
