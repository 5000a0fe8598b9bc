"""What each command of the command line does, except ``drag``, which has its own file."""

from __future__ import annotations

import argparse
import json
import platform
import re
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from . import checkpoint, media, models, ops, session_file
from .drag_command import drag
from .errors import DragError
from .loading import Model, load
from .session import DragSession
from .version import __version__

__all__ = ["COMMANDS", "drag"]

MAX_SHEET = 1024


def provenance(model: Model) -> media.Provenance:
    return media.Provenance(model=model.name, model_hash=model.content_hash)


def parse_seeds(text: str) -> list[int]:
    """ "0-3,7" → [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})(?:-(\d{1,10}))?\s*", part)
        if not match:
            raise DragError(f"{text!r} is not a list of seeds; write for example 0-15 or 3,7,20-29.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= MAX_SHEET:
            raise DragError(f"The seeds {part.strip()} must ascend and be at most {MAX_SHEET}.")
        seeds.extend(range(first, last + 1))
    if len(seeds) > MAX_SHEET:
        raise DragError(f"{len(seeds)} seeds are too many for one sheet; at most {MAX_SHEET}.")
    return seeds


def generate(arguments: argparse.Namespace) -> int:
    if arguments.columns is not None and arguments.columns < 1:
        raise DragError(f"--columns must be at least 1, not {arguments.columns}.")
    set_threads(arguments.threads)
    seeds = parse_seeds(arguments.seeds)
    model = load(arguments.model, arguments.device, arguments.precision)
    frames = [
        DragSession(model, seed=seed, truncation_psi=arguments.psi, label=arguments.label).render() for seed in seeds
    ]
    columns = arguments.columns or min(8, int(np.ceil(np.sqrt(len(frames)))))
    sheet = media.contact_sheet(frames, columns)
    media.save_image(arguments.out, sheet, info=provenance(model), watermark=arguments.watermark)
    print(f"{len(frames)} pictures of {model.name} → {arguments.out}")
    return 0


def set_threads(threads: int | None) -> None:
    if threads is not None:
        if threads < 1:
            raise DragError(f"--threads must be at least 1, not {threads}.")
        torch.set_num_threads(threads)


def convert(arguments: argparse.Namespace) -> int:
    destination = Path(arguments.destination)
    if destination.suffix != ".safetensors":
        raise DragError(f"The converted file must end in .safetensors, not {destination.name!r}.")
    loaded = checkpoint.load_checkpoint(arguments.source)
    checkpoint.save_checkpoint(destination, loaded, dtype=torch.float16 if arguments.half else torch.float32)
    config = loaded.config
    count = sum(t.numel() for t in loaded.tensors.values())
    print(
        f"{arguments.source}: {loaded.family}, {config.resolution}×{config.resolution}, architecture "
        f"{config.architecture}, channels {'-'.join(map(str, config.channels))}, z {config.z_dim}, w {config.w_dim}, "
        f"classes {config.c_dim}, {count / 1e6:.1f} M values\n"
        f"→ {destination} ({destination.stat().st_size / 1e6:.1f} MB), "
        f"content {checkpoint.content_hash(loaded.tensors, config)[:12]}"
    )
    return 0


def replay(arguments: argparse.Namespace) -> int:
    model = None
    if arguments.model is not None or arguments.device != "auto":
        named = arguments.model or session_file.read_file(Path(arguments.session))[0]["model"]["name"]
        model = load(named, arguments.device)
    found = session_file.replay_session(arguments.session, model)
    if arguments.out:
        media.save_image(arguments.out, found.session.render(), info=provenance(found.session.model))
    steps = len(found.session.trajectory)
    verdict = "the same handles at every step" if found.same_handles else "DIFFERENT handles"
    print(f"{steps} steps replayed: {verdict}, latent within {found.max_w_difference:.2g}")
    return 0 if found.same_handles else 1


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
    print(f"{'name':<16} {'pixels':<10} {'here':<9} {'size':>8}  what it draws")
    for info in models.list_models():
        path = info.path()
        state = {"embedded": "embedded", "manual": "by hand"}.get(info.kind, "pull it") if not path else "yes"
        size = info.size if path is None else path.stat().st_size
        shown = f"{size / 1e6:.0f} MB" if size else "?"
        print(f"{info.name:<16} {f'{info.px[1]}×{info.px[0]}':<10} {state:<9} {shown:>8}  {info.note}")
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
    try:
        info = import_module("draggan_fast._C").build_info()
    except ImportError as error:
        return (
            f"absent ({error}): the reference kernels serve; install with a C++ compiler and torch present to build it"
        )
    return f"present, built by {info['compiler']} (holds no op yet)"


def diagnosis() -> dict[str, Any]:
    cuda = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    capability = torch.backends.cpu.get_cpu_capability()
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
        "precision": "fp32 (the only one so far)",
        "mp4": "yes" if version_of("av") else "no: pip install 'draggan-fast[video]'",
        "embedded model": embedded,
        "ops": {op: f"{b.name}: {b.reason}" for op, b in ops.backends().items()},
    }


def doctor(arguments: argparse.Namespace) -> int:
    found = diagnosis()
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    for key, value in found.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, entry in value.items():
                print(f"  {name:<20} {entry if entry is not None else 'not installed'}")
        else:
            print(f"{key:<22} {', '.join(value) if isinstance(value, list) else value}")
    return 0


COMMANDS = {
    "drag": drag,
    "generate": generate,
    "models": list_models,
    "convert": convert,
    "replay": replay,
    "doctor": doctor,
}
