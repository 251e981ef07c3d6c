from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.geometry import Box, ScanGeometry
from models.heatmap import GaussianUpsampler, peak_window
from models.region_of_interest import RegionOfInterest

PAPER = ScanGeometry()
SMALL = ScanGeometry(image_size=41, patch_size=16, stride=3)  # one row and column are not scanned
geometries = pytest.mark.parametrize(
    "geometry",
    [
        ScanGeometry(image_size=48),
        ScanGeometry(image_size=51),
        SMALL,
        ScanGeometry(image_size=30, stride=7, patch_size=9),
    ],
    ids=lambda geometry: f"{geometry.image_size}-{geometry.patch_size}-{geometry.stride}",
)


def random_map(geometry: ScanGeometry, seed: int = 0) -> NDArray[np.float32]:
    side = geometry.grid_size
    return np.random.default_rng(seed).normal(-3, 2, (side, side)).astype(np.float32)


def upsample(score_map: NDArray[np.float32], geometry: ScanGeometry, sigma: float = 4) -> NDArray[np.float32]:
    upsampled: NDArray[np.float32] = GaussianUpsampler(geometry, sigma)(torch.from_numpy(score_map)[None])[0].numpy()
    assert upsampled.shape == (geometry.image_size, geometry.image_size)
    return upsampled


def oracle(score_map: NDArray[np.float32], geometry: ScanGeometry, sigma: float) -> NDArray[np.float64]:
    """Each pixel the mean of the windows over it, weighted by the Gaussian of its distance from their centres."""
    scanned = geometry.image_size - geometry.unscanned
    result = np.empty((scanned, scanned))
    for y in range(scanned):
        for x in range(scanned):
            total = weights = 0.0
            rows, columns = geometry.windows_over(y, x)
            for i in rows:
                for j in columns:
                    center_y, center_x = geometry.center(i, j)
                    weight = math.exp(-((y - center_y) ** 2 + (x - center_x) ** 2) / (2 * sigma**2))
                    total += weight * score_map[i, j]
                    weights += weight
            result[y, x] = total / weights
    return np.pad(result, (0, geometry.unscanned), mode="edge")


@geometries
@pytest.mark.parametrize("sigma", [2.0, 4.0, 9.0])
def test_every_pixel_is_the_weighted_mean_of_the_windows_over_it(geometry: ScanGeometry, sigma: float) -> None:
    score_map = random_map(geometry)
    np.testing.assert_allclose(upsample(score_map, geometry, sigma), oracle(score_map, geometry, sigma), atol=1e-5)


@pytest.mark.parametrize("geometry", [PAPER, ScanGeometry(image_size=131), SMALL])
@pytest.mark.parametrize("sigma", [2.0, 4.0, 16.0])
def test_a_constant_map_stays_constant_up_to_the_borders(geometry: ScanGeometry, sigma: float) -> None:
    constant = np.full((geometry.grid_size, geometry.grid_size), -7.25, np.float32)
    np.testing.assert_allclose(upsample(constant, geometry, sigma), -7.25, rtol=1e-6)


@pytest.mark.parametrize("window", [(28, 28), (10, 40), (20, 9)])
def test_a_hot_window_lies_at_its_centre(window: tuple[int, int]) -> None:
    score_map = np.zeros((PAPER.grid_size, PAPER.grid_size), np.float32)
    score_map[window] = 1
    hot = upsample(score_map, PAPER).astype(np.float64)
    rows, columns = np.indices(hot.shape)
    centroid = (rows * hot).sum() / hot.sum(), (columns * hot).sum() / hot.sum()
    assert centroid == pytest.approx((15.5 + 4 * window[0], 15.5 + 4 * window[1]), abs=1e-3)
    assert centroid == pytest.approx(PAPER.center(*window), abs=1e-3)


@given(seed=st.integers(0, 1000), sigma=st.floats(2, 20))
@settings(max_examples=20, deadline=None)
def test_a_pixel_stays_within_the_scores_of_the_windows_over_it(seed: int, sigma: float) -> None:
    score_map = random_map(SMALL, seed)
    upsampled = upsample(score_map, SMALL, sigma)
    for y, x in np.random.default_rng(seed).integers(0, SMALL.image_size - SMALL.unscanned, (20, 2)):
        rows, columns = SMALL.windows_over(int(y), int(x))
        over = score_map[rows.start : rows.stop, columns.start : columns.stop]
        assert over.min() - 1e-5 <= upsampled[y, x] <= over.max() + 1e-5


def test_it_is_linear_and_treats_each_map_of_a_batch_by_itself() -> None:
    first, second = torch.from_numpy(random_map(SMALL, 1)), torch.from_numpy(random_map(SMALL, 2))
    spread = GaussianUpsampler(SMALL)(torch.stack([first, second, 2 * first - second + 3]))
    torch.testing.assert_close(spread[2], 2 * spread[0] - spread[1] + 3, rtol=0, atol=1e-5)


def test_it_commutes_with_transposing_the_image() -> None:
    score_map = random_map(SMALL)
    transposed = upsample(np.ascontiguousarray(score_map.T), SMALL)
    np.testing.assert_allclose(transposed, upsample(score_map, SMALL).T, atol=1e-6)


@pytest.mark.parametrize("sigma", [1.99, 0.0, -4.0, math.nan])
def test_a_sigma_that_leaves_pixels_without_weight_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma must be at least"):
        GaussianUpsampler(PAPER, sigma)


def test_so_is_a_kernel_whose_corners_vanish_in_float32() -> None:
    with pytest.raises(ValueError, match="sigma"):
        GaussianUpsampler(ScanGeometry(image_size=128, patch_size=64), sigma=2)


def test_so_is_a_stride_that_steps_over_pixels() -> None:
    with pytest.raises(ValueError, match="stride"):
        GaussianUpsampler(ScanGeometry(image_size=41, patch_size=16, stride=17))


@given(seed=st.integers(0, 1000), start=st.integers(0, 15), length=st.integers(10, 26), upright=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_peak_is_the_maximum_over_the_windows_of_the_image(
    seed: int, start: int, length: int, upright: bool
) -> None:
    score_map, side = random_map(SMALL, seed), SMALL.image_size
    whole = Box(x=0, y=0, width=side, height=side)
    assert score_map[peak_window(score_map, SMALL, whole)] == score_map.max()
    content = Box(x=start, y=0, width=length, height=side) if upright else Box(x=0, y=start, width=side, height=length)
    middle = slice(max(0, -(-(start - 9) // 3)), (start + length - 7) // 3 + 1)  # centres 7.5 + 3k, 1.5 of reach
    band = score_map[:, middle] if upright else score_map[middle]
    assert score_map[peak_window(score_map, SMALL, content)] == band.max()


def test_the_peak_of_a_region_lies_in_it_whatever_the_sign_of_the_scores() -> None:
    score_map = random_map(SMALL)
    score_map -= score_map.max() + 1
    mask = np.zeros((41, 41), np.bool_)
    mask[20:, :9] = True
    region, whole = RegionOfInterest.of_mask(mask), Box(x=0, y=0, width=41, height=41)
    inside = score_map[region.windows(SMALL, whole)]
    assert score_map[peak_window(score_map, SMALL, whole, region)] == inside.max() < score_map.max()


def test_sigma_is_a_quarter_of_the_patch_where_nothing_is_said() -> None:
    score_map = torch.from_numpy(random_map(SMALL))[None]
    torch.testing.assert_close(GaussianUpsampler(SMALL)(score_map), GaussianUpsampler(SMALL, 4.0)(score_map))


@pytest.mark.cuda
def test_cuda_upsamples_as_the_cpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    maps = torch.from_numpy(np.stack([random_map(PAPER, seed) for seed in range(2)]))
    on_cuda = GaussianUpsampler(PAPER, device="cuda")(maps.to("cuda")).cpu()
    torch.testing.assert_close(on_cuda, GaussianUpsampler(PAPER)(maps), rtol=0, atol=1e-5)


@geometries
def test_it_is_the_papers_transposed_convolution(geometry: ScanGeometry) -> None:
    """One kernel of Gaussian weights, as wide as the patch, at the scan's stride; divided by what it makes of ones."""
    offsets = torch.arange(geometry.patch_size, dtype=torch.float64) - (geometry.patch_size - 1) / 2
    kernel = torch.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 4.0**2))[None, None]
    score_map = torch.from_numpy(random_map(geometry))[None, None].double()
    spread, total = (F.conv_transpose2d(x, kernel, stride=geometry.stride) for x in (score_map, score_map * 0 + 1))
    scanned = geometry.image_size - geometry.unscanned
    upsampled = GaussianUpsampler(geometry, 4)(score_map[0].float())[:, :scanned, :scanned]
    torch.testing.assert_close(upsampled.double(), (spread / total)[0], rtol=0, atol=2e-6)
