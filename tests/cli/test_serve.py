"""The command serve: what it refuses before it listens."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from lissome.models.nested.make import make_folder
from lissome.ops.kernels import native
from tests.export.toys import model_of

installed = importlib.util.find_spec("uvicorn") is not None and importlib.util.find_spec("starlette") is not None


@pytest.mark.skipif(installed, reason="the extra serve is installed")
def test_the_extra_is_named(run: Any) -> None:
    result = run("serve", "x")
    assert result.code == 2
    assert "pip install 'lissome[serve]'" in result.err


@pytest.mark.skipif(not installed, reason="the extra serve is not installed")
@pytest.mark.skipif(native.module() is None, reason="there are no compiled kernels")
def test_refusals(run: Any, tmp_path: Path) -> None:
    path = make_folder(model_of("llama", tokenizer=True), tmp_path / "toy")
    bare = make_folder(model_of("llama"), tmp_path / "bare")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = [
            (("smollm2-135m",), "lissome export smollm2-135m --to nested"),
            ((str(tmp_path / "none"),), "holds no nested weights"),
            ((str(bare),), "no tokenizer.json"),
            ((str(path), "--port", port), "choose another --host or --port"),
            ((str(path), "--host", "no.such.host.invalid"), "cannot listen"),
            ((str(path), "--context", "1"), "must be 2 to"),
            ((str(path), "--context", "99999999"), "must be 2 to"),
            ((str(path), "--key", ""), "the key is empty"),
        ]
        for words, message in cases:
            result = run("serve", *words)
            assert (result.code, result.out) == (2, "")
            assert message in result.err
