"""What each command of the command line does, except ``drag``, which has its own file."""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from . import checkpoint, graphs, media, models, ops, session_file, synthesis_ops
from .argument_checks import check_output
from .command_common import provenance, set_threads
from .drag_command import DEFAULT_PSI, drag
from .engine import COMPILE, DTYPES, best_precision, compiles, refusal
from .errors import DragError
from .loading import load, pick_device
from .session import DragSession
from .version import __version__

__all__ = ["COMMANDS", "drag"]

MAX_SHEET = 1024


def parse_seeds(text: str) -> list[int]:
    """The seeds of a list like 0-3,7: [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})(?:-(\d{1,10}))?\s*", part)
        if not match:
            raise DragError(f"{text!r} is not a list of seeds; write for example 0-15 or 3,7,20-29.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise DragError(f"The seeds {part.strip()} must ascend.")
        if last - first >= MAX_SHEET:
            raise DragError(f"The seeds {part.strip()} are too many for one sheet; at most {MAX_SHEET}.")
        seeds.extend(range(first, last + 1))
    if len(seeds) > MAX_SHEET:
        raise DragError(f"{len(seeds)} seeds are too many for one sheet; at most {MAX_SHEET}.")
    return seeds


def generate(arguments: argparse.Namespace) -> int:
    if arguments.columns is not None and arguments.columns < 1:
        raise DragError(f"--columns must be at least 1, not {arguments.columns}.")
    out = check_output(arguments.out, (".png", ".webp"))
    set_threads(arguments.threads)
    seeds = parse_seeds(arguments.seeds)
    model = load(arguments.model, arguments.device, arguments.precision)
    psi = DEFAULT_PSI if arguments.psi is None else arguments.psi
    frames = [DragSession(model, seed=s, truncation_psi=psi, label=arguments.label).render() for s in seeds]
    if arguments.watermark:  # each picture, not the sheet: pictures are cut out of sheets
        frames = [media.draw_watermark(frame) for frame in frames]
    columns = arguments.columns or min(8, int(np.ceil(np.sqrt(len(frames)))))
    sheet = media.contact_sheet(frames, columns, labels=[str(s) for s in seeds])
    media.save_image(out, sheet, info=provenance(model))
    print(f"{len(frames)} pictures of {model.name} → {out}")
    return 0


def convert(arguments: argparse.Namespace) -> int:
    destination = check_output(arguments.destination, (".safetensors",))
    loaded = checkpoint.load_checkpoint(arguments.source)
    checkpoint.save_checkpoint(destination, loaded, dtype=torch.float16 if arguments.half else torch.float32)
    written = checkpoint.load_checkpoint(destination)
    config = loaded.config
    count = sum(t.numel() for t in loaded.tensors.values())
    print(
        f"{arguments.source}: {loaded.family}, {config.resolution}×{config.resolution}, architecture "
        f"{config.architecture}, channels {'-'.join(map(str, config.channels))}, z {config.z_dim}, w {config.w_dim}, "
        f"classes {config.c_dim}, {count / 1e6:.1f} M values\n"
        f"→ {destination} ({destination.stat().st_size / 1e6:.1f} MB), "
        f"content {checkpoint.content_hash(written.tensors, config)[:12]}"
    )
    return 0


def replay(arguments: argparse.Namespace) -> int:
    out = check_output(arguments.out, (".png", ".webp")) if arguments.out else None
    model = None
    if arguments.model is not None or arguments.device != "auto":
        named = arguments.model or session_file.recorded_source(arguments.session)
        model = load(named, arguments.device)
    found = session_file.replay_session(arguments.session, model)
    if out:
        media.save_image(out, found.session.render(), info=provenance(found.session.model))
    if found.session.seed is None:
        start = "from a given latent"
    else:
        start = "the start belongs to the seed" if found.same_start else "the start does NOT belong to the seed"
    handles = "the same handles at every step" if found.same_handles else "DIFFERENT handles"
    print(
        f"{'reproduced' if found.reproduced else 'NOT reproduced'}: {len(found.session.trajectory)} steps, {start}, "
        f"{handles}, latent within {found.max_w_difference:.2g}, losses within {found.max_loss_difference:.2g}"
    )
    return 0 if found.reproduced else 1


def list_models(arguments: argparse.Namespace) -> int:
    """``models`` and ``models pull NAME``."""
    if arguments.action == "pull":
        if arguments.name is None:
            raise DragError("Name the model to pull: draggan-fast models pull NAME.")
        return pull_model(arguments.name)
    if arguments.name is not None:
        raise DragError(
            f"'models list' takes no name; to download a model write: draggan-fast models pull {arguments.name}."
        )
    print(f"{'name':<16} {'pixels':<10} {'here':<8} {'size':>8}  what it draws")
    licences: dict[str, list[str]] = {}
    for info in models.list_models():
        path = info.path()
        state = "yes" if path else {"embedded": "MISSING", "manual": "by hand"}.get(info.kind, "pull it")
        size = path.stat().st_size if path else info.size
        shown = f"{size / 1e6:.0f} MB" if size else "?"
        print(f"{info.name:<16} {f'{info.px[1]}×{info.px[0]}':<10} {state:<8} {shown:>8}  {info.note}")
        licences.setdefault(info.licence, []).append(info.name)
    print("\nLicences")
    for licence, names in licences.items():
        print(f"  {', '.join(names) if len(names) < 6 else f'{names[0]} … {names[-1]} ({len(names)})'}: {licence}")
    return 0


def pull_model(name: str) -> int:
    with tqdm(unit="B", unit_scale=True, disable=None, desc=name) as bar:

        def progress(arrived: int, total: int | None) -> None:
            bar.total = total
            bar.update(arrived - bar.n)

        path = models.pull(name, progress=progress)
    print(f"{name} → {path}")
    return 0


def cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.machine()


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def compiled_library() -> str:
    info = ops.compiled_parts()
    if not info.get("cpu"):
        return (
            f"absent ({info.get('error')}): the reference kernels serve, many times slower; to build it install with a "
            "C++ compiler, with torch present and with pip's --no-build-isolation"
        )
    levels = ", ".join(info["levels"])
    cuda = "with CUDA kernels" if info["cuda"] else "without CUDA kernels"
    return f"present, built by {info['compiler']}, {cuda}; vector instructions {info['level']} (of {levels})"


def serving_backends() -> dict[str, str]:
    """Op → what serves it, on the CPU and on a CUDA device if there is one."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    try:
        found = {device: ops.backends(device) for device in devices}
    except DragError as error:  # DRAGGAN_FAST_BACKEND names one that cannot serve
        return dict.fromkeys(ops.OPS, str(error))
    return {
        op: "; on CUDA ".join(f"{found[device][op].name}: {found[device][op].reason}" for device in devices)
        for op in ops.OPS
    }


def told(question: Callable[[], Any]) -> Any:
    """The answer, or the sentence that says why there is none: an environment variable that asks for what is not here
    must not keep doctor from its report."""
    try:
        return question()
    except DragError as error:
        return str(error)


def diagnosis() -> dict[str, Any]:
    cuda = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    capability, device = torch.backends.cpu.get_cpu_capability(), pick_device("auto")
    try:
        embedded = str(models.resolve(models.DEFAULT_MODEL).name)
    except DragError as error:
        embedded = f"missing: {error}"
    return {
        "draggan_fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {p: version_of(p) for p in ("torch", "triton", "numpy", "pillow", "safetensors", "av")},
        "cpu": {"name": cpu_name(), "threads": torch.get_num_threads(), "vector instructions": capability},
        "cuda": cuda or "no CUDA device; the CPU is used",
        "compiled library": compiled_library(),
        "precision": ": ".join(best_precision(device)),
        "precisions to ask for": [name for name in DTYPES if refusal(name, device) is None],
        "steps": told(lambda: graphs.about(device)),
        "torch.compile": told(
            lambda: f"{'on' if compiles(device) else 'off'}; on GPUs, for who sets {COMPILE}=on; not measured yet"
        ),
        "mp4": "yes" if version_of("av") else "no: pip install 'draggan-fast[video]'",
        "embedded model": embedded,
        "passes around convolutions": told(lambda: synthesis_ops.backend(device.type)),
        "ops": serving_backends(),
    }


def doctor(arguments: argparse.Namespace) -> int:
    found = diagnosis()
    healthy = not str(found["embedded model"]).startswith("missing")
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0 if healthy else 1
    for key, value in found.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, entry in value.items():
                print(f"  {name:<20} {entry if entry is not None else 'not installed'}")
        else:
            print(f"{key:<22} {', '.join(value) if isinstance(value, list) else value}")
    return 0 if healthy else 1


COMMANDS = {
    "drag": drag,
    "generate": generate,
    "models": list_models,
    "convert": convert,
    "replay": replay,
    "doctor": doctor,
}
