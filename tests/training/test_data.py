from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.images import ResizeMode, place_image, place_mask, read_image, read_mask
from training.data import DataError, find_categories, load_images, load_mask, open_dataset, split_calibration

DATA = Path(os.environ.get("PLUMBLINE_DATA", Path(__file__).parents[2] / "../shared/data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no images in {DATA}; set PLUMBLINE_DATA")
SIZE = 48


def write_image(path: Path, value: int = 0, shape: tuple[int, int] = (20, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*shape, 3), value, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def cap(tmp_path: Path) -> Path:
    """A category in MVTec AD's layout, beside another and beside what is neither."""
    root = tmp_path / "data" / "cap"
    for name in ("000.png", "001.jpg", "002.BMP"):
        write_image(root / "train/good" / name)
    write_image(root / "test/good/000.png")
    for name in ("000.png", "001.tiff"):
        write_image(root / "test/crack" / name)
    write_image(root / "ground_truth/crack/000_mask.png")
    write_image(root / "ground_truth/crack/001.png")
    write_image(root.parent / "nut/train/good/000.png")
    (root.parent / "README.md").write_text("not a category")
    (root.parent / ".cache/train/good").mkdir(parents=True)
    for hidden in (root, root / "train/good", root / "test", root / "test/crack"):
        (hidden / ".DS_Store").write_bytes(b"\0")
    return root


class TestLayout:
    def test_a_category_is_found_from_above_and_from_its_own_folder(self, cap: Path) -> None:
        assert find_categories(cap.parent) == ["cap", "nut"]
        assert find_categories(cap) == ["cap"]
        above, own = open_dataset(cap.parent, "cap"), open_dataset(cap, None)
        assert above == own
        assert own.category == "cap"
        assert [path.name for path in own.train] == ["000.png", "001.jpg", "002.BMP"]
        assert [(sample.path.name, sample.defect, sample.mask and sample.mask.name) for sample in own.test] == [
            ("000.png", "crack", "000_mask.png"),
            ("001.tiff", "crack", "001.png"),
            ("000.png", "good", None),
        ]
        assert open_dataset(cap, "lid").category == "lid"

    def test_the_only_category_needs_no_name(self, cap: Path) -> None:
        shutil.rmtree(cap.parent / "nut")
        assert open_dataset(cap.parent, None).category == "cap"

    def test_a_plain_folder_of_good_images(self, tmp_path: Path) -> None:
        paths = [write_image(tmp_path / "lids" / name) for name in ("a.webp", "b.tif")]
        dataset = open_dataset(tmp_path / "lids", None)
        assert (dataset.category, dataset.train, dataset.test) == ("lids", tuple(paths), ())
        assert open_dataset(tmp_path / "lids", "lid").category == "lid"

    def test_a_category_without_test_images(self, cap: Path) -> None:
        assert open_dataset(cap.parent, "nut").test == ()

    @pytest.mark.parametrize("category", ["nub", "../data/cap", ".cache", "README.md", ""])
    def test_an_unknown_category_is_refused_naming_those_that_exist(self, cap: Path, category: str) -> None:
        with pytest.raises(DataError, match="it has cap, nut"):
            open_dataset(cap.parent, category)

    def test_several_categories_need_a_name(self, cap: Path) -> None:
        with pytest.raises(DataError, match="name one of cap, nut"):
            open_dataset(cap.parent, None)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="absent does not exist"):
            find_categories(tmp_path / "absent")
        with pytest.raises(DataError, match=r"expected <category>/train/good"):
            open_dataset(tmp_path, None)
        with pytest.raises(DataError, match="is a file, not a folder"):
            open_dataset(write_image(tmp_path / "one.png"), None)
        (tmp_path / "nut/train/good").mkdir(parents=True)
        with pytest.raises(DataError, match="good holds no images"):
            open_dataset(tmp_path, "nut")

    def test_a_missing_mask_is_named(self, cap: Path) -> None:
        (cap / "ground_truth/crack/001.png").unlink()
        with pytest.raises(
            DataError, match=r"crack/001\.tiff: its mask is missing; expected 001_mask\.png or 001\.png"
        ):
            open_dataset(cap, None)
        shutil.rmtree(cap / "ground_truth")
        with pytest.raises(DataError, match=r"crack/000\.png: its mask is missing"):
            open_dataset(cap, None)

    @pytest.mark.parametrize(
        "name", ["train/good/notes.txt", "test/crack/Thumbs.db", "test/notes.txt", "train/good/more/"]
    )
    def test_a_foreign_file_is_named_or_skipped(self, cap: Path, name: str) -> None:
        before = open_dataset(cap, None)
        if name.endswith("/"):
            (cap / name).mkdir()
        else:
            (cap / name).write_text("foreign")
        with pytest.raises(DataError, match=rf"{cap / name}.*Remove it$"):
            open_dataset(cap, None)
        with pytest.raises(DataError, match=rf"{cap / name}.*Remove it, or skip such files \(--skip-broken\)"):
            open_dataset(cap, None, skip_broken=False)
        dataset = open_dataset(cap, None, skip_broken=True)
        assert [path for path, _ in dataset.skipped] == [cap / name]
        assert (dataset.train, dataset.test) == (before.train, before.test)


class TestFingerprint:
    def test_a_file_name_may_be_any_bytes(self, cap: Path) -> None:
        before = open_dataset(cap, None).fingerprint()
        image = next((cap / "train" / "good").iterdir())
        image.rename(os.fsdecode(bytes(image.parent) + b"/gr\xfcn.png"))  # of a disk written in another encoding
        assert open_dataset(cap, None).fingerprint() != before

    def test_it_follows_names_and_contents_and_not_the_place(self, cap: Path, tmp_path: Path) -> None:
        first = open_dataset(cap, None).fingerprint()
        moved = Path(shutil.copytree(cap, tmp_path / "elsewhere"))
        assert open_dataset(moved, None).fingerprint() == first
        write_image(moved / "test/good/999.png")
        assert open_dataset(moved, None).fingerprint() == first
        seen = {first}
        write_image(moved / "train/good/000.png", value=1)
        seen.add(open_dataset(moved, None).fingerprint())
        (moved / "train/good/000.png").rename(moved / "train/good/003.png")
        seen.add(open_dataset(moved, None).fingerprint())
        (moved / "train/good/003.png").unlink()
        seen.add(open_dataset(moved, None).fingerprint())
        assert len(seen) == 4


class TestLoading:
    def test_images_come_in_order_as_the_serving_path_gives_them(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        paths = []
        for index in range(40):
            path = tmp_path / f"{index}.png"
            # Sizes falling from slow to fast to decode, so that threads finish out of order.
            shape = (400 - 10 * index, 300, 3)
            Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(path)
            paths.append(path)
        steps: list[tuple[int, int]] = []
        loaded = load_images(
            paths, size=SIZE, mode="letterbox", threads=4, progress=lambda done, total: steps.append((done, total))
        )
        assert loaded.images.shape == (40, SIZE, SIZE, 3)
        assert loaded.paths == tuple(paths)
        assert loaded.skipped == ()
        assert steps == [(done, 40) for done in range(1, 41)]
        for path, image, placement in zip(paths, loaded.images, loaded.placements, strict=True):
            expected, expected_placement = place_image(read_image(path), SIZE, "letterbox")
            np.testing.assert_array_equal(image, expected)
            assert placement == expected_placement

    def test_a_broken_file_is_named_or_skipped(self, tmp_path: Path) -> None:
        paths = [write_image(tmp_path / f"{index}.png", value=index) for index in range(5)]
        paths[1].write_bytes(b"")
        paths[3].write_bytes(paths[3].read_bytes()[:-30])
        with pytest.raises(DataError, match=r"1\.png.*empty.*Mend or remove the file$"):
            load_images(paths, size=SIZE, mode="squash")
        with pytest.raises(DataError, match=r"1\.png.*empty.*Mend or remove the file, or skip .*--skip-broken"):
            load_images(paths, size=SIZE, mode="squash", skip_broken=False)
        loaded = load_images(paths, size=SIZE, mode="squash", skip_broken=True)
        assert loaded.paths == (paths[0], paths[2], paths[4])
        assert loaded.images[:, 0, 0, 0].tolist() == [0, 2, 4]
        assert len(loaded.placements) == 3
        (first, first_reason), (second, second_reason) = loaded.skipped
        assert (first, second) == (paths[1], paths[3])
        assert "empty" in first_reason
        assert "truncated" in second_reason

    def test_nothing_but_broken_files_is_an_error_even_then(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        path.write_text("text")
        with pytest.raises(DataError, match=r"none of 1 files could be read.*a\.png"):
            load_images([path], size=SIZE, mode="squash", skip_broken=True)

    def test_no_images_are_no_error(self) -> None:
        assert load_images([], size=SIZE, mode="squash").images.shape == (0, SIZE, SIZE, 3)


class TestMasks:
    @pytest.mark.parametrize("mode", ["squash", "letterbox"])
    def test_a_mask_lies_as_its_image_does(self, cap: Path, mode: ResizeMode) -> None:
        crack, _, good = open_dataset(cap, None).test
        assert crack.mask is not None
        mask = np.zeros((20, 30), dtype=np.uint8)
        mask[5:15, 10:20] = 255
        Image.fromarray(mask).save(crack.mask)
        placement = place_image(read_image(crack.path), SIZE, mode)[1]
        np.testing.assert_array_equal(load_mask(crack, placement), place_mask(mask > 0, SIZE, mode))
        assert load_mask(good, placement).shape == (SIZE, SIZE)
        assert not load_mask(good, placement).any()

    def test_a_mask_of_another_size_is_refused(self, cap: Path) -> None:
        crack = open_dataset(cap, None).test[0]
        assert crack.mask is not None
        write_image(crack.mask, shape=(20, 31))
        placement = place_image(read_image(crack.path), SIZE, "squash")[1]
        with pytest.raises(DataError, match=r"000_mask\.png is 31x20 pixels but its image .*000\.png is 30x20"):
            load_mask(crack, placement)


def paths_of(group_sizes: Sequence[int]) -> tuple[Path, ...]:
    return tuple(
        Path(f"/images/lot{group}_{index:03d}.png") for group, size in enumerate(group_sizes) for index in range(size)
    )


class TestSplit:
    @settings(max_examples=200, deadline=None)
    @given(
        sizes=st.lists(st.integers(1, 12), min_size=2, max_size=12),
        fraction=st.floats(0.01, 0.99),
        seed=st.integers(0, 1000),
    )
    def test_groups_stay_whole_and_the_share_is_near(self, sizes: list[int], fraction: float, seed: int) -> None:
        paths = paths_of(sizes)
        fit, calibration = split_calibration(paths, fraction=fraction, seed=seed, group_pattern=r"^lot(\d+)_")
        assert sorted(fit + calibration) == sorted(paths)
        assert fit == tuple(path for path in paths if path in fit)
        assert calibration == tuple(path for path in paths if path in calibration)
        groups = [{path.name.split("_")[0] for path in part} for part in (fit, calibration)]
        assert groups[0]
        assert groups[1]
        assert not groups[0] & groups[1]
        if len(groups[0]) > 1:  # no further group would have brought it nearer
            distance = abs(len(calibration) - fraction * len(paths))
            for group in groups[0]:
                more = len(calibration) + sizes[int(group.removeprefix("lot"))]
                assert abs(more - fraction * len(paths)) >= distance - 1e-9

    @settings(max_examples=50, deadline=None)
    @given(count=st.integers(2, 300), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
    def test_single_images_meet_the_fraction(self, count: int, fraction: float, seed: int) -> None:
        fit, calibration = split_calibration(paths_of([count]), fraction=fraction, seed=seed, group_pattern=None)
        assert len(fit) + len(calibration) == count
        assert abs(len(calibration) - min(max(fraction * count, 1), count - 1)) <= 0.5

    def test_it_is_seeded_and_does_not_depend_on_the_order(self) -> None:
        paths = paths_of([50])

        def split(order: Sequence[Path], seed: int) -> set[Path]:
            return set(split_calibration(order, fraction=0.2, seed=seed, group_pattern=None)[1])

        assert split(paths, 1) == split(paths[::-1], 1)
        assert split(paths, 1) != split(paths, 2)
        drawn = Counter(path for seed in range(100) for path in split(paths, seed))
        assert len(drawn) == 50  # every image has its chance
        assert max(drawn.values()) < 45

    def test_the_pattern_is_searched_in_the_file_name_alone(self) -> None:
        paths = [Path(f"/lot9/part{part}-{view}.png") for part in range(4) for view in "abc"]
        fit, calibration = split_calibration(paths, fraction=0.25, seed=0, group_pattern=r"(part\d)")
        assert (len(fit), len(calibration)) == (9, 3)
        with pytest.raises(DataError, match=r"part0-a\.png: the file name does not match"):
            split_calibration(paths, fraction=0.25, seed=0, group_pattern=r"lot(\d)")

    @pytest.mark.parametrize(
        ("pattern", "message"),
        [(r"lot\d", "no group"), (r"lot(\d", "not a regular expression"), (r"lot|(x)", "does not match")],
    )
    def test_a_pattern_that_names_no_group_is_refused(self, pattern: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            split_calibration(paths_of([2, 2]), fraction=0.5, seed=0, group_pattern=pattern)

    @pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 2.0, float("nan")])
    def test_the_fraction_lies_between_0_and_1(self, fraction: float) -> None:
        with pytest.raises(DataError, match="between 0 and 1"):
            split_calibration(paths_of([2, 2]), fraction=fraction, seed=0, group_pattern=None)

    def test_one_group_cannot_be_split(self) -> None:
        with pytest.raises(DataError, match=r"at least 2 groups.*there are 1"):
            split_calibration(paths_of([9]), fraction=0.5, seed=0, group_pattern=r"lot(\d)")
        with pytest.raises(DataError, match="at least 2 images, there are 1"):
            split_calibration(paths_of([1]), fraction=0.5, seed=0, group_pattern=None)


@needs_data
class TestRealData:
    def test_bottle(self) -> None:
        dataset = open_dataset(DATA / "mvtec_256", "bottle")
        assert len(dataset.train) == 209
        assert Counter(sample.defect for sample in dataset.test) == {
            "good": 20,
            "broken_large": 20,
            "broken_small": 22,
            "contamination": 21,
        }
        with pytest.raises(DataError, match="it has bottle, pill"):
            open_dataset(DATA / "mvtec_256", "cable")

    def test_magnetic_tile_of_many_sizes(self) -> None:
        dataset = open_dataset(DATA, "magnetic_tile")
        assert len(dataset.train) == 720
        assert sum(sample.mask is not None for sample in dataset.test) == 388
        loaded = load_images(dataset.train[:60], size=SIZE, mode="letterbox")
        assert loaded.images.shape == (60, SIZE, SIZE, 3)
        assert len({(p.original_width, p.original_height) for p in loaded.placements}) > 20
        for sample in dataset.test[::40]:
            if sample.mask is not None:
                assert read_mask(sample.mask).shape == read_image(sample.path).shape[:2]
