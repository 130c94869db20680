"""The manifest: there and back, and whatever is done to it or its files is an ArtifactError and nothing else."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome import __version__
from lissome.core.errors import ArtifactError, NumericsError
from lissome.core.manifest import (
    Base,
    Manifest,
    Step,
    read_curve,
    read_manifest,
    verify_files,
    write_curve,
    write_manifest,
)
from lissome.core.method import CurvePoint
from lissome.core.metrics import Metric

PPL = Metric(name="ppl", value=18.2, unit="", se=0.3, low=17.6, high=18.8, n=64)
EXAMPLE = Manifest(
    name="small",
    base=Base(name="toy", architecture="llama", sha256="0" * 64, license="Apache-2.0"),
    tags=("decoder", "pruned"),
    space={"axes": [{"name": "layers.0.mlp", "choices": [0, 1]}], "quorums": []},
    subnet={"layers.0.mlp": 0},
    layers=({"attention": {"query_heads": 4, "kv_heads": 2, "head_dim": 8}, "mlp": 0},),
    lineage=(
        Step(
            method="multipruner",
            config={"split": "auto", "windows": 8},
            seed=3,
            data="abc",
            before=(PPL,),
            after=(replace(PPL, value=20.1),),
            seconds=1.5,
            peak_memory=1e6,
            versions={"torch": "2.13.0"},
            details={"steps": 4},
        ),
    ),
)


def artifact(folder: Path) -> Manifest:
    """An artifact of two files and a curve."""
    (folder / "sub").mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "sub" / "tokenizer.json").write_bytes(b"{}")
    write_curve(folder, [CurvePoint(step=0, change="", subnet={"a": 1}, figures={"params": 5}, quality={"ppl": 18.2})])
    manifest = EXAMPLE.with_files(folder)
    write_manifest(folder, manifest)
    return manifest


def test_there_and_back(tmp_path: Path) -> None:
    manifest = artifact(tmp_path)
    assert set(manifest.files) == {"model.safetensors", "sub/tokenizer.json", "curve.jsonl"}
    assert read_manifest(tmp_path) == manifest
    verify_files(tmp_path, manifest)
    assert manifest.with_files(tmp_path) == manifest
    assert manifest.lissome == __version__
    assert next(iter(json.loads((tmp_path / "manifest.json").read_text()))) == "schema"


def test_the_curve(tmp_path: Path) -> None:
    assert read_curve(tmp_path) == ()
    points = [
        CurvePoint(step=index, change=f"layers.{index}.mlp", subnet={"a": index}, figures={"params": 1.5}, quality={})
        for index in range(3)
    ]
    write_curve(tmp_path, points)
    assert read_curve(tmp_path) == tuple(points)
    path = tmp_path / "curve.jsonl"
    for damage in (path.read_bytes()[:-20], b"{}\n", b"[1]\n", b"\xff\n", path.read_bytes() + b"NaN\n"):
        path.write_bytes(damage)
        with pytest.raises(ArtifactError, match=r"curve\.jsonl:\d"):
            read_curve(tmp_path)


def test_a_figure_that_is_nan_is_not_written(tmp_path: Path) -> None:
    point = CurvePoint(step=0, change="", subnet={}, figures={}, quality={"ppl": float("nan")})
    with pytest.raises(NumericsError):
        write_curve(tmp_path, [point])
    with pytest.raises(NumericsError):
        write_manifest(tmp_path, replace(EXAMPLE, lineage=(replace(EXAMPLE.lineage[0], seconds=float("inf")),)))
    assert not list(tmp_path.iterdir())


def test_a_newer_version_is_refused_with_the_remedy() -> None:
    fields = {**EXAMPLE.to_json(), "schema": 2, "unheard": "of"}
    with pytest.raises(ArtifactError, match=r"schema 2.*reads up to 1.*pip install --upgrade lissome"):
        Manifest.from_json(fields)


@pytest.mark.parametrize(
    "value", [None, [], "text", 3, {}, {"schema": "1"}, {"schema": True}, {"schema": 0}, {"schema": 1.0}]
)
def test_what_is_no_manifest(value: Any) -> None:
    with pytest.raises(ArtifactError, match="no schema version"):
        Manifest.from_json(value)


def test_sizes_that_nobody_writes_on_purpose() -> None:
    deep: Any = 0
    for _ in range(5000):
        deep = [deep]
    step = EXAMPLE.to_json()["lineage"][0]
    for wrong in (
        deep,
        10**5000,
        {**step, "config": {"a": deep}},
        {**step, "seed": deep},
        {**step, "method": 10**5000},
    ):
        with pytest.raises(ArtifactError):
            Manifest.from_json({**EXAMPLE.to_json(), "lineage": [wrong]})


def test_an_unknown_key_of_this_version_is_refused() -> None:
    with pytest.raises(ArtifactError, match="did you mean 'lineage'"):
        Manifest.from_json({**EXAMPLE.to_json(), "linage": []})


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values within a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in children for place in places(item, (*at, key)))]


WHOLE = EXAMPLE.to_json() | {"files": {"model.safetensors": {"bytes": 7, "sha256": "1" * 64}}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(place=st.sampled_from(places(WHOLE)), value=JSON, action=st.sampled_from(["replace", "remove", "add"]))
def test_no_mutation_raises_anything_else(place: tuple[Any, ...], value: Any, action: str) -> None:
    fields = {"root": copy.deepcopy(WHOLE)}
    parent: Any = fields
    for key in ("root", *place[:-1]) if place else ():
        parent = parent[key]
    key = place[-1] if place else "root"
    if action == "add" and isinstance(parent[key], dict):
        parent[key][str(value)] = value
    elif action == "remove" and isinstance(parent, dict):
        del parent[key]
    else:
        parent[key] = value
    try:
        manifest = Manifest.from_json(fields.get("root"))
    except ArtifactError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2000
        return
    assert Manifest.from_json(manifest.to_json()) == manifest


@given(JSON)
def test_no_json_raises_anything_else(value: Any) -> None:
    with pytest.raises(ArtifactError):
        Manifest.from_json(value)


@pytest.mark.parametrize(
    "name", ["../up", "/etc/passwd", "a/../b", "./a", "a//b", "", ".", "a\\b", "a\0b", "manifest.json", "..", "a/"]
)
def test_file_names_that_are_not_plain(name: str) -> None:
    fields = {**WHOLE, "files": {name: {"bytes": 1, "sha256": "1" * 64}}}
    with pytest.raises(ArtifactError, match="only names inside the folder"):
        Manifest.from_json(fields)


@pytest.mark.parametrize("digest", ["", "1" * 63, "G" * 64, "A" * 64, "1" * 64 + "\n"])
def test_hashes_that_are_none(digest: str) -> None:
    with pytest.raises(ArtifactError, match="64 hexadecimal digits"):
        Manifest.from_json({**WHOLE, "files": {"a": {"bytes": 1, "sha256": digest}}})


def test_damaged_files_are_named(tmp_path: Path) -> None:
    manifest = artifact(tmp_path)
    weights = tmp_path / "model.safetensors"
    for content, message in ((b"weight", "cut short"), (b"weights!", "too long"), (b"wEights", "was changed")):
        weights.write_bytes(content)
        with pytest.raises(ArtifactError, match=f"model.safetensors (is|) ?{message}"):
            verify_files(tmp_path, manifest)
    weights.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        verify_files(tmp_path, manifest)
    weights.mkdir()
    with pytest.raises(ArtifactError, match="is missing"):
        verify_files(tmp_path, manifest)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    manifest = artifact(folder)
    secret = tmp_path / "secret"
    secret.write_bytes(b"weights")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(secret)
    with pytest.raises(ArtifactError, match="escapes the folder"):
        verify_files(folder, manifest)


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        read_manifest(tmp_path)
