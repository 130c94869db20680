"""Labelled images: what is read, dealt out and refused."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lissome.core.errors import DataError
from lissome.data.images import decoded, read_images

PIXELS = np.random.default_rng(0).integers(0, 255, (12, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


def png(pixels: NDArray[Any]) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def archive(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def packed() -> dict[str, Any]:
    each = [png(pixels) for pixels in PIXELS]
    return {
        "blob": np.frombuffer(b"".join(each), np.uint8),
        "offsets": np.cumsum([0, *map(len, each)]),
        "label": LABELS,
        "is_train": LABELS < 2,
        "classes": np.array(["cat", "dog", "ant"]),
    }


def folder(root: Path, *, splits: bool) -> Path:
    for index, pixels in enumerate(PIXELS):
        place = root / (("train" if index < 9 else "valid") if splits else "") / f"class{LABELS[index]}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:02}.png").write_bytes(png(pixels))
    return root


def test_archives_of_arrays_and_of_pictures_are_read_alike(tmp_path: Path) -> None:
    plain = read_images(archive(tmp_path / "plain.npz", image=PIXELS, label=LABELS))
    small = read_images(archive(tmp_path / "packed.npz", **packed()))
    assert plain.classes == ("0", "1", "2")
    assert small.classes == ("cat", "dog", "ant")
    assert plain.labels == small.labels == tuple(LABELS)
    for index, pixels in enumerate(PIXELS):
        assert np.array_equal(plain.pictures[index](), pixels)
        assert np.array_equal(small.pictures[index](), pixels)
    assert len(small.split("train")) == 8
    assert set(small.split("test").labels) == {2}


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    grey = read_images(archive(tmp_path / "grey.npz", image=PIXELS[..., 0], label=LABELS * 5))
    assert grey.pictures[0]().shape == (6, 5, 1)
    assert grey.classes == ("0", "5", "10")


def test_images_have_owners_and_classes_that_others_named(tmp_path: Path) -> None:
    source = archive(tmp_path / "own.npz", image=PIXELS, label=LABELS, group=np.arange(12) // 4)
    images = read_images(source)
    assert images.owners == tuple("000011112222")
    assert images.some([0, 11]).owners == ("0", "2")
    assert images.parts({"one": 0.5}, seed=1)["one"].owners
    known = read_images(source, classes=["9", "2", "1", "0"])
    assert known.classes == ("9", "2", "1", "0")
    assert [known.classes[label] for label in known.labels] == [images.classes[label] for label in images.labels]
    with pytest.raises(DataError, match=r"own\.npz: unknown label '2'"):
        read_images(source, classes=["0", "1"])
    alone = archive(tmp_path / "alone.npz", image=PIXELS, label=LABELS * 0)
    with pytest.raises(DataError, match="at least two classes"):
        read_images(alone)
    assert len(read_images(alone, least=1)) == len(read_images(alone, classes=["0", "1"])) == 12


@pytest.mark.parametrize("splits", [False, True])
def test_a_folder_of_folders(splits: bool, tmp_path: Path) -> None:
    images = read_images(folder(tmp_path / "images", splits=splits))
    assert images.classes == ("class0", "class1", "class2")
    assert len(images) == 12
    assert {name: len(found) for name, found in images.splits.items()} == ({"train": 9, "val": 3} if splits else {})
    first = images.some([0]).pictures[0]()
    assert any(np.array_equal(first, pixels) for pixels in PIXELS)


def test_parts_share_no_image_and_have_the_same_mixture(tmp_path: Path) -> None:
    images = read_images(archive(tmp_path / "plain.npz", image=PIXELS, label=LABELS))
    parts = images.parts({"train": 0.5, "val": 0.25, "test": 0.25}, seed=1)
    assert [sorted(part.labels) for part in parts.values()] == [[0, 0, 1, 1, 2, 2], [0, 1, 2], [0, 1, 2]]
    seen = [part.pictures[index]().tobytes() for part in parts.values() for index in range(len(part))]
    assert len(set(seen)) == 12
    again = images.parts({"train": 0.5, "val": 0.25, "test": 0.25}, seed=1)
    assert [part.sha256 for part in again.values()] == [part.sha256 for part in parts.values()]
    with pytest.raises(DataError, match="too few for the part 'rest'"):
        images.parts({"most": 0.99, "rest": 0.01})
    with pytest.raises(DataError, match="sum to at most 1"):
        images.parts({"a": 0.9, "b": 0.9})


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    images = read_images(archive(tmp_path / "packed.npz", **packed()))
    with pytest.raises(DataError, match=r"has no split 'val'; it has: test, train|train, test"):
        images.split("val")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"image": PIXELS}, "it has image; image"),
        ({"image": PIXELS, "label": LABELS[:3]}, "12 images, but 3 labels"),
        ({"image": PIXELS.astype(float), "label": LABELS}, "not uint8"),
        ({"image": PIXELS, "label": LABELS * 0}, "two classes are needed"),
        ({"image": PIXELS, "label": LABELS, "classes": np.array(["a", "b"])}, "label 2 is not among its 2 classes"),
        ({"image": PIXELS, "label": LABELS - 1, "classes": np.array(["a", "b", "c"])}, "label -1 is not among its 3"),
        ({"image": PIXELS, "label": LABELS.astype(str)}, "not one whole number for each image"),
        ({"image": PIXELS, "label": np.eye(3, dtype=int)[LABELS]}, "not one whole number for each image"),
        ({"image": np.array([None] * 12), "label": LABELS}, "cannot be read"),
        ({"image": np.uint8(3), "label": LABELS}, "are uint8 of no dimension, not uint8 of"),
        (
            {"image": PIXELS / np.float32(255), "label": LABELS},
            r"are float32 of [\d×]+, not uint8 of .*make \(image \* 255\)\.astype\('uint8'\)",
        ),
        ({"image": PIXELS[:, :0], "label": LABELS}, "not uint8 of"),
        ({"image": PIXELS, "label": LABELS, "is_train": np.int64(1)}, "is_train is not one mark for each of 12"),
        ({"image": PIXELS, "label": LABELS, "classes": np.array("cat")}, "not a list of distinct names"),
        ({"image": PIXELS, "label": LABELS, "classes": np.array(["a", "b", "a"])}, "not a list of distinct names"),
        ({"blob": PIXELS.ravel(), "offsets": np.int64(3), "label": LABELS}, "whole numbers in a row"),
        ({"blob": PIXELS.ravel(), "offsets": np.arange(13.0), "label": LABELS}, "whole numbers in a row"),
    ],
)
def test_archives_that_are_no_images_are_refused(arrays: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words) as error:
        read_images(archive(tmp_path / "x.npz", **arrays))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("at", "byte"),
    [(8, 99), (6, 1), (60, 0xFF), (81, 0x3C)],
    ids=["packed in an unknown way", "encrypted", "bytes changed", "a stream that cannot be unpacked"],
)
def test_damaged_archives_are_one_line(at: int, byte: int, tmp_path: Path) -> None:
    """Both copies of what the archive says of its first array, or bytes of that array."""
    file = tmp_path / "x.npz"
    np.savez_compressed(file, image=PIXELS, label=LABELS)
    whole = bytearray(file.read_bytes())
    entry = whole.index(b"PK\x01\x02")
    for place in [at, entry + at + 2] if at < 20 else [at, at + 1]:
        whole[place] ^= byte
    file.write_bytes(whole)
    with pytest.raises(DataError, match="cannot be read as an archive of images") as error:
        read_images(file)
    assert "\n" not in str(error.value)


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """Of a picture any will do; that of a class is written into the model's configuration."""
    root = folder(tmp_path / "images", splits=False)
    before = read_images(root).sha256
    (root / "class0" / os.fsdecode(b"\xff.png")).write_bytes(png(PIXELS[0]))
    assert len(read_images(root)) == 13 and read_images(root).sha256 != before
    (root / "class0").rename(root / os.fsdecode(b"class\xff"))
    with pytest.raises(DataError, match="is not UTF-8; rename it"):
        read_images(root)


def test_a_column_of_labels_is_read_as_labels(tmp_path: Path) -> None:
    column = read_images(archive(tmp_path / "x.npz", image=PIXELS, label=LABELS[:, None]))
    assert column.labels == tuple(LABELS)


def test_a_class_may_be_called_like_a_split_and_hidden_files_are_no_images(tmp_path: Path) -> None:
    for place in ("train/1.png", "boat/1.png", "boat/._1.png", ".ipynb_checkpoints/1.png", "boat/.cache/1.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(png(PIXELS[0]))
    images = read_images(tmp_path)
    assert images.classes == ("boat", "train") and len(images) == 2 and not images.splits


def test_splits_without_folders_of_classes_are_no_classes(tmp_path: Path) -> None:
    for place in ("train/1.png", "validation/2.png"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_bytes(png(PIXELS[0]))
    with pytest.raises(DataError, match=r"no folders of classes in train, validation; give a folder"):
        read_images(tmp_path)


def test_a_datasets_id(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the eval extra is not installed")
    columns = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "ant"])})

    def table(labels: list[int]) -> Any:
        rows = {"img": [Image.fromarray(pixels) for pixels in PIXELS], "label": labels}
        return lambda *_, **__: datasets.Dataset.from_dict(rows, features=columns)

    monkeypatch.setattr(datasets, "load_dataset", table(LABELS.tolist()))
    images = read_images("someone/pets@validation")
    assert (images.classes, images.labels) == (("cat", "dog", "ant"), tuple(LABELS))
    assert images.splits == {"val": tuple(range(12))}
    assert np.array_equal(images.pictures[3](), PIXELS[3])
    monkeypatch.setattr(datasets, "load_dataset", table([*LABELS[:11].tolist(), -1]))
    with pytest.raises(DataError, match=r"label -1 is none of its classes; give a split whose labels are known"):
        read_images("someone/pets@test")
    rows = {"img": [{"bytes": b"no picture", "path": None}] * 12, "label": LABELS.tolist()}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict(rows, features=columns))
    with pytest.raises(DataError, match=r"someone/pets@train: image 2 is no picture that can be read"):
        read_images("someone/pets@train").pictures[2]()


def test_a_datasets_id_keeps_its_own_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the eval extra is not installed")
    columns = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "ant"])})

    def table(start: int, stop: int, labels: list[int] | None = None) -> Any:
        pictures = [Image.fromarray(pixels) for pixels in PIXELS[start:stop]]
        given = {"image": pictures, "label": labels or LABELS[start:stop].tolist()}
        return datasets.Dataset.from_dict(given, features=columns)

    parts = {"train": table(0, 6), "validation": table(6, 9), "test": table(9, 12), "extra": table(0, 3)}

    def load(*_: Any, split: str | None) -> Any:
        return parts[split] if split else datasets.DatasetDict(parts)

    monkeypatch.setattr(datasets, "load_dataset", load)
    images = read_images("someone/pets")
    assert {name: len(found) for name, found in images.splits.items()} == {"train": 6, "val": 3, "test": 3}
    assert all(np.array_equal(images.split("test").pictures[at](), PIXELS[9 + at]) for at in range(3))
    assert images.split("test").labels == tuple(LABELS[9:12])
    assert len(read_images("someone/pets@train")) == 6
    parts["test"] = table(9, 12, [-1, -1, -1])
    hidden = read_images("someone/pets")
    assert set(hidden.splits) == {"train", "val"} and hidden.sha256 != images.sha256
    del parts["train"]
    with pytest.raises(DataError, match="has the splits validation, test, extra, but none called train; give someone/"):
        read_images("someone/pets")


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("LA", 1), ("1", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("CMYK", 3)]
)
def test_pictures_of_every_mode_are_grey_or_of_colour(mode: str, channels: int) -> None:
    stream = BytesIO()
    Image.new(mode, (5, 6)).save(stream, "TIFF")
    assert decoded(stream.getvalue(), "x").shape == (6, 5, channels)


def test_sixteen_bits_keep_their_shades() -> None:
    shades = np.arange(0, 60_000, 2000, dtype=np.uint16).reshape(6, 5)
    assert np.array_equal(decoded(png(shades), "x")[..., 0], shades >> 8)


def test_pictures_that_are_too_large_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"x is no picture that can be read .*exceeds limit"):
        decoded(png(PIXELS[0]), "x")


def test_damaged_pictures_are_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "images", splits=False)
    (root / "class0" / "00.png").write_bytes(b"no picture")
    images = read_images(root)
    with pytest.raises(DataError, match=r"00\.png is no picture that can be read \(none of the formats"):
        [picture() for picture in images.pictures]


@pytest.mark.parametrize("source", ["nowhere.npz", "no/such/folder", "x.txt"])
def test_what_is_not_there_is_refused(source: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(DataError, match="give a folder"):
        read_images(tmp_path / source)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images that say their class"):
        read_images(tmp_path)


DATA = Path(os.environ.get("LISSOME_DATA", "")) / "vision"


@pytest.mark.skipif(not (DATA / "cifar10_jpeg.npz").is_file(), reason="LISSOME_DATA holds no CIFAR-10")
def test_cifar_10() -> None:
    images = read_images(DATA / "cifar10_jpeg.npz")
    assert (len(images), len(images.classes)) == (60_000, 10)
    assert {name: len(found) for name, found in images.splits.items()} == {"train": 50_000, "test": 10_000}
    assert images.pictures[59_999]().shape == (32, 32, 3)


def test_another_picture_of_the_same_size_changes_the_hash(tmp_path: Path) -> None:
    hashes = set[str]()
    for number in range(2):
        root = folder(tmp_path / "pictures", splits=False)
        Image.fromarray(PIXELS[number]).save(root / "class0" / "more.bmp")  # as many bytes whatever it shows
        hashes.add(read_images(root).sha256)
    assert len(hashes) == 2
