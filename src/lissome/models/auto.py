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


class LissomeConfig(PreTrainedConfig):
    """What ``config.json`` of a folder with uneven blocks holds: the original configuration and each block's sizes."""

    model_type = MODEL_TYPE


class LissomeForCausalLM(PreTrainedModel):
    """Opens a lissome folder; what comes back is the original model's class."""

    config_class = LissomeConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *_model_args: Any, **kwargs: Any) -> Any:
        """Read the folder.

        Args:
            pretrained_model_name_or_path: A lissome artifact.
            kwargs: Only ``dtype`` counts (default: the stored one); transformers passes more.

        Raises:
            ArtifactError: When the folder is damaged.
        """
        dtype = kwargs.get("dtype")
        kept = dtype if isinstance(dtype, torch.dtype) else None
        return load_folder(Path(pretrained_model_name_or_path), dtype=kept).module


AutoConfig.register(MODEL_TYPE, LissomeConfig, exist_ok=True)
AutoModelForCausalLM.register(LissomeConfig, LissomeForCausalLM, exist_ok=True)
