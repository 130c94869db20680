"""Chat templates: a list of messages becomes the text that a model was trained on. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from lissome.core.errors import ArtifactError, DataError

Message = Mapping[str, Any]


class ChatTemplate:
    """A template as tokenizers on the hub have them, in Jinja.

    Templates come with models, so they run in a sandbox that changes nothing outside them.

    Args:
        source: The template.
        words: What it may refer to besides the messages, such as ``bos_token``.

    Raises:
        ArtifactError: When it is no template.
    """

    def __init__(self, source: str, words: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Answers]
        )
        environment.filters["tojson"] = _as_json
        environment.globals |= {
            "raise_exception": _refuse, "strftime_now": _now, "namespace": _Names, "dict": _dict,
        }  # fmt: skip
        self._words = dict(words)
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise ArtifactError(f"the chat template cannot be read ({error!s:.80}); restore the folder.") from error

    def text(self, messages: Sequence[Message]) -> str:
        """Return the text that an answer of the model continues.

        Args:
            messages: Each with ``role`` and ``content``.

        Raises:
            DataError: When the template refuses them, say an order of roles that the model does not know.
        """
        try:
            return self._template.render(
                messages=list(messages), tools=None, documents=None, add_generation_prompt=True, **self._words
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise DataError(f"the model's chat template does not take these messages: {error!s:.120}.") from error


class _Answers(Extension):
    """``{% generation %}`` marks what a model wrote, for those who train; the text is the same without."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what is inside."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _Names(Namespace):
    """Variables of a template; names with an underscore, which lead to Python's own parts, are refused."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a template may not set {name!r}")
        super().__setitem__(name, value)


def _dict(**items: Any) -> dict[str, Any]:
    """The class itself would lead to Python's own parts."""
    return items


def _as_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own filter writes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)
