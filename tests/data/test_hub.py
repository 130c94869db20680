"""Names that are no files, while the hub has no address."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lissome.core.errors import DataError
from lissome.data.hub import asked_once
from lissome.data.images import read_images
from lissome.data.sources import read_corpus

constants: Any = pytest.importorskip("huggingface_hub.constants", reason="needs datasets: pip install 'lissome[eval]'")
pytest.importorskip("datasets", reason="needs datasets: pip install 'lissome[eval]'")


@pytest.mark.parametrize("read", [read_images, read_corpus])
def test_a_slip_of_the_hand_costs_no_minute(
    read: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", "https://nowhere.invalid")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("lissome.data.hub.getproxies", dict)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="did you mean 'pictures'") as caught:
        read("pictrues")
    assert time.monotonic() - start < 30, "its library tries five times, for a minute"
    assert "\n" not in str(caught.value)
    assert "Retrying" not in caplog.text
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(("endpoint", "proxies", "offline"), [
    ("https://nowhere.invalid", {}, True), ("https://nowhere.invalid", {"https": "http://there:1"}, False),
    ("http://127.0.0.1:1", {}, False),
])  # fmt: skip
def test_a_hub_without_an_address_is_not_asked(
    endpoint: str, proxies: dict[str, str], offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("lissome.data.hub.getproxies", lambda: proxies)
    with asked_once():
        assert constants.HF_HUB_OFFLINE is offline
    assert constants.HF_HUB_OFFLINE is False
