"""Whoever can make a drag: the published program's step as the baseline, and ours, behind one face.

A new engine is one entry in ``ENGINES``; suites, evaluation and the command line then know it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from draggan_fast import DragConfig, DragError, DragSession, Model

from .published import PublishedDrag

Points = Sequence[Sequence[float]] | np.ndarray


class Drag(Protocol):
    """A drag under way. ``step`` makes one iteration; the properties tell where it stands after it."""

    def step(self) -> None: ...

    def picture(self) -> np.ndarray:
        """uint8 [H, W, 3]. ``published`` has that of its last step (one update behind, as the program shows it);
        others draw the present latent."""
        ...

    @property
    def handle_points(self) -> np.ndarray:
        """[N, 2] float32, (x, y), as last tracked."""
        ...

    @property
    def loss(self) -> float | None:
        """What the last step back-propagated; None before the first step and when the drag is done."""
        ...

    @property
    def done(self) -> bool: ...

    @property
    def w_plus(self) -> Tensor:
        """[num_ws, w_dim] float32: the latent after the last update."""
        ...


# (model, w0 [num_ws, w_dim], handle_points, target_points, config, movable_mask [H, W] or None, precision) -> drag
Start = Callable[[Model, Tensor, Points, Points, DragConfig, Tensor | None, str], Drag]


@dataclass(frozen=True)
class Engine:
    """name: what rows and ``--engine`` call it.  precisions: what it can compute in, its default first;
    gpu_precisions: what else on a GPU."""

    name: str
    about: str
    precisions: tuple[str, ...]
    start: Start
    gpu_precisions: tuple[str, ...] = ()

    def served(self, device: torch.device) -> tuple[str, ...]:
        """What it computes in on such a device."""
        return self.precisions + (self.gpu_precisions if device.type == "cuda" else ())


def start_latent(model: Model, seed: int = 0, truncation_psi: float = 0.7) -> Tensor:
    """w0 [num_ws, w_dim] of a seed, the same for every engine."""
    config = model.drag_config(engine="reference")  # packs no weights that the memory measured would be charged with
    return DragSession(model, seed=seed, truncation_psi=truncation_psi, config=config).w0


class PublishedEngineDrag:
    """``published.PublishedDrag`` as a Drag."""

    def __init__(
        self,
        model: Model,
        w0: Tensor,
        handle_points: Points,
        target_points: Points,
        config: DragConfig,
        movable_mask: Tensor | None,
        precision: str,
    ) -> None:
        self._drag = PublishedDrag(
            model,
            w0,
            [(int(x), int(y)) for x, y in handle_points],
            [(int(x), int(y)) for x, y in target_points],
            config,
            None if movable_mask is None else movable_mask.to(model.device),
        )
        self._picture: Tensor | None = None
        self.loss: float | None = None
        self.done = False

    def step(self) -> None:
        self.loss, self.done, self._picture = self._drag.step()

    def picture(self) -> np.ndarray:
        if self._picture is None:
            raise DragError("The published program has no picture before its first step.")
        return self._picture.cpu().numpy()

    @property
    def handle_points(self) -> np.ndarray:
        return np.array(self._drag.handle_points, dtype=np.float32)

    @property
    def w_plus(self) -> Tensor:
        return self._drag.w_plus


class SessionDrag:
    """A ``DragSession`` as a Drag."""

    engine = "reference"

    def __init__(
        self,
        model: Model,
        w0: Tensor,
        handle_points: Points,
        target_points: Points,
        config: DragConfig,
        movable_mask: Tensor | None,
        precision: str,
    ) -> None:
        model, config = replace(model, precision=precision), replace(config, engine=self.engine)
        self.session = DragSession(model, w=w0, config=config)
        self.session.set_points(handle_points, target_points)
        if movable_mask is not None:
            self.session.set_mask(movable_mask)
        self.loss: float | None = None

    def step(self) -> None:
        self.loss = self.session.step().loss

    def picture(self) -> np.ndarray:
        return self.session.render()

    @property
    def handle_points(self) -> np.ndarray:
        return self.session.handle_points

    @property
    def done(self) -> bool:
        return self.session.done

    @property
    def w_plus(self) -> Tensor:
        return self.session.w_plus


class FastDrag(SessionDrag):
    engine = "fast"


BASELINE, REFERENCE, FAST = "published", "reference", "fast"
ENGINES: dict[str, Engine] = {
    BASELINE: Engine(BASELINE, "the published program's step, in plain PyTorch", ("fp32",), PublishedEngineDrag),
    REFERENCE: Engine(REFERENCE, "DragSession on plain PyTorch", ("fp32",), SessionDrag),
    FAST: Engine(FAST, "DragSession on frozen weights", ("fp32", "bf16"), FastDrag, gpu_precisions=("fp16",)),
}


def engine_named(name: str) -> Engine:
    """Raises DragError, with the names there are, for an unknown one."""
    if name not in ENGINES:
        raise DragError(f"There is no engine {name!r}; there is {', '.join(ENGINES)}.")
    return ENGINES[name]


def start_drag(
    engine: str,
    model: Model,
    w0: Tensor,
    handle_points: Points,
    target_points: Points,
    config: DragConfig,
    movable_mask: Tensor | None = None,
    precision: str = "fp32",
) -> Drag:
    """A drag by the engine of this name. Raises DragError if it does not know the precision, or the input is bad."""
    found = engine_named(engine)
    served = found.served(model.device)
    if precision not in served:
        raise DragError(f"The engine {engine} computes in {', '.join(served)} here, not in {precision!r}.")
    return found.start(model, w0, handle_points, target_points, config, movable_mask, precision)
