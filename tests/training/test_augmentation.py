"""The view augmentation: every sample with parameters of its own, in range, repeatable."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from kornia.color import rgb_to_hsv
from torch import Tensor, nn

from models.geometry import ScanGeometry
from training.augmentation import RandomSquareCrop, colour_jitter, moco_augmentation, view_augmentation

PATCH = ScanGeometry().patch_size
ROUNDING = 1e-6
MAKERS: dict[str, Callable[[], nn.Module]] = {
    "view": lambda: view_augmentation(PATCH),
    "view of two patches": lambda: view_augmentation(2 * PATCH),
    "view without flips": lambda: view_augmentation(PATCH, flip=False),
    "views of MoCo": lambda: moco_augmentation(PATCH),
    "jitter": lambda: colour_jitter(0.4),
    "jitter with hue": lambda: colour_jitter(0.4, hue=0.5),
    "weak jitter": lambda: colour_jitter(0.1),
}
every_augmentation = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def random_crops(count: int, size: int = PATCH, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def changed(module: nn.Module, crops: Tensor) -> Tensor:
    """(B,) whether each sample came out another."""
    torch.manual_seed(0)
    views: Tensor = module(crops)
    return (views != crops).flatten(1).any(dim=1)


@every_augmentation
def test_copies_of_one_crop_come_out_different(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    views = make()(random_crops(1, 2 * PATCH).expand(8, -1, -1, -1))
    for one, other in combinations(views, 2):
        assert not torch.allclose(one, other, atol=1e-3)


@every_augmentation
@pytest.mark.parametrize("extreme", [False, True])
def test_values_stay_in_range(make: Callable[[], nn.Module], extreme: bool) -> None:
    crops = random_crops(64, 2 * PATCH)
    torch.manual_seed(1)
    views = make()(crops.round() if extreme else crops)
    assert views.dtype == torch.float32
    assert views.isfinite().all()
    assert views.min() >= -ROUNDING
    assert views.max() <= 1 + ROUNDING


@every_augmentation
def test_the_seed_decides(make: Callable[[], nn.Module]) -> None:
    crops = random_crops(8, 2 * PATCH)

    def views(seed: int) -> Tensor:
        torch.manual_seed(seed)
        result: Tensor = make()(crops)
        return result

    assert torch.equal(views(3), views(3))
    assert not torch.equal(views(3), views(4))


@every_augmentation
def test_the_input_is_left_alone(make: Callable[[], nn.Module]) -> None:
    crops = random_crops(4, 2 * PATCH)
    before = crops.clone()
    make()(crops)
    assert torch.equal(crops, before)


@pytest.mark.parametrize("size", [PATCH, 3 * PATCH])
def test_views_have_the_size_asked_for(size: int) -> None:
    assert view_augmentation(size)(random_crops(2, size)).shape == (2, 3, size, size)


def test_a_view_has_the_five_transforms_of_the_paper() -> None:
    crops = random_crops(400)
    crop, flip, jitter, grey, blur = view_augmentation(PATCH).children()
    assert changed(crop, crops).float().mean() > 0.95
    assert changed(jitter, crops).all()
    # Probabilities, four standard deviations wide.
    assert changed(flip, crops).float().mean() == pytest.approx(0.5, abs=0.1)
    assert changed(grey, crops).float().mean() == pytest.approx(0.2, abs=0.08)
    assert changed(blur, crops).float().mean() == pytest.approx(0.5, abs=0.1)

    torch.manual_seed(0)
    assert all(torch.equal(view, x) or torch.equal(view, x.flip(2)) for view, x in zip(flip(crops), crops, strict=True))
    torch.manual_seed(0)
    grey_views = grey(crops)[changed(grey, crops)]
    torch.testing.assert_close(grey_views[:, :1].expand_as(grey_views), grey_views)
    torch.manual_seed(0)
    roughness = blur(crops).diff(dim=3).abs().mean(dim=(1, 2, 3)) / crops.diff(dim=3).abs().mean(dim=(1, 2, 3))
    assert roughness.max() < 1 + 1e-5
    assert roughness[changed(blur, crops)].mean() < 0.5
    # Nothing is padded in.
    flat = torch.full((8, 3, PATCH, PATCH), 0.25)
    torch.testing.assert_close(crop(flat), flat)


def test_crops_are_squares_of_any_side_from_half_to_all() -> None:
    along = torch.linspace(0, 1, PATCH)
    images = torch.stack([along.expand(PATCH, -1), along[:, None].expand(-1, PATCH), torch.zeros(PATCH, PATCH)])
    torch.manual_seed(0)
    crops = RandomSquareCrop(PATCH, smallest=0.5)(images.expand(4000, -1, -1, -1))
    columns, rows = crops[:, 0, 0], crops[:, 1, :, 0]  # where each column and row was, in widths of the image
    sides = (columns[:, -1] - columns[:, 0]) * (PATCH - 1) + 1
    torch.testing.assert_close(sides, (rows[:, -1] - rows[:, 0]) * (PATCH - 1) + 1)
    shares = sides.sort().values / PATCH
    torch.testing.assert_close(shares, torch.linspace(0.5, 1, 4000), atol=0.02, rtol=0)
    room = PATCH - sides
    for start in (columns[:, 0] * (PATCH - 1), rows[:, 0] * (PATCH - 1)):
        assert (start > -1e-3).all()
        assert (start < room + 1e-3).all()
        assert (start / room)[room > 1].mean() == pytest.approx(0.5, abs=0.02)


def test_views_show_half_of_a_side_or_more_and_those_of_moco_a_fifth_of_the_area() -> None:
    ramp = torch.linspace(0, 1, 2 * PATCH).expand(3, 2 * PATCH, -1).expand(1000, -1, -1, -1)
    torch.manual_seed(0)
    for make, least in ((view_augmentation, 0.5), (moco_augmentation, math.sqrt(0.2 * 3 / 4))):
        crop = next(make(PATCH).children())
        shown = crop(ramp)[:, 0, 0, [0, -1]].diff(dim=1).abs()  # of the width
        assert float(shown.min()) == pytest.approx(least, abs=0.05)
        assert float(shown.max()) == pytest.approx(1, abs=0.05)


def test_the_hue_of_a_view_is_turned_as_far_as_the_authors_turn_it() -> None:
    """By up to 0.4 of its circle, evenly; for four in five of MoCo's views by up to 0.1."""
    red = torch.tensor([0.6, 0.4, 0.4])[:, None, None].expand(2000, 3, 4, 4)
    torch.manual_seed(0)
    for make, place, of_nine_tenths in ((view_augmentation, 2, 0.36), (moco_augmentation, 1, 0.0875)):
        jitter = list(make(PATCH).children())[place]
        hue = rgb_to_hsv(jitter(red))[:, 0, 0, 0] / (2 * math.pi)
        assert float(torch.minimum(hue, 1 - hue).quantile(0.9)) == pytest.approx(of_nine_tenths, rel=0.06)


def test_the_views_of_moco_have_their_own_probabilities() -> None:
    crops = random_crops(400)
    crop, jitter, grey, blur, flip = moco_augmentation(PATCH).children()
    assert changed(crop, crops).float().mean() > 0.95
    for transform, probability in ((jitter, 0.8), (grey, 0.2), (blur, 0.5), (flip, 0.5)):
        assert changed(transform, crops).float().mean() == pytest.approx(probability, abs=0.1)


def test_jitter_moves_colours_not_pixels() -> None:
    flat = torch.rand(16, 3, 1, 1).expand(-1, -1, PATCH, PATCH)
    torch.manual_seed(0)
    views = colour_jitter(0.4, hue=0.5)(flat)
    torch.testing.assert_close(views, views[:, :, :1, :1].expand_as(views))
    assert (views[:, :, 0, 0] - flat[:, :, 0, 0]).abs().amax(dim=1).min() > 0.01


def test_no_strength_changes_nothing() -> None:
    crops = random_crops(4)
    torch.testing.assert_close(colour_jitter(0.0)(crops), crops)
