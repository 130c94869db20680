import sys

import pytest

from lissome.core.errors import MissingExtraError
from lissome.core.events import EventStream
from lissome.report.tensorboard import TensorBoard


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
def test_numbers_can_be_read_back(tmp_path):
    with TensorBoard(tmp_path) as listener:
        stream = EventStream(listener)
        with stream.stage("prune", 3) as stage:
            stage.advance(ppl=30.0)
            stage.advance(ppl=31.5)
        stream.message("done")

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("prune/ppl")] == [(1, 30.0), (2, 31.5)]


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"lissome\[tensorboard\]"):
        TensorBoard(tmp_path)
