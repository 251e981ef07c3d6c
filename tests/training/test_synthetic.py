"""The synthetic products: exact masks, real variation, the layout on disk, and what is refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from models.images import read_mask
from training.data import open_dataset
from training.synthetic import (
    PRODUCTS,
    SMALLEST_SIZE,
    VISIBLE,
    Rendered,
    SyntheticError,
    defects_of,
    generate,
    render,
)

SIZE = 96
EVERY_DEFECT = [(product, defect) for product in PRODUCTS for defect in defects_of(product)]


def difference(part: Rendered) -> np.ndarray:
    """Largest difference (H, W) over the channels between an image and the same one without its defect."""
    change: np.ndarray = np.abs(part.image.astype(int) - part.flawless.astype(int)).max(axis=2)
    return change


@pytest.fixture(scope="module")
def washer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set."""
    out = tmp_path_factory.mktemp("data")
    return generate(out, "washer", seed=3, train=3, test_good=2, test_defects=2, image_size=SIZE)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.png"))}


@pytest.mark.parametrize(("product", "defect"), EVERY_DEFECT)
@pytest.mark.parametrize("size", [SMALLEST_SIZE, 97, 256])
def test_a_defect_changes_its_mask_and_nothing_else(product: str, defect: str, size: int) -> None:
    for index in range(2):
        part = render(product, defect, index=index, image_size=size)
        assert part.image.shape == part.flawless.shape == (size, size, 3)
        assert part.image.dtype == np.uint8
        assert part.mask.shape == (size, size)
        assert part.mask.any()
        changed = difference(part)
        assert changed[~part.mask].max() == 0
        assert changed[part.mask].mean() >= VISIBLE / 2  # clipping at black and white takes some of it
        assert (changed[part.mask] > 0).mean() > 0.8


@pytest.mark.parametrize(("product", "defect"), EVERY_DEFECT)
def test_defects_are_of_believable_size(product: str, defect: str) -> None:
    for index in range(5):
        mask = render(product, defect, index=index).mask
        assert 20 <= mask.sum() <= 3500
        assert cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] <= 5  # screws may lie on a scratch


@pytest.mark.parametrize("product", PRODUCTS)
def test_good_parts_have_no_mask_and_no_defect(product: str) -> None:
    part = render(product, image_size=SIZE)
    assert not part.mask.any()
    assert np.array_equal(part.image, part.flawless)


@pytest.mark.parametrize("product", PRODUCTS)
def test_good_images_differ_in_more_than_noise(product: str) -> None:
    images = np.stack([render(product, index=index, image_size=SIZE).image for index in range(10)]).astype(float)
    assert images.mean(axis=(1, 2, 3)).std() > 8  # exposure, in grey levels
    assert (images[..., 0] - images[..., 2]).mean(axis=(1, 2)).std() > 3  # colour temperature
    assert 15 < images.mean() < 240
    assert (images == 255).mean() < 0.02  # hardly anything is over-exposed


@pytest.mark.parametrize("product", PRODUCTS)
def test_brightness_and_contrast_do_not_tell_defects(product: str) -> None:
    """A detector that asks how far an image's statistics lie from the good ones must not separate the two."""
    good = np.stack([statistics(render(product, index=i, image_size=SIZE).image) for i in range(24)])
    bad = np.stack(
        [statistics(render(product, d, index=i, image_size=SIZE).image) for d in defects_of(product) for i in range(6)]
    )
    centre, spread = good.mean(axis=0), good.std(axis=0)
    good_scores, bad_scores = (np.abs((x - centre) / spread).max(axis=1) for x in (good, bad))
    auroc = (bad_scores[:, None] > good_scores[None, :]).mean()
    assert auroc < 0.75


def statistics(image: np.ndarray) -> np.ndarray:
    """Mean, deviation, darkest and brightest value of each channel."""
    pixels = image.reshape(-1, 3)
    return np.concatenate([pixels.mean(axis=0), pixels.std(axis=0), *np.percentile(pixels, [0.1, 99.9], axis=0)])


def test_layout_is_the_one_of_mvtec_ad(washer: Path) -> None:
    names = set(contents(washer))
    expected = {f"train/good/{index:03d}.png" for index in range(3)}
    expected |= {f"test/good/{index:03d}.png" for index in range(2)}
    for defect in ("scratch", "hole", "stain", "missing_part"):
        expected |= {f"test/{defect}/{index:03d}.png" for index in range(2)}
        expected |= {f"ground_truth/{defect}/{index:03d}_mask.png" for index in range(2)}
    assert washer.name == "washer"
    assert names == expected


def test_the_data_set_opens(washer: Path) -> None:
    dataset = open_dataset(washer.parent, "washer")
    assert len(dataset.train) == 3
    assert sorted(sample.defect for sample in dataset.test) == sorted([*["good"] * 2, *defects_of("washer") * 2])
    for sample in dataset.test:
        assert (sample.mask is None) == (sample.defect == "good")
        if sample.mask is not None:
            assert read_mask(sample.mask).any()


def test_files_hold_what_render_gives(washer: Path) -> None:
    part = render("washer", "scratch", seed=3, index=1, image_size=SIZE)
    image = cv2.imread(str(washer / "test/scratch/001.png"))
    mask = cv2.imread(str(washer / "ground_truth/scratch/001_mask.png"), cv2.IMREAD_UNCHANGED)
    assert image is not None
    assert mask is not None
    assert np.array_equal(image[..., ::-1], part.image)
    assert np.array_equal(mask, part.mask * 255)


def test_the_same_seed_gives_the_same_bytes_however_many_are_asked_for(washer: Path, tmp_path: Path) -> None:
    more = contents(generate(tmp_path, "washer", seed=3, train=5, test_good=1, test_defects=3, image_size=SIZE))
    few = contents(washer)
    shared = few.keys() & more.keys()
    assert len(shared) == 3 + 1 + 4 * 2 * 2
    assert all(few[name] == more[name] for name in shared)


def test_every_image_is_another_one(washer: Path, tmp_path: Path) -> None:
    other = generate(tmp_path, "washer", seed=4, train=3, test_good=2, test_defects=2, image_size=SIZE)
    images = [*contents(washer).values(), *contents(other).values()]
    assert len(set(images)) == len(images)


def test_only_objects_have_parts_to_miss() -> None:
    with_parts = {product for product in PRODUCTS if "missing_part" in defects_of(product)}
    assert with_parts == {"washer", "cap", "board"}


def test_an_unknown_product_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(SyntheticError, match=r"'gear'.*washer.*tile"):
        generate(tmp_path, "gear")
    assert not any(tmp_path.iterdir())


def test_an_unknown_defect_is_refused_with_those_that_exist() -> None:
    with pytest.raises(SyntheticError, match=r"fabric has no defect 'missing_part'.*scratch"):
        render("fabric", "missing_part")


@pytest.mark.parametrize(
    ("argument", "value"), [("train", 0), ("test_good", -1), ("test_defects", -1), ("image_size", 63)]
)
def test_counts_and_sizes_are_checked_before_anything_is_written(tmp_path: Path, argument: str, value: int) -> None:
    with pytest.raises(SyntheticError, match=f"{argument} is {value}"):
        generate(tmp_path, "tile", **{argument: value})
    assert not any(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tile").mkdir()
    note = tmp_path / "tile" / "note.txt"
    note.write_text("mine")
    with pytest.raises(SyntheticError, match="not empty"):
        generate(tmp_path, "tile", train=1, test_good=0, test_defects=0, image_size=SIZE)
    assert list((tmp_path / "tile").iterdir()) == [note]
    note.unlink()
    generate(tmp_path, "tile", train=1, test_good=0, test_defects=0, image_size=SIZE)


@pytest.mark.parametrize("defect", [None, "hole"])
def test_another_shot_shows_the_same_part_under_other_light(defect: str | None) -> None:
    shots = [render("washer", defect, index=3, image_size=96, shot=shot) for shot in range(3)]
    others = [render("washer", defect, index=4, image_size=96)]
    assert np.array_equal(shots[1].image, render("washer", defect, index=3, image_size=96, shot=1).image)
    assert not np.array_equal(shots[1].image, shots[2].image)

    def likeness(one: Rendered, other: Rendered) -> float:
        edges = [np.hypot(*np.gradient(part.flawless.mean(axis=2))).ravel() for part in (one, other)]
        return float(np.corrcoef(edges)[0, 1])

    assert min(likeness(shots[0], shot) for shot in shots[1:]) > likeness(shots[0], others[0]) + 0.1
    for shot in shots:
        assert (difference(shot)[~shot.mask] == 0).all()
        assert shot.mask.any() == (defect is not None)
        overlap = (shot.mask & shots[0].mask).sum() / max(1, (shot.mask | shots[0].mask).sum())
        assert overlap > 0.8 or defect is None
