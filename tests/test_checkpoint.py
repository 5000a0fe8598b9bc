"""Loading every family of network files, and saving our own: numbers against recorded ones, structure by structure."""

import json
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file

from draggan_fast.checkpoint import Checkpoint, content_hash, load_checkpoint, save_checkpoint
from draggan_fast.errors import CheckpointError, DragError
from draggan_fast.generator import Generator
from tests import checkpoint_files as files

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = {
    "nvidia-pytorch": GOLDEN / "nvlabs" / "nvlabs.pkl",
    "nvidia-tensorflow": GOLDEN / "tf" / "tf_legacy.pkl",
    "rosinality": GOLDEN / "rosinality" / "rosinality.pt",
}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def golden():
    """family → (checkpoint, generator, recorded numbers), each loaded once."""
    loaded = {}

    def get(family):
        if family not in loaded:
            checkpoint = load_checkpoint(FAMILIES[family])
            recorded = load_file(FAMILIES[family].parent / "synthesis.safetensors")
            loaded[family] = checkpoint, Generator.from_checkpoint(checkpoint), recorded
        return loaded[family]

    return get


def load(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    return load_checkpoint(path)


def assert_same(checkpoint, config, tensors, rtol=1e-5):
    assert checkpoint.config == config
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        found = checkpoint.tensors[name]
        assert found.dtype == torch.float32, name
        assert found.is_contiguous(), name
        assert found.shape == tensor.shape, name
        assert torch.allclose(found, tensor, rtol=rtol, atol=1e-6), name


def assert_close(found, recorded):
    assert found.shape == recorded.shape
    assert (found - recorded).abs().max() <= TOLERANCE


# Recorded numbers


@torch.no_grad()
def test_nvidia_pytorch_computes_the_recorded_numbers(golden):
    checkpoint, g, recorded = golden("nvidia-pytorch")
    assert checkpoint.family == "nvidia-pytorch"
    assert checkpoint.config.channels == (32, 32, 32, 32, 16, 8, 4)
    assert checkpoint.config.conv_clamp == 256
    z = recorded["z"].float()
    assert_close(g.mapping(z), recorded["w_psi1"])
    assert_close(g.mapping(z, psi=0.7), recorded["w_psi07"])
    assert_close(g.mapping(z, psi=0.5, cutoff=8), recorded["w_psi05_cutoff8"])
    ws = recorded["w_psi07"][:1]
    assert_close(g.features(ws, 2).x, recorded["feature_2"])
    activations = g.features(ws, 5)
    assert_close(activations.x, recorded["feature_5"])
    assert_close(g.render(activations, ws), recorded["image_const"])
    assert_close(g.synthesis(ws, noise="none"), recorded["image_none"])


@torch.no_grad()
def test_nvidia_tensorflow_computes_the_recorded_numbers(golden):
    checkpoint, g, recorded = golden("nvidia-tensorflow")
    assert checkpoint.family == "nvidia-tensorflow"
    assert checkpoint.config.channels == (16,) * 5
    ws = g.mapping(recorded["z"].float(), psi=0.7)
    assert_close(ws, recorded["w_psi07"])
    assert_close(g.features(ws, 3).x, recorded["feature_3"])
    assert_close(g.synthesis(ws), recorded["image_const"])


@torch.no_grad()
def test_rosinality_computes_the_recorded_numbers(golden):
    checkpoint, g, recorded = golden("rosinality")
    assert checkpoint.family == "rosinality"
    assert checkpoint.config.channels == (16,) * 5
    z = recorded["z"].float()
    assert_close(g.mapping(z)[:, 0], recorded["w"])
    assert_close(g.synthesis(g.mapping(z, psi=0.7)), recorded["image_psi07_const"])


# Every structure of every family

CONFIGS = {
    "skip": {},
    "orig": {"architecture": "orig"},
    "resnet": {"architecture": "resnet"},
    "conditional": {"c_dim": 3, "embed_dim": 5, "conv_clamp": 256.0},
    "no-noise": {"use_noise": False},
    "other-filter": {"resample_filter": (1.0, 2.0, 1.0)},
    "no-mapping-layers": {"mapping_widths": (), "z_dim": 8},
    "one-block": {"resolution": 4, "channels": (6,)},
    "grey": {"image_channels": 1},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", CONFIGS)
def test_nvidia_pytorch_structures(tmp_path, name, protocol):
    config, tensors = files.small_network(**CONFIGS[name])
    found = load(tmp_path, files.dump(files.nvidia_file(config, tensors), protocol))
    assert found.family == "nvidia-pytorch"
    assert_same(found, config, tensors)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"no-noise"}))
def test_nvidia_tensorflow_structures(tmp_path, name, protocol):
    config, tensors = files.small_network(**CONFIGS[name])
    found = load(tmp_path, files.dump(files.tensorflow_file(config, tensors), protocol))
    assert found.family == "nvidia-tensorflow"
    assert_same(found, config, tensors)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["skip", "other-filter", "one-block", "grey"])
def test_rosinality_structures(tmp_path, name, zipped):
    config, tensors = files.small_network(**CONFIGS[name])
    found = load(tmp_path, files.save(files.rosinality_file(config, tensors), zipped))
    assert found.family == "rosinality"
    assert_same(found, config, tensors)


def test_a_bare_module_and_a_saved_module_load_too(tmp_path):
    config, tensors = files.small_network()
    generator = files.nvidia_generator(config, tensors)
    assert_same(load(tmp_path, files.dump(generator)), config, tensors)
    assert_same(load(tmp_path, files.save({"G_ema": generator})), config, tensors)
    assert_same(load(tmp_path, files.dump(files.tensorflow_generator(config, tensors))), config, tensors)


def test_training_snapshots_with_everything_in_them(tmp_path):
    """Discriminator, optimiser, arguments: read past, however they are nested."""
    config, tensors = files.small_network()
    extra = {
        "D": files.Module("Discriminator", {"weight": torch.ones(2, 2)}, modules={"list": torch.nn.ModuleList()}),
        "training_set_kwargs": files.EasyDict(size=(1, 2), kind=np.dtype("f4"), device=torch.device("cpu")),
        "types": [torch.float32, torch.Size([1]), {"a"}, np.arange(3), np.float64(1)],
    }
    assert_same(load(tmp_path, files.dump(files.nvidia_file(config, tensors, **extra))), config, tensors)
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.Adam([parameter]).state_dict()
    snapshot = {**files.rosinality_file(config, tensors), "g_optim": optimiser, "d": {"x": parameter}}
    assert_same(load(tmp_path, files.save(snapshot)), config, tensors)


def test_views_of_a_shared_storage(tmp_path):
    config, tensors = files.small_network()
    wide = torch.randn(9, 14)
    tensors["mapping.layers.0.weight"] = wide[:, ::2] * (files.LR / 7**0.5)
    value = files.rosinality_file(config, tensors)
    value["g_ema"]["style.1.weight"] = wide[:, ::2]
    for zipped in (True, False):
        assert_same(load(tmp_path, files.save(value, zipped)), config, tensors)


def test_half_precision_weights_are_read_as_float32(tmp_path):
    config, tensors = files.small_network()
    tensors = {name: t.half().float() for name, t in tensors.items()}
    value = files.nvidia_generator(config, tensors)
    block = value._modules["synthesis"]._modules["b8"]._modules["conv1"]
    block._parameters["weight"] = torch.nn.Parameter(tensors["synthesis.blocks.1.conv1.weight"].half())
    assert_same(load(tmp_path, files.dump(value)), config, tensors)


def test_rosinality_without_stored_noise_gets_the_same_noise_every_time(tmp_path):
    config, tensors = files.small_network()
    data = files.save(files.rosinality_file(config, tensors, noises=False))
    first, second = load(tmp_path, data), load(tmp_path, data)
    assert "noise" in first.metadata
    assert_same(second, config, first.tensors, rtol=0)
    assert first.tensors["synthesis.blocks.1.conv0.noise_const"].std() > 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_name_does_not_matter(tmp_path, family, golden):
    path = tmp_path / "network.safetensors"
    path.write_bytes(FAMILIES[family].read_bytes())
    assert load_checkpoint(path).family == family
    assert load_checkpoint(str(path)).config == golden(family)[0].config


# Our own format


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load_give_the_same_network(tmp_path, family, golden):
    checkpoint = replace(golden(family)[0], metadata={"drag": {"r1": 3}, "licence": "Ω"})
    path = tmp_path / "network.pkl"
    save_checkpoint(path, checkpoint)
    found = load_checkpoint(path)
    assert found.family == "draggan-fast"
    assert found.metadata == checkpoint.metadata
    assert found.config == checkpoint.config
    assert found.tensors.keys() == checkpoint.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in checkpoint.tensors.items())
    identity = content_hash(checkpoint.tensors, checkpoint.config)
    assert content_hash(found.tensors, found.config) == identity


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(tmp_path, dtype):
    config, tensors = files.small_network(architecture="resnet", c_dim=2, embed_dim=8)
    full, half = tmp_path / "full", tmp_path / "half"
    save_checkpoint(full, Checkpoint(config, tensors, "draggan-fast"))
    save_checkpoint(half, Checkpoint(config, tensors, "draggan-fast"), dtype=dtype)
    assert half.stat().st_size < 0.75 * full.stat().st_size
    assert_same(load_checkpoint(half), config, {name: t.to(dtype).float() for name, t in tensors.items()}, rtol=0)


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    config, tensors = files.small_network()
    metadata = {name: name for name in "abcdefgh"}
    for name in "one", "two":
        save_checkpoint(tmp_path / name, Checkpoint(config, tensors, "draggan-fast", metadata))
        metadata, tensors = dict(reversed(metadata.items())), dict(reversed(tensors.items()))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with safetensors.safe_open(tmp_path / "one", framework="pt") as file:
        assert list(file.metadata()) == ["draggan_fast"]
        assert json.loads(file.metadata()["draggan_fast"])["config"] == config.to_json()


def test_shared_and_transposed_tensors_can_be_saved(tmp_path):
    config, tensors = files.small_network(mapping_widths=(8, 8), z_dim=8)
    tensors["mapping.layers.1.weight"] = tensors["mapping.layers.0.weight"].t().requires_grad_()
    save_checkpoint(tmp_path / "file", Checkpoint(config, tensors, "draggan-fast"))
    assert_same(load_checkpoint(tmp_path / "file"), config, tensors, rtol=0)


def test_content_hash_sees_names_types_shapes_values_and_configuration():
    config, tensors = files.small_network()
    name = "mapping.layers.1.weight"
    seen = {
        content_hash(tensors, config),
        content_hash({**tensors, name: tensors[name] + 1}, config),
        content_hash({**tensors, name: tensors[name].half()}, config),
        content_hash({**tensors, name: tensors[name].reshape(-1)}, config),
        content_hash({k + "x": v for k, v in tensors.items()}, config),
        content_hash(tensors, replace(config, conv_clamp=1.0)),
    }
    assert len(seen) == 6
    assert content_hash(dict(reversed(tensors.items())), config) in seen
    assert content_hash({**tensors, name: tensors[name].t().contiguous().t()}, config) in seen


def bad_checkpoints():
    config, tensors = files.small_network()
    name = "mapping.w_avg"
    good = Checkpoint(config, tensors, "draggan-fast")
    missing = {k: v for k, v in tensors.items() if k != name}
    return {
        "missing": (replace(good, tensors=missing), torch.float32, "w_avg is missing"),
        "surplus": (replace(good, tensors={**tensors, "x": tensors[name]}), torch.float32, "tensor x"),
        "shape": (
            replace(good, tensors={**tensors, name: torch.ones(3)}),
            torch.float32,
            r"w_avg has the shape \[3\]",
        ),
        "nan": (
            replace(good, tensors={**tensors, name: tensors[name] * np.nan}),
            torch.float32,
            "not finite",
        ),
        "integer": (
            replace(good, tensors={**tensors, name: tensors[name].long()}),
            torch.float32,
            "not finite",
        ),
        "range": (
            replace(good, tensors={**tensors, name: tensors[name] * 1e6}),
            torch.float16,
            "beyond the range",
        ),
        "type": (good, torch.float64, "float32, float16"),
        "metadata": (replace(good, metadata={"a": {1, 2}}), torch.float32, "not plain JSON"),
        "metadata-nan": (replace(good, metadata={"a": float("nan")}), torch.float32, "not plain JSON"),
    }


@pytest.mark.parametrize("name", bad_checkpoints())
def test_what_could_not_be_loaded_is_not_saved(tmp_path, name):
    checkpoint, dtype, message = bad_checkpoints()[name]
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError, match=message) as caught:
        save_checkpoint(path, checkpoint, dtype)
    assert isinstance(caught.value, DragError)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    config, tensors = files.small_network()
    with pytest.raises(CheckpointError, match=r"Cannot save .*No such file"):
        save_checkpoint(tmp_path / "none" / "file", Checkpoint(config, tensors, "draggan-fast"))


def test_a_full_disk_leaves_the_old_file_whole(tmp_path):
    config, tensors = files.small_network()
    path = tmp_path / "file.safetensors"
    checkpoint = Checkpoint(config, tensors, "draggan-fast")
    save_checkpoint(path, checkpoint)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # writing more fails, as on a full disk
    try:
        with pytest.raises(CheckpointError, match=r"Cannot save .* is unchanged\.$"):
            save_checkpoint(path, checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["file.safetensors"]
