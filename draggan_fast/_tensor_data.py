"""Arrays inside pickles as records that point into the file, and the names that may build them.

A record is checked before it exists: what a file claims is compared with the bytes that the file has, and
memory is used only by ``Array.to_tensor``.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._pickle_data import Constructor, LongText, Name, Refused, shown

MAX_DIMENSIONS = 8

STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
NUMPY_TYPES = {  # type code → tensor type, struct code
    "f2": (torch.float16, "e"),
    "f4": (torch.float32, "f"),
    "f8": (torch.float64, "d"),
    "i1": (torch.int8, "b"),
    "i2": (torch.int16, "h"),
    "i4": (torch.int32, "i"),
    "i8": (torch.int64, "q"),
    "u1": (torch.uint8, "B"),
    "b1": (torch.bool, "?"),
}


@dataclass
class Storage:
    """``numel`` elements in a row; ``data`` is attached later where the bytes follow the pickle stream."""

    dtype: torch.dtype
    numel: int
    data: memoryview | LongText | None = None

    def attach(self, data: memoryview) -> None:
        if self.data is not None or len(data) != self.numel * self.dtype.itemsize:
            raise Refused(
                f"a tensor claims {self.numel} elements of {self.dtype.itemsize} bytes, but has {len(data)} bytes; "
                "download the file again"
            )
        self.data = data

    def bytes(self, first: int, count: int) -> bytearray:
        """A copy of ``count`` bytes from byte ``first`` on."""
        if self.data is None:
            raise Refused("a tensor has no data in the file; download it again")
        raw = self.data.latin1() if isinstance(self.data, LongText) else self.data
        if len(raw) != self.numel * self.dtype.itemsize:
            raise Refused(f"an array claims {self.numel} elements, but has {len(raw)} bytes; download the file again")
        return bytearray(raw[first : first + count])


@dataclass(frozen=True)
class Array:
    """A tensor or array of the file: a strided view of a storage (offset and strides in elements)."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def to_tensor(self) -> Tensor:
        """The values as a new contiguous tensor of the type in the file."""
        dtype = self.storage.dtype
        if not self.nbytes:
            raise Refused("a tensor that the network needs is empty; download the file again")
        span = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        raw = self.storage.bytes(self.offset * dtype.itemsize, span * dtype.itemsize)
        return torch.frombuffer(raw, dtype=dtype).as_strided(self.shape, self.strides).contiguous()


def sizes(value: Any, what: str) -> tuple[int, ...]:
    """``value`` as a shape or the like: few, non-negative integers of 62 bits."""
    if not isinstance(value, (tuple, list)) or len(value) > MAX_DIMENSIONS:
        raise Refused(f"a tensor has an impossible {what}; download the file again")
    if any(type(v) is not int or not 0 <= v < 1 << 62 for v in value):
        raise Refused(f"a tensor has an impossible {what}; download the file again")
    return tuple(value)


def make_array(storage: Any, offset: Any, shape: Any, strides: Any) -> Array:
    """A view of a storage, checked to lie inside it and not to be larger than it."""
    if not isinstance(storage, Storage):
        raise Refused("a tensor has no storage; download the file again")
    shape, strides = sizes(shape, "shape"), sizes(strides, "stride")
    (offset,) = sizes((offset,), "offset")
    if len(shape) != len(strides):
        raise Refused("a tensor has fewer strides than dimensions; download the file again")
    numel = math.prod(shape)
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # The second condition stops stride 0, which turns one stored element into any number of elements.
    if numel and (offset + last >= storage.numel or numel > storage.numel):
        raise Refused(
            f"a tensor of the shape {list(shape)} claims more than the {storage.numel} elements it is made of; "
            "download the file again"
        )
    return Array(storage, offset, shape, strides)


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


# Constructors for the names that numpy writes


class NumpyType:
    """A numpy dtype: only plain little-endian numbers, so never one whose elements are Python objects."""

    def __init__(self, code: str) -> None:
        if code not in NUMPY_TYPES:
            raise Refused(
                f"it holds a numpy array of the type {shown(code)}; only plain numbers can be read; save it anew"
            )
        self.code = code
        self.dtype, self.struct_code = NUMPY_TYPES[code]

    def set_state(self, state: Any) -> None:
        _version, order, subarray, names, fields, *_ = state
        if order not in ("<", "|", "=") or subarray is not None or names is not None or fields is not None:
            raise Refused(
                "it holds a numpy array that is big-endian or structured; only plain numbers can be read; save it anew"
            )


class NumpyArray:
    """An array under construction: numpy writes an empty one first and its shape and bytes as the state."""

    def __init__(self) -> None:
        self.array: Array | None = None

    def set_state(self, state: Any) -> None:
        _version, shape, dtype, fortran, raw = state
        self.array = _numpy_array(raw, dtype, shape, bool(fortran))


def _numpy_array(raw: Any, dtype: Any, shape: Any, fortran: bool) -> Array:
    shape = sizes(shape, "shape")
    if not isinstance(dtype, NumpyType):
        raise TypeError
    strides = _contiguous_strides(shape)
    if fortran:
        strides = _contiguous_strides(shape[::-1])[::-1]
    numel = math.prod(shape)
    if isinstance(raw, LongText):
        # Decoded only if used; until then a bound: UTF-8 takes one or two bytes for a latin-1 character.
        if not numel * dtype.dtype.itemsize <= len(raw.raw) <= 2 * numel * dtype.dtype.itemsize:
            raise Refused(f"a numpy array of the shape {list(shape)} does not fit its bytes; download the file again")
        return make_array(Storage(dtype.dtype, numel, raw), 0, shape, strides)
    if not isinstance(raw, memoryview):
        raise Refused("it holds a numpy array of Python objects; only plain numbers can be read; save it anew")
    storage = Storage(dtype.dtype, numel)
    storage.attach(raw)
    return make_array(storage, 0, shape, strides)


def _numpy_reconstruct(args: tuple[Any, ...]) -> NumpyArray:
    kind, _shape, _code = args
    if not isinstance(kind, Name) or str(kind) != "numpy.ndarray":
        raise TypeError
    return NumpyArray()


def _numpy_from_buffer(args: tuple[Any, ...]) -> Array:
    raw, dtype, shape, order = args
    return _numpy_array(raw, dtype, shape, order == "F")


def _numpy_dtype(args: tuple[Any, ...]) -> NumpyType:
    if not args or not isinstance(args[0], str):
        raise TypeError
    return NumpyType(args[0])


def _numpy_scalar(args: tuple[Any, ...]) -> int | float:
    dtype, raw = args
    if not isinstance(dtype, NumpyType) or not isinstance(raw, memoryview):
        raise TypeError
    value: int | float = struct.unpack("<" + dtype.struct_code, raw)[0]
    return value


def _encode(args: tuple[Any, ...]) -> memoryview | LongText:
    text, encoding = args
    if encoding != "latin1":
        raise TypeError
    if isinstance(text, LongText):
        return text
    return memoryview(text.encode("latin-1"))


# Constructors for the names that PyTorch and the model programs write


def _rebuild_tensor(args: tuple[Any, ...]) -> Array:
    return make_array(*args[:4])  # what may follow: requires_grad, hooks, metadata


def _rebuild_parameter(args: tuple[Any, ...]) -> Array:
    if not isinstance(args[0], Array):
        raise TypeError
    return args[0]


@dataclass(frozen=True)
class PersistentObject:
    """A module as NVIDIA's releases write it; the source text that travels with it is never looked at."""

    class_name: str
    state: dict[Any, Any]


def _persistent_object(args: tuple[Any, ...]) -> PersistentObject:
    (record,) = args
    name, state = record["class_name"], record["state"]
    if record["type"] != "class" or not isinstance(name, str) or not isinstance(state, dict):
        raise TypeError
    return PersistentObject(name, state)


def _dictionary(args: tuple[Any, ...]) -> dict[Any, Any]:
    if not args:
        return {}
    (pairs,) = args
    if not isinstance(pairs, list) or not all(isinstance(k, str) for k, _ in pairs):
        raise TypeError
    return dict(pairs)


def _set(args: tuple[Any, ...]) -> set[Any]:
    items = args[0] if args else []
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise TypeError
    return set(items)


def _first(args: tuple[Any, ...]) -> Any:
    return args[0]


INERT_NAMES = {("dnnlib.tflib.network", "Network"), ("argparse", "Namespace")}
INERT_MODULES = "torch.nn.modules."
NAMES: dict[tuple[str, str], Constructor | None] = {
    ("collections", "OrderedDict"): _dictionary,
    ("dnnlib.util", "EasyDict"): _dictionary,
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _numpy_dtype,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch", "Size"): _first,
    ("torch", "device"): _first,
    **{("torch", str(dtype).removeprefix("torch.")): None for dtype in STORAGES.values()},
}
for _core in ("numpy.core", "numpy._core"):
    NAMES[_core + ".multiarray", "_reconstruct"] = _numpy_reconstruct
    NAMES[_core + ".multiarray", "scalar"] = _numpy_scalar
    NAMES[_core + ".numeric", "_frombuffer"] = _numpy_from_buffer
