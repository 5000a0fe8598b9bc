"""Shared fixtures: the golden folder and two real networks."""

import os
from pathlib import Path

import pytest
import torch

import draggan_fast as dg

# Without a GPU, Triton's interpreter runs the Triton kernels. It must be asked for before they are imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Small networks gain nothing from threads, and on a busy machine threads that wait for each other cost a lot.
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    return GOLDEN


@pytest.fixture(scope="session")
def nvlabs():
    """The golden 256×256 network: random weights, every feature of the published ones."""
    return dg.load(GOLDEN / "nvlabs" / "nvlabs.pkl", device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def small():
    """A 64×64 network, for whatever needs many steps."""
    return dg.load(GOLDEN / "rosinality" / "rosinality.pt", device="cpu", precision="fp32")


@pytest.fixture(autouse=True)
def steady_torch():
    """Tests draw the same random numbers whatever ran before them."""
    torch.manual_seed(0)


@pytest.fixture
def vector_level():
    """A function that chooses the vector instructions, undone after the test."""
    from draggan_fast import _C

    before = _C.build_info()["level"]
    yield _C.set_level
    _C.set_level(before)
