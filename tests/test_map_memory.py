"""The memory of maps that the compiled passes keep for each other."""

import threading
from pathlib import Path

import pytest
import torch

from draggan_fast import ops

pytestmark = pytest.mark.skipif(not ops.compiled_parts().get("cpu"), reason="draggan_fast._C is not compiled here")
LEAST = 16 << 10  # bytes: smaller maps come from PyTorch's allocator


def doubled(x):
    """A pass whose result is 2·x for x ≥ 0: the gain of an activation without bias and noise."""
    ones, zeros = torch.ones(x.shape[0], x.shape[1]), torch.zeros(x.shape[1])
    return torch.ops.draggan_fast_native.activate(x, ones, None, zeros, None, 2.0, None)[0]


def filled(value, size=64):
    return torch.full((1, 8, size, size), float(value)).contiguous(memory_format=torch.channels_last)


def test_memory_is_used_again_but_never_twice_at_once():
    x = filled(1)
    assert x.numel() * 4 > LEAST
    alive = [doubled(x * k) for k in range(20)]
    assert len({map_.data_ptr() for map_ in alive}) == 20
    assert all((map_ == 2 * k).all() for k, map_ in enumerate(alive))
    view = alive[3][:, :2, 1:]  # holds what it is a part of
    places = {map_.data_ptr() for map_ in alive} - {alive[3].data_ptr()}
    del alive
    again = [doubled(x * 7) for _ in range(19)]
    assert {map_.data_ptr() for map_ in again} == places
    assert (view == 6).all()


@pytest.mark.parametrize("size", [1, 3, 64, 257])
def test_maps_of_any_size_are_dense_and_channels_last(size):
    for dtype in (torch.float32, torch.bfloat16):
        map_ = doubled(filled(1, size).to(dtype))
        assert map_.is_contiguous(memory_format=torch.channels_last)
        assert map_.dtype == dtype
        assert map_.data_ptr() % 64 == 0
        assert (map_ == 2).all()
        assert (map_.add_(1) == 3).all()


def test_a_result_outlives_the_thread_that_made_it_and_threads_do_not_meet():
    wrong, kept = [], []

    def work(value):
        for k in range(200):
            map_ = doubled(filled(value + k, 48))
            if not (map_ == 2 * (value + k)).all():
                wrong.append(value)
        kept.append((value, map_))

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all((map_ == 2 * (value + 199)).all() for value, map_ in kept)
    assert len(kept) == 4


STATM = Path("/proc/self/statm")


@pytest.mark.skipif(not STATM.exists(), reason="no memory readings here")
def test_little_is_held_that_nobody_uses():
    """Large maps go back: what is held is bounded by 32 MiB."""

    def resident():
        return int(STATM.read_text(encoding="ascii").split()[1]) * 4096

    x = torch.ones(1, 64, 512, 512).contiguous(memory_format=torch.channels_last)  # 64 MiB
    doubled(x)
    before = resident()
    for _ in range(5):
        both = [doubled(x) for _ in range(2)]
        del both
    assert resident() - before < 48 << 20
