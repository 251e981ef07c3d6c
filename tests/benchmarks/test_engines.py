"""The benchmark of engines runs them all on one detector, and says how far each is from torch."""

from __future__ import annotations

from benchmarks.engines import measure
from tests.models.detectors import make


def test_every_engine_is_timed_and_compared() -> None:
    result = measure(make(), rounds=1)
    engines = result["engines"]
    names = ["torch float32", "torch bfloat16", "onnxruntime float32", "openvino float32", "openvino bfloat16"]
    assert list(engines) == names
    assert all(facts["milliseconds"] > 0 for facts in engines.values())
    assert engines["torch float32"]["difference"] == 0
    assert max(engines[name]["difference"] for name in names if name.endswith("float32")) < 1e-3
    assert engines["torch bfloat16"]["difference"] > 1e-3
