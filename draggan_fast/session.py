"""A picture being dragged: DragGAN's algorithm (Pan et al. 2023, §3), one ``step()`` at a time.

A step is: features of the current latent → track the handles → stop test → motion supervision (+ mask loss,
+ regulariser) → backward → Adam. The order and every detail follow the published program.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import ops
from .config import DragConfig
from .engine import Features, make_engine
from .errors import DragError
from .inputs import Points, as_points, class_label, is_whole
from .loading import Model
from .views import FeatureView, beyond

BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8  # torch's Adam defaults, which the published program uses


@dataclass(frozen=True, eq=False)
class StepResult:
    """One step: its index (from 0), handle_points [N, 2] after tracking, distances [N] to the targets in pixels,
    the loss that was back-propagated (None if the drag was already done), and whether it is done.

    The handles belong to the picture as it was before the step's update. The arrays are read-only.
    """

    index: int
    handle_points: np.ndarray
    distances: np.ndarray
    loss: float | None
    done: bool


@dataclass(frozen=True, eq=False)
class SessionState:
    """Everything that changes while dragging. A step makes a new state and never writes to the tensors of an old
    one, so that keeping a state is a snapshot."""

    parameter: Tensor  # the optimised latent: [1, layers, w_dim] in w_plus, [1, 1, w_dim] in w
    adam_mean: Tensor
    adam_variance: Tensor
    adam_steps: int = 0
    handle_points: Tensor | None = None  # [1, N, 2] where the handles are now
    target_points: Tensor | None = None
    references: Tensor | None = None  # [1, N, C]; NaN rows are points whose reference is still to be taken
    movable_mask: Tensor | None = None  # [1, H, W] float32
    mask_w_plus: Tensor | None = None  # the latent whose feature the mask loss holds on to
    moved: bool = False  # the latent has changed since the handles were last tracked
    done: bool = False
    drag_open: bool = False  # a step has been made since the points were set
    trajectory: tuple[StepResult, ...] = ()
    events: tuple[dict[str, Any], ...] = ()  # what was done, in order: enough to do it again


class DragSession:
    """One picture being edited.

    model: from ``load``.  Start latent: ``seed`` (z from numpy's RandomState(seed), truncated by truncation_psi
    up to row truncation_cutoff, with the class label if the model has classes) or ``w``, [w_dim] or
    [num_ws, w_dim].  config: DragConfig; None = the settings the model recommends.  noise: "const" or "none".
    Raises DragError for anything that does not fit the model.
    """

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
        self.config = config if config is not None else model.drag_config()
        self.image_size = model.image_size
        self.seed, self.label = seed, label
        self.truncation_psi, self.truncation_cutoff = truncation_psi, truncation_cutoff
        self.noise = noise
        self._check_arguments()
        if (seed is None) == (w is None):
            raise DragError("Give either a seed or a latent w to start from.")
        with reproducible(model.device):
            self._w0 = self._seed_latent() if w is None else self._given_latent(w)  # [1, num_ws, w_dim]
            self._state = self._fresh_state()
        self._undo: list[SessionState] = []
        self._redo: list[SessionState] = []
        self._engine = make_engine(
            model.generator, model.device, self.config.feature_block, noise, self.config.engine, model.precision
        )
        self._whole: Features | None = None
        self._near: Features | None = None
        self._feature0: Tensor | None = None

    # --- what a caller sees -------------------------------------------------------------------------------

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
        """What the synthesis is computed in: "fp32" or "bf16". Latents, handles, losses and Adam are always float32."""
        return self._engine.precision

    @property
    def done(self) -> bool:
        """Whether every handle has reached its target."""
        return self._state.done

    @property
    def trajectory(self) -> tuple[StepResult, ...]:
        """Every step made since the start (or since what was undone)."""
        return self._state.trajectory

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
        self._redo.clear()
        self._change(
            handle_points=handles.to(self.model.device),
            target_points=targets.to(self.model.device),
            references=self._kept_references(handles),
            moved=False,
            done=False,
            drag_open=False,
            events=add_event(self._state.events, event),
        )

    def move_targets(self, target_points: Points) -> None:
        """New targets for the present handles while a drag is running; it stays one drag for ``undo``."""
        self._require_points()
        targets = as_points(target_points, "target_points", self.image_size)
        if targets.shape[1] != len(self.handle_points):
            raise DragError(f"{len(self.handle_points)} handle(s) but {targets.shape[1]} target(s).")
        event = {"kind": "targets", "target_points": targets[0].tolist()}
        self._redo.clear()
        self._change(
            target_points=targets.to(self.model.device), done=False, events=add_event(self._state.events, event)
        )

    def set_mask(self, movable_mask: np.ndarray | Tensor | None) -> None:
        """[H, W], nonzero where the picture may change; None = everywhere. The rest is held as it is now.

        Raises DragError and changes nothing if the size differs or nothing at all may change.
        """
        if movable_mask is None:
            self._redo.clear()
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
        self._redo.clear()
        self._set_mask(torch.from_numpy(mask != 0).float())

    def step(self) -> StepResult:
        """One step of the drag. If it is done already, its last result again, and nothing changes.

        Raises DragError if there are no points, or if the step is not finite (which it then takes back).
        """
        state = self._require_points()
        if state.done:
            return state.trajectory[-1]
        # A picture's features and those around the handles agree to rounding only: a replay must use the same.
        pictured = self._whole is not None
        with reproducible(self.model.device):
            result, changes = self._compute_step()
        if not state.drag_open:
            self._undo.append(state)
            self._redo.clear()
        self._change(
            **changes,
            done=result.done,
            drag_open=True,
            trajectory=(*state.trajectory, result),
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
        for _ in range(limit):
            result = self.step()
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
            image = self._engine.picture(self._whole_features(), ws)
            pixels = (image[0].float() * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
            if pixels.shape[2] < 3:  # grey
                pixels = pixels[..., :1].expand(-1, -1, 3)
            return pixels[..., :3].cpu().numpy().copy()

    def reset(self) -> None:
        """Back to the start latent, without points (they belonged to the edited picture); the mask stays.

        ``undo`` takes it back.
        """
        self._undo.append(self._state)
        self._redo.clear()
        mask = self._state.movable_mask
        self._adopt(self._fresh_state())
        if mask is not None:
            self._set_mask(mask[0].cpu())

    def undo(self) -> bool:
        """Back to before the last drag or reset (latent, points, mask); False if there is none.

        A drag is what was stepped since the points or the mask were set.
        """
        return self._swap(self._undo, self._redo)

    def redo(self) -> bool:
        """Does the last undone drag again; False if there is none, or points or mask were set since."""
        return self._swap(self._redo, self._undo)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the session (.safetensors: tensors, and JSON in the metadata), atomically."""
        from . import session_file  # late: it imports this module

        return session_file.save_session(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Model | None = None) -> DragSession:
        """A saved session, ready to go on; model None = the one it names. Raises DragError if it is another model."""
        from . import session_file

        return session_file.load_session(path, model)

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
                index = len(state.trajectory)
                raise DragError(f"Step {index} is not finite and was taken back; try a smaller lr (now {config.lr:g}).")
        result = StepResult(
            index=len(state.trajectory),
            handle_points=read_only(handles[0]),
            distances=read_only(distances[0]),
            loss=None if loss is None else loss.item(),
            done=done,
        )
        return result, changes

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
            # Tracking moves a handle by r2; from there supervision reads its patch, one pixel on, and one for rounding.
            reach = config.pixels(config.r2, height) + config.pixels(config.r1, height) + 3
            w_plus = self._w_plus(state.parameter)
            self._near = self._engine.around(w_plus, state.handle_points, reach, self._whole)
        return self._near

    def _holds_something(self) -> bool:
        """Whether a mask says that part of the picture must stay."""
        mask = self._state.movable_mask
        return mask is not None and self.config.lambda_mask > 0 and not bool(mask.all())

    def _taken_references(self, view: FeatureView) -> Tensor:
        """references, with those of new points (NaN rows) taken from the present feature."""
        state = self._state
        assert state.handle_points is not None
        present = view.sample(state.handle_points)
        if state.references is None:
            return present
        return torch.where(state.references.isnan(), present, state.references)

    def _kept_references(self, handles: Tensor) -> Tensor | None:
        """For each new handle the reference of the present handle on the same pixel, or a NaN row."""
        state = self._state
        if state.references is None or state.handle_points is None:
            return None
        kept = torch.full((1, handles.shape[1], state.references.shape[2]), torch.nan, device=state.references.device)
        present = [tuple(p) for p in state.handle_points[0].tolist()]
        for index, point in enumerate(handles[0].tolist()):
            if tuple(point) in present:
                match = present.index(tuple(point))
                present[match] = ()  # each present handle continues as one handle at most
                kept[0, index] = state.references[0, match]
        return kept

    @torch.no_grad()
    def _mask_feature(self) -> Tensor:
        """The feature that the mask loss holds on to: that of the latent when the mask was set."""
        if self._feature0 is None:
            assert self._state.mask_w_plus is not None
            self._feature0 = self._engine.whole(self._state.mask_w_plus).view.feature
        return self._feature0

    # --- state ------------------------------------------------------------------------------------------------

    def _fresh_state(self) -> SessionState:
        rows = 1 if self.config.space == "w" else self.config.layers
        with reproducible(self.model.device):
            zeros = torch.zeros_like(self._w0[:, :rows])
            return SessionState(self._w0[:, :rows].clone(), zeros, zeros)

    def _change(self, **changes: Any) -> None:
        """Replaces entries of the state; what was computed from a replaced entry is forgotten."""
        if "parameter" in changes:
            self._whole = None
        if changes.keys() & {"parameter", "handle_points", "movable_mask"}:
            self._near = None
        if "mask_w_plus" in changes:
            self._feature0 = None
        self._state = replace(self._state, **changes)

    def _adopt(self, state: SessionState) -> None:
        self._state, self._whole, self._near, self._feature0 = state, None, None, None

    def _swap(self, source: list[SessionState], other: list[SessionState]) -> bool:
        if not source:
            return False
        other.append(self._state)
        self._adopt(source.pop())
        return True

    def _set_mask(self, mask: Tensor | None) -> None:
        packed = None if mask is None else mask.bool().numpy()
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

    # --- the start ----------------------------------------------------------------------------------------------

    def _check_arguments(self) -> None:
        network, config = self.model.config, self.config
        if config.feature_block >= network.num_blocks:
            last = network.num_blocks - 1
            raise DragError(f"feature_block {config.feature_block} does not exist: {self.model.name} has 0 to {last}.")
        if config.layers > network.num_ws:
            raise DragError(f"layers is {config.layers}, but {self.model.name} has {network.num_ws} rows of w_plus.")
        if self.noise not in ("const", "none"):
            raise DragError(f"noise must be 'const' or 'none' while dragging, not {self.noise!r}.")
        psi, cutoff = self.truncation_psi, self.truncation_cutoff
        if isinstance(psi, bool) or not isinstance(psi, Real) or not abs(psi) < 1e6:
            raise DragError(f"truncation_psi must be a number between -1e6 and 1e6, not {psi!r}.")
        self.truncation_psi = float(psi)
        if cutoff is not None and not (is_whole(cutoff) and 0 <= cutoff <= network.num_ws):
            raise DragError(f"truncation_cutoff must be None or a row from 0 to {network.num_ws}, not {cutoff!r}.")

    @torch.no_grad()
    def _seed_latent(self) -> Tensor:
        network, device = self.model.config, self.model.device
        if not is_whole(self.seed) or not 0 <= self.seed < 2**32:
            raise DragError(f"seed must be a whole number from 0 to {2**32 - 1}, not {self.seed!r}.")
        z = torch.from_numpy(np.random.RandomState(self.seed).randn(1, network.z_dim)).float().to(device)
        return self.model.generator.mapping(
            z, class_label(self.label, network.c_dim, device), self.truncation_psi, self.truncation_cutoff
        )

    def _given_latent(self, w: Tensor | np.ndarray) -> Tensor:
        network = self.model.config
        try:
            array = w.detach().cpu().float().numpy() if isinstance(w, Tensor) else np.array(w, dtype=np.float32)
        except (TypeError, ValueError):
            raise DragError("w must be an array of numbers.") from None
        latent = torch.tensor(array, device=self.model.device)
        if latent.ndim == 3 and latent.shape[0] == 1:
            latent = latent[0]
        if latent.ndim == 1:
            latent = latent[None]
        if latent.ndim != 2 or latent.shape[0] not in (1, network.num_ws) or latent.shape[1] != network.w_dim:
            expected = f"[{network.w_dim}] or [{network.num_ws}, {network.w_dim}]"
            raise DragError(f"w must have the shape {expected}, not {list(latent.shape)}.")
        if not torch.isfinite(latent).all():
            raise DragError("w holds NaN or infinite values.")
        return latent.expand(network.num_ws, -1).clone().unsqueeze(0)


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Gradients in full float32, whatever mode the caller is in (no_grad, inference_mode, autocast, TF32)."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("highest")
        if device.type == "cuda":
            stack.enter_context(
                torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
            )
        yield


def read_only(tensor: Tensor) -> np.ndarray:
    array = tensor.cpu().numpy().copy()
    array.setflags(write=False)
    return array


def add_event(events: tuple[dict[str, Any], ...], event: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """events with one more. Steps of one sort are counted; a mask or targets set again before any step replace the
    earlier ones (not so points: which handle continues depends on every set of them)."""
    last = events[-1] if events else {"kind": None}
    if last["kind"] != event["kind"] or event["kind"] == "points":
        return (*events, event)
    if event["kind"] == "steps":
        if last["pictured"] != event["pictured"]:
            return (*events, event)
        event = {**event, "count": last["count"] + event["count"]}
    return (*events[:-1], event)
