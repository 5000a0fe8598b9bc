"""``load``: a model's name or file → a frozen network on a device, ready to be dragged."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from . import checkpoint, models
from .config import DragConfig
from .engine import PRECISIONS, refusal
from .errors import DragError
from .generator import Generator, GeneratorConfig


@dataclass(frozen=True)
class Model:
    """A loaded generator and what is known about it. Sessions share it; nothing in it ever changes.

    content_hash identifies the network by its weights and configuration, wherever its file lies; ``source`` is the
    name or path that ``load`` was given.
    """

    name: str
    source: str
    generator: Generator
    content_hash: str
    family: str
    metadata: dict[str, Any]
    device: torch.device
    precision: str

    @property
    def config(self) -> GeneratorConfig:
        return self.generator.config

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.config.resolution, self.config.resolution

    def drag_config(self, **changes: Any) -> DragConfig:
        """The settings this model recommends (its metadata), else the published ones as far as it is large enough."""
        known: dict[str, Any] = {
            "feature_block": min(5, self.config.num_blocks - 1),
            "layers": min(6, self.config.num_ws),
        }
        recommended = self.metadata.get("drag", {})
        if not isinstance(recommended, dict):
            raise DragError(f"The drag settings in the metadata of {self.name} are damaged; give settings of your own.")
        known.update(recommended)
        known.update(changes)
        return DragConfig.from_json(known)


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device meant; "auto" is CUDA if there is one, else the CPU. Raises DragError for one that is not there."""
    name = str(device)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(name)
    except RuntimeError:
        raise DragError(f"There is no device {name!r}; choose auto, cpu or cuda.") from None
    if picked.type not in ("cpu", "cuda"):
        raise DragError(f"Device {name!r} is not supported; choose auto, cpu or cuda.")
    if picked.type == "cuda" and not torch.cuda.is_available():
        raise DragError("No CUDA device is available here; use --device cpu (device='cpu').")
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise DragError(f"There is no device {name!r}: this machine has {torch.cuda.device_count()} CUDA device(s).")
    return picked


def load(
    name_or_path: str | os.PathLike[str] = models.DEFAULT_MODEL,
    device: str | torch.device = "auto",
    precision: str = "auto",
) -> Model:
    """Loads a named model (see ``draggan-fast models``) or a checkpoint file of any supported family.

    device: "auto", "cpu", "cuda" or "cuda:N".  precision: "fp32", "bf16", "fp16" (GPUs only), or
    "auto": what the device is fast in (see ``engine.best_precision``).
    Raises DragError if the model is unknown, its file cannot be used, or the device or precision is not there.
    """
    if precision not in PRECISIONS:
        raise DragError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}.")
    picked = pick_device(device)
    refused = refusal(precision, picked)
    if refused is not None:
        raise DragError(refused)
    path = models.resolve(name_or_path)
    with torch.inference_mode(False):  # a model made of inference tensors could never be dragged
        loaded = checkpoint.load_checkpoint(path)
        generator = Generator.from_checkpoint(loaded).to(picked)
    name = str(loaded.metadata.get("name") or path.stem)
    return Model(
        name="".join(c for c in name if c.isprintable())[:80],  # it will be shown in a terminal
        source=os.fspath(name_or_path),
        generator=generator,
        content_hash=checkpoint.content_hash(loaded.tensors, loaded.config),
        family=loaded.family,
        metadata=loaded.metadata,
        device=picked,
        precision=precision,
    )
