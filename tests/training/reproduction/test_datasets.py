"""Data sets in the files that torchvision reads, small ones made here, and what is said where they are missing."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, CelebA, FashionMNIST

from tests.training.reproduction.support import TEST, TRAIN
from training.data import DataError
from training.reproduction import datasets
from training.reproduction.datasets import DATASETS
from training.reproduction.paper import paper_figures

NOWHERE = "http://127.0.0.1:1/"  # a port that nobody listens on


def test_classes_are_those_of_the_paper() -> None:
    for dataset in DATASETS.values():
        named = {key.subject for key in paper_figures() if key.dataset == dataset.paper} - {"mean"}
        assert named in (set(dataset.classes), set())
        assert dataset.image_size == (64 if dataset.paper in ("Cat-vs-Dog", "CelebA") else 32)


def test_fashion_mnist_is_padded_and_made_rgb(fashion: Path) -> None:
    train, test = DATASETS["fashion-mnist"].load(fashion, 32)
    assert train.images.shape == (10 * TRAIN, 32, 32, 3)
    assert test.images.shape == (10 * TEST, 32, 32, 3)
    assert train.images.dtype == np.uint8
    assert np.bincount(train.labels).tolist() == [TRAIN] * 10
    raw = FashionMNIST(fashion, train=True).data.numpy()
    np.testing.assert_array_equal(train.images[:, 2:-2, 2:-2, 1], raw)
    edges = train.images.copy()
    edges[:, 2:-2, 2:-2] = 0
    assert edges.max() == 0


def write_cifar(folder: Path, names: list[str], content: dict[str, Any]) -> list[list[str]]:
    """Pickled batches of two images, and the list of them with their MD5."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, name in enumerate(names):
        data = np.full((2, 3 * 32 * 32), 10 * number, dtype=np.uint8)
        path = folder / name
        path.write_bytes(pickle.dumps({"data": data, **content}))
        listed.append([name, hashlib.md5(path.read_bytes()).hexdigest()])
    return listed


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / CIFAR10.base_folder
    train = write_cifar(folder, [f"data_batch_{number}" for number in range(1, 6)], {"labels": [3, 9]})
    test = write_cifar(folder, ["test_batch"], {"labels": [0, 1]})
    [[name, md5]] = write_cifar(folder, ["batches.meta"], {"label_names": list(DATASETS["cifar10"].classes)})
    for attribute, value in (("train_list", train), ("test_list", test)):
        monkeypatch.setattr(CIFAR10, attribute, value)
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    split = DATASETS["cifar10"].load(tmp_path, 32)
    assert split.train.images.shape == (10, 32, 32, 3)
    assert split.train.labels.tolist() == [3, 9] * 5
    assert split.test.labels.tolist() == [0, 1]


def test_cifar20_has_the_super_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / CIFAR100.base_folder
    train = write_cifar(folder, ["train"], {"fine_labels": [99, 0], "coarse_labels": [13, 4]})
    test = write_cifar(folder, ["test"], {"fine_labels": [1, 2], "coarse_labels": [1, 14]})
    [[name, md5]] = write_cifar(folder, ["meta"], {"fine_label_names": [str(number) for number in range(100)]})
    for attribute, value in (("train_list", train), ("test_list", test)):
        monkeypatch.setattr(CIFAR100, attribute, value)
    monkeypatch.setattr(CIFAR100, "meta", {"filename": name, "key": "fine_label_names", "md5": md5})
    split = DATASETS["cifar20"].load(tmp_path, 32)
    assert split.train.labels.tolist() == [13, 4]
    assert split.test.labels.tolist() == [1, 14]
    assert split.train.images.shape == (2, 32, 32, 3)


def test_celeba_trains_on_faces_without_glasses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / CelebA.base_folder
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06}.jpg" for number in range(6)]
    for number, name in enumerate(names):
        Image.new("RGB", (178, 218), (40 * number, 0, 0)).save(folder / "img_align_celeba" / name)
    parts, glasses = [0, 0, 0, 1, 2, 2], [-1, 1, -1, 1, 1, -1]
    (folder / "list_eval_partition.txt").write_text("".join(f"{n} {p}\n" for n, p in zip(names, parts, strict=True)))
    rows = "".join(f"{name}  1 {value}\n" for name, value in zip(names, glasses, strict=True))
    (folder / "list_attr_celeba.txt").write_text(f"6\nSmiling Eyeglasses\n{rows}")
    for name in ("list_bbox_celeba.txt", "list_landmarks_align_celeba.txt"):
        (folder / name).write_text("6\nx y\n" + "".join(f"{name} 1 1\n" for name in names))
    (folder / "identity_CelebA.txt").write_text("".join(f"{name} 1\n" for name in names))
    monkeypatch.setattr(CelebA, "file_list", [("", None, path.name) for path in folder.glob("*.txt")])
    train, test = DATASETS["celeba"].load(tmp_path, 64)
    assert train.images.shape == (3, 64, 64, 3)
    assert train.labels.tolist() == [0, 1, 0]
    assert test.labels.tolist() == [1, 0]
    assert abs(int(test.images[0, 32, 32, 0]) - 160) < 8  # the fifth image, by its colour


def test_cats_vs_dogs_splits_each_and_leaves_broken_files_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "PETS_TRAIN", 4)
    for label, name in enumerate(("Cat", "Dog")):
        folder = tmp_path / "PetImages" / name
        folder.mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (20 + number, 30), (40 * number, 200 * label, 0)).save(folder / f"{number}.jpg")
        (folder / "666.jpg").write_bytes(b"")
        (folder / "Thumbs.db").write_bytes(b"?")
    train, test = DATASETS["cats-vs-dogs"].load(tmp_path, 64)
    assert train.images.shape == (8, 64, 64, 3)
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert test.labels.tolist() == [0] * 2 + [1] * 2
    reds = np.concatenate([part.images[part.labels == 0][:, 32, 32, 0] for part in (train, test)])
    assert (np.sort(reds).astype(int) // 40).tolist() == pytest.approx([0, 1, 2, 3, 4, 5], abs=1)
    assert len(set(reds.tolist())) == 6  # each once: none is on both sides
    assert (train.images[train.labels == 1][..., 1] > 150).all()


def test_too_few_pets_are_refused(tmp_path: Path) -> None:
    for name in ("Cat", "Dog"):
        (tmp_path / "PetImages" / name).mkdir(parents=True)
        Image.new("RGB", (20, 30)).save(tmp_path / "PetImages" / name / "0.jpg")
    with pytest.raises(DataError, match="has 1 readable images; 10000 are trained on"):
        DATASETS["cats-vs-dogs"].load(tmp_path, 64)


@pytest.mark.parametrize(
    ("name", "mentions"),
    [
        ("fashion-mnist", ("FashionMNIST/raw", "ubyte")),
        ("cifar10", ("cifar-10-python.tar.gz",)),
        ("cifar20", ("cifar-100-python.tar.gz",)),
        ("cats-vs-dogs", ("kagglecatsanddogs_5340.zip", "PetImages/Cat")),
        ("celeba", ("img_align_celeba.zip", "gdown")),
    ],
)
def test_without_data_and_network_it_says_what_to_get(
    name: str, mentions: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FashionMNIST, "mirrors", [NOWHERE])
    monkeypatch.setattr(CIFAR10, "url", f"{NOWHERE}cifar-10-python.tar.gz")
    monkeypatch.setattr(CIFAR100, "url", f"{NOWHERE}cifar-100-python.tar.gz")
    monkeypatch.setattr(datasets, "PETS_URL", f"{NOWHERE}kagglecatsanddogs_5340.zip")
    monkeypatch.setitem(sys.modules, "gdown", None)  # torchvision's downloader of CelebA, where it is installed
    with pytest.raises(DataError) as error:
        DATASETS[name].load(tmp_path, 32)
    assert str(tmp_path) in str(error.value)
    for mention in mentions:
        assert mention in str(error.value)


HTML = b"<!DOCTYPE html><html><body>moved</body></html>"


def copied(fashion: Path, folder: Path) -> Path:
    """A copy of the small Fashion-MNIST to do harm to: the folder of its files."""
    return Path(shutil.copytree(fashion, folder, dirs_exist_ok=True)) / "FashionMNIST" / "raw"


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@pytest.mark.parametrize(
    "harm",
    [
        lambda content: b"",
        lambda content: bytes(16) + content[16:],
        lambda content: HTML,
        lambda content: content[:100],
        lambda content: content + b"more",
    ],
    ids=["empty", "zeroed header", "HTML", "truncated", "too long"],
)
def test_a_damaged_file_is_named(
    name: str, harm: Callable[[bytes], bytes], fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FashionMNIST, "mirrors", [NOWHERE])
    path = copied(fashion, tmp_path) / name
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(DataError) as error:
        DATASETS["fashion-mnist"].load(tmp_path, 32)
    assert f"Fashion-MNIST is damaged: remove or replace {path} (" in str(error.value)
    assert "-ubyte files of Fashion-MNIST" in str(error.value)
    assert "downloaded" not in str(error.value)


@pytest.mark.parametrize(("name", "part"), [("train", "train"), ("t10k", "test")])
def test_labels_for_some_images_only_are_refused(name: str, part: str, fashion: Path, tmp_path: Path) -> None:
    path = copied(fashion, tmp_path) / f"{name}-labels-idx1-ubyte"
    path.write_bytes(struct.pack(">2i", 0x801, 3) + bytes(3))
    count = 10 * (TRAIN if part == "train" else TEST)
    with pytest.raises(DataError, match=f"{count} {part} images and 3 labels. Remove or replace its {part} files"):
        DATASETS["fashion-mnist"].load(tmp_path, 32)


@pytest.mark.parametrize("name", ["cifar-10-batches-py/data_batch_3", "cifar-10-python.tar.gz"])
def test_a_damaged_batch_or_archive_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "url", f"{NOWHERE}cifar-10-python.tar.gz")
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"half of it")
    with pytest.raises(DataError, match=f"CIFAR-10 is damaged: remove or replace {path} "):
        DATASETS["cifar10"].load(tmp_path, 32)


def test_a_damaged_list_of_faces_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    path = tmp_path / "celeba" / "list_attr_celeba.txt"
    path.parent.mkdir()
    path.write_bytes(HTML)
    with pytest.raises(DataError, match=f"CelebA is damaged: remove or replace {path} "):
        DATASETS["celeba"].load(tmp_path, 32)


def test_a_truncated_archive_of_pets_is_named(tmp_path: Path) -> None:
    path = tmp_path / datasets.PETS_ARCHIVE
    path.write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(DataError, match=f"Cat-vs-Dog is damaged: remove or replace {path} "):
        DATASETS["cats-vs-dogs"].load(tmp_path, 64)


def test_a_damaged_member_of_the_archive_of_pets_is_named_with_what_was_unpacked(tmp_path: Path) -> None:
    path = tmp_path / datasets.PETS_ARCHIVE
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("Cat/0.jpg", "Dog/0.jpg"):
            archive.writestr(f"PetImages/{name}", name * 100)
    path.write_bytes(path.read_bytes().replace(b"Dog/0.jpgDog", b"Dog/0.jpgCat"))
    with pytest.raises(DataError, match=f"remove or replace {path}, {tmp_path / 'PetImages'} "):
        DATASETS["cats-vs-dogs"].load(tmp_path, 64)


def test_a_defect_of_the_program_is_no_damage(fashion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise KeyError("defect")

    monkeypatch.setattr(np, "pad", fail)
    with pytest.raises(KeyError, match="defect"):
        DATASETS["fashion-mnist"].load(fashion, 32)


@pytest.mark.parametrize("name", DATASETS)
def test_a_folder_that_does_not_exist_is_not_made(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path / 'nowhere'} does not exist; make it"):
        DATASETS[name].load(tmp_path / "nowhere", 32)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file, not a folder"):
        DATASETS[name].load(tmp_path / "file", 32)
