"""The semantic one-class data sets of section 4: labelled images, read through torchvision's loaders.

Layouts under the folder of data sets are torchvision's own, so that what it has downloaded before is found:
``FashionMNIST/raw``, ``cifar-10-batches-py``, ``cifar-100-python``, ``celeba`` and, of the Microsoft archive,
``PetImages/Cat`` and ``PetImages/Dog``.
"""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10, CIFAR100, CelebA, FashionMNIST, ImageFolder
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import check_integrity, download_and_extract_archive

from training.data import DataError, load_images

CELEBA_ATTRIBUTE = "Eyeglasses"
PETS = "PetImages"
PETS_URL = (
    "https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-4869-8368-6DEBA77B919F/kagglecatsanddogs_5340.zip"
)
PETS_ARCHIVE = PETS_URL.rsplit("/", 1)[-1]
PETS_TRAIN = 10_000  # images of each animal to train on, as the authors split; the rest is for testing
PETS_SPLIT_SEED = 0


class Labelled(NamedTuple):
    """(N, S, S, 3) uint8 RGB images and the (N,) class number of each."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Split(NamedTuple):
    """What may be trained on, and what is tested on."""

    train: Labelled
    test: Labelled


@dataclass(frozen=True)
class SemanticDataset:
    """A data set of classes, one of which is the normal one in turn.

    Attributes:
        paper: its name in the paper's tables.
        classes: the paper's name of each class that is normal in turn; class number i is ``classes[i]``.
        image_size: side of the images in the paper, in pixels.
        source: what to get and where to put it, for who has no network.
    """

    paper: str
    classes: tuple[str, ...]
    image_size: int
    source: str
    _read: Callable[[Path, int], Split]
    _damaged: Callable[[Path], Iterator[Path]]  # those of its files in a folder that are there and not whole

    def load(self, folder: Path, size: int) -> Split:
        """Read the images under ``folder``; torchvision downloads what is missing.

        Args:
            folder: of data sets; it must exist, so that a mistyped one is not made.
            size: side of the images, in pixels; those of 28 and of 32 pixels are only ever read at 32.

        Raises:
            DataError: it is not there and cannot be downloaded, or it is damaged; says what to get.
        """
        if not folder.exists():
            raise DataError(f"{folder} does not exist; make it to have {self.paper} downloaded into it")
        if not folder.is_dir():
            raise DataError(f"{folder} is a file, not a folder of data sets")
        try:
            with redirect_stdout(sys.stderr):  # torchvision prints what it downloads; standard output is for results
                split = self._read(folder, size)
        except DataError:
            raise
        except Exception as error:  # torchvision's loaders let nearly any exception out on a damaged file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if damaged := ", ".join(map(str, self._damaged(folder))):
                raise DataError(
                    f"{self.paper} is damaged: remove or replace {damaged} ({reason}). Get {self.source}"
                ) from error
            if not isinstance(error, OSError | RuntimeError | HTTPException | pickle.UnpicklingError):
                raise
            raise DataError(
                f"{self.paper} is not in {folder} and could not be downloaded ({reason}). Get {self.source}"
            ) from error
        for part, (images, labels) in split._asdict().items():
            if len(images) != len(labels):
                raise DataError(
                    f"{self.paper} in {folder} is damaged: {len(images)} {part} images and {len(labels)} labels. "
                    f"Remove or replace its {part} files. Get {self.source}"
                )
        return split


def _fashion_mnist(folder: Path, size: int) -> Split:
    def read(train: bool) -> Labelled:
        data = FashionMNIST(folder, train=train, download=True)
        edge = (size - data.data.shape[1]) // 2
        padded = np.pad(data.data.numpy(), ((0, 0), (edge, edge), (edge, edge)))  # zeros around, as the authors do
        return Labelled(np.repeat(padded[..., None], 3, axis=3), data.targets.numpy())

    return Split(read(True), read(False))


def _damaged_fashion_mnist(folder: Path) -> Iterator[Path]:
    for name, _ in FashionMNIST.resources:
        path = folder / "FashionMNIST" / "raw" / Path(name).stem
        if path.exists():
            try:
                (read_image_file if "images" in name else read_label_file)(path)
            except Exception:  # as above
                yield path


def _cifar10(folder: Path, size: int) -> Split:
    def read(train: bool) -> Labelled:
        data = CIFAR10(folder, train=train, download=True)
        return Labelled(data.data, np.asarray(data.targets))

    return Split(read(True), read(False))


def _cifar20(folder: Path, size: int) -> Split:
    """CIFAR-100 under its 20 super-classes, which torchvision's loader leaves in the files that it has checked."""

    def read(train: bool) -> Labelled:
        data = CIFAR100(folder, train=train, download=True)
        [(name, _)] = data.train_list if train else data.test_list
        with (folder / data.base_folder / name).open("rb") as file:
            content = pickle.load(file, encoding="latin1")
        return Labelled(data.data, np.asarray(content["coarse_labels"]))

    return Split(read(True), read(False))


def _damaged_cifar(data: type[CIFAR10]) -> Callable[[Path], Iterator[Path]]:
    def damaged(folder: Path) -> Iterator[Path]:
        known = [*data.train_list, *data.test_list, (data.meta["filename"], data.meta["md5"])]
        inside = [(f"{data.base_folder}/{name}", md5) for name, md5 in known]
        yield from _not_whole(folder, [*inside, (data.filename, data.tgz_md5)])

    return damaged


def _not_whole(folder: Path, files: Iterable[tuple[str, str]]) -> Iterator[Path]:
    """Those of ``files``, each with its MD5, that are in ``folder`` with another content."""
    for name, md5 in files:
        if (folder / name).exists() and not check_integrity(folder / name, md5):
            yield folder / name


def _celeba(folder: Path, size: int) -> Split:
    """Faces with eyeglasses are the anomalies: class 0 has none, class 1 wears them."""

    def read(split: str) -> Labelled:
        data = CelebA(folder, split=split, target_type="attr", download=True)
        labels = data.attr[:, data.attr_names.index(CELEBA_ATTRIBUTE)].numpy()
        paths = [folder / data.base_folder / "img_align_celeba" / name for name in data.filename]
        return Labelled(load_images(paths, size=size, mode="squash").images, labels)

    return Split(read("train"), read("test"))


def _damaged_celeba(folder: Path) -> Iterator[Path]:
    yield from _not_whole(folder / CelebA.base_folder, [(name, md5) for _, md5, name in CelebA.file_list])


def _cats_vs_dogs(folder: Path, size: int) -> Split:
    """The archive that Microsoft offers; a few of its files are no images and are left out."""
    if not (folder / PETS).is_dir():
        download_and_extract_archive(PETS_URL, folder)
    data = ImageFolder(folder / PETS)
    if [name.lower() for name in data.classes] != ["cat", "dog"]:
        raise DataError(f"{folder / PETS} must hold the folders Cat and Dog, and no other; it has {data.classes}")
    parts: dict[bool, list[Labelled]] = {True: [], False: []}
    for label in range(2):
        paths = sorted((Path(path) for path, target in data.samples if target == label), key=_number)
        images = load_images(paths, size=size, mode="squash", skip_broken=True).images
        if len(images) <= PETS_TRAIN:
            raise DataError(
                f"{folder / PETS / data.classes[label]} has {len(images)} readable images; {PETS_TRAIN} are trained "
                "on and the rest tested, so more are needed"
            )
        order = np.random.RandomState(PETS_SPLIT_SEED).permutation(len(images))
        for train, chosen in ((True, order[:PETS_TRAIN]), (False, order[PETS_TRAIN:])):
            parts[train].append(Labelled(images[chosen], np.full(len(chosen), label)))
    train_part, test_part = (
        Labelled(np.concatenate([part.images for part in both]), np.concatenate([part.labels for part in both]))
        for both in (parts[True], parts[False])
    )
    return Split(train_part, test_part)


def _damaged_cats_vs_dogs(folder: Path) -> Iterator[Path]:
    """The archive, and the folder that it was unpacked to in part: single images that are damaged are left out."""
    archive = folder / PETS_ARCHIVE
    if archive.exists():
        try:
            with zipfile.ZipFile(archive) as content:
                is_whole = content.testzip() is None
        except Exception:  # as above
            is_whole = False
        if not is_whole:
            yield archive
    if (folder / PETS).exists():
        yield folder / PETS


def _number(path: Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isdigit() else -1, path.name)


_CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

DATASETS: Mapping[str, SemanticDataset] = {
    "fashion-mnist": SemanticDataset(
        "Fashion-MNIST",
        tuple(str(number) for number in range(10)),
        32,
        "the four *-ubyte files of Fashion-MNIST, unpacked, and put them into FashionMNIST/raw there",
        _fashion_mnist,
        _damaged_fashion_mnist,
    ),
    "cifar10": SemanticDataset(
        "CIFAR-10",
        _CIFAR10_CLASSES,
        32,
        "cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html and put it there",
        _cifar10,
        _damaged_cifar(CIFAR10),
    ),
    "cifar20": SemanticDataset(
        "CIFAR-20",
        tuple(str(number) for number in range(20)),
        32,
        "cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html and put it there",
        _cifar20,
        _damaged_cifar(CIFAR100),
    ),
    "cats-vs-dogs": SemanticDataset(
        "Cat-vs-Dog",
        ("cat", "dog"),
        64,
        f"{PETS_ARCHIVE} from Microsoft's download centre and unpack it there, so that {PETS}/Cat and "
        f"{PETS}/Dog lie in it",
        _cats_vs_dogs,
        _damaged_cats_vs_dogs,
    ),
    "celeba": SemanticDataset(
        "CelebA",
        ("no eyeglasses",),
        64,
        "img_align_celeba.zip and the five .txt files of CelebA (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html), "
        "and put them into celeba there, the archive unpacked",
        _celeba,
        _damaged_celeba,
    ),
}
