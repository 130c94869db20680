"""Optional libraries: a missing one says how to install it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lissome.core.errors import LissomeError, MissingExtraError
from lissome.core.optional import optional_import


def test_an_installed_module_is_returned() -> None:
    assert optional_import("json", extra="none") is json


def test_a_missing_module_says_the_install_line() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'lissome\[eval\]'") as caught:
        optional_import("no_such_module", extra="eval")
    assert isinstance(caught.value, LissomeError)
    assert isinstance(caught.value, ImportError)


def test_a_module_whose_own_import_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_there.py").write_text("import no_such_part\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match="no_such_part"):
        optional_import("half_there", extra="x")
