"""Saved sessions: one .safetensors file, its tensors plus a JSON document in the metadata. Nothing in it is code.

A file holds what is needed to go on exactly where the session stopped (latent, optimiser, references, mask) and
what is needed to do it all again from the start (seed, events), which ``replay`` uses as a proof. Undo history is
not kept.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from . import engine, loading
from .atomic import write_bytes
from .config import DragConfig
from .errors import DragError
from .inputs import as_points, is_whole
from .loading import Model
from .session import DragSession
from .session_state import Event, Log, PackedMask, SessionState, StepResult, check_configurable
from .version import __version__

FORMAT = "draggan-fast-session"
FORMAT_VERSION = 3  # 1 did not say who computed the session: the reference engine did; 2 knew no settings as events
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
    target = Path(path)
    try:
        write_bytes(target, session_bytes(session))
    except OSError as error:
        raise DragError(f"Cannot write the session {str(target)!r}: {error.strerror or error}.") from None
    return target


def session_bytes(session: DragSession) -> bytes:
    """The content of a session file."""
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
                tensors[f"mask.{index}"] = torch.from_numpy(event["movable_mask"].bits)
            events.append({"kind": "mask", "tensor": event["movable_mask"] is not None})
        elif event["kind"] == "targets":
            events.append({"kind": "targets", "target_points": event["target_points"].tolist()})
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
        "config": session._start_config.to_json(),  # as it was at the start: the events say what became of it
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
    return save(copies, metadata={"session": json.dumps(document, allow_nan=False)})


def read_file(path: Path) -> bytes:
    """The content of a session file; raises DragError if it cannot be read."""
    if not path.is_file():
        raise DragError(f"There is no session file {str(path)!r}.")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DragError(f"{str(path)!r} is far too large for a session file.")
        return path.read_bytes()
    except OSError as error:
        raise DragError(f"Cannot read {str(path)!r}: {error.strerror or error}.") from None


def read_document(data: bytes, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON document and the tensors of a session file's content; raises DragError if it is not one."""
    try:
        tensors = load(data)
        # safetensors has checked the header, and gives no access to its metadata.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        document = json.loads(header["__metadata__"]["session"])
        if document["format"] != FORMAT:
            raise KeyError("format")
        version = document.get("version")
    except (SafetensorError, LookupError, TypeError, AttributeError, ValueError, RuntimeError, RecursionError):
        raise DragError(f"{name} is not a session file of draggan-fast, or it is damaged.") from None
    if not is_whole(version) or not 1 <= version <= FORMAT_VERSION:
        raise DragError(f"{name} has session format {version!r}; this program reads 1 to {FORMAT_VERSION}.")
    return document, tensors


def recorded_source(path: str | os.PathLike[str]) -> str:
    """What the model of a session file was loaded from; raises DragError if it is no session file."""
    file = repr(str(path))
    document, _ = read_document(read_file(Path(path)), file)
    try:
        return str(document["model"]["source"])
    except DAMAGE as error:
        raise damaged(file, error) from None


class Recorded(NamedTuple):
    """What a session file says of itself. points: the most there ever were. length: of steps and events together."""

    content_hash: str
    config: DragConfig
    noise: str
    points: int
    length: int


def recorded_start(data: bytes) -> Recorded:
    """Of a session file's content, before anything is made of it; raises DragError if it is none."""
    document, tensors = read_document(data, "the upload")
    try:
        present = tensors.get("state.handle_points")
        points = max(
            0 if present is None else present.numel() // 2,
            *(len(event.get("handle_points", ())) for event in document["events"]),
            *(len(step["handle_points"]) for step in document["trajectory"]),
            0,
        )
        return Recorded(
            str(document["model"]["content_hash"]),
            DragConfig.from_json(document["config"]),
            str(document["start"]["noise"]),
            points,
            len(document["trajectory"]) + len(document["events"]),
        )
    except DAMAGE as error:
        raise damaged("the upload", error) from None


def find_model(file: str, named: dict[str, Any]) -> Model:
    """The model a session file names: by what it was loaded from, as far as that is here."""
    source, name, wanted = str(named["source"]), str(named["name"]), str(named["content_hash"])
    try:
        return loading.load(source)
    except DragError as error:
        raise DragError(
            f"The session {file} needs the model {name!r} (content {wanted[:12]}), which was loaded from "
            f"{source!r}: {error} Give the model itself (--model, or model= in Python)."
        ) from None


@dataclass(frozen=True)
class Start:
    """A session at a file's start latent, and what else the file holds."""

    session: DragSession
    document: dict[str, Any]
    tensors: dict[str, Tensor]


def open_start(data: bytes, file: str, model: Model | None, exactly: bool) -> Start:
    """file: its name in messages. model None: the one that the file names. exactly: by the recorded engine in the
    recorded precision, even if the model was loaded with another."""
    document, tensors = read_document(data, file)
    try:
        named = document["model"]
        wanted = str(named["content_hash"])
        start = dict(document["start"])
        config = DragConfig.from_json(document["config"])
        if model is None:
            model = find_model(file, named)
        if model.content_hash != wanted:
            raise DragError(
                f"{file} was made with the model {str(named['name'])[:80]!r} ({wanted[:12]}…), not with this "
                f"{model.name!r} ({model.content_hash[:12]}…); give the right one."
            )
        seed, label = start.pop("seed"), start.pop("label")
        for value in (seed, label):
            if value is not None and not (is_whole(value) and 0 <= value < 2**32):
                raise ValueError("seed and label must be whole numbers from 0 to 2³² − 1")
        # What "auto" meant when the session was made, so that it goes on the same way here. Files from before there
        # was a choice were made by the reference.
        by = document.get("computed_by", {"engine": "reference", "precision": "fp32"})
        precision = str(by["precision"])
        if exactly or (model.precision == "auto" and engine.refusal(precision, model.device) is None):
            same = replace(model, precision=precision)
            session = DragSession(same, w=tensors["w0"], config=replace(config, engine=by["engine"]), **start)
            session.model, session._start_config = model, config
            session._change(config=config)
        else:
            session = DragSession(model, w=tensors["w0"], config=config, **start)
    except DragError:
        raise
    except DAMAGE as error:
        raise damaged(file, error) from None
    session.seed, session.label = seed, label
    return Start(session, document, tensors)


def damaged(file: str, error: Exception) -> DragError:
    return DragError(f"The session file {file} is damaged ({type(error).__name__}: {error}).")


def load_session(path: str | os.PathLike[str], model: Model | None = None) -> DragSession:
    """A saved session, ready to go on: by the engine and in the precision that it was made with, unless the model was
    loaded with a precision of its own, or this device does not serve the recorded one.

    Raises DragError for a damaged file or another model.
    """
    path = Path(path)
    return continued(open_start(read_file(path), repr(str(path)), model, exactly=False), repr(str(path)))


def load_bytes(data: bytes, model: Model) -> DragSession:
    """The same from a file's content, on this model and no other: nothing in the data decides what is opened."""
    if len(data) > MAX_FILE_BYTES:
        raise DragError("This is far too large for a session file.")
    return continued(open_start(data, "the upload", model, exactly=False), "the upload")


def continued(start: Start, file: str) -> DragSession:
    """The session as the file left it."""
    try:
        state = read_state(start.session, start.document, start.tensors)
    except DAMAGE as error:  # DragError, from a point outside the picture, is a ValueError
        raise damaged(file, error) from None
    start.session._adopt(state)
    return start.session


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
    values["config"] = configured(session.config, values["events"])
    values["owner"] = session._owner
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
) -> Log[dict[str, Any]]:
    """The events, each of a known kind with valid entries; as many steps in them as in the trajectory."""
    events: list[dict[str, Any]] = []
    steps = 0
    for index, event in enumerate(document["events"]):
        kind = event["kind"]
        if kind == "mask":
            mask = read_mask(tensors[f"mask.{index}"], image_size, document["version"]) if event["tensor"] else None
            events.append({"kind": "mask", "movable_mask": mask})
        elif kind == "steps":
            if not is_whole(event["count"]) or event["count"] < 1:
                raise ValueError("a number of steps is not a positive whole number")
            steps += event["count"]
            events.append({"kind": "steps", "count": event["count"], "pictured": event.get("pictured") is True})
        elif kind == "points":
            names = ("handle_points", "target_points")
            for name in names:
                if any(event[other] != [] for other in names):  # two empty lists: points removed
                    as_points(event[name], name, image_size)
            events.append({"kind": kind, **{name: event[name] for name in names}})
        elif kind == "targets":
            points = as_points(event["target_points"], "target_points", image_size)[0].numpy()
            events.append({"kind": kind, "target_points": points})
        elif kind == "settings":
            changes = dict(event["changes"])
            check_configurable(changes)
            events.append({"kind": kind, "changes": changes})
        else:
            raise ValueError(f"unknown event {kind!r}")
    if steps != len(document["trajectory"]):
        raise ValueError("the events do not make as many steps as the trajectory has")
    return Log.of(events)


def read_mask(tensor: Tensor, image_size: tuple[int, int], version: int) -> PackedMask:
    """A mask of an event; before version 3 it was stored a byte a pixel."""
    if version < 3:
        mask = (tensor != 0).numpy()
        if mask.shape != image_size:
            raise ValueError(f"a mask has the shape {list(mask.shape)}")
        return PackedMask.of(mask)
    if tensor.dtype != torch.uint8 or tensor.shape != ((image_size[0] * image_size[1] + 7) // 8,):
        raise ValueError(f"a mask has the shape {list(tensor.shape)} of {tensor.dtype}")
    return PackedMask(tensor.numpy(), image_size)


def configured(config: DragConfig, events: Iterable[Event]) -> DragConfig:
    """The settings after these events; raises DragError for values that are none."""
    for event in events:
        if event["kind"] == "settings":
            config = replace(config, **event["changes"])
    return config


def fixed_array(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """float32, read-only."""
    array = np.array(values, dtype=np.float32).reshape(shape)
    array.setflags(write=False)
    return array


def read_trajectory(document: dict[str, Any]) -> Log[StepResult]:
    return Log.of(
        [
            StepResult(
                index=index,
                handle_points=fixed_array(step["handle_points"], (-1, 2)),
                distances=fixed_array(step["distances"], (-1,)),
                loss=None if step["loss"] is None else float(step["loss"]),
                done=step["done"] is True,
            )
            for index, step in enumerate(document["trajectory"])
        ]
    )


def replay_session(path: str | os.PathLike[str], model: Model | None = None) -> Replay:
    """Does a saved session again from its start latent and compares. Raises DragError as ``load_session`` does."""
    file = repr(str(path))
    start = open_start(read_file(Path(path)), file, model, exactly=True)
    session, document, tensors = start.session, start.document, start.tensors
    try:
        recorded = read_trajectory(document)
        final = tensors["w_plus"].to(session.model.device)
        same_start = session.seed is None or seed_gives_start(session)
        for event in read_events(document, tensors, session.image_size):
            apply_event(session, event)
        difference = float((session.w_plus - final).abs().max())
    except DAMAGE as error:
        raise damaged(file, error) from None
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
    if kind == "points" and not event["handle_points"]:
        session.remove_points()
    elif kind == "points":
        session.set_points(event["handle_points"], event["target_points"])
    elif kind == "targets":
        session.move_targets(event["target_points"])
    elif kind == "mask":
        session.set_mask(None if event["movable_mask"] is None else event["movable_mask"].unpack())
    elif kind == "settings":
        session.configure(**event["changes"])
    else:
        for _ in range(event["count"]):
            if event["pictured"]:
                session._whole_features()
            session.step()
