"""A detector written for other engines: one folder, whole or not there, and proven to see what torch sees.

folder/model.onnx, or model.xml and model.bin      images in; score map, image score, anomaly map out
folder/model.json                                  what it is, where it decides, how it was checked
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from models.artifact import sync_folder, sync_tree
from models.calibration_set import calibrate
from models.configuration import configuration_of
from models.densities import KernelDensity
from models.detector import Detector
from models.graph import INPUT, OUTPUTS, DetectorGraph
from models.heatmap import peak_window
from models.inference import FLOAT32, InferencePlan
from models.operation import Operation
from models.scan import Scan, combine
from models.sessions import FACTS, OnnxSession, OpenVinoSession, Outcome, Session, openvino, require
from models.store_files import remove

Format = Literal["onnx", "openvino"]

MODELS: dict[Format, str] = {"onnx": "model.onnx", "openvino": "model.xml"}
LIBRARIES: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino", "onnx", "onnxscript"),  # it reads what torch writes as ONNX
}
FACTS_FILE = "model.json"

TOLERANCE = 1e-4  # of the standard deviation of the score maps
ROUNDING = 1e-5  # of 1, or of the largest score if that is more: what densities promise of scores in float32
EMBEDDING_TOLERANCE = 1e-5  # of an entry of a mean of unit vectors
TOGETHER = 3  # images that a model for any number of them is also checked on at once


class ExportError(RuntimeError):
    """The exported model cannot be vouched for; nothing of it remains."""


def export(
    detector: Detector,
    operation: Operation,
    folder: Path,
    form: Format,
    *,
    batch: int | None = None,
    check_images: int | None = None,
) -> dict[str, Any]:
    """Write a detector and check it on its calibration images.

    Args:
        detector: a published one, on the CPU, loaded by its own plan or by float32.
        operation: its thresholds go with the model, set anew where the version does not compute in float32; its region
            of interest is where windows count.
        folder: must not exist.
        batch: images that the model takes at once; None for any number.
        check_images: how many of the calibration images to check on; None for all.

    Returns:
        What ``model.json`` holds.

    Raises:
        ExportError: the model differs from torch by more than rounding.
        FileExistsError: the folder is there already.
        MissingExtra: a library is not installed.
        NotTraceable: the density cannot be expressed.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; name another folder, or remove it")
    for library in LIBRARIES[form]:
        openvino() if library == "openvino" else require(library, form)
    graph = DetectorGraph(detector.scan, operation.region_of_interest).eval()
    plan = _own_plan(detector)
    detector, operation = in_float32(detector, operation)
    facts, side = describe(detector, operation), detector.geometry.image_size
    staging = folder.with_name(f".{folder.name}.new")
    remove(staging)
    staging.mkdir(parents=True)
    try:
        write = _write_onnx if form == "onnx" else _write_openvino
        write(graph, staging / MODELS[form], batch, {name: _text(value) for name, value in facts.items()})
        session = open_session(staging, form)
        inputs = detector.calibration_set.inputs[:check_images]
        report = {
            "format": form,
            **facts,
            "plan_of_version": plan.name,
            "batch": "dynamic" if batch is None else batch,
            "input": {INPUT: f"({batch or 'batch'}, {side}, {side}, 3) uint8 RGB"},
            "outputs": list(OUTPUTS),
            "check": check(detector, operation, session, inputs, batch),
        }
        (staging / FACTS_FILE).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        sync_tree(staging)
        staging.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        remove(staging)
        raise
    return report


def in_float32(detector: Detector, operation: Operation) -> tuple[Detector, Operation]:
    """The same detector computed in float32, as every engine can, and an operation whose thresholds are made for that.

    A plan of half precision moves scores, so the calibration images are scanned again, and give the thresholds for the
    same false-reject rate in the same region; so they are where a version of another plan was loaded by float32. A
    detector that computes in float32 stays as it is.
    """
    members = tuple(_scan_in_float32(member) for member in detector.scan.members)
    if members == detector.scan.members and _own_plan(detector) == FLOAT32:
        return detector, operation
    exact, held = combine(members), detector.calibration_set
    made = detector.rescanned(exact, calibrate(exact, detector.geometry, held.inputs, held.contents))
    made.manifest = detector.manifest
    before = operation.operating_point
    point = made.operating_point_for(before.false_reject_rate, operation.region_of_interest)
    return made, operation.model_copy(
        update={"operating_point": point.model_copy(update={"invalidity_threshold": before.invalidity_threshold})}
    )


def _own_plan(detector: Detector) -> InferencePlan:
    """The one that its calibration is of, whatever it was loaded by."""
    if detector.manifest is None:
        return detector.scan.configuration.inference
    return configuration_of(detector.manifest).inference


def _scan_in_float32(scan: Scan) -> Scan:
    """The scan itself where all of it is in float32."""
    density = scan.density.in_float32() if isinstance(scan.density, KernelDensity) else scan.density
    if scan.configuration.inference == FLOAT32 and density is scan.density:
        return scan
    configuration = scan.configuration.model_copy(update={"inference": FLOAT32})
    return Scan(configuration, scan.encoder, density, scan.device)


def open_session(folder: Path, form: Format) -> Session:
    """A session of an exported folder."""
    return OnnxSession(folder / MODELS[form]) if form == "onnx" else OpenVinoSession(folder / MODELS[form])


def describe(detector: Detector, operation: Operation) -> dict[str, Any]:
    """What whoever runs the model elsewhere must know, ready for JSON."""
    configuration, point = detector.scan.configuration, operation.operating_point
    manifest = detector.manifest
    return {
        "category": detector.category,
        "version": detector.version,
        "operation": operation.number,
        "image_threshold": point.image_threshold,
        "pixel_threshold": point.pixel_threshold,
        "false_reject_rate": point.false_reject_rate,
        "region_of_interest": operation.region_of_interest is not None,
        "image_size": configuration.geometry.image_size,
        "patch_size": configuration.geometry.patch_size,
        "stride": configuration.geometry.stride,
        "resize": configuration.resize,
        "artifact_digest": manifest.digest if manifest else None,
        "plumbline": version("plumbline"),
    }


def check(
    detector: Detector, operation: Operation, session: Session, inputs: NDArray[np.uint8], batch: int | None
) -> dict[str, Any]:
    """Compare a session with torch on inputs (n, S, S, 3), and time both.

    Returns:
        The largest differences, what was allowed, and the median milliseconds an image of both.

    Raises:
        ExportError: a difference is larger than allowed.
    """
    size = batch or 1
    parts = [inputs[np.arange(start, start + size) % len(inputs)] for start in range(0, len(inputs), size)]
    count = len(parts)
    if batch is None:
        parts.append(inputs[:TOGETHER])

    def by_torch(images: NDArray[np.uint8]) -> Outcome:
        return _by_torch(detector, operation, images)

    looks = {"torch": by_torch, "exported": session.look}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in looks}
    seconds: dict[str, list[float]] = {name: [] for name in looks}
    for part in [parts[0], *parts]:  # in turns, so that both find the machine as busy
        for name, look in looks.items():
            start = time.perf_counter()
            outcomes[name].append(look(part))
            seconds[name].append(time.perf_counter() - start)
    expected, seen = outcomes["torch"], outcomes["exported"]
    maps = np.concatenate([outcome.score_maps for outcome in expected])
    allowed = dict.fromkeys(OUTPUTS, max(TOLERANCE * float(maps.std()), ROUNDING * max(1.0, float(np.abs(maps).max()))))
    allowed[OUTPUTS[-1]] = EMBEDDING_TOLERANCE
    largest = {
        name: max(float(np.abs(ours[k] - theirs[k]).max()) for ours, theirs in zip(expected, seen, strict=True))
        for k, name in enumerate(OUTPUTS)
    }
    if wrong := [name for name in OUTPUTS if not largest[name] <= allowed[name]]:
        raise ExportError(
            "the exported model does not see what PyTorch sees, so it was not kept: "
            + "; ".join(f"{name} differs by {largest[name]:.3g}, {allowed[name]:.3g} is allowed" for name in wrong)
        )
    return {
        "images": len(inputs),
        "largest_difference": largest,
        "allowed": allowed,
        "score_spread": float(maps.std()),
        "threads": torch.get_num_threads(),
        "milliseconds": {
            name: statistics.median(times[1 : count + 1]) * 1000 / size for name, times in seconds.items()
        },
    }


def _by_torch(detector: Detector, operation: Operation, images: NDArray[np.uint8]) -> Outcome:
    look = detector.scan.look(images)
    peaks = [
        score_map[peak_window(score_map, detector.geometry, detector.geometry.square, operation.region_of_interest)]
        for score_map in look.score_maps
    ]
    return Outcome(look.score_maps, np.array(peaks, np.float32), look.anomaly_maps, look.summaries)


def _write_onnx(graph: DetectorGraph, path: Path, batch: int | None, facts: dict[str, str]) -> None:
    program = _program(graph, batch)
    program.model.metadata_props.update(facts)
    program.save(path)


def _write_openvino(graph: DetectorGraph, path: Path, batch: int | None, facts: dict[str, str]) -> None:
    runtime = openvino()
    with TemporaryDirectory(dir=path.parent) as folder:
        onnx = Path(folder, MODELS["onnx"])
        _program(graph, batch).save(onnx)
        model = runtime.Core().read_model(onnx)
        for name, text in facts.items():
            model.set_rt_info(text, [FACTS, name])
        runtime.save_model(model, path, compress_to_fp16=False)


def _program(graph: DetectorGraph, batch: int | None) -> Any:
    """The graph as an ONNX program in memory."""
    side = graph.geometry.image_size
    example = torch.zeros(batch or 2, side, side, 3, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("batch", min=1)},) if batch is None else None
    with torch.no_grad(), _quiet():
        return torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of what only its authors can change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
