"""One drag from a start latent to its end, by any engine, and what an outside judge needs of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from draggan_fast import DragConfig, DragError, DragSession, Model, StepResult
from draggan_fast.views import FeatureView

from .engines import Drag, SessionDrag, start_drag
from .optical_flow import FOLLOWERS, Follower

FEATURES = "features"  # the tracker that belongs to the method; others are names of ``FOLLOWERS``
SETTINGS = ("published", "paper", "fast")


@dataclass(frozen=True, eq=False)
class DragRun:
    """before, after: uint8 [H, W, 3], of the start latent and of the last one.

    handle_points: [N, 2], where the drag's own tracker saw the handles last.  done: it stopped by itself.
    steps: iterations made.  seconds: they took, without the picture at the end.
    """

    before: np.ndarray
    after: np.ndarray
    handle_points: np.ndarray
    done: bool
    steps: int
    seconds: float


def whole_pixels(points: np.ndarray) -> np.ndarray:
    """[N, 2] → the nearest pixels, as ``DragSession.set_points`` takes them."""
    return np.asarray(np.floor(np.asarray(points, dtype=np.float64) + 0.5))


def settings_config(model: Model, settings: str, **changes: Any) -> DragConfig:
    """The settings of one name: the published program's and the paper's as far as the network is large enough
    (block 5 and six rows at most), or the model's own ("fast"). Raises DragError for another name."""
    if settings == "fast":
        return model.drag_config(**changes)
    if settings not in SETTINGS:
        raise DragError(f"There are no settings {settings!r}; there are {', '.join(SETTINGS)}.")
    preset: Callable[..., DragConfig] = DragConfig.published if settings == "published" else DragConfig.paper
    fitting = {"feature_block": min(5, model.config.num_blocks - 1), "layers": min(6, model.config.num_ws)}
    return preset(**{**fitting, **changes})


def picture_of(model: Model, w_plus: Tensor) -> np.ndarray:
    """uint8 [H, W, 3]: the picture of a latent [num_ws, w_dim], the same way for every engine."""
    return DragSession(model, w=w_plus).render()


class FlowTrackedSession(DragSession):
    """A session whose handles are followed by optical flow between successive pictures, not by features.

    Handles are then not whole pixels: a flow of a tenth of a pixel a step must add up.
    """

    may_capture = False  # a captured step tracks by features

    def __init__(self, model: Model, w0: Tensor, config: DragConfig, follow: Follower) -> None:
        super().__init__(model, w=w0, config=config)
        self._follow = follow
        self._last = self._seen = self.render()

    def _track(self, view: FeatureView) -> tuple[Tensor, Tensor]:
        state = self._state
        assert state.handle_points is not None
        self._seen = self.render()
        found = torch.from_numpy(self._follow(self._last, self._seen, state.handle_points[0].cpu().numpy()))
        height, width = self.image_size
        inside = torch.minimum(found.clamp_min(0), torch.tensor([width - 1.0, height - 1.0]))
        return inside[None].to(view.feature.device), self._taken_references(view)

    def step(self) -> StepResult:
        result = super().step()
        self._last = self._seen
        return result


class FlowDrag(SessionDrag):
    """A flow-tracked session as a Drag, in float32."""

    def __init__(
        self, model: Model, w0: Tensor, handle_points: np.ndarray, target_points: np.ndarray, config: DragConfig,
        tracker: str,
    ) -> None:  # fmt: skip
        self.session = FlowTrackedSession(model, w0, config, FOLLOWERS[tracker])
        self.session.set_points(handle_points, target_points)
        self.loss = None


def run_drag(
    model: Model,
    w0: Tensor,
    handle_points: np.ndarray,
    target_points: np.ndarray,
    config: DragConfig,
    *,
    engine: str = "reference",
    precision: str = "fp32",
    tracker: str = FEATURES,
    movable_mask: Tensor | None = None,
) -> DragRun:
    """Drags until done, or config.max_steps.

    w0: [num_ws, w_dim].  handle_points, target_points: [N, 2], (x, y); whole pixels are taken of them.
    Raises DragError if the engine, the precision or a point does not fit.
    """
    handles, targets = whole_pixels(handle_points), whole_pixels(target_points)
    before = picture_of(model, w0)
    drag: Drag
    if tracker == FEATURES:
        drag = start_drag(engine, model, w0, handles, targets, config, movable_mask, precision)
    else:
        drag = FlowDrag(model, w0, handles, targets, config, tracker)
    steps, began = 0, time.perf_counter()
    while steps < config.max_steps and not drag.done:
        drag.step()
        steps += 1
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    seconds = time.perf_counter() - began
    return DragRun(before, picture_of(model, drag.w_plus), drag.handle_points, drag.done, steps, seconds)
