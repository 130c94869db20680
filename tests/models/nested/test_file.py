"""Files of nested weights: exact where they can be, read in place, and refused with one line when damaged."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from lissome.core.errors import ArtifactError, ConfigError, NumericsError, UnsupportedModelError
from lissome.engine.decode import Decoder
from lissome.models.adapters import add_lora
from lissome.models.adapters.prompts import add_prompt
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.nested.blocks import BITS, read_blocks
from lissome.models.nested.file import NestedFile, open_nested
from lissome.models.nested.make import make, make_folder
from lissome.ops.kernels import native
from lissome.ops.nested import Layout, Spacing, layout_named, quantise
from lissome.testing.toys import toy_model
from tests.export.toys import model_of

IDS = [5, 7, 300, 11]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(model_of("llama"), tmp_path_factory.mktemp("nested") / "toy.safetensors")


def test_weights_are_those_of_quantise(path: Path) -> None:
    model, file = model_of("llama"), open_nested(path)
    assert (file.layout, file.head) == (Layout((3, 1)), Layout((5, 1)))
    down = model.module.get_parameter("model.layers.1.mlp.down_proj.weight").detach().numpy()
    embedding = model.module.get_parameter("model.embed_tokens.weight").detach().numpy()
    for precision, head in [(3, 5), (4, 6)]:
        assert np.array_equal(
            file.weight("layers.1.mlp.down", precision), quantise(down, file.layout).weight(precision)
        )
        assert np.array_equal(file.weight("embedding", precision), quantise(embedding, file.head).weight(head))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of levels by k-means."""
    to = tmp_path_factory.mktemp("nested") / "toy.safetensors"
    return make(model_of("llama"), to, layout=Layout(levels="kmeans"))


def test_every_matrix_has_levels_for_every_precision(uneven: Path, path: Path) -> None:
    file, model = open_nested(uneven), model_of("llama")
    assert (str(file.layout), str(file.head)) == ("3+1/kmeans", "5+1/kmeans")
    down = model.module.get_parameter("model.layers.1.mlp.down_proj.weight").detach().numpy()
    for precision in (3, 4):
        found = file.weight("layers.1.mlp.down", precision)
        assert np.array_equal(found, quantise(down, file.layout).weight(precision))
        assert (
            np.square(found - down).sum()
            < np.square(open_nested(path).weight("layers.1.mlp.down", precision) - down).sum()
        )
    assert {len(levels) for name in file.spec.weights() for levels in file.levels(name).values()} == {8, 16, 32, 64}
    assert not open_nested(path).levels("embedding")


def test_parts_and_pieces_of_a_matrix_share_its_levels(
    uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = model_of("llama"), open_nested(uneven)
    parts = [f"model.layers.0.self_attn.{one}_proj.weight" for one in "qkv"]
    whole = np.concatenate([model.module.get_parameter(part).detach().numpy() for part in parts])
    assert np.array_equal(file.weight("layers.0.attention.qkv", 4), quantise(whole, file.layout).weight(4))
    monkeypatch.setattr("lissome.models.nested.make._PIECE", 1000)
    assert make(model, tmp_path / "again", layout=file.layout).read_bytes() == uneven.read_bytes()


def test_blocks_of_gguf_are_not_taken_where_levels_are_fitted(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from lissome.export.gguf import export

    export(model_of("llama", tokenizer=True), tmp_path / "toy.gguf", type="Q4_1")
    model, layout = load_model(tmp_path / "toy.gguf"), Layout(levels="kmeans")
    file = open_nested(make(model, tmp_path / "toy.safetensors", layout=layout))
    down = model.module.get_parameter("model.layers.0.mlp.down_proj.weight").detach().numpy()
    assert np.array_equal(file.weight("layers.0.mlp.down", 4), quantise(down, layout).weight(4))


def test_low_bits_lie_behind_all_that_the_lowest_precision_reads(path: Path) -> None:
    file = open_nested(path)
    first = [place.offset for name, place in file.places.items() if name.endswith(("planes.0", "scales.3", "scales.5"))]
    later = [place.offset for name, place in file.places.items() if name.endswith(("planes.1", "scales.4", "scales.6"))]
    assert max(first) < min(later)
    assert all(place.offset % 64 == 0 for name, place in file.places.items() if "planes" in name or "scales" in name)


def test_other_tools_read_it_too(path: Path) -> None:
    from safetensors.numpy import load_file

    found, file = load_file(path), open_nested(path)
    assert found.keys() == file.places.keys()
    assert all(np.array_equal(array.view(np.uint8), file.array(name).view(np.uint8)) for name, array in found.items())


def test_the_same_model_twice_is_the_same_file(path: Path, tmp_path: Path) -> None:
    assert make(model_of("llama"), tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("levels", get_args(Spacing))
def test_importance_by_name(path: Path, tmp_path: Path, levels: Spacing, request: pytest.FixtureRequest) -> None:
    model, name = model_of("llama"), "model.layers.1.mlp.down_proj.weight"
    counts = torch.rand(model.module.get_parameter(name).shape, generator=torch.Generator().manual_seed(0)) ** 8
    weighted = open_nested(make(model, tmp_path / "w", layout=Layout(levels=levels), importance={name: counts}))
    plain = open_nested(path if levels == "even" else request.getfixturevalue("uneven"))
    down = model.module.get_parameter(name).detach().numpy()

    def error(file: NestedFile) -> float:
        return float((np.square(file.weight("layers.1.mlp.down", 3) - down) * counts.numpy()).sum())

    assert error(weighted) < 0.9 * error(plain)
    moved = weighted.levels("layers.1.mlp.down"), plain.levels("layers.1.mlp.down")
    assert (levels == "even") == all(np.array_equal(moved[0][bits], moved[1][bits]) for bits in moved[0])
    assert np.array_equal(weighted.array("layers.0.mlp.down.planes.0"), plain.array("layers.0.mlp.down.planes.0"))


@pytest.mark.parametrize("kind", list(BITS))
def test_blocks_of_gguf_are_read_as_they_are(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    weight = np.random.default_rng(0).standard_normal((6, 96)).astype(np.float32)
    stored = gguf.quantize(weight, gguf.GGMLQuantizationType[kind])
    codes, scale, least = read_blocks(stored, kind)
    found = codes.reshape(6, 3, 32) * scale[..., None].astype(np.float32) + least[..., None].astype(np.float32)
    assert np.array_equal(found.reshape(6, 96), gguf.dequantize(stored, gguf.GGMLQuantizationType[kind]))
    assert codes.max() < 1 << BITS[kind]


@pytest.mark.parametrize(("kind", "planes"), [("Q4_0", (3, 1)), ("Q4_1", (2, 2)), ("Q8_0", (4, 2, 2))])
def test_a_gguf_file_becomes_nested_without_loss(kind: str, planes: tuple[int, ...], tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from lissome.export.gguf import export

    source = model_of("llama", tokenizer=True, tie_word_embeddings=True)
    export(source, tmp_path / "toy.gguf", type=kind)
    model = load_model(tmp_path / "toy.gguf")
    file = open_nested(make(model, tmp_path / "toy.safetensors", layout=Layout(planes)))
    for name, parts in [
        ("layers.0.attention.qkv", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        ("layers.0.mlp.down", ["mlp.down_proj"]),
    ]:
        whole = [model.module.get_parameter(f"model.layers.0.{part}.weight").detach().numpy() for part in parts]
        assert np.array_equal(file.weight(name, sum(planes)), np.concatenate(whole))


def test_models_that_the_engine_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="does not run models of type"):
        make(toy_model("gpt2"), tmp_path / "file")
    with pytest.raises(UnsupportedModelError, match="activation 'relu'"):
        make(model_of("llama", hidden_act="relu"), tmp_path / "file")
    with pytest.raises(UnsupportedModelError, match="look ahead"):
        make(model_of("gemma3", use_bidirectional_attention=True), tmp_path / "file")
    for put, words in ((add_lora, "adapters beside the weights"), (partial(add_prompt, tokens=2), "virtual tokens")):
        model = model_of("llama")
        put(model)
        with pytest.raises(UnsupportedModelError, match=words):
            make(model, tmp_path / "file")
    with pytest.raises(ConfigError, match="as many segments"):
        make(model_of("llama"), tmp_path / "file", head=Layout((6,)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["3+1", "3+1/kmeans"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(layout: str, value: float, tmp_path: Path) -> None:
    model = model_of("llama")
    model.module.get_parameter("model.layers.1.mlp.down_proj.weight").data[3, 5] = value
    with pytest.raises(NumericsError, match=r"layers\.1\.mlp\.down_proj\.weight has weights"):
        make(model, tmp_path / "file", layout=layout_named(layout))
    name = "model.layers.0.mlp.down_proj.weight"
    importance = {name: torch.full_like(model.module.get_parameter(name), value)}
    with pytest.raises(NumericsError, match="importance"):
        make(model, tmp_path / "file", importance=importance)
    assert not list(tmp_path.iterdir())


def test_weights_that_halves_cannot_hold(tmp_path: Path) -> None:
    model = model_of("llama")
    model.module.get_parameter("model.layers.1.mlp.down_proj.weight").data[3, 5] = -70_000
    with pytest.raises(NumericsError, match=r"layers\.1\.mlp\.down_proj\.weight has weights .*beyond 65504"):
        make(model, tmp_path / "file")


def test_a_folder_has_all_that_generating_needs(tmp_path: Path) -> None:
    folder = make_folder(model_of("llama", tokenizer=True), tmp_path / "out")
    assert {"nested.safetensors", "tokenizer.json", "generation_config.json"} <= {one.name for one in folder.iterdir()}
    assert open_nested(folder).spec.kind == "llama"


def test_reading_and_running_import_no_torch(path: Path) -> None:
    if native.module() is None:
        pytest.skip("there are no compiled kernels")
    code = (
        "import sys; from lissome.engine.decode import Decoder; "
        f"d = Decoder.open({str(path)!r}); print(d.forward([1, 2], [0, 1]).shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 320) False"


# Damage


def changed(path: Path, to: Path, change: Any) -> Path:
    """The file with another header."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    fields = json.loads(content[8 : 8 + length])
    change(fields)
    text = json.dumps(fields).encode()
    text += b" " * (-(len(text) + 8) % 64)
    to.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return to


def of_decoder(**values: Any) -> Any:
    """A change of the decoder's description."""

    def change(fields: dict[str, Any]) -> None:
        decoder = json.loads(fields["__metadata__"]["decoder"])
        for key, value in values.items():
            target, *inner = [decoder], 0, *key.split("__")
            place: Any = target[0]
            for step in inner[1:-1]:
                place = place[int(step) if step.isdigit() else step]
            place[inner[-1]] = value
        fields["__metadata__"]["decoder"] = json.dumps(decoder)

    return change


def overlap(fields: dict[str, Any]) -> None:
    first, second = fields["embedding.planes.0"], fields["embedding.planes.1"]
    second["data_offsets"] = [first["data_offsets"][0], first["data_offsets"][0] + second["shape"][0]]


def other_layout(fields: dict[str, Any]) -> None:
    fields["__metadata__"]["layouts"] = "[[[2, 2], 32], [[5, 1], 32]]"


@pytest.mark.parametrize(
    "change",
    [
        overlap,
        other_layout,
        of_decoder(hidden=1 << 62),
        of_decoder(hidden=-1),
        of_decoder(hidden=1e400),
        of_decoder(vocabulary=10**12),
        of_decoder(layers__0__mlp__width=97),
        of_decoder(layers__0__attention__heads=1 << 40),
        of_decoder(layers__0__attention__kv_heads=3),
        of_decoder(layers__0__attention__rope=7),
        of_decoder(layers__0__attention__rope=1 << 40),
        of_decoder(layers__0__attention__window=-2),
        of_decoder(layers__0__attention__window=1 << 31),
        of_decoder(ropes__0__pairs=1 << 20),
        of_decoder(layers=[]),
        of_decoder(kind=3),
        lambda fields: fields["__metadata__"].pop("decoder"),
        lambda fields: fields["__metadata__"].update(decoder="[" * 100_000),
        lambda fields: fields["__metadata__"].update(layouts="[[[3, 1], 32]]"),
        lambda fields: fields["__metadata__"].update(version="2"),
        lambda fields: fields.pop("norm"),
        lambda fields: fields["norm"].update(dtype="F64"),
        lambda fields: fields["norm"].update(shape=[1 << 62, 4]),
    ],
)
def test_a_header_that_lies_is_refused(path: Path, tmp_path: Path, change: Any) -> None:
    with pytest.raises(ArtifactError) as caught:
        Decoder.open(changed(path, tmp_path / "bad", change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 7, 8, 100, 5000, -1, -64])
def test_a_file_that_is_cut_short_is_refused(path: Path, tmp_path: Path, length: int) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArtifactError, match="damaged or cut short"):
        open_nested(bad)


def test_levels_that_do_not_ascend_are_refused(uneven: Path, tmp_path: Path) -> None:
    bad, place = tmp_path / "bad", open_nested(uneven).places["layers.0.mlp.down.levels.3"]
    content = bytearray(uneven.read_bytes())
    content[place.offset], content[place.offset + 7] = 255, 0
    bad.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"levels of layers\.0\.mlp\.down do not ascend"):
        Decoder.open(bad)
    with pytest.raises(ArtifactError, match="do not ascend"):
        open_nested(bad).weight("layers.0.mlp.down", 3)


def of_layouts(text: str) -> Any:
    return lambda fields: fields["__metadata__"].update(layouts=text)


def other_levels(fields: dict[str, Any]) -> None:
    first, second = fields["norm"], fields["layers.0.mlp.down.levels.4"]
    first["data_offsets"], second["data_offsets"] = second["data_offsets"], first["data_offsets"]


@pytest.mark.parametrize(
    "change",
    [
        other_levels,
        of_layouts('[[[3, 1], 32, "kmeans"], [[5, 1], 32]]'),
        of_layouts("[[[3, 1], 32], [[5, 1], 32]]"),
        of_layouts('[[[3, 1], 32, "lut"], [[5, 1], 32, "kmeans"]]'),
        of_layouts('[[[3, 1], 32, "kmeans", 0], [[5, 1], 32, "kmeans"]]'),
        of_layouts('[[[3, 1], 32, ["kmeans"]], [[5, 1], 32, "kmeans"]]'),
        of_layouts('[[[4, 4], 32, "kmeans"], [[5, 1], 32, "kmeans"]]'),
        lambda fields: fields["layers.0.mlp.down.levels.4"].update(dtype="I8"),
        lambda fields: fields["layers.0.mlp.down.levels.4"].update(shape=[15]),
        lambda fields: fields.pop("layers.0.mlp.down.levels.4"),
    ],
)
def test_a_header_that_lies_of_levels_is_refused(uneven: Path, tmp_path: Path, change: Any) -> None:
    with pytest.raises(ArtifactError) as caught:
        Decoder.open(changed(uneven, tmp_path / "bad", change))
    assert "\n" not in str(caught.value)


def test_vectors_that_are_no_numbers_are_refused(path: Path, tmp_path: Path) -> None:
    bad, file = tmp_path / "bad", open_nested(path)
    content = bytearray(path.read_bytes())
    content[file.places["norm"].offset : file.places["norm"].offset + 4] = struct.pack("<f", float("nan"))
    bad.write_bytes(content)
    with pytest.raises(ArtifactError, match="norm has numbers that are NaN"):
        Decoder.open(bad)


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["path", "uneven"])
def test_no_mutation_crashes(kind: str, request: pytest.FixtureRequest, tmp_path: Path, count: int) -> None:
    if native.module() is None:
        pytest.skip("there are no compiled kernels")
    path: Path = request.getfixturevalue(kind)
    content, bad, rng = path.read_bytes(), tmp_path / "bad", np.random.default_rng(0)
    (length,) = struct.unpack("<Q", content[:8])
    refused = 0
    for _ in range(count):
        mutated = bytearray(content)
        for _ in range(rng.integers(1, 5)):
            mutated[rng.integers(0, 8 + length if rng.random() < 0.9 else len(content))] = rng.integers(32, 127)
        if rng.random() < 0.1:
            del mutated[rng.integers(0, len(mutated)) :]
        bad.write_bytes(mutated)
        try:
            Decoder.open(bad, cells=8).forward(IDS, range(4))
        except (ArtifactError, ConfigError):
            refused += 1
    assert refused > count // 2


def test_a_source_that_was_changed_is_quantised_anew(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from lissome.export.gguf import export

    export(model_of("llama", tokenizer=True), tmp_path / "toy.gguf", type="Q4_1")
    model: Model = load_model(tmp_path / "toy.gguf")
    weight = model.module.get_parameter("model.layers.0.mlp.down_proj.weight")
    weight.data.mul_(1.37)
    file = open_nested(make(model, tmp_path / "toy.safetensors"))
    found, wanted = file.weight("layers.0.mlp.down", 4), weight.detach().numpy()
    assert np.abs(found - wanted).max() < 0.01 * np.abs(wanted).max()
