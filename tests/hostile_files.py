"""Files that are hostile, damaged or of another kind, and what the sentence that refuses them must say.

``CORPUS``: case → (bytes, pattern). Three kinds: files with payloads that run when they are unpickled the usual way,
files that claim much more than they are, and honest files that cannot be used.
"""

import io
import json
import os
import pickle
import struct
import subprocess
import zipfile
from collections import OrderedDict

import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes

from tests import checkpoint_files as files

CANARY = "hostile-file-was-here"
HUGE = 10_000_000_000


class Call:
    """Pickles as a call of ``function``: what it calls when it is unpickled the usual way."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class NestedBytes:
    """Pickles like a tensor's storage whose nested bytes are ours."""

    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.data,)


def touch():
    return Call(os.system, f"touch {CANARY}")


def stream(*parts, protocol=4):
    """A pickle written by hand; text arguments become SHORT_BINUNICODE."""
    encoded = [b"\x8c" + bytes([len(p)]) + p.encode() if isinstance(p, str) else p for p in parts]
    return b"\x80" + bytes([protocol]) + b"".join(encoded) + b"."


def name(module, attribute):
    return stream(module, attribute, b"\x93")[2:-1]


def legacy(value):
    return files.save(value, zipped=False)


def legacy_tensor(numel, stored=2, size=None, stride=(1,)):
    """A file of torch.save before 1.6: {'g_ema': tensor} with chosen claims about its size."""
    size = (numel,) if size is None else size
    storage = ("storage", torch.FloatStorage, "0", "cpu", numel, None)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return storage if value is storage_stand_in else None

    storage_stand_in = object()
    rebuild = Call(torch._utils._rebuild_tensor_v2, storage_stand_in, 0, size, stride, False, OrderedDict())
    file = io.BytesIO()
    for value in 0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}:
        pickle.dump(value, file, 2)
    Pickler(file, 2).dump({"g_ema": rebuild})
    pickle.dump(["0"], file, 2)
    return file.getvalue() + struct.pack("<q", numel) + b"\0" * 4 * stored


def numpy_bytes(shape, dtype="f4", raw=b"\0" * 16):
    array = (name("numpy", "ndarray"), b"K\0\x85", b"C\1b", b"\x87R", b"(", b"K\1", shape)
    kind = (
        name("numpy", "dtype"),
        dtype,
        b"\x89\x88\x87R(K\3",
        "<",
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb",
    )
    return stream(
        name("numpy.core.multiarray", "_reconstruct"),
        *array,
        *kind,
        b"\x89",
        b"C",
        bytes([len(raw)]),
        raw,
        b"tb",
    )


def rezip(data, change=lambda info, content: (info.filename, content, zipfile.ZIP_STORED)):
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(file, "w") as target:
        for info in source.infolist():
            filename, content, method = change(info, source.read(info))
            target.writestr(filename, content, method)
    return file.getvalue()


def safetensors_file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def ours(network, tensors, **changes):
    header = {"version": 1, "config": network.to_json(), "metadata": {}, **changes}
    return safetensors_bytes(tensors, {"draggan_fast": json.dumps(header)})


def changed(tree, path, **attributes):
    """An NVIDIA module tree with attributes of one module changed; path is dotted, "" the root."""
    module = tree
    for part in path.split(".") if path else ():
        module = module._modules[part]
    for key, value in attributes.items():
        if value is None:
            del module.__dict__[key]
        else:
            module.__dict__[key] = value
    return tree


def nonsquare(tensors):
    return {**tensors, "synthesis.const": torch.randn(6, 4, 2)}


def without(value, tensor):
    return {**value, "g_ema": {k: v for k, v in value["g_ema"].items() if k != tensor}}


def executable_files(config, tensors):
    """Payloads that run when unpickled, wherever they hide → what the refusal must name."""
    good = files.nvidia_file(config, tensors)
    python = f"open({CANARY!r}, 'w').close()"
    hidden = {**files.rosinality_file(config, tensors), "d": touch()}
    yield "system", files.dump(touch()), "posix.system|nt.system"
    yield "eval", files.dump(Call(eval, python)), "builtins.eval"
    yield "exec", files.dump(Call(exec, python), 2), "__builtin__.exec"
    yield "getattr", files.dump(Call(getattr, Call(__import__, "os"), "system")), "builtins.getattr"
    yield "popen", files.dump(Call(subprocess.Popen, ["touch", CANARY])), "subprocess.Popen"
    yield "torch-load", files.dump(Call(torch.load, "file")), "torch.serialization.load"
    yield "numpy-load", files.dump(Call(np.load, "file", None, True)), "numpy.load"
    yield "hidden-in-g", files.dump({**good, "G": touch()}), "posix.system|nt.system"
    yield (
        "hidden-in-a-layer",
        files.dump({**good, "D": files.Module("D", _init_kwargs={"x": [touch()]})}),
        "system",
    )
    yield (
        "hidden-in-an-attribute",
        files.dump({**good, "G": changed(good["G_ema"], "", extra=(touch(),))}),
        "system",
    )
    yield (
        "hidden-in-tensorflow",
        files.dump((touch(), None, files.tensorflow_generator(config, tensors))),
        "system",
    )
    yield "hidden-in-rosinality", files.save(hidden), "system"
    yield "hidden-in-legacy", legacy(hidden), "system"
    yield "hidden-in-tensor-bytes", files.dump({**good, "G": NestedBytes(legacy(touch()))}), "system"
    yield "nested-twice", files.dump(NestedBytes(legacy(NestedBytes(legacy(touch()))))), "_load_from_bytes"
    yield "nested-zip", files.dump(NestedBytes(files.save(touch()))), "opcode 0x50"
    yield "nested-not-a-storage", files.dump(NestedBytes(legacy([1]))), "not a tensor"
    yield "object-array", files.dump({**good, "G": np.array([touch()], dtype=object)}), "type O8"
    yield "protocol-0", b"cos\nsystem\n(S'touch " + CANARY.encode() + b"'\ntR.", "os.system"
    yield "protocol-0-instance", b"(S'touch x'\nios\nsystem\n.", "neither a pickle"
    yield "instance", stream(b"(", "touch x", b"ios\nsystem\n"), "os.system"
    yield "dotted-name", stream(name("torch.nn.modules.module", "torch.hub.load")), "torch.hub.load"
    yield (
        "dotted-dictionary",
        stream(name("collections", "OrderedDict.update.__self__")),
        "OrderedDict.update",
    )
    yield (
        "dunder-module",
        stream(name("torch.nn.modules.module.os", "system"), "touch x", b"\x85R"),
        "StyleGAN2 generator",
    )
    yield "call-of-a-class-record", stream(name("numpy", "ndarray"), b"K\1\x85R"), "calls numpy.ndarray"
    yield "call-of-a-result", stream(name("collections", "OrderedDict"), b")R", b")R"), "damaged at byte"
    yield "build-on-a-name", stream(name("collections", "OrderedDict"), b"}", b"b"), "damaged at byte"
    yield "extension", stream(b"\x82\1"), "opcode 0x82"
    yield "persistent", stream("system", b"Q"), "outside the file"
    yield "out-of-band-buffer", stream(b"\x97", protocol=5), "opcode 0x97"


def greedy_files(config, tensors):
    """Files that claim much more than they are."""
    rosinality = files.save(files.rosinality_file(config, tensors))
    eight = struct.pack("<Q", HUGE)
    ten = b"\x8a\x05" + HUGE.to_bytes(5, "little")
    module = files.Module("M")
    for _ in range(8):  # 500 ^ 8 modules, if one walked them all
        module = files.Module("M", modules={str(i): module for i in range(500)})
    yield "bytes", stream(b"\x8e" + eight), "ends early"
    yield "text", stream(b"\x8d" + eight), "ends early"
    yield "memo", stream(b"Nr\xff\xff\xff\x7f"), "not hold a StyleGAN2"
    yield "frame", stream(b"\x95" + b"\xff" * 8 + b"N"), "not hold a StyleGAN2"
    yield "long", stream(b"\x8b" + b"\xff\xff\xff\x7f"), "opcode 0x8b"
    yield "lists", stream(b"]" * 3_000_000), "far more objects"
    yield "deep-tuple-key", stream(b"}", b")" + b"\x85" * 100_000, b"N", b"s"), "damaged at byte"
    yield "deep-tuple", stream(b")" + b"\x85" * 100_000), "not hold a StyleGAN2"
    inert = name("argparse", "Namespace") + b"q\0" + b"h\0" * 50_000 + b")" + b"R\x85" * 50_000
    yield "deep-object", stream(inert), "not hold a StyleGAN2"
    yield "doubling", stream(b")", b"2\x86" * 200), "not hold a StyleGAN2"
    yield "modules", files.dump({"G_ema": module}), "not part of a StyleGAN2"
    yield "numpy", numpy_bytes(ten + b"\x85"), "claims 10000000000 elements"
    yield "numpy-overflow", numpy_bytes(ten + ten + b"\x86"), "claims"
    yield "numpy-negative", numpy_bytes(b"J\xff\xff\xff\xff\x85"), "impossible shape"
    yield "legacy", legacy_tensor(HUGE), "claims 40000000000 bytes"
    yield "legacy-cut", legacy_tensor(4), "which are not there"
    yield "legacy-expanded", legacy_tensor(2, size=(HUGE,), stride=(0,)), "claims more than the 2 elements"
    yield "legacy-beyond", legacy_tensor(2, size=(2,), stride=(2,)), "claims more than the 2 elements"
    yield "legacy-negative", legacy_tensor(2, size=(-1,)), "impossible shape"
    bomb = rezip(
        rosinality,
        lambda i, c: (i.filename, b"\0" * 30_000_000 if i.filename.endswith("/data/1") else c, zipfile.ZIP_DEFLATED),
    )
    yield "zip-bomb", bomb, "compressed"
    start = rosinality.rindex(b"PK\x05\x06")
    first = struct.unpack_from("<L", rosinality, start + 16)[0]
    sizes = rosinality[: first + 20] + struct.pack("<2L", HUGE % 2**32, HUGE % 2**32) + rosinality[first + 28 :]
    yield "zip-entry", sizes, "which are not there"
    record = struct.pack("<4sHHHHHHLLLHHHHHLL", b"PK\1\2", 0, 0, 0, 0, 0, 0, 0, 50, 50, 1, 0, 0, 0, 0, 0, 0)
    overlapping = b"PK\3\4" + b"\0" * 96 + b"".join(record + bytes([65 + i]) for i in range(20))
    overlapping += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 20, 20, 20 * 47, 100, 0)
    yield "zip-overlap", overlapping, "not one that torch.save wrote"
    crowd = rosinality[: start + 8] + b"\xff\xff\xff\xff" + rosinality[start + 12 :]
    yield "zip-many", crowd, "larger than that of any"
    yield (
        "zip-path",
        rezip(rosinality, lambda i, c: (i.filename.replace("data/1", "data/../../1"), c, 0)),
        "not one that",
    )
    yield "zip-absolute", rezip(rosinality, lambda i, c: ("/" + i.filename, c, 0)), "not one that PyTorch"
    yield "zip-backslash", rezip(rosinality, lambda i, c: (i.filename + "\\x", c, 0)), "not one that PyTorch"
    yield (
        "zip-other",
        rezip(rosinality, lambda i, c: (i.filename.replace("data.pkl", "x"), c, 0)),
        "torch.save wrote",
    )
    yield (
        "zip-script",
        rezip(rosinality, lambda i, c: (i.filename.replace("byteorder", "constants.pkl"), c, 0)),
        "TorchScript",
    )
    yield (
        "zip-missing",
        rezip(rosinality, lambda i, c: (i.filename.replace("data/1", "data/x"), c, 0)),
        "is missing",
    )
    yield (
        "zip-short",
        rezip(rosinality, lambda i, c: (i.filename, c[: len(c) // 2] if "/data/1" in i.filename else c, 0)),
        "claims",
    )
    yield (
        "zip-big-endian",
        rezip(rosinality, lambda i, c: (i.filename, b"big" if "byteorder" in i.filename else c, 0)),
        "big-endian",
    )
    wide = {"dtype": "F32", "shape": [HUGE // 4], "data_offsets": [0, HUGE]}
    config_text = json.dumps({"version": 1, "config": config.to_json(), "metadata": {}})
    yield (
        "safetensors",
        safetensors_file({"__metadata__": {"draggan_fast": config_text}, "mapping.w_avg": wide}),
        "damaged",
    )
    yield "safetensors-header", struct.pack("<Q", HUGE) + b'{"a":1}', "header claims 10000000000 bytes"
    yield "safetensors-header-max", struct.pack("<Q", 2**64 - 1) + b'{"a":1}', "header claims"
    yield (
        "safetensors-width",
        ours(config, tensors, config={**config.to_json(), "channels": [65536] * 3}),
        "require \\[",
    )


def unusable_files(config, tensors):
    """Files that are honest, but damaged or of another kind."""
    generator = files.nvidia_generator
    nan = {
        **tensors,
        "synthesis.blocks.1.conv0.weight": tensors["synthesis.blocks.1.conv0.weight"] * float("nan"),
    }
    wrong = {**tensors, "synthesis.blocks.1.conv1.weight": torch.randn(5, 3, 3, 3)}
    flat = {**tensors, "synthesis.blocks.1.conv1.weight": torch.randn(5, 45)}
    for family, write in (
        ("nvidia", lambda t: files.dump(files.nvidia_file(config, t))),
        ("tensorflow", lambda t: files.dump(files.tensorflow_file(config, t))),
        ("rosinality", lambda t: files.save(files.rosinality_file(config, t))),
    ):
        yield family + "-nan", write(nan), r"blocks\.1\.conv0\.weight has values that are not finite"
        yield family + "-shape", write(wrong), r"blocks\.1\.conv1\.(affine\.)?\w+ has the shape"
        yield (
            family + "-nonsquare",
            write(nonsquare(tensors)),
            "non-square network .*16 pixels high and 8 wide",
        )
    yield (
        "nvidia-dimensions",
        files.dump(generator(config, flat)),
        r"has the shape \[5, 45\], but 4 dimensions",
    )
    for attribute in "weight", "bias", "noise_strength":
        tree = generator(config, tensors)
        del tree._modules["synthesis"]._modules["b8"]._modules["conv0"]._parameters[attribute]
        yield f"nvidia-no-{attribute}", files.dump(tree), f"synthesis.b8.conv0.{attribute} is missing"
    tree = generator(config, tensors)
    del tree._modules["mapping"]._buffers["w_avg"]
    yield "nvidia-no-average", files.dump(tree), "no average latent"
    tree = generator(config, tensors)
    tree._modules["synthesis"]._modules["b32"] = files.Module("SynthesisBlock")
    yield "nvidia-no-layer", files.dump(tree), "the layer synthesis.b32.conv0 is missing"
    tree = changed(generator(config, tensors), "", _parameters={"extra": torch.ones(1)})
    yield "nvidia-surplus", files.dump(tree), "tensor extra that StyleGAN2 does not have"
    conv = "synthesis.b8.conv1"
    for option, value, wanted in (
        ("activation", "relu", "conv1.activation = relu"),
        ("act_gain", 1.0, "act_gain = 1.0"),
        ("up", 4, "up = 4"),
        ("conv_clamp", 17.0, "differ in conv_clamp"),
        ("conv_clamp", 10**200, "not a number"),
        ("conv_clamp", "x", "not a number"),
        ("use_noise", False, "conv1.noise_const|noise_strength"),
        ("use_noise", None, "does not say its use_noise"),
    ):
        tree = changed(generator(config, tensors), conv, **{option: value})
        yield f"nvidia-{option}-{value!r:.9}", files.dump(tree), wanted
    kwargs = {"synthesis_kwargs": {"attention": True}}
    yield (
        "nvidia-option",
        files.dump(changed(generator(config, tensors), "", _init_kwargs=kwargs)),
        "attention = True",
    )
    only_d = {"G": None, "D": files.Module("Discriminator", modules={"b4": files.Module("B")}), "G_ema": None}
    yield "nvidia-discriminator", files.dump(only_d), "only a discriminator"
    yield "nvidia-module-d", files.dump(only_d["D"]), "only a discriminator"
    yield "nvidia-no-ema", files.dump({"G": generator(config, tensors), "D": None}), "not its moving average"
    yield "nvidia-other", files.dump(files.Module("TriPlaneGenerator")), "TriPlaneGenerator, not a StyleGAN2"
    three = files.Module("SynthesisNetwork", modules={"input": files.Module("SynthesisInput")})
    three = files.Module("Generator", modules={"synthesis": three, "mapping": files.Module("MappingNetwork")})
    yield "stylegan3", files.dump({"G_ema": three}), "StyleGAN3"

    def tensorflow(change):
        network = files.tensorflow_generator(config, tensors)
        change(network.state, network.state["components"]["synthesis"].state)
        return files.dump((None, None, network))

    style = [("4x4/AdaIN/StyleMod/weight", np.zeros(3, np.float32))]
    yield "stylegan1", tensorflow(lambda _, s: s.update(variables=style)), "StyleGAN1"
    yield (
        "tensorflow-option",
        tensorflow(lambda g, _: g["static_kwargs"].update(nonlinearity="relu")),
        "nonlinearity = relu",
    )
    yield "tensorflow-unknown", tensorflow(lambda g, _: g["static_kwargs"].update(blur=1)), "blur = 1"
    yield (
        "tensorflow-clamp",
        tensorflow(lambda g, _: g["static_kwargs"].update(conv_clamp=10**200)),
        "conv_clamp",
    )
    yield "tensorflow-no-average", tensorflow(lambda g, _: g.update(variables=[])), "dlatent_avg is missing"
    yield "tensorflow-variables", tensorflow(lambda g, _: g.update(variables=[1])), "variables without names"
    yield "tensorflow-missing", tensorflow(lambda _, s: s["variables"].pop(3)), "is missing"
    d = files.Network(static_kwargs={}, variables=[("8x8/FromRGB/weight", np.zeros(3))], build_func_name="D_stylegan2")
    yield "tensorflow-discriminator", files.dump(d), "only a discriminator"
    value = files.rosinality_file(config, tensors)
    yield "rosinality-no-average", files.save({"g_ema": value["g_ema"]}), "no latent_avg"
    yield (
        "rosinality-missing",
        files.save(without(value, "convs.1.activate.bias")),
        r"convs\.1\.activate\.bias is missing",
    )
    yield "rosinality-noise", files.save(without(value, "noises.noise_2")), "noise_2 is missing"
    yield (
        "rosinality-surplus",
        files.save({**value, "g_ema": {**value["g_ema"], "x": torch.ones(1)}}),
        "tensor x that",
    )
    yield "rosinality-text", files.save({**value, "latent_avg": "x"}), "latent_avg is not a tensor"
    yield "rosinality-d", files.save({"d": {"x": torch.ones(1)}}), "only a discriminator"
    yield "other-dictionary", files.save({"state_dict": {}, "epoch": 3}), "keys epoch, state_dict"
    yield "other-value", files.dump([1, 2, 3]), "does not hold a StyleGAN2 generator"
    yield "empty", b"", "it is empty"
    yield "text", b"This is not a network.\n" * 20, "neither a pickle"
    yield "html", b"<!DOCTYPE html><html>Quota exceeded</html>", "neither a pickle"
    yield "one-byte", b"\x80", "ends early"
    yield "protocol-9", stream(b"N", protocol=9), "protocol 9"
    yield "safetensors-foreign", safetensors_bytes({"a": torch.ones(2)}), "no draggan_fast configuration"
    yield (
        "safetensors-offsets",
        safetensors_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}),
        "damaged",
    )
    yield "safetensors-not-json", safetensors_file(b"{" * 20), "damaged"
    not_json = safetensors_bytes({"a": torch.ones(2)}, {"draggan_fast": "{"})
    yield "safetensors-config-text", not_json, "not JSON"
    deep = safetensors_bytes({"a": torch.ones(2)}, {"draggan_fast": "[" * 100_000})
    yield "safetensors-config-deep", deep, "not JSON"
    yield (
        "safetensors-config-entry",
        ours(config, tensors, config={**config.to_json(), "x": 1}),
        "unknown entries x",
    )
    yield "safetensors-config-missing", ours(config, tensors, config={"resolution": 16}), "incomplete"
    yield (
        "safetensors-config-nan",
        ours(config, tensors, config={**config.to_json(), "conv_clamp": float("nan")}),
        "clamp",
    )
    yield (
        "safetensors-resolution",
        ours(config, tensors, config={**config.to_json(), "resolution": 2**40}),
        "resolution",
    )
    yield "safetensors-version", ours(config, tensors, version=99), "format version 99"
    yield "safetensors-metadata", ours(config, tensors, metadata=[]), "incomplete"
    yield "safetensors-nan", ours(config, nan), "not finite"
    yield "safetensors-shape", ours(config, wrong), "has the shape"
    yield "safetensors-type", ours(config, {k: v.double() for k, v in tensors.items()}), "has the type F64"
    yield (
        "safetensors-missing",
        ours(config, {k: v for k, v in tensors.items() if k != "mapping.w_avg"}),
        "w_avg is missing",
    )
    yield "safetensors-surplus", ours(config, {**tensors, "x": torch.ones(1)}), "tensor x that"


def corpus():
    config, tensors = files.small_network()
    for kind in executable_files, greedy_files, unusable_files:
        for case, data, message in kind(config, tensors):
            yield f"{kind.__name__.split('_')[0]}-{case}", data, message


CORPUS = {case: (data, message) for case, data, message in corpus()}
