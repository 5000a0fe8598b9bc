"""NVIDIA's TensorFlow files (2019 and 2020): ``dnnlib.tflib.network.Network`` records with named variables.

Kernels are [kh, kw, in, out] and matrices [in, out]; every weight is scaled by 1/sqrt(fan-in) at run time,
modulation biases are stored without their 1.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ._family_common import (
    EXPORT_AGAIN,
    MAPPING_LR,
    MAX_BLOCKS,
    Checkpoint,
    Source,
    as_number,
    check_start,
    count_blocks,
    describe,
    discriminator_only,
    unsupported,
)
from ._pickle_data import Inert, Refused

NETWORK = "dnnlib.tflib.network.Network"
# Arguments that do not change the network beyond what its variables and the checks below say.
_KNOWN = """
    latent_size label_size dlatent_size resolution num_channels fmap_base fmap_decay fmap_min fmap_max
    mapping_layers mapping_fmaps mapping_lrmul mapping_nonlinearity normalize_latents dlatent_avg_beta
    w_avg_beta truncation_psi truncation_cutoff truncation_psi_val truncation_cutoff_val style_mixing_prob
    randomize_noise architecture nonlinearity dtype resample_kernel fused_modconv num_fp16_res conv_clamp
    mapping_func synthesis_func func_name structure is_training is_validation return_dlatents is_template_graph
    dlatent_broadcast use_noise
"""
KNOWN_OPTIONS = frozenset(_KNOWN.split())


def _parts(network: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(options, variables, components) of a network record."""
    state = network.state if isinstance(network, Inert) and network.name == NETWORK else None
    if not isinstance(state, dict):
        raise Refused(f"its TensorFlow network has no state; {EXPORT_AGAIN}")
    options, variables, components = (
        state.get(key, kind()) for key, kind in (("static_kwargs", dict), ("variables", list), ("components", dict))
    )
    if not isinstance(options, dict) or not isinstance(components, dict) or not isinstance(variables, list):
        raise Refused(f"its TensorFlow network is damaged; {EXPORT_AGAIN}")
    for pair in variables:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise Refused(f"its TensorFlow network has variables without names; {EXPORT_AGAIN}")
    return options, dict(variables), components


def _check_options(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if name not in KNOWN_OPTIONS:
            raise unsupported(str(name), value)
    for name, wanted in (
        ("nonlinearity", "lrelu"),
        ("mapping_nonlinearity", "lrelu"),
        ("normalize_latents", True),
    ):
        if options.get(name, wanted) != wanted:
            raise unsupported(name, options[name])
    for name in ("mapping_lrmul", "conv_clamp"):
        if options.get(name) is not None and as_number(options[name]) is None:
            raise unsupported(name, options[name])
    taps = options.get("resample_kernel")
    if taps is not None and not (isinstance(taps, (list, tuple)) and all(as_number(t) is not None for t in taps)):
        raise unsupported("resample_kernel", taps)


class _Conversion:
    """One generator on its way from ``source`` to ``out``."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.out: dict[str, Tensor] = {}
        self.use_noise = "synthesis/4x4/Conv/noise_strength" in source

    def linear(self, name: str, weight: str, bias: str, lr: float = 1.0, bias_offset: float = 0.0) -> None:
        matrix = self.source.take(weight, 2)
        self.out[name + ".weight"] = matrix.t() * (lr / math.sqrt(matrix.shape[0]))
        self.out[name + ".bias"] = self.source.take(bias, 1) * lr + bias_offset

    def kernel(self, path: str, up: bool = False) -> Tensor:
        kernel = self.source.take(path + "/weight", 4)
        kernel = kernel / math.sqrt(kernel.shape[:3].numel())
        # The ×2 layers turn their kernel by 180° before the transposed convolution.
        return (kernel.flip(0, 1) if up else kernel).permute(3, 2, 0, 1)

    def modulation(self, name: str, path: str) -> None:
        self.linear(name + ".affine", path + "/mod_weight", path + "/mod_bias", bias_offset=1.0)

    def convolution(self, name: str, path: str, noise: int, up: bool = False) -> None:
        self.out[name + ".weight"] = self.kernel(path, up)
        self.out[name + ".bias"] = self.source.take(path + "/bias", 1)
        self.modulation(name, path)
        if self.use_noise:
            self.out[name + ".noise_const"] = self.source.take(f"synthesis/noise{noise}", 4)[0, 0]
            self.out[name + ".noise_strength"] = self.source.take(path + "/noise_strength", 0)

    def block(self, b: int) -> None:
        name, path = f"synthesis.blocks.{b}", f"synthesis/{4 << b}x{4 << b}"
        if b:
            self.convolution(name + ".conv0", path + "/Conv0_up", 2 * b - 1, up=True)
        self.convolution(name + ".conv1", path + ("/Conv1" if b else "/Conv"), 2 * b)
        if path + "/ToRGB/weight" in self.source:
            self.out[name + ".to_rgb.weight"] = self.kernel(path + "/ToRGB")
            self.out[name + ".to_rgb.bias"] = self.source.take(path + "/ToRGB/bias", 1)
            self.modulation(name + ".to_rgb", path + "/ToRGB")
        if path + "/Skip/weight" in self.source:
            self.out[name + ".skip.weight"] = self.kernel(path + "/Skip", up=True)

    def mapping(self, lr: float) -> None:
        average = "w_avg" if "w_avg" in self.source else "dlatent_avg"
        self.out["mapping.w_avg"] = self.source.take(average, 1)
        if "mapping/LabelEmbed/weight" in self.source:
            self.linear("mapping.embed", "mapping/LabelEmbed/weight", "mapping/LabelEmbed/bias")
        for i in range(self.source.count("mapping/Dense{}/weight")):
            self.linear(f"mapping.layers.{i}", f"mapping/Dense{i}/weight", f"mapping/Dense{i}/bias", lr)


def convert(network: Inert, file_size: int) -> Checkpoint:
    """The generator in a network record. Raises Refused if it is not an unmodified, square StyleGAN2."""
    options, variables, components = _parts(network)
    options, values = dict(options), dict(variables)
    for part in ("mapping", "synthesis"):
        if part in components:
            part_options, part_variables, _ = _parts(components[part])
            options.update(part_options)
            values.update({f"{part}/{name}": value for name, value in part_variables.items()})
    if any("/StyleMod/" in name or "ToRGB_lod" in name for name in values):
        raise Refused("it is a StyleGAN1 or Progressive GAN network; only StyleGAN2 networks can be loaded")
    if "synthesis" not in components or "mapping" not in components:
        if any("FromRGB" in name for name in values) or str(network.state.get("build_func_name")).startswith("D_"):
            raise discriminator_only()
        raise Refused("its TensorFlow network is not a StyleGAN2 generator; give a StyleGAN2 checkpoint")
    if "mapping/LabelConcat/weight" in values:
        raise Refused("it is a class-conditional network of the 2019 TensorFlow program; give an unconditional one")
    source = Source(values, file_size)
    later = [f"synthesis/{4 << b}x{4 << b}/Conv1/weight" in source for b in range(1, MAX_BLOCKS + 1)]
    blocks = count_blocks([True, *later, False])
    conversion = _Conversion(source)
    const = source.take("synthesis/4x4/Const/const", 4)
    check_start(const, blocks)
    conversion.out["synthesis.const"] = const[0]
    _check_options(options)
    for b in range(blocks):
        conversion.block(b)
    conversion.mapping(MAPPING_LR if options.get("mapping_lrmul") is None else options["mapping_lrmul"])
    source.finish(ignored=("lod",))
    config = describe(conversion.out, options.get("conv_clamp"), options.get("resample_kernel") or (1.0, 3.0, 3.0, 1.0))
    return Checkpoint(config, conversion.out, "nvidia-tensorflow")
