"""Labelled images from a folder of folders, a NumPy archive or a `datasets` id, dealt into parts that share none.

Pictures that are stored compressed stay so in memory, and are decoded when they are asked for.
"""

# N images, H × W pixels, C channels

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lissome.core.errors import DataError, unknown_name
from lissome.core.optional import optional_import
from lissome.data.archive import read_arrays
from lissome.data.hub import asked_once, guessed
from lissome.data.labelled import dealt, require_dealt
from lissome.data.sources import halved

_PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp"}
_FORMS = (
    "give a folder with a folder of pictures for each class, an .npz archive, or a datasets id NAME[:CONFIG][@SPLIT]"
)
_ID = re.compile(r"(?P<id>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<split>\w+))?")
_SPLITS = ("train", "val", "test")
_HEAD = 4096  # bytes of a picture's file that are hashed beside its name and size: header and first rows
_SAME = {"training": "train", "valid": "val", "validation": "val", "dev": "val"}

Picture = Callable[[], NDArray[np.uint8]]
"""Gives the pixels of one image, uint8[H, W, C]."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images with their classes.

    Attributes:
        name: What the user called them.
        pictures: One each.
        labels: Class of each, an index into `classes`.
        classes: Names of the classes, in order.
        splits: Positions of the images by the split that the source says, ``train``, ``val`` or ``test``; empty where
            it says none.
        sha256: Hash of the source's content.
        owners: Who each image belongs to, where the source says it (``group``); otherwise empty.
    """

    name: str
    pictures: tuple[Picture, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[int, ...]]
    sha256: str
    owners: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pictures)

    def some(self, indices: Sequence[int]) -> Images:
        """Return the images at some positions, of the same classes."""
        marked = hashlib.sha256(f"{self.sha256}/{list(indices)}".encode()).hexdigest()
        pictures, labels = tuple(self.pictures[at] for at in indices), tuple(self.labels[at] for at in indices)
        owners = tuple(self.owners[at] for at in indices) if self.owners else ()
        return replace(self, pictures=pictures, labels=labels, splits={}, sha256=marked, owners=owners)

    def split(self, name: str) -> Images:
        """Return a split that the source has.

        Raises:
            DataError: When it has no such split; names those that it has.
        """
        if name not in self.splits:
            have = ", ".join(self.splits) or "none"
            raise DataError(f"{self.name} has no split {name!r}; it has: {have}. Deal one out with parts().")
        return replace(self.some(self.splits[name]), name=f"the split {name} of {self.name}")

    def parts(self, shares: Mapping[str, float], *, seed: int = 0) -> dict[str, Images]:
        """Deal the images out, each class by itself, so that every part has nearly the same mixture.

        Args:
            shares: Share of each part by name; they sum to at most 1. What is left over is dropped.
            seed: Of the dealing.

        Raises:
            DataError: When the shares are no shares, or a part gets no image.
        """
        chosen = dealt(self.labels, shares, seed=seed)
        require_dealt(f"{self.name} has {len(self)} images", chosen, shares)
        return {name: self.some(found) for name, found in chosen.items()}


def read_images(source: str | Path, *, classes: Sequence[str] = (), least: int = 2) -> Images:
    """Read labelled images.

    Args:
        source: A folder with one folder of pictures per class, perhaps below ``train``, ``val`` and ``test``; an
            ``.npz`` archive with ``image`` (uint8, N×H×W or N×H×W×C) or ``blob`` and ``offsets`` (pictures one behind
            the other), ``label``, and perhaps ``classes``, ``is_train`` and ``group``, to whom an image belongs; or a
            `datasets` id, ``NAME[:CONFIG][@SPLIT]``; without a split all of ``train``, ``val`` and ``test`` that it has
            and that say their labels.
        classes: The classes that are known, in their order; then one of them alone may be there. Without any, they are
            what the source says.
        least: Fewest classes where none are known; 1 for the images of one client, whose classes others name.

    Raises:
        DataError: When there is nothing of that name, it holds no labelled images, a class is not a known one, or a
            file is damaged.
        MissingExtraError: When a library that reads it is not installed.
    """
    path = Path(source)
    if path.is_dir():
        return _known(_of_folder(path), classes, least)
    if path.is_file():
        if path.suffix != ".npz":
            raise DataError(f"{path} is no archive of images; {_FORMS}.")
        return _known(_of_archive(path), classes, least)
    match = _ID.fullmatch(str(source))
    if match is None or path.suffix in {".npz", ".zip", ".tar"}:
        raise DataError(f"there is no {str(source)!r};{guessed(path)} {_FORMS}.")
    return _known(_of_dataset(match), classes, least)


def write_images(images: Images, file: Path) -> Path:
    """Write an archive that `read_images` reads, the same pixels: one array, or PNGs where sizes differ.

    Args:
        images: Their classes are written too; splits and owners are not.
        file: The archive, ``.npz``; the same images give the same bytes.

    Returns:
        The file.

    Raises:
        DataError: When a picture cannot be read.
        MissingExtraError: When sizes differ and Pillow is not installed.
    """
    arrays: dict[str, NDArray[Any]] = {"label": np.array(images.labels), "classes": np.array(images.classes)}
    if len({picture().shape for picture in images.pictures}) == 1:
        arrays["image"] = np.stack([picture() for picture in images.pictures])
    else:  # one is decoded at a time
        each = [_encoded(picture()) for picture in images.pictures]
        arrays["blob"] = np.frombuffer(b"".join(each), np.uint8)
        arrays["offsets"] = np.cumsum([0, *map(len, each)])
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file


def decoded(content: bytes, where: str) -> NDArray[np.uint8]:
    """Decode one picture to uint8[H, W, C], C being 1 or 3.

    Raises:
        DataError: When it is no picture; says where.
        MissingExtraError: When Pillow is not installed.
    """
    module = optional_import("PIL.Image", extra="images")
    with _readable(where), module.open(BytesIO(content)) as picture:
        return _pixels(picture)


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turn what Pillow raises for damaged and oversized pictures into a `DataError` that says where."""
    module = optional_import("PIL.Image", extra="images")
    try:
        yield
    except (OSError, SyntaxError, ValueError, module.DecompressionBombError) as error:
        # Pillow names the object in memory when it knows no format, which tells a user nothing.
        reason = "none of the formats that Pillow knows" if isinstance(error, module.UnidentifiedImageError) else error
        raise DataError(f"{where} is no picture that can be read ({reason}); remove or replace it.") from error


def _pixels(picture: Any) -> NDArray[np.uint8]:
    """Pixels of a Pillow image, uint8[H, W, C], C being 1 or 3; what is transparent shows its colour."""
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        pixels = (np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8)
    else:
        pixels = np.asarray(picture.convert("L" if picture.mode in {"1", "L", "LA"} else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1)


def _encoded(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of pixels uint8[H, W, C], C being 1 or 3."""
    stream = BytesIO()
    module = optional_import("PIL.Image", extra="images")
    module.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(stream, "PNG")
    return stream.getvalue()


def _known(images: Images, classes: Sequence[str], least: int) -> Images:
    """Number classes as they are numbered elsewhere, if they are known; refuse images of too few, or of others."""
    known = tuple(classes) or images.classes
    if not len(images):
        raise DataError(f"{images.name} has no images that say their class; {_FORMS}.")
    if len(known) < least:
        raise DataError(
            f"{images.name} has images of one class, {known[0]!r}; at least two classes are needed; {_FORMS}."
        )
    own = [images.classes[label] for label in images.labels]
    for name in sorted(set(own) - set(known)):
        raise DataError(f"{images.name}: {unknown_name('label', name, known)}")
    place = {name: index for index, name in enumerate(known)}
    return replace(images, labels=tuple(place[name] for name in own), classes=known)


def _images(name: str, rows: Sequence[tuple[Picture, str, str]], digest: str, classes: Sequence[str] = ()) -> Images:
    """Put rows of (picture, class, split) together."""
    known = tuple(classes) or tuple(sorted({label for _, label, _ in rows}))
    place = {label: index for index, label in enumerate(known)}
    splits: dict[str, list[int]] = {}
    for index, (_, _, split) in enumerate(rows):
        if split:
            splits.setdefault(split, []).append(index)
    return Images(
        name=name,
        pictures=tuple(picture for picture, _, _ in rows),
        labels=tuple(place[label] for _, label, _ in rows),
        classes=known,
        splits={split: tuple(found) for split, found in splits.items()},
        sha256=digest,
    )


def _of_folder(path: Path) -> Images:
    parts = [(_SAME.get(each.name, each.name), each) for each in sorted(path.iterdir()) if _is_split(each)]
    digest, rows = hashlib.sha256(), list[tuple[Picture, str, str]]()
    for split, part in parts or [("", path)]:
        for file in sorted(part.glob("*/**/*")):
            inside = file.relative_to(part).parts
            hidden = any(name.startswith(".") for name in inside)  # what editors and systems leave behind
            if file.suffix.lower() in _PICTURES and not hidden and file.is_file():
                label = inside[0]
                if halved(label):
                    raise DataError(f"{path}: the name of the folder {label!a} is not UTF-8; rename it.")
                rows.append((_from_file(file), label, split))
                digest.update(os.fsencode(f"{split}/{label}/{file.name}/{file.stat().st_size}/"))
                with file.open("rb") as opened:  # all of them would take as long as to read them for training
                    digest.update(opened.read(_HEAD))
    flat = sorted({label for _, label, _ in rows}) if not parts else []
    if flat and all(_SAME.get(label, label) in _SPLITS for label in flat):
        raise DataError(f"{path}: there are no folders of classes in {', '.join(flat)}; {_FORMS}.")
    return _images(str(path), rows, digest.hexdigest())


def _is_split(folder: Path) -> bool:
    """Whether it is a split with a folder for each class, and not a class that is called like one (trains, say)."""
    named = _SAME.get(folder.name, folder.name) in _SPLITS and folder.is_dir()
    return named and any(each.is_dir() and not each.name.startswith(".") for each in folder.iterdir())


def _from_file(file: Path) -> Picture:
    return lambda: decoded(file.read_bytes(), str(file))


def _of_archive(path: Path) -> Images:
    try:
        arrays = read_arrays(path)
        rows = _rows_of(path, arrays)
    except ValueError as error:
        raise DataError(f"{path} cannot be read as an archive of images ({error}); get or write it again.") from error
    names = [str(name) for name in arrays["classes"]] if "classes" in arrays else []
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(value).tobytes() for _, value in sorted(arrays.items())))
    if names:
        unknown = sorted({label for _, label, _ in rows if not 0 <= int(label) < len(names)})
        if unknown:
            raise DataError(f"{path}: label {unknown[0]} is not among its {len(names)} classes; write it again.")
        rows = [(picture, names[int(label)], split) for picture, label, split in rows]
    found = _images(str(path), rows, digest.hexdigest(), names or sorted({label for _, label, _ in rows}, key=int))
    return replace(found, owners=tuple(map(str, arrays["group"].ravel())) if "group" in arrays else ())


def _rows_of(path: Path, arrays: Mapping[str, NDArray[Any]]) -> list[tuple[Picture, str, str]]:
    if "label" not in arrays or not ("image" in arrays or {"blob", "offsets"} <= arrays.keys()):
        raise ValueError(
            f"it has {', '.join(sorted(arrays)) or 'nothing'}; image (or blob and offsets) and label are needed"
        )
    labels = arrays["label"]
    labels = labels.ravel() if labels.shape[1:] == (1,) else labels  # a column of them is meant alike
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise ValueError("its labels are not one whole number for each image; names of classes go into classes")
    count = _count(arrays)
    if len(labels) != count:
        raise ValueError(f"it has {count} images, but {len(labels)} labels")
    if "is_train" in arrays and arrays["is_train"].shape != (count,):
        raise ValueError(f"its is_train is not one mark for each of {count} images")
    if "classes" in arrays and (len(set(map(str, arrays["classes"].ravel()))),) != arrays["classes"].shape:
        raise ValueError("its classes are not a list of distinct names")
    if "group" in arrays and (arrays["group"].size != count or arrays["group"].dtype.kind not in "iubU"):
        raise ValueError(f"its group is not one whole number or name for each of {count} images")
    split = ["train" if one else "test" for one in arrays["is_train"]] if "is_train" in arrays else [""] * count
    return [(_from_arrays(path, arrays, at), str(int(labels[at])), split[at]) for at in range(count)]


def _count(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Number of images; refuses those that are none."""
    if "image" in arrays:
        image = arrays["image"]
        if image.dtype != np.uint8 or image.ndim not in {3, 4} or not all(image.shape[1:]):
            given = f"{image.dtype} of {'×'.join(map(str, image.shape)) or 'no dimension'}"
            shares = "; of numbers from 0 to 1 make (image * 255).astype('uint8')" if image.dtype.kind == "f" else ""
            raise ValueError(f"its images are {given}, not uint8 of N×H×W or N×H×W×C{shares}")
        return len(image)
    offsets = arrays["offsets"]
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or arrays["blob"].ndim != 1:
        raise ValueError("its blob and its offsets are not bytes in a row and whole numbers in a row")
    return max(0, len(offsets) - 1)


def _from_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], at: int) -> Picture:
    if "image" in arrays:
        image = arrays["image"]
        return lambda: image[at].reshape(*image.shape[1:3], -1)
    blob, offsets = arrays["blob"], arrays["offsets"]
    return lambda: decoded(blob[offsets[at] : offsets[at + 1]].tobytes(), f"{path}: image {at}")


def _of_dataset(match: re.Match[str]) -> Images:
    """Read the split that is named; of an id without one all that are called as ours, as from a folder."""
    name, split = match[0], match["split"]
    datasets = optional_import("datasets", extra="eval")
    try:
        with asked_once():
            loaded = datasets.load_dataset(match["id"], match["config"], split=split)
    except Exception as error:  # the hub, the network and parsers raise a hundred kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{name!r} is no file, and as a datasets id it could not be read ({reason});{guessed(Path(name))} {_FORMS}."
        ) from error
    tables = {split: loaded} if split else {key: loaded[key] for key in loaded if _SAME.get(key, key) in _SPLITS}
    if not split and "train" not in tables:
        raise DataError(f"{name} has the splits {', '.join(loaded)}, but none called train; give {name}@SPLIT.")
    parts = [_of_table(name if split else f"{name}@{key}", table) for key, table in tables.items()]
    rows, marks = list[tuple[Picture, str, str]](), list[str]()
    for key, (pictures, labels, hidden) in zip(tables, parts, strict=True):
        if hidden and (split or key == "train"):
            raise DataError(f"{name}: label {hidden[0]} is none of its classes; give a split whose labels are known.")
        if not hidden:  # else a test split of a competition, which nothing can be told by
            known = _SAME.get(key, key) if _SAME.get(key, key) in _SPLITS else ""
            rows += [(picture, label, known) for picture, label in zip(pictures, labels, strict=True)]
            marks.append(str(getattr(tables[key], "_fingerprint", name)))
    first = next(iter(tables.values()))
    names = getattr(first.features[_columns(name, first)[1]], "names", None)
    return _images(name, rows, hashlib.sha256("/".join(marks).encode()).hexdigest(), names or ())


def _columns(name: str, table: Any) -> tuple[str, str]:
    """Names of the columns with images and classes."""
    columns = table.column_names
    image = next((column for column in ("image", "img", "pixels") if column in columns), None)
    label = next((column for column in ("label", "labels", "fine_label") if column in columns), None)
    if image is None or label is None:
        raise DataError(f"{name} has the columns {', '.join(columns)}; image and label are needed.")
    return image, label


def _of_table(name: str, table: Any) -> tuple[list[Picture], list[str], list[Any]]:
    """Pictures of one split, their classes by name, and labels that are none of the classes."""
    image, label = _columns(name, table)
    names, labels = getattr(table.features[label], "names", None), list(table[label])
    hidden = [value for value in labels if value is None or (names and not 0 <= value < len(names))]

    def picture(at: int) -> Picture:
        def read() -> NDArray[np.uint8]:
            with _readable(f"{name}: image {at}"):
                return _pixels(table[at][image])

        return read

    told = [] if hidden else [names[value] if names else str(value) for value in labels]
    return [picture(at) for at in range(len(labels))], told, hidden
