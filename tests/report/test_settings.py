from dataclasses import dataclass
from typing import Literal

from lissome.core.config import MethodConfig, option
from lissome.report.settings import settings


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    share: float = option(0.5, "how much", low=0.0, high=1.0)
    order: Literal["up", "down"] = option("up", "which way")
    ranks: tuple[int, ...] = option((4, 8), "which ranks", low=1)
    limit: int | None = option(None, "at most")


def test_every_setting_is_told_with_type_default_and_bounds():
    share, order, ranks, limit = settings(Config)
    assert share == {
        "name": "share", "type": "float", "default": 0.5, "low": 0.0, "high": 1.0, "choices": [], "help": "how much",
    }  # fmt: skip
    assert order["type"] == "up | down"
    assert (ranks["type"], ranks["default"]) == ("list of int", [4, 8])
    assert (limit["type"], limit["default"]) == ("int or none", None)
