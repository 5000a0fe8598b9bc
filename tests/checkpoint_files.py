"""Writes network files in the structure of every program that draggan_fast reads, from our canonical tensors.

None of those programs is imported: stand-ins of the right names exist only while a file is pickled. This is the
inverse of the conversions in draggan_fast, written from the descriptions of the formats, for small random networks.
"""

import contextlib
import io
import math
import pickle
import sys
import types
import warnings

import numpy as np
import torch

from draggan_fast.generator import Generator, GeneratorConfig

LR = 0.01
SMALL = {"resolution": 16, "z_dim": 7, "w_dim": 8, "channels": (6, 5, 4), "mapping_widths": (9, 8)}


def small_network(**changes):
    """(config, canonical tensors) of a random network in which nothing is zero."""
    config = GeneratorConfig(**{**SMALL, **changes})
    torch.manual_seed(5)
    tensors = {k: torch.randn(v.shape) for k, v in Generator(config).state_dict().items()}
    return config, tensors


class Module:
    """A module of an NVIDIA file: its __dict__ is what a file holds."""

    def __init__(self, class_name, parameters=(), buffers=(), modules=(), **attributes):
        self.class_name = class_name
        self._parameters = {k: v if v is None else torch.nn.Parameter(v) for k, v in dict(parameters).items()}
        self._buffers = dict(buffers)
        self._modules = dict(modules)
        self.__dict__.update(attributes)

    def __reduce__(self):
        state = {k: v for k, v in self.__dict__.items() if k != "class_name"}
        source = "raise SystemExit('source text in a file was run')\n" * 200
        record = {
            "type": "class",
            "version": 6,
            "module_src": source,
            "class_name": self.class_name,
            "state": state,
        }
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (record,)


class EasyDict(dict):
    pass


class Network:
    """A network of a TensorFlow file."""

    def __init__(self, **state):
        self.state = state

    def __getstate__(self):
        return self.state


def _reconstruct_persistent_obj(record):
    raise AssertionError("only its name is used")


@contextlib.contextmanager
def stand_ins():
    """While this lasts, ``pickle`` finds the programs' classes under the names that their files have."""
    names = {
        "torch_utils.persistence": {"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
        "dnnlib.util": {"EasyDict": EasyDict},
        "dnnlib.tflib.network": {"Network": Network},
        **{package: {} for package in ("torch_utils", "dnnlib", "dnnlib.tflib")},
    }
    before = {}
    try:
        for module_name, members in names.items():
            module = types.ModuleType(module_name)
            for name, member in members.items():
                before[member] = member.__module__
                member.__module__ = module_name
                setattr(module, name, member)
            sys.modules[module_name] = module
        yield
    finally:
        for member, module_name in before.items():
            member.__module__ = module_name
        for module_name in names:
            sys.modules.pop(module_name, None)


def dump(value, protocol=4):
    with stand_ins(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the storages that it still pickles
        return pickle.dumps(value, protocol=protocol)


def save(value, zipped=True):
    file = io.BytesIO()
    with stand_ins(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


# NVIDIA, PyTorch


def nvidia_generator(config, tensors):
    """The G_ema of an NVIDIA PyTorch file: a tree that tests may change before they dump it."""
    t = dict(tensors)
    taps = torch.tensor(config.resample_filter)
    fir = torch.outer(taps, taps) / taps.sum() ** 2

    def linear(name, activation="linear", lr=1.0):
        weight = t[name + ".weight"]
        gain = np.float64(lr / np.sqrt(weight.shape[1]))
        return Module(
            "FullyConnectedLayer",
            {"weight": weight / float(gain), "bias": t[name + ".bias"] / lr},
            activation=activation,
            weight_gain=gain,
            bias_gain=lr,
        )

    def convolution(name, up):
        buffers = {"resample_filter": fir}
        parameters = {"weight": t[name + ".weight"], "bias": t[name + ".bias"]}
        if config.use_noise:
            parameters["noise_strength"] = t[name + ".noise_strength"]
            buffers["noise_const"] = t[name + ".noise_const"]
        return Module(
            "SynthesisLayer",
            parameters,
            buffers,
            {"affine": linear(name + ".affine")},
            activation="lrelu",
            act_gain=np.sqrt(2),
            up=up,
            use_noise=config.use_noise,
            conv_clamp=config.conv_clamp,
        )

    blocks = {}
    for b in range(config.num_blocks):
        name = f"synthesis.blocks.{b}"
        modules = {"conv1": convolution(name + ".conv1", 1)}
        if b:
            modules["conv0"] = convolution(name + ".conv0", 2)
        if name + ".to_rgb.weight" in t:
            gain = 1 / np.sqrt(config.channels[b])
            modules["torgb"] = Module(
                "ToRGBLayer",
                {"weight": t[name + ".to_rgb.weight"] / float(gain), "bias": t[name + ".to_rgb.bias"]},
                {},
                {"affine": linear(name + ".to_rgb.affine")},
                conv_clamp=config.conv_clamp,
                weight_gain=gain,
            )
        if name + ".skip.weight" in t:
            gain = 1 / np.sqrt(config.channels[b - 1])
            modules["skip"] = Module(
                "Conv2dLayer",
                {"weight": t[name + ".skip.weight"] / float(gain), "bias": None},
                {"resample_filter": fir},
                activation="linear",
                up=2,
                weight_gain=gain,
            )
        parameters = {} if b else {"const": t["synthesis.const"]}
        blocks[f"b{4 << b}"] = Module("SynthesisBlock", parameters, {"resample_filter": fir}, modules)
    layers = {f"fc{i}": linear(f"mapping.layers.{i}", "lrelu", LR) for i in range(len(config.mapping_widths))}
    if config.c_dim:
        layers["embed"] = linear("mapping.embed")
    mapping = Module("MappingNetwork", {}, {"w_avg": t["mapping.w_avg"]}, layers)
    return Module(
        "Generator",
        modules={"synthesis": Module("SynthesisNetwork", modules=blocks), "mapping": mapping},
        _init_args=(),
        _init_kwargs=EasyDict(z_dim=config.z_dim, synthesis_kwargs=EasyDict(conv_clamp=config.conv_clamp)),
    )


def nvidia_file(config, tensors, **others):
    return {"G": None, "D": None, "G_ema": nvidia_generator(config, tensors), "augment_pipe": None, **others}


# NVIDIA, TensorFlow


def tensorflow_generator(config, tensors):
    """The Gs of a TensorFlow file; variables are lists of (name, array)."""
    t = {k: v.numpy() for k, v in tensors.items()}
    mapping, synthesis = {}, {}

    def linear(variables, name, weight, bias, lr=1.0, offset=0.0):
        w = t[name + ".weight"]
        variables[weight] = (w * (math.sqrt(w.shape[1]) / lr)).T
        variables[bias] = (t[name + ".bias"] - offset) / lr

    def kernel(path, name, up=False):
        w = t[name + ".weight"]
        w = (w * math.sqrt(np.prod(w.shape[1:]))).transpose(2, 3, 1, 0)
        synthesis[path + "/weight"] = np.ascontiguousarray(w[::-1, ::-1] if up else w).astype(np.float32)

    def convolution(path, name, noise, up=False):
        kernel(path, name, up)
        linear(synthesis, name + ".affine", path + "/mod_weight", path + "/mod_bias", offset=1.0)
        synthesis[path + "/bias"] = t[name + ".bias"]
        synthesis[path + "/noise_strength"] = np.float32(t[name + ".noise_strength"])
        synthesis[f"noise{noise}"] = t[name + ".noise_const"][None, None]

    synthesis["4x4/Const/const"] = t["synthesis.const"][None]
    for b in range(config.num_blocks):
        path, name = f"{4 << b}x{4 << b}", f"synthesis.blocks.{b}"
        if b:
            convolution(path + "/Conv0_up", name + ".conv0", 2 * b - 1, up=True)
        convolution(path + ("/Conv1" if b else "/Conv"), name + ".conv1", 2 * b)
        if name + ".to_rgb.weight" in t:
            kernel(path + "/ToRGB", name + ".to_rgb")
            synthesis[path + "/ToRGB/bias"] = t[name + ".to_rgb.bias"]
            affine = name + ".to_rgb.affine"
            linear(synthesis, affine, path + "/ToRGB/mod_weight", path + "/ToRGB/mod_bias", offset=1.0)
        if name + ".skip.weight" in t:
            kernel(path + "/Skip", name + ".skip", up=True)
    for i in range(len(config.mapping_widths)):
        linear(mapping, f"mapping.layers.{i}", f"Dense{i}/weight", f"Dense{i}/bias", LR)
    if config.c_dim:
        linear(mapping, "mapping.embed", "LabelEmbed/weight", "LabelEmbed/bias")

    def network(name, variables, components, **options):
        return Network(
            version=4,
            name=name,
            static_kwargs=EasyDict(options),
            components=EasyDict(components),
            build_module_src="raise SystemExit('source text in a file was run')\n" * 200,
            build_func_name=name,
            variables=list(variables.items()),
        )

    parts = {
        "mapping": network("G_mapping", mapping, {}, mapping_layers=len(config.mapping_widths)),
        "synthesis": network("G_synthesis_stylegan2", synthesis, {}, resample_kernel=list(config.resample_filter)),
    }
    variables = {"lod": np.float32(0), "dlatent_avg": t["mapping.w_avg"]}
    return network("G_main", variables, parts, resolution=config.resolution, conv_clamp=config.conv_clamp)


def tensorflow_file(config, tensors):
    generator = tensorflow_generator(config, tensors)
    return generator, None, generator


# rosinality


def rosinality_file(config, tensors, noises=True):
    t = dict(tensors)
    state = {}
    taps = torch.tensor(config.resample_filter)
    fir = torch.outer(taps, taps) / taps.sum() ** 2 * 4

    def linear(path, name, lr=1.0):
        weight = t[name + ".weight"]
        state[path + ".weight"] = weight * (math.sqrt(weight.shape[1]) / lr)
        state[path + ".bias"] = t[name + ".bias"] / lr

    def modulated(path, name):
        weight = t[name + ".weight"]
        state[path + ".weight"] = weight[None] * math.sqrt(weight[0].numel())
        linear(path + ".modulation", name + ".affine")

    def convolution(path, name, noise):
        modulated(path + ".conv", name)
        state[path + ".activate.bias"] = t[name + ".bias"]
        state[path + ".noise.weight"] = t[name + ".noise_strength"].reshape(1)
        if noises:
            state[f"noises.noise_{noise}"] = t[name + ".noise_const"][None, None]

    def to_rgb(path, name):
        modulated(path + ".conv", name)
        state[path + ".bias"] = t[name + ".bias"].reshape(1, -1, 1, 1)

    state["input.input"] = t["synthesis.const"][None]
    for i in range(len(config.mapping_widths)):
        linear(f"style.{i + 1}", f"mapping.layers.{i}", LR)
    convolution("conv1", "synthesis.blocks.0.conv1", 0)
    to_rgb("to_rgb1", "synthesis.blocks.0.to_rgb")
    for b in range(1, config.num_blocks):
        name = f"synthesis.blocks.{b}"
        convolution(f"convs.{2 * b - 2}", name + ".conv0", 2 * b - 1)
        state[f"convs.{2 * b - 2}.conv.blur.kernel"] = fir
        convolution(f"convs.{2 * b - 1}", name + ".conv1", 2 * b)
        to_rgb(f"to_rgbs.{b - 1}", name + ".to_rgb")
        state[f"to_rgbs.{b - 1}.upsample.kernel"] = fir
    return {"g_ema": state, "latent_avg": t["mapping.w_avg"]}
