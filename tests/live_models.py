"""A network so small that its steps take a millisecond, for tests of everything around the steps."""

import functools

import torch

import draggan_fast as dg
from draggan_fast.generator import GeneratorConfig


@functools.cache
def tiny_model(name="tiny", resolution=32, c_dim=0):
    """Random weights, 8 channels; feature block 2 (16×16), so that previews are half the picture's size."""
    blocks = resolution.bit_length() - 2
    config = GeneratorConfig(
        resolution=resolution,
        z_dim=8,
        w_dim=8,
        channels=(8,) * blocks,
        mapping_widths=(8,),
        c_dim=c_dim,
        embed_dim=8 if c_dim else 0,
    )
    torch.manual_seed(1)
    generator = dg.Generator(config).eval().freeze()
    drag = {"feature_block": blocks - 2, "layers": 4, "lr": 0.05, "r1": 30, "r2": 60, "stop_distance": 1}
    return dg.Model(name, name, generator, name * 8, "test", {"drag": drag}, torch.device("cpu"), "auto")
