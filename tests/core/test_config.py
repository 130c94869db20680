"""Settings: types and ranges on construction, unknown keys with the nearest name, TOML there and back."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.config import MethodConfig, option, parse_assignments, read_toml, to_toml
from lissome.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    sparsity: float = option(0.5, "share of zeros", low=0.0, high=0.95)
    steps: int = option(10, "steps", low=1)
    lazy: bool = option(True, "score only what may be best")
    split: str = option("auto", "shares, or auto")
    title: str | None = option(None, "a name")
    clip: float | None = option(1.0, "largest norm, or none", low=0.0)
    limit: int | str = option("auto", "a number, or auto")
    mode: Literal["fast", "exact"] = option("fast", "how")
    level: Literal[1, 2] = option(1, "how much")
    widths: tuple[int, ...] = option((64, 32), "sizes", low=1)
    pair: tuple[float, float] = option((0.9, 0.95), "decays", high=1.0)
    modules: tuple[str, ...] = option((), "modules")
    color: str = option("red", "one of a few", choices=("red", "green"))


CONFIGS = st.builds(
    Config,
    sparsity=st.floats(0, 0.95),
    steps=st.integers(1, 2**63 - 1),
    lazy=st.booleans(),
    split=st.text(),
    title=st.none() | st.text(),
    clip=st.none() | st.floats(0, allow_infinity=True),
    limit=st.integers(1 - 2**63, 2**63 - 1) | st.text(),
    mode=st.sampled_from(["fast", "exact"]),
    level=st.sampled_from([1, 2]),
    widths=st.lists(st.integers(1, 2**63 - 1)).map(tuple),
    pair=st.tuples(st.floats(max_value=1), st.floats(max_value=1)),
    modules=st.lists(st.text(alphabet=st.characters(codec="utf-8"))).map(tuple),
)


@given(CONFIGS)
def test_toml_there_and_back(config: Config) -> None:
    assert Config.from_toml(config.to_toml()) == config
    assert Config.from_mapping(config.to_mapping()) == config


@given(st.text(alphabet=st.sampled_from("\"\\\n\r\t\b\f\0\x7f\x85\u2028'#[]={}na\U0001f600"), max_size=30))
def test_toml_keeps_nasty_text(text: str) -> None:
    assert Config.from_toml(Config(split=text, title=text, modules=(text,)).to_toml()).split == text


TOML_VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), TOML_VALUES, max_size=5))
def test_any_nesting_that_can_be_written_reads_back(values: dict[str, Any]) -> None:
    try:
        text = to_toml(values)
    except ConfigError as error:
        assert "cannot be written as TOML" in str(error)  # a mapping within a mixed list
        return
    assert read_toml(text) == values


def test_a_recipe_is_readable() -> None:
    recipe = {"seed": 1, "step": [{"method": "a", "set": {"x": 1}}, {"method": "b"}], "data": {"text file": "x.txt"}}
    assert to_toml(recipe) == (
        'seed = 1\n\n[[step]]\nmethod = "a"\n\n[step.set]\nx = 1\n\n'
        '[[step]]\nmethod = "b"\n\n[data]\n"text file" = "x.txt"\n'
    )


def test_numbers_of_other_libraries_are_written_plainly() -> None:
    kind = enum.IntEnum("kind", {"A": 3})
    assert to_toml({"a": kind.A, "b": np.float64(0.5)}) == "a = 3\nb = 0.5\n"


@pytest.mark.parametrize("value", [None, object(), "\ud800", [{"a": 1}, 2], {"a": None}])
def test_what_toml_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be written as TOML"):
        to_toml({"key": value})


@pytest.mark.parametrize("text", ["a =", "a = 1\na = 2", "[a", "x = " + "1" * 5000, "x = " + "[" * 5000])
def test_bad_toml_is_one_error(text: str) -> None:
    with pytest.raises(ConfigError, match="not valid TOML"):
        Config.from_toml(text)


def test_an_unknown_key_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'sparsity'"):
        Config.from_mapping({"sparsty": 0.5})
    with pytest.raises(ConfigError, match="did you mean 'widths'"):
        Config.from_assignments(["width=3"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sparsity", "0.5"),
        ("sparsity", True),
        ("sparsity", None),
        ("sparsity", 0.96),
        ("sparsity", float("nan")),
        ("clip", 10**400),
        ("steps", 2.0),
        ("steps", 0),
        ("steps", False),
        ("steps", 10**400),
        ("steps", 10**4000),
        ("limit", -(10**20)),
        ("lazy", 1),
        ("lazy", "yes"),
        ("split", 44),
        ("clip", -1.0),
        ("limit", 1.5),
        ("mode", "slow"),
        ("level", 3),
        ("level", True),
        ("widths", 64),
        ("widths", "64"),
        ("widths", [64, 0]),
        ("widths", [64, 1.5]),
        ("widths", [64, 2**63]),
        ("widths", {"a": 1}),
        ("pair", [0.9]),
        ("pair", [0.9, 0.9, 0.9]),
        ("pair", [0.9, 1.1]),
        ("color", "blue"),
    ],
)
def test_types_and_ranges_hold_however_it_is_built(key: str, value: Any) -> None:
    for build in (lambda: Config(**{key: value}), lambda: Config.from_mapping({key: value})):
        with pytest.raises(ConfigError, match=f"'{key}'") as caught:
            build()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


def test_equal_settings_are_equal_however_they_were_written() -> None:
    assert Config(clip=1, widths=[64, 32]) == Config()  # type: ignore[arg-type]
    assert hash(Config(widths=[64, 32])) == hash(Config())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("sparsity=0.25", "sparsity", 0.25),
        ("sparsity = 0", "sparsity", 0.0),
        ("steps=1_000", "steps", 1000),
        ("lazy=off", "lazy", False),
        ("lazy=YES", "lazy", True),
        ("split=44:52:4", "split", "44:52:4"),
        ("split=a=b", "split", "a=b"),
        ("split=", "split", ""),
        ("title=none", "title", None),
        ("title=3", "title", "3"),
        ("clip=none", "clip", None),
        ("clip=2", "clip", 2.0),
        ("limit=7", "limit", 7),
        ("limit=auto", "limit", "auto"),
        ("mode=exact", "mode", "exact"),
        ("level=2", "level", 2),
        ("widths=1, 2,3", "widths", (1, 2, 3)),
        ("widths=", "widths", ()),
        ("pair=0.5,0.6", "pair", (0.5, 0.6)),
        ("modules=a,b", "modules", ("a", "b")),
    ],
)
def test_the_command_line_gives_typed_values(text: str, key: str, value: Any) -> None:
    assert getattr(Config.from_assignments([text]), key) == value


@pytest.mark.parametrize(
    "text", ["steps=2.5", "steps=many", "lazy=maybe", "sparsity=nan", "level=3", "widths=1,x", "pair=1", "split", "=3"]
)
def test_the_command_line_refuses(text: str) -> None:
    with pytest.raises(ConfigError):
        Config.from_assignments([text])


def test_assignments_stand_over_the_base() -> None:
    config = Config.from_assignments(["steps=3"], base={"steps": 7, "sparsity": 0.1})
    assert (config.steps, config.sparsity) == (3, 0.1)
    with pytest.raises(ConfigError, match="given twice"):
        parse_assignments(["steps=3", "steps=4"])


@given(st.sampled_from(Config.names()), st.text(max_size=20))
def test_no_text_does_worse_than_a_config_error(key: str, text: str) -> None:
    try:
        config = Config.from_assignments([f"{key}={text}"])
    except ConfigError:
        return
    assert dataclasses.is_dataclass(config)


def test_a_setting_cannot_hide_what_every_config_has() -> None:
    with pytest.raises(TypeError, match="'names' is taken"):

        class Bad(MethodConfig):
            names: int = option(1, "hides the list of settings")


def test_what_no_file_holds_is_refused_by_name() -> None:
    Config(clip=3.0).check_finite()
    with pytest.raises(ConfigError, match="'clip' must be finite, got inf"):
        Config(clip=float("inf")).check_finite()
