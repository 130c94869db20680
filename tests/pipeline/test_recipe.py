"""Recipes round-trip, refuse what they do not know, and find impossible orders before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.budget import Budget
from lissome.core.errors import BudgetError, ConfigError, OrderError, UnknownNameError
from lissome.pipeline.job import tags_of
from lissome.pipeline.recipe import Recipe
from lissome.testing.toys import toy_model

_DENSE = frozenset({"dense", "decoder"})
_BUDGET = Budget.parse("params=80%")


@given(
    split=st.sampled_from(["auto", "100:0:0", "44:52:4"]),
    lazy=st.booleans(),
    step=st.none() | st.integers(1, 512),
    margin=st.floats(0, 0.5),
    count=st.integers(1, 3),
)
def test_toml_round_trip(split: str, lazy: bool, step: int | None, margin: float, count: int) -> None:
    settings = [f"split={split}", f"lazy={lazy}", f"margin={margin!r}", *([f"width_step={step}"] if step else [])]
    one = Recipe.of("multipruner", settings)
    recipe = Recipe(one.steps * count, ("latency=85%", "disk<=90MB"))
    assert Recipe.from_toml(recipe.to_toml()) == recipe


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("", ConfigError, r"\[\[step\]\]"),
        ("steps = 3", ConfigError, "did you mean 'step'"),
        ("[[step]]\nsplit = 'auto'", ConfigError, "method"),
        ("[[step]]\nmethod = 'multipruner'\nsplitt = 'auto'", ConfigError, "did you mean 'split'"),
        ("[[step]]\nmethod = 'multipruner'\nsplit = '1:2'", ConfigError, "44:52:4"),
        ("[[step]]\nmethod = 'prunner'", UnknownNameError, "multipruner"),
        ("budget = 3\n[[step]]\nmethod = 'multipruner'", ConfigError, "budget"),
        ("[[step]\n", ConfigError, "TOML"),
        ("[[step]]\nmethod = 'multipruner'\nlazy = 'perhaps'", ConfigError, "lazy"),
    ],
)
def test_bad_recipes(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        Recipe.from_toml(text)
    assert "\n" not in str(caught.value)


_STEP = "[[step]]\nmethod = 'multipruner'\n"


@pytest.mark.parametrize(
    ("text", "error", "start"),
    [
        ("\nbugdet = '1'\n" + _STEP, ConfigError, ":2: unknown recipe key 'bugdet'"),
        ("budget = 'latncy=3'\n" + _STEP, BudgetError, ":1: unknown budget term 'latncy'"),
        (_STEP + _STEP + "splt = 'auto'", ConfigError, ":5: unknown setting 'splt'"),
        (_STEP + "lazy = 'perhaps'\n" + _STEP, ConfigError, ":3: the setting 'lazy'"),
        ("# none\n[[step]]\nmethod = 'prunner'", UnknownNameError, ":3: unknown method 'prunner'"),
        (_STEP + "\n[[step]]\nsplit = 'auto'", ConfigError, ":4: each [[step]] needs method"),
        ("step = [{method = 'multipruner', splt = 1}]", ConfigError, ": unknown setting 'splt'"),
        ("a = ", ConfigError, ": not valid TOML: Invalid value (at end of document)"),
        ("[[step]\n", ConfigError, ": not valid TOML: Expected ']]' at the end of an array declaration (at line 1"),
        ("", ConfigError, ": a recipe needs at least one"),
        ("budget = 3\n" + _STEP, ConfigError, ": the budget of a recipe"),
    ],
)  # fmt: skip
def test_what_is_wrong_names_the_file_and_the_line(
    tmp_path: Path, text: str, error: type[Exception], start: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(error) as caught:
        Recipe.read(path)
    assert str(caught.value).startswith(f"{path}{start}")


def test_an_empty_name_is_no_method() -> None:
    with pytest.raises(UnknownNameError, match="unknown method ''"):
        Recipe.of("")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read"):
        Recipe.read(tmp_path / "none.toml")


def test_order_and_bounds_are_checked() -> None:
    recipe = Recipe.of("multipruner")
    assert "pruned" in recipe.check(_DENSE, _BUDGET)
    with pytest.raises(OrderError, match="multipruner needs a model that is decoder"):
        recipe.check(frozenset({"dense", "vit"}), _BUDGET)
    with pytest.raises(
        OrderError, match=r"with attention.*but this one is causal-lm, dense, mixer, ssm, text;"
    ) as caught:
        Recipe.of("multipruner", ["heads=both", "split=0:0:1"]).check(tags_of(toy_model("mamba2")), _BUDGET)
    assert "\n" not in str(caught.value)
    with pytest.raises(BudgetError, match="risk cannot be bounded here"):
        recipe.check(_DENSE, Budget.parse("risk<=0.1"))
    with pytest.raises(BudgetError, match="params cannot be bounded here: pmpd can follow no bound; leave it out"):
        Recipe.of("pmpd").check(_DENSE, Budget.parse("params<=90%"))


def test_files_beside_the_weights_are_those_of_the_last_step() -> None:
    """Another step neither keeps them nor fits them: the state that speaks of them goes too."""
    steps = [Recipe.of(name).steps[0] for name in ("multipruner", "pmpd")]
    assert "nested" in Recipe(tuple(steps)).check(_DENSE, Budget())
    with pytest.raises(OrderError, match=r"pmpd leaves nested weights .* multipruner after it .* put pmpd last"):
        Recipe(tuple(reversed(steps))).check(_DENSE, Budget())
    assert "nested" not in Recipe.of("shears").check(_DENSE | {"text", "nested"}, Budget())


@pytest.mark.parametrize("method", ["fedavg", "raffm"])
def test_a_federation_is_no_job_of_one_model(method: str) -> None:
    with pytest.raises(ConfigError, match=rf"{method} trains .* lissome federate RECIPE. Here fit: .*multipruner"):
        Recipe.of(method).check(_DENSE, _BUDGET)


def test_a_file_in_another_encoding_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes("# é".encode("latin-1"))
    with pytest.raises(ConfigError, match="save the file as UTF-8"):
        Recipe.read(path)
