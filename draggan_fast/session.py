"""A picture being dragged: DragGAN's algorithm (Pan et al. 2023, §3), one ``step()`` at a time.

A step is: features of the current latent → track the handles → stop test → motion supervision (+ mask loss,
+ regulariser) → backward → Adam. The order and every detail follow the published program.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import graphs, ops
from .arithmetic import reproducible
from .config import DragConfig
from .engine import Features, as_picture, make_engine
from .errors import DragError
from .inputs import Points, as_points, is_whole
from .loading import Model
from .session_state import (
    History,
    PackedMask,
    SessionState,
    StepResult,
    add_event,
    changed_settings,
    check_configurable,
    read_only,
)
from .start_latent import check_start, given_latent, seed_latent
from .static_step import ADAM_EPS, BETA1, BETA2, reach_of
from .views import FeatureView, beyond


class DragSession:
    """One picture being edited.

    model: from ``load``.  Start latent: ``seed`` (z from numpy's RandomState(seed), truncated by truncation_psi
    up to row truncation_cutoff, with the class label if the model has classes) or ``w``, [w_dim] or
    [num_ws, w_dim].  config: DragConfig; None = the settings the model recommends.  noise: "const" or "none".
    Raises DragError for anything that does not fit the model.
    """

    may_capture = True  # False: every step goes through ``_compute_step``, also on a GPU

    def __init__(
        self,
        model: Model,
        seed: int | None = None,
        w: Tensor | np.ndarray | None = None,
        truncation_psi: float = 0.7,
        truncation_cutoff: int | None = None,
        label: int | None = None,
        config: DragConfig | None = None,
        noise: str = "const",
    ) -> None:
        if not isinstance(model, Model):
            raise DragError(f"model must be what draggan_fast.load gives, not {type(model).__name__}.")
        if config is not None and not isinstance(config, DragConfig):
            raise DragError(f"config must be a DragConfig, not {type(config).__name__}.")
        self.model = model
        self._start_config = config if config is not None else model.drag_config()
        self.image_size = model.image_size
        self.seed, self.label = seed, label
        self.truncation_psi = check_start(model, self._start_config, noise, truncation_psi, truncation_cutoff)
        self.truncation_cutoff = truncation_cutoff
        self.noise = noise
        if (seed is None) == (w is None):
            raise DragError("Give either a seed or a latent w to start from.")
        with reproducible(model.device):
            self._w0 = (  # [1, num_ws, w_dim]
                seed_latent(model, seed, label, self.truncation_psi, truncation_cutoff)
                if w is None
                else given_latent(model, w)
            )
            self._owner = object()
            self._state = self._fresh_state(self._start_config)
        self._history = History()
        self._engine = make_engine(
            model.generator, model.device, self.config.feature_block, noise, self.config.engine, model.precision
        )
        self._whole: Features | None = None
        self._near: Features | None = None
        self._feature0: Tensor | None = None
        self._looked_at: tuple[Tensor, bool] | None = None
        self._steps: graphs.StepQueue | None = None

    # --- what a caller sees -------------------------------------------------------------------------------

    @property
    def config(self) -> DragConfig:
        """The settings for the next step."""
        return self._state.config

    @property
    def handle_points(self) -> np.ndarray:
        """[N, 2] float32: where the handles are now."""
        points = self._state.handle_points
        return np.zeros((0, 2), np.float32) if points is None else points[0].cpu().numpy().copy()

    @property
    def target_points(self) -> np.ndarray:
        """[N, 2] float32."""
        points = self._state.target_points
        return np.zeros((0, 2), np.float32) if points is None else points[0].cpu().numpy().copy()

    @property
    def movable_mask(self) -> np.ndarray | None:
        """[H, W] bool, True where the picture may change; None = everywhere."""
        mask = self._state.movable_mask
        return None if mask is None else mask[0].bool().cpu().numpy()

    @property
    def w0(self) -> Tensor:
        """[num_ws, w_dim] float32 on the model's device: the start latent."""
        return self._w0[0].clone()

    @property
    def w_plus(self) -> Tensor:
        """[num_ws, w_dim] float32 on the model's device: the latent now."""
        return self._w_plus(self._state.parameter)[0].detach()

    @property
    def engine(self) -> str:
        """Who computes the steps: "reference" or "fast"."""
        return self._engine.name

    @property
    def precision(self) -> str:
        """What the synthesis is computed in: fp32, bf16, fp16. Latents, handles, losses and Adam are always float32."""
        return self._engine.precision

    @property
    def done(self) -> bool:
        """Whether every handle has reached its target."""
        return self._state.done

    @property
    def trajectory(self) -> tuple[StepResult, ...]:
        """Every step made since the start (or since what was undone)."""
        return tuple(self._state.trajectory)

    @property
    def steps(self) -> int:
        """How many steps ``trajectory`` has."""
        return len(self._state.trajectory)

    @property
    def state(self) -> SessionState:
        """A snapshot of everything that changes, for ``restore``. It costs little: states share what they can."""
        return self._state

    def set_points(self, handle_points: Points, target_points: Points) -> None:
        """Sets the handles and their targets, (x, y) pairs in pixels; the next step begins a new drag.

        A handle that stands where one of the present handles is now is that handle (it keeps its reference
        feature); others are new and get theirs from the picture as it is. Raises DragError and changes nothing
        if the counts differ or a point is not inside the picture.
        """
        handles = as_points(handle_points, "handle_points", self.image_size)
        targets = as_points(target_points, "target_points", self.image_size)
        if handles.shape != targets.shape:
            raise DragError(
                f"{handles.shape[1]} handle(s) but {targets.shape[1]} target(s): give one target per handle."
            )
        event = {"kind": "points", "handle_points": handles[0].tolist(), "target_points": targets[0].tolist()}
        self._history.fork()
        self._change(
            handle_points=handles.to(self.model.device),
            target_points=targets.to(self.model.device),
            references=self._state.references_of(handles),
            moved=False,
            done=False,
            drag_open=False,
            events=add_event(self._state.events, event),
        )

    def remove_points(self) -> None:
        """Takes all handles and targets away; the picture stays as it is."""
        self._history.fork()
        self._change(
            handle_points=None,
            target_points=None,
            references=None,
            moved=False,
            done=False,
            drag_open=False,
            events=add_event(self._state.events, {"kind": "points", "handle_points": [], "target_points": []}),
        )

    def move_targets(self, target_points: Points) -> None:
        """New targets for the present handles while a drag is running; it stays one drag for ``undo``."""
        targets = self.check_targets(target_points)
        event = {"kind": "targets", "target_points": targets[0].numpy()}  # an array: a live drag makes thousands
        self._history.fork()
        self._change(
            target_points=targets.to(self.model.device), done=False, events=add_event(self._state.events, event)
        )

    def check_targets(self, target_points: Points) -> Tensor:
        """[1, N, 2] float32; raises the DragError that ``move_targets`` would, which then takes them."""
        handles = self._require_points().handle_points
        targets = as_points(target_points, "target_points", self.image_size)
        if handles is not None and targets.shape != handles.shape:
            raise DragError(f"{handles.shape[1]} handle(s) but {targets.shape[1]} target(s).")
        return targets

    def set_mask(self, movable_mask: np.ndarray | Tensor | None) -> None:
        """[H, W], nonzero where the picture may change; None = everywhere. The rest is held as it is now.

        Raises DragError and changes nothing if the size differs or nothing at all may change.
        """
        if movable_mask is None:
            self._history.fork()
            self._set_mask(None)
            return
        if isinstance(movable_mask, Tensor):
            movable_mask = movable_mask.detach().cpu().float().numpy()
        try:
            mask = np.array(movable_mask, dtype=np.float32)
        except (TypeError, ValueError):
            raise DragError("The mask must be an array of numbers of the shape [H, W].") from None
        if mask.shape != self.image_size:
            raise DragError(
                f"The mask is {list(mask.shape)}, the picture {list(self.image_size)} (height, width): they must agree."
            )
        if not np.isfinite(mask).all():
            raise DragError("The mask holds NaN or infinite values.")
        if not mask.any():
            raise DragError("The mask is zero everywhere: nothing may change. Mark the movable region with 1 (white).")
        self._history.fork()
        self._set_mask(torch.from_numpy(mask != 0).float())

    def configure(self, **changes: Any) -> None:
        """Changes settings for the steps from now on: lr, r1, r2, lambda_mask, reg, stop_distance, max_steps.

        It is part of the drag: undone with it, and recorded for ``save`` and the replay. Raises DragError and changes
        nothing for another setting or a value that DragConfig refuses.
        """
        check_configurable(changes)
        config = replace(self.config, **changes)
        changed = changed_settings(self.config, config)
        if not changed:
            return
        self._history.fork()
        self._change(
            config=config,
            done=self._state.done and "stop_distance" not in changed,
            events=add_event(self._state.events, {"kind": "settings", "changes": changed}),
        )

    def restore(self, state: SessionState, undoable: bool = True) -> None:
        """Back (or forward) to a ``state`` of this session: latent, points, mask, settings, steps made.

        ``undo`` takes it back, unless undoable is False: then it counts as part of the last thing that can be undone
        (a slider that is pulled over many states). Raises DragError for a state of another session.
        """
        if not isinstance(state, SessionState) or state.owner is not self._owner:
            raise DragError("restore takes what this session's own state was; this is not one.")
        if undoable:
            self._history.remember(self._state)
        self._history.fork()
        self._adopt(state)

    def step(self) -> StepResult:
        """One step of the drag. If it is done already, its last result again, and nothing changes.

        Raises DragError if there are no points, or if the step is not finite (which it then takes back).
        """
        return self._step(ahead=False)

    def _step(self, ahead: bool) -> StepResult:
        """ahead: another step is likely to follow; where steps are captured it is enqueued already."""
        state = self._require_points()
        if state.done:
            return state.trajectory.last
        # A picture's features and those around the handles agree to rounding only: a replay must use the same.
        pictured = self._whole is not None
        with reproducible(self.model.device):
            queue = self._queue()
            result, changes = self._compute_step() if queue is None else self._replay_step(queue, ahead)
        if not state.drag_open:
            self._history.remember(state)
        self._change(
            **changes,
            done=result.done,
            drag_open=True,
            trajectory=state.trajectory.plus(result),
            events=add_event(state.events, {"kind": "steps", "count": 1, "pictured": pictured}),
        )
        return result

    def run(
        self,
        max_steps: int | None = None,
        callback: Callable[[StepResult], bool | None] | None = None,
    ) -> StepResult:
        """Steps until done, or max_steps (default: the config's). callback(result) may return False to stop early."""
        limit = self.config.max_steps if max_steps is None else max_steps
        if not is_whole(limit) or limit < 1:
            raise DragError(f"max_steps must be a whole number of at least 1, not {limit!r}.")
        for left in range(limit - 1, -1, -1):
            result = self._step(ahead=left > 0)
            if (callback is not None and callback(result) is False) or result.done:
                break
        return result

    def locate(self) -> np.ndarray:
        """[N, 2] float32: where the handles are in the picture as it is now, by tracking alone; nothing changes.

        After a step ``handle_points`` are those of the picture before its update, as in the published program.
        """
        if not self._require_points().moved:
            return self.handle_points  # subtle: tracking once more would search around another centre
        with reproducible(self.model.device):
            handles, _ = self._track(self._step_features().view)
        return handles[0].cpu().numpy()

    def render(self) -> np.ndarray:
        """The picture of the current latent: uint8 [H, W, 3]. It shares the next step's features."""
        with reproducible(self.model.device), torch.no_grad():
            ws = self._w_plus(self._state.parameter)
            return as_picture(self._engine.picture(self._whole_features(), ws))

    def preview(self) -> np.ndarray:
        """The picture of the current latent in the resolution of the feature block: uint8 [h, w, 3], nearly free.

        What the network's ToRGB layers make up to that block, before its finer ones add theirs. A network without
        earlier ToRGB layers (architectures "orig" and "resnet") has none: then it is ``render``'s, at its price.
        """
        with reproducible(self.model.device), torch.no_grad():
            ws = self._w_plus(self._state.parameter)
            return as_picture(self._engine.preview(self._whole_features(), ws))

    def picture_of(self, state: SessionState, preview: bool = False) -> np.ndarray:
        """The picture (or preview) of one of this session's states, without going there."""
        if not isinstance(state, SessionState) or state.owner is not self._owner:
            raise DragError("picture_of takes what this session's own state was; this is not one.")
        with reproducible(self.model.device), torch.no_grad():
            ws = self._w_plus(state.parameter)
            whole = self._engine.whole(ws)
            return as_picture((self._engine.preview if preview else self._engine.picture)(whole, ws))

    def release(self) -> None:
        """Frees what was computed of the present picture; whoever asks for it next computes it again."""
        self._whole = self._near = self._feature0 = None

    def reset(self) -> None:
        """Back to the start latent, without points (they belonged to the edited picture); mask and settings stay.

        ``undo`` takes it back.
        """
        self._history.remember(self._state)
        mask, config = self._state.movable_mask, self.config
        self._adopt(self._fresh_state(config))
        if mask is not None:
            self._set_mask(mask[0].cpu())

    def undo(self) -> bool:
        """Back to before the last drag, reset or restore (latent, points, mask, settings); False if there is none.

        A drag is what was stepped since the points or the mask were set.
        """
        before = self._history.back(self._state)
        if before is not None:
            self._adopt(before)
        return before is not None

    def redo(self) -> bool:
        """Does the last undone drag again; False if there is none, or points, mask or settings were set since."""
        after = self._history.forward(self._state)
        if after is not None:
            self._adopt(after)
        return after is not None

    @property
    def history(self) -> History:
        """What ``undo`` and ``redo`` can reach; what it holds costs memory."""
        return self._history

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the session (.safetensors: tensors, and JSON in the metadata), atomically."""
        from . import session_file  # late: it imports this module

        return session_file.save_session(self, path)

    def to_bytes(self) -> bytes:
        """What ``save`` writes."""
        from . import session_file

        return session_file.session_bytes(self)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Model | None = None) -> DragSession:
        """A saved session, ready to go on; model None = the one it names. Raises DragError if it is another model."""
        from . import session_file

        return session_file.load_session(path, model)

    @classmethod
    def from_bytes(cls, data: bytes, model: Model) -> DragSession:
        """The same from a file's content, on this model: nothing in the data decides what is opened or loaded."""
        from . import session_file

        return session_file.load_bytes(data, model)

    # --- one step, top to bottom ----------------------------------------------------------------------------

    def _compute_step(self) -> tuple[StepResult, dict[str, Any]]:
        """The step's result and the state entries it changes; the session itself is not touched."""
        state, config = self._state, self.config
        assert state.target_points is not None
        height = self.image_size[0]
        features = self._step_features()
        handles, references = self._track(features.view)
        distances = (state.target_points - handles).norm(dim=-1)
        stop = config.stop_pixels(height, handles.shape[1])
        done = bool((distances <= stop).all())
        if done and not bool(features.view.sample(handles).isfinite().all()):
            raise self._not_finite()  # nothing was found in features that are no numbers
        changes: dict[str, Any] = {"handle_points": handles, "references": references, "moved": not done}

        loss: Tensor | None = None
        if not done:
            aims = beyond(handles, state.target_points) if stop < 1 else state.target_points
            loss, grad_feature = features.view.supervise(handles, aims, config.pixels(config.r1, height))
            if self._holds_something():
                assert state.movable_mask is not None
                feature = features.view.feature
                held, grad_held = ops.mask_loss(feature, self._mask_feature(), state.movable_mask, self.image_size)
                loss = loss + config.lambda_mask * held.sum()
                grad_feature = grad_feature + config.lambda_mask * grad_held
            self._whole = self._near = None  # a forward pass serves one backward pass
            gradient = self._latent_gradient(features, grad_feature)
            if config.reg:
                change = self._w_plus(state.parameter) - self._w0
                loss = loss + config.reg * change.abs().mean()
                gradient = gradient + config.reg / change.numel() * change.sign()[:, : config.layers]
            if config.space == "w":
                gradient = gradient.sum(dim=1, keepdim=True)
            changes.update(self._adam(gradient))
            if not (math.isfinite(loss.item()) and bool(torch.isfinite(changes["parameter"]).all())):
                raise self._not_finite()
        return self._result(handles[0], distances[0], None if loss is None else loss.item(), done), changes

    def _replay_step(self, queue: graphs.StepQueue, ahead: bool) -> tuple[StepResult, dict[str, Any]]:
        """The same by a captured step (``static_step``), which computes all of the above on the device."""
        feature0 = self._mask_feature() if self._holds_something() else None
        record, changes = queue.step(self._state, self.config, self._w0, feature0, ahead)
        if not (record.done or record.finite):
            raise self._not_finite()
        handles, distances = torch.from_numpy(record.handle_points), torch.from_numpy(record.distances)
        return self._result(handles, distances, record.loss, record.done), changes

    def _queue(self) -> graphs.StepQueue | None:
        """Where this session's steps are captured, the way to them."""
        if self._steps is None or self._steps.engine is not self._engine:
            self._steps = graphs.queue_for(self._engine) if self.may_capture else None
        return self._steps

    def _result(self, handles: Tensor, distances: Tensor, loss: float | None, done: bool) -> StepResult:
        return StepResult(len(self._state.trajectory), read_only(handles), read_only(distances), loss, done)

    def _not_finite(self) -> DragError:
        return DragError(
            f"Step {len(self._state.trajectory)} is not finite and was taken back; try a smaller lr (now "
            f"{self.config.lr:g})."
        )

    def _track(self, view: FeatureView) -> tuple[Tensor, Tensor]:
        """(handles, references): where the handles are in these features, and the references they were found by."""
        state = self._state
        assert state.handle_points is not None
        references = self._taken_references(view)
        radius = self.config.pixels(self.config.r2, self.image_size[0])
        return view.track(references, state.handle_points, radius), references

    def _adam(self, gradient: Tensor) -> dict[str, Any]:
        """torch.optim.Adam's update (defaults), out of place, so that old states stay what they were."""
        state = self._state
        steps = state.adam_steps + 1
        mean = state.adam_mean.lerp(gradient, 1 - BETA1)
        variance = state.adam_variance * BETA2 + gradient.square() * (1 - BETA2)
        scale = (variance.sqrt() / math.sqrt(1 - BETA2**steps)).add_(ADAM_EPS)
        parameter = state.parameter.detach() - (self.config.lr / (1 - BETA1**steps)) * mean / scale
        return {
            "parameter": parameter,
            "adam_mean": mean,
            "adam_variance": variance,
            "adam_steps": steps,
        }

    def _w_plus(self, parameter: Tensor) -> Tensor:
        """The optimised rows, then the start latent's: [1, num_ws, w_dim]."""
        layers = self.config.layers
        if self.config.space == "w":  # equal rows stay equal to the bit, others keep their differences
            parameter = parameter + (self._w0[:, :layers] - self._w0[:, :1])
        return torch.cat([parameter, self._w0[:, layers:]], dim=1)

    def _latent_gradient(self, features: Features, grad_feature: Tensor) -> Tensor:
        """Gradient of the rows of w_plus that change, [1, layers, w_dim]; rows beyond the feature block have none."""
        gradient = self._engine.gradient(features, grad_feature)[:, : self.config.layers]
        return torch.nn.functional.pad(gradient, (0, 0, 0, self.config.layers - gradient.shape[1]))

    def _whole_features(self) -> Features:
        """Features of the whole picture of the current latent, computed once for the step and for ``render``."""
        if self._whole is None:
            with reproducible(self.model.device):
                self._whole = self._engine.whole(self._w_plus(self._state.parameter))
            self._near = None  # the next step cuts its crops out of these: what a replay does too
        return self._whole

    def _step_features(self) -> Features:
        """Features of the current latent where a step looks: everywhere with a mask, else around the handles."""
        state, config, height = self._state, self.config, self.image_size[0]
        if self._near is None:
            assert state.handle_points is not None
            if self._holds_something():
                return self._whole_features()
            reach = reach_of(config.pixels(config.r1, height), config.pixels(config.r2, height))
            w_plus = self._w_plus(state.parameter)
            self._near = self._engine.around(w_plus, state.handle_points, reach, self._whole)
        return self._near

    def _holds_something(self) -> bool:
        """Whether a mask says that part of the picture must stay."""
        mask = self._state.movable_mask
        if mask is None or self.config.lambda_mask == 0:
            return False
        if self._looked_at is None or self._looked_at[0] is not mask:  # once a mask: on a GPU it is waited for
            self._looked_at = mask, not bool(mask.all())
        return self._looked_at[1]

    def _taken_references(self, view: FeatureView) -> Tensor:
        """references, with those of new points (NaN rows) taken from the present feature."""
        state = self._state
        assert state.handle_points is not None
        present = view.sample(state.handle_points)
        if state.references is None:
            return present
        return torch.where(state.references.isnan(), present, state.references)

    @torch.no_grad()
    def _mask_feature(self) -> Tensor:
        """The feature that the mask loss holds on to: that of the latent when the mask was set."""
        if self._feature0 is None:
            assert self._state.mask_w_plus is not None
            self._feature0 = self._engine.whole(self._state.mask_w_plus).view.feature
        return self._feature0

    # --- state ------------------------------------------------------------------------------------------------

    def _fresh_state(self, config: DragConfig) -> SessionState:
        rows = 1 if config.space == "w" else config.layers
        with reproducible(self.model.device):
            zeros = torch.zeros_like(self._w0[:, :rows])
            state = SessionState(config, self._owner, self._w0[:, :rows].clone(), zeros, zeros)
        changed = changed_settings(self._start_config, config)
        event = {"kind": "settings", "changes": changed}
        return replace(state, events=add_event(state.events, event)) if changed else state

    def _change(self, **changes: Any) -> None:
        """Replaces entries of the state; what was computed from a replaced entry is forgotten."""
        if "parameter" in changes:
            self._whole = None
        if changes.keys() & {"parameter", "handle_points", "movable_mask", "config"}:
            self._near = None
        if "mask_w_plus" in changes:
            self._feature0 = None
        self._state = replace(self._state, **changes)

    def _adopt(self, state: SessionState) -> None:
        self._state, self._whole, self._near, self._feature0 = state, None, None, None

    def _set_mask(self, mask: Tensor | None) -> None:
        packed = None if mask is None else PackedMask.of(mask.bool().numpy())
        with reproducible(self.model.device):
            w_plus = self._w_plus(self._state.parameter).detach()
        self._change(
            movable_mask=None if mask is None else mask[None].to(self.model.device),
            mask_w_plus=None if mask is None else w_plus,
            done=False,
            drag_open=False,
            events=add_event(self._state.events, {"kind": "mask", "movable_mask": packed}),
        )

    def _require_points(self) -> SessionState:
        if self._state.handle_points is None:
            raise DragError("No points are set: call set_points(handle_points, target_points) first.")
        return self._state
