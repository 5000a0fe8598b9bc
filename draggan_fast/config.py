"""The settings of a drag, with the published and the paper's values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any

from .errors import DragError

SPACES = ("w_plus", "w")
ENGINES = ("auto", "reference", "fast")
STOP_RULES = ("published", "paper")
MAX_R1, MAX_R2 = 64, 128  # pixels at 512: far beyond any use, and what keeps a window's memory bounded


@dataclass(frozen=True)
class DragConfig:
    """Settings of a drag. The defaults are those of the published program.

    lr: step size of Adam on the latent.
    r1, r2: radii of motion supervision and of point tracking, in pixels at 512; scaled by H/512.
    lambda_mask: weight of the mask loss.  reg: weight of the mean |w_plus − w0|.
    feature_block: the block whose feature is dragged, 0 = 4×4 … 5 = 128×128.
    layers: only the first ``layers`` rows of w_plus change.  space: "w_plus", or "w" (those rows move alike).
    stop_distance: the drag is done when no handle is farther from its target, in image pixels. "published" =
    max(2/512·H, 2); "paper" = 1, or 2 with more than 5 points. The published program does not move a handle within 1;
    below 1, a single handle is moved until it is on its target's pixel (several hardly ever are all at once: then 1).
    max_steps: where ``run`` gives up.
    engine: who computes the steps: "reference" (plain PyTorch and autograd, float32), "fast" (frozen weights, in the
    precision that ``load`` was asked for), or "auto": fast where it can run the network, else reference.
    """

    lr: float = 1e-3
    r1: float = 3
    r2: float = 12
    lambda_mask: float = 20.0
    reg: float = 0.0
    feature_block: int = 5
    layers: int = 6
    space: str = "w_plus"
    stop_distance: float | str = "published"
    max_steps: int = 300
    engine: str = "auto"

    def __post_init__(self) -> None:
        def number(name: str, least: float, most: float, *, strict: bool = False, whole: bool = False) -> None:
            value = getattr(self, name)
            kind = Integral if whole else Real
            ok = isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most  # type: ignore[operator]
            if not ok or (strict and value == least):
                what = "a whole number" if whole else "a number"
                bounds = f"above {least} and at most {most:g}" if strict else f"from {least} to {most:g}"
                raise DragError(f"{name} must be {what} {bounds}, not {value!r}.")
            object.__setattr__(self, name, int(value) if isinstance(value, Integral) else float(value))

        number("lr", 0, 1e6, strict=True)
        number("r1", 0, MAX_R1, strict=True)
        number("r2", 0, MAX_R2, strict=True)
        number("lambda_mask", 0, 1e9)
        number("reg", 0, 1e9)
        number("feature_block", 0, 8, whole=True)
        number("layers", 1, 18, whole=True)
        number("max_steps", 1, 1_000_000, whole=True)
        if self.space not in SPACES:
            raise DragError(f"space must be one of {', '.join(SPACES)}, not {self.space!r}.")
        if self.engine not in ENGINES:
            raise DragError(f"engine must be one of {', '.join(ENGINES)}, not {self.engine!r}.")
        if isinstance(self.stop_distance, str):
            if self.stop_distance not in STOP_RULES:
                raise DragError(f"stop_distance must be a number or one of {', '.join(STOP_RULES)}.")
        else:
            number("stop_distance", 0, 4096, strict=True)

    @classmethod
    def published(cls, **changes: Any) -> DragConfig:
        """The published program's settings: lr 1e-3, block 5, r1 3, r2 12, λ 20, 6 rows, stop at max(2/512·H, 2)."""
        return cls(**changes)

    @classmethod
    def paper(cls, **changes: Any) -> DragConfig:
        """The paper's settings for FFHQ, AFHQCat and LSUN Car (§4): lr 2e-3, stop at 1 px (2 px above 5 points)."""
        return cls(**{"lr": 2e-3, "stop_distance": "paper", **changes})

    @classmethod
    def from_json(cls, data: Any) -> DragConfig:
        """From a JSON object of field values, missing ones as published; raises DragError on anything else."""
        known = {f.name for f in fields(cls)}
        if not isinstance(data, dict) or not set(data) <= known:
            raise DragError(f"Drag settings must be an object with entries among {', '.join(sorted(known))}.")
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def pixels(self, radius: float, height: int) -> int:
        """A radius at 512 in pixels of a picture of this height; at least 1, so that no patch is ever empty."""
        return max(round(radius / 512 * height), 1)

    def stop_pixels(self, height: int, points: int) -> float:
        """The stop distance in image pixels."""
        if self.stop_distance == "published":
            return max(2 / 512 * height, 2.0)
        if self.stop_distance == "paper":
            return 1.0 if points <= 5 else 2.0
        return float(self.stop_distance) if points == 1 else max(float(self.stop_distance), 1.0)
