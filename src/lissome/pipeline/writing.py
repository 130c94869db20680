"""The verb `generate`: a model continues a prompt, in torch or, from nested weights, in the decoder engine."""

from __future__ import annotations

from typing import Any

from lissome.core.errors import ConfigError, DataError
from lissome.core.events import EventStream
from lissome.models.nested.folder import nested_folder
from lissome.pipeline.reports import GenerateReport


def generate(
    target: Any,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    schedule: str | None = None,
    cache: str | None = None,
    events: EventStream | None = None,
) -> GenerateReport:
    """Let a model continue a prompt, greedily; a chat model gets it as a user's message.

    Args:
        target: Anything `load` reads, or a folder of nested weights, which is run without torch.
        prompt: The text.
        max_new_tokens: Most tokens to write; fewer where the model reads no more.
        schedule: Of nested weights: bits by phase, such as ``4:64,3`` (default: what the folder says, else all).
        cache: In the decoder engine: how keys and values are held, such as ``int8`` or ``int8:0.5`` (default: f16).
        events: Where progress is reported.

    Raises:
        ConfigError: When no token may be written, or a schedule or cache cannot be, or is given for other weights.
        DataError: When the prompt is empty, no text, or fills all that the model reads, or the model has no tokenizer
            or one that does not fit it.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    if not prompt.strip():
        raise DataError("the prompt is empty; write something to continue.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the prompt is no text from letter {error.start + 1} on; write it in UTF-8.") from error
    folder = nested_folder(target)
    if folder is not None:
        from lissome.pipeline import decoding

        return decoding.generate(folder, prompt, max_new_tokens=max_new_tokens, schedule=schedule, cache=cache)
    if schedule is not None:
        raise ConfigError(
            f"{target} is not read by a schedule of bits; make nested weights of it with: "
            f"lissome export {target} --to nested"
        )
    from lissome.pipeline import in_torch

    return in_torch.generate(target, prompt, max_new_tokens=max_new_tokens, cache=cache, events=events)
