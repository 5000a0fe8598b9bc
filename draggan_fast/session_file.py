"""Saved sessions: one .safetensors file, its tensors plus a JSON document in the metadata. Nothing in it is code.

A file holds what is needed to go on exactly where the session stopped (latent, optimiser, references, mask) and
what is needed to do it all again from the start (seed, events), which ``replay`` uses as a proof. Undo history is
not kept.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from . import loading
from .atomic import write_bytes
from .config import DragConfig
from .errors import DragError
from .loading import Model
from .session import DragSession, SessionState, StepResult
from .version import __version__

FORMAT = "draggan-fast-session"
FORMAT_VERSION = 1
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


@dataclass(frozen=True)
class Replay:
    """What a replay found: the redone session, whether every step's handles agree, and the largest |Δw_plus|."""

    session: DragSession
    same_handles: bool
    max_w_difference: float


def save_session(session: DragSession, path: str | os.PathLike[str]) -> Path:
    """Writes the session atomically. Raises DragError if that is not possible; an old file then stays whole."""
    state = session._state
    tensors: dict[str, Tensor] = {"w0": session.w0, "w_plus": session.w_plus}
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
        "model": {"name": session.model.name, "content_hash": session.model.content_hash},
        "start": {
            "seed": None if session.seed is None else int(session.seed),
            "label": session.label,
            "truncation_psi": session.truncation_psi,
            "truncation_cutoff": session.truncation_cutoff,
            "noise": session.noise,
        },
        "config": session.config.to_json(),
        "adam_steps": state.adam_steps,
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
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DragError(f"{str(path)!r} is far too large for a session file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        document = json.loads(metadata["session"])
        if document["format"] != FORMAT:
            raise KeyError("format")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError):
        raise DragError(f"{str(path)!r} is not a session file of draggan-fast, or it is damaged.") from None
    if document.get("version") != FORMAT_VERSION:
        raise DragError(
            f"{str(path)!r} has session format {document.get('version')!r}; this program reads {FORMAT_VERSION}."
        )
    return document, tensors


def open_start(path: Path, model: Model | None, config: DragConfig | None = None) -> tuple[DragSession, dict, dict]:
    """A session at the file's start latent, with the document and the tensors."""
    document, tensors = read_file(path)
    try:
        named, wanted = document["model"]["name"], document["model"]["content_hash"]
        start = dict(document["start"])
        config = config or DragConfig.from_json(document["config"])
        w0 = tensors["w0"]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from None
    if model is None:
        model = loading.load(str(named))
    if model.content_hash != wanted:
        raise DragError(
            f"{str(path)!r} was made with the model {named!r} ({str(wanted)[:12]}…), not with this {model.name!r} "
            f"({model.content_hash[:12]}…); name the right one."
        )
    seed, label = start.pop("seed", None), start.pop("label", None)
    try:
        session = DragSession(model, w=w0, config=config, **start)
    except TypeError as error:
        raise damaged(path, error) from None
    session.seed, session.label = seed, label
    return session, document, tensors


def damaged(path: Path, error: Exception) -> DragError:
    return DragError(f"The session file {str(path)!r} is damaged ({type(error).__name__}: {error}).")


def load_session(path: str | os.PathLike[str], model: Model | None = None) -> DragSession:
    """A saved session, ready to go on. Raises DragError for a damaged file or another model."""
    path = Path(path)
    session, document, tensors = open_start(path, model)
    device = session.model.device
    fresh = session._state
    try:
        values: dict[str, Any] = {
            name: tensors[f"state.{name}"].to(device) for name in STATE_TENSORS if f"state.{name}" in tensors
        }
        if "state.movable_mask" in tensors:
            values["movable_mask"] = tensors["state.movable_mask"].float().to(device)
        values["events"] = tuple(read_events(document, tensors))
        values["trajectory"] = tuple(read_trajectory(document))
        values["adam_steps"] = int(document["adam_steps"])
        values["done"], values["drag_open"] = bool(document["done"]), bool(document["drag_open"])
        check_state(session, values, fresh)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise damaged(path, error) from None
    values["parameter"].requires_grad_()
    session._adopt(SessionState(**values))
    return session


def check_state(session: DragSession, values: dict[str, Any], fresh: SessionState) -> None:
    """Raises ValueError unless the tensors fit the session's model and each other."""
    network = session.model.config
    height, width = session.image_size
    points = values["handle_points"].shape[1] if "handle_points" in values else 0
    channels = network.channels[session.config.feature_block]
    shapes = {
        "parameter": fresh.parameter.shape,
        "adam_mean": fresh.parameter.shape,
        "adam_variance": fresh.parameter.shape,
        "handle_points": (1, points, 2),
        "target_points": (1, points, 2),
        "references": (1, points, channels),
        "mask_w_plus": (1, network.num_ws, network.w_dim),
        "movable_mask": (1, height, width),
    }
    for name, shape in shapes.items():
        if name in values and tuple(values[name].shape) != tuple(shape):
            raise ValueError(f"{name} has the shape {list(values[name].shape)}, expected {list(shape)}")
        if name in values and name != "references" and not torch.isfinite(values[name]).all():
            raise ValueError(f"{name} holds NaN or infinite values")
    for name in ("parameter", "adam_mean", "adam_variance"):
        if name not in values:
            raise ValueError(f"{name} is missing")
    for one, other in (("handle_points", "target_points"), ("movable_mask", "mask_w_plus")):
        if (one in values) != (other in values):
            raise ValueError(f"{one} and {other} must be there together")
    if values["done"] and not values["trajectory"]:
        raise ValueError("done without any step")
    assert {f.name for f in fields(SessionState)} >= set(values)


def read_events(document: dict[str, Any], tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
    events = []
    for index, event in enumerate(document["events"]):
        if event["kind"] == "mask":
            mask = tensors[f"mask.{index}"].bool().numpy() if event["tensor"] else None
            events.append({"kind": "mask", "movable_mask": mask})
        else:
            events.append(dict(event))
    return events


def read_trajectory(document: dict[str, Any]) -> list[StepResult]:
    return [
        StepResult(
            index=index,
            handle_points=np.asarray(step["handle_points"], np.float32).reshape(-1, 2),
            distances=np.asarray(step["distances"], np.float32).reshape(-1),
            loss=None if step["loss"] is None else float(step["loss"]),
            done=bool(step["done"]),
        )
        for index, step in enumerate(document["trajectory"])
    ]


def replay_session(path: str | os.PathLike[str], model: Model | None = None) -> Replay:
    """Does a saved session again from its start latent and compares. Raises DragError as ``load_session`` does."""
    path = Path(path)
    session, document, tensors = open_start(path, model)
    try:
        recorded = read_trajectory(document)
        events = read_events(document, tensors)
        final = tensors["w_plus"].to(session.model.device)
        for event in events:
            apply_event(session, event)
        difference = float((session.w_plus - final).abs().max())
    except DragError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from None
    same = len(recorded) == len(session.trajectory) and all(
        np.array_equal(a.handle_points, b.handle_points) for a, b in zip(recorded, session.trajectory, strict=True)
    )
    return Replay(session, same, difference)


def apply_event(session: DragSession, event: dict[str, Any]) -> None:
    kind = event["kind"]
    if kind == "points":
        session.set_points(event["handle_points"], event["target_points"])
    elif kind == "targets":
        session.move_targets(event["target_points"])
    elif kind == "mask":
        session.set_mask(event["movable_mask"])
    elif kind == "steps":
        for _ in range(int(event["count"])):
            session.step()
    else:
        raise ValueError(f"unknown event {kind!r}")
