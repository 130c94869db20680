"""Packed weights give every weight back, and multiply like their references, on every instruction set of this CPU."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from lissome.core.errors import ArtifactError, ConfigError
from lissome.ops.kernels import native
from lissome.ops.kernels import reference as ref
from lissome.ops.kernels.packed import PackedWeight

FORMS = ["bf16", "int8"]
LEVELS = [level.name for level in native.choice().levels if level.usable] or ["reference"]
SHARES = st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.8, 0.97, 1.0])
SIZES = st.one_of(st.integers(1, 100), st.sampled_from([16, 31, 32, 33, 64, 65, 128, 200]))


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "reference":
        yield request.param
        return
    with native.using(request.param):
        yield request.param


def drawn(seed: int, rows: int, columns: int, share: float = 0.5) -> Tensor:
    """Normal numbers with a share of zeros, half of them −0, and an empty row now and then."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator)
    zero = torch.rand(rows, columns, generator=generator) < share
    zero |= torch.rand(rows, 1, generator=generator) < 0.1
    signs = torch.where(torch.rand(rows, columns, generator=generator) < 0.5, 0.0, -0.0)
    return torch.where(zero, signs, matrix)


def float_sums(packed: PackedWeight, x: Tensor) -> Tensor:
    """x Wᵀ in float32 of bfloat16 x, which the kernels offer and `PackedWeight.linear` does not."""
    y = torch.empty(len(x), packed.shape[0])
    packed.handle.linear(to_dlpack(x.contiguous()), to_dlpack(y))
    return y


def by_reference(monkeypatch: pytest.MonkeyPatch, weight: Tensor, form: Any, *, sparse: bool) -> PackedWeight:
    with monkeypatch.context() as patch:
        patch.setattr(native, "module", lambda: None)
        return PackedWeight.pack(weight, form, sparse=sparse)


@given(seed=st.integers(0, 10**6), n=SIZES, k=SIZES, share=SHARES, sparse=st.booleans(), form=st.sampled_from(FORMS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_weight_comes_back(
    seed: int, n: int, k: int, share: float, sparse: bool, form: Any, dtype: torch.dtype
) -> None:
    weight = drawn(seed, n, k, share).to(dtype)
    packed = PackedWeight.pack(weight, form, sparse=sparse)
    codes, scales = ref.codes_ref(weight, form)
    assert torch.equal(packed.codes(), torch.from_numpy(codes))
    assert packed.nonzeros == (np.count_nonzero(codes) if sparse else n * k)
    if form == "bf16":
        assert torch.equal(packed.unpack(), weight.to(torch.bfloat16))
    else:
        assert scales is not None
        assert torch.equal(packed.unpack(), torch.from_numpy(codes * scales[:, None]))
        assert (packed.unpack() - weight).abs().max() <= 0.501 * float(scales.max())


@pytest.mark.skipif(native.module() is None, reason="no compiled kernels here")
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 1), (33, 65), (100, 257), (64, 64), (7, 300)])
def test_the_reference_packs_the_same_bytes(
    form: Any, sparse: bool, shape: tuple[int, int], level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = drawn(1, *shape)
    fast, plain = (
        PackedWeight.pack(weight, form, sparse=sparse),
        by_reference(monkeypatch, weight, form, sparse=sparse),
    )
    assert fast.tensors().keys() == plain.tensors().keys()
    for name, tensor in plain.tensors().items():
        assert torch.equal(fast.tensors()[name], tensor), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_bytes_are_those_of_the_formula(form: Any, share: float) -> None:
    """b (1 − s) + 1/8 bytes a weight, with the padding to whole tiles."""
    packed = PackedWeight.pack(drawn(0, 256, 512, share), form)
    item = {"bf16": 2, "int8": 1}[form]
    expected = packed.nonzeros * item + 256 * 512 / 8
    beside = 8 * (256 // 32 + 1) + 64 + (8 * 256 if form == "int8" else 0)  # starts, slack; scales and sums
    assert packed.nbytes == expected + beside


def test_integers_are_exact(level: str) -> None:
    """200 random shapes against numpy."""
    random = np.random.default_rng(0)
    for case in range(200 if level != "tile" else 40):
        m, n, k = random.integers(1, 40), random.integers(1, 120), random.integers(1, 300)
        weight = drawn(case, n, k, share=random.choice([0, 0.3, 0.5, 0.9, 1]))
        packed = PackedWeight.pack(weight, "int8", sparse=bool(case % 3))
        x = random.integers(-128, 128, (m, k), dtype=np.int8)
        expected = x.astype(np.int32) @ packed.codes().numpy().astype(np.int32).T
        assert np.array_equal(packed.integers(torch.from_numpy(x)).numpy(), expected), (m, n, k)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_lie_within_the_bound(form: Any, dtype: torch.dtype, level: str) -> None:
    """bf16 weights: K · 2⁻²³ of the sum of absolute products (two roundings a term); int8: bit for bit."""
    for case, (m, n, k) in enumerate([(1, 40, 70), (3, 96, 512), (7, 33, 1000), (16, 64, 64), (45, 50, 130)]):
        weight, x = drawn(case, n, k), drawn(case + 50, m, k, 0.1).to(dtype)
        bias = torch.randn(n, generator=torch.Generator().manual_seed(case))
        packed = PackedWeight.pack(weight, form)
        y = packed.linear(x, bias)
        assert y.dtype == dtype
        if form == "int8":
            codes, scales = ref.codes_ref(weight, form)
            assert scales is not None
            assert torch.equal(y, ref.linear_int8_ref(x, codes.astype(np.int8), scales, bias))
            continue
        whole = weight.to(torch.bfloat16).double()
        exact = x.double() @ whole.T + bias
        bound = (x.double().abs() @ whole.abs().T + bias.abs()) * (k + 2) * 2.0**-23 + 1e-30
        if dtype == torch.bfloat16:
            bound += exact.abs() * 2.0**-8
        assert ((y.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("name", ["tile", "amx"])
def test_tiles_round_a_sum_not_its_products(name: str) -> None:
    """2¹²⁸ alone is no float32, and 2¹²⁸ − ¾ · 2¹²⁸ is one."""
    if name not in LEVELS:
        pytest.skip("this CPU has no tiles, or there are no compiled kernels")
    packed = PackedWeight.pack(torch.tensor([[-1.5 * 2.0**63, 0, 2.0**64, 0]]))
    x = torch.tensor([[2.0**64, 0, 2.0**64, 0]]).bfloat16()
    with native.using(name):
        assert (packed.linear(x.repeat(5, 1)) == 2.0**126).all()
        assert packed.linear(x).item() == 2.0**126


@pytest.mark.skipif("amx" not in LEVELS, reason="this CPU has no tiles")
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("numbers", ["normal", "tiny", "huge", "any bits"])
def test_real_tiles_give_the_bits_of_those_in_software(numbers: str, sparse: bool) -> None:
    """bf16 with sums in float32: also for few rows, which no tile computes, and where numbers leave float32."""
    generator = torch.Generator().manual_seed(0)
    for n, k in ((1, 1), (31, 33), (40, 100), (64, 700)):
        if numbers == "any bits":
            bits = (torch.randint(-(2**15), 2**15, (m, k), generator=generator) for m in (n, 33))
            weight, x = (b.to(torch.int16).view(torch.bfloat16) for b in bits)
        else:
            scale = {"normal": 1.0, "tiny": 1e-19, "huge": 1e19}[numbers]
            weight, x = ((torch.randn(m, k, generator=generator) * scale).bfloat16() for m in (n, 33))
        weight = torch.where(torch.rand(n, k, generator=generator) < 0.5, 0, weight)
        packed, whole = PackedWeight.pack(weight, sparse=sparse), {}
        for name in ("tile", "amx"):
            with native.using(name):
                whole[name] = float_sums(packed, x)
        assert torch.equal(whole["tile"].isnan(), whole["amx"].isnan())
        assert torch.equal(whole["tile"].nan_to_num(), whole["amx"].nan_to_num())
        for rows in (1, 2, 4, 5):
            with native.using("amx"):
                assert torch.equal(float_sums(packed, x[:rows]).nan_to_num(), whole["amx"][:rows].nan_to_num()), rows


@pytest.mark.skipif("amx" not in LEVELS, reason="this CPU has no tiles")
def test_real_tiles_work_in_threads_and_children() -> None:
    """The system's permission is the process's: for threads that never asked, and after a fork."""
    packed, x = PackedWeight.pack(drawn(13, 100, 200), "int8"), drawn(14, 40, 200, 0)
    with native.using("amx"):
        expected = packed.linear(x)
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda count: torch.equal(packed.linear(x, threads=count), expected), range(1, 9)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of a fork beside threads
            child = os.fork()
        if child == 0:
            same = False
            try:
                same = torch.equal(packed.linear(x, threads=3), expected)
            finally:
                os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("form", FORMS)
def test_sparse_and_dense_agree_to_the_bit(form: Any, level: str) -> None:
    weight = drawn(3, 90, 210)
    sparse, dense = (PackedWeight.pack(weight, form, sparse=sparse) for sparse in (True, False))
    for m in (1, 4, 9, 40):
        x = drawn(m, m, 210, 0)
        assert torch.equal(sparse.linear(x), dense.linear(x))
        assert torch.equal(sparse.linear(x.bfloat16()), dense.linear(x.bfloat16()))


@pytest.mark.parametrize("form", FORMS)
def test_neither_threads_nor_other_rows_change_a_bit(form: Any, level: str) -> None:
    packed = PackedWeight.pack(drawn(4, 300, 150), form)
    for dtype in (torch.float32, torch.bfloat16):
        x = drawn(5, 230 if level != "tile" else 40, 150, 0).to(dtype)
        whole = packed.linear(x, threads=1)
        for threads in (2, 3, 8, 100):
            assert torch.equal(packed.linear(x, threads=threads), whole)
        for first, last in ((0, 1), (1, 3), (3, 10), (10, 39)):
            assert torch.equal(packed.linear(x[first:last]), whole[first:last])


@pytest.mark.parametrize("form", FORMS)
def test_views_of_any_alignment(form: Any, level: str) -> None:
    weight = drawn(6, 61, 131)[1:, 1:]
    packed = PackedWeight.pack(weight, form)
    assert torch.equal(packed.codes(), PackedWeight.pack(weight.contiguous(), form).codes())
    assert torch.equal(PackedWeight.pack(weight.T.contiguous().T, form).codes(), packed.codes())
    x = drawn(7, 9, 2 * 130 + 3, 0)
    for view in (x[:, 1:131], x[1:, 3:133], x[:, 1:261:2], x[:, :130].T.contiguous().T, x[::3, :130]):
        assert torch.equal(packed.linear(view), packed.linear(view.clone(memory_format=torch.contiguous_format)))
    assert packed.linear(x[:0, :130]).shape == (0, 60)
    assert torch.equal(packed.linear(x[0, :130]), packed.linear(x[:1, :130])[0])
    assert packed.linear(x[:6, :130].view(2, 3, 130)).shape == (2, 3, 60)


def test_activations_without_a_scale(level: str) -> None:
    """Rows of zeros give the bias, tiny ones nothing, NaN and infinity NaN: in their own row only."""
    packed = PackedWeight.pack(drawn(8, 40, 70, 0.3), "int8")
    x = torch.ones(5, 70)
    x[0], x[1], x[2, 3], x[3, 4] = 0, 1e-42, float("nan"), float("-inf")
    y = packed.linear(x, torch.full((40,), 2.0))
    assert (y[:2] == 2).all()
    assert y[2:4].isnan().all()
    assert torch.equal(y[4:], packed.linear(x[4:], torch.full((40,), 2.0)))


def test_nan_and_infinity_stay_in_bf16_weights() -> None:
    weight = torch.tensor([[float("nan"), 0.0, float("inf")]])
    assert PackedWeight.pack(weight).unpack().isnan().tolist() == [[True, False, False]]
    assert PackedWeight.pack(weight).nonzeros == 2


@pytest.mark.parametrize("reference", [False, True])
def test_what_cannot_be_packed(reference: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if reference:
        monkeypatch.setattr(native, "module", lambda: None)
    for bad in (torch.ones(3), torch.ones(2, 2, dtype=torch.int8), torch.ones(0, 3), torch.ones(2, 2, device="meta")):
        with pytest.raises(ConfigError, match="matrix of floats"):
            PackedWeight.pack(bad)
    with pytest.raises(ConfigError, match="bf16 or int8"):
        PackedWeight.pack(torch.ones(2, 2), "int4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="NaN or infinite"):
        PackedWeight.pack(torch.tensor([[1.0, float("inf")]]), "int8")


def test_what_cannot_be_multiplied() -> None:
    packed = PackedWeight.pack(torch.ones(3, 5))
    for bad in (torch.ones(2, 4), torch.ones(2, 5, dtype=torch.int32), torch.ones(2, 5, device="meta")):
        with pytest.raises(ConfigError, match="x must be floats of shape"):
            packed.linear(bad)
    with pytest.raises(ConfigError, match="int8 weights"):
        packed.integers(torch.ones(2, 5, dtype=torch.int8))


@pytest.mark.skipif(native.module() is None, reason="no compiled kernels here")
@pytest.mark.parametrize("form", FORMS)
def test_damage_is_refused(form: Any) -> None:
    packed = PackedWeight.pack(drawn(9, 70, 90), form)
    assert packed.bitmap is not None
    assert packed.starts is not None
    flipped, moved, cut = packed.bitmap.clone(), packed.starts.clone(), packed.values[:-1]
    flipped[3] ^= 1
    moved[1] += 1
    far = packed.starts.clone()
    far[-1] = 2**62
    for name, value in (
        ("bitmap", flipped), ("starts", moved), ("starts", far), ("values", cut), ("bitmap", packed.bitmap[:-1]),
        ("starts", packed.starts[1:]), ("starts", None), ("values", packed.values.view(torch.int8)),
        ("shape", (70, 190)), ("shape", (10**15, 90)), ("shape", (-1, 90)), ("shape", (71, 90 * 64)),
    ):  # fmt: skip
        with pytest.raises(ArtifactError, match="damaged"):
            replace(packed, **{name: value})


def test_a_copy_is_its_own(level: str) -> None:
    packed, x = PackedWeight.pack(drawn(10, 40, 50), "int8"), torch.ones(1, 50)
    twin = copy.deepcopy(packed)
    before = twin.linear(x)
    packed.values.zero_()
    assert torch.equal(twin.linear(x), before)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_without_compiled_kernels_the_reference_computes(
    form: Any, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, x, bias = drawn(11, 45, 70), drawn(12, 3, 70, 0), torch.arange(45.0)
    fast = PackedWeight.pack(weight, form, sparse=sparse)
    expected = fast.linear(x, bias), fast.codes()
    monkeypatch.setattr(native, "module", lambda: None)
    plain = PackedWeight.pack(weight, form, sparse=sparse)
    assert torch.allclose(plain.linear(x, bias), expected[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(plain.codes(), expected[1])
    if form == "int8":
        assert torch.equal(plain.linear(x, bias), expected[0])
        assert plain.integers(torch.ones(2, 70, dtype=torch.int8)).shape == (2, 45)
