"""The compiled module: whether it is there, which instruction set it uses, and why.

It pulls neither torch nor numpy. Functions in it are compiled per instruction set and chosen when it is first used:
the fastest that this CPU has and the system lets programs use. The environment variable ``LISSOME_ISA`` chooses
another one, e.g. to compare two on one machine; ``tile`` is AMX in software, exact and slow.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from lissome.core.errors import ConfigError, unknown_name

CHOICE = "LISSOME_ISA"
"""Environment variable that names the instruction set."""


@dataclass(frozen=True)
class Level:
    """An instruction set.

    Attributes:
        name: ``"portable"``, ``"avx2"``, ``"avx512"``, ``"avx512bf16"``, ``"amx"``, or ``"tile"``: AMX in software.
        usable: Whether it can be used here.
        why: What it consists of, or what is missing.
    """

    name: str
    usable: bool
    why: str


@dataclass(frozen=True)
class Choice:
    """What the kernels use, and why.

    Attributes:
        name: An instruction set, or ``"reference"`` when there is no compiled module.
        why: One line.
        levels: All that were looked at, the slowest first; empty without a compiled module.
    """

    name: str
    why: str
    levels: tuple[Level, ...] = ()


@cache
def module() -> ModuleType | None:
    """Return the compiled module; None when it was not built.

    Raises:
        ConfigError: When ``LISSOME_ISA`` names what cannot be used here.
    """
    try:
        found = importlib.import_module("lissome._native")
    except ImportError:
        return None
    wanted = os.environ.get(CHOICE)
    if wanted:
        _use(found, wanted)
    return found


def required() -> Any:
    """Return the compiled module.

    Raises:
        ConfigError: When it was not built; says why.
    """
    found = module()
    if found is None:
        raise ConfigError(f"this needs the compiled kernels: {_missing()}.")
    return found


def choice() -> Choice:
    """Say what is used here and why."""
    found = module()
    if found is None:
        return Choice("reference", _missing())
    levels = tuple(Level(*level) for level in found.levels())
    name, usable = found.isa(), [level.name for level in levels if level.usable and level.name != "tile"]
    has = next(level.why for level in levels if level.name == name)
    return Choice(name, has if name == usable[-1] else f"{has}; chosen, although {usable[-1]} is usable", levels)


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Use another instruction set inside the ``with`` block, in all threads.

    Raises:
        ConfigError: When it is not known, or not usable here.
    """
    found = required()
    before = found.isa()
    _use(found, name)
    try:
        yield
    finally:
        found.use(before)


def _use(found: Any, name: str) -> None:
    levels = {level[0]: Level(*level) for level in found.levels()}
    if name not in levels:
        raise ConfigError(unknown_name("instruction set", name, levels, f"It comes from {CHOICE} or `using`."))
    if not levels[name].usable:
        usable = ", ".join(level.name for level in levels.values() if level.usable)
        raise ConfigError(f"the instruction set {name} cannot be used here, {levels[name].why}; usable: {usable}.")
    found.use(name)


def _missing() -> str:
    """Why there is no compiled module."""
    try:
        built: Any = importlib.import_module("lissome._build")
    except ImportError:
        return "lissome runs from its source folder, without having been installed; `make run` builds the kernels"
    remedy = "without it" if "LISSOME_NO_NATIVE" in built.MISSING else "with GCC 11, Clang 14 or newer at hand"
    return f"{built.MISSING}; install lissome again {remedy}"
