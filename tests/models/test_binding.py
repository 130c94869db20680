"""What cutting and putting back leave alone: devices, and which parameters are trained."""

from __future__ import annotations

import torch

from lissome.models.binding import extract, lift
from lissome.testing.toys import toy_model


def test_a_slice_is_put_back_on_another_device_than_its_indices() -> None:
    """Indices are held in memory; of weights on an accelerator, here one without numbers, whole dimensions are kept."""
    whole = torch.empty(3, 4, 5, device="meta")
    part = torch.empty(2, 4, 3, device="meta")
    lifted = lift(part, {0: torch.tensor([0, 2]), 2: torch.tensor([0, 1, 4])}, whole)
    assert lifted.shape == whole.shape and lifted.device == whole.device


def test_what_is_frozen_stays_frozen_when_it_is_cut() -> None:
    model = toy_model("llama")
    frozen = "model.layers.0.mlp.up_proj.weight"
    model.module.get_parameter(frozen).requires_grad_(False)
    small = extract(model, {"layers.0.mlp.width": 8, "layers.1.mlp.width": 8})
    assert [name for name, value in small.module.named_parameters() if not value.requires_grad] == [frozen]
    assert not [name for name, value in model.module.named_parameters() if not value.requires_grad and name != frozen]
