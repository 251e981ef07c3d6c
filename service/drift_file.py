"""What the watch for drift knows of a category, in a file: a service that starts again goes on where it stood."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from models.prediction import Verdict
from models.store_files import write_file

_SUFFIX = ".safetensors"
_KNOWN = "known"  # the name of the JSON among the file's metadata

_log = logging.getLogger("plumbline.drift")


class KnownTest(BaseModel):
    """What is known of one test.

    Attributes:
        state: of its watch, since ``since``; the latter None for ok.
        count: p-values so far.
        capitals: of each bet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    state: Literal["ok", "warning", "drift"]
    since: AwareDatetime | None
    count: int = Field(ge=0)
    capitals: tuple[float, ...]


class Known(BaseModel):
    """What is known of a category, but for the arrays.

    Attributes:
        watched: tells the version, operation and calibration that it is of.
        tests: by name.
        squared_mmd: of the latest batch of embeddings; None before one was full.
        window: image score, verdict and output of the latest inspections, the latest last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    watched: str
    tests: Mapping[str, KnownTest]
    squared_mmd: float | None
    window: tuple[tuple[float, Verdict, str], ...]


@dataclass(frozen=True)
class StoredDrift:
    """What is known of a category.

    Attributes:
        arrays: ``scores`` (n,) and ``rejects`` (m,) float64, numbers that the next one is compared with; ``embeddings``
            (k, D) float32, likewise, and ``batch`` (b, D), those that wait until they are enough to be compared.
    """

    known: Known
    arrays: Mapping[str, NDArray[Any]]


def write_drift(folder: Path, category: str, stored: StoredDrift) -> None:
    """Put a category's file in the place of the one before; whenever the machine stops, there is one of them.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(exist_ok=True)
    content = save(dict(stored.arrays), {_KNOWN: stored.known.model_dump_json()})
    write_file(folder / f"{category}{_SUFFIX}", content)


def read_drift(folder: Path) -> dict[str, StoredDrift]:
    """What is known by category; what cannot be read is logged and left out."""
    found = {}
    for path in folder.glob(f"*{_SUFFIX}"):
        try:
            with safe_open(path, framework="numpy") as file:
                known = Known.model_validate_json((file.metadata() or {}).get(_KNOWN, ""))
                found[path.stem] = StoredDrift(known, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, ValidationError) as error:
            _log.warning("drift watch not read", extra={"fields": {"category": path.stem, "reason": str(error)}})
    return found
