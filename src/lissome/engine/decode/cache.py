"""How a person says how keys and values are held: a type, and shares of zeros in what is frozen."""

from __future__ import annotations

import re
from typing import Any, get_args

from lissome.core.errors import ConfigError
from lissome.engine.decode.decoder import Kv

KINDS: tuple[str, ...] = get_args(Kv)
"""Types of keys and values."""
_SHARE = r"(?:0?\.\d{1,6}|0)"
_FORM = re.compile(rf"(?P<kv>\w+)(?::(?P<keys>{_SHARE})(?:,(?P<values>{_SHARE}))?)?")


def cache_named(text: str) -> dict[str, Any]:
    """Read a cache: ``int8``, or with shares of zeros in frozen keys and values ``int8:0.5`` or ``int8:0.3,0.6``.

    Returns:
        Settings of `DecoderSettings`.

    Raises:
        ConfigError: When it is none.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None or match["kv"] not in KINDS:
        raise ConfigError(
            f"{text!r} is no cache; write {', '.join(KINDS[:-1])} or {KINDS[-1]}, and after it shares of zeros in keys "
            "and values of earlier blocks of 64 positions where they shall be sparse: int8:0.5 or int8:0.3,0.6."
        )
    keys = float(match["keys"] or 0)
    values = keys if match["values"] is None else float(match["values"])
    return {"kv": match["kv"], "key_zeros": keys, "value_zeros": values}
