"""Flower's simulation: every client is a virtual node, and Ray's workers call the ClientApp."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from lissome.core.optional import optional_import
from lissome.engine.federate.client import Worker
from lissome.engine.federate.flower.app import client_app, server_app
from lissome.engine.federate.link import Link

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""What keeps Flower and Ray from reporting to their makers, and from saying the same twice."""


def simulate(
    serve: Callable[[Link], None], worker_for: Callable[[Any], tuple[str, Worker]], nodes: int, *, cpus: float = 1.0
) -> None:
    """Run a federation on Ray's workers in this machine.

    Args:
        serve: Runs the server's side over a link, in a thread of this process.
        worker_for: Makes the worker of a node, given Flower's Context, in one of Ray's processes; it travels there,
            so it holds nothing but what can be pickled.
        nodes: How many virtual nodes.
        cpus: Cores of each node; how many run at once follows from it.

    Raises:
        MissingExtraError: When Flower or Ray is not installed.
    """
    optional_import("ray", extra="federate-ray")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    run = optional_import("flwr.simulation", extra="federate-ray").run_simulation
    failed: list[BaseException] = []

    def guarded(link: Link, _context: Any) -> None:
        try:
            serve(link)
        except BaseException as error:
            failed.append(error)  # Flower would wrap it, and our errors are one line for a person
            raise

    resources = {"num_cpus": cpus, "num_gpus": 0.0}
    with _quiet("flwr"):
        try:
            run(
                server_app=server_app(guarded), client_app=client_app(worker_for), num_supernodes=nodes,
                backend_config={"client_resources": resources, "init_args": {"log_to_driver": False}},
            )  # fmt: skip
        except Exception:
            if failed:
                raise failed[0] from None
            raise


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep what a library says to developers off the terminal inside the block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
