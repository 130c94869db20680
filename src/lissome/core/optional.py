"""Optional libraries: imported when first used, with the one line that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from lissome.core.errors import MissingExtraError


def optional_import(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or say how to install it.

    Args:
        module: Dotted module name, e.g. ``"lm_eval"``.
        extra: The extra of the `lissome` package that provides it.

    Raises:
        MissingExtraError: When the module, or something it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is not usable here ({error}). Install it with: pip install 'lissome[{extra}]'"
        ) from error
