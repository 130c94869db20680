"""Models of single clients: what is exported is what the client was judged by, for slices of every size."""

from __future__ import annotations

from pathlib import Path

import pytest

from lissome.cli.main import main
from lissome.models.load import load_model
from lissome.pipeline.federating import federate
from lissome.pipeline.federation import FederationJob, FederationRecipe
from tests.pipeline.federated import RECIPE, make_place

pytest.importorskip("flwr_datasets", reason="needs flwr-datasets: pip install 'lissome[federate]'")


@pytest.mark.long
@pytest.mark.parametrize("more", ["common = 0.3\n", 'private = ["classifier*"]\n'])
def test_an_own_model_is_the_one_that_was_judged(more: str, tmp_path: Path) -> None:
    place = make_place(tmp_path)
    (place / "recipe.toml").write_text(RECIPE + more)
    report = federate(place / "recipe.toml", out=place / "out")
    job = FederationJob(FederationRecipe.read(place / "recipe.toml"))
    budgets = {name: kind.budget for name, kind in job.kinds.items()}
    sizes = {}
    for name in (next(one for one, budget in budgets.items() if bool(budget) == small) for small in (False, True)):
        assert main(["federate", "export", str(place / "out"), "--client", name, "--out", str(place / name)]) == 0
        own = load_model(place / name)
        lesson = job.silos.client(name, own)
        score = lesson.score(lesson.around(own).eval())[1]
        judged = report.rounds[-1]["scores"][name]
        assert {key: pytest.approx(value, rel=1e-4) for key, value in score.items()} == judged
        sizes[bool(budgets[name])] = sum(value.numel() for value in own.module.parameters())
    assert sizes[True] < sizes[False]


def test_who_kept_nothing_has_no_model_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = make_place(tmp_path)
    (place / "recipe.toml").write_text(RECIPE.replace("rounds = 2", "rounds = 1"))
    federate(place / "recipe.toml", out=place / "out")
    command = ["federate", "export", str(place / "out"), "--client", "client-0", "--out", str(place / "own")]
    assert main(command) == 2
    assert "kept nothing" in capsys.readouterr().err
    assert not (place / "own").exists()


def test_settings_that_do_not_go_with_personal_models() -> None:
    for step in ('method = "rafl"', 'method = "raffm"', 'method = "ffm"\nlora = "stack"'):
        text = f'model = "x"\n[[step]]\n{step}\ncommon = 0.5\n'
        with pytest.raises(Exception, match="common"):
            FederationRecipe.from_toml(text)
