"""Where crops lie: known numbers and tensors must say the same, at the border of the picture too."""

import pytest
import torch

from draggan_fast import places as geometry
from draggan_fast.frozen import FrozenSynthesis
from draggan_fast.places import Region


@pytest.mark.parametrize("origin", [[[3, 2]], [[3, 2], [4, 4], [0, 6]], [[-1, 2]], [[5, 7], [3, 3]]])
def test_slices_are_what_gathering_gives(origin):
    region = Region(torch.tensor(origin), 4)
    gathered, sliced = region.cells(10), region.cells(10, fixed=True)
    inside = bool(gathered.inside.all())
    assert gathered.corners is None
    assert (sliced.corners is not None) == inside
    assert (sliced.mask is None) == inside
    map_ = torch.randn(1, 3, 10, 10).contiguous(memory_format=torch.channels_last)
    assert torch.equal(sliced.crop(map_), gathered.crop(map_))
    crops = torch.randn(len(origin), 3, 4, 4)
    torch.testing.assert_close(sliced.crop_adjoint(crops, map_), gathered.crop_adjoint(crops, map_))
    there = (sliced.crop(map_) * crops).sum()
    back = (sliced.crop_adjoint(crops, map_) * map_).sum()  # the transpose
    torch.testing.assert_close(there, back)


def test_a_window_by_its_numbers_is_the_window_by_tensors():
    offset = torch.tensor([[0, 2], [1, 1], [3, 0]])
    by_tensors, by_numbers = geometry.Window.at(offset, 3), geometry.Window.at(offset, 3, fixed=True)
    crops, inner = torch.randn(3, 2, 6, 6), torch.randn(3, 2, 3, 3)
    assert torch.equal(by_numbers.inner(crops), by_tensors.inner(crops))
    assert torch.equal(by_numbers.inner_adjoint(inner, 6), by_tensors.inner_adjoint(inner, 6))


def test_places_are_looked_up_once_for_each_cell(small, monkeypatch):
    synthesis = FrozenSynthesis(small.generator, 3, torch.float32)
    made = []
    real = geometry.places
    monkeypatch.setattr(
        geometry, "places", lambda *given, **named: made.append(given[1].origin) or real(*given, **named)
    )
    kept = geometry.Places(synthesis)
    first = kept.of(Region(torch.tensor([[4, 5]]), 9), 2)
    assert kept.of(Region(torch.tensor([[4, 5]]), 9), 2) is first
    assert len(made) == 1
    for other in (Region(torch.tensor([[5, 4]]), 9), Region(torch.tensor([[4, 5]]), 10)):
        assert kept.of(other, 2) is not first
    assert kept.of(Region(torch.tensor([[4, 5]]), 9), 3) is not first
    assert len(made) == 4
    for x in range(geometry.KEPT):  # the others are forgotten
        kept.of(Region(torch.tensor([[x, 0]]), 9), 2)
    assert kept.of(Region(torch.tensor([[4, 5]]), 9), 2) is not first
    assert len(kept._known) == geometry.KEPT
    assert kept.of(Region(torch.empty(1, 2, dtype=torch.int64, device="meta"), 9), 2) is None
