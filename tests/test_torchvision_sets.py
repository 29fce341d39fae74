"""Torchvision's sets, from small stand-ins in each one's own format on the disk. Nothing is downloaded.

An image is one grey level that says its class, so that a label is right exactly if the picture is of it.
"""

from __future__ import annotations

import bz2
import importlib
import json
import os
import pickle
import pkgutil
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image

from harness.data import clear_caches, load_target, split_indices, torchvision_sets
from harness.data.torchvision_sets import TORCHVISION
from harness.inputs import Pixels
from tests.refusals import refused
from tests.trials import MakeSpec

TRAIN, VAL, TEST = [0, 1, 2, 2, 1, 0, 0, 1], [1, 0, 2], [2, 2, 0, 1]
PARTS = {"train": TRAIN, "val": VAL, "test": TEST}
Write = Callable[[Path], None]


def grey(label: int) -> int:
    return 30 + 60 * label


def flat(label: int, side: int = 28) -> NDArray[np.uint8]:
    return np.full((side, side), grey(label), np.uint8)


def save(path: Path, label: int, side: int = 24) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (grey(label),) * 3).save(path)


def write_text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_idx(path: Path, array: NDArray[Any], kind: int = 8) -> None:
    """LeCun's format: two zeros, the type, the rank, the sides, the numbers (big end first)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">BBBB", 0, 0, kind, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    path.write_bytes(head + array.astype(array.dtype.newbyteorder(">")).tobytes())


def mnist_like(folder: str, prefix: str = "", test: str = "t10k", shift: int = 0) -> Write:
    def write(root: Path) -> None:
        for part, labels in (("train", TRAIN), (test, TEST)):
            raw = root / folder / "raw"
            images = np.stack([flat(label) for label in labels])
            write_idx(raw / f"{prefix}{part}-images-idx3-ubyte", images)
            numbers = np.array(labels, np.uint8) + np.uint8(shift)
            write_idx(raw / f"{prefix}{part}-labels-idx1-ubyte", numbers)

    return write


def qmnist(root: Path) -> None:
    for part, labels in (("train", TRAIN), ("test", TEST)):
        raw = root / "QMNIST" / "raw"
        write_idx(raw / f"qmnist-{part}-images-idx3-ubyte", np.stack([flat(v) for v in labels]))
        rows = np.array([[v, 4, 99, 1, 2, 3, 0, 0] for v in labels], np.int32)
        write_idx(raw / f"qmnist-{part}-labels-idx2-int", rows, kind=12)


def cifar(folder: str, files: dict[str, list[int]], meta: str, keys: tuple[str, str]) -> Write:
    def write(root: Path) -> None:
        base = root / folder
        base.mkdir(parents=True)
        for name, labels in files.items():
            pixels = np.stack([np.full(3072, grey(v), np.uint8) for v in labels])
            entry: dict[str, Any] = {"data": pixels.reshape(-1, 3072), keys[0]: labels}
            (base / name).write_bytes(pickle.dumps(entry))
        (base / meta).write_bytes(pickle.dumps({keys[1]: ["ant", "bee", "cow"]}))

    return write


def usps(root: Path) -> None:
    for name, labels in (("usps.bz2", TRAIN), ("usps.t.bz2", TEST)):
        value = [grey(v) / 255 * 2 - 1 + 1e-4 for v in labels]
        lines = [
            f"{v + 1} " + " ".join(f"{i + 1}:{x:.6f}" for i in range(256))
            for v, x in zip(labels, value, strict=True)
        ]
        (root / name).write_bytes(bz2.compress("\n".join(lines).encode()))


def semeion(root: Path) -> None:
    rows = []
    for label in TRAIN:
        pixels = np.zeros(256)
        pixels[: 256 * grey(label) // 255] = 1  # as many white pixels as the grey says
        one_hot = np.eye(10)[label]
        rows.append(" ".join(f"{v:.4f}" for v in [*pixels, *one_hot]))
    write_text(root / "semeion.data", *rows)


def svhn(root: Path) -> None:
    for part, labels in (("train", TRAIN), ("test", TEST)):
        pixels = np.stack([np.full((32, 32, 3), grey(v), np.uint8) for v in labels], axis=3)
        digits = np.array([[v or 10] for v in labels], np.uint8)  # 0 is written as 10
        scipy.io.savemat(root / f"{part}_32x32.mat", {"X": pixels, "y": digits})


def stl10(root: Path) -> None:
    base = root / "stl10_binary"
    base.mkdir()
    for part, labels in (("train", TRAIN), ("test", TEST)):
        np.stack([np.full((3, 96, 96), grey(v), np.uint8) for v in labels]).tofile(
            base / f"{part}_X.bin"
        )
        (np.array(labels, np.uint8) + np.uint8(1)).tofile(base / f"{part}_y.bin")
    (base / "unlabeled_X.bin").write_bytes(b"")
    write_text(base / "class_names.txt", "ant", "bee", "cow")


def in_class_folders(root: Path, part: list[int], names: tuple[str, ...], suffix: str) -> None:
    """root/CLASS/NUMBER.SUFFIX; written backwards, so that the order of a folder's entries is no order."""
    for number, label in reversed(list(enumerate(part))):
        save(root / names[label] / f"{number:04d}.{suffix}", label)


def folders(names: tuple[str, ...], suffix: str, **parts: list[int]) -> Write:
    """A folder of class folders for each part; "__" in the name of a part stands for "/"."""

    def write(root: Path) -> None:
        for part, labels in parts.items():
            in_class_folders(root / part.replace("__", "/"), labels, names, suffix)

    return write


def numbered(root: Path, names: tuple[str, ...], name: str) -> None:
    """Files counted from 1 within each class, as Caltech has them."""
    seen = [0, 0, 0]
    for label in TRAIN:
        seen[label] += 1
        file = name.format(label=label + 1, number=seen[label])
        save(root / names[label] / file, label)


def caltech101(root: Path) -> None:
    base = root / "caltech101" / "101_ObjectCategories"
    numbered(base, ("Faces", "ant", "yin_yang"), "image_{number:04d}.jpg")
    save(base / "BACKGROUND_Google" / "image_0001.jpg", 0)


def caltech256(root: Path) -> None:
    names = ("001.ak47", "002.american-flag", "003.backpack")
    numbered(root / "caltech256" / "256_ObjectCategories", names, "{label:03d}_{number:04d}.jpg")


def dtd(root: Path) -> None:
    base = root / "dtd" / "dtd"
    names = ("banded", "dotted", "woven")
    for part, labels in PARTS.items():
        files = [f"{names[v]}/{names[v]}_{part}{i}.jpg" for i, v in enumerate(labels)]
        write_text(base / "labels" / f"{part}1.txt", *files)
        for file, label in zip(files, labels, strict=True):
            save(base / "images" / file, label)


def aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    names = ("707-320", "A300B4", "Boeing 717")
    write_text(data / "variants.txt", *names)
    for part, labels in PARTS.items():
        ids = [f"{part}{i:03d}" for i in range(len(labels))]
        lines = [f"{n} {names[v]}" for n, v in zip(ids, labels, strict=True)]
        write_text(data / f"images_variant_{part}.txt", *lines)
        for name, label in zip(ids, labels, strict=True):
            save(data / "images" / f"{name}.jpg", label)


def flowers(root: Path) -> None:
    base = root / "flowers-102"
    every = [*TEST, *TRAIN, *VAL]
    for number, label in enumerate(every, 1):
        save(base / "jpg" / f"image_{number:05d}.jpg", label)
    at = np.arange(1, len(every) + 1)
    parts = {"tstid": at[:4], "trnid": at[4:12], "valid": at[12:]}
    scipy.io.savemat(base / "setid.mat", parts)
    scipy.io.savemat(base / "imagelabels.mat", {"labels": np.array(every) + 1})


def food101(root: Path) -> None:
    base = root / "food-101"
    names = ("apple_pie", "bibimbap", "waffles")
    for part, labels in (("train", TRAIN), ("test", TEST)):
        listed: dict[str, list[str]] = {name: [] for name in reversed(names)}
        for i, label in enumerate(labels):
            listed[names[label]].append(f"{names[label]}/{part}{i}")
            save(base / "images" / names[label] / f"{part}{i}.jpg", label)
        write_text(base / "meta" / f"{part}.json", json.dumps(listed))


def gtsrb(root: Path) -> None:
    base = root / "gtsrb"
    in_class_folders(base / "GTSRB" / "Training", TRAIN, ("00000", "00001", "00002"), "ppm")
    rows = []
    for i, label in enumerate(TEST):
        save(base / "GTSRB" / "Final_Test" / "Images" / f"{i:05d}.ppm", label)
        rows.append(f"{i:05d}.ppm;53;54;6;5;48;49;{label}")
    write_text(base / "GT-final_test.csv", "Filename;Width;Height;X1;Y1;X2;Y2;ClassId", *rows)


def fer2013(file: str, head: str) -> Write:
    def write(root: Path) -> None:
        rows = []
        usages = ["Training"] * 8 + ["PublicTest"] * 2 + ["PrivateTest"] * 2
        for label, usage in zip([*TRAIN, *TEST], usages, strict=True):
            values = {
                "emotion": str(label),
                "pixels": " ".join([str(grey(label))] * 48 * 48),
                "Usage": usage,
            }
            rows.append(",".join(values[key.strip()] for key in head.split(",")))
        write_text(root / "fer2013" / file, head, *rows)

    return write


def fer2013_of_the_contest(root: Path) -> None:
    rows = [f"{v}," + " ".join([str(grey(v))] * 48 * 48) for v in TRAIN]
    write_text(root / "fer2013" / "train.csv", "emotion,pixels", *rows)
    write_text(root / "fer2013" / "test.csv", "pixels", " ".join(["9"] * 48 * 48))


def stanford_cars(root: Path) -> None:
    base = root / "stanford_cars"
    kind = np.dtype([("class", "i4"), ("fname", "O")])
    files = {"train": base / "devkit" / "cars_train_annos.mat"}
    files["test"] = base / "cars_test_annos_withlabels.mat"
    (base / "devkit").mkdir(parents=True)
    for part, path in files.items():
        rows = [(label + 1, f"{i:05d}.jpg") for i, label in enumerate(PARTS[part])]
        scipy.io.savemat(path, {"annotations": np.array(rows, kind)})
        for label, name in rows:
            save(base / f"cars_{part}" / name, label - 1)
    names = np.array(["AM General Hummer", "Acura RL", "Audi TTS"], object)
    scipy.io.savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})


def oxford_pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    names = ("Abyssinian", "american_bulldog", "yorkshire_terrier")
    for part, labels in (("trainval", TRAIN), ("test", TEST)):
        lines = []
        for i, label in enumerate(labels):
            lines.append(f"{names[label]}_{part}{i} {label + 1} {1 + bool(label)} 1")
            save(base / "images" / f"{names[label]}_{part}{i}.jpg", label)
        write_text(base / "annotations" / f"{part}.txt", *lines)


WNIDS = ("n01440764", "n02012849", "n03126707")


def imagenet(root: Path) -> None:
    names = dict(zip(WNIDS, (("tench", "Tinca tinca"), ("crane",), ("crane",)), strict=True))
    (root / "imagenet").mkdir()
    torch.save((names, list(WNIDS)), root / "imagenet" / "meta.bin")
    for part in ("train", "val"):
        in_class_folders(root / "imagenet" / part, PARTS[part], WNIDS, "jpg")


def places365(root: Path) -> None:
    names = ("/a/airfield", "/a/apartment_building/outdoor", "/z/zen_garden")
    write_text(root / "categories_places365.txt", *(f"{n} {i}" for i, n in enumerate(names)))
    train = [f"{names[v]}/{i:08d}.jpg {v}" for i, v in enumerate(TRAIN)]
    val = [f"Places365_val_{i:08d}.jpg {v}" for i, v in enumerate(VAL)]
    write_text(root / "places365_train_standard.txt", *train)
    write_text(root / "places365_val.txt", *val)
    for line, folder in [
        *((t, "data_256_standard") for t in train),
        *((v, "val_256") for v in val),
    ]:
        file, label = line.split()
        save(root / folder / file.lstrip("/"), int(label))


SPECIES = tuple(
    f"{i:05d}_Animalia_Annelida_a_b_c_{name}"
    for i, name in enumerate(("lumbricus_terrestris", "sabella_penicillus", "sabella_spallanzanii"))
)


def lfw(root: Path) -> None:
    base = root / "lfw-py"
    names = ("Aaron_Eckhart", "Bob_Dole", "Cate_Blanchett")
    write_text(base / "lfw-names.txt", *(f"{n}\t{TRAIN.count(i)}" for i, n in enumerate(names)))
    fold = [[names[0]], [names[1], names[2]]]
    lines = ["2"]
    for people in fold:
        lines += [str(len(people)), *(f"{p}\t{TRAIN.count(names.index(p))}" for p in people)]
    write_text(base / "people.txt", *lines)
    (base / "lfw-funneled.tgz").write_bytes(b"")
    for i, name in enumerate(names):
        for number in range(1, TRAIN.count(i) + 1):
            save(base / "lfw_funneled" / name / f"{name}_{number:04d}.jpg", i)


CHARACTERS = ("Armenian/character01", "Armenian/character02", "Sanskrit/character01")


def omniglot(folder: str) -> Write:
    def write(root: Path) -> None:
        in_class_folders(root / "omniglot-py" / folder, TRAIN, CHARACTERS, "png")
        (root / "omniglot-py" / f"{folder}.zip").write_bytes(b"")

    return write


def sun397(root: Path) -> None:
    names = ("/a/abbey", "/a/airport/indoor", "/y/youth_hostel")
    write_text(root / "SUN397" / "ClassName.txt", *names)
    for i, label in reversed(list(enumerate(TRAIN))):
        save(root / "SUN397" / names[label].lstrip("/") / f"sun_{i:04d}.jpg", label)


def clevr(root: Path) -> None:
    base = root / "clevr" / "CLEVR_v1.0"
    for part in ("train", "val"):
        scenes = []
        for i, label in enumerate(PARTS[part]):
            name = f"CLEVR_{part}_{i:06d}.png"
            save(base / "images" / part / name, label)
            scenes.append({"image_filename": name, "objects": [{}] * (label + 3)})
        write_text(base / "scenes" / f"CLEVR_{part}_scenes.json", json.dumps({"scenes": scenes}))


ANIMALS = ("ant", "bee", "cow")
BATCHES = {f"data_batch_{i}": TRAIN[i - 1 : i] if i < 5 else TRAIN[4:] for i in range(1, 6)}
DIGITS = ("0", "1", "2")
CODES, SIDES, LAND = ("AD", "BE", "CH"), ("negative", "positive"), ("AnnualCrop", "Forest", "River")
SETS: dict[str, tuple[Write, tuple[str, ...], tuple[int, int, int]]] = {
    "cifar10": (
        cifar("cifar-10-batches-py", BATCHES | {"test_batch": TEST}, "batches.meta",
              ("labels", "label_names")),
        ANIMALS, (8, 0, 4),
    ),
    "cifar100": (
        cifar("cifar-100-python", {"train": TRAIN, "test": TEST}, "meta",
              ("fine_labels", "fine_label_names")),
        ANIMALS, (8, 0, 4),
    ),
    "mnist": (mnist_like("MNIST"), ("0 - zero", "1 - one", "2 - two"), (8, 0, 4)),
    "fashionmnist": (mnist_like("FashionMNIST"), ("T-shirt/top", "Trouser", "Pullover"), (8, 0, 4)),
    "kmnist": (mnist_like("KMNIST"), ("o", "ki", "su"), (8, 0, 4)),
    "qmnist": (qmnist, ("0 - zero", "1 - one", "2 - two"), (8, 0, 4)),
    **{
        f"emnist{'_' * (s != 'balanced')}{s if s != 'balanced' else ''}": (
            mnist_like("EMNIST", f"emnist-{s}-", "test", shift=s == "letters"),
            ("a", "b", "c") if s == "letters" else DIGITS, (8, 0, 4),
        )
        for s in ("balanced", "byclass", "bymerge", "letters", "digits", "mnist")
    },
    "usps": (usps, DIGITS, (8, 0, 4)),
    "semeion": (semeion, DIGITS, (8, 0, 0)),
    "svhn": (svhn, DIGITS, (8, 0, 4)),
    "stl10": (stl10, ANIMALS, (8, 0, 4)),
    "caltech101": (caltech101, ("Faces", "ant", "yin_yang"), (8, 0, 0)),
    "caltech256": (caltech256, ("001.ak47", "002.american-flag", "003.backpack"), (8, 0, 0)),
    "country211": (
        folders(CODES, "jpg", country211__train=TRAIN, country211__valid=VAL, country211__test=TEST),
        CODES, (8, 3, 4),
    ),
    "renderedsst2": (
        folders(SIDES, "png", **{f"rendered-sst2__{p}": [min(v, 1) for v in labels]
                                 for p, labels in (("train", TRAIN), ("valid", VAL), ("test", TEST))}),
        SIDES, (8, 3, 4),
    ),
    "dtd": (dtd, ("banded", "dotted", "woven"), (8, 3, 4)),
    "fgvcaircraft": (aircraft, ("707-320", "A300B4", "Boeing 717"), (8, 3, 4)),
    "flowers102": (
        flowers, ("pink primrose", "hard-leaved pocket orchid", "canterbury bells"), (8, 3, 4)
    ),
    "food101": (food101, ("apple_pie", "bibimbap", "waffles"), (8, 0, 4)),
    "gtsrb": (gtsrb, DIGITS, (8, 0, 4)),
    "fer2013": (fer2013("fer2013.csv", "emotion,pixels,Usage"), ("angry", "disgust", "fear"),
                (8, 0, 4)),
    "stanfordcars": (stanford_cars, ("AM General Hummer", "Acura RL", "Audi TTS"), (8, 0, 4)),
    "oxfordiiitpet": (
        oxford_pets, ("Abyssinian", "American Bulldog", "Yorkshire Terrier"), (8, 0, 4)
    ),
    "imagenette": (
        folders(("n01440764", "n02102040", "n03888257"), "JPEG",
                imagenette2__train=TRAIN, imagenette2__val=VAL),
        ("tench, Tinca tinca", "English springer, English springer spaniel", "parachute, chute"),
        (8, 0, 3),
    ),
    "imagenet": (
        imagenet, ("tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)"), (8, 0, 3)
    ),
    "places365": (
        places365, ("airfield", "apartment_building/outdoor", "zen_garden"), (8, 0, 3)
    ),
    **{
        name: (folders(SPECIES, "jpg", **{train: TRAIN, "2021_valid": VAL}), SPECIES, (8, 0, 3))
        for name, train in (
            ("inaturalist", "2021_train"), ("inaturalist_mini", "2021_train_mini")
        )
    },
    "lfwpeople": (lfw, ("Aaron_Eckhart", "Bob_Dole", "Cate_Blanchett"), (8, 0, 0)),
    **{
        name: (omniglot(folder), CHARACTERS, (8, 0, 0))
        for name, folder in (
            ("omniglot", "images_background"), ("omniglot_evaluation", "images_evaluation")
        )
    },
    "eurosat": (folders(LAND, "jpg", eurosat__2750=TRAIN), LAND, (8, 0, 0)),
    "sun397": (sun397, ("abbey", "airport/indoor", "youth_hostel"), (8, 0, 0)),
    "clevrclassification": (clevr, ("3", "4", "5"), (8, 0, 3)),
}  # fmt: skip
"""Target -> what writes its files, the classes that they hold, and the images of each part."""


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty data folder. Files are whole if they are there: the stand-ins have other hashes."""
    monkeypatch.setattr(torchvision_sets, "DOWNLOADS", tmp_path)

    def is_there(path: str | Path, md5: str | None = None) -> bool:
        return os.path.isfile(path)

    for found in pkgutil.iter_modules(torchvision.datasets.__path__):
        module = importlib.import_module(f"torchvision.datasets.{found.name}")
        for name in ("check_integrity", "download_url", "download_and_extract_archive"):
            if hasattr(module, name):
                replaced = is_there if name == "check_integrity" else _no_network
                monkeypatch.setattr(module, name, replaced)
    yield tmp_path
    clear_caches()


def _no_network(*_: Any, **__: Any) -> None:
    raise RuntimeError("something was to be downloaded")


def test_every_listed_set_has_a_stand_in() -> None:
    assert set(TORCHVISION) == set(SETS)


def test_the_page_of_names_lists_every_set_with_its_parts() -> None:
    page = (Path(__file__).parents[1] / "docs" / "pages" / "data.md").read_text()
    section = page.partition("## Torchvision's data sets")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| ")][2:]
    listed = {name: parts for parts, names in rows for name in re.findall("`([a-z0-9_]+)`", names)}
    assert set(listed) == set(SETS)
    for name, parts in listed.items():
        assert ("validation," in parts) == (SETS[name][2][1] > 0)
        assert ("one" in parts) == (SETS[name][2][2] == 0)


@pytest.mark.parametrize("name", SETS)
def test_parts_classes_and_labels_are_those_of_the_files(name: str, downloads: Path) -> None:
    write, classes, sizes = SETS[name]
    write(downloads)
    target = load_target(name)
    assert target.classes == classes
    test, val = (
        np.zeros(len(target.labels), np.bool_) if mask is None else mask
        for mask in (target.official_test, target.official_val)
    )
    assert (int((~test & ~val).sum()), int(val.sum()), int(test.sum())) == sizes
    assert not (test & val).any()
    every = np.arange(len(target.labels))
    seen = target.read(every, Pixels(16)).float().mean((1, 2, 3)).numpy()
    truth = np.array([grey(label) for label in target.labels])
    assert np.abs(seen - truth).max() < 5
    truth_sizes = sorted(np.bincount(target.labels[~test & ~val]).tolist())
    assert truth_sizes == ([3, 5] if len(classes) == 2 else [2, 3, 3])


@pytest.mark.parametrize("name", ["flowers102", "dtd", "country211", "fgvcaircraft"])
def test_validation_part_is_selected_on(name: str, downloads: Path, make_spec: MakeSpec) -> None:
    SETS[name][0](downloads)
    spec = make_spec(target=name, shots=None, val_shots=None, test_shots=None)
    split = split_indices(load_target(name), spec)
    assert (len(split.train), len(split.val), len(split.test)) == (8, 3, 4)
    assert set(split.val.tolist()) == set(range(8, 11))


@pytest.mark.parametrize(
    ("write", "tested"),
    [
        (fer2013("icml_face_data.csv", "emotion, Usage, pixels"), 4),
        (fer2013_of_the_contest, 0),
    ],
)
def test_other_files_of_fer2013_are_read_too(write: Write, tested: int, downloads: Path) -> None:
    write(downloads)
    target = load_target("fer2013")
    assert target.classes == ("angry", "disgust", "fear")
    assert len(target.labels) == 8 + tested
    assert (target.official_test is None) == (tested == 0)


@pytest.mark.parametrize("name", ["omniglot", "sun397", "inaturalist"])
def test_images_come_in_one_order_however_a_folder_lists_them(
    name: str, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SETS[name][0](downloads)
    first = load_target(name)
    listing, below = os.listdir, Path.rglob
    monkeypatch.setattr(os, "listdir", lambda path: listing(path)[::-1])
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: list(below(path, pattern))[::-1])
    clear_caches()
    again = load_target(name)
    assert again.classes == first.classes
    assert again.labels.tolist() == first.labels.tolist()
    assert again.fingerprint() == first.fingerprint()


@pytest.mark.parametrize("name", ["stanfordcars", "fer2013", "lfwpeople", "eurosat", "imagenet"])
@pytest.mark.usefixtures("downloads")
def test_set_that_is_not_there_is_refused_in_one_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:

    with refused("could not be loaded by torchvision"):
        load_target(name)
