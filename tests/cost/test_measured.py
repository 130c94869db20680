from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from lissome.core.errors import ArtifactError, ConfigError, NumericsError, UnsupportedModelError
from lissome.core.events import Event, EventStream
from lissome.cost import peak as peaks
from lissome.cost.clock import Clock, fixed_threads
from lissome.cost.measured import Lap, Request, Timing, asked, compare, measure, race
from lissome.cost.peak import bytes_on_disk, peak_memory
from lissome.testing.toys import toy_model

SHORT = Request(prompt=6, new=4)


def test_a_request_is_its_prefill_and_steps_of_the_median() -> None:
    laps = [Lap(1.0, (0.1, 0.1, 5.0)), Lap(2.0, (0.2, 0.2, 0.2)), Lap(3.0, (0.3, 0.3, 0.3))]
    timing = Timing.of(laps, Request(prompt=10, new=4, batch=2))
    assert timing.metric("latency").value == pytest.approx(2.6)
    assert timing.metric("prefill").value == pytest.approx(2 * 10 / 2.0)
    assert timing.metric("decode").value == pytest.approx(2 / 0.2)
    assert timing.metric("latency").low is not None
    assert timing.metric("latency").low <= 2.6 <= (timing.metric("latency").high or 0)
    assert timing.spread["decode"][0] < 10 < timing.spread["decode"][1]
    assert timing.figures() == {metric.name: metric.value for metric in timing.metrics}


def test_models_run_the_whole_request_in_turns() -> None:
    calls: list[tuple[str, int]] = []
    models = [toy_model("llama"), toy_model("llama")]
    for name, model in zip("ab", models, strict=True):
        forward = model.module.forward

        def spy(
            ids: torch.Tensor, *args: object, name: str = name, forward: object = forward, **kwargs: object
        ) -> object:
            calls.append((name, ids.shape[1]))
            return forward(ids, *args, **kwargs)  # type: ignore[operator]

        model.module.forward = spy
    laps = race(models, SHORT, rounds=2)
    assert [len(one) for one in laps] == [2, 2]
    assert all(len(lap.steps) == SHORT.steps == 3 for one in laps for lap in one)
    timed = calls[-16:]  # two rounds of (a prefill and three steps) of two models
    assert [width for _, width in timed] == [6, 6, 1, 1, 1, 1, 1, 1] * 2
    pairs = [timed[index][0] + timed[index + 1][0] for index in range(0, 16, 2)]
    assert pairs == ["ab", "ba"] * 2 + ["ba", "ab"] * 2


def test_a_model_with_half_the_blocks_takes_less_time() -> None:
    base = toy_model("llama", num_hidden_layers=12)
    other = toy_model("llama", num_hidden_layers=4)
    found = compare(base, other, SHORT, rounds=5, threads=1)
    assert found.ratios["latency"].value < 0.8  # 0.4 expected
    assert found.ratios["decode"].value > 1.2
    assert found.ratios["latency"].better == "lower"
    assert found.ratios["decode"].better == "higher"
    for metric in found.ratios.values():
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low <= metric.value <= metric.high
    assert found.other.metric("latency").value < found.base.metric("latency").value


def test_measuring_leaves_threads_and_reports_progress() -> None:
    seen: list[Event] = []
    threads = torch.get_num_threads()
    timing = measure(toy_model("gemma3"), SHORT, rounds=2, threads=1, events=EventStream(seen.append))
    assert torch.get_num_threads() == threads
    assert timing.metric("latency").n == 2
    assert [event.kind for event in seen] == ["start", "advance", "advance", "finish"]


FORWARDS = {
    "bert": (("input_ids", (1, 6)),),
    "bert-labels": (("input_ids", (1, 6)),),
    "vit": (("pixel_values", (1, 3, 12, 12)),),
    "whisper": (("input_features", (1, 10, 16)), ("decoder_input_ids", (1, 6))),
}


@pytest.mark.parametrize("family", FORWARDS)
def test_what_writes_nothing_is_timed_by_one_forward(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = toy_model(family), []
    forward = model.module.forward

    def spy(**given: torch.Tensor) -> object:
        calls.append(tuple((name, tuple(value.shape)) for name, value in given.items()))
        return forward(**given)

    monkeypatch.setattr(model.module, "forward", spy)
    timing = measure(model, SHORT, rounds=3)
    assert set(calls) == {FORWARDS[family]}
    assert [metric.name for metric in timing.metrics] == ["latency"]
    assert timing.metric("latency").n == 3
    assert timing.metric("latency").unit == "s"
    assert all(str(size) in asked(model, SHORT) for size in FORWARDS[family][0][1][2:])


def test_a_smaller_encoder_takes_less_time_and_only_like_is_compared_with_like() -> None:
    base, other = toy_model("bert", num_hidden_layers=16), toy_model("bert", num_hidden_layers=4)
    found = compare(base, other, SHORT, rounds=5, threads=1)
    assert set(found.ratios) == {"latency"}
    assert found.ratios["latency"].value < 0.7  # 0.3 expected
    seen: list[Event] = []
    with pytest.raises(UnsupportedModelError, match="an encoder of text and an encoder-decoder"):
        compare(base, toy_model("whisper"), SHORT, events=EventStream(seen.append))
    with pytest.raises(UnsupportedModelError, match="a causal language model and a model of images"):
        compare(toy_model("vit"), toy_model("llama"), SHORT, events=EventStream(seen.append))
    assert not seen, "before any stage begins"


def test_nan_is_refused_in_a_forward_too() -> None:
    model = toy_model("vit")
    model.module.layernorm.weight.data.fill_(float("nan"))
    with pytest.raises(NumericsError, match="NaN"):
        measure(model, SHORT, rounds=1)


def test_nan_is_refused() -> None:
    model = toy_model("llama")
    model.module.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(NumericsError, match="NaN"):
        measure(model, SHORT, rounds=1)


@pytest.mark.parametrize("values", [{"prompt": 0}, {"new": 1}, {"batch": 0}])
def test_a_request_needs_tokens(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Request(**values)


def test_clock_refuses_devices_it_cannot_time() -> None:
    with pytest.raises(ConfigError, match="cpu or cuda"):
        Clock(torch.device("meta"))


def test_busy_time_leaves_waiting_out() -> None:
    wall, busy = Clock(torch.device("cpu")), Clock(torch.device("cpu"), busy=True)
    starts = wall.mark(), busy.mark()
    threading.Event().wait(0.05)
    assert wall.seconds(starts[0], wall.mark()) >= 0.05
    assert busy.seconds(starts[1], busy.mark()) < 0.04


def test_threads_come_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), fixed_threads(before + 1):
        raise RuntimeError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("kernel", [True, False])
def test_peaks_are_seen_and_nest(kernel: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not kernel:
        monkeypatch.setattr(peaks, "_RESET", tmp_path / "absent" / "clear_refs")
    with peak_memory() as outer:
        first = torch.ones(60 << 18)  # 60 MiB
        with peak_memory() as inner:
            second = torch.ones(40 << 18)
            threading.Event().wait(0.03)  # the watching thread looks every 5 ms
            del second
        del first
    assert outer.exact == inner.exact
    assert inner.exact <= kernel
    assert 38 << 20 < inner.above < 50 << 20
    assert 98 << 20 < outer.above < 115 << 20


def test_bytes_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x" * 10)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.json").write_bytes(b"x" * 5)
    assert bytes_on_disk(tmp_path) == 15
    assert bytes_on_disk(tmp_path, "*.safetensors") == 10
    assert bytes_on_disk(tmp_path / "deep" / "b.json") == 5
    with pytest.raises(ArtifactError, match="does not exist"):
        bytes_on_disk(tmp_path / "none")


@pytest.mark.gpu
def test_a_gpu_is_timed_by_its_own_events() -> None:
    model = toy_model("llama")
    model.module.to("cuda")
    with peak_memory() as peak:
        found = compare(model, model, SHORT, rounds=3)
    assert 0.5 < found.ratios["latency"].value < 2
    assert peak.gpu > 0
