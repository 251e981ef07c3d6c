"""schemathesis over the whole OpenAPI document of a running service; ``make fuzz`` runs more examples.

No 5xx but 503 and 504; no status, content type, header or body that is not documented; no invalid value accepted.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from benchmarks.serving import served
from service.keys import create_key
from service.security import Scope
from tests.service.support import MAX_PIXELS, MAX_UPLOAD_BYTES

EXAMPLES = os.environ.get("PLUMBLINE_FUZZ_EXAMPLES", "5")
PROGRAM = Path(sys.executable).with_name("schemathesis")
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")


@pytest.mark.slow
def test_openapi_document_keeps_its_word(models: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    _, key = create_key(keys, "schemathesis", tuple(Scope), None)
    run(models, tmp_path, ("--header", f"Authorization: Bearer {key}"), keys=keys)


@pytest.mark.slow
def test_lookouts_api_where_requests_need_no_signature(models: Path, tmp_path: Path) -> None:
    unsigned = ("--exclude-checks", "missing_required_header,negative_data_rejection")
    run(models, tmp_path, ("--include-path-regex", "^/2020-11-20/", *unsigned))


def run(models: Path, folder: Path, options: tuple[str, ...], **settings: object) -> None:
    """Run schemathesis on a service of its own; it calls routes that change the store too."""
    store = shutil.copytree(models, folder / "store")
    with served(store, max_upload_bytes=MAX_UPLOAD_BYTES, max_pixels=MAX_PIXELS, **settings) as service:
        command = [str(PROGRAM), "--config-file", str(CONFIGURATION), "run", f"{service.url}/openapi.json"]
        result = subprocess.run(
            [*command, "--no-color", "--max-examples", EXAMPLES, "--seed", "1", *options],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=3000,
        )
        print(result.stdout[-2000:])
        assert result.returncode == 0, result.stdout[-20_000:] + result.stderr
        assert httpx.get(f"{service.url}/healthz").status_code == 200
    selected, tested = (int(re.findall(rf"{name}: (\d+)", result.stdout)[-1]) for name in ("Selected", "Tested"))
    assert selected == tested > 0
