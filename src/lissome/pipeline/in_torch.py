"""A torch model continues a prompt."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from lissome.core.errors import ConfigError, DataError
from lissome.core.events import EventStream
from lissome.data.text import check_ids
from lissome.engine.decode.packed import in_engine
from lissome.engine.decode.phases import Phases
from lissome.models.model import Model
from lissome.models.nested.text import TextCodec
from lissome.models.packed import kernels_of, pack_linears
from lissome.pipeline.decoding import written
from lissome.pipeline.loading import load
from lissome.pipeline.reports import GenerateReport


def generate(
    target: Any, prompt: str, *, max_new_tokens: int, cache: str | None = None, events: EventStream | None = None
) -> GenerateReport:
    """Let a model continue a prompt greedily; a chat model gets it as a user's message.

    Args:
        target: Anything `load` reads.
        prompt: The text.
        max_new_tokens: Most tokens to write; fewer where the model reads no more.
        cache: How keys and values are held where the engine runs it, on kernels for zeros.
        events: Where progress is reported.

    Raises:
        ConfigError: When a cache is asked for and the engine does not run the model.
        DataError: When the prompt fills all that the model reads, or the model has no tokenizer or one
            that does not fit it.
    """
    model = load(target, events=events)
    model.anatomy.require("causal-lm", "continuing a prompt")
    kernels = kernels_of(model)
    if kernels is not None:
        packed = in_engine(model, kernels)
        if packed is not None and model.source.path is not None:
            codec = TextCodec.of_folder(model.source.path)
            order = (model.name, packed, codec, Phases(packed.layout.bits, ((packed.layout.bits, None),)))
            return replace(written(*order, prompt, max_new_tokens=max_new_tokens, cache=cache), bits=None)
    if cache is not None:
        raise ConfigError(
            f"{model.name} is run by torch, which holds keys and values as it does; for --cache make nested weights of "
            f"it with: lissome export {model.name} --to nested"
        )
    if kernels is not None:
        pack_linears(model.module, **kernels)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise DataError(f"{model.name} has no tokenizer; give a folder that holds one.")
    chat = [{"role": "user", "content": prompt}]
    text = (
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        if tokenizer.chat_template
        else prompt
    )
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
    check_ids(int(inputs["input_ids"].max()), model.anatomy.vocabulary)
    prompt_tokens = inputs["input_ids"].shape[1]
    room = _room(model) - prompt_tokens
    if room < 1:
        raise DataError(f"the prompt has {prompt_tokens} tokens, {model.name} reads {_room(model)}; shorten it.")
    clock = _TokenClock()
    with torch.inference_mode():
        output = model.module.generate(  # type: ignore[operator]
            **inputs, max_new_tokens=min(max_new_tokens, room), do_sample=False, num_beams=1, streamer=clock
        )
    prompted, new = output[0].tensor_split([prompt_tokens])
    start, first, *_, last = *clock.times, clock.times[-1]
    return GenerateReport(
        text=behind(tokenizer, [] if tokenizer.chat_template else prompted.tolist(), new.tolist()),
        tokens=len(new),
        prefill=prompt_tokens / (first - start),
        decode=(len(new) - 1) / (last - first) if len(new) > 1 else None,
    )


def behind(tokenizer: Any, before: list[int], new: list[int]) -> str:
    """Return the text of tokens that follow others; a space may belong between them, which some drop at a beginning.

    Nothing is tidied up: that would move the seam, and the engine does not.
    """

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return text([*before, *new])[len(text(before)) :]


def _room(model: Model) -> int:
    """Tokens that a model reads; without end for one that counts no positions."""
    return int(getattr(model.module.config, "max_position_embeddings", None) or 1 << 30)


class _TokenClock:
    """Notes when the prompt was handed in and when each new token came; `generate` calls it a streamer."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        """Note the time of the prompt, then of each token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""
