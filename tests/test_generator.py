"""StyleGAN2: truncated against full synthesis, every architecture, label input, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F

from draggan_fast import DragError, Generator, GeneratorConfig
from draggan_fast.generator import upsample, upsampling_conv


def network(seed=0, **changes):
    settings = {
        "resolution": 32,
        "z_dim": 12,
        "w_dim": 20,
        "channels": (16, 12, 10, 6),
        "mapping_widths": (24, 20),
        **changes,
    }
    torch.manual_seed(seed)
    generator = Generator(GeneratorConfig(**settings))
    with torch.no_grad():  # what starts at zero would hide mistakes
        for name, parameter in generator.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
        generator.mapping.w_avg.normal_()
    return generator.eval()


def modulated_conv_per_sample(x, layer, w):
    """The textbook form: weights scaled and demodulated per sample, one group each. Shares nothing with ours."""
    style = layer.affine(w)
    outputs = []
    for sample, s in zip(x, style, strict=True):
        weight = layer.weight * s[None, :, None, None]
        weight = weight * torch.rsqrt(weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8)
        if layer.up:
            y = F.conv_transpose2d(sample[None], weight.transpose(0, 1), stride=2)
            f = torch.tensor(layer.taps, dtype=x.dtype)
            f = torch.outer(f, f) / f.sum() ** 2 * 4
            y = F.conv2d(F.pad(y, (1, 1, 1, 1)).transpose(0, 1), f[None, None]).transpose(0, 1)
        else:
            y = F.conv2d(sample[None], weight, padding=1)
        outputs.append(y)
    y = torch.cat(outputs) + layer.noise_const * layer.noise_strength + layer.bias[:, None, None]
    return F.leaky_relu(y, 0.2) * math.sqrt(2)


@pytest.mark.parametrize("name", ["conv0", "conv1"])
def test_layer_equals_the_textbook_form(name):
    generator = network().double()
    layer = getattr(generator.synthesis.blocks[2], name)
    x = torch.randn(3, layer.weight.shape[1], 8 if layer.up else 16, 8 if layer.up else 16, dtype=torch.float64)
    w = torch.randn(3, 20, dtype=torch.float64)
    assert torch.allclose(layer(x, w), modulated_conv_per_sample(x, layer, w), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("taps", [(1.0, 3.0, 3.0, 1.0), (1.0, 1.0), (1.0, 2.0, 1.0), (1.0, 2.0, 4.0, 3.0, 5.0)])
def test_upsampling_filters(taps):
    """Both ×2 paths against zero insertion and a full convolution, for symmetric and asymmetric filters."""
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    n = len(taps)
    f = torch.tensor(taps, dtype=torch.float64)
    f = torch.outer(f, f) / f.sum() ** 2 * 4

    def zero_insert(t):
        out = t.new_zeros(*t.shape[:2], 2 * t.shape[2], 2 * t.shape[3])
        out[..., ::2, ::2] = t
        return out

    def fir(t, before, after):  # true convolution, one channel at a time
        t = F.pad(t, (before, after, before, after))
        return F.conv2d(t.flatten(0, 1)[:, None], f.flip(0, 1)[None, None]).unflatten(0, t.shape[:2])[:, :, 0]

    expected = fir(zero_insert(x), (n + 1) // 2, (n - 2) // 2)
    assert torch.allclose(upsample(x, taps), expected, atol=1e-12)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    convolved = F.conv2d(F.pad(zero_insert(x), (2, 1, 2, 1)), weight.flip(2, 3))  # 2h + 1 wide, as transposed
    expected = fir(convolved, (n + 1) // 2 - 1, (n - 2) // 2)
    assert torch.allclose(upsampling_conv(x, weight, taps), expected, atol=1e-12)


@pytest.mark.parametrize("architecture", ["skip", "orig", "resnet"])
@pytest.mark.parametrize("noise", ["const", "none"])
def test_features_and_render_give_the_full_picture_bit_for_bit(architecture, noise):
    generator = network(architecture=architecture, conv_clamp=1.5)
    ws = generator.mapping(torch.randn(2, 12))
    full = generator.synthesis(ws, noise)
    assert full.shape == (2, 3, 32, 32)
    for block in range(4):
        activations = generator.features(ws, block, noise)
        assert activations.block == block
        assert activations.x.shape == (2, (16, 12, 10, 6)[block], 4 << block, 4 << block)
        assert torch.equal(generator.render(activations, ws), full)


@pytest.mark.parametrize("architecture", ["skip", "orig", "resnet"])
def test_features_compute_only_what_their_block_needs(architecture):
    generator = network(architecture=architecture)
    called = []
    for name, module in generator.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: called.append(name))
    ws = generator.mapping(torch.randn(1, 12)).detach().requires_grad_()
    called.clear()
    feature = generator.features(ws, 1).x
    assert not any("to_rgb" in name or "blocks.2" in name or "blocks.3" in name for name in called)
    feature.square().sum().backward()
    assert ws.grad[0, :3].abs().amin(dim=1).gt(0).all()
    assert not ws.grad[0, 3:].any()


def test_frozen_network_computes_the_same():
    generator = network()
    ws = generator.mapping(torch.randn(2, 12)).detach()
    before = generator.synthesis(ws)
    generator.freeze()
    assert torch.equal(generator.synthesis(ws), before)
    assert not generator.synthesis(ws).requires_grad


def test_clamp_is_obeyed():
    generator = network(conv_clamp=0.25)
    activations = generator.features(generator.mapping(torch.randn(2, 12)), 3)
    assert all(x.abs().max() == 0.25 for x in activations.outputs)


def test_random_noise_varies_and_constant_noise_does_not():
    generator = network()
    ws = generator.mapping(torch.randn(1, 12))
    assert torch.equal(generator.synthesis(ws), generator.synthesis(ws))
    assert not torch.equal(generator.synthesis(ws, "random"), generator.synthesis(ws, "random"))


def test_truncation():
    generator = network()
    z = torch.randn(3, 12)
    plain, half = generator.mapping(z), generator.mapping(z, psi=0.5, cutoff=3)
    average = generator.mapping.w_avg
    assert torch.allclose(half[:, :3], average + 0.5 * (plain[:, :3] - average), atol=1e-6)
    assert torch.equal(half[:, 3:], plain[:, 3:])


def test_labels():
    generator = network(c_dim=4, embed_dim=20)
    z = torch.randn(2, 12)
    one, other = (generator.mapping(z, F.one_hot(torch.tensor([i, i]), 4)) for i in (0, 3))
    assert not torch.allclose(one, other)
    with pytest.raises(DragError, match="class-conditional"):
        generator.mapping(z)
    with pytest.raises(DragError, match="unconditional"):
        network().mapping(z, torch.ones(2, 4))


@pytest.mark.parametrize("resolution", [4, 8, 64])
def test_sizes_and_widths(resolution):
    blocks = resolution.bit_length() - 2
    generator = network(
        resolution=resolution, channels=tuple(range(3, 3 + blocks)), z_dim=5, w_dim=7, mapping_widths=(7,)
    )
    assert generator(torch.randn(3, 5)).shape == (3, 3, resolution, resolution)


def test_config_survives_json_and_names_its_tensors():
    config = network(architecture="resnet", c_dim=4, embed_dim=20).config
    assert GeneratorConfig.from_json(config.to_json()) == config
    shapes = config.tensor_shapes()
    assert shapes["synthesis.blocks.1.skip.weight"] == (12, 16, 1, 1)
    assert {n: tuple(t.shape) for n, t in Generator(config).state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 48}, "power of two"),
        ({"resolution": 2048}, "power of two"),
        ({"resolution": True}, "power of two"),
        ({"channels": (1, 2)}, "4 blocks"),
        ({"channels": (1, 2, 3, 0)}, "positive integers"),
        ({"z_dim": 0}, "z_dim"),
        ({"w_dim": 99}, "w_dim is 99"),
        ({"c_dim": 3}, "zero together"),
        ({"architecture": "dense"}, "architecture"),
        ({"conv_clamp": float("nan")}, "conv_clamp"),
        ({"resample_filter": (1.0,)}, "resample_filter"),
        ({"resample_filter": (1.0, -1.0)}, "resample_filter"),
    ],
)
def test_bad_configurations(change, message):
    good = network().config.to_json()
    with pytest.raises(DragError, match=message):
        GeneratorConfig.from_json({**good, **change})


def test_bad_configuration_documents():
    good = network().config.to_json()
    for bad in (None, [], {**good, "surprise": 1}, {k: v for k, v in good.items() if k != "z_dim"}):
        with pytest.raises(DragError):
            GeneratorConfig.from_json(bad)


def test_bad_input():
    generator = network()
    ws = generator.mapping(torch.randn(1, 12))
    with pytest.raises(DragError, match="z must have the shape"):
        generator.mapping(torch.randn(1, 13))
    with pytest.raises(DragError, match="w_plus must have the shape"):
        generator.synthesis(ws[:, :3])
    with pytest.raises(DragError, match="feature block 4"):
        generator.features(ws, 4)
    with pytest.raises(DragError, match="noise must be"):
        generator.synthesis(ws, "loud")
