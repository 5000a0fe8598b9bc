"""The Triton passes around the convolutions against the specification in float64, on a GPU or under the interpreter.

The interpreter cuts float32 off when it stores bfloat16, where a GPU rounds (see test_triton_numerics.py).
"""

import pytest
import torch
from draggan_fast.kernels import modulated_conv as spec

from draggan_fast import ops, synthesis_ops
from draggan_fast.errors import DragError
from tests.test_modulated_conv import Case, channels_last, normal, run_all, stored_x

pytest.importorskip("triton", reason="the Triton kernels need the package triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STORED = {  # dtype → the most that storing a float32 in it may change it, relatively
    torch.float32: 0.0,
    torch.float16: 2**-11,
    torch.bfloat16: 2**-8 if DEVICE == "cuda" else 2**-7,
}
FEW = (1.0, 3.0)  # taps: under the interpreter a test costs by the window, 9 cells of two taps, 25 of the usual four
CASES = {  # batch, channels, h, w of the low map; what there is; dtype
    "all": ((1, 5, 2, 2), {"clamp": 1.25}, torch.float32),
    "bare": ((1, 5, 2, 2), {"noise": False, "style": False, "taps": FEW}, torch.float32),
    "batch": ((3, 2, 1, 2), {"taps": FEW}, torch.float32),
    "more channels than a tile": ((1, 70, 1, 2), {"clamp": 1.25, "taps": FEW}, torch.float32),
    "more cells than a tile": ((1, 3, 1, 10), {"style": False, "taps": FEW}, torch.float32),
    "one channel of one cell": ((2, 1, 1, 1), {"taps": FEW}, torch.float16),
    "float16": ((1, 5, 2, 3), {"clamp": 1.25, "taps": FEW}, torch.float16),
    "bfloat16": ((1, 5, 2, 1), {"clamp": 0.75}, torch.bfloat16),
    "bfloat16, bare": ((2, 3, 2, 1), {"noise": False, "style": False, "clamp": 0.75, "taps": FEW}, torch.bfloat16),
}


def on_device(case):
    """The case on DEVICE, its values such as float16 and bfloat16 hold exactly: the passes answer for arithmetic."""
    for name in ("y", "grad", "demodulation", "bias", "noise", "style"):
        values = getattr(case, name)
        setattr(case, name, None if values is None else values.bfloat16().double().to(DEVICE))
    case.phases = tuple(phase.bfloat16().double().to(DEVICE) for phase in case.phases)
    return case


@pytest.mark.parametrize(("shape", "options", "dtype"), CASES.values(), ids=CASES)
def test_passes_are_the_specification(shape, options, dtype):
    case = on_device(Case(*shape, **options))
    x = stored_x(case, dtype)
    exact = run_all(spec, case, torch.float64, torch.float64, x)
    with ops.forced_backend("triton"):
        found = run_all(synthesis_ops, case, dtype, torch.float32, x)
    largest = max(values.abs().max() for values in exact.values())
    for name, expected in exact.items():
        values = found[name]
        is_map = values.ndim == 4
        assert values.dtype == (dtype if is_map else torch.float32), name
        assert values.shape == expected.shape, name
        assert not is_map or values.is_contiguous(memory_format=torch.channels_last), name
        allowed = 16 * torch.finfo(torch.float32).eps * largest + STORED[values.dtype] * expected.abs()
        assert ((values.double() - expected).abs() <= allowed).all(), name


@pytest.mark.parametrize("count", [3])
def test_other_numbers_of_taps(count):
    case = on_device(Case(1, 4, 1, 1, taps=tuple((normal(count).abs() + 0.2).tolist())))
    x = stored_x(case, torch.float32)
    exact = run_all(spec, case, torch.float64, torch.float64, x)
    with ops.forced_backend("triton"):
        found = run_all(synthesis_ops, case, torch.float32, torch.float32, x)
    for name, expected in exact.items():
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-5, msg=name)


def test_a_clamp_that_bfloat16_rounds_down_still_stops_the_gradient():
    case = on_device(Case(1, 4, 1, 1, clamp=0.7))
    x = stored_x(case, torch.bfloat16)
    at_clamp = x.abs() == torch.tensor(0.7, dtype=torch.bfloat16, device=DEVICE)
    assert at_clamp.any()
    assert x.abs().double().max() < 0.7
    _, _, grad = case.maps(torch.bfloat16)
    demodulation, noise, bias, style, gain, clamp = case.factors()
    with ops.forced_backend("triton"):
        grad_y, _, _ = synthesis_ops.activate_backward(grad, style, x, demodulation, noise, bias, gain, clamp)
    assert torch.equal(grad_y == 0, at_clamp)


def test_a_nan_stays_one():
    case = on_device(Case(1, 4, 1, 1, clamp=0.75))
    _, y, _ = case.maps(torch.float16)
    y[0, 1, 0, 0] = torch.nan
    with ops.forced_backend("triton"):
        found = synthesis_ops.activate(y, *case.factors())
    assert all(torch.equal(values.isnan(), y.isnan()) for values in found)


def test_every_element_is_written(monkeypatch):
    """Results start as NaN: what the passes leave out would show."""
    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(make):
        return lambda *arguments, **options: make(*arguments, **options).fill_(torch.nan)

    case = on_device(Case(2, 5, 2, 1, taps=FEW))
    x = stored_x(case, torch.float32)
    monkeypatch.setattr(torch, "empty", poisoned(empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(empty_like))
    with ops.forced_backend("triton"):
        found = run_all(synthesis_ops, case, torch.float32, torch.float32, x)
    assert not any(values.isnan().any() for values in found.values())


def test_one_row_of_factors_may_serve_a_batch():
    """As crops of one picture have it: expanded, without a copy."""
    case = on_device(Case(3, 4, 1, 2))
    _, y, grad = case.maps(torch.float32)
    demodulation, noise, bias, style, gain, clamp = case.factors()
    noise = noise.expand(3, -1, -1).contiguous()
    one = [t[:1].expand(3, -1) for t in (demodulation, style)]
    x = spec.activate(y, one[0], noise, bias, one[1], gain, clamp)[0]
    with ops.forced_backend("triton"):
        found = synthesis_ops.activate(y, one[0], noise, bias, one[1], gain, clamp)
        back = synthesis_ops.activate_backward(grad, one[1], x, one[0], noise, bias, gain, clamp)
    expected = spec.activate(y, one[0], noise, bias, one[1], gain, clamp)
    expected_back = spec.activate_backward(grad, one[1], x, one[0], noise, bias, gain, clamp)
    for mine, theirs in zip((*found, *back), (*expected, *expected_back), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused_with_a_sentence():
    case = on_device(Case(1, 4, 2, 2))
    phases, y, grad = case.maps(torch.float32)
    demodulation, noise, bias, style, gain, clamp = case.factors()
    factors = (demodulation, noise, bias, style, gain, clamp)
    back = (demodulation, noise, bias, gain, clamp)
    with ops.forced_backend("triton"):
        with pytest.raises(ValueError, match="y must be contiguous in the channels-last"):
            synthesis_ops.activate(y.contiguous(), *factors)
        with pytest.raises(ValueError, match="grad must be contiguous"):
            synthesis_ops.activate_backward(grad.contiguous(), style, y, *back)
        with pytest.raises(ValueError, match="even_even does not fit"):
            synthesis_ops.fir_activate(phases[3:] * 4, case.taps, *factors)
        odd = channels_last(y[..., :3].clone())
        with pytest.raises(ValueError, match="x must have an even"):
            synthesis_ops.activate_backward_fir(odd, style, odd, *back, case.taps)
        with pytest.raises(DragError, match="float32 and bfloat16 and float16 maps, not for"):
            synthesis_ops.activate(y.double(), *factors)
