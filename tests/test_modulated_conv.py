"""The passes around the convolutions: the specification against autograd, the compiled passes against it."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from draggan_fast.kernels import modulated_conv as spec

from draggan_fast import ops, synthesis_ops
from draggan_fast.errors import DragError

LEVELS = ops.compiled_parts().get("levels", [])
NEEDS_LIBRARY = pytest.mark.skipif(not LEVELS, reason="draggan_fast._C is not compiled here")
GAIN = 2**0.5
TAPS = (1.0, 3.0, 3.0, 1.0)
CHANNELS_LAST = torch.channels_last


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def channels_last(x):
    return x.contiguous(memory_format=CHANNELS_LAST)


class Case:
    """One call's arguments, all in float64, and the same as the passes get them."""

    def __init__(self, batch, channels, h, w, noise=True, style=True, clamp=None, taps=TAPS):
        self.taps, self.clamp = taps, clamp
        self.phases = tuple(normal(batch, channels, h + i, w + j) for i in (1, 0) for j in (1, 0))
        self.y = normal(batch, channels, 2 * h, 2 * w)
        self.grad = normal(batch, channels, 2 * h, 2 * w)
        self.demodulation = normal(batch, channels).abs() + 0.5
        self.bias = normal(channels)
        self.noise = normal(2 * h, 2 * w) if noise else None
        self.style = normal(batch, channels) if style else None

    def factors(self, dtype=torch.float32):
        """demodulation, noise, bias, style, gain, clamp."""
        tensors = (self.demodulation, self.noise, self.bias, self.style)
        return (*(None if t is None else t.to(dtype) for t in tensors), GAIN, self.clamp)

    def maps(self, dtype):
        """phases, y, grad."""
        return tuple(channels_last(p.to(dtype)) for p in self.phases), *(
            channels_last(t.to(dtype)) for t in (self.y, self.grad)
        )


def run_all(module, case, dtype, factors_dtype, x):
    """Every result of the four passes, by name; x: the map that both backward passes start from."""
    phases, y, grad = case.maps(dtype)
    factors = case.factors(factors_dtype)
    demodulation, noise, bias, style, gain, clamp = factors
    back = (grad, style, x.to(dtype), demodulation, noise, bias, gain, clamp)
    results = {}
    results["x"], results["x·style"] = module.activate(y, *factors)
    results["grad_y"], results["grad_style"], results["grad_demodulation"] = module.activate_backward(*back)
    results["fir x"], results["fir x·style"] = module.fir_activate(phases, case.taps, *factors)
    grads, results["fir grad_style"], results["fir grad_demodulation"] = module.activate_backward_fir(*back, case.taps)
    results |= {f"grad of phase {i}": grad for i, grad in enumerate(grads)}
    return results


def stored_x(case, dtype):
    """A forward pass's x as the map that a backward pass gets."""
    return channels_last(spec.activate(case.y, *case.factors(torch.float64))[0].to(dtype))


def forward(phases_or_y, demodulation, noise, bias, style, gain, clamp, taps=None):
    """x·style by the plain formula, for autograd; the FIR as one dense two-dimensional correlation."""
    y = phases_or_y
    if taps is not None:
        channels, kernel = y[0].shape[1], torch.tensor(taps, dtype=torch.float64).flip(0)
        kernel = 4 * torch.outer(kernel, kernel) / kernel.sum() ** 2
        even = torch.stack(
            [F.pad(phase, (0, y[0].shape[3] - phase.shape[3], 0, y[0].shape[2] - phase.shape[2])) for phase in y], dim=2
        )
        whole = F.pixel_shuffle(even.flatten(1, 2), 2)[..., :-1, :-1]
        before, after = (len(taps) + 1) // 2 - 1, (len(taps) - 2) // 2
        whole = F.pad(whole, (before, after, before, after))
        y = F.conv2d(whole, kernel.expand(channels, 1, -1, -1), groups=channels)
    z = y * demodulation[:, :, None, None] + bias[:, None, None]
    x = F.leaky_relu(z if noise is None else z + noise, 0.2) * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return x if style is None else x * style[:, :, None, None]


CASES = {
    "plain": {},
    "no noise": {"noise": False},
    "no style": {"style": False},
    "clamp": {"clamp": 1.25},
    "bare": {"noise": False, "style": False},
    "even taps": {"taps": (1.0, 2.0, 0.5, 0.3, -0.2, 0.1)},
    "odd taps": {"taps": (1.0, 2.0, 0.5)},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_specification_is_the_transpose_that_autograd_finds(options):
    case = Case(2, 3, 2, 3, **options)
    demodulation, noise, bias, style, gain, clamp = case.factors(torch.float64)
    for phases in (None, case.phases):
        leaves = [demodulation.requires_grad_(), *([style.requires_grad_()] if style is not None else [])]
        inputs = [p.clone().requires_grad_() for p in (phases or (case.y,))]
        taps = None if phases is None else case.taps
        out = forward(inputs if phases else inputs[0], demodulation, noise, bias, style, gain, clamp, taps)
        expected = torch.autograd.grad(out, [*inputs, *leaves], case.grad)
        with torch.no_grad():
            factors = (demodulation, noise, bias, style, gain, clamp)
            if phases is None:
                x, scaled = spec.activate(case.y, *factors)
                grad_y, *sums = spec.activate_backward(case.grad, style, x, *factors[:3], gain, clamp)
                grads = [grad_y]
            else:
                x, scaled = spec.fir_activate(phases, case.taps, *factors)
                found, *sums = spec.activate_backward_fir(case.grad, style, x, *factors[:3], gain, clamp, case.taps)
                grads = list(found)
        torch.testing.assert_close(scaled, out.detach())
        got = [*grads, sums[1], *([sums[0]] if style is not None else [])]
        for mine, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(mine, theirs)


SHAPES = [(1, 32, 4, 4), (2, 37, 3, 2), (50, 1, 1, 1), (1, 16, 2, 5), (1, 200, 9, 17), (2, 96, 17, 20)]


@NEEDS_LIBRARY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("level", LEVELS)
def test_compiled_passes_are_as_exact_as_the_specification(level, shape, dtype, vector_level):
    """Error against float64 ≤ 2 × the specification's in the same dtype, or two float32 roundings of the largest."""
    vector_level(level)
    for options in ({}, {"clamp": 0.7}, {"noise": False, "style": False}):
        case = Case(*shape, **options)
        for values in (*case.phases, case.y, case.grad, case.demodulation, case.bias, case.noise, case.style):
            if values is not None:  # what the passes read is exact in their dtype
                values.copy_(values.to(dtype))
        x = stored_x(case, dtype)
        exact = run_all(spec, case, torch.float64, torch.float64, clamped_alike(x, case.clamp))
        case.clamp, clamp = None, case.clamp
        unclamped = run_all(spec, case, torch.float64, torch.float64, x)  # how large what is rounded is
        case.clamp = clamp
        plain = run_all(spec, case, dtype, torch.float32, x)
        with ops.forced_backend("cpp"):
            fast = run_all(synthesis_ops, case, dtype, torch.float32, x)
        for name, expected in exact.items():
            assert fast[name].dtype == plain[name].dtype, name
            assert fast[name].is_contiguous(memory_format=CHANNELS_LAST) or fast[name].ndim == 2, name
            least = 2**-22 * unclamped[name].abs().max().item()
            allowed = max(2 * (plain[name].double() - expected).abs().max().item(), least)
            assert (fast[name].double() - expected).abs().max().item() <= allowed, name


def clamped_alike(x, clamp):
    """In float64, with those values at the clamp that the stored x has at its own: bfloat16 may round clamp down."""
    if clamp is None:
        return x.double()
    return torch.where(x.abs() >= torch.tensor(clamp, dtype=x.dtype), x.double().sign() * clamp, x.double())


@NEEDS_LIBRARY
@pytest.mark.parametrize("count", range(2, 17))
def test_any_number_of_taps(count):
    case = Case(1, 8, 3, 2, taps=tuple(normal(count).abs().tolist()))
    x = stored_x(case, torch.float32)
    exact = run_all(spec, case, torch.float64, torch.float64, x)
    with ops.forced_backend("cpp"):
        fast = run_all(synthesis_ops, case, torch.float32, torch.float32, x)
    for name, expected in exact.items():
        torch.testing.assert_close(fast[name].double(), expected, rtol=1e-5, atol=1e-5, msg=name)


@NEEDS_LIBRARY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_the_thread_count(dtype):
    case = Case(2, 200, 24, 20)
    x = stored_x(case, dtype)
    runs = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with ops.forced_backend("cpp"):
                runs.append(run_all(synthesis_ops, case, dtype, torch.float32, x))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        for name, values in runs[0].items():
            assert torch.equal(values, other[name]), name


@NEEDS_LIBRARY
@pytest.mark.parametrize("level", LEVELS)
def test_bfloat16_is_rounded_as_pytorch_rounds(level, vector_level):
    """Halves to even, overflow to infinity, subnormals; with factors of one the pass only rounds."""
    vector_level(level)
    upper = torch.arange(1 << 16, dtype=torch.int32).repeat_interleave(4) << 16
    lower = torch.tensor([0, 0x7FFF, 0x8000, 0x8001], dtype=torch.int32).repeat(1 << 16)
    values = (upper + lower).view(torch.float32)
    for style in values[~values.isnan()].split(1 << 16):
        y = channels_last(torch.ones(1, len(style), 1, 1, dtype=torch.bfloat16))
        ones, zeros = torch.ones(1, len(style)), torch.zeros(len(style))
        with ops.forced_backend("cpp"):
            _, scaled = synthesis_ops.activate(y, ones, None, zeros, style[None], 1.0, None)
        assert torch.equal(scaled[0, :, 0, 0].view(torch.int16), style.bfloat16().view(torch.int16))


@NEEDS_LIBRARY
@pytest.mark.parametrize("where", ["y", "noise", "bias", "style", "demodulation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_nan_stays_one_whatever_its_bits(dtype, where):
    worst = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)  # rounding its bits would give a number
    case = Case(1, 40, 2, 2, clamp=2.0)
    y = case.maps(dtype)[1]
    factors = dict(zip(("demodulation", "noise", "bias", "style"), case.factors()[:4], strict=True), y=y)
    factors[where][(0,) * factors[where].ndim] = worst.to(factors[where].dtype)
    with ops.forced_backend("cpp"):
        x, scaled = synthesis_ops.activate(**factors, gain=GAIN, clamp=case.clamp)
    expected = spec.activate(**factors, gain=GAIN, clamp=case.clamp)
    assert torch.equal(x.isnan(), expected[0].isnan())
    assert torch.equal(scaled.isnan(), expected[1].isnan())
    assert scaled.isnan().any()


@NEEDS_LIBRARY
def test_what_does_not_fit_is_refused_with_a_sentence():
    case = Case(1, 4, 2, 2)
    phases, y, grad = case.maps(torch.float32)
    demodulation, noise, bias, style, gain, clamp = case.factors()
    native = torch.ops.draggan_fast_native

    def refused(message, call, *arguments):
        with pytest.raises(RuntimeError, match=message):
            call(*arguments)

    refused("y must be contiguous in the channels-last", native.activate, y.contiguous(), *case.factors())
    refused("y must be float32 or bfloat16", native.activate, y.half(), *case.factors())
    refused("y must have the shape", native.activate, y[0], *case.factors())
    refused("bias must be", native.activate, y, demodulation, noise, bias[:2], style, gain, clamp)
    refused("noise must be", native.activate, y, demodulation, noise[:1], bias, style, gain, clamp)
    refused("style must be", native.activate, y, demodulation, noise, bias, style.int(), gain, clamp)
    refused("demodulation must be", native.activate, y, demodulation[0], noise, bias, style, gain, clamp)
    refused("gain must be positive", native.activate, y, demodulation, noise, bias, style, 0.0, clamp)
    refused("clamp must be positive", native.activate, y, demodulation, noise, bias, style, gain, -1.0)
    back = (style, y, demodulation, noise, bias, gain, clamp)
    refused("grad must be", native.activate_backward, grad.bfloat16(), *back)
    refused("even_even must be", native.fir_activate, *phases[3:] * 4, list(TAPS), *case.factors())
    refused("taps must be 2 to 16", native.fir_activate, *phases, [1.0], *case.factors())
    refused("taps must be finite", native.fir_activate, *phases, [1.0, -1.0], *case.factors())
    odd = channels_last(y[..., :3].clone())
    refused("x must have an even", native.activate_backward_fir, odd, style, odd, *back[2:], list(TAPS))


def test_the_backend_is_chosen_as_for_the_drag_ops():
    assert synthesis_ops.backend() == ("cpp" if LEVELS else "reference")
    assert synthesis_ops.backend(dtype=torch.float64) == "reference"
    on_gpu = "triton" if importlib.util.find_spec("triton") else "reference"
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert synthesis_ops.backend("cuda", dtype) == on_gpu
    assert synthesis_ops.backend("cuda", torch.float64) == "reference"
    with ops.forced_backend("reference"):
        assert synthesis_ops.backend() == "reference"
        case = Case(1, 4, 2, 2)
        factors = case.factors()
        mine = synthesis_ops.activate(case.maps(torch.float32)[1], *factors)
        assert torch.equal(mine[1], spec.activate(case.maps(torch.float32)[1], *factors)[1])


@NEEDS_LIBRARY
def test_a_forced_backend_that_cannot_serve_is_an_error():
    with ops.forced_backend("cpp"), pytest.raises(DragError, match="float32 and bfloat16"):
        synthesis_ops.backend(dtype=torch.float16)


def test_a_backend_that_has_only_drag_ops_leaves_the_choice(monkeypatch):
    chosen = synthesis_ops.backend()
    monkeypatch.setenv(ops.ENVIRONMENT, "cuda")
    assert synthesis_ops.backend() == chosen
    monkeypatch.setenv(ops.ENVIRONMENT, "cpp")
    with pytest.raises(DragError, match="float32 and bfloat16 maps, not for"):
        synthesis_ops.backend(dtype=torch.float16)
