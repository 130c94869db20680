"""What torch does not copy of a module: activations that it keeps, with the operations that led to them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def without_history(module: nn.Module) -> dict[int, Any]:
    """Return a memo for `copy.deepcopy` with plain copies of the activations that modules keep.

    Args:
        module: What will be copied.
    """
    kept = (value for part in module.modules() for value in tree_leaves(vars(part)) if isinstance(value, Tensor))
    return {id(value): value.detach().clone() for value in kept if value.grad_fn is not None}
