"""Scores and orders: reordering by any of them changes nothing; each score is what its formula says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lissome.core.errors import UnknownNameError
from lissome.engine.hooks import Task
from lissome.engine.ranking import SCORES, _input_norms, ranking, saliency, unit_scores
from lissome.models.binding import reorder
from lissome.models.example import example
from lissome.models.model import Model
from lissome.ops import importance
from lissome.testing import conformance
from lissome.testing.networks import NETWORKS, network_model
from lissome.testing.toys import toy_inputs, toy_model

TOYS = ("llama", "bert-labels", "gpt2", "vit-labels")


def made(name: str) -> tuple[Model, dict[str, torch.Tensor]]:
    model = network_model(name) if name in NETWORKS else toy_model(name)
    return model, example(model, batch=3) if name in NETWORKS else toy_inputs(model, 0, 3, 6)


def task(model: Model, inputs: dict[str, torch.Tensor]) -> Task:
    rows = [{name: value[index] for name, value in inputs.items()} for index in range(3)]
    return Task(
        module=model.module,
        loss=lambda module, batch: _plain(module(**batch.examples)).flatten(1).square().mean(1),
        data=rows,
    )


def _plain(result: object) -> torch.Tensor:
    found: torch.Tensor = result if isinstance(result, torch.Tensor) else result.logits  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("name", [*NETWORKS, *TOYS])
def test_reordering_by_any_score_leaves_the_function(name: str) -> None:
    for score in SCORES:
        model, inputs = made(name)
        before = {key: value.requires_grad for key, value in model.module.named_parameters()}
        found = saliency(model, score, batches=[inputs], task=task(model, inputs), examples=2, seed=1)
        assert all(bool((value >= 0).all()) for value in found.values())
        assert before == {key: value.requires_grad for key, value in model.module.named_parameters()}
        sides = "both" if score == "wanda" else "makes"
        orders = ranking(model, found, sides=sides)  # type: ignore[arg-type]
        assert orders
        conformance.check_reorder(model, orders, inputs)


def test_the_strongest_filters_come_first() -> None:
    model, _ = made("resnet")
    name = "layer1.0.conv1.width"
    orders = ranking(model, saliency(model, "l1"), axes=[name])
    assert list(orders) == [name]
    reorder(model, orders)
    sums = model.module.get_parameter("layer1.0.conv1.weight").abs().flatten(1).sum(1)
    assert sums.tolist() == sorted(sums.tolist(), reverse=True)


def test_a_stream_adds_up_all_that_make_it() -> None:
    model, _ = made("resnet")
    found = unit_scores(model, saliency(model, "l1"))
    (stream,) = [name for name in found if name.startswith("stream") and found[name].shape == (1, 8)]
    makers = ["stem.0", "layer1.0.conv2", "layer1.1.conv2"]
    sums = sum(model.module.get_parameter(f"{each}.weight").abs().flatten(1).sum(1) for each in makers)
    assert torch.allclose(found[stream][0], torch.as_tensor(sums), rtol=1e-5)


def test_inputs_are_seen_where_they_are_given_by_name() -> None:
    class Named(nn.Module):
        def __init__(self, named: bool) -> None:
            super().__init__()
            self.named, self.fc = named, nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.fc(input=x) if self.named else self.fc(x)
            return found

    batches = [{"x": torch.arange(6.0).view(2, 3)}]
    named, plain = (_input_norms(Named(each), batches)["fc.weight"] for each in (True, False))
    assert torch.equal(named, plain) and torch.equal(named, torch.tensor([9.0, 17.0, 29.0]).double().sqrt())


def test_wanda_weighs_by_the_norm_of_the_inputs() -> None:
    model, inputs = made("mobilenet")
    seen: list[torch.Tensor] = []
    layer = model.module.get_submodule("blocks.0.depthwise")
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    found = saliency(model, "wanda", batches=[inputs])
    handle.remove()
    norms = seen[0].transpose(0, 1).flatten(1).norm(dim=1)
    weight = model.module.get_parameter("blocks.0.depthwise.weight")
    assert torch.allclose(found["blocks.0.depthwise.weight"], weight.abs() * norms.view(-1, 1, 1, 1), rtol=1e-4)


def test_wanda_weighs_what_gpt2_holds_turned_too() -> None:
    model, inputs = made("gpt2")
    seen: list[torch.Tensor] = []
    handle = model.module.get_submodule("transformer.h.0.mlp.c_proj").register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach())
    )
    found = saliency(model, "wanda", batches=[inputs])["transformer.h.0.mlp.c_proj.weight"]
    handle.remove()
    norms = seen[0].flatten(0, 1).norm(dim=0)
    weight = model.module.get_parameter("transformer.h.0.mlp.c_proj.weight")  # [in, out]
    assert torch.allclose(found, weight.abs() * norms[:, None], rtol=1e-4)


def test_first_order_does_not_cancel_between_examples() -> None:
    weight = torch.tensor([[2.0, 1.0]])
    one, other = torch.tensor([[1.0, 0.5]]), torch.tensor([[-1.0, 0.5]])
    both = importance.first_order(weight, one) + importance.first_order(weight, other)
    assert both.tolist() == [[8.0, 0.5]]


def test_an_unknown_score_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'wanda'"):
        saliency(made("resnet")[0], "wnada")
