"""A decoder of transformers in the words of `lissome.models.nested.spec`, with the tensors that belong to each name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lissome.core.errors import UnsupportedModelError
from lissome.models.adapters import adapters
from lissome.models.adapters.prompts import prompt_of
from lissome.models.families.decoder import COMPANIONS, GEMMA, attention_shape
from lissome.models.model import Model
from lissome.models.nested.spec import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec, RopeSpec
from lissome.models.parts import NoMLP

_GATES: dict[str, Literal["silu", "gelu"]] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu"}


@dataclass(frozen=True, eq=False)
class Described:
    """A decoder and its tensors.

    Attributes:
        spec: The description.
        matrices: For each matrix the names of the parameters whose rows it consists of, in order.
        vectors: float32 by name.
    """

    spec: DecoderSpec
    matrices: Mapping[str, tuple[str, ...]]
    vectors: Mapping[str, Tensor]


def describe(model: Model) -> Described:
    """Describe a causal language model that the engine runs.

    Raises:
        UnsupportedModelError: For another architecture, activation or rotary embedding, and for adapters or virtual
            tokens beside the weights.
    """
    reader = _Reader(model.module)
    if adapters(model.module):
        raise UnsupportedModelError("the engine does not run adapters beside the weights; merge them first.")
    if prompt_of(model) is not None:
        raise UnsupportedModelError("the engine does not run virtual tokens; give a model without them.")
    return reader.read()


class _Reader:
    def __init__(self, module: Any) -> None:
        self.module, self.config = module, module.config
        self.kind = str(self.config.model_type)
        if self.kind not in COMPANIONS:
            raise UnsupportedModelError(
                f"the engine does not run models of type {self.kind!r}; it runs {', '.join(COMPANIONS)}."
            )
        self.gemma = self.kind in GEMMA
        if getattr(self.config, "use_bidirectional_attention", None):
            raise UnsupportedModelError("the engine does not run attentions that look ahead; this model's do.")
        self.matrices: dict[str, tuple[str, ...]] = {}
        self.vectors: dict[str, Tensor] = {}

    def read(self) -> Described:
        module, config = self.module, self.config
        embedding = module.model.embed_tokens
        tied = module.lm_head.weight.data_ptr() == embedding.weight.data_ptr()
        ropes = self._ropes()
        self.matrices["embedding"] = ("model.embed_tokens.weight",)
        if not tied:
            self.matrices["head"] = ("lm_head.weight",)
        if getattr(module.lm_head, "bias", None) is not None:
            raise UnsupportedModelError("the engine does not run a head with a bias.")
        self._norm("norm", module.model.norm)
        layers = tuple(self._layer(at, layer, ropes) for at, layer in enumerate(module.model.layers))
        spec = DecoderSpec(
            kind=self.kind,
            hidden=int(config.hidden_size),
            vocabulary=int(embedding.weight.shape[0]),
            context=self._context(),
            eps=float(config.rms_norm_eps),
            ropes=tuple(rope for _, rope in ropes.values()),
            layers=layers,
            embedding_scale=float(getattr(embedding, "embed_scale", 1.0)),
            tied=tied,
            head_cap=float(config.final_logit_softcapping or 0.0) if self.gemma else 0.0,
        )
        return Described(spec, self.matrices, self.vectors)

    def _ropes(self) -> dict[str, tuple[int, RopeSpec]]:
        """Rotary embeddings by layer type, as for texts within `_context`; "" is that of layers without another."""
        rotary = self.module.model.rotary_emb
        names = list(rotary.rope_type) if isinstance(rotary.rope_type, dict) else [""]
        found = {}
        for at, name in enumerate(names):
            prefix = f"{name}_" if name else ""
            frequencies = getattr(rotary, f"{prefix}original_inv_freq")  # the other may be that of the last text
            self.vectors[f"ropes.{at}"] = frequencies.detach().float()
            scale = float(getattr(rotary, f"{prefix}attention_scaling"))
            found[name] = (at, RopeSpec(pairs=frequencies.numel(), scale=scale))
        return found

    def _context(self) -> int:
        """Positions that the embeddings are for: those of LongRoPE change when a text is longer than in pre-training.

        Dynamic ones change beyond the stated context only.
        """
        stated, scaled = int(self.config.max_position_embeddings), self.config.rope_parameters
        each = [one for one in scaled.values() if isinstance(one, dict)] or [scaled]  # by layer type, or one for all
        long = [one["original_max_position_embeddings"] for one in each if one.get("rope_type") == "longrope"]
        return min([stated, *map(int, long)])

    def _layer(self, at: int, layer: Any, ropes: Mapping[str, tuple[int, RopeSpec]]) -> LayerSpec:
        root, norms = f"layers.{at}", COMPANIONS[self.kind]
        attention = None
        if attention_shape(layer.self_attn) is not None:
            attention = self._attention(f"{root}.attention", f"model.{root}.self_attn", layer.self_attn, ropes)
            self._norms(f"{root}.attention", layer, norms["attention"])
        mlp = None
        if not isinstance(layer.mlp, NoMLP):
            mlp = self._mlp(f"{root}.mlp", f"model.{root}.mlp", layer.mlp)
            self._norms(f"{root}.mlp", layer, norms["mlp"])
        return LayerSpec(attention=attention, mlp=mlp)

    def _norms(self, name: str, layer: Any, parts: tuple[str, ...]) -> None:
        self._norm(f"{name}.norm", layer.get_submodule(parts[0]))
        if self.gemma:
            self._norm(f"{name}.post_norm", layer.get_submodule(parts[1]))

    def _norm(self, name: str, norm: Any) -> None:
        weight = norm.weight.detach().float()
        self.vectors[name] = weight + 1 if self.gemma else weight

    def _attention(self, name: str, path: str, part: Any, ropes: Mapping[str, tuple[int, RopeSpec]]) -> AttentionSpec:
        shape = attention_shape(part)
        assert shape is not None
        inner = ("qkv_proj",) if hasattr(part, "qkv_proj") else ("q_proj", "k_proj", "v_proj")
        bias = self._linears(f"{name}.qkv", path, part, inner)
        out_bias = self._linears(f"{name}.out", path, part, ("o_proj",))
        head_norms = hasattr(part, "q_norm")
        if head_norms:
            self._norm(f"{name}.query_norm", part.q_norm)
            self._norm(f"{name}.key_norm", part.k_norm)
        rope = ropes.get(str(getattr(part, "layer_type", "")), ropes.get(""))
        assert rope is not None
        return AttentionSpec(
            heads=shape.query_heads,
            kv_heads=shape.kv_heads,
            size=shape.head_dim,
            scale=float(part.scaling),
            cap=float(part.attn_logit_softcapping or 0.0) if self.kind == "gemma2" else 0.0,  # Gemma-3 ignores its own
            window=self._window(part),
            rope=rope[0],
            bias=bias,
            out_bias=out_bias,
            head_norms=head_norms,
            post_norm=self.gemma,
        )

    def _window(self, part: Any) -> int:
        """Positions that are seen: Mistral and Phi-3 say it for all layers, the others for each."""
        if hasattr(part, "sliding_window"):
            return int(part.sliding_window or 0)
        return int(getattr(self.config, "sliding_window", None) or 0) if self.kind in ("mistral", "phi3") else 0

    def _mlp(self, name: str, path: str, part: Any) -> MlpSpec:
        act = str(getattr(self.config, "hidden_activation", None) or self.config.hidden_act)
        if act not in _GATES:
            raise UnsupportedModelError(f"the engine does not run the activation {act!r}; it runs {', '.join(_GATES)}.")
        inner = ("gate_up_proj",) if hasattr(part, "gate_up_proj") else ("gate_proj", "up_proj")
        bias = self._linears(f"{name}.gate_up", path, part, inner)
        out_bias = self._linears(f"{name}.down", path, part, ("down_proj",))
        width = int(part.down_proj.weight.shape[1])
        return MlpSpec(width=width, gate=_GATES[act], bias=bias, out_bias=out_bias, post_norm=self.gemma)

    def _linears(self, name: str, path: str, part: Any, inner: tuple[str, ...]) -> bool:
        """Note the layers that a matrix consists of, and their biases; returns whether there are biases."""
        layers = [part.get_submodule(one) for one in inner]
        self.matrices[name] = tuple(f"{path}.{one}.weight" for one in inner)
        biases = [layer.bias for layer in layers]
        if all(bias is None for bias in biases):
            return False
        whole = [
            torch.zeros(layer.weight.shape[0]) if bias is None else bias.detach().float()
            for layer, bias in zip(layers, biases, strict=True)
        ]
        self.vectors[f"{name}_bias"] = torch.cat(whole)
        return True
