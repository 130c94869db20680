"""One forward pass, written down: every operation, its module, and the marks of what goes through it.

A network that asks for the numbers of a tensor, to choose its path by them, cannot be recorded, and says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lissome.core.errors import UnsupportedModelError
from lissome.models.traced.atoms import Atoms, Mark, Mixed
from lissome.models.traced.operation import Operation
from lissome.models.traced.rules import follow
from lissome.models.traced.stand_in import tensors_in

_ASKS_FOR_NUMBERS = {
    "_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount",
}  # fmt: skip
_COUNTED = {"mm", "bmm", "addmm", "baddbmm", "convolution"}
"""Operations that are counted, also where no channel is followed any more."""

_VIEWS = {"t", "view", "transpose", "permute", "split", "slice", "_unsafe_view", "select", "unbind", "unsqueeze"}
"""Operations after which a part of a weight is still that weight."""


@dataclass(frozen=True, eq=False)
class Step:
    """One operation.

    Attributes:
        name: What it is, without its overload and the underscore of one that writes in place.
        module: Path of the innermost module that was running.
        reads: Numbers of the values that it takes.
        writes: Numbers of the values that it gives; see `Recording.values`.
        pointwise: Whether it treats every element alike.
    """

    name: str
    module: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    pointwise: bool


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module.

    Attributes:
        module: Its path.
        start: Number of the first step inside of it.
        stop: Number of the first step after it.
        takes: Numbers of the values among its positional arguments.
        gives: Numbers of the values that it returns.
        alone: Whether it takes one tensor, first and without a name, and returns one of the same shape.
        entries: Length of the tuple that it returns, of which the first entry alone is a tensor; 0 for a tensor.
    """

    module: str
    start: int
    stop: int
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    alone: bool
    entries: int = 0


@dataclass(eq=False)
class Recording:
    """What a forward pass did.

    Attributes:
        atoms: All atoms, with what the pass said of them.
        steps: Operations in order.
        calls: Calls of modules, in the order in which they returned.
        makers: Sides, as (tensor, dimension), that make channels: the rows of a layer's weight.
        readers: Sides that read channels: the columns of a layer's weight.
        products: Multiply-accumulates by name of the weight that they use, as many for each of its numbers.
        mixings: All others: between values, or of a weight that is applied to every channel.
        used: Names of the parameters and buffers that took part.
    """

    atoms: Atoms = field(default_factory=Atoms)
    steps: list[Step] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    makers: set[tuple[str, int]] = field(default_factory=set)
    readers: set[tuple[str, int]] = field(default_factory=set)
    products: dict[str, int] = field(default_factory=dict)
    mixings: list[Mixed] = field(default_factory=list)
    used: set[str] = field(default_factory=set)


def record(module: nn.Module, inputs: Mapping[str, Tensor]) -> Recording:
    """Record a forward pass of one example.

    Args:
        module: The network, in evaluation mode; see `lissome.models.traced.stand_in.randomised`.
        inputs: What it reads, by argument name.

    Raises:
        UnsupportedModelError: When the forward fails, or depends on numbers; names the module and the operation.
    """
    recorder = Recorder(module, inputs)
    try:
        with recorder.hooked(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _nothing_fused(), recorder:
            result = module(**inputs)
    except UnsupportedModelError:
        raise
    except Exception as error:  # whatever a network's own code raises
        raise UnsupportedModelError(recorder.blame(str(error))) from error
    recorder.close(result)
    return recorder.seen


@contextlib.contextmanager
def _nothing_fused() -> Iterator[None]:
    """Keep away operations that would hide what is in them: a whole layer of a transformer, a whole LSTM."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)  # torch's own context for it warns of flags that this leaves alone
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(onednn)


class Recorder(TorchDispatchMode):
    """Writes down what runs under it; see `record`.

    Args:
        module: The network.
        inputs: What it reads.
    """

    def __init__(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = Recording()
        self._module = module
        self._held: dict[int, Tensor] = {}  # keeps every tensor alive, so that no two have one id
        self._numbers: dict[int, int] = {}
        self._marks: dict[int, tuple[Mark, ...]] = {}
        self._sources: dict[int, str] = {}
        self._running: list[str] = []
        self._entered: list[int] = []
        self._takes: list[tuple[int, ...]] = []
        self._varied: set[int] = set()  # of tensors that follow from the inputs or the parameters
        self._fed = {id(value) for value in inputs.values()}  # of tensors that follow from the inputs
        self._at = "before any operation"
        self._next = 0
        named = [*module.named_parameters(), *module.named_buffers()]
        self.sizes = {name: value.numel() for name, value in named}
        for name, value in named:
            self._held[id(value)] = value
            self._sources[id(value)] = name
            self._marks[id(value)] = self.seen.atoms.of_tensor(name, value.shape)
        for value in (*module.parameters(), *inputs.values()):
            self._held[id(value)] = value
            self._varied.add(id(value))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that no compiler has to be kept away, which would import one for seconds."""
        return False

    def number(self, value: Tensor, *, fresh: bool = False) -> int:
        """Return the number of a tensor's present value; a fresh one after it was written."""
        self._held[id(value)] = value
        if fresh or id(value) not in self._numbers:
            self._numbers[id(value)] = self._next
            self._next += 1
        return self._numbers[id(value)]

    def marks(self, value: Any) -> tuple[Mark, ...]:
        """Return the marks of a tensor."""
        return self._marks.get(id(value), ()) if isinstance(value, Tensor) else ()

    def source(self, value: Tensor) -> str | None:
        """Return the name of the parameter or buffer that a tensor is, or was made of element by element."""
        return self._sources.get(id(value))

    def where(self) -> str:
        """Return the path of the module that is running."""
        return self._running[-1] if self._running else ""

    def place(self) -> str:
        """Word the module that is running."""
        path = self.where()
        return f"{path} ({type(self._module.get_submodule(path)).__name__})".strip()

    def blame(self, error: str) -> str:
        """Word a failure: the module and the operation that were running."""
        line = next((each for each in error.splitlines() if each.strip()), "no reason given")
        return f"{self.place()} cannot be traced, {self._at}: {shorten(line, 160, placeholder=' …').rstrip('.')}"

    def hooked(self) -> contextlib.ExitStack:
        """Return a context in which calls of modules are written down."""
        stack = contextlib.ExitStack()
        for path, part in self._module.named_modules():
            if isinstance(part, torch.jit.ScriptModule):
                raise UnsupportedModelError(
                    f"{path} ({type(part).__name__}) cannot be traced: it was compiled by torch.jit; give the module "
                    "that it was made of"
                )
            stack.callback(part.register_forward_pre_hook(self._enter(path), with_kwargs=True).remove)
            stack.callback(part.register_forward_hook(self._leave(path), with_kwargs=True).remove)
        return stack

    def _enter(self, path: str) -> Any:
        def enter(_module: nn.Module, _args: Any, _kwargs: Any) -> None:
            self._running.append(path)
            self._entered.append(len(self.seen.steps))
            self._takes.append(tuple(self.number(value) for value in tree_leaves(_args) if isinstance(value, Tensor)))

        return enter

    def _leave(self, path: str) -> Any:
        def leave(_module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            self._running.pop()
            given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            gives = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
            alone = (
                len(given) == 1
                and bool(args)
                and isinstance(args[0], Tensor)
                and isinstance(result, Tensor)
                and args[0].shape == result.shape
            )
            numbers = tuple(self.number(value) for value in gives)
            entries = len(result) if isinstance(result, tuple) and len(numbers) == 1 else 0
            span = self._entered.pop(), len(self.seen.steps)
            self.seen.calls.append(Call(path, *span, self._takes.pop(), numbers, alone, entries))

        return leave

    def close(self, result: Any) -> None:
        """Note what the network returned: its channels can never go."""
        for value in tensors_in(result):
            for mark in self.marks(value):
                self.seen.atoms.freeze(mark, "the model's output")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and write it down."""
        packet = func.overloadpacket.__name__
        self._at = f"at {packet}"
        kwargs = kwargs or {}
        taken = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        varied = any(id(value) in self._varied for value in taken)
        if varied and (packet in _ASKS_FOR_NUMBERS or self._picks_by_mask(packet, args)):
            raise UnsupportedModelError(
                f"{self.place()} cannot be traced: it asks for the numbers of a tensor ({packet}); "
                "what runs may depend on shapes alone"
            )
        reads = tuple(self.number(value) for value in taken)
        result = func(*args, **kwargs)
        self._at = f"after {packet}"
        given = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        for value in given:
            self._held[id(value)] = value
            self._varied.update({id(value)} if varied else ())
        self._keep_sources(packet, taken, given)
        inplace = {id(value) for value in given} & {id(value) for value in taken}
        name = packet.removesuffix("_") if inplace else packet
        if name in _COUNTED or any(self._marks.get(id(value)) for value in taken):
            marks = follow(self, Operation(name, func, args, kwargs, given, torch.Tag.pointwise in func.tags))
            for value, each in zip(given, marks, strict=True):
                self._marks[id(value)] = each
        writes = tuple(self.number(value, fresh=True) for value in given)
        pointwise = torch.Tag.pointwise in func.tags
        self.seen.steps.append(Step(packet.removesuffix("_"), self.where(), reads, writes, pointwise))
        return result

    def _picks_by_mask(self, packet: str, args: Any) -> bool:
        """Whether an operation gives as many entries as a mask has, which follows from numbers."""
        picked = args[1] if packet == "index" else ()
        masks = [each for each in picked if isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8)]
        return any(id(each) in self._varied for each in masks)

    def _keep_sources(self, packet: str, taken: list[Tensor], given: list[Tensor]) -> None:
        """Note which weights the given tensors are parts of, or were made of without looking at the inputs."""
        names = {self._sources[id(value)] for value in taken if id(value) in self._sources}
        self.seen.used |= names
        fed = any(id(value) in self._fed for value in taken)
        self._fed.update(id(value) for value in given if fed)
        for value in given:
            as_large = {name for name in names if not fed and self.sizes[name] == value.numel()}
            kept = names if packet in _VIEWS else as_large
            if len(kept) == 1:
                self._sources[id(value)] = next(iter(kept))
