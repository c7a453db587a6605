"""A model's tensors: out of it into one safetensors file, and back into an empty architecture, bit for bit.

safetensors holds named, contiguous, unshared tensors. What goes beyond that is plain JSON beside it (`Description`):
  shared   {alias: name}            one tensor under several names (GPT's tied embedding), stored once
  strides  {name: [strides]}        of tensors that are not row-major (channels_last): kernels are chosen by them
  dtypes   {name: "bfloat16"}       tensors whose type differs from what the factory makes (a model cast to bfloat16)
  constants [name]                  buffers outside the state dict that the factory does not make again by itself
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from limbeck.build import Lineage, build, weights_to_follow
from limbeck.errors import ArtifactError

_FILLS = {
    getattr(Tensor, name)
    for name in ("normal_", "uniform_", "random_", "bernoulli_", "exponential_", "geometric_", "log_normal_", "cauchy_")
} | {
    getattr(nn.init, name)
    for name in (
        "normal_",
        "uniform_",
        "trunc_normal_",
        "xavier_normal_",
        "xavier_uniform_",
        "kaiming_normal_",
        "kaiming_uniform_",
        "orthogonal_",
        "sparse_",
    )
}
_DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


@dataclass(frozen=True)
class Description:
    """What a safetensors file cannot say about a model's tensors; see the module's text."""

    shared: dict[str, str] = field(default_factory=dict)
    strides: dict[str, list[int]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    constants: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: Any) -> Description:
        """Raises ArtifactError for anything that `to_json` could not have written."""
        if not isinstance(value, dict) or set(value) != {"shared", "strides", "dtypes", "constants"}:
            raise ArtifactError("architecture.json: 'tensors' must have the keys shared, strides, dtypes and constants")
        shared, strides, dtypes, constants = (value[k] for k in ("shared", "strides", "dtypes", "constants"))
        if not isinstance(shared, dict) or not all(isinstance(v, str) for v in shared.values()):
            raise ArtifactError("architecture.json: 'shared' must map names to names")
        if not isinstance(dtypes, dict) or not all(isinstance(v, str) and v in _DTYPES for v in dtypes.values()):
            raise ArtifactError("architecture.json: 'dtypes' must map names to torch types")
        if not isinstance(strides, dict) or not all(
            isinstance(v, list) and all(type(i) is int and i >= 0 for i in v) for v in strides.values()
        ):
            raise ArtifactError("architecture.json: 'strides' must map names to whole numbers")
        if not isinstance(constants, list) or not all(isinstance(name, str) for name in constants):
            raise ArtifactError("architecture.json: 'constants' must be names")
        return Description(shared, strides, dtypes, constants)


def weights_digest(model: nn.Module, buffers: Iterable[str] = ()) -> str:
    """Hexadecimal SHA-256 over the names, types, shapes and bytes of the state dict, in order of name.

    `buffers` names buffers outside the state dict that count as well, such as the constants of an artifact.

    Equal digests mean equal weights bit for bit, wherever the tensors lie and however they lie in memory.
    """
    state = hashlib.sha256()
    for name, tensor in sorted({**_state(model), **{name: model.get_buffer(name) for name in buffers}}.items()):
        state.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        state.update(_bytes(tensor))
    return state.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with every name of a shared tensor. Raises ArtifactError for entries that are no dense tensor."""
    state = dict(model.state_dict(keep_vars=True))
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or type(value) not in (Tensor, nn.Parameter):
            kind = type(value).__name__ if not isinstance(value, Tensor) else f"{type(value).__name__}, {value.layout}"
            raise ArtifactError(
                f"{name!r} of the model is a {kind}; an artifact holds dense torch tensors only, no other objects. "
                "Keep it as a buffer or make it an argument of the model's factory"
            )
        if value.is_meta:
            raise ArtifactError(f"{name!r} of the model has no data (it lies on the meta device)")
    return state


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return (
        a.device == b.device
        and a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
    )


def _dense(shape: Iterable[int], strides: Iterable[int]) -> bool:
    """Whether the strides put every element at a place of its own without gaps (row-major up to the order of axes)."""
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in zip(shape, strides) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _strides(tensor: Tensor) -> list[int] | None:
    """Strides worth keeping: dense, and other than row-major."""
    row_major = torch.empty(tensor.shape, device="meta").stride()
    keep = tensor.numel() > 0 and tensor.stride() != row_major and _dense(tensor.shape, tensor.stride())
    return list(tensor.stride()) if keep else None


def collect(model: nn.Module, empty: nn.Module) -> tuple[dict[str, Tensor], Description]:
    """The tensors to store, row-major, each in memory of its own, and their description.

    `empty` is the architecture as loading will build it. Raises ArtifactError when it has other names or shapes than the
    model: then the model's factory and plans do not describe it.
    """
    state = _state(model)
    made = {**dict(empty.named_buffers(remove_duplicate=False)), **empty.state_dict(keep_vars=True)}
    names = {name: made[name] for name in empty.state_dict(keep_vars=True)}
    _compare(
        state, {name: (t.shape, state[name].dtype if name in state else None) for name, t in names.items()}, "the model"
    )
    constants = {}
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in state:
            continue
        if name not in made:
            raise ArtifactError(f"the model has a buffer {name!r} that its factory and plans do not make")
        if not _equal(buffer, made[name]):
            constants[name] = buffer
    known: dict[int, list[str]] = {}
    originals: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    for name, tensor in {**state, **constants}.items():
        here = known.setdefault(tensor.data_ptr(), [])
        twin = next((other for other in here if tensor.numel() and _same_memory(originals[other], tensor)), None)
        if twin is not None:
            shared[name] = twin
        else:
            here.append(name)
            originals[name] = tensor.detach()
    return (
        {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in originals.items()},
        Description(
            shared,
            {name: strides for name, tensor in originals.items() if (strides := _strides(tensor)) is not None},
            {name: str(t.dtype).removeprefix("torch.") for name, t in originals.items() if t.dtype != made[name].dtype},
            sorted(constants),
        ),
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bytes(_bytes(a)) == bytes(_bytes(b))


def _compare(found: Mapping[str, Tensor], expected: Mapping[str, tuple], what: str) -> None:
    """Raise ArtifactError when names, shapes or types of `found` differ from what the architecture makes."""
    text = f"{what} does not fit the architecture that its factory and plans build"
    missing, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or surplus:
        raise ArtifactError(f"{text}: missing {_some(missing)}; unexpected {_some(surplus)}")
    for name, tensor in found.items():
        shape, dtype = expected[name]
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ArtifactError(
                f"{text}: {name!r} is {tuple(tensor.shape)} {tensor.dtype}, the architecture has {tuple(shape)} {dtype}"
            )


def _some(names: list[str]) -> str:
    return "none" if not names else ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class _NoDraws(TorchFunctionMode):
    """Random fills become zeros: weights that are overwritten need no random numbers."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            with torch.no_grad():
                return tensor.zero_()
        return function(*args, **kwargs)


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Build on the processor, with the caller's random numbers left alone and never met again: what a constructor draws
    for itself must not be taken for something that it makes again."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.seed()
        yield


def empty_model(past: Lineage, trust: Iterable[str] = ()) -> nn.Module:
    """The architecture without its weights, quickly: random initialization is left out."""
    with _apart(), _NoDraws(), weights_to_follow():
        return build(past.factory, past.plans, trust)


def fill(past: Lineage, tensors: dict[str, Tensor], description: Description, trust: Iterable[str] = ()) -> nn.Module:
    """Build the architecture and put the tensors in, strictly. Raises ArtifactError for anything that does not fit.

    The first try builds on the meta device, which allocates nothing; a model that computes constants while it is built is
    built on the processor instead.
    """
    trust = tuple(trust)
    try:
        with _apart(), torch.device("meta"):
            model = build(past.factory, past.plans, trust)
    except Exception:  # a constructor or plan that needs real numbers; any other fault shows again below
        model = None
    if model is not None:
        _put(model, tensors, description)
    if model is None or _has_meta(model):
        model = empty_model(past, trust)
        _put(model, tensors, description)
    for module in model.modules():
        if getattr(module, "limbeck_quantized", False):
            module.verify()
    return model


def _has_meta(model: nn.Module) -> bool:
    """Whether a tensor without data is left anywhere: a parameter, a buffer, or in an attribute of any module."""
    return any(_holds_meta(vars(module), 4) for module in model.modules())


def _holds_meta(value: Any, depth: int) -> bool:
    if isinstance(value, Tensor):
        return value.is_meta
    if depth == 0 or value is None or isinstance(value, (str, bytes, int, float, type, nn.Module)) or callable(value):
        return False
    if isinstance(value, dict):
        inner: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = value
    else:
        inner = getattr(value, "__dict__", {}).values()
    return any(_holds_meta(one, depth - 1) for one in inner)


def _put(model: nn.Module, tensors: Mapping[str, Tensor], description: Description) -> None:
    """Replace every tensor of the state dict (and the constants) by the stored one, strictly."""
    every = dict(model.state_dict(keep_vars=True))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for name in description.constants:
        if name not in buffers:
            raise ArtifactError(f"architecture.json: the model has no buffer {name!r}")
        every[name] = buffers[name]
    found = dict(tensors)
    for alias, name in description.shared.items():
        if alias in found or name not in tensors:
            raise ArtifactError(f"architecture.json: {alias!r} cannot share the tensor {name!r}")
    found.update({alias: tensors[name] for alias, name in description.shared.items()})
    expected = {}
    for name, tensor in every.items():
        if not isinstance(tensor, Tensor):
            raise ArtifactError(f"{name!r} of the architecture is a {type(tensor).__name__}, not a tensor")
        changed = description.dtypes.get(description.shared.get(name, name))
        expected[name] = (tensor.shape, _DTYPES[changed] if changed else tensor.dtype)
    _compare(found, expected, "model.safetensors")
    made: dict[str, Tensor] = {}
    for name, tensor in found.items():
        origin = description.shared.get(name, name)
        if origin not in made:
            made[origin] = _own(origin, tensor, description.strides.get(origin), every[origin])
        _assign(model, name, made[origin])


def _own(name: str, tensor: Tensor, strides: list[int] | None, like: Tensor) -> Tensor:
    """A copy with the strides it had, a parameter where the architecture has one."""
    if strides is None:
        copy = tensor.clone(memory_format=torch.contiguous_format)
    elif len(strides) != tensor.dim() or not _dense(tensor.shape, strides) or max(strides, default=0) > tensor.numel():
        raise ArtifactError(f"architecture.json: strides {strides} of {name!r} do not fit {tuple(tensor.shape)}")
    else:
        copy = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)
    return nn.Parameter(copy, requires_grad=like.requires_grad) if isinstance(like, nn.Parameter) else copy


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, value)
