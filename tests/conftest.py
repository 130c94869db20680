"""What all tests share: one thread, no network, reproducible examples, the gpu marker."""

from __future__ import annotations

import os

# Before any library reads them: two workers share two cores, and nothing may be fetched.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[_name] = "1"

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "lissome",
    deadline=None,  # a loaded machine is no failure
    derandomize=True,  # the same examples everywhere; `--hypothesis-profile=explore` looks for new ones
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.register_profile(
    "explore", hypothesis.settings.get_profile("lissome"), derandomize=False, max_examples=2000
)
hypothesis.settings.load_profile("lissome")


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the width of the terminal that the tests were started in; parallel workers are given a made-up one."""
    monkeypatch.delenv("COLUMNS", raising=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
