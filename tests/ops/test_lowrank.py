"""Thinner pairs are the nearest ones."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.ops.lowrank import truncated, truncated_ref


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6), outputs=st.integers(6, 20), inputs=st.integers(6, 20), full=st.integers(1, 6),
    share=st.floats(0.01, 1),
)  # fmt: skip
def test_truncated_equals_its_reference(seed: int, outputs: int, inputs: int, full: int, share: float) -> None:
    generator, rank = torch.Generator().manual_seed(seed), max(1, round(share * full))
    a, b = torch.randn(full, inputs, generator=generator), torch.randn(outputs, full, generator=generator)
    thin_a, thin_b = truncated(a, b, rank)
    assert (thin_a.shape, thin_b.shape) == ((rank, inputs), (outputs, rank))
    torch.testing.assert_close(thin_b @ thin_a, truncated_ref(a, b, rank), rtol=1e-4, atol=1e-4)
    error, naive = (float((b @ a - one).norm()) for one in (thin_b @ thin_a, b[:, :rank] @ a[:rank]))
    assert error <= naive + 1e-3, "never worse than the leading part"
    if rank == full:
        torch.testing.assert_close(thin_b @ thin_a, b @ a, rtol=1e-4, atol=1e-4)
