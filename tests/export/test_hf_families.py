"""Hugging Face export of every other family: stock transformers opens it alone, or one line says why it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from safetensors.torch import save_file

from lissome import pipeline
from lissome.core.errors import ExportError
from lissome.engine.sparsify import Pruning, sparsify
from lissome.export.gguf import export as export_gguf
from lissome.export.hf import export
from lissome.models.adapters import Design, Masked, add_adapters, merge_lora
from lissome.models.adapters.prompts import add_prompt
from lissome.models.binding import extract
from lissome.models.model import Model
from lissome.testing.conformance import outputs
from lissome.testing.toys import DECODERS, FAMILIES, toy_inputs, toy_model

OTHERS = tuple(family for family in FAMILIES if family not in DECODERS)

_STOCK = """
import json, sys, torch, transformers
from pathlib import Path
from safetensors.torch import load_file
assert not any(name.startswith("lissome") for name in sys.modules)
for folder in sorted(Path(sys.argv[1]).iterdir()):
    config = json.loads((folder / "config.json").read_text())
    model = getattr(transformers, config["architectures"][0]).from_pretrained(folder).eval()
    files = load_file(folder / "check" / "inputs.safetensors")
    expected = files.pop("expected")
    with torch.no_grad():
        torch.testing.assert_close(model(**files)[0], expected, rtol=1e-4, atol=1e-5)
    assert not (model.config.model_type == "lissome")
    print(folder.name)
"""


POST_NORM = ("opt-postnorm", "bert", "bert-tokens", "bert-labels")
REFUSED = {(family, "shorter"): "block 3 has no attention" for family in POST_NORM}  # its norms outlive a block
REFUSED |= {(family, "narrower"): "block 0: mixer heads is 2, but it says 3" for family in ("mamba2", "bamba")}


def changed(family: str, how: str) -> Model:
    """A toy as it is, with every MLP or mixer smaller alike, with a block less, or sparse with merged adapters."""
    model = toy_model(family)
    if how == "sparse":
        sparsify(model, (), Pruning(by="magnitude"))
        add_adapters(model, Design(ranks=(2,), alpha=4, make=Masked))
        merge_lora(model)
    elif how == "shorter":
        last = max(branch.block for branch in model.anatomy.branches)
        return extract(model, {branch.name: 0 for branch in model.anatomy.branches if branch.block == last})
    elif how == "narrower":  # channels of Mamba: a whole multiple of the residual width, which `expand` can say
        sizes = {"mlp.width": 24, "mixer.channels": 24, "mixer.heads": 2}
        axes = [axis.name for axis in model.space(width=8).axes]
        return extract(model, {name: size for name in axes for end, size in sizes.items() if name.endswith(end)})
    return model


def kept_together(folder: Path, model: Model) -> None:
    inputs = toy_inputs(model)
    (folder / "check").mkdir()
    save_file({**inputs, "expected": outputs(model.module, inputs)}, folder / "check" / "inputs.safetensors")


@pytest.mark.long
def test_stock_transformers_opens_what_a_configuration_can_say(tmp_path: Path) -> None:
    opened = []
    for family, how in product(OTHERS, ("whole", "narrower", "sparse", "shorter")):
        model, folder = changed(family, how), tmp_path / f"{family}-{how}"
        if (family, how) in REFUSED:
            with pytest.raises(ExportError, match=REFUSED[family, how]) as caught:
                export(model, folder)
            assert "\n" not in str(caught.value)
            assert not folder.exists()
            continue
        report = export(model, folder)
        assert report.blocks == len(model.anatomy.blocks)
        assert report.architecture == type(model.module).__name__
        kept_together(folder, model)
        opened.append(folder.name)
    done = subprocess.run([sys.executable, "-c", _STOCK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(opened)


@pytest.mark.parametrize(
    ("family", "cut", "words"),
    [
        ("bert", {"layers.1.mlp.width": 24}, "this bert (block 1: mlp width is 24, but it says 40)"),
        ("gpt2", {f"layers.{index}.attention.groups": 3 for index in range(4)}, "attention groups is 3, but it says 4"),
        ("vit", {"layers.0.mlp": 0}, "this vit (block 0 has no mlp)"),
        ("mamba2", {"layers.0.mixer.ssm": 0}, "block 0: mixer ssm is 0, but it says 1"),
    ],
)
@pytest.mark.parametrize("pad", [False, True])
def test_uneven_blocks_are_refused_with_a_reason(
    family: str, cut: dict[str, int], words: str, pad: bool, tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as caught:
        export(extract(toy_model(family), cut), tmp_path / "out", pad=pad)
    assert words in str(caught.value)
    assert "lissome.load" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_number_type_and_what_prepares_images(tmp_path: Path) -> None:
    toy_model("vit-labels").save(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    report = pipeline.export(tmp_path / "vit", "hf", tmp_path / "out", type="BF16")
    assert list(report.types) == ["bfloat16"]
    assert json.loads((report.path / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((report.path / "preprocessor_config.json").read_text()) == {"image_mean": [0.5]}


@pytest.mark.parametrize("to", ["hf", "gguf", "nested"])
def test_virtual_tokens_are_not_dropped_in_silence(to: str, tmp_path: Path) -> None:
    model = toy_model("llama")
    add_prompt(model, 3)
    with pytest.raises(ExportError, match="virtual tokens, which no format holds"):
        pipeline.export(model, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["gpt2", "opt", "bert", "vit", "whisper", "mamba", "mamba2", "bamba"])
def test_gguf_names_the_families_that_it_is_for(family: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=rf"GGUF files are written for llama, .*phi3, not for {family}; .*--to hf"):
        export_gguf(toy_model(family), tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())
