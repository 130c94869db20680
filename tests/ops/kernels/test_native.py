"""The compiled module: there when it can be, on the instruction set that it says, and light."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from lissome.core.errors import ConfigError
from lissome.ops.kernels import native

USABLE = [level.name for level in native.choice().levels if level.usable]
compiled = pytest.mark.skipif(native.module() is None, reason="no compiled kernels here")


def in_process(code: str, **environment: str) -> Any:
    """What a fresh process prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return json.loads(done.stdout)


def test_it_was_built_where_there_is_a_compiler() -> None:
    if shutil.which("c++") is None or os.environ.get("LISSOME_NO_NATIVE", "0") not in {"", "0"}:
        pytest.skip("no compiler at hand, or not wanted")
    assert native.module() is not None, native.choice().why


@compiled
def test_the_fastest_usable_one_is_taken_unless_asked_otherwise() -> None:
    code = "import json; from lissome.ops.kernels.native import choice as c; print(json.dumps([c().name, c().why]))"
    name, why = in_process(code, LISSOME_ISA="")
    assert name == [level for level in USABLE if level != "tile"][-1]
    assert "although" not in why
    name, why = in_process(code, LISSOME_ISA="portable")
    assert name == "portable"
    assert USABLE == ["portable", "tile"] or "although" in why


@compiled
def test_levels_say_what_is_missing() -> None:
    levels = native.choice().levels
    assert [level.name for level in levels] == ["portable", "avx2", "avx512", "avx512bf16", "amx", "tile"]
    assert all(("missing" in level.why or "permission" in level.why) != level.usable for level in levels)
    assert levels[0].usable
    assert levels[-1].usable


@compiled
def test_another_one_can_be_used_for_a_while() -> None:
    before = native.choice().name
    with contextlib.suppress(ValueError), native.using("portable"):
        assert native.choice().name == "portable"
        raise ValueError
    assert native.choice().name == before


@compiled
@pytest.mark.parametrize(("name", "words"), [("avx51", "did you mean 'avx512'"), ("amx", "usable: portable")])
def test_what_cannot_be_used_is_refused(name: str, words: str) -> None:
    if name in USABLE:
        pytest.skip("this CPU has it")
    with pytest.raises(ConfigError, match=words), native.using(name):
        pass


@compiled
def test_it_pulls_no_tensor_library() -> None:
    code = (
        "import json, sys; from lissome.ops.kernels.native import module; module().threads();"
        "print(json.dumps([name for name in ('torch', 'numpy') if name in sys.modules]))"
    )
    assert in_process(code) == []


@compiled
def test_threads() -> None:
    module = native.required()
    before = module.threads()
    module.set_threads(3)
    assert module.threads() == 3
    module.set_threads(before)
    assert 1 <= module.processors() <= (os.cpu_count() or 1)
    for bad in (0, 5000):
        with pytest.raises(ValueError, match="1 to 1024"):
            module.set_threads(bad)


def test_without_it_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "module", lambda: None)
    found = native.choice()
    assert found.name == "reference"
    assert "install" in found.why
    with pytest.raises(ConfigError, match="needs the compiled kernels"):
        native.required()
