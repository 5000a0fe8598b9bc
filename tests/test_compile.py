"""The frozen forward pass and the picture are one graph each for torch's compiler: nothing in them breaks it."""

import pytest
import torch

import draggan_fast as dg
from draggan_fast import engine
from draggan_fast.frozen import FrozenSynthesis

CPU = torch.device("cpu")


def tiny_generator(**changes):
    return dg.Generator(dg.GeneratorConfig(16, 8, 8, (4, 4, 4), (8,), **changes)).eval().freeze()


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_forward_and_picture_compile_without_a_break(precision, monkeypatch):
    """As on a GPU, where no weight is packed for a CPU's library."""
    monkeypatch.setattr("draggan_fast.packed_conv.can_pack", lambda weight: False)
    synthesis = FrozenSynthesis(tiny_generator(conv_clamp=256.0), 1, precision)
    forward = torch.compile(synthesis.forward, fullgraph=True, dynamic=False, backend="eager")
    render = torch.compile(synthesis.render, fullgraph=True, dynamic=False, backend="eager")
    w_plus = torch.randn(1, 6, 8)
    with torch.inference_mode(False):
        trace, expected = forward(w_plus), synthesis.forward(w_plus)
        picture = render(trace, w_plus)
    tolerance = 2e-2 if precision == torch.bfloat16 else 2e-3
    for found, wanted in zip(trace.maps, expected.maps, strict=True):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(picture, synthesis.render(expected, w_plus), rtol=tolerance, atol=tolerance)


def test_who_is_compiled(monkeypatch):
    compiled = []

    def compile_(function, **options):
        assert options == {"fullgraph": True, "dynamic": False}
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    generator = tiny_generator()
    assert not engine.compiles(torch.device("cuda"))
    assert type(engine.make_engine(generator, CPU, 1, "const", "fast", "fp32").synthesis) is FrozenSynthesis
    monkeypatch.setenv(engine.COMPILE, "on")
    assert engine.compiles(torch.device("cuda"))
    assert not engine.compiles(CPU)
    monkeypatch.setattr(engine, "compiles", lambda device: True)
    found = engine.make_engine(generator, CPU, 2, "const", "fast", "fp32")
    assert len(compiled) == 2
    whole = found.whole(torch.randn(1, 6, 8))
    assert whole.view.feature.shape == (1, 4, 16, 16)
    monkeypatch.undo()
    monkeypatch.setenv(engine.COMPILE, "yes")
    with pytest.raises(dg.DragError, match="must be on or off"):
        engine.compiles(CPU)
