"""LPIPS, if its package and the weights it needs are on this machine; nothing is ever downloaded."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

BACKBONE = "alexnet-owt-7be5be79.pth"  # torchvision's file, which the package lpips would fetch


def why_no_lpips() -> str | None:
    """Why LPIPS cannot be measured here, in one sentence; None if it can."""
    for package in ("lpips", "torchvision"):
        if find_spec(package) is None:
            return f"LPIPS needs the package {package}, which is not installed."
    if not (Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE).is_file():
        return f"LPIPS needs the weights {BACKBONE} in torch's hub folder; they are not downloaded here."
    return None


@lru_cache(maxsize=1)
def _network() -> Any:
    return import_module("lpips").LPIPS(net="alex", verbose=False).eval()


@torch.inference_mode()
def lpips(first: np.ndarray, second: np.ndarray) -> float | None:
    """LPIPS (AlexNet) of two pictures, uint8 [H, W, 3]; None where ``why_no_lpips`` says why."""
    if why_no_lpips():
        return None
    pair = [torch.from_numpy(p).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in (first, second)]
    return float(_network()(*pair))
