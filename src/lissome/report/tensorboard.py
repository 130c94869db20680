"""Writes the numbers of the event stream where TensorBoard looks for them."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lissome.core.errors import ConfigError
from lissome.core.events import Event
from lissome.core.files import check_writable
from lissome.core.optional import optional_import


class TensorBoard:
    """A listener that writes one scalar per metric, named ``STAGE/METRIC``, at the step of the stage.

    Messages become text under ``messages``. Use it as a context, so that everything is on disk at the end.
    """

    def __init__(self, folder: Path) -> None:
        """Open an event file in `folder`.

        Raises:
            ConfigError: When it is a file, or cannot be written.
            MissingExtraError: When tensorboard is not installed.
        """
        check_writable(folder)
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder; name one for TensorBoard.")
        module = optional_import("torch.utils.tensorboard", extra="tensorboard")
        self._writer: Any = module.SummaryWriter(str(folder))
        self._messages = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def __call__(self, event: Event) -> None:
        """Write the numbers of one event."""
        for name, value in event.metrics.items():
            tag = f"{event.stage}/{name}" if event.stage else name
            self._writer.add_scalar(tag, value, global_step=event.step, walltime=event.time)
        if event.kind == "message":
            self._writer.add_text("messages", event.message, global_step=self._messages, walltime=event.time)
            self._messages += 1
