"""``draggan-fast plan``: the peak memory of every way to drag, before anything is allocated; with --check, measured."""

from __future__ import annotations

import argparse
import json
from typing import Any

import safetensors
import torch

from draggan_fast import DragConfig, DragError, Generator, GeneratorConfig, Model, models
from draggan_fast.atomic import write_bytes
from draggan_fast.checkpoint import METADATA_KEY, load_checkpoint
from draggan_fast.command_common import check_writable
from draggan_fast.loading import pick_device

from .engines import ENGINES
from .machine import machine
from .planning import Mode, Prediction, modes, predict
from .probe import fresh_baseline_mb, probe
from .rows import row
from .workloads import CONFIG_F, MAPPING_F, default_points

MB = 1e6
BASELINE_MB = 233.0  # the interpreter with torch, where the system does not tell: measured with Python 3.11, torch 2.13


def run(arguments: argparse.Namespace) -> int:
    """Prints the table. 0 if some mode fits into --memory (or none was given), else 1. Raises DragError."""
    out = check_writable(arguments.json, (".json",)) if arguments.json is not None else None
    device = pick_device(arguments.device)
    if arguments.engine is not None and not modes(arguments.engine):
        raise DragError(
            f"plan knows the engines {', '.join(dict.fromkeys(m.engine for m in modes()))}, not {arguments.engine!r}."
        )
    name, network, config, note = subject(arguments.model, arguments.resolution)
    if config.feature_block >= network.num_blocks or config.layers > network.num_ws:
        raise DragError(f"The drag settings in the metadata of {name} do not fit its network; convert it again.")
    default_points(network.resolution, arguments.points)  # refuses what the picture has no room for
    if arguments.check and arguments.resolution is None:
        models.resolve(name)

    baseline = 0 if device.type == "cuda" else int((fresh_baseline_mb() or BASELINE_MB) * MB)
    chosen = modes(arguments.engine, arguments.mask)
    found = [predict(network, config, arguments.points, mode, device.type, baseline) for mode in chosen]
    where = "of the GPU's memory" if device.type == "cuda" else f"of the process, {baseline / MB:.0f} MB of them torch"
    print(f"{name}, {network.resolution}×{network.resolution}, {arguments.points} point(s): peak {where}")
    if note:
        print(note)
    print(f"\n{'engine':<12}{'mask':<7}{'mode':<17}{'predicted':>12}", end="")
    print(
        f"{'fits':>7}" if arguments.memory else "", f"{'measured':>12}{'error':>9}" if arguments.check else "", sep=""
    )
    rows = []
    for prediction in found:
        measured = measure(name, arguments.points, prediction.mode, device) if arguments.check else None
        print(line(prediction, arguments.memory, measured), flush=True)
        rows.append(record(name, network.resolution, arguments.points, prediction, arguments.memory, measured))
    if out is not None:
        content = {"machine": machine(device), "memory_bytes": arguments.memory, "rows": rows}
        try:
            write_bytes(out, (json.dumps(content, indent=1) + "\n").encode())
        except OSError as error:
            raise DragError(f"Cannot write {out}: {error.strerror or error}.") from None
        print(f"→ {out}")
    return verdict(found, arguments.memory)


def subject(model: str | None, resolution: int | None) -> tuple[str, GeneratorConfig, DragConfig, str]:
    """(name, network, drag settings, a remark or "") of a model or a resolution; no weight is read if possible.

    Raises DragError for both at once, or what does not exist.
    """
    if resolution is not None:
        if model is not None:
            raise DragError("Give either --model or --resolution (random weights of config-f width), not both.")
        network = config_f(resolution)
        return f"random-{resolution}", network, drag_config(network, {}), ""
    name = models.DEFAULT_MODEL if model is None else model
    listed = next((info for info in models.list_models() if info.name == name), None)
    if listed is not None and listed.path() is None:
        network = config_f(max(listed.px))
        note = f"{name} is not on this machine yet: these are the widths of config-f, the widest in use."
        return name, network, drag_config(network, {}), note
    network, metadata = header(name)
    return name, network, drag_config(network, metadata), ""


def config_f(resolution: int) -> GeneratorConfig:
    """The published 1024² network's widths at another resolution."""
    if not 8 <= resolution <= 1024 or resolution & (resolution - 1):
        raise DragError(f"A resolution must be a power of two from 8 to 1024, not {resolution}.")
    channels = CONFIG_F[: resolution.bit_length() - 2]
    return GeneratorConfig(resolution, z_dim=512, w_dim=512, channels=channels, mapping_widths=MAPPING_F)


def header(name: str) -> tuple[GeneratorConfig, dict[str, Any]]:
    """Configuration and metadata of a model's file: of a .safetensors its header alone; other kinds tell their
    configuration only when they are read."""
    path = models.resolve(name)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})[METADATA_KEY])
            return GeneratorConfig.from_json(found["config"]), dict(found["metadata"])
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, OSError):
        loaded = load_checkpoint(path)  # another kind; or damaged, and then this says how
        return loaded.config, loaded.metadata


def drag_config(network: GeneratorConfig, metadata: dict[str, Any]) -> DragConfig:
    """The settings that ``load`` would recommend, without weights."""
    with torch.device("meta"):
        generator = Generator(network)
    return Model("", "", generator, "", "", metadata, torch.device("meta"), "fp32").drag_config()


def measure(name: str, points: int, mode: Mode, device: torch.device) -> float:
    """Peak MB of the mode in a process of its own."""
    precision = ENGINES[mode.engine].precisions[0]
    found = probe(
        mode.engine, name, precision, points=points, mask=mode.mask, picture=mode.picture, device=str(device)
    )["peak_mb"]
    if found is None:
        raise DragError("This system does not tell the peak memory of a process, so that --check cannot measure it.")
    return float(found)


def line(prediction: Prediction, memory: int | None, measured: float | None) -> str:
    mode, predicted = prediction.mode, prediction.total / MB
    text = f"{mode.engine:<12}{mode.mask:<7}{mode.name:<17}{predicted:>9,.0f} MB"
    if memory is not None:
        text += f"{'yes' if prediction.total <= memory else 'no':>7}"
    if measured is not None:
        text += f"{measured:>9,.0f} MB{predicted / measured - 1:>+9.1%}"
    return text


def record(
    name: str, resolution: int, points: int, prediction: Prediction, memory: int | None, measured: float | None
) -> dict[str, Any]:
    """A row of the JSON: peak_mb is what was measured, if it was."""
    mode = prediction.mode
    return {
        **row(
            "plan", mode.name, engine=mode.engine, model=name, resolution=resolution, points=points, mask=mode.mask,
            precision=ENGINES[mode.engine].precisions[0], batch=1, peak_mb=measured,
        ),
        "predicted_mb": round(prediction.total / MB, 1),
        "tensors_mb": round(prediction.tensors / MB, 1),
        "fits": None if memory is None else prediction.total <= memory,
    }  # fmt: skip


def verdict(found: list[Prediction], memory: int | None) -> int:
    """Prints whether something fits; the exit code."""
    if memory is None:
        return 0
    fitting = sum(prediction.total <= memory for prediction in found)
    if fitting:
        print(f"\n{fitting} of {len(found)} modes fit into {memory / MB:,.0f} MB.")
        return 0
    least = min(found, key=lambda prediction: prediction.total)
    print(
        f"\nNo mode fits into {memory / MB:,.0f} MB: the smallest ({least.mode.engine}, mask {least.mode.mask}, "
        f"{least.mode.name}) needs {least.total / MB:,.0f} MB."
    )
    return 1
