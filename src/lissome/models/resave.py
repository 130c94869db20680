"""transformers' own `save_pretrained` on a cut model: the configuration it writes says one size for all blocks.

A folder with uneven blocks and such a configuration cannot be opened again. So modules that lissome cut write ours
(see `lissome.models.artifact`) in its place; the weights are written by transformers, whatever it was asked for.
"""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Any

from torch import nn

from lissome.core.errors import ConfigError, UnsupportedModelError
from lissome.models.marks import config_text


def keep_sizes(module: nn.Module) -> None:
    """Let `save_pretrained` of a module of transformers, and of the part without its head, keep the sizes of blocks."""
    for part in {id(part): part for part in (module, getattr(module, "base_model", module))}.values():
        if hasattr(type(part), "save_pretrained"):
            part.save_pretrained = MethodType(_save, part)  # a bound method is copied along


def _save(module: Any, save_directory: Any, *args: Any, **options: Any) -> None:
    """Do what `PreTrainedModel.save_pretrained` does, with a configuration that opens again.

    Raises:
        ConfigError: When it shall go to a hub at once, or is a part that has no configuration of its own.
    """
    from lissome.models.artifact import config_of, describes, stock_config
    from lissome.models.model import Model

    model = Model(module)
    uneven = not describes(stock_config(model), module)
    if uneven and options.get("push_to_hub"):
        raise ConfigError(
            "a model with uneven blocks cannot be pushed while it is saved; save it, then upload the folder."
        )
    try:
        config = config_of(model) if uneven else {}
    except UnsupportedModelError as error:
        raise ConfigError(
            f"this {type(module).__name__} has uneven blocks, which no configuration of its own can say; save the "
            "whole model with its head."
        ) from error
    if uneven:
        options["save_original_format"] = False  # the names that the module has
    type(module).save_pretrained(module, save_directory, *args, **options)
    if uneven and options.get("is_main_process", args[0] if args else True):
        config.pop("storage", None)  # transformers writes every number
        (Path(save_directory) / "config.json").write_text(config_text(config), encoding="utf-8")
