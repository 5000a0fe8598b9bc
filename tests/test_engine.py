"""The fast engine against the reference in float64: features, gradients, regions, pictures, whole drags."""

import copy
import dataclasses
import gc
import types
import weakref

import numpy as np
import pytest
import torch

import draggan_fast as dg
from draggan_fast import engine, regions
from draggan_fast.engine import DTYPES, FastEngine, ReferenceEngine, best_precision, make_engine, resolve
from draggan_fast.frozen import FrozenSynthesis, upsampling_matrix
from draggan_fast.generator import upsample
from draggan_fast.session_file import replay_session

CPU = torch.device("cpu")


def latent(model, rows_differ=True):
    z = torch.from_numpy(np.random.RandomState(5).randn(1, model.config.z_dim)).float()
    ws = model.generator.mapping(z, psi=0.7)
    return ws + 0.1 * torch.randn_like(ws) if rows_differ else ws


def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def in_double(model, ws, block, grad):
    """(feature, gradient of ws, picture) by autograd in float64."""
    generator = dg.Generator(model.config).double().eval()
    generator.load_state_dict(model.generator.state_dict())
    leaf = ws.double().requires_grad_()
    activations = generator.features(leaf, block)
    (gradient,) = torch.autograd.grad(activations.x, leaf, grad.double())
    with torch.no_grad():
        return activations.x.detach(), gradient, generator.render(generator.features(ws.double(), block), ws.double())


# Of the feature, the gradient and the picture; several times what was measured.
LOW_PRECISION_ERRORS = {"fp32": (0, 0, 0), "bf16": (0.02, 0.2, 0.03), "fp16": (3e-3, 0.06, 4e-3)}


@pytest.mark.parametrize("block", [0, 1, 3, 5])
def test_features_gradient_and_picture(nvlabs, block):
    ws = latent(nvlabs)
    side = 4 << block
    grad = torch.randn(1, nvlabs.config.channels[block], side, side) / side
    feature, gradient, picture = in_double(nvlabs, ws, block, grad)
    reference = ReferenceEngine(nvlabs.generator, block, "const")
    plain = reference.whole(ws)
    plain_gradient = reference.gradient(plain, grad)
    for precision, (feature_error, gradient_error, picture_error) in LOW_PRECISION_ERRORS.items():
        synthesis = FrozenSynthesis(nvlabs.generator, block, DTYPES[precision])
        fast = FastEngine(synthesis, precision, nvlabs.image_size)
        whole = fast.whole(ws)
        rows = fast.gradient(whole, grad)
        found = torch.nn.functional.pad(rows, (0, 0, 0, nvlabs.config.num_ws - rows.shape[1]))
        assert rows.shape[1] == 2 * block + 1
        assert not gradient[:, 2 * block + 1 :].any()
        if precision == "fp32":
            # A sign of a leaky ReLU that rounding turns over weighs much more than rounding itself, in both.
            assert relative(whole.view.feature, feature) < max(2 * relative(plain.view.feature, feature), 2e-6)
            assert relative(found, gradient) < max(4 * relative(plain_gradient, gradient), 1e-3)
            assert relative(fast.picture(whole, ws), picture) < 2e-6
        else:
            assert whole.view.feature.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
            assert relative(whole.view.feature, feature) < feature_error
            assert relative(found, gradient) < gradient_error
            assert relative(fast.picture(whole, ws), picture) < picture_error
            tiny = fast.gradient(fast.whole(ws), 1e-12 * grad)  # float16 alone would hold nothing of it
            assert relative(1e12 * tiny.double(), rows.double()) < gradient_error


POINTS = [[(0, 0)], [(255, 255)], [(0, 255), (254, 3)], [(127, 130)], [(100, 77), (104, 80), (3, 200)]]


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("first", [1, 3, 5])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_regions_are_the_whole_seen_through_a_window(nvlabs, points, first, precision):
    ws = latent(nvlabs)
    synthesis = FrozenSynthesis(nvlabs.generator, 5, precision)
    region = regions.region_around(torch.tensor(points, dtype=torch.float32), 11, 128, 256)
    with torch.no_grad():
        whole = synthesis.forward(ws)
        near = regions.forward(synthesis, ws, region, first)
        cut = regions.from_whole(synthesis, whole, region, first)
    tolerance = {torch.float32: 3e-6, torch.bfloat16: 0.02, torch.float16: 3e-3}[precision]
    assert near.feature.shape == (len(points), nvlabs.config.channels[5], region.size, region.size)
    assert relative(near.feature, region.cells(128).crop(whole.feature).double()) < tolerance
    assert torch.equal(cut.feature, region.cells(128).crop(whole.feature))
    grad = torch.randn(near.feature.shape) / region.size
    with torch.no_grad():
        expected = synthesis.backward(whole, region.cells(128).crop_adjoint(grad, whole.feature)).double()
        for trace in (near, cut):
            found = regions.backward(synthesis, trace, grad)
            assert relative(found, expected) < (1e-3 if precision == torch.float32 else 0.2)


def test_crops_hang_over_the_border_as_zeros():
    map_ = torch.arange(1.0, 17.0).reshape(1, 1, 4, 4)
    region = regions.Region(torch.tensor([[-1, 2]]), 3)
    expected = [[0, 9, 10], [0, 13, 14], [0, 0, 0]]
    assert region.cells(4).crop(map_)[0, 0].tolist() == expected
    crops = torch.ones(1, 1, 3, 3)
    assert region.cells(4).crop_adjoint(crops, map_).sum() == 4
    assert region.cells(4).crop_adjoint(crops, map_)[0, 0, 2:, :2].tolist() == [[1, 1], [1, 1]]


def test_a_region_holds_every_cell_that_a_pixel_in_reach_reads():
    for image, resolution in ((256, 128), (1024, 128), (128, 128)):
        reach = 9
        for x in range(0, image, 7):
            region = regions.region_around(torch.tensor([[float(x), 0.0]]), reach, resolution, image)
            pixels = torch.arange(max(x - reach, 0), min(x + reach, image - 1) + 1)
            source = ((pixels + 0.5) * (resolution / image) - 0.5).clamp(0, resolution - 1)
            first = int(region.origin[0, 0])
            assert 0 <= first <= int(source.min().floor())
            assert int(source.max().ceil()) < first + region.size <= resolution


def test_crops_are_chosen_when_they_are_less_work(nvlabs):
    synthesis = FrozenSynthesis(nvlabs.generator, 5, torch.float32)
    few = regions.region_around(torch.full((1, 2), 100.0), 11, 128, 256)
    many = regions.region_around(torch.full((1000, 2), 100.0), 11, 128, 256)
    assert regions.first_block(synthesis, few) is not None
    assert regions.first_block(synthesis, many) is None
    assert regions.region_around(torch.full((1, 2), 10.0), 40, 16, 64) is None


def test_a_gpu_that_launches_no_faster_than_it_computes_computes_the_whole(monkeypatch):
    """Config-f widths, one point at 1024²: the larger the GPU, the fewer blocks on crops."""
    cuda, chosen = torch.device("cuda"), {}
    network = dg.GeneratorConfig(128, 512, 512, (512, 512, 512, 512, 512, 256), (512,) * 8)
    with torch.device("meta"):
        synthesis = FrozenSynthesis(dg.Generator(network), 5, torch.bfloat16)
    region = regions.region_around(torch.full((1, 2), 500.0), 33, 128, 1024)
    gpus = {
        "3050": (20, 8, 6),
        "3090": (82, 8, 6),
        "A100": (108, 8, 0),
        "H200": (132, 9, 0),
        "eight of them": (1056, 9, 0),
    }
    for name, (count, major, minor) in gpus.items():
        properties = types.SimpleNamespace(multi_processor_count=count, major=major, minor=minor)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=properties: found)
        cost = engine.level_cost(cuda, torch.bfloat16)
        chosen[name] = regions.first_block(synthesis, region, cost)
        assert 0 < engine.level_cost(cuda, torch.float32) <= cost
    assert chosen == {"3050": 2, "3090": 3, "A100": 4, "H200": 4, "eight of them": None}
    assert engine.level_cost(CPU, torch.float32) == 0


def dragged(model, engine, mask=False, **changes):
    session = dg.DragSession(model, seed=3, config=model.drag_config(engine=engine, **changes))
    size = model.image_size[0]
    if mask:
        session.set_mask(np.tri(size))
    session.set_points([(size // 3, size // 2), (size - 1, 0)], [(size // 2, size // 3), (size // 2, 5)])
    results = [session.step() for _ in range(6)]
    return session, results


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("changes", [{}, {"space": "w"}, {"reg": 0.3}, {"feature_block": 2}, {"layers": 3}])
def test_a_drag_is_the_references(small, mask, changes):
    session, results = dragged(small, "fast", mask, **changes)
    expected, expected_results = dragged(small, "reference", mask, **changes)
    for found, wanted in zip(results, expected_results):
        assert np.array_equal(found.handle_points, wanted.handle_points)
        assert found.loss == pytest.approx(wanted.loss, rel=3e-4)  # as the golden drags
    assert (session.w_plus - expected.w_plus).abs().max() < 1e-4
    assert np.abs(session.render().astype(int) - expected.render().astype(int)).max() <= 1


def test_rendering_between_steps_changes_nothing(small):
    """With a picture the crops are cut out of the whole features; without, they are computed alone."""
    plain, _ = dragged(small, "fast")
    session = dg.DragSession(small, seed=3, config=small.drag_config(engine="fast"))
    session.set_points([(21, 32), (63, 0)], [(32, 21), (32, 5)])
    for _ in range(6):
        session.render()
        session.step()
        session.locate()
    assert np.array_equal(plain.handle_points, session.handle_points)
    assert (plain.w_plus - session.w_plus).abs().max() < 1e-5


def test_a_long_fir_reaches_beyond_the_halo(small):
    """Such networks are computed whole, and right."""
    long = dataclasses.replace(small.config, resample_filter=(1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0))
    generator = dg.Generator(long).eval()
    generator.load_state_dict(small.generator.state_dict())
    model = dataclasses.replace(small, generator=generator.freeze())
    session, _ = dragged(model, "fast")
    expected, _ = dragged(model, "reference")
    assert (session.w_plus - expected.w_plus).abs().max() < 1e-4
    synthesis = make_engine(generator, CPU, 3, "const", "fast", "fp32").synthesis
    assert regions.first_block(synthesis, regions.Region(torch.zeros(1, 2, dtype=torch.int64), 8)) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_saved_session_is_replayed_whatever_was_rendered(small, tmp_path, precision):
    session = dg.DragSession(dataclasses.replace(small, precision=precision), seed=3)
    session.set_points([(21, 32), (63, 0)], [(32, 21), (32, 5)])
    for index in range(6):
        if index % 2:
            session.locate()
        if index % 3:
            session.render()
        session.step()
    replay = replay_session(session.save(tmp_path / "s.safetensors"), small)
    assert replay.reproduced
    assert replay.max_w_difference == replay.max_loss_difference == 0
    assert (replay.session.engine, replay.session.precision) == ("fast", precision)


def test_a_precision_of_ones_own_outranks_the_recorded_one(small, tmp_path):
    session = dg.DragSession(dataclasses.replace(small, precision="bf16"), seed=3)
    path = session.save(tmp_path / "s.safetensors")
    assert dg.DragSession.load(path, dataclasses.replace(small, precision="auto")).precision == "bf16"
    assert dg.DragSession.load(path, small).precision == "fp32"


def test_packed_weights_die_with_their_network():
    generator = dg.Generator(dg.GeneratorConfig(16, 8, 8, (4, 4, 4), (8,))).freeze()
    packed = weakref.ref(make_engine(generator, CPU, 1, "const", "fast", "fp32").synthesis)
    del generator
    gc.collect()
    assert packed() is None


def test_reduced_matmul_precision_of_the_caller_does_not_matter(small):
    expected, _ = dragged(small, "fast")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        session, _ = dragged(small, "fast")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(session.w_plus, expected.w_plus)


def test_sessions_share_the_packed_weights(small):
    first, second = (make_engine(small.generator, CPU, 3, "const", "fast", "fp32") for _ in range(2))
    assert first.synthesis is second.synthesis
    assert make_engine(small.generator, CPU, 2, "const", "fast", "fp32").synthesis is not first.synthesis


def test_who_computes(small):
    assert resolve(small.generator, CPU, "reference", "auto") == ("reference", "fp32")
    assert resolve(small.generator, CPU, "auto", "auto") == ("fast", best_precision(CPU)[0])
    assert resolve(small.generator, CPU, "fast", "bf16") == ("fast", "bf16")
    with pytest.raises(dg.DragError, match="computes in fp32 only"):
        resolve(small.generator, CPU, "reference", "bf16")
    shortcuts = dg.Generator(
        dg.GeneratorConfig(16, 8, 8, (4, 4, 4), (8,), architecture="resnet"),
    ).freeze()
    assert resolve(shortcuts, CPU, "auto", "auto") == ("reference", "fp32")
    with pytest.raises(dg.DragError, match="resnet"):
        resolve(shortcuts, CPU, "fast", "auto")


def test_auto_is_what_the_gpu_multiplies_fast(small, monkeypatch):
    cuda = torch.device("cuda")
    for capability, precision in {
        (6, 1): "fp32",
        (7, 5): "fp16",
        (8, 0): "bf16",
        (8, 9): "bf16",
        (9, 0): "bf16",
    }.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        found, reason = best_precision(cuda)
        assert found == precision
        assert f"compute capability {capability[0]}.{capability[1]}" in reason
        assert resolve(small.generator, cuda, "auto", "auto") == ("fast", precision)
        assert resolve(small.generator, cuda, "auto", "fp16") == ("fast", "fp16")


def test_float16_is_refused_on_a_cpu(small, golden):
    with pytest.raises(dg.DragError, match="fp16 is for GPUs"):
        dg.load(golden / "rosinality" / "rosinality.pt", device="cpu", precision="fp16")
    with pytest.raises(dg.DragError, match="fp16 is for GPUs"):
        dg.DragSession(dataclasses.replace(small, precision="fp16"), seed=0)


def test_a_session_from_a_gpu_in_float16_goes_on_here(small, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(engine, "refusal", lambda precision, device: None)
        session = dg.DragSession(dataclasses.replace(small, precision="fp16"), seed=3)
        session.set_points([(21, 32)], [(32, 21)])
        session.step()
        path = session.save(tmp_path / "s.safetensors")
    loaded = dg.DragSession.load(path, dataclasses.replace(small, precision="auto"))
    assert loaded.precision == best_precision(CPU)[0]
    assert loaded.step().index == 1
    with pytest.raises(dg.DragError, match="fp16 is for GPUs"):
        replay_session(path, small)


def test_low_precision_arrives_too(monkeypatch):
    """Drags of the embedded model arrive in bf16 as they do in float32 (fifty are in ``draggan-fast eval``), and a
    short one in float16, which takes its time on a CPU."""
    monkeypatch.setattr(engine, "refusal", lambda precision, device: None)
    config = {"fp32": [], "bf16": [], "fp16": []}
    for precision, arrived in config.items():
        model = dataclasses.replace(dg.load("toy-animals", device="cpu"), precision=precision)
        for seed in range(1 if precision == "fp16" else 3):
            session = dg.DragSession(model, seed=seed)
            session.set_points([(64, 74)], [(66, 73) if precision == "fp16" else (72, 70)])
            arrived.append(session.run(max_steps=120).done)
    assert config == {"fp32": [True] * 3, "bf16": [True] * 3, "fp16": [True]}


def test_packed_weights_are_those_of_now(small):
    """What was packed before somebody wrote to the weights, or for settings of long ago, is not kept."""
    network = copy.deepcopy(small.generator)

    def packed(block):
        return make_engine(network, CPU, block, "const", "fast", "fp32").synthesis

    first = packed(3)
    assert packed(3) is first
    with torch.no_grad():
        network.synthesis.const.mul_(2)
    assert packed(3) is not first
    packed(2)
    packed(1)
    assert len(engine._frozen[network]) == engine.KEPT


@pytest.mark.parametrize("taps", [(1.0, 3.0, 3.0, 1.0), (1.0, 2.0, 1.0), (1.0, 1.0), (1.0, 2.0, 5.0, 1.0, 0.3)])
def test_upsampling_by_matrices_is_upsampling(taps):
    image = torch.randn(1, 3, 8, 8)
    along = upsampling_matrix(8, taps)
    torch.testing.assert_close(along @ image @ along.T, upsample(image, taps), atol=2e-6, rtol=0)
