"""The benchmark of fitting measures a density that was fitted on all windows."""

from __future__ import annotations

from benchmarks.fitting import measure
from models.configuration import DetectorConfiguration
from models.encoders import DensePatchConfiguration
from models.geometry import ScanGeometry


def test_it_fits_on_all_windows_and_says_what_that_took() -> None:
    geometry = ScanGeometry(image_size=64)
    result = measure(4, DetectorConfiguration(geometry=geometry, encoder=DensePatchConfiguration(width=2)))
    assert result["offered"] == 4 * geometry.grid_size**2
    assert result["seconds"] > 0
    assert 0 < result["peak_gibibytes_before"] <= result["peak_gibibytes"]
