"""Importing this module lets transformers open lissome folders: ``import lissome.models.auto``.

Afterwards ``AutoModelForCausalLM.from_pretrained(folder)``, and the other classes in `AUTOS`, return the stock class
(say `LlamaForCausalLM`) with the artifact's own sizes in every block.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from lissome.core.errors import ArtifactError
from lissome.models.artifact import load_folder
from lissome.models.build import MODEL_TYPE


class LissomeConfig(PreTrainedConfig):
    """What ``config.json`` of a folder with uneven blocks holds: the original configuration and each block's sizes."""

    model_type = MODEL_TYPE


class LissomeModel(PreTrainedModel):
    """Opens a lissome folder for `AutoModel`: what comes back is the original model without its head."""

    config_class = LissomeConfig
    auto: Any = transformers.AutoModel

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *_model_args: Any, **kwargs: Any) -> Any:
        """Read the folder.

        Args:
            pretrained_model_name_or_path: A lissome artifact.
            kwargs: ``dtype`` (default: the stored one) and ``bare``, whether adapters beside the weights are left off
                (default False), for stock peft to put them on; transformers passes more, which is not looked at.

        Raises:
            ArtifactError: When the folder is damaged, or holds a model of another kind than was asked for.
        """
        dtype = kwargs.get("dtype")
        kept = dtype if isinstance(dtype, torch.dtype) else None
        folder, bare = Path(pretrained_model_name_or_path), bool(kwargs.get("bare"))
        module: Any = load_folder(folder, dtype=kept, bare=bare).module
        if cls.auto is transformers.AutoModel:
            return module.base_model
        fitting = cls.auto._model_mapping.get(type(module.config), ())
        if not isinstance(module, fitting):
            raise ArtifactError(
                f"{pretrained_model_name_or_path} holds a {type(module).__name__}, which {cls.auto.__name__} does not "
                "open; use lissome.load."
            )
        return module


AUTOS = tuple(
    getattr(transformers, name)
    for name in (
        "AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSequenceClassification",
        "AutoModelForQuestionAnswering", "AutoModelForImageClassification", "AutoModelForSpeechSeq2Seq",
    )
)  # fmt: skip
"""Classes of transformers that open lissome folders."""

AutoConfig.register(MODEL_TYPE, LissomeConfig, exist_ok=True)
for auto in AUTOS:
    auto.register(LissomeConfig, type("LissomeModel", (LissomeModel,), {"auto": auto}), exist_ok=True)
