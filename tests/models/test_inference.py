from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import inference
from models.artifact import ArtifactError, read_manifest, write_manifest
from models.configuration import DetectorConfiguration
from models.densities import KernelDensity
from models.detector import Detector
from models.encoders import (
    DensePatchConfiguration,
    Encoder,
    EncoderConfiguration,
    PretrainedPatchConfiguration,
    create_encoder,
    encode_per_window,
)
from models.geometry import ScanGeometry
from models.inference import (
    BATCHES,
    FLOAT32,
    CudaGraphs,
    InBatches,
    InferenceError,
    InferencePlan,
    Precision,
    embedder,
    folded,
    network_of,
)
from models.scan import Scan, combine
from tests.models.detectors import SMALL, detector_of, learn, make, part, saved

CPU = torch.device("cpu")
GEOMETRY = ScanGeometry(image_size=44)  # 4 x 4 windows
# How far an embedding, of length 1, may be from that of float32: some roundings of its parts, each about a sixteenth.
ROUNDING = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}
REGISTRY = get_args(get_args(EncoderConfiguration)[0])
encoders = pytest.mark.parametrize("configuration", REGISTRY, ids=[kind().name for kind in REGISTRY])
precisions = pytest.mark.parametrize("precision", ROUNDING)


def build(configuration: type) -> Encoder:
    """An encoder in evaluation mode whose batch norms are far from the identity."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"width": 8} if configuration is DensePatchConfiguration else {}
    encoder = create_encoder(configuration(**settings), GEOMETRY).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return encoder


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 44, 44, generator=torch.Generator().manual_seed(1))


def plan(precision: Precision, **settings: Any) -> InferencePlan:
    return InferencePlan(precision=precision, **settings)


# --- what runs is the encoder ---------------------------------------------------------------------------------------


@encoders
def test_no_batch_norm_is_left_and_nothing_changes(configuration: type) -> None:
    encoder = build(configuration)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    network = folded(encoder)
    with torch.inference_mode():
        torch.testing.assert_close(network(images(2)), encoder(images(2)), rtol=0, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


@precisions
@encoders
def test_embeddings_are_float32_and_near_those_of_the_encoder(configuration: type, precision: Precision) -> None:
    encoder = build(configuration)
    network = network_of(encoder, plan(precision))
    assert {parameter.dtype for parameter in network.parameters()} == {getattr(torch, precision)}
    with torch.inference_mode():
        embeddings, expected = embedder(network, plan(precision), CPU)(images(2)), encoder(images(2))
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2, 4, 4))
    assert float((embeddings - expected).norm(dim=1).max()) <= ROUNDING[precision]


@precisions
@pytest.mark.parametrize("configuration", [kind for kind in REGISTRY if kind is not PretrainedPatchConfiguration])
def test_the_dense_scan_is_the_run_window_by_window(configuration: type, precision: Precision) -> None:
    network = network_of(build(configuration), plan(precision))
    with torch.inference_mode():
        dense, per_window = network.embeddings(images(1)), encode_per_window(network, images(1))
    assert float((dense - per_window).norm(dim=1).max()) <= ROUNDING[precision]


def test_batches_are_filled_up_and_cut() -> None:
    seen: list[int] = []

    def embed(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        return pixels * 2

    run = InBatches(embed)
    for count in (1, 3, 8, 9, 35):
        pixels = torch.rand(count, 3, 4, 4)
        assert torch.equal(run(pixels), pixels * 2)
    assert seen == [1, 4, 8, 16, 32, 4]
    assert set(seen) <= set(BATCHES)


# --- plans ----------------------------------------------------------------------------------------------------------


def test_auto_is_half_precision_where_the_device_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(inference, "computes_bfloat16", lambda device, native=native: native)
        assert InferencePlan().resolved(CPU).precision == expected
        assert plan("float16").resolved(CPU) == plan("float16")
    assert InferencePlan(engine="compile").resolved(torch.device("cuda")) == plan("float16", engine="compile")


def test_a_fitted_detector_keeps_the_plan_that_it_was_fitted_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "computes_bfloat16", lambda device: True)
    detector = detector_of(learn(SMALL.model_copy(update={"inference": InferencePlan()})))
    assert detector.scan.configuration.inference == plan("bfloat16")
    folder = saved(detector, tmp_path / "artifact")
    monkeypatch.setattr(inference, "computes_bfloat16", lambda device: False)  # another machine
    loaded = Detector.load(folder, "cpu")
    assert loaded.scan.configuration.inference == plan("bfloat16")
    [before], [after] = detector.predict([part(3, 80, 90)]), loaded.predict([part(3, 80, 90)])
    assert np.array_equal(before.score_map, after.score_map)
    kept = {tensor.dtype for tensor in loaded.scan.members[0].encoder.parameters()}
    assert kept == {torch.float32}  # the artifact has the weights as they were trained


def test_a_plan_moves_scores_and_its_calibration_with_them() -> None:
    by_plan = {name: make(SMALL.model_copy(update={"inference": plan(name)})) for name in ("float32", "bfloat16")}
    first, second = (detector.predict([part(3, 80, 90)])[0].score_map for detector in by_plan.values())
    assert 0 < np.abs(first - second).max() < 0.05
    scores, others = (detector.calibration.image_scores for detector in by_plan.values())
    assert 0 < np.abs(scores - others).max() < 0.05


def test_an_artifact_from_before_there_were_plans_is_float32(tmp_path: Path) -> None:
    detector = make()
    folder = saved(detector, tmp_path / "artifact")
    manifest = read_manifest(folder)
    configuration: dict[str, Any] = dict(manifest.configuration)
    del configuration["detector"]["inference"]
    (folder / "manifest.json").unlink()
    write_manifest(
        folder, category="plate", version=None, configuration=configuration, geometry=SMALL.geometry,
        data_fingerprint=detector.data_fingerprint,
    )  # fmt: skip
    loaded = Detector.load(folder, "cpu")
    assert loaded.scan.configuration.inference == FLOAT32
    [before], [after] = detector.predict([part(3, 80, 90)]), loaded.predict([part(3, 80, 90)])
    assert np.array_equal(before.score_map, after.score_map)


def test_a_plan_that_a_machine_cannot_run_says_what_to_do(tmp_path: Path) -> None:
    detector = make()
    needs_gpu = FLOAT32.model_copy(update={"engine": "cuda_graph"})
    with pytest.raises(InferenceError, match="float32 cuda_graph, needs a CUDA GPU"):
        Scan(with_plan(needs_gpu), detector.scan.members[0].encoder, KernelDensity(), CPU)
    detector.scan.configuration = with_plan(needs_gpu)
    folder = saved(detector, tmp_path / "artifact")
    detector.scan.configuration = SMALL
    with pytest.raises(ArtifactError, match=r"cannot run here: .*needs a CUDA GPU.*plumbline tune"):
        Detector.load(folder, "cpu")


def test_without_a_compiler_compile_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(function: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda function: no_compiler)
    with pytest.raises(InferenceError, match=r"install a C\+\+ compiler \(g\+\+\).*no C\+\+ compiler"):
        embedder(network_of(build(DensePatchConfiguration), FLOAT32), plan("float32", engine="compile"), CPU)


def test_an_ensemble_has_the_plan_of_its_members() -> None:
    scan = make().scan.members[0]
    assert combine([scan, scan]).configuration.inference == FLOAT32


def with_plan(chosen: InferencePlan) -> DetectorConfiguration:
    return SMALL.model_copy(update={"inference": chosen})


@encoders
def test_nothing_is_made_on_the_processor_while_a_network_runs_on_a_gpu(configuration: type) -> None:
    """A copy from there waits, and cannot be recorded. Shown by tensors that have no values, so no GPU is needed."""
    network = network_of(build(configuration), plan("float16"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        weights = {name: torch.empty_like(tensor, device="cuda") for name, tensor in network.state_dict().items()}
        pixels = torch.empty(2, 3, 44, 44, device="cuda")
        with torch.inference_mode(), Devices() as seen:
            functional_call(network, weights, pixels)
    assert seen.types == {"cuda"}


class Devices(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The types of device on which results of torch's operations lie."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.types: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self.types |= {result.device.type for result in tree_leaves(results) if isinstance(result, Tensor)}
        return results


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@encoders
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_recorded_kernels_give_what_the_network_gives(configuration: type, precision: Precision) -> None:
    device = torch.device("cuda")
    network = network_of(build(configuration).to(device), plan(precision))
    run = InBatches(CudaGraphs(network.embeddings))
    with torch.inference_mode():
        for count in (1, 3, 2, 3):
            pixels = torch.rand(count, 3, 44, 44, device=device)
            assert float((run(pixels) - network.embeddings(pixels)).norm(dim=1).max()) <= ROUNDING[precision]
