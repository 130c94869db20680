"""Toy models of every family: real transformers classes with tiny random weights, built in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lissome.models.model import Model, Source

_WORDS: dict[str, Any] = {"vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER: dict[str, Any] = _WORDS | {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
_WINDOWED = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}
_GEMMA: dict[str, Any] = {**_WINDOWED, "query_pre_attn_scalar": 8, "num_key_value_heads": 1}


@dataclass(frozen=True)
class Toy:
    """How a toy is built.

    Attributes:
        model: Class of transformers.
        config: Its configuration class.
        fields: The configuration's fields.
    """

    model: str
    config: str
    fields: dict[str, Any] = field(default_factory=dict)


def _decoder(name: str, model: str | None = None, **fields: Any) -> Toy:
    return Toy(f"{model or name}ForCausalLM", f"{name}Config", _DECODER | fields)


_TOYS: dict[str, Toy] = {
    "llama": _decoder("Llama"),
    "mistral": _decoder("Mistral", sliding_window=5),
    "qwen2": _decoder("Qwen2"),
    "qwen3": _decoder("Qwen3"),
    "gemma2": _decoder("Gemma2", **_GEMMA),
    "gemma3": _decoder("Gemma3Text", "Gemma3", **_GEMMA),
    "phi3": _decoder("Phi3", resid_pdrop=0.1),
}
DECODERS: tuple[str, ...] = tuple(_TOYS)
"""Llama-like decoders."""

_ENCODER: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
_BERT: dict[str, Any] = {"vocab_size": 61, "pad_token_id": 0, **_ENCODER, "max_position_embeddings": 128}
_VIT: dict[str, Any] = {**_ENCODER, "image_size": 12, "patch_size": 4}
_OPT: dict[str, Any] = _WORDS | {
    "hidden_size": 24,
    "ffn_dim": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "word_embed_proj_dim": 24,
}
_WHISPER: dict[str, Any] = _WORDS | {
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 36,
    "num_mel_bins": 10,
    "max_source_positions": 8,
    "max_target_positions": 64,
    "decoder_start_token_id": 1,
}
_TOYS |= {
    "gpt2": Toy(
        "GPT2LMHeadModel",
        "GPT2Config",
        _WORDS | {"n_embd": 24, "n_inner": 40, "n_layer": 4, "n_head": 4, "n_positions": 128},
    ),
    "opt": Toy("OPTForCausalLM", "OPTConfig", _OPT),
    "opt-postnorm": Toy(
        "OPTForCausalLM", "OPTConfig", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}
    ),
    "bert": Toy("BertModel", "BertConfig", _BERT),
    "bert-tokens": Toy("BertForMaskedLM", "BertConfig", _BERT),
    "bert-labels": Toy("BertForSequenceClassification", "BertConfig", {**_BERT, "num_labels": 3}),
    "vit": Toy("ViTModel", "ViTConfig", _VIT),
    "vit-labels": Toy("ViTForImageClassification", "ViTConfig", {**_VIT, "num_labels": 3}),
    "whisper": Toy("WhisperForConditionalGeneration", "WhisperConfig", _WHISPER),
}
_SSM: dict[str, Any] = _WORDS | {"hidden_size": 24, "num_hidden_layers": 4}
_BAMBA: dict[str, Any] = _DECODER | {
    "attn_layer_indices": [1, 3],
    "mamba_n_heads": 6,
    "mamba_n_groups": 2,
    "mamba_d_state": 5,
}
_TOYS |= {
    "mamba": Toy("MambaForCausalLM", "MambaConfig", _SSM | {"state_size": 4, "time_step_rank": 3}),
    "mamba2": Toy(
        "Mamba2ForCausalLM", "Mamba2Config", _SSM | {"num_heads": 6, "head_dim": 8, "n_groups": 2, "state_size": 5}
    ),
    "bamba": Toy("BambaForCausalLM", "BambaConfig", _BAMBA),
}
STATES: tuple[str, ...] = ("mamba", "mamba2", "bamba")
"""Models with states: mixers alone, or beside attentions."""

TRANSFORMERS: tuple[str, ...] = (*DECODERS, "gpt2", "opt", "opt-postnorm")
"""Causal language models of attentions and MLPs."""

LANGUAGE: tuple[str, ...] = (*TRANSFORMERS, *STATES)
"""Causal language models: those with a perplexity."""

FAMILIES: tuple[str, ...] = tuple(_TOYS)
"""All names that `toy_model` knows."""


def toy_module(family: str, *, seed: int = 0, **changes: Any) -> nn.Module:
    """Build a tiny random model of a family.

    Args:
        family: One of `FAMILIES`.
        seed: Seed of the weights; the global generator is left alone.
        changes: Configuration fields to change.
    """
    import transformers

    toy = _TOYS[family]
    config = getattr(transformers, toy.config)(**{**toy.fields, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = getattr(transformers, toy.model)(config)
        for parameter in module.parameters():  # norms start at 0 or 1 and biases at 0, which would hide mistakes
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    eval_module: nn.Module = module.eval()
    return eval_module


def toy_model(family: str = "llama", *, seed: int = 0, **changes: Any) -> Model:
    """Build a tiny random `Model` without a tokenizer, with fast scans; arguments as in `toy_module`."""
    from lissome.models.mixers import scan_in_chunks

    return Model(scan_in_chunks(toy_module(family, seed=seed, **changes)), source=Source(f"toy-{family}"))


def toy_ids(model: Model, seed: int, batch: int, length: int) -> Tensor:
    """Draw token ids LongTensor[batch, length]; no padding and no special ones among them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.anatomy.vocabulary, (batch, length), generator=generator)


def toy_inputs(model: Model, seed: int = 0, batch: int = 2, length: int = 9) -> dict[str, Tensor]:
    """Draw what a toy reads, by argument name.

    Args:
        model: A toy, or a model cut out of one.
        seed: Seed of the draw.
        batch: Number of examples.
        length: Tokens of each, where it reads tokens.
    """
    config: Any = model.module.config
    generator = torch.Generator().manual_seed(seed)
    if model.anatomy.task == "image":
        side = config.image_size
        return {"pixel_values": torch.randn(batch, config.num_channels, side, side, generator=generator)}
    ids = toy_ids(model, seed, batch, length)
    if model.anatomy.task == "seq2seq":
        frames = 2 * config.max_source_positions
        sound = torch.randn(batch, config.num_mel_bins, frames, generator=generator)
        return {"input_features": sound, "decoder_input_ids": ids}
    return {"input_ids": ids}
