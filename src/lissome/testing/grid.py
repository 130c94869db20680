"""A Flower Grid in this process, without Ray or a network: for tests of apps, and of Flower's own strategies.

Nodes are called one after the other when messages are pushed. A Federation needs no such grid (see
`lissome.engine.federate.local`, which also has a clock); Flower's strategies do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from lissome.engine.federate.flower.records import flower_app

_SERVER, _TASK, _FAILED = 1, 1, 2


class LocalGrid:
    """A grid whose nodes call one ClientApp.

    Args:
        client_app: The app.
        node_configs: Configuration of each node.
        run_config: Configuration of the run.
    """

    def __init__(
        self, client_app: Any, node_configs: Iterable[Mapping[str, Any]], run_config: Mapping[str, Any] | None = None
    ) -> None:
        app = flower_app()
        self._app = client_app
        self._contexts = {
            node: app.Context(
                run_id=_TASK, node_id=node, node_config=dict(config), state=app.RecordDict(),
                run_config=dict(run_config or {}),
            )
            for node, config in enumerate(node_configs, start=1001)
        }  # fmt: skip
        self._replies: dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self.run: Any = None
        self._identify(_SERVER)

    def set_run(self, run: Any) -> None:
        """Take note of the run."""
        self.run = run

    def create_message(
        self, content: Any, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Any:
        """Return a Message."""
        return flower_app().Message(
            content=content, message_type=message_type, dst_node_id=dst_node_id, group_id=group_id, ttl=ttl
        )

    def get_node_ids(self) -> list[int]:
        """Ids of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        """Let nodes answer; return the ids of the messages."""
        found = []
        for message in messages:
            identity = str(next(self._numbers))
            message.metadata.__dict__["_message_id"] = identity
            self._replies[identity] = self._call(message)
            found.append(identity)
        return found

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        """Return the answers to messages, each once."""
        return [self._replies.pop(identity) for identity in message_ids if identity in self._replies]

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        """Let nodes answer; return the answers."""
        return self.pull_messages(self.push_messages(messages))

    def _call(self, message: Any) -> Any:
        app = flower_app()
        node = message.metadata.dst_node_id
        self._identify(node)
        try:
            return self._app(message, self._contexts[node])
        except Exception as error:  # noqa: BLE001 (a node may raise anything; a real one answers so too)
            return app.Message(app.Error(_FAILED, f"{type(error).__name__}: {error}"), reply_to=message)
        finally:
            self._identify(_SERVER)

    def _identify(self, node: int) -> None:
        """Say who we are: newer versions of Flower read it when a Message is made."""
        try:
            identity = import_module("flwr.supercore.task_identity").TaskIdentity
        except ImportError:
            return
        identity.run_id, identity.node_id, identity.task_id = _TASK, node, _TASK
