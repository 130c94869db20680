"""The native tests under the address and undefined-behaviour sanitizers; they take a compiler some minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("cmake", "ninja", "c++")

pytestmark = pytest.mark.slow


def found(tool: str) -> str | None:
    """A tool of the environment, which pip brings, or of the system."""
    return shutil.which(tool, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [tool for tool in TOOLS if found(tool) is None]
    if missing:
        pytest.skip(f"not at hand: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("sanitized")
    options = ["-DLISSOME_SANITIZE=ON", "-DLISSOME_TESTS=ON", "-DLISSOME_WERROR=ON", "-GNinja"]
    ninja = f"-DCMAKE_MAKE_PROGRAM={found('ninja')}"
    subprocess.run([found("cmake"), "-S", ROOT, "-B", folder, ninja, *options], check=True, capture_output=True)
    subprocess.run([found("cmake"), "--build", folder], check=True, capture_output=True)
    return folder / "native"


@pytest.mark.parametrize("name", ["tiles", "threads", "linears", "hostile", "nested", "attention"])
def test_clean(built: Path, name: str) -> None:
    done = subprocess.run([built / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
