"""``draggan-fast drag``: one drag from arguments to a folder of pictures, animation, session and report."""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tqdm import tqdm

from . import media
from .atomic import write_bytes
from .config import DragConfig
from .errors import DragError
from .loading import Model, load
from .session import DragSession, StepResult
from .version import __version__

EXIT_REACHED, EXIT_STEPS_RAN_OUT, EXIT_INTERRUPTED = 0, 3, 130
MAX_FRAMES = 120  # of the animation: a long drag shows every second, fourth, … step
SHOWN_SIZE = 512  # animation and comparison are enlarged to about this height: marks need room


@dataclass
class Recording:
    """Shots for the animation, thinned as the drag grows so that memory and file stay bounded."""

    shots: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)  # step, handle_points, frame
    stride: int = 1

    def add(self, step: int, handle_points: np.ndarray, frame: np.ndarray) -> None:
        self.shots.append((step, handle_points, frame))
        if len(self.shots) > MAX_FRAMES:
            self.stride *= 2
            self.shots = [shot for shot in self.shots if self.wants(shot[0])]

    def wants(self, step: int) -> bool:
        return step % self.stride == 0

    def finish(self, step: int, handle_points: np.ndarray, frame: np.ndarray) -> None:
        """The last shot, which is kept whatever the stride."""
        if self.shots[-1][0] != step:
            self.shots.append((step, handle_points, frame))


def read_latent(path: str) -> np.ndarray:
    """w or w_plus from a session, .safetensors, .npy or .npz file; raises DragError if there is none in it."""
    file = Path(path)
    try:
        if file.suffix == ".safetensors":
            arrays = dict(load_file(file))
        elif file.suffix in (".npy", ".npz"):
            loaded = np.load(file, allow_pickle=False)
            arrays = {"w": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        else:
            raise DragError(f"The latent {path!r} must be a .safetensors, .npy or .npz file.")
    except (OSError, ValueError, EOFError, SafetensorError) as error:
        raise DragError(f"The latent {path!r} cannot be read ({error}).") from None
    for name in ("w_plus", "w"):
        if name in arrays:
            return np.asarray(arrays[name], np.float32)
    raise DragError(f"{path!r} holds no latent named w_plus or w, only {', '.join(sorted(arrays)) or 'nothing'}.")


def chosen_config(arguments: argparse.Namespace, model: Model) -> DragConfig:
    """The preset, changed by whatever the command line names."""
    changes: dict[str, Any] = {
        "lr": arguments.lr,
        "r1": arguments.r1,
        "r2": arguments.r2,
        "lambda_mask": arguments.lambda_mask,
        "feature_block": arguments.feature_block,
        "stop_distance": arguments.stop_distance,
        "max_steps": arguments.steps,
        "space": {"w+": "w_plus", "w": "w", None: None}[arguments.space],
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if arguments.preset == "model":
        return model.drag_config(**changes)
    fitting = {"feature_block": min(5, model.config.num_blocks - 1), "layers": min(6, model.config.num_ws)}
    preset = DragConfig.paper if arguments.preset == "paper" else DragConfig.published
    return preset(**{**fitting, **changes})


def prepare_folder(path: str) -> Path:
    """Makes the folder and proves that it can be written, before any work is done."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".draggan-fast-probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise DragError(f"Cannot write to the folder {path!r}: {error.strerror or error}.") from None
    return folder


@contextlib.contextmanager
def interruptible() -> Iterator[list[bool]]:
    """Ctrl-C sets a flag that ends the drag after its step; a second Ctrl-C interrupts at once."""
    pressed: list[bool] = []

    def handler(_signal: int, _frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    try:
        previous = signal.signal(signal.SIGINT, handler)
    except ValueError:  # not the main thread: whoever embeds us handles signals
        yield pressed
        return
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def check_points(arguments: argparse.Namespace) -> None:
    handles, targets = arguments.handle, arguments.target
    if not handles:
        raise DragError("Give at least one --handle X,Y with its --target X,Y.")
    if len(handles) != len(targets):
        raise DragError(f"{len(handles)} --handle but {len(targets)} --target: give one target per handle.")
    if all(h == t for h, t in zip(handles, targets, strict=True)):
        raise DragError("Every handle is at its target already: there is nothing to drag.")


def drag(arguments: argparse.Namespace) -> int:
    check_points(arguments)
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise DragError(f"--threads must be at least 1, not {arguments.threads}.")
        torch.set_num_threads(arguments.threads)
    latent = read_latent(arguments.latent) if arguments.latent else None
    model = load(arguments.model, arguments.device, arguments.precision)
    session = DragSession(
        model,
        seed=None if latent is not None else (arguments.seed or 0),
        w=latent,
        truncation_psi=arguments.psi,
        label=arguments.label,
        config=chosen_config(arguments, model),
    )
    if arguments.movable:
        session.set_mask(media.load_mask(arguments.movable, session.image_size))
    session.set_points(arguments.handle, arguments.target)
    start_handles = session.handle_points
    folder = prepare_folder(arguments.out)

    before = session.render()
    recording = Recording()
    recording.add(0, start_handles, before)
    milliseconds: list[float] = []
    with interruptible() as pressed, tqdm(total=session.config.max_steps, unit="step", disable=None) as bar:
        clock = time.perf_counter()

        def follow(result: StepResult) -> bool:
            nonlocal clock
            milliseconds.append((time.perf_counter() - clock) * 1e3)
            bar.set_postfix_str(f"distance {result.distances.max():.1f} px, {milliseconds[-1]:.0f} ms/step")
            bar.update()
            if arguments.animation != "none" and recording.wants(result.index + 1):
                recording.add(result.index + 1, result.handle_points, session.render())
            clock = time.perf_counter()
            return not pressed

        result = session.run(callback=follow)
    after = session.render()
    write_results(arguments, folder, session, recording, milliseconds, before, after, start_handles)

    worst = float(result.distances.max())
    median = float(np.median(milliseconds))
    outcome = "reached" if result.done else ("interrupted" if pressed else "not reached")
    print(f"{outcome} after {len(milliseconds)} steps, {worst:.1f} px from the target, {median:.0f} ms/step → {folder}")
    if result.done:
        return EXIT_REACHED
    return EXIT_INTERRUPTED if pressed else EXIT_STEPS_RAN_OUT


def write_results(
    arguments: argparse.Namespace,
    folder: Path,
    session: DragSession,
    recording: Recording,
    milliseconds: list[float],
    before: np.ndarray,
    after: np.ndarray,
    start_handles: np.ndarray,
) -> None:
    model = session.model
    info = media.Provenance(model=model.name, model_hash=model.content_hash)
    marks = arguments.overlay
    scale = max(1, round(SHOWN_SIZE / session.image_size[0]))
    targets, mask = session.target_points, session.movable_mask

    def shown(frame: np.ndarray, handles: np.ndarray, trail: np.ndarray | None = None) -> np.ndarray:
        if not marks:
            return media.upscale(frame, scale)
        return media.draw_overlay(frame, handles, targets, mask, scale=scale, trail=trail)

    media.save_image(folder / "before.png", before, info=info, watermark=arguments.watermark)
    media.save_image(folder / "after.png", after, info=info, watermark=arguments.watermark)
    comparison = media.side_by_side(
        [shown(before, start_handles), shown(after, session.handle_points)], labels=("before", "after")
    )
    media.save_image(folder / "comparison.png", comparison, info=info, watermark=arguments.watermark)
    if arguments.animation != "none":
        recording.finish(len(session.trajectory), session.handle_points, after)
        path = np.stack([handles for _, handles, _ in recording.shots])
        frames = (shown(frame, handles, path[:i]) for i, (_, handles, frame) in enumerate(recording.shots))
        media.save_animation(
            folder / f"drag.{arguments.animation}", frames, fps=arguments.fps, info=info, watermark=arguments.watermark
        )
    session.save(folder / "session.safetensors")
    report = make_report(session, milliseconds, start_handles, arguments)
    try:
        write_bytes(folder / "report.json", json.dumps(report, indent=1, allow_nan=False).encode())
    except OSError as error:
        raise DragError(f"Cannot write {str(folder / 'report.json')!r}: {error.strerror or error}.") from None


def make_report(
    session: DragSession, milliseconds: list[float], start_handles: np.ndarray, arguments: argparse.Namespace
) -> dict[str, Any]:
    return {
        "program": f"draggan_fast {__version__}",
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(session.model.device),
        "threads": torch.get_num_threads(),
        "precision": session.model.precision,
        "model": {"name": session.model.name, "content_hash": session.model.content_hash},
        "seed": session.seed,
        "latent": arguments.latent,
        "truncation_psi": session.truncation_psi,
        "config": session.config.to_json(),
        "image_size": list(session.image_size),
        "handle_points": start_handles.tolist(),
        "target_points": session.target_points.tolist(),
        "reached": session.done,
        "steps": [
            {
                "handle_points": r.handle_points.tolist(),
                "distances": [round(float(d), 4) for d in r.distances],
                "loss": r.loss,
                "ms": round(ms, 3),
            }
            for r, ms in zip(session.trajectory, milliseconds, strict=True)
        ],
    }
