"""The verbs of lissome as functions; the command line only parses and prints.

`fit` is the main job; the others are functions of `lissome.pipeline.verbs` and its neighbours. Each is imported when it
is first used: what runs in the decoder engine alone pulls no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lissome.pipeline.fitting import fit as fit
    from lissome.pipeline.loading import load as load
    from lissome.pipeline.searching import search as search
    from lissome.pipeline.supernets import extract_for as extract_for
    from lissome.pipeline.supernets import is_elastic as is_elastic
    from lissome.pipeline.supernets import supernet as supernet
    from lissome.pipeline.verbs import evaluate as evaluate
    from lissome.pipeline.verbs import export as export
    from lissome.pipeline.verbs import extract_step as extract_step
    from lissome.pipeline.verbs import inspect as inspect
    from lissome.pipeline.verbs import inspect_device as inspect_device
    from lissome.pipeline.verbs import list_methods as list_methods
    from lissome.pipeline.verbs import measure as measure
    from lissome.pipeline.verbs import plan as plan
    from lissome.pipeline.writing import generate as generate

_HOMES = {
    **dict.fromkeys(
        ("evaluate", "export", "extract_step", "inspect", "inspect_device", "list_methods", "measure", "plan"), "verbs"
    ),
    **dict.fromkeys(("extract_for", "is_elastic", "supernet"), "supernets"),
    "fit": "fitting",
    "generate": "writing",
    "load": "loading",
    "search": "searching",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lissome.pipeline' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"lissome.pipeline.{_HOMES[name]}"), name)
    return value
