"""The main job on models with states: a budget or a number of removals, the cliff, killed and continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import lissome
from lissome import pipeline
from lissome.core.errors import ConfigError, OrderError
from lissome.core.manifest import read_curve, read_manifest
from lissome.cost.counted import Counter
from lissome.models.model import Model
from lissome.testing.conformance import difference, logits
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import STATES, toy_model

pytestmark = pytest.mark.long

QUICK = ("recover_steps=2", "order_windows=4", "cliff=none")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Toys with states and their tokenizer, as folders; and a decoder."""
    made = {}
    for family in (*STATES, "llama"):
        module = toy_model(family, vocab_size=TOY_VOCABULARY).module
        made[family] = Model(module, toy_tokenizer()).save(tmp_path_factory.mktemp("toys") / f"toy-{family}")
    return made


@pytest.mark.parametrize("family", STATES)
def test_a_budget_is_met_and_the_folder_opens(
    family: str, folders: dict[str, Path], toy_text: Path, tmp_path: Path
) -> None:
    report = lissome.fit(
        folders[family], method="mamba_shedder", data=toy_text, budget="block_params=70%", settings=QUICK,
        out=tmp_path / "out",
    )  # fmt: skip
    assert report.ok and not any("cliff" in note for note in report.notes)
    small, base = lissome.load(tmp_path / "out"), lissome.load(folders[family])
    assert Counter(small).count().block_params <= 0.7 * Counter(base).count().block_params
    manifest = read_manifest(tmp_path / "out")
    assert manifest.lineage[0].method == "mamba_shedder" and "pruned" in manifest.tags
    point = read_curve(tmp_path / "out")[1]
    step = pipeline.extract_step(tmp_path / "out", 1, tmp_path / "step")
    assert Counter(lissome.load(step)).count().block_params == point.figures["block_params"]
    ids = torch.arange(4, 20).unsqueeze(0)
    again = lissome.load(small.save(tmp_path / "again"))
    assert difference(logits(again.module, ids), logits(small.module, ids)) == 0


def test_a_number_of_removals_needs_no_budget(folders: dict[str, Path], toy_text: Path, tmp_path: Path) -> None:
    settings = ("steps=2", *QUICK)
    planned = pipeline.plan(folders["mamba2"], method="mamba_shedder", data=toy_text, settings=settings)
    assert planned.budget == "" and planned.predicted == {} and "known afterwards" in planned.notes[0]
    assert planned.seconds is None, "the time of scans is not predicted"
    report = lissome.fit(
        folders["mamba2"], method="mamba_shedder", data=toy_text, settings=settings, out=tmp_path / "out"
    )
    assert report.ok and not report.verdicts
    assert len(lissome.load(tmp_path / "out").anatomy.blocks) == 2
    assert read_manifest(tmp_path / "out").name.endswith("toy-mamba2 after mamba_shedder")
    held = lissome.fit(
        folders["mamba2"], method="mamba_shedder", data=toy_text, settings=settings, budget="block_params=10%",
        out=tmp_path / "held",
    )  # fmt: skip
    assert held.sha256 == report.sha256 and not held.ok, "with a budget the number is made, then held against it"


def test_the_cliff_is_in_the_result(folders: dict[str, Path], toy_text: Path, tmp_path: Path) -> None:
    settings = (*QUICK[:2], "cliff=0")
    report = lissome.fit(
        folders["mamba"], method="mamba_shedder", data=toy_text, budget="block_params=30%", settings=settings,
        out=tmp_path / "out",
    )  # fmt: skip
    assert not report.ok
    assert any("stopped at the cliff" in note and "cliff=0" in note for note in report.notes)


def test_the_wrong_method_names_the_right_one(folders: dict[str, Path], toy_text: Path, tmp_path: Path) -> None:
    with pytest.raises(OrderError, match=r"mamba_shedder needs a model that is mixer .*; use multipruner") as caught:
        lissome.fit(folders["llama"], method="mamba_shedder", data=toy_text, out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    with pytest.raises(OrderError, match=r"multipruner needs a model that is decoder .*; use mamba_shedder") as caught:
        lissome.fit(folders["mamba2"], data=toy_text, settings=("split=0:0:1", "heads=both"), out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="targets=width: this mamba has none; it has blocks, ssm"):
        lissome.fit(
            folders["mamba"], method="mamba_shedder", data=toy_text, settings=("targets=width", "steps=1"),
            out=tmp_path / "out",
        )  # fmt: skip


_JOB = """
import sys, lissome
stages = {"bamba": ("steps=2,3,1", "width_step=8"), "mamba2": ("split=90:0:10",), "mamba": ("split=60:20:20",)}
how = next(stages[family] for family in stages if family in sys.argv[1])
settings = (*how, "lazy=false", "recover_steps=6", "cliff=none")
report = lissome.fit(
    sys.argv[1], method="mamba_shedder", data=sys.argv[2], budget="block_params=60%", settings=settings, out=sys.argv[3]
)
print(report.sha256)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("family", "fraction"), [("mamba", 0.5), ("mamba2", 0.75), ("bamba", 0.6), ("bamba", 0.9)])
def test_killed_anywhere_and_continued_gives_the_same_hash(
    family: str, fraction: float, folders: dict[str, Path], toy_text: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(out: str) -> list[str]:
        return [sys.executable, "-c", _JOB, str(folders[family]), str(toy_text), str(tmp_path / out)]

    start = time.monotonic()
    whole = subprocess.run(command("a"), capture_output=True, text=True, env=environment, check=True)
    seconds = time.monotonic() - start
    process = subprocess.Popen(command("b"), env=environment, stdout=subprocess.DEVNULL)
    time.sleep(fraction * seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = subprocess.run(command("b"), capture_output=True, text=True, env=environment, check=True)
    assert again.stdout.split()[-1] == whole.stdout.split()[-1]
