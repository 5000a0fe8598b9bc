"""Saved sessions: one .safetensors file, its tensors plus a JSON document in the metadata. Nothing in it is code.

A file holds what is needed to go on exactly where the session stopped (latent, optimiser, references, mask) and
what is needed to do it all again from the start (seed, events), which ``replay`` uses as a proof. Undo history is
not kept.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from . import engine, loading
from .atomic import write_bytes
from .config import DragConfig
from .errors import DragError
from .inputs import as_points, is_whole
from .loading import Model
from .session import DragSession, SessionState, StepResult, read_only
from .version import __version__

FORMAT = "draggan-fast-session"
FORMAT_VERSION = 2  # 1 did not say who computed the session: the reference engine did
MAX_FILE_BYTES = 1 << 30
STATE_TENSORS = (
    "parameter",
    "adam_mean",
    "adam_variance",
    "handle_points",
    "target_points",
    "references",
    "mask_w_plus",
)


W_TOLERANCE = 1e-3  # what a replay on another machine, with other vector instructions, may differ by
LOSS_TOLERANCE = 1e-2  # relative
DAMAGE = (LookupError, ArithmeticError, TypeError, AttributeError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Replay:
    """What a replay found: the session done again, and how the record compares with it.

    same_start: the recorded seed (if any) gives the recorded start latent.  same_handles: at every step.
    max_w_difference: of the final w_plus.  max_loss_difference: relative.
    """

    session: DragSession
    same_start: bool
    same_handles: bool
    max_w_difference: float
    max_loss_difference: float

    @property
    def reproduced(self) -> bool:
        """Whether the record is what the program does: start, handles, and latent and losses within rounding."""
        close = self.max_w_difference <= W_TOLERANCE and self.max_loss_difference <= LOSS_TOLERANCE
        return self.same_start and self.same_handles and close


def save_session(session: DragSession, path: str | os.PathLike[str]) -> Path:
    """Writes the session atomically. Raises DragError if that is not possible; an old file then stays whole."""
    state = session._state
    tensors: dict[str, Tensor] = {"w0": session._w0, "w_plus": session.w_plus}
    for name in STATE_TENSORS:
        value = getattr(state, name)
        if value is not None:
            tensors[f"state.{name}"] = value
    if state.movable_mask is not None:
        tensors["state.movable_mask"] = state.movable_mask.to(torch.uint8)
    events = []
    for index, event in enumerate(state.events):
        if event["kind"] == "mask":
            if event["movable_mask"] is not None:
                tensors[f"mask.{index}"] = torch.from_numpy(event["movable_mask"].astype(np.uint8))
            events.append({"kind": "mask", "tensor": event["movable_mask"] is not None})
        else:
            events.append(event)
    document = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "program": f"draggan_fast {__version__}",
        "model": {
            "name": session.model.name,
            "source": session.model.source,
            "content_hash": session.model.content_hash,
        },
        "start": {
            "seed": None if session.seed is None else int(session.seed),
            "label": session.label,
            "truncation_psi": session.truncation_psi,
            "truncation_cutoff": session.truncation_cutoff,
            "noise": session.noise,
        },
        "config": session.config.to_json(),
        "computed_by": {"engine": session.engine, "precision": session.precision},
        "adam_steps": state.adam_steps,
        "moved": state.moved,
        "done": state.done,
        "drag_open": state.drag_open,
        "events": events,
        "trajectory": [
            {
                "handle_points": r.handle_points.tolist(),
                "distances": r.distances.tolist(),
                "loss": r.loss,
                "done": r.done,
            }
            for r in state.trajectory
        ],
    }
    copies = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}  # safetensors refuses shared memory
    data = save(copies, metadata={"session": json.dumps(document, allow_nan=False)})
    target = Path(path)
    try:
        write_bytes(target, data)
    except OSError as error:
        raise DragError(f"Cannot write the session {str(target)!r}: {error.strerror or error}.") from None
    return target


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON document and the tensors of a session file; raises DragError if it is not one."""
    if not path.is_file():
        raise DragError(f"There is no session file {str(path)!r}.")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DragError(f"{str(path)!r} is far too large for a session file.")
        with path.open("rb"):
            pass
    except OSError as error:
        raise DragError(f"Cannot read {str(path)!r}: {error.strerror or error}.") from None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        document = json.loads(metadata["session"])
        if document["format"] != FORMAT:
            raise KeyError("format")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError):
        raise DragError(f"{str(path)!r} is not a session file of draggan-fast, or it is damaged.") from None
    if document.get("version") not in (1, FORMAT_VERSION):
        raise DragError(
            f"{str(path)!r} has session format {document.get('version')!r}; this program reads 1 and {FORMAT_VERSION}."
        )
    return document, tensors


def find_model(path: Path, named: dict[str, Any]) -> Model:
    """The model a session file names: by what it was loaded from, as far as that is here."""
    source, name, wanted = str(named["source"]), str(named["name"]), str(named["content_hash"])
    try:
        return loading.load(source)
    except DragError as error:
        raise DragError(
            f"The session {str(path)!r} needs the model {name!r} (content {wanted[:12]}), which was loaded from "
            f"{source!r}: {error} Give the model itself (--model, or model= in Python)."
        ) from None


def open_start(path: Path, model: Model | None, exactly: bool) -> tuple[DragSession, dict[str, Any], dict[str, Tensor]]:
    """A session at the file's start latent, with the document and the tensors. exactly: by the recorded engine in the
    recorded precision, even if the model was loaded with another."""
    document, tensors = read_file(path)
    try:
        named = document["model"]
        wanted = str(named["content_hash"])
        start = dict(document["start"])
        config = DragConfig.from_json(document["config"])
        if model is None:
            model = find_model(path, named)
        if model.content_hash != wanted:
            raise DragError(
                f"{str(path)!r} was made with the model {str(named['name'])!r} ({wanted[:12]}…), not with this "
                f"{model.name!r} ({model.content_hash[:12]}…); give the right one."
            )
        seed, label = start.pop("seed"), start.pop("label")
        for value in (seed, label):
            if value is not None and not is_whole(value):
                raise ValueError("seed and label must be whole numbers")
        # What "auto" meant when the session was made, so that it goes on the same way here. Files from before there
        # was a choice were made by the reference.
        by = document.get("computed_by", {"engine": "reference", "precision": "fp32"})
        precision = str(by["precision"])
        if exactly or (model.precision == "auto" and engine.refusal(precision, model.device) is None):
            same = replace(model, precision=precision)
            session = DragSession(same, w=tensors["w0"], config=replace(config, engine=by["engine"]), **start)
            session.model, session.config = model, config
        else:
            session = DragSession(model, w=tensors["w0"], config=config, **start)
    except DragError:
        raise
    except DAMAGE as error:
        raise damaged(path, error) from None
    session.seed, session.label = seed, label
    return session, document, tensors


def damaged(path: Path, error: Exception) -> DragError:
    return DragError(f"The session file {str(path)!r} is damaged ({type(error).__name__}: {error}).")


def load_session(path: str | os.PathLike[str], model: Model | None = None) -> DragSession:
    """A saved session, ready to go on: by the engine and in the precision that it was made with, unless the model was
    loaded with a precision of its own, or this device does not serve the recorded one.

    Raises DragError for a damaged file or another model.
    """
    path = Path(path)
    session, document, tensors = open_start(path, model, exactly=False)
    try:
        state = read_state(session, document, tensors)
    except DAMAGE as error:  # DragError, from a point outside the picture, is a ValueError
        raise damaged(path, error) from None
    session._adopt(state)
    return session


def read_state(session: DragSession, document: dict[str, Any], tensors: dict[str, Tensor]) -> SessionState:
    """The state in the file; raises one of DAMAGE unless everything fits the model, the picture and each other."""
    values: dict[str, Any] = {n: tensors[f"state.{n}"] for n in STATE_TENSORS if f"state.{n}" in tensors}
    for name, tensor in values.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} has the type {tensor.dtype}")
        if name != "references" and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinite values")
    network, (height, width) = session.model.config, session.image_size
    points = values["handle_points"].shape[1] if "handle_points" in values else 0
    shapes = {
        "parameter": tuple(session._state.parameter.shape),
        "adam_mean": tuple(session._state.parameter.shape),
        "adam_variance": tuple(session._state.parameter.shape),
        "handle_points": (1, points, 2),
        "target_points": (1, points, 2),
        "references": (1, points, network.channels[session.config.feature_block]),
        "mask_w_plus": (1, network.num_ws, network.w_dim),
        "movable_mask": (1, height, width),
    }
    if "state.movable_mask" in tensors:
        values["movable_mask"] = (tensors["state.movable_mask"] != 0).float()
    for name, shape in shapes.items():
        if name in values and tuple(values[name].shape) != shape:
            raise ValueError(f"{name} has the shape {list(values[name].shape)}, expected {list(shape)}")
    for one, other in (("handle_points", "target_points"), ("movable_mask", "mask_w_plus")):
        if (one in values) != (other in values):
            raise ValueError(f"{one} and {other} must be there together")
    for name in ("handle_points", "target_points"):
        if name in values:
            values[name] = as_points(values[name][0], name, session.image_size)
    if "movable_mask" in values and not values["movable_mask"].any():
        raise ValueError("movable_mask is zero everywhere")
    if values["adam_variance"].min() < 0:
        raise ValueError("adam_variance is negative")
    values = {name: tensor.to(session.model.device) for name, tensor in values.items()}
    values["trajectory"] = read_trajectory(document)
    values["events"] = read_events(document, tensors, session.image_size)
    values["adam_steps"] = document["adam_steps"]
    for name in ("moved", "done", "drag_open"):
        values[name] = document[name] is True
    if not is_whole(values["adam_steps"]) or not 0 <= values["adam_steps"] <= len(values["trajectory"]):
        raise ValueError("adam_steps does not fit the trajectory")
    if values["done"] and not values["trajectory"]:
        raise ValueError("done without any step")
    return SessionState(**values)


def read_events(
    document: dict[str, Any], tensors: dict[str, Tensor], image_size: tuple[int, int]
) -> tuple[dict[str, Any], ...]:
    """The events, each of a known kind with valid entries; as many steps in them as in the trajectory."""
    events: list[dict[str, Any]] = []
    steps = 0
    for index, event in enumerate(document["events"]):
        kind = event["kind"]
        if kind == "mask":
            mask = None
            if event["tensor"]:
                mask = (tensors[f"mask.{index}"] != 0).numpy()
                if mask.shape != image_size:
                    raise ValueError(f"mask {index} has the shape {list(mask.shape)}")
            events.append({"kind": "mask", "movable_mask": mask})
        elif kind == "steps":
            if not is_whole(event["count"]) or event["count"] < 1:
                raise ValueError("a number of steps is not a positive whole number")
            steps += event["count"]
            events.append({"kind": "steps", "count": event["count"], "pictured": event.get("pictured") is True})
        elif kind in ("points", "targets"):
            names = ("handle_points", "target_points") if kind == "points" else ("target_points",)
            for name in names:
                as_points(event[name], name, image_size)
            events.append({"kind": kind, **{name: event[name] for name in names}})
        else:
            raise ValueError(f"unknown event {kind!r}")
    if steps != len(document["trajectory"]):
        raise ValueError("the events do not make as many steps as the trajectory has")
    return tuple(events)


def read_trajectory(document: dict[str, Any]) -> tuple[StepResult, ...]:
    return tuple(
        StepResult(
            index=index,
            handle_points=read_only(torch.tensor(step["handle_points"], dtype=torch.float32).reshape(-1, 2)),
            distances=read_only(torch.tensor(step["distances"], dtype=torch.float32).reshape(-1)),
            loss=None if step["loss"] is None else float(step["loss"]),
            done=step["done"] is True,
        )
        for index, step in enumerate(document["trajectory"])
    )


def replay_session(path: str | os.PathLike[str], model: Model | None = None) -> Replay:
    """Does a saved session again from its start latent and compares. Raises DragError as ``load_session`` does."""
    path = Path(path)
    session, document, tensors = open_start(path, model, exactly=True)
    try:
        recorded = read_trajectory(document)
        final = tensors["w_plus"].to(session.model.device)
        same_start = session.seed is None or seed_gives_start(session)
        for event in read_events(document, tensors, session.image_size):
            apply_event(session, event)
        difference = float((session.w_plus - final).abs().max())
    except DAMAGE as error:
        raise damaged(path, error) from None
    pairs = list(zip(recorded, session.trajectory, strict=False))
    same = len(recorded) == len(session.trajectory) and all(
        np.array_equal(a.handle_points, b.handle_points) and a.done == b.done and (a.loss is None) == (b.loss is None)
        for a, b in pairs
    )
    losses = [
        abs(a.loss - b.loss) / max(abs(b.loss), 1e-12) for a, b in pairs if a.loss is not None and b.loss is not None
    ]
    return Replay(
        session,
        same_start,
        same,
        difference if math.isfinite(difference) else math.inf,
        max((loss if math.isfinite(loss) else math.inf for loss in losses), default=0.0),
    )


def seed_gives_start(session: DragSession) -> bool:
    """Whether the recorded seed, label and truncation give the recorded start latent, within rounding."""
    fresh = DragSession(
        session.model,
        seed=session.seed,
        label=session.label,
        truncation_psi=session.truncation_psi,
        truncation_cutoff=session.truncation_cutoff,
        config=replace(session.config, engine="reference"),  # the start latent needs no packed weights
    )
    return bool((fresh.w0 - session.w0).abs().max() <= W_TOLERANCE)


def apply_event(session: DragSession, event: dict[str, Any]) -> None:
    kind = event["kind"]
    if kind == "points":
        session.set_points(event["handle_points"], event["target_points"])
    elif kind == "targets":
        session.move_targets(event["target_points"])
    elif kind == "mask":
        session.set_mask(event["movable_mask"])
    else:
        for _ in range(event["count"]):
            if event["pictured"]:
                session._whole_features()
            session.step()
