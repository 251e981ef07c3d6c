"""CutPaste: what it pastes, the labels it gives, and its loss against a slow, obvious version of itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.encoders import ResNet18Patch
from models.geometry import ScanGeometry
from tests.training.support import (
    GEOMETRY,
    SIDE,
    Recorder,
    make_encoder,
    random_crops,
    slow_accuracy,
    slow_mean_loss,
    window_boxes,
)
from training.pretext import CutPaste, CutPasteConfiguration
from training.pretext.cutpaste import IGNORED, KINDS, NORMAL, PATCH, SCAR

# Every setting, so that no test hangs on a default.
CUTPASTE: dict[str, Any] = {
    "head_depth": 1,
    "head_width": 8,
    "patch_side": (0.3, 0.9),
    "scar_width": (0.05, 0.2),
    "scar_length": (0.3, 1.0),
    "light": 0.1,
    "jitter": 0.4,
    "hue": 0.1,
    "opacity": (1.0, 1.0),
    "visible": 0.04,
    "changed": 0.01,
}


def make_cutpaste(crop_size: int, **settings: Any) -> CutPaste:
    torch.manual_seed(1)
    configuration = CutPasteConfiguration(**(CUTPASTE | settings))
    return CutPaste(configuration, 8 * 2, crop_size, GEOMETRY).eval()


def paste(task: CutPaste, crops: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return task.paste(crops)


def changed_pixels(pasted: Tensor, crops: Tensor) -> Tensor:
    """(B, C, C), whatever the task says about it."""
    return (pasted != crops).any(dim=1)


@pytest.mark.parametrize("changed", [1e-6, 1 / 64, 0.25, 1.0])
@pytest.mark.parametrize("crop_patches", [1, 2, 3])
def test_labels_are_what_a_count_of_the_changed_pixels_says(crop_patches: int, changed: float) -> None:
    size = crop_patches * SIDE
    crops = random_crops(24, size)
    pasted, labels = paste(make_cutpaste(size, changed=changed), crops)
    side = GEOMETRY.windows(size)
    assert labels.shape == (len(crops), side, side)
    seen: set[int] = set()
    for change, labels_of_crop in zip(changed_pixels(pasted, crops), labels.flatten(1).tolist(), strict=True):
        kinds = set(labels_of_crop) - {NORMAL, IGNORED}
        assert kinds in (set(), {PATCH}, {SCAR})  # a crop gets one thing pasted
        for (top, left), label in zip(window_boxes(size), labels_of_crop, strict=True):
            count = sum(map(sum, change[top : top + SIDE, left : left + SIDE].tolist()))
            if count == 0:
                assert label == NORMAL
            elif count >= changed * SIDE * SIDE:
                assert label in kinds
            else:
                assert label == IGNORED
        seen |= set(labels_of_crop)
    if changed == 1e-6:
        assert seen == {NORMAL, PATCH, SCAR}
    elif changed == 0.25 and crop_patches > 1:
        assert {NORMAL, PATCH, IGNORED} <= seen


def test_a_window_of_the_wanted_share_is_labelled_and_one_pixel_less_is_not() -> None:
    crops = random_crops(64, 2 * SIDE)
    pasted, labels = paste(make_cutpaste(2 * SIDE, changed=1e-6), crops)
    change = changed_pixels(pasted, crops)
    counts = [
        int(change[b, top : top + SIDE, left : left + SIDE].sum())
        for b in range(len(crops))
        for top, left in window_boxes(2 * SIDE)
    ]
    wanted = sorted(count for count in counts if count)[len([count for count in counts if count]) // 2]
    _, strict = paste(make_cutpaste(2 * SIDE, changed=wanted / SIDE**2), crops)
    expected = [
        label if count == 0 or count >= wanted else IGNORED
        for label, count in zip(labels.flatten().tolist(), counts, strict=True)
    ]
    assert strict.flatten().tolist() == expected
    assert {count for count in counts if 0 < count < wanted} != set()


def test_patches_are_compact_and_scars_are_long_and_thin() -> None:
    """By their extent alone: squares of half a window's side, and lines as long as a window and a 16th as wide."""
    size, line = 3 * SIDE, SIDE / 16
    shapes = {"patch_side": (0.5, 0.5), "scar_width": (1 / 16, 1 / 16), "scar_length": (1.0, 1.0)}
    crops = random_crops(90, size)
    pasted, labels = paste(make_cutpaste(size, visible=0.0, changed=1e-6, **shapes), crops)
    areas: dict[int, list[int]] = {PATCH: [], SCAR: []}
    extents: dict[int, list[float]] = {PATCH: [], SCAR: []}
    for change, label in zip(changed_pixels(pasted, crops), labels.flatten(1).amax(dim=1).tolist(), strict=True):
        if label == NORMAL:
            assert not change.any()
            continue
        positions = change.nonzero().float()
        areas[label].append(len(positions))
        extents[label].append(float(torch.pdist(positions).max()) if len(positions) > 1 else 0)
    diagonal = math.hypot(SIDE / 2, SIDE / 2)
    assert max(extents[PATCH]) <= diagonal
    assert max(extents[SCAR]) <= math.hypot(SIDE, line)
    assert max(extents[SCAR]) > diagonal  # long
    assert max(areas[PATCH]) == pytest.approx((SIDE / 2) ** 2, rel=0.1)
    assert max(areas[SCAR]) <= SIDE * line * 1.3  # thin; a digital line is a little thicker than it is
    share = [len(areas[PATCH]), len(areas[SCAR])]
    assert min(share) > len(crops) / 6  # about a third each
    assert sum(share) < len(crops) * 5 / 6


def test_turned_at_any_angle() -> None:
    shapes = {"scar_width": (1 / 16, 1 / 16), "scar_length": (1.0, 1.0)}
    crops = random_crops(120, 3 * SIDE)
    pasted, labels = paste(make_cutpaste(3 * SIDE, visible=0.0, **shapes), crops)
    angles = []
    for change, label in zip(changed_pixels(pasted, crops), labels.flatten(1).amax(dim=1).tolist(), strict=True):
        if label == SCAR:
            positions = change.nonzero().double()
            _, _, axes = torch.linalg.svd(positions - positions.mean(dim=0))
            angles.append(math.degrees(math.atan2(float(axes[0, 0]), float(axes[0, 1]))) % 180)
    assert np.histogram(angles, bins=4, range=(0, 180))[0].min() >= 2


def test_what_is_not_pasted_on_is_left_as_it_was() -> None:
    """Also in the batch's other direction: where something changed, it changed visibly."""
    visible = 0.1
    crops = random_crops(60, 2 * SIDE)
    pasted, labels = paste(make_cutpaste(2 * SIDE, visible=visible, changed=1e-6), crops)
    difference = (pasted - crops).abs().mean(dim=1)
    change = changed_pixels(pasted, crops)
    assert difference[change].min() > visible
    assert 0.0 < change.float().mean() < 0.2
    normal = labels.flatten(1).amax(dim=1) == NORMAL
    assert torch.equal(pasted[normal], crops[normal])
    assert len(crops) / 6 < int(normal.sum()) < len(crops) / 2
    assert pasted.min() >= -1e-6
    assert pasted.max() <= 1 + 1e-6


def test_no_label_claims_a_change_that_cannot_be_seen() -> None:
    flat = torch.full((30, 3, 2 * SIDE, 2 * SIDE), 0.5)
    pasted, labels = paste(make_cutpaste(2 * SIDE, jitter=0.0, hue=0.0, visible=0.01, changed=1e-6), flat)
    assert torch.equal(pasted, flat)
    assert (labels == NORMAL).all()
    # The same flat crops with jittered content are labelled: it was the sameness that hid the paste.
    pasted, labels = paste(make_cutpaste(2 * SIDE, jitter=0.5, visible=0.01, changed=1e-6), flat)
    assert set(labels.flatten().tolist()) == {NORMAL, PATCH, SCAR}


LEVELS = torch.linspace(0, 1, 20)


def grey_crops() -> Tensor:
    """Flat crops, each of a grey of its own."""
    return LEVELS[:, None, None, None].expand(-1, 3, SIDE, SIDE).contiguous()


def test_the_content_comes_from_the_other_crops() -> None:
    levels, crops = LEVELS, grey_crops()
    pasted, _ = paste(make_cutpaste(SIDE, jitter=0.0, hue=0.0, visible=0.01), crops)
    change = changed_pixels(pasted, crops)
    assert change.any()
    values = pasted[:, 0][change]
    distance = (values[:, None] - levels).abs()
    assert distance.min(dim=1).values.max() < 1e-5
    own = levels[change.nonzero()[:, 0]]
    assert (values - own).abs().min() > 0.01
    jittered, _ = paste(make_cutpaste(SIDE, jitter=0.5, visible=0.01), crops)
    values = jittered[:, 0][changed_pixels(jittered, crops)]
    assert (values[:, None] - levels).abs().min(dim=1).values.max() > 0.01


def test_content_of_half_opacity_lets_half_of_the_crop_through() -> None:
    crops = grey_crops()
    opaque, _ = paste(make_cutpaste(SIDE, jitter=0.0, hue=0.0, visible=0.0), crops)
    half, _ = paste(make_cutpaste(SIDE, jitter=0.0, hue=0.0, visible=0.0, opacity=(0.5, 0.5)), crops)
    assert (opaque != crops).any()
    torch.testing.assert_close(half, (opaque + crops) / 2)


def test_content_is_turned_by_any_angle_from_anywhere_in_its_crop() -> None:
    """Crops that brighten to the right: content brightens to every side, and comes from dark and bright alike."""
    side = 3 * SIDE
    crops = torch.linspace(0, 1, side).expand(60, 3, side, side)
    shapes = {"patch_side": (1.0, 1.0), "task": "binary"}
    pasted, _ = paste(make_cutpaste(side, jitter=0.0, hue=0.0, visible=0.0, **shapes), crops)
    change, values = changed_pixels(pasted, crops), pasted[:, 0]
    across, down = values.diff(dim=2), values.diff(dim=1)
    inside = change[:, 1:, 1:] & change[:, :-1, 1:] & change[:, 1:, :-1]
    step = 1 / (side - 1)
    angles = torch.atan2(down[:, :, 1:][inside], across[:, 1:][inside])
    smooth = torch.hypot(down[:, :, 1:][inside], across[:, 1:][inside]).sub(step).abs() < 0.01 * step
    assert torch.histc(angles[smooth], 8, -math.pi, math.pi).min() > 0.02 * int(smooth.sum())
    assert torch.histc(values[change], 4, 0, 1).min() > 0.1 * int(change.sum())


def test_small_patches_are_as_many_as_large_ones() -> None:
    """Sides are drawn evenly in their logarithm: half of them below the geometric mean."""
    torch.manual_seed(0)
    side, count = 3 * SIDE, 150
    task = make_cutpaste(side, patch_side=(0.1, 0.9), jitter=0.0, hue=0.0)
    mask, _ = task._foreign(torch.zeros(count, 3, side, side), torch.full((count, 1, 1), PATCH))
    cut_off = mask[:, 0].any(1) | mask[:, -1].any(1) | mask[:, :, 0].any(1) | mask[:, :, -1].any(1)
    areas = mask[~cut_off].sum(dim=(1, 2))
    assert float((areas < 0.09 * SIDE**2).float().mean()) == pytest.approx(0.5, abs=0.14)


def test_the_seed_decides_what_is_pasted() -> None:
    task, crops = make_cutpaste(2 * SIDE), random_crops(8, 2 * SIDE)
    first, labels = paste(task, crops, seed=1)
    again, labels_again = paste(task, crops, seed=1)
    other, _ = paste(task, crops, seed=2)
    assert torch.equal(first, again)
    assert torch.equal(labels, labels_again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "classes"), [("binary", {PATCH: 1}), ("scar", {SCAR: 1}), ("three_way", {PATCH: 1, SCAR: 2})]
)
def test_each_task_pastes_what_it_is_to_tell_apart(name: str, classes: dict[int, int]) -> None:
    """Told by their areas: scars cover at most 2 % of a window, patches up to 36 %."""
    shapes = {"patch_side": (0.5, 0.6), "scar_width": (0.05, 0.06), "scar_length": (0.25, 0.33)}
    crops = random_crops(90, 3 * SIDE)
    task = make_cutpaste(3 * SIDE, task=name, visible=0.0, changed=1e-6, **shapes)
    pasted, labels = paste(task, crops)
    areas = changed_pixels(pasted, crops).sum(dim=(1, 2))
    of_crop = labels.flatten(1).amax(dim=1)
    assert set(of_crop.tolist()) == {NORMAL, *classes.values()}
    assert torch.equal(of_crop == NORMAL, areas == 0)
    for kind, label in classes.items():
        drawn = areas[of_crop == label]
        if kind == SCAR:
            assert 0 < drawn.max() < 0.05 * SIDE**2  # a digital line is a little thicker than it is
        else:
            assert 0.2 * SIDE**2 < drawn.max() < 0.4 * SIDE**2
        assert len(drawn) == pytest.approx(len(crops) / (len(classes) + 1), rel=0.35)


@pytest.mark.parametrize("crop_patches", [1, 2])
@pytest.mark.parametrize("name", KINDS)
def test_the_loss_is_over_the_windows_that_are_decided(name: str, crop_patches: int) -> None:
    size = crop_patches * SIDE
    changed = 0.02 if name == "scar" else 0.2
    task, encoder = make_cutpaste(size, task=name, changed=changed), make_encoder()
    crops = random_crops(48 // crop_patches**2, size)
    task.augment = nn.Identity()
    pasted, labels = paste(task, crops, seed=3)
    assert {NORMAL, 1, IGNORED} <= set(labels.flatten().tolist()) <= {IGNORED, *range(len(KINDS[name]))}
    assert task.head[-1].out_features == len(KINDS[name])
    logits, counted = [], []
    with torch.no_grad():
        for crop, labels_of_crop in zip(pasted, labels.flatten(1).tolist(), strict=True):
            for (top, left), label in zip(window_boxes(size), labels_of_crop, strict=True):
                if label != IGNORED:
                    window = crop[:, top : top + SIDE, left : left + SIDE]
                    logits.append(task.head(encoder.features(window[None])[:, :, 0, 0]))
                    counted.append(label)
        torch.manual_seed(3)
        result = task(encoder, crops)
    assert float(result.loss) == pytest.approx(slow_mean_loss(logits, counted), abs=1e-5)
    assert float(result.accuracy) == pytest.approx(slow_accuracy(logits, counted), abs=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_at_image_level_a_whole_image_is_one_window(name: str) -> None:
    geometry = ScanGeometry(image_size=64, patch_size=64)
    torch.manual_seed(0)
    encoder = ResNet18Patch(geometry, stem="imagenet").eval()
    task = CutPaste(CutPasteConfiguration(**CUTPASTE | {"task": name}), encoder.feature_dimension, 64, geometry).eval()
    task.augment = nn.Identity()
    images = random_crops(24, 64)
    pasted, labels = paste(task, images, seed=3)
    assert labels.shape == (24, 1, 1)
    assert {*range(len(KINDS[name]))} <= set(labels.flatten().tolist())
    for change, label in zip(changed_pixels(pasted, images), labels.flatten().tolist(), strict=True):
        share = sum(map(sum, change.tolist())) / 64**2
        assert (label == NORMAL) == (share == 0)
        assert (label == IGNORED) == (0 < share < CUTPASTE["changed"])
    with torch.no_grad():
        decided = [
            (task.head(encoder.features(image[None])[:, :, 0, 0]), label)
            for image, label in zip(pasted, labels.flatten().tolist(), strict=True)
            if label != IGNORED
        ]
        torch.manual_seed(3)
        result = task(encoder, images)
    logits, counted = [row for row, _ in decided], [label for _, label in decided]
    assert float(result.loss) == pytest.approx(slow_mean_loss(logits, counted), rel=1e-4)
    assert float(result.accuracy) == pytest.approx(slow_accuracy(logits, counted), abs=1e-6)


def test_a_batch_of_nothing_but_undecided_windows_teaches_nothing_and_breaks_nothing() -> None:
    task, encoder, crops = make_cutpaste(SIDE, changed=1.0), make_encoder(), random_crops(2, SIDE)
    task.augment = nn.Identity()
    seed = next(seed for seed in range(1000) if (paste(task, crops, seed)[1] == IGNORED).all())
    torch.manual_seed(seed)
    result = task(encoder, crops)
    result.loss.backward()
    assert float(result.loss.detach()) == 0
    assert 0 <= float(result.accuracy) <= 1
    assert all(parameter.grad is None or parameter.grad.abs().max() == 0 for parameter in encoder.parameters())


def test_crops_are_jittered_before_anything_is_pasted() -> None:
    task, encoder, crops = make_cutpaste(SIDE), Recorder(make_encoder()), random_crops(12, SIDE)
    torch.manual_seed(4)
    task(encoder, crops)
    torch.manual_seed(4)
    views = task.augment(crops)
    assert not torch.equal(views, crops)
    pasted, _ = task.paste(views)
    assert torch.equal(encoder.seen, pasted)


def test_faint_pastes_are_among_the_usual_ones() -> None:
    assert CutPasteConfiguration().opacity == (0.15, 1.0)
