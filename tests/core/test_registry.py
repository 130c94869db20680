"""Discovery by file name: methods appear and vanish with their files, plug-ins join, mistakes are explained."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lissome.core import registry
from lissome.core.errors import LissomeError, UnknownNameError

METHOD = '''"""{summary}

More."""
from lissome.core.method import Method, Outcome, Plan


class Pruner(Method):
    """A method."""

    def plan(self, card, budget):
        return Plan(figures={{}}, peak_memory=0.0)

    def run(self, model, context):
        return Outcome(kind="model", value=model)
'''


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `toytree` with two families; the registry looks there instead of at `lissome.methods`."""
    root = tmp_path / "toytree"
    for family in ("compress", "elastic", "__pycache__", "_private"):
        (root / family).mkdir(parents=True)
        (root / family / "__init__.py").write_text("")
    (root / "__init__.py").write_text("")
    (root / "compress" / "alpha_beta.py").write_text(METHOD.format(summary="Alpha — cut."))
    (root / "compress" / "_helper.py").write_text("raise RuntimeError")
    (root / "elastic" / "grown").mkdir()
    (root / "elastic" / "grown" / "__init__.py").write_text(
        '"""Grown — a folder."""\nfrom toytree.elastic.grown.a import *\n'
    )
    (root / "elastic" / "grown" / "a.py").write_text(METHOD.format(summary="part"))
    (root / "_private" / "hidden.py").write_text(METHOD.format(summary="x"))
    (root / "notes.txt").write_text("not a family")
    monkeypatch.syspath_prepend(tmp_path)
    real = registry._folder
    monkeypatch.setattr(registry, "_folder", lambda name: root if name == "lissome.methods" else real(name))
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    registry.methods.cache_clear()
    yield root
    registry.methods.cache_clear()
    for name in [name for name in sys.modules if name.startswith("toytree")]:
        del sys.modules[name]


def test_methods_are_their_files(tree: Path) -> None:
    found = registry.methods()
    assert {(info.name, info.family, info.summary) for info in found.values()} == {
        ("alpha_beta", "compress", "Alpha — cut."),
        ("grown", "elastic", "Grown — a folder."),
    }
    (tree / "compress" / "alpha_beta.py").unlink()
    registry.methods.cache_clear()
    assert set(registry.methods()) == {"grown"}


def test_listing_imports_nothing(tree: Path) -> None:
    registry.methods()
    assert not [name for name in sys.modules if name.startswith("toytree")]


def test_names_are_forgiving_and_typos_are_explained(tree: Path) -> None:
    assert registry.method("alpha-beta").name == "alpha_beta"
    with pytest.raises(UnknownNameError, match=r"did you mean 'alpha_beta'\? known: alpha_beta, grown"):
        registry.method("alfa_beta")


def test_a_file_gives_its_one_method(tree: Path) -> None:
    for name in ("alpha_beta", "grown"):
        info = registry.method(name)
        loaded = registry.MethodInfo(
            info.name, info.family, info.module.replace("lissome.methods", "toytree"), ""
        ).load()
        assert loaded.__name__ == "Pruner"


def test_a_file_without_a_method_is_an_error(tree: Path) -> None:
    (tree / "compress" / "empty.py").write_text('"""Nothing."""\n')
    with pytest.raises(LissomeError, match="exactly one Method, found 0"):
        registry.MethodInfo("empty", "compress", "toytree.compress.empty", "").load()


def test_two_files_of_one_name_are_refused(tree: Path) -> None:
    (tree / "elastic" / "alpha_beta.py").write_text(METHOD.format(summary="x"))
    with pytest.raises(LissomeError, match="two methods are called 'alpha_beta'"):
        registry.methods()


def test_a_plugin_joins(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree.parent / "plug.py").write_text(METHOD.format(summary="Plug — from elsewhere."))
    entry = importlib.metadata.EntryPoint("plug", "plug", "lissome.methods")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == "lissome.methods" else [])
    assert registry.method("plug").summary == "Plug — from elsewhere."
    assert registry.method("plug").load().__name__ == "Pruner"


def test_a_broken_plugin_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint("plug", "no_such_package.plug", "lissome.methods")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    with pytest.raises(LissomeError, match="the method 'plug' of a plug-in cannot be used"):
        registry.methods()


def test_public_files_of_a_package() -> None:
    found = {info.name: info for info in registry.public_files("lissome.core")}
    assert found["budget"].summary.startswith("The budget language")
    assert not [name for name in found if name.startswith("_")]
    with pytest.raises(LissomeError, match="not a package"):
        registry.public_files("lissome.core.budget")
