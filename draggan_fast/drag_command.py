"""``draggan-fast drag``: one drag from arguments to a folder of pictures, animation, session and report."""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from . import media
from .atomic import write_bytes
from .command_common import check_folder, provenance, set_threads
from .config import DragConfig
from .errors import DragError
from .latent_file import read_latent
from .loading import Model, load
from .session import DragSession
from .version import __version__

EXIT_REACHED, EXIT_STEPS_RAN_OUT, EXIT_INTERRUPTED = 0, 3, 130
DEFAULT_PSI = 0.7
MAX_FRAMES = 120  # of the animation: a long drag shows every second, fourth, … step
SHOWN_SIZE = 512  # animation and comparison are enlarged to about this height: marks need room


@dataclass
class Recording:
    """Shots for the animation, thinned as the drag grows so that memory and file stay bounded."""

    shots: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)  # step, handle_points, frame
    stride: int = 1

    def wants(self, step: int) -> bool:
        return step % self.stride == 0

    def add(self, step: int, handle_points: np.ndarray, frame: np.ndarray) -> None:
        self.shots.append((step, handle_points, frame))
        if len(self.shots) > MAX_FRAMES:
            self.stride *= 2
            self.shots = [shot for shot in self.shots if self.wants(shot[0])]

    def finish(self, step: int, handle_points: np.ndarray, frame: np.ndarray) -> None:
        """The last shot, which is kept whatever the stride."""
        if not self.shots or self.shots[-1][0] != step:
            self.shots.append((step, handle_points, frame))


@dataclass
class Outcome:
    """What a drag has left behind, whether it ended well, was interrupted or failed."""

    start_handles: np.ndarray
    before: np.ndarray
    recording: Recording = field(default_factory=Recording)
    milliseconds: list[float] = field(default_factory=list)
    interrupted: bool = False
    failure: DragError | None = None


def chosen_config(arguments: argparse.Namespace, model: Model) -> DragConfig:
    """The preset, changed by whatever the command line names."""
    changes: dict[str, Any] = {
        "lr": arguments.lr,
        "r1": arguments.r1,
        "r2": arguments.r2,
        "lambda_mask": arguments.lambda_mask,
        "engine": arguments.engine,
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


def check_arguments(arguments: argparse.Namespace) -> None:
    """Whatever can be refused before a model is loaded."""
    handles, targets = arguments.handle, arguments.target
    if not handles:
        raise DragError("Give at least one --handle X,Y with its --target X,Y.")
    if len(handles) != len(targets):
        raise DragError(f"{len(handles)} --handle but {len(targets)} --target: give one target per handle.")
    if arguments.latent and (arguments.psi is not None or arguments.label is not None):
        raise DragError("--psi and --label belong to a seed; a --latent is taken as it is.")
    if arguments.animation != "none":
        media.check_animation(f"drag.{arguments.animation}", fps=arguments.fps)


def start_session(arguments: argparse.Namespace) -> DragSession:
    latent = read_latent(arguments.latent) if arguments.latent else None
    model = load(arguments.model, arguments.device, arguments.precision)
    config = chosen_config(arguments, model)
    if latent is not None:
        session = DragSession(model, w=latent, truncation_psi=1.0, config=config)
    else:
        psi = DEFAULT_PSI if arguments.psi is None else arguments.psi
        seed = 0 if arguments.seed is None else arguments.seed
        session = DragSession(model, seed=seed, truncation_psi=psi, label=arguments.label, config=config)
    if arguments.movable:
        session.set_mask(media.load_mask(arguments.movable, session.image_size))
    session.set_points(arguments.handle, arguments.target)
    if np.array_equal(session.handle_points, session.target_points):
        raise DragError("Every handle is at its target already: there is nothing to drag.")
    return session


def run_drag(session: DragSession, animate: bool, pressed: list[bool]) -> Outcome:
    """Steps until the targets are reached, the steps run out, Ctrl-C or a failing step."""
    outcome = Outcome(session.handle_points, session.render())
    limit = session.config.max_steps
    with tqdm(total=limit, unit="step", disable=None) as bar:
        for index in range(limit):
            start = time.perf_counter()
            # The picture goes first: it shares the step's features, and the step's handles are those in it.
            frame = session.render() if animate and outcome.recording.wants(index) else None
            try:
                result = session.step()
            except DragError as error:
                outcome.failure = error
                break
            outcome.milliseconds.append((time.perf_counter() - start) * 1e3)
            if frame is not None:
                outcome.recording.add(index, result.handle_points, frame)
            bar.set_postfix_str(f"distance {result.distances.max():.1f} px, {outcome.milliseconds[-1]:.0f} ms/step")
            bar.update()
            if result.done or pressed:
                break
        outcome.interrupted = bool(pressed) and not session.done
    return outcome


def drag(arguments: argparse.Namespace) -> int:
    check_arguments(arguments)
    set_threads(arguments.threads)
    session = start_session(arguments)
    with interruptible() as pressed:
        folder = check_folder(arguments.out)
        outcome = run_drag(session, arguments.animation != "none", pressed)
        write_results(arguments, folder, session, outcome)
    if outcome.failure is not None:
        raise DragError(f"{outcome.failure} What was done before is in {folder}.")

    worst = float(np.linalg.norm(session.target_points - session.locate(), axis=1).max())
    steps, median = len(outcome.milliseconds), float(np.median(outcome.milliseconds))
    if session.done and session.trajectory[0].done:
        print(f"reached: every handle was within the stop distance already, nothing was moved → {folder}")
    else:
        ending = "reached" if session.done else ("interrupted" if outcome.interrupted else "not reached")
        print(f"{ending} after {steps} steps, {worst:.1f} px from the target, {median:.0f} ms/step → {folder}")
    if session.done:
        return EXIT_REACHED
    return EXIT_INTERRUPTED if outcome.interrupted else EXIT_STEPS_RAN_OUT


def write_results(arguments: argparse.Namespace, folder: Path, session: DragSession, outcome: Outcome) -> None:
    """Session and report first: pictures can be made again from them."""
    session.save(folder / "session.safetensors")
    report = make_report(arguments, session, outcome)
    try:
        write_bytes(folder / "report.json", json.dumps(report, indent=1, allow_nan=False).encode())
    except OSError as error:
        raise DragError(f"Cannot write {str(folder / 'report.json')!r}: {error.strerror or error}.") from None

    info, watermark = provenance(session.model), arguments.watermark
    after, handles = session.render(), session.locate()
    targets, mask = session.target_points, session.movable_mask
    scale = max(1, round(SHOWN_SIZE / session.image_size[0]))

    def shown(
        frame: np.ndarray, points: np.ndarray, trail: np.ndarray | None = None, region: np.ndarray | None = mask
    ) -> np.ndarray:
        if not arguments.overlay:
            return media.upscale(frame, scale)
        return media.draw_overlay(frame, points, targets, region, scale=scale, trail=trail)

    media.save_image(folder / "before.png", outcome.before, info=info, watermark=watermark)
    media.save_image(folder / "after.png", after, info=info, watermark=watermark)
    # The fixed region is dimmed on the left only: on the right one wants to see that it has stayed.
    pair = [shown(outcome.before, outcome.start_handles), shown(after, handles, region=None)]
    comparison = media.side_by_side(pair, labels=("before", "after"))
    media.save_image(folder / "comparison.png", comparison, info=info, watermark=watermark)
    for other in ("webp", "gif", "mp4"):  # of an earlier drag into this folder: it would pass for this one's
        if other != arguments.animation:
            (folder / f"drag.{other}").unlink(missing_ok=True)
    if arguments.animation == "none":
        return
    # A drag that is done ended with a step that changed nothing: its picture is the last one already.
    last = len(session.trajectory) - (1 if session.done else 0)
    outcome.recording.finish(last, handles, after)
    shots = outcome.recording.shots
    path = np.stack([points for _, points, _ in shots])
    frames = (shown(frame, points, path[:i]) for i, (_, points, frame) in enumerate(shots))
    name = f"drag.{arguments.animation}"
    media.save_animation(folder / name, frames, fps=arguments.fps, info=info, watermark=watermark)


def make_report(arguments: argparse.Namespace, session: DragSession, outcome: Outcome) -> dict[str, Any]:
    """Everything a script wants to know. ``ms`` is wall time of a step, with its picture if one was rendered."""
    model = session.model
    return {
        "program": f"draggan_fast {__version__}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "engine": session.engine,
        "precision": session.precision,
        "model": {"name": model.name, "source": model.source, "content_hash": model.content_hash},
        "seed": None if session.seed is None else int(session.seed),
        "label": session.label,
        "truncation_psi": None if session.seed is None else session.truncation_psi,
        "latent": arguments.latent,
        "movable": arguments.movable,
        "config": session.config.to_json(),
        "image_size": list(session.image_size),
        "handle_points": outcome.start_handles.tolist(),
        "target_points": session.target_points.tolist(),
        "final_handle_points": session.locate().tolist(),
        "reached": session.done,
        "interrupted": outcome.interrupted,
        "failure": None if outcome.failure is None else str(outcome.failure),
        "steps": [
            {
                "handle_points": r.handle_points.tolist(),
                "distances": [round(float(d), 4) for d in r.distances],
                "loss": r.loss,
                "ms": round(ms, 3),
            }
            for r, ms in zip(session.trajectory, outcome.milliseconds, strict=True)
        ],
    }
