"""Styles, the latent's gradient and ToRGB: the specification against autograd, the compiled ones against it."""

import pytest
import torch
from draggan_fast.kernels import styles as spec

import draggan_fast as dg
from draggan_fast import ops, synthesis_ops

LEVELS = ops.compiled_parts().get("levels", [])
NEEDS_LIBRARY = pytest.mark.skipif(not LEVELS, reason="draggan_fast._C is not compiled here")
LAYERS = ((5, 7), (7, 16), (16, 33), (33, 2), (64, 48))  # (C, C') of each


def matrices(w_dim, dtype=torch.float32):
    made = [
        (torch.randn(c, w_dim) / w_dim**0.5, torch.ones(c) + 0.1 * torch.randn(c), torch.rand(c_out, c) / c)
        for c, c_out in LAYERS
    ]
    return synthesis_ops.StyleMatrices(*([t.to(dtype) for t in part] for part in zip(*made)))


@pytest.mark.parametrize("divided", [False, True])
def test_the_latent_gradient_is_autograds(divided):
    given = matrices(9, torch.float64)
    w_plus = torch.randn(2, len(LAYERS) + 3, 9, dtype=torch.float64, requires_grad=True)
    styles, demodulations = spec.modulation(w_plus, 2, *given)
    to_styles = [torch.randn_like(style) for style in styles]
    to_demodulations = [torch.randn_like(demodulation) for demodulation in demodulations]
    (expected,) = torch.autograd.grad([*styles, *demodulations], w_plus, [*to_styles, *to_demodulations])
    divisors = None
    if divided:  # as if layers had been given style / k and demodulation · k
        divisors = [torch.rand(2, 1, dtype=torch.float64) + 0.5 for _ in LAYERS]
        styles = [style / by for style, by in zip(styles, divisors)]
        demodulations = [demodulation * by for demodulation, by in zip(demodulations, divisors)]
        to_styles = [grad * by for grad, by in zip(to_styles, divisors)]
        to_demodulations = [grad / by for grad, by in zip(to_demodulations, divisors)]
    found = spec.latent_gradient(
        to_styles, to_demodulations, styles, demodulations, given.energies, given.affines, divisors
    )
    torch.testing.assert_close(found, expected[:, 2 : 2 + len(LAYERS)])
    assert not expected[:, :2].any()


@NEEDS_LIBRARY
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("batch", "w_dim"), [(1, 72), (3, 5)])
def test_the_compiled_passes_compute_what_is_specified(batch, w_dim, level, vector_level):
    vector_level(level)
    given = matrices(w_dim)
    w_plus = torch.randn(batch, len(LAYERS) + 1, w_dim)
    exact = synthesis_ops.StyleMatrices(*([t.double() for t in part] for part in given))
    with ops.forced_backend("cpp"):
        styles, demodulations = synthesis_ops.modulation(w_plus, 1, given)
    for found, expected in zip((styles, demodulations), spec.modulation(w_plus.double(), 1, *exact)):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), other, atol=2e-6 * float(other.abs().max()), rtol=0)
    to_styles, to_demodulations = ([torch.randn_like(t) for t in part] for part in (styles, demodulations))
    wide = [[t.double() for t in part] for part in (to_styles, to_demodulations, styles, demodulations)]
    expected = spec.latent_gradient(*wide, exact.energies, exact.affines)
    with ops.forced_backend("cpp"):
        found = synthesis_ops.latent_gradient(to_styles, to_demodulations, (styles, demodulations, None), given)
    torch.testing.assert_close(found.double(), expected, atol=2e-6 * float(expected.abs().max()), rtol=0)


@NEEDS_LIBRARY
def test_no_modulation_depends_on_the_thread_count():
    given = synthesis_ops.StyleMatrices(
        [torch.randn(512, 512) for _ in range(4)], [torch.zeros(512)] * 4, [torch.rand(512, 512) for _ in range(4)]
    )
    w_plus, before, found = torch.randn(1, 4, 512), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            styles, demodulations = synthesis_ops.modulation(w_plus, 0, given)
            gradient = synthesis_ops.latent_gradient(styles, demodulations, (styles, demodulations, None), given)
            found.append(torch.cat([*styles, *demodulations, gradient.flatten(0, 1)]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@NEEDS_LIBRARY
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w, m: (w.double(), 0, *m), "w_plus"),
        (lambda w, m: (w[0], 0, *m), "w_plus"),
        (lambda w, m: (w, 2, *m), "rows 2 to 6"),
        (lambda w, m: (w, -1, *m), "rows -1"),
        (lambda w, m: (w, 0, m.affines, m.biases[:-1], m.energies), "as many"),
        (lambda w, m: (w, 0, m.affines, [b[:-1] for b in m.biases], m.energies), "a bias"),
        (lambda w, m: (w, 0, m.affines, m.biases, [e.double() for e in m.energies]), "an energy"),
        (lambda w, m: (w[..., :-1].contiguous(), 0, *m), "an affine"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(change, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        torch.ops.draggan_fast_native.modulation(*change(torch.randn(1, 6, 8), matrices(8)))


@NEEDS_LIBRARY
def test_gradients_that_do_not_fit_are_refused():
    given = matrices(8)
    styles, demodulations = synthesis_ops.modulation(torch.randn(1, 5, 8), 0, given)
    native = torch.ops.draggan_fast_native.latent_gradient
    with pytest.raises(RuntimeError, match="the gradient of a style"):
        native([s[:, 1:] for s in styles], demodulations, styles, demodulations, given.energies, given.affines)
    with pytest.raises(RuntimeError, match="as long as"):
        native(styles, demodulations[1:], styles, demodulations, given.energies, given.affines)


# --- ToRGB ----------------------------------------------------------------------------------------------------------


@NEEDS_LIBRARY
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("colours", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("clamp", [None, 0.7])
def test_colours_are_the_weighted_sums_of_each_cell(colours, clamp, level, vector_level):
    vector_level(level)
    x = torch.randn(2, 37, 5, 6).contiguous(memory_format=torch.channels_last)
    weight, bias, image = torch.randn(2, colours, 37) / 6, torch.randn(colours), torch.randn(2, colours, 5, 6)
    expected = spec.to_rgb(x.double(), weight.double(), bias.double(), clamp)
    assert (expected.abs().max() <= 0.7) == (clamp is not None)
    for backend in ("cpp", "reference"):
        with ops.forced_backend(backend):
            alone = synthesis_ops.to_rgb(x, weight, bias, clamp, None)
            added = synthesis_ops.to_rgb(x, weight, bias, clamp, image.clone())
        torch.testing.assert_close(alone, expected.float(), atol=2e-6, rtol=0)
        torch.testing.assert_close(added, expected.float() + image, atol=2e-6, rtol=0)


@NEEDS_LIBRARY
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x, w, b, i: (x.contiguous(), w, b, None, i), "channels-last"),
        (lambda x, w, b, i: (x, w[:, :, 1:], b, None, i), "weight"),
        (lambda x, w, b, i: (x, w, b[:2], None, i), "weight"),
        (lambda x, w, b, i: (x, w, b.double(), None, i), "bias"),
        (lambda x, w, b, i: (x, w, b, None, i[..., 1:]), "image"),
        (lambda x, w, b, i: (x, w, b, None, i.transpose(2, 3)), "image"),
    ],
)
def test_colours_that_do_not_fit_are_refused(change, sentence):
    x = torch.randn(1, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match=sentence):
        torch.ops.draggan_fast_native.add_to_rgb(
            *change(x, torch.randn(1, 3, 8), torch.randn(3), torch.randn(1, 3, 4, 4))
        )


def test_a_picture_that_is_not_finite_is_refused():
    from draggan_fast.engine import as_picture

    for value in (float("nan"), float("inf"), float("-inf")):
        image = torch.zeros(1, 3, 4, 4)
        image[0, 1, 2, 3] = value
        with pytest.raises(dg.DragError, match="not finite"):
            as_picture(image)
    image[0, 1, 2, 2] = float("inf")  # beside −∞
    with pytest.raises(dg.DragError, match="not finite"):
        as_picture(image)
