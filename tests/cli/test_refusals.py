"""What a method cannot do with a model is one line of `plan` and of `fit` before any work, with nothing written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_model

UP, TYPO = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.upp_proj"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Toys with their tokenizer, text, and masks that do not fit."""
    folder = tmp_path_factory.mktemp("place")
    for family in ("llama", "gpt2", "mamba", "bamba"):
        changes = {} if family == "mamba" else {"n_positions" if family == "gpt2" else "max_position_embeddings": 1024}
        toy = toy_model(family, vocab_size=TOY_VOCABULARY, **changes)
        replace(toy, tokenizer=toy_tokenizer()).save(folder / family)
    (folder / "text.txt").write_text("all work and no play makes jack a dull boy. " * 2000)
    masks = {
        "turned": {UP: torch.ones(24, 40, dtype=torch.bool)},
        "flat": {f"{UP}.weight": torch.ones(960, dtype=torch.bool)},
        "typo": {TYPO: torch.ones(40, 24, dtype=torch.bool)},
        "empty": {},
        "one": {UP: torch.eye(40, 24, dtype=torch.bool)},
        "conv": {"transformer.h.0.mlp.c_fc": torch.ones(40, 24, dtype=torch.bool)},  # Conv1D is [inputs, outputs]
    }
    for name, tensors in masks.items():
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / "folder.safetensors").mkdir()
    (folder / "cut.safetensors").write_bytes((folder / "one.safetensors").read_bytes()[:20])
    return folder


def given(name):
    return ("by=given", f"masks={{place}}/{name}.safetensors")


@pytest.mark.parametrize(
    ("family", "method", "settings", "words"),
    [
        ("llama", "shears", given("turned"), f"the mask of {UP} has shape [24, 40], but its weight has [40, 24]"),
        ("llama", "shears", given("flat"), "has shape [960], but its weight has [40, 24]"),
        ("gpt2", "shears", given("conv"), "c_fc has shape [40, 24], but its weight has [24, 40]"),
        ("llama", "shears", given("typo"), f"unknown layer to prune '{TYPO}'; did you mean '{UP}'?"),
        ("llama", "shears", given("nothing"), "nothing.safetensors cannot be read"),
        ("llama", "shears", given("cut"), "cut.safetensors cannot be read"),
        ("llama", "shears", given("folder"), "cannot be read (it is a folder); give a safetensors file of a Bool"),
        ("llama", "shears", given("empty"), "empty.safetensors holds no mask; it needs one by the name of each layer"),
        ("llama", "shears", (*given("one"), "adapter=masked"), "adapter=masked needs a mask of model.layers.0."),
        ("llama", "shears", ("adapter=masked", "sparsity=0"), "keeps zeros, but sparsity=0 makes none"),
        ("llama", "shears", ("ranks=8,16",), "ranks must be distinct, positive and descending, got 8,16; write 16,8"),
        ("llama", "shears", ("ranks=8,8",), "got 8,8; write 8"),
        ("llama", "shears", ("ranks=0",), "write for example 32,24,16"),
        ("llama", "shears", ("groups=upp_proj",), "unknown kind of linear layer 'upp_proj'; did you mean 'up_proj'?"),
        ("llama", "shears", ("groups=mlp.upproj",), "kind of linear layer 'mlp.upproj'; did you mean 'mlp.up_proj'?"),
        ("llama", "shears", (f"groups={TYPO}",), f"unknown kind of linear layer '{TYPO}'; did you mean '{UP}'?"),
        ("llama", "shears", ("ranks=",), "got none; write for example 32,24,16"),
        ("mamba", "shears", ("groups=up_proj",), "unknown kind of linear layer 'up_proj'; did you mean 'x_proj'?"),
        ("llama", "shears", ("groups=up_proj+down_proj,up_proj",), "is in the groups up_proj+down_proj and up_proj"),
        ("llama", "shears", (f"ranks={10**18},8",), f"rank {10**18} is more than any layer of "),
        ("mamba", "multipruner", (), "multipruner needs a model that is decoder (a language model with attention)"),
        ("llama", "mamba_shedder", (), "mamba_shedder needs a model that is mixer (a language model with Mamba"),
    ],
)  # fmt: skip
def test_said_before_any_work(run, place, tmp_path, monkeypatch, family, method, settings, words):
    monkeypatch.setattr("lissome.pipeline.fitting._run_steps", pytest.fail)
    sets = [word for one in settings for word in ("--set", one.format(place=place))]
    asked = (str(place / family), "--method", method, "--data", str(place / "text.txt"), *sets)
    out = tmp_path / "out"
    for result in (run("plan", *asked), run("fit", *asked, "--out", str(out))):
        assert result.code == 2, result.err
        assert result.out == ""
        errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
        assert errors == result.err.splitlines(), "one line and nothing else"
        assert len(errors) == 1
        assert words in errors[0]
    assert not out.exists()


@pytest.mark.parametrize("more", [("--dry-run",), ("--out", "{place}/o")])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("exprot", "{place}/llama"), "unknown recipe or action 'exprot'; did you mean 'export'?"),
        (("{place}/text.txt", "{place}/text.txt"), "or: lissome federate server RECIPE"),
        (("server",), "or: lissome federate server RECIPE"),
        (("{place}",), "cannot be read"),
        (("server", "{place}/none.toml"), "none.toml cannot be read"),
    ],
)  # fmt: skip
def test_a_federation_that_is_none(run, place, words, said, more):
    result = run("federate", *(word.format(place=place) for word in (*words, *more)))
    assert result.code == 2
    assert said in result.err
    assert not (place / "o").exists()


def test_a_mistyped_action_is_named_before_what_it_lacks(run):
    assert "did you mean 'export'?" in run("federate", "exprot").err
