"""Tensors that say they are on a GPU, in a build of torch that has none: shapes, types and devices, but no values.

What mixes devices, or asks for a value, raises. Some methods want the real device even so, indexing above all;
``Indexing`` does them by other operators.
"""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode

OTHERWISE = {
    torch.Tensor.__invert__: torch.bitwise_not,
    torch.Tensor.contiguous: lambda x, memory_format=torch.contiguous_format: x.clone(memory_format=memory_format),
    torch.Tensor.copy_: torch.ops.aten.copy_.default,
    torch.Tensor.float: lambda x: x.to(torch.float32),
    torch.Tensor.double: lambda x: x.to(torch.float64),
    torch.Tensor.long: lambda x: x.to(torch.int64),
    torch.Tensor.new_empty: lambda x, *shape, dtype=None: torch.empty(*shape, dtype=dtype or x.dtype, device=x.device),
    torch.Tensor.new_zeros: lambda x, *shape, dtype=None: torch.zeros(*shape, dtype=dtype or x.dtype, device=x.device),
}


class Indexing(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__:
            return indexed(*args)
        if func is torch.Tensor.__setitem__:
            return assign(*args)
        return OTHERWISE.get(func, func)(*args, **(kwargs or {}))


def split(tensor, index):
    """(a view by everything in the index that is no tensor, the index tensors, one or None per dimension of it)."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(part is Ellipsis for part in parts):
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        used = sum(part is not None for part in parts) - 1
        parts[at : at + 1] = [slice(None)] * (tensor.ndim - used)
    dimension, tensors = 0, []
    for part in parts:
        if isinstance(part, int):
            tensor = torch.select(tensor, dimension, part)
            continue
        if part is None:
            tensor = torch.unsqueeze(tensor, dimension)
        elif isinstance(part, slice):
            tensor = torch.ops.aten.slice(tensor, dimension, part.start, part.stop, part.step or 1)
        whole = part is None or isinstance(part, slice)
        tensors.append(None if whole else torch.as_tensor(part, device=tensor.device))
        dimension += 1
    return tensor, tensors


def indexed(tensor, index):
    view, tensors = split(tensor, index)
    return torch.ops.aten.index(view, tensors) if any(t is not None for t in tensors) else view


def assign(tensor, index, value):
    view, tensors = split(tensor, index)
    if any(t is not None for t in tensors):
        torch.ops.aten.index_put_(view, tensors, value)
    elif isinstance(value, torch.Tensor):
        torch.ops.aten.copy_(view, value)
    else:
        view.fill_(value)
