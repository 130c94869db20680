"""Parcels as Flower's Messages, and back.

The tensors are the ArrayRecord ``arrays``, the numbers the MetricRecord ``metrics``, and the head is one text in the
ConfigRecord ``config``. An order without that text comes from one of Flower's own strategies: it is to train, or to
evaluate, the whole model.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lissome.core.errors import FederationError
from lissome.core.files import parse_json
from lissome.core.optional import optional_import
from lissome.core.seeds import derive
from lissome.engine.federate.orders import PHASES, AnswerHead, OrderHead
from lissome.engine.federate.parcel import Kind, Parcel

ARRAYS, METRICS, CONFIG, HEAD = "arrays", "metrics", "config", "lissome"
"""Names of the records, and of the head in the last of them; the first three are what Flower's strategies use."""

_ROUND = "server-round"
_NUMPY, _VERSION = "numpy.ndarray", (1, 0)  # of arrays without named fields


def flower_app() -> Any:
    """Return the module `flwr.app`.

    Raises:
        MissingExtraError: When Flower is not installed.
    """
    return optional_import("flwr.app", extra="federate")


def to_records(parcel: Parcel) -> Any:
    """Return a parcel as a RecordDict."""
    app = flower_app()
    records = {CONFIG: app.ConfigRecord({HEAD: parcel.head_text})}
    if parcel.tensors:
        arrays = {name: app.Array(_as_numpy(value)) for name, value in parcel.tensors.items()}
        records[ARRAYS] = app.ArrayRecord(arrays)
    if parcel.numbers:
        records[METRICS] = app.MetricRecord(dict(parcel.numbers))
    return app.RecordDict(records)


def from_records(records: Any, kind: Kind, head: Mapping[str, Any] | None = None) -> Parcel:
    """Return a RecordDict as a parcel.

    Args:
        records: What came.
        kind: What its Message was for.
        head: The head, when it is known from elsewhere.

    Raises:
        FederationError: When the records are not those of a parcel.
    """
    try:
        arrays = records.array_records.get(ARRAYS, {})
        numbers = records.metric_records.get(METRICS, {})
        tensors = {str(name): _as_tensor(array) for name, array in arrays.items()}
        text = records.config_records.get(CONFIG, {}).get(HEAD)
        found = head if head is not None else parse_json(text, "the head of the message") if text is not None else {}
        return Parcel(kind=kind, head=found, tensors=tensors, numbers=dict(numbers))
    except FederationError:
        raise
    except Exception as error:  # arrays of a sender may be anything, and NumPy raises what it likes
        raise FederationError(f"the message cannot be read: {type(error).__name__}: {error}") from error


def records_bytes(records: Any) -> int:
    """Bytes of the arrays and the head of a RecordDict as they came, nothing of them decoded."""
    arrays = (array for record in records.array_records.values() for array in record.values())
    return sum(len(array.data) for array in arrays) + len(str(records.config_records.get(CONFIG, {}).get(HEAD, "")))


def kind_of(message: Any) -> Kind:
    """Return what a Message is for.

    Raises:
        FederationError: When it is for something else than a query, training or evaluation.
    """
    kind = str(message.metadata.message_type).partition(".")[0]
    if kind in {"query", "train", "evaluate"}:
        return kind  # type: ignore[return-value]
    raise FederationError(f"a message of type {kind!r} is not understood")


def stock_head(records: Any, kind: Kind, name: str) -> dict[str, Any]:
    """Return the head that an order of one of Flower's own strategies stands for.

    Args:
        records: The order.
        kind: What it is for.
        name: Of the client.
    """
    config = records.config_records.get(CONFIG, {})
    number = int(config.get(_ROUND, 1))
    tick = number * PHASES + (kind == "evaluate")
    head = OrderHead(
        action=kind, ticket=f"{number}.{tick}.{name}", round=number, tick=tick, seed=derive(0, "client", name, tick)
    )
    return head.to_json()


def is_stock(records: Any) -> bool:
    """Whether an order comes from one of Flower's own strategies."""
    return HEAD not in records.config_records.get(CONFIG, {})


def failure(parcel: Parcel) -> str:
    """Return why an answer has no result; empty when it has one."""
    return AnswerHead.from_json(parcel.head).error


def _as_numpy(tensor: Tensor) -> Any:
    return np.asarray(tensor.detach().cpu().contiguous().numpy())


def _as_tensor(array: Any) -> Tensor:
    """The numbers of an Array: read here, because NumPy's own reader makes room for what a header claims."""
    stream = io.BytesIO(array.data)
    if array.stype != _NUMPY or np.lib.format.read_magic(stream) != _VERSION:
        raise FederationError("an array is not written as NumPy does")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        raise FederationError("an array holds objects")
    came = len(array.data) - stream.tell()
    if math.prod(shape) * dtype.itemsize != came:
        raise FederationError(f"an array says that it is {dtype}{list(shape)}, {came} bytes came")
    numbers = np.ndarray(shape, dtype, array.data, stream.tell(), order="F" if fortran else "C")
    return torch.from_numpy(np.array(numbers, order="C", copy=True))
