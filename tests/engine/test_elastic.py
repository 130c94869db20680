"""Super-networks: what a step goes through, what it learns from, and that a killed run ends at the same weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from lissome.core.errors import ConfigError, DataError
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.elastic import Elastic, Heard, divergence, inplace_loss, task_loss, taught_loss, trained
from lissome.engine.hooks import Batch, Hooks, Loss, Task
from lissome.engine.norms import adapted, reestimate, statistics, take_statistics
from lissome.engine.paths import RandomPath, Sandwich, depth_groups, kind_of
from lissome.engine.recover import token_loss
from lissome.engine.spaces import elastic_space, narrowed
from lissome.engine.train import TrainConfig, train
from lissome.models.adapters import Design, add_adapters
from lissome.models.binding import extract, masked
from lissome.models.model import Model
from lissome.models.space import Axis, Space, Subnet
from lissome.testing.networks import network_model
from lissome.testing.toys import toy_ids, toy_model

GENERATOR = torch.Generator().manual_seed(0)
IMAGES, LABELS = torch.randn(12, 3, 16, 16, generator=GENERATOR), torch.randint(5, (12,), generator=GENERATOR)
DATA = [{"image": image, "label": label} for image, label in zip(IMAGES, LABELS, strict=True)]


def forward(module: Any, batch: Batch) -> Tensor:
    logits: Tensor = module(batch.examples["image"])
    return logits


def judge(logits: Tensor, batch: Batch) -> Tensor:
    return cross_entropy(logits, batch.examples["label"], reduction="none")


LOSS = task_loss(forward, judge)


def run(model: Model, hooks: Hooks, loss: Loss = LOSS, *, checkpoint: Checkpoint | None = None, **changes: Any) -> None:
    fields = {"steps": 4, "batch": 3, "precision": "fp32", "checkpoint_steps": 1, "lr": 0.01, **changes}
    task = Task(module=model.module, loss=loss, data=DATA)
    train(task, TrainConfig.from_mapping(fields), seed=3, hooks=hooks, checkpoint=checkpoint)


def weights(model: Model) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.module.state_dict().items()}


def chained(model: Model) -> Space:
    return replace(model.space(), chains=depth_groups(model.anatomy))


SAMPLERS: dict[str, Callable[[Model], Any]] = {
    "random": lambda model: RandomPath(model.space()),
    "sandwich": lambda model: Sandwich(chained(model)),
    "stage": lambda model: RandomPath(narrowed(chained(model), ("depth", "width"), choices=2, depth=1)),
}


class StopError(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize("name", SAMPLERS)
def test_killed_and_continued_ends_at_the_same_weights(name: str, tmp_path: Path) -> None:
    def stopping(module: Any, batch: Batch) -> Tensor:
        if batch.step == 2:
            raise StopError
        return LOSS(module, batch)

    whole = network_model("resnet")
    run(whole, Elastic(whole, SAMPLERS[name](whole)))
    again = network_model("resnet")
    elastic, place = Elastic(again, SAMPLERS[name](again)), Checkpoint(tmp_path / "run", {"job": name})
    with pytest.raises(StopError):
        run(again, elastic, stopping, checkpoint=place)
    other = network_model("resnet")
    run(other, Elastic(other, SAMPLERS[name](other)), checkpoint=place)
    expected = weights(whole)
    assert all(torch.equal(value, expected[key]) for key, value in weights(other).items())
    assert any(not torch.equal(value, expected[key]) for key, value in weights(network_model("resnet")).items())


class _Seen(Elastic):
    """Notes the Subnets and the gradients of each step."""

    def __init__(self, model: Model, sampler: Any) -> None:
        super().__init__(model, sampler)
        self.drawn: list[tuple[int, tuple[Subnet, ...]]] = []
        self.gradients: dict[str, Tensor] = {}

    def passes(self, step: int, rng: random.Random) -> Any:
        drawn = self._sampler.draw(step, random.Random(rng.random()))
        self.drawn.append((step, drawn))
        return [self._through(subnet) for subnet in drawn]

    def mask(self, step: int, name: str, parameter: nn.Parameter) -> Tensor | None:
        if parameter.grad is not None:
            self.gradients[name] = parameter.grad.clone()
        return None


def test_a_sandwich_takes_the_mean_gradient_of_its_paths_on_the_same_examples() -> None:
    model = network_model("convnext")  # without batch norms, whose statistics would follow the order
    model.module.load_state_dict(network_model("convnext").module.state_dict())
    seen = _Seen(model, Sandwich(model.space(), between=2))
    examples: list[Tensor] = []

    def noting(module: Any, batch: Batch) -> Tensor:
        examples.append(batch.indices.clone())
        logits = module(batch.examples["image"])
        return cross_entropy(logits, batch.examples["label"] % 3, reduction="none")

    run(model, seen, noting, steps=1, clip=None)
    ((_, drawn),) = seen.drawn
    assert drawn[0] == model.space().full
    assert len(drawn) == 4 == len(examples)
    assert all(torch.equal(each, examples[0]) for each in examples)
    fresh, images, labels = network_model("convnext"), IMAGES[examples[0]], LABELS[examples[0]] % 3
    fresh.module.train()
    for subnet in drawn:
        with masked(fresh, subnet, space=fresh.space()):
            (cross_entropy(fresh.module(images), labels) / len(drawn)).backward()
    for name, parameter in fresh.module.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(seen.gradients[name], parameter.grad, atol=1e-6), name


def test_what_a_path_does_not_hold_gets_no_gradient() -> None:
    model = network_model("resnet")
    narrow = {axis.name: axis.choices[0] for axis in model.space().axes if axis.choices != (0, 1)}
    with masked(model, model.space().full.replace(narrow), space=model.space()):
        model.module(IMAGES[:2]).sum().backward()
    index = model.binding.index_map(narrow)
    for name, parameter in model.module.named_parameters():
        places = index.get(name)
        if places and parameter.grad is not None:
            rest = parameter.grad.clone()
            grid = [places.get(dim, torch.arange(size)) for dim, size in enumerate(rest.shape)]
            rest[torch.meshgrid(*grid, indexing="ij")] = 0
            assert not rest.any()


def test_the_largest_teaches_the_others_in_place() -> None:
    model = network_model("resnet")
    elastic = Elastic(model, Sandwich(model.space()))
    passes: list[tuple[bool, Tensor]] = []
    loss = inplace_loss(forward, judge, elastic, share=1.0, temperature=2.0)

    def noting(module: Any, batch: Batch) -> Tensor:
        found = loss(module, batch)
        passes.append((elastic.largest, found.detach()))
        return found

    run(model, elastic, noting, steps=2)
    assert [largest for largest, _ in passes] == [True, False, False] * 2
    with pytest.raises(ConfigError, match="begin with the largest"):
        run(model, elastic := Elastic(model, RandomPath(model.space())), inplace_loss(forward, judge, elastic), steps=1)


def test_the_largest_teaches_tokens_in_place() -> None:
    """The largest learns the text, the others what the largest says: the loss is as if it were another model."""
    model, other = toy_model("llama"), toy_model("llama")
    elastic = Elastic(model, Sandwich(model.space()))
    batch = Batch(toy_ids(model, 0, 3, 12), torch.arange(3), None, 0)
    inplace, plain = token_loss(model, Heard(elastic), 0.7), token_loss(model)
    taught = token_loss(model, other, 0.7)
    smallest = False
    for path in elastic.passes(0, Random(0)):
        with path:
            wanted = plain if elastic.largest else taught
            smallest = smallest or not elastic.largest
            assert torch.allclose(inplace(model.module, batch), wanted(model.module, batch), atol=1e-5)
    assert smallest
    with next(iter(Elastic(model, RandomPath(model.space())).passes(0, Random(0)))):
        assert elastic.largest, "one knows only of the paths that it opened itself"


def test_a_teacher_is_asked_once_for_all_paths() -> None:
    model, teacher = network_model("resnet"), network_model("resnet", seed=1)
    asked: list[int] = []
    teacher.module.register_forward_hook(lambda *_: asked.append(1))
    before = weights(teacher)
    run(model, Elastic(model, Sandwich(model.space())), taught_loss(forward, judge, teacher.module), steps=2)
    assert len(asked) == 2
    assert all(torch.equal(value, before[name]) for name, value in weights(teacher).items())


def batch_on(device: str, step: int = 0) -> Batch:
    return Batch({"image": IMAGES.to(device), "label": LABELS.to(device)}, torch.arange(12).to(device), None, step)


def test_a_teacher_follows_the_batch_to_its_device() -> None:
    """Torch's device without storage: shapes are computed there, and two devices in one operation are refused."""
    model, teacher = network_model("resnet"), network_model("resnet", seed=1)
    model.module.to("meta")
    loss = taught_loss(forward, judge, teacher.module)
    assert loss(model.module, batch_on("meta")).shape == (12,)
    assert {value.device.type for value in teacher.module.state_dict().values()} == {"meta"}


@pytest.mark.gpu
def test_a_sandwich_with_a_teacher_in_bf16_on_a_gpu() -> None:
    model, teacher = network_model("resnet"), network_model("resnet", seed=1)
    loss, devices = taught_loss(forward, judge, teacher.module), set[str]()

    def noting(module: Any, batch: Batch) -> Tensor:
        logits = forward(module, batch)
        devices.add(f"{logits.device.type} {logits.dtype}")
        return loss(module, batch)

    before = weights(model)
    run(model, Elastic(model, Sandwich(model.space())), noting, steps=1, precision="bf16")
    assert devices == {"cuda torch.bfloat16"}
    assert all(value.isfinite().all() for value in weights(model).values())
    assert any(not torch.equal(value, before[name]) for name, value in weights(model).items())


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), temperature=st.floats(0.5, 8), positions=st.integers(0, 3))
def test_divergence_is_what_its_formula_says(seed: int, temperature: float, positions: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (4, positions, 7) if positions else (4, 7)
    student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))
    each = kl_div(log_softmax(student / temperature, -1), softmax(teacher / temperature, -1), reduction="none").sum(-1)
    wanted = temperature**2 * (each.mean(1) if positions else each)
    assert torch.allclose(divergence(student, teacher, temperature), wanted, rtol=1e-4, atol=1e-5)
    assert divergence(student, student, temperature).abs().max() < 1e-4


@pytest.mark.parametrize(("share", "temperature"), [(1.5, 2.0), (-0.1, 2.0), (0.5, 0.0)])
def test_a_share_or_temperature_out_of_range_is_refused(share: float, temperature: float) -> None:
    with pytest.raises(ConfigError, match=r"a share in \[0, 1\]"):
        taught_loss(forward, judge, nn.Identity(), share=share, temperature=temperature)


MODEL = network_model("resnet")


def test_groups_are_blocks_of_one_kind_and_end_at_what_stays() -> None:
    assert depth_groups(MODEL.anatomy) == (("layer1.0", "layer1.1"), ("layer2.1",))
    names = depth_groups(toy_model("llama").anatomy)
    assert names[0] == tuple(f"layers.{index}.attention" for index in range(4))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), choices=st.sampled_from([None, 1, 2]), depth=st.sampled_from([None, 1, 2]))
def test_a_stage_draws_what_it_opens_and_skips_the_last_blocks_alone(
    seed: int, choices: int | None, depth: int | None
) -> None:
    whole = chained(MODEL)
    stage = narrowed(whole, ("depth", "width"), choices=choices, depth=depth)
    for drawn in (RandomPath(stage).one(Random(seed)), Sandwich(stage).draw(0, Random(seed))[-1]):
        for axis in whole.axes:
            if kind_of(axis) == "width":
                assert drawn.get(axis.name, axis.full) in axis.choices[-(choices or len(axis.choices)) :]
        for group in whole.chains:
            kept = [drawn.get(name, 1) for name in group]
            assert kept == sorted(kept, reverse=True)
            assert kept.count(0) <= (depth or len(group))


def test_every_path_of_a_space_with_chains_is_one_of_its_subnets() -> None:
    groups = depth_groups(toy_model("llama").anatomy)
    space = elastic_space(toy_model("llama"), lambda *_: (), kinds=("depth",), chains=groups)
    assert space.quorums and set(space.chains) == set(groups), "all attentions may go, but for one"
    for sampler in (Sandwich(space), RandomPath(space), RandomPath(narrowed(space, ("depth",), depth=2))):
        drawn = [each for step in range(60) for each in sampler.draw(step, Random(step))]
        assert all(space.allows({**space.full, **each}) for each in drawn)
    assert all(sum(not each for each in subnet.values()) <= 4 for subnet in drawn), "two of each of two groups"
    assert Sandwich(space).draw(0, Random(0))[-1] == space.smallest


def test_a_sandwich_may_be_even() -> None:
    axes = tuple(Axis(f"layers.{index}.mlp.width", (4, 8, 12, 16)) for index in range(6))
    space, rng = Space(axes), Random(0)
    even, mixed, plain = (
        [Sandwich(space, even=share).draw(step, rng)[1] in space.levels()[1:-1] for step in range(200)]
        for share in (1.0, 0.5, 0.0)
    )
    assert all(even)
    assert 60 < sum(mixed) < 140
    assert sum(plain) < 10


@pytest.mark.parametrize(("part", "ends"), [("blocks", "layer1.0"), ("fc", "fc."), ("all", "")])
def test_only_the_chosen_part_is_trained(part: str, ends: str) -> None:
    model = network_model("resnet") if part != "blocks" else toy_model("bert-labels")
    before = {name: value.requires_grad for name, value in model.module.named_parameters()}
    with trained(model, part) as names:
        assert names == tuple(name for name, value in model.module.named_parameters() if value.requires_grad)
        assert all(name.startswith(ends) for name in names if part == "fc")
        if part == "blocks":
            assert not [name for name in names if "embeddings" in name or "classifier" in name]
    assert before == {name: value.requires_grad for name, value in model.module.named_parameters()}


def test_blocks_of_any_network_are_those_that_can_be_skipped() -> None:
    model = network_model("transformer")
    with trained(model, "blocks") as names:
        assert {name.split(".")[0] for name in names} == {"blocks"}
        assert len(names) == sum(name.startswith("blocks.") for name, _ in model.module.named_parameters())


def test_a_part_can_stay_as_it_is() -> None:
    model = network_model("resnet")
    with trained(model, "layer1 but layer1.0") as names:
        assert names and all(name.startswith("layer1.1.") for name in names)
    with pytest.raises(ConfigError, match="'fc but fc' has no parameters"), trained(model, "fc but fc"):
        pass


def test_adapters_alone_are_trained() -> None:
    model = toy_model("llama")
    add_adapters(model, Design(ranks=(4, 2)), seed=0)
    with trained(model, "adapters") as names:
        assert names
        assert sum(value.numel() for value in model.module.parameters() if value.requires_grad) < 10_000
    with pytest.raises(ConfigError, match="'encoder' has no parameters"), trained(model, "encoder"):
        pass


def test_statistics_are_those_of_the_batches() -> None:
    model = network_model("rows")
    rows = [torch.randn(5, 10, generator=GENERATOR) for _ in range(3)]
    norm: Any = model.module[3]  # type: ignore[index]
    seen = [model.module[:3](batch) for batch in rows]  # type: ignore[index]
    assert reestimate(model.module, rows) == 3
    assert torch.allclose(norm.running_mean, torch.stack([each.mean(0) for each in seen]).mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, torch.stack([each.var(0) for each in seen]).mean(0), atol=1e-5)
    assert norm.momentum == 0.1
    assert not norm.training


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_adapted_statistics_of_a_masked_network_are_those_of_the_extracted_one(name: str) -> None:
    model = network_model(name)
    space = model.space()
    subnet, before = space.sample(Random(2)), weights(model)
    small = extract(model, subnet, space=space)
    batches = [IMAGES[:4], IMAGES[4:8]]
    plain = small.module(IMAGES[8:])
    reestimate(small.module, batches)
    with masked(model, subnet, space=space), torch.no_grad():
        with adapted(model.module, batches):
            got = model.module(IMAGES[8:])
        back = model.module(IMAGES[8:])
    assert torch.allclose(got, small.module(IMAGES[8:]), atol=1e-5)
    assert not torch.allclose(got, plain, atol=1e-3)
    assert torch.allclose(back, plain, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in weights(model).items())


def test_statistics_need_a_batch_unless_there_are_none() -> None:
    with pytest.raises(DataError, match="at least one batch"):
        reestimate(network_model("resnet").module, [])
    assert reestimate(network_model("convnext").module, []) == 0


def test_norms_that_are_no_batch_norms_keep_their_statistics_when_others_are_taken() -> None:
    """An instance norm may have running statistics too, and so may a norm that is frozen; none are taken again."""
    module = nn.Sequential(nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True))
    values = {name: torch.full_like(value, 2.0) for name, value in statistics(module).items()}
    take_statistics(module, values)
    assert module[0].running_mean.tolist() == [2.0] * 3
    assert module[1].running_mean.tolist() == [0.0] * 3
