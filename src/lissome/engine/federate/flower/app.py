"""The client's side as a Flower ClientApp, and the server's side as a Flower ServerApp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lissome.core.errors import FederationError
from lissome.core.optional import optional_import
from lissome.engine.federate.client import Worker
from lissome.engine.federate.flower.link import FlowerLink
from lissome.engine.federate.flower.records import (
    failure,
    flower_app,
    from_records,
    is_stock,
    kind_of,
    records_bytes,
    stock_head,
    to_records,
)
from lissome.engine.federate.link import Link


def client_app(worker_for: Callable[[Any], tuple[str, Worker]]) -> Any:
    """Return a ClientApp.

    Args:
        worker_for: Makes the worker of a node, given Flower's Context, with the name of its client.

    Raises:
        MissingExtraError: When Flower is not installed.
    """
    app = optional_import("flwr.clientapp", extra="federate").ClientApp()

    def handle(message: Any, context: Any) -> Any:
        name, worker = worker_for(context)
        return answer(name, worker, message)

    for register in (app.query, app.train, app.evaluate):
        register()(handle)
    return app


def answer(name: str, worker: Worker, message: Any) -> Any:
    """Answer one Message.

    Raises:
        FederationError: When an order is larger than the client takes, or one of Flower's own strategies fails;
            Flower tells its server.
    """
    kind = kind_of(message)
    stock = is_stock(message.content)
    head = stock_head(message.content, kind, name) if stock else None
    worker.check_size(records_bytes(message.content))
    parcel = worker.handle(from_records(message.content, kind, head))
    if stock and failure(parcel):
        raise FederationError(failure(parcel))
    return flower_app().Message(to_records(parcel), reply_to=message)


def server_app(serve: Callable[[Link, Any], None]) -> Any:
    """Return a ServerApp.

    Args:
        serve: Runs a federation over a link, given Flower's Context.

    Raises:
        MissingExtraError: When Flower is not installed.
    """
    app = optional_import("flwr.serverapp", extra="federate").ServerApp()

    def main(grid: Any, context: Any) -> None:
        serve(FlowerLink(grid), context)

    app.main()(main)
    return app
