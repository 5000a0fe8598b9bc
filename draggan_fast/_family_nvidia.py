"""NVIDIA's PyTorch files (2020 and 2021: stylegan2-ada-pytorch and its successors): pickled modules.

A module is a record of its attributes, so the gains and options of every layer are read, not guessed. The
names of the attributes and tensors are those found in such files; their source text, which travels with them,
is not read.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._family_common import (
    EXPORT_AGAIN,
    MAX_BLOCKS,
    Checkpoint,
    Source,
    as_number,
    check_start,
    count_blocks,
    describe,
    discriminator_only,
    filter_taps,
    one_value,
    unsupported,
)
from ._pickle_data import Inert, Refused, shown
from ._tensor_data import PersistentObject
from .generator import LRELU_GAIN

MAX_MODULES = 4096  # and as many tensors; a 1024-pixel generator has about 70, with 300
MAX_DEPTH = 8
# Arguments that do not change the network beyond what its layers say themselves.
_KNOWN = """
    class_name z_dim c_dim w_dim img_resolution img_channels mapping_kwargs synthesis_kwargs num_layers
    embed_features layer_features activation lr_multiplier w_avg_beta channel_base channel_max
    num_fp16_res architecture resample_filter use_noise conv_clamp square fp16_channels_last
    fused_modconv_default
"""
KNOWN_OPTIONS = frozenset(_KNOWN.split())


class ModuleTree:
    """A module and all below it: tensors and attributes by their dotted path."""

    def __init__(self, root: PersistentObject) -> None:
        self.tensors: dict[str, Any] = {}
        self.attributes: dict[str, dict[Any, Any]] = {}
        pending: list[tuple[str, Any, int]] = [("", root, 0)]
        while pending:
            path, module, depth = pending.pop()
            state = module.state if isinstance(module, (PersistentObject, Inert)) else None
            children = self._group(state, "_modules") if isinstance(state, dict) else {}
            too_many = len(self.attributes) + len(pending) + len(children) > MAX_MODULES or depth > MAX_DEPTH
            if not isinstance(state, dict) or too_many:
                place = shown(path) or "(root)"
                raise Refused(f"its module {place} is not part of a StyleGAN2 generator; {EXPORT_AGAIN}")
            self.attributes[path] = state
            prefix = path + "." if path else ""
            for group in ("_parameters", "_buffers"):
                tensors = self._group(state, group)
                if len(self.tensors) + len(tensors) > MAX_MODULES:
                    raise Refused(f"it has more tensors than a StyleGAN2 generator; {EXPORT_AGAIN}")
                self.tensors.update({prefix + name: t for name, t in tensors.items() if t is not None})
            pending += [(prefix + name, child, depth + 1) for name, child in children.items() if child is not None]

    @staticmethod
    def _group(state: dict[Any, Any], name: str) -> dict[str, Any]:
        group = state.get(name, {})
        if not isinstance(group, dict) or not all(isinstance(key, str) for key in group):
            raise Refused(f"the {name} of one of its modules are damaged; {EXPORT_AGAIN}")
        return group

    def __contains__(self, path: str) -> bool:
        return path in self.attributes

    def attribute(self, path: str, name: str) -> Any:
        if path not in self.attributes:
            raise Refused(f"the layer {shown(path)} is missing; {EXPORT_AGAIN}")
        if name not in self.attributes[path]:
            raise Refused(f"the layer {shown(path)} does not say its {name}; {EXPORT_AGAIN}")
        return self.attributes[path][name]

    def number(self, path: str, name: str) -> float:
        value = as_number(self.attribute(path, name))
        if value is None:
            raise Refused(f"the {name} of the layer {shown(path)} is not a number; {EXPORT_AGAIN}")
        return value

    def require(self, path: str, name: str, wanted: str | float) -> None:
        value = self.attribute(path, name) if isinstance(wanted, str) else self.number(path, name)
        if isinstance(value, float) and isinstance(wanted, (int, float)):
            same = abs(value - wanted) < 1e-4
        else:
            same = isinstance(value, str) and value == wanted
        if not same:
            raise unsupported(f"{path}.{name}", value)


class _Conversion:
    """One generator on its way from ``tree`` to ``out``."""

    def __init__(self, tree: ModuleTree, source: Source) -> None:
        self.tree = tree
        self.source = source
        self.out: dict[str, Tensor] = {}
        self.clamps: list[float | None] = []
        self.noises: list[bool] = []
        self.filters: list[tuple[float, ...]] = []

    def linear(self, name: str, path: str, activation: str = "linear") -> None:
        self.tree.require(path, "activation", activation)
        self.out[name + ".weight"] = self.source.take(path + ".weight", 2) * self.tree.number(path, "weight_gain")
        self.out[name + ".bias"] = self.source.take(path + ".bias", 1) * self.tree.number(path, "bias_gain")

    def clamp(self, path: str) -> None:
        unclamped = self.tree.attribute(path, "conv_clamp") is None
        self.clamps.append(None if unclamped else self.tree.number(path, "conv_clamp"))

    def filter(self, path: str) -> None:
        name = path + ".resample_filter"
        if name in self.source:
            self.filters.append(filter_taps(self.source.take(name, 2, 1), 1.0))

    def convolution(self, name: str, path: str, up: int) -> None:
        tree, source, out = self.tree, self.source, self.out
        tree.require(path, "activation", "lrelu")
        tree.require(path, "act_gain", LRELU_GAIN)
        tree.require(path, "up", up)
        self.clamp(path)
        self.filter(path)
        self.noises.append(bool(tree.attribute(path, "use_noise")))
        out[name + ".weight"] = source.take(path + ".weight", 4)
        out[name + ".bias"] = source.take(path + ".bias", 1)
        self.linear(name + ".affine", path + ".affine")
        if self.noises[-1]:
            out[name + ".noise_const"] = source.take(path + ".noise_const", 2)
            out[name + ".noise_strength"] = source.take(path + ".noise_strength", 0)

    def to_rgb(self, name: str, path: str) -> None:
        self.clamp(path)
        gain = self.tree.number(path, "weight_gain")
        self.out[name + ".weight"] = self.source.take(path + ".weight", 4) * gain
        self.out[name + ".bias"] = self.source.take(path + ".bias", 1)
        self.linear(name + ".affine", path + ".affine")

    def shortcut(self, name: str, path: str) -> None:
        self.tree.require(path, "activation", "linear")
        self.tree.require(path, "up", 2)
        self.filter(path)
        gain = self.tree.number(path, "weight_gain")
        self.out[name + ".weight"] = self.source.take(path + ".weight", 4) * gain

    def block(self, b: int) -> None:
        name, path = f"synthesis.blocks.{b}", f"synthesis.b{4 << b}"
        self.filter(path)
        if b:
            self.convolution(name + ".conv0", path + ".conv0", 2)
        self.convolution(name + ".conv1", path + ".conv1", 1)
        if path + ".torgb" in self.tree:
            self.to_rgb(name + ".to_rgb", path + ".torgb")
        if path + ".skip" in self.tree:
            self.shortcut(name + ".skip", path + ".skip")

    def mapping(self) -> None:
        if "mapping.w_avg" not in self.source:
            raise Refused(f"it has no average latent (mapping.w_avg), which truncation needs; {EXPORT_AGAIN}")
        self.out["mapping.w_avg"] = self.source.take("mapping.w_avg", 1)
        if "mapping.embed" in self.tree:
            self.linear("mapping.embed", "mapping.embed")
        for i in range(self.source.count("mapping.fc{}.weight")):
            self.linear(f"mapping.layers.{i}", f"mapping.fc{i}", "lrelu")


def _check_options(options: Any) -> None:
    pending = [options]
    for group in pending:
        for name, value in group.items() if isinstance(group, dict) else ():
            if name not in KNOWN_OPTIONS:
                raise unsupported(str(name), value)
            if name in ("mapping_kwargs", "synthesis_kwargs") and group is options:
                pending.append(value)


def convert(root: PersistentObject, file_size: int) -> Checkpoint:
    """The generator in a pickled module. Raises Refused if it is not an unmodified, square StyleGAN2."""
    tree = ModuleTree(root)
    if "synthesis.input" in tree or any(path.startswith("synthesis.L0_") for path in tree.attributes):
        raise Refused("it is a StyleGAN3 network; only StyleGAN2 networks can be loaded for now")
    if "synthesis" not in tree or "mapping" not in tree:
        if "b4" in tree and "synthesis" not in tree:
            raise discriminator_only()
        raise Refused(
            f"its network is a {shown(root.class_name)}, not a StyleGAN2 generator; give a StyleGAN2 checkpoint"
        )
    source = Source(tree.tensors, file_size)
    blocks = count_blocks([f"synthesis.b{4 << b}" in tree for b in range(MAX_BLOCKS + 1)] + [False])
    conversion = _Conversion(tree, source)
    conversion.out["synthesis.const"] = source.take("synthesis.b4.const", 3)
    check_start(conversion.out["synthesis.const"], blocks)
    _check_options(root.state.get("_init_kwargs"))
    for b in range(blocks):
        conversion.block(b)
    conversion.mapping()
    source.finish()
    one_value("use_noise", conversion.noises)
    clamp = one_value("conv_clamp", conversion.clamps)
    taps = one_value("resample_filter", conversion.filters or [(1.0, 3.0, 3.0, 1.0)])
    return Checkpoint(describe(conversion.out, clamp, taps), conversion.out, "nvidia-pytorch")
