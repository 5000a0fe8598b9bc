"""CUDA graphs without a GPU: what is captured is a list of operator calls, and a replay makes them again.

A replay uses the very tensors of the capture, as a graph uses its addresses, and runs no line of Python of the step: a
decision that was made while capturing stays as it was made. ``Watch`` refuses what a capture refuses: whatever would
make the host wait for the device.
"""

from __future__ import annotations

import contextlib
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# By name: every overload. What has a shape, or gives the host a value, that depends on data.
SYNCHRONISING = {
    "_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_numpy", "nonzero_static", "argwhere",
    "masked_select", "unique_dim", "_unique", "_unique2", "unique_consecutive", "unique_dim_consecutive", "equal",
    "allclose", "repeat_interleave", "bincount", "histc",
}  # fmt: skip


class HostWaits(RuntimeError):
    """An operator would wait for the device."""


def tensors_in(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def storage_of(tensor):
    return None if tensor.layout != torch.strided else tensor.untyped_storage()._cdata


class Watch(TorchDispatchMode):
    """Inside, an operator that would wait for the device raises HostWaits; the others are counted.

    calls: operator → how often. allocations, allocated_bytes: of results that are not views of, or written into, an
    argument.
    """

    def __init__(self):
        super().__init__()
        self.calls = Counter()
        self.allocations = self.allocated_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        moved_to = kwargs.get("device")
        leaves = tensors_in((args, kwargs))
        leaves_device = moved_to is not None and any(t.device.type != torch.device(moved_to).type for t in leaves)
        boolean_index = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            t.dtype == torch.bool for t in tensors_in(args[1])
        )
        if name in SYNCHRONISING or leaves_device or boolean_index:
            raise HostWaits(f"{func} makes the host wait for the device")
        result = func(*args, **kwargs)
        self.calls[str(func)] += 1
        known = {storage_of(t) for t in leaves}
        for tensor in tensors_in(result):
            if storage_of(tensor) not in known:
                self.allocations += 1
                self.allocated_bytes += tensor.untyped_storage().nbytes()
        self.seen(func, args, kwargs, result, known)
        return result

    def seen(self, func, args, kwargs, result, known):
        pass


class EmulatedGraph:
    """``torch.cuda.CUDAGraph``."""

    def __init__(self):
        self.tape = []
        self.replays = 0

    def replay(self):
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, result in self.tape:
                again = func(*args, **kwargs)
                for old, new in zip(tensors_in(result), tensors_in(again), strict=True):
                    if storage_of(old) != storage_of(new):
                        old.copy_(new)


class Capture(Watch):
    """``torch.cuda.graph``: what is called inside goes to the graph's tape. Afterwards all intermediate results are
    NaN: only a replay may give them values."""

    def __init__(self, graph):
        super().__init__()
        self.graph = graph
        self.outside, self.inside = set(), {}

    def seen(self, func, args, kwargs, result, known):
        self.outside |= known - set(self.inside)
        for tensor in tensors_in(result):
            if storage_of(tensor) not in self.outside:
                self.inside[storage_of(tensor)] = tensor
        self.graph.tape.append((func, args, kwargs, result))

    def __exit__(self, *error):
        super().__exit__(*error)
        for tensor in self.inside.values():
            if tensor.is_floating_point():
                tensor.detach().fill_(torch.nan)


class Nothing:
    """A stream or an event, where everything runs at once."""

    def __init__(self, *_args, **_options):
        self.synchronised = 0

    def wait_stream(self, _stream):
        pass

    def wait_event(self, _event):
        pass

    def record(self, *_stream):
        pass

    def synchronize(self):
        self.synchronised += 1


def emulate(monkeypatch, graphs):
    """Sessions on the CPU from now on capture their steps; returns the list of graphs, filled as they are made."""
    made = []

    def graph(graph, **options):
        assert set(options) == {"pool", "stream", "capture_error_mode"}
        made.append(graph)
        return Capture(graph)

    lane = graphs.Lane(torch.device("cuda"))
    monkeypatch.setattr(graphs, "captures", lambda device: True)
    monkeypatch.setattr(graphs, "lane_of", lambda device: lane)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", Nothing)
    monkeypatch.setattr(torch.cuda, "Stream", Nothing)
    monkeypatch.setattr(torch.cuda, "Event", Nothing)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", EmulatedGraph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return made
