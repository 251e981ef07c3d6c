"""Exported detectors run by other engines than torch: ONNX Runtime and OpenVINO, on the processor."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from models.encoders import as_input
from models.graph import INPUT, OUTPUTS
from models.validity import layout

Precision = Literal["f32", "bf16"]

FACTS = "plumbline"
"""The section of an OpenVINO model's information that its facts are in."""


class MissingExtra(RuntimeError):
    """A library is not installed; the message says how to install it."""


class Outcome(NamedTuple):
    """What an exported detector sees in B inputs; all float32, higher scores are more anomalous.

    Attributes:
        score_maps: (B, h, w).
        image_scores: (B,) over the windows that count in an image which fills the square.
        anomaly_maps: (B, S, S).
        summaries: (B, D), as those of ``models.scan.Look``.
    """

    score_maps: NDArray[np.float32]
    image_scores: NDArray[np.float32]
    anomaly_maps: NDArray[np.float32]
    summaries: NDArray[np.float32]


class Session(Protocol):
    """An exported detector, ready to run.

    Attributes:
        facts: what the model says of itself, as ``models.export`` wrote it.
    """

    facts: dict[str, str]

    def look(self, images: NDArray[np.uint8]) -> Outcome:
        """What there is to see in inputs (B, S, S, 3) RGB."""
        ...


class OnnxSession:
    """ONNX Runtime, float32.

    Args:
        model: the ``.onnx`` file.
        threads: torch's number of them if None, which ``models.device.set_threads`` sets.

    Raises:
        MissingExtra: ONNX Runtime is not installed.
    """

    def __init__(self, model: Path, threads: int | None = None) -> None:
        runtime = require("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        self._session = runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.facts: dict[str, str] = self._session.get_modelmeta().custom_metadata_map

    def look(self, images: NDArray[np.uint8]) -> Outcome:
        """As ``Session.look``."""
        return _outcome(images, *self._session.run(list(OUTPUTS), {INPUT: images}))


class OpenVinoSession:
    """OpenVINO.

    Args:
        model: the ``.xml`` file, its ``.bin`` beside it; or an ``.onnx`` file.
        threads: as of ``OnnxSession``.
        precision: what it may compute in; ``bf16`` moves scores, and pays where the processor has it.
        cache: a folder for the compiled model, from which the next session starts at once; None for no cache.

    Raises:
        MissingExtra: OpenVINO is not installed.
    """

    def __init__(
        self, model: Path, threads: int | None = None, precision: Precision = "f32", cache: Path | None = None
    ) -> None:
        core = _core()
        read = core.read_model(model)
        self.facts: dict[str, str] = {}
        if read.has_rt_info([FACTS]):
            self.facts = {name: str(value) for name, value in read.get_rt_info([FACTS]).value.items()}
        settings = {
            "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        if cache is not None:
            settings["CACHE_DIR"] = str(cache)
        self._compiled = core.compile_model(read, "CPU", settings)
        self._request = self._compiled.create_infer_request()

    def look(self, images: NDArray[np.uint8]) -> Outcome:
        """As ``Session.look``; of one thread at a time."""
        results = self._request.infer({INPUT: images}, share_inputs=True)
        return _outcome(images, *(results[self._compiled.output(name)] for name in OUTPUTS))


def require(module: str, extra: str) -> Any:
    """A library that comes with one of our extras.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{error.name} is not installed; pip install 'plumbline[{extra}]'") from error


def openvino() -> Any:
    """OpenVINO, without the module through which it reports its use over the network as soon as it is imported.

    Raises:
        MissingExtra: it is not installed.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # what Python takes for not installed
    return require("openvino", "openvino")


@cache
def _core() -> Any:
    """OpenVINO's core, one for as long as the process lives.

    Its processor plugin gives the thread that loads it another signal stack, and takes the memory away with the last
    core, from whatever thread that happens on: the next signal to the first thread would then kill the process.
    """
    return openvino().Core()


def _outcome(
    images: NDArray[np.uint8],
    score_maps: NDArray[np.float32],
    image_scores: NDArray[np.float32],
    anomaly_maps: NDArray[np.float32],
    mean_embeddings: NDArray[np.float32],
) -> Outcome:
    with torch.inference_mode():
        layouts = layout(as_input(torch.from_numpy(images))).numpy()
    summaries = np.concatenate([mean_embeddings, layouts], axis=1)
    return Outcome(score_maps, image_scores, anomaly_maps, summaries)
