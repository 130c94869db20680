"""The exception tree: as drawn, one line each, with the nearest name."""

from __future__ import annotations

import inspect
import re

import pytest

from lissome.core import errors


def drawn_tree() -> dict[str, str]:
    """Parent of each class by the drawing in the module's docstring: four columns of indent a level."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^(?P<indent>[ │├└─]*)(?P<name>\w+Error)\b", line)
        if match is None or "::" in line:
            continue
        level = (len(match["indent"]) - 4) // 4
        path[level:] = [match["name"]]
        if level:
            parents[match["name"]] = path[level - 1]
    return parents


def test_the_drawing_is_the_code() -> None:
    classes = {
        name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__
    }
    tree = drawn_tree()
    assert set(tree) == set(classes) - {"LissomeError"}
    for name, parent in tree.items():
        assert classes[parent] in classes[name].__bases__, name


def test_exit_codes_say_failure() -> None:
    for _, cls in inspect.getmembers(errors, inspect.isclass):
        if issubclass(cls, errors.LissomeError):
            assert cls.exit_code not in (0, 1), "0 is success and 1 is a defect"
            assert cls.__doc__


@pytest.mark.parametrize(
    ("given", "known", "expected"),
    [
        ("memroy", ["memory", "disk"], "memory"),
        ("LATENCY", ["latency"], "latency"),
        ("q4_0", ["F16", "Q4_0", "Q8_0"], "Q4_0"),
        ("zzz", ["memory"], None),
        ("", ["memory"], None),
        ("x", [], None),
    ],
)
def test_nearest(given: str, known: list[str], expected: str | None) -> None:
    assert errors.nearest(given, known) == expected


def test_an_unknown_name_is_one_line_with_all_it_needs() -> None:
    text = errors.unknown_name("method", "multi\npruner", ["shears", "multipruner"], "See: lissome methods")
    assert "\n" not in text
    for part in (
        "unknown method",
        "did you mean 'multipruner'?",
        "known: multipruner, shears.",
        "See: lissome methods",
    ):
        assert part in text


def test_hundreds_of_names_are_not_all_shown() -> None:
    names = [f"layers.{index}.mlp" for index in range(300)]
    text = errors.unknown_name("axis", "layers.3.mpl", names)
    assert len(text) < 600
    assert "'layers.3.mlp'" in text
    assert "(300 in all)" in text
