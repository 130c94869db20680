"""A toy tokenizer for the toy models: one token per character, built in a millisecond."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_CHARACTERS = string.ascii_lowercase + string.digits + " \n.,;:!?'\"-()<>|_/+*%"
TOY_VOCABULARY = len(_SPECIAL) + len(_CHARACTERS)
"""Ids that the toy tokenizer uses; the toy models have 61."""

_CHAT = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"


def toy_tokenizer(*, bos: bool = False, chat: bool = False) -> PreTrainedTokenizerFast:
    """Build a tokenizer of lower-case characters.

    Args:
        bos: Put ``<s>`` (id 1) before every text, as Gemma's tokenizer does.
        chat: Give it a chat template, ``<role> content`` line by line.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *_CHARACTERS))}
    core = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL[3]))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    if chat:
        tokenizer.chat_template = _CHAT
    return tokenizer
