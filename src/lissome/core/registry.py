"""Finds methods, command files and export formats by file name; no list is kept anywhere.

A method is ``methods/<family>/<name>.py`` with exactly one `Method` subclass. Its summary is read from the
docstring without importing the file, so listing is fast and pulls no heavy library. Other packages add methods
through the entry-point group ``lissome.methods`` (name → ``module``).
"""

from __future__ import annotations

import ast
import importlib
import inspect
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from lissome.core.errors import LissomeError, UnknownNameError, unknown_name
from lissome.core.method import Method


@dataclass(frozen=True)
class MethodInfo:
    """Where a method lives and what it says of itself."""

    name: str
    family: str
    module: str
    summary: str

    def load(self) -> type[Method]:
        """Import the file and return its one `Method` subclass.

        Raises:
            LissomeError: When the file does not define exactly one.
        """
        module = importlib.import_module(self.module)
        found = [
            member
            for _, member in inspect.getmembers(module, inspect.isclass)
            if issubclass(member, Method) and member.__module__ == module.__name__
        ]
        if len(found) != 1:
            raise LissomeError(f"{self.module} must define exactly one Method, found {len(found)}.")
        return found[0]


@dataclass(frozen=True)
class FileInfo:
    """A module found by its file name, with the first line of its docstring."""

    name: str
    module: str
    summary: str


def summary_of(path: Path) -> str:
    """Return the first line of a file's docstring, without importing it."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n", 1)[0].strip()


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LissomeError(f"{package} is not a package folder.")
    return Path(next(iter(spec.submodule_search_locations)))


def public_files(package: str) -> tuple[FileInfo, ...]:
    """List the modules of a package whose file name has no leading underscore."""
    return tuple(
        FileInfo(path.stem, f"{package}.{path.stem}", summary_of(path))
        for path in sorted(_folder(package).glob("*.py"))
        if not path.stem.startswith("_")
    )


@cache
def methods() -> dict[str, MethodInfo]:
    """All methods, by name: those of this package, then those of installed plug-ins.

    Raises:
        LissomeError: When two files claim one name.
    """
    found: dict[str, MethodInfo] = {}
    root = _folder("lissome.methods")
    for path in sorted(root.glob("*/*.py")):
        if path.stem.startswith("_"):
            continue
        family = path.parent.name
        _add(found, MethodInfo(path.stem, family, f"lissome.methods.{family}.{path.stem}", summary_of(path)))
    for entry in entry_points(group="lissome.methods"):
        spec = find_spec(entry.value)
        if spec is not None and spec.origin:
            _add(found, MethodInfo(entry.name, "plugin", entry.value, summary_of(Path(spec.origin))))
    return found


def _add(found: dict[str, MethodInfo], info: MethodInfo) -> None:
    if info.name in found:
        raise LissomeError(f"two methods are called {info.name!r}: {found[info.name].module} and {info.module}.")
    found[info.name] = info


def method(name: str) -> MethodInfo:
    """Return one method by name.

    Raises:
        UnknownNameError: With the nearest match and all names.
    """
    known = methods()
    if name not in known:
        raise UnknownNameError(unknown_name("method", name, known, "See: lissome methods"))
    return known[name]
