"""Importing this module lets transformers open lissome folders: ``import lissome.models.auto``.

Afterwards ``AutoModelForCausalLM.from_pretrained(folder)`` returns the stock class (say `LlamaForCausalLM`) with the
artifact's own sizes in every block.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lissome.models.artifact import MODEL_TYPE, load_folder


class LissomeConfig(PreTrainedConfig):  # type: ignore[misc]
    """What ``config.json`` of a folder with uneven blocks holds: the original configuration and each block's sizes."""

    model_type = MODEL_TYPE


class LissomeForCausalLM(PreTrainedModel):  # type: ignore[misc]
    """Opens a lissome folder; what comes back is the original model's class."""

    config_class = LissomeConfig

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, dtype: Any = None, **kwargs: Any) -> Any:
        """Read the folder.

        Args:
            folder: A lissome artifact.
            args: Ignored; taken because transformers passes them.
            dtype: Type to hold the weights in (default: the stored one).
            kwargs: Ignored; taken because transformers passes them.

        Raises:
            ArtifactError: When the folder is damaged.
        """
        kept = dtype if isinstance(dtype, torch.dtype) else None
        return load_folder(Path(folder), dtype=kept).module


AutoConfig.register(MODEL_TYPE, LissomeConfig, exist_ok=True)
AutoModelForCausalLM.register(LissomeConfig, LissomeForCausalLM, exist_ok=True)
