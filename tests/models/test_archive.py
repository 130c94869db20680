"""Zipped model folders: unpacked once, data alone, nothing outside of the folder."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from random import Random

import pytest
import torch

from lissome.core.errors import ArtifactError, AssetError
from lissome.core.files import cache_dir
from lissome.models.archive import unpack_once
from lissome.models.binding import extract
from lissome.models.load import load_model
from lissome.testing import conformance
from lissome.testing.toys import toy_inputs, toy_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def members_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_zipped_folder_is_the_folder(tmp_path: Path) -> None:
    model = toy_model("bert-labels")
    small, inputs = extract(model, model.space().sample(Random(0))), toy_inputs(model)
    extras = {"pytorch_model.bin": b"code", "run.py": b"code", "deeper/config.json": b"{}"}
    archive = zipped(tmp_path / "small.zip", members_of(small.save(tmp_path / "small")) | extras)
    again = load_model(archive)
    assert torch.equal(conformance.outputs(again.module, inputs), conformance.outputs(small.module, inputs))
    assert again.source.path == archive
    folder = unpack_once(archive)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.json", "model.safetensors", "deeper/config.json"}
    before = (folder / "config.json").stat().st_mtime_ns
    (folder / "model.safetensors").write_bytes(b"cut short")
    assert torch.equal(
        conformance.outputs(load_model(archive).module, inputs), conformance.outputs(small.module, inputs)
    )
    assert unpack_once(archive) == folder
    assert (folder / "config.json").stat().st_mtime_ns >= before


@pytest.mark.parametrize("name", ["../config.json", "/tmp/config.json", "a/../../b.json"])
def test_no_file_leaves_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="escapes the folder"):
        load_model(zipped(tmp_path / "bad.zip", {"config.json": b"{}", name: b"{}"}))
    assert not [path for path in (cache_dir() / "unpacked").iterdir() if not path.name.startswith(".")]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no config\.json at its top"):
        load_model(zipped(tmp_path / "other.zip", {"inner/config.json": b"{}"}))
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.raises(ArtifactError, match="not a zip file"):
        load_model(tmp_path / "text.zip")
    whole = io.BytesIO(zipped(tmp_path / "whole.zip", {"config.json": bytes(9999)}).read_bytes()).getbuffer()
    damaged = bytearray(whole)
    damaged[45] ^= 255  # in the packed bytes
    (tmp_path / "damaged.zip").write_bytes(damaged)
    with pytest.raises(ArtifactError, match="not a zip file that can be read"):
        load_model(tmp_path / "damaged.zip")


def test_a_zip_that_is_larger_than_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(tmp_path / "bomb.zip", {"config.json": bytes(10_000_000)})
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 9_999_999}))
    with pytest.raises(ArtifactError, match="takes 10 MB, more than is free"):
        load_model(archive)


@pytest.mark.slow
def test_minilm_masked_is_minilm_extracted(monkeypatch: pytest.MonkeyPatch) -> None:
    from lissome.pipeline.loading import load

    monkeypatch.delenv("LISSOME_CACHE")
    try:
        model = load("minilm")
    except AssetError as error:
        pytest.skip(f"the model is not here and cannot be fetched: {error}")
    assert sum(value.numel() for value in model.module.parameters()) == 22_713_216
    inputs = dict(
        model.tokenizer(["a lissome model", "bends without breaking, and is thin"], padding=True, return_tensors="pt")
    )
    small = conformance.check_subnet(model, model.space().sample(Random(1)), inputs)
    assert 0 < len(small.anatomy.branches) < 12
