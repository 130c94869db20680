"""lissome: from one pre-trained model, the members of its family that fit your devices and your budget.

The whole public surface is below; each name is imported when it is first used, so that ``import lissome`` pulls
neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lissome.core.budget import Budget
    from lissome.models.binding import extract, masked
    from lissome.models.space import Space, Subnet
    from lissome.pipeline import evaluate, export, fit, list_methods, load, measure, plan

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Space",
    "Subnet",
    "evaluate",
    "export",
    "extract",
    "fit",
    "list_methods",
    "load",
    "masked",
    "measure",
    "plan",
]

_HOMES = {
    "Budget": "lissome.core.budget",
    "Space": "lissome.models.space",
    "Subnet": "lissome.models.space",
    "extract": "lissome.models.binding",
    "masked": "lissome.models.binding",
}


def _resolve(name: str) -> Any:
    return getattr(importlib.import_module(_HOMES.get(name, "lissome.pipeline")), name)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lissome' has no attribute {name!r}")
    value = globals()[name] = _resolve(name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Package(ModuleType):
    """This module, with one name that the import system must not take.

    `lissome.export` is a function, but importing the folder of that name binds it here as well; a property is not
    overwritten by that. ``from lissome.export import gguf`` works all the same.
    """

    @property
    def export(self) -> Any:
        return _resolve("export")

    @export.setter
    def export(self, module: ModuleType) -> None:
        """Ignore what the import system binds."""


sys.modules[__name__].__class__ = _Package
