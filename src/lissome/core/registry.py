"""Finds methods, command files and export formats by file name; no list is kept anywhere.

A method is ``methods/<family>/<name>.py`` (or a folder of that name, once it outgrows a file) with exactly one
`Method` subclass. Its summary is read from the docstring without importing the file, so listing is fast and pulls no
heavy library. Other packages add methods through the entry-point group ``lissome.methods`` (name → ``module``).
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
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
            if issubclass(member, Method) and f"{member.__module__}.".startswith(f"{module.__name__}.")
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


def _modules(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and source file of each public module or package in a folder, by name."""
    for path in sorted(folder.iterdir(), key=lambda path: path.stem):
        source = path / "__init__.py" if path.is_dir() else path
        if not path.name.startswith("_") and source.suffix == ".py" and source.is_file():
            yield path.stem, source


def public_files(package: str) -> tuple[FileInfo, ...]:
    """List the modules of a package whose name has no leading underscore."""
    return tuple(FileInfo(name, f"{package}.{name}", summary_of(source)) for name, source in _modules(_folder(package)))


@cache
def methods() -> dict[str, MethodInfo]:
    """All methods, by name: those of this package, then those of installed plug-ins.

    Raises:
        LissomeError: When two files claim one name, or a plug-in cannot be found.
    """
    found: dict[str, MethodInfo] = {}
    root = _folder("lissome.methods")
    for family, source in _modules(root):
        for name, file in _modules(source.parent):
            _add(found, MethodInfo(name, family, f"lissome.methods.{family}.{name}", summary_of(file)))
    for entry in entry_points(group="lissome.methods"):
        _add(found, _plugin(entry))
    return found


def _plugin(entry: EntryPoint) -> MethodInfo:
    cause = "its module has no source file"
    try:
        spec = find_spec(entry.module)
        if spec is not None and spec.origin:
            return MethodInfo(entry.name, "plugin", entry.module, summary_of(Path(spec.origin)))
    except (ImportError, OSError, SyntaxError) as error:
        cause = str(error)
    owner = entry.dist.name if entry.dist is not None else "a plug-in"
    raise LissomeError(f"the method {entry.name!r} of {owner} cannot be used ({cause}); mend or uninstall {owner}.")


def _add(found: dict[str, MethodInfo], info: MethodInfo) -> None:
    if info.name in found:
        raise LissomeError(f"two methods are called {info.name!r}: {found[info.name].module} and {info.module}.")
    found[info.name] = info


def method(name: str) -> MethodInfo:
    """Return one method by name (``-`` may stand for ``_``).

    Raises:
        UnknownNameError: With the nearest match and all names.
    """
    known = methods()
    info = known.get(name) or known.get(name.replace("-", "_"))
    if info is None:
        raise UnknownNameError(unknown_name("method", name, known, "See: lissome methods"))
    return info
