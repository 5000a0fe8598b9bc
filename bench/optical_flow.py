"""Following points by the optical flow between successive pictures, in place of the drag's own feature tracking.

OpenCV's methods come with the extra ``eval``; RAFT is used only if torchvision and its weights are here already.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from draggan_fast import DragError

# (first picture, second picture: uint8 [H, W, 3]; points [N, 2] float32 in the first) -> where they are in the second
Follower = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def opencv() -> Any:
    """The module cv2. Raises DragError if it is not installed."""
    try:
        return import_module("cv2")
    except ImportError:
        raise DragError("Optical flow needs OpenCV: install it with pip install 'draggan-fast[eval]'.") from None


def grey(picture: np.ndarray) -> np.ndarray:
    cv2 = opencv()
    found: np.ndarray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return found


def sample_flow(flow: np.ndarray, points: np.ndarray) -> np.ndarray:
    """flow [H, W, 2] read bilinearly at points [N, 2] (x, y), clamped to the picture: [N, 2] float32."""
    height, width = flow.shape[:2]
    x, y = points[:, 0].clip(0, width - 1), points[:, 1].clip(0, height - 1)
    x0, y0 = np.floor(x).astype(int).clip(0, width - 2), np.floor(y).astype(int).clip(0, height - 2)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    upper = flow[y0, x0] * (1 - fx) + flow[y0, x0 + 1] * fx
    lower = flow[y0 + 1, x0] * (1 - fx) + flow[y0 + 1, x0 + 1] * fx
    found: np.ndarray = (upper * (1 - fy) + lower * fy).astype(np.float32)
    return found


def dis_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Dense inverse search (Kroeger et al. 2016): [H, W, 2] float32, where each pixel of the first went, in pixels."""
    cv2 = opencv()
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)  # these pictures are small
    flow: np.ndarray = search.calc(grey(first), grey(second), None)
    return flow


def follow_dis(first: np.ndarray, second: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points + sample_flow(dis_flow(first, second), points)


def follow_lucas_kanade(first: np.ndarray, second: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Pyramidal Lucas–Kanade; a point that it loses stays where it was."""
    start = np.ascontiguousarray(points, dtype=np.float32)[:, None]
    found, kept, _ = opencv().calcOpticalFlowPyrLK(grey(first), grey(second), start, None, winSize=(15, 15), maxLevel=2)
    moved: np.ndarray = np.where(kept == 1, found[:, 0], points).astype(np.float32)
    return moved


def raft_models() -> Any:
    """torchvision's module of flow networks. Raises DragError if it is not installed or does not fit this torch."""
    if find_spec("torchvision") is None:
        raise DragError("RAFT needs torchvision, which is not installed.")
    try:
        return import_module("torchvision.models.optical_flow")
    except (ImportError, RuntimeError) as error:
        raise DragError(f"RAFT needs torchvision, which cannot be imported here: {error}.") from None


def raft_weights() -> Path:
    """The file of torchvision's RAFT weights (small), where torch keeps what it downloaded. DragError if absent."""
    url = raft_models().Raft_Small_Weights.C_T_V2.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.is_file():
        raise DragError(f"RAFT needs its weights {path.name} in torch's hub folder; they are not downloaded here.")
    return path


@lru_cache(maxsize=1)
def raft_network(path: Path) -> torch.nn.Module:
    network: torch.nn.Module = raft_models().raft_small(weights=None)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


@torch.inference_mode()
def follow_raft(first: np.ndarray, second: np.ndarray, points: np.ndarray) -> np.ndarray:
    network = raft_network(raft_weights())
    pair = [torch.from_numpy(p).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in (first, second)]
    flow = network(*pair)[-1][0].permute(1, 2, 0).numpy()
    return points + sample_flow(flow, points)


FOLLOWERS: dict[str, Follower] = {"dis": follow_dis, "lucas-kanade": follow_lucas_kanade, "raft": follow_raft}


def why_absent(follower: str) -> str | None:
    """Why this method cannot be used here, in one sentence; None if it can."""
    try:
        _ = raft_weights() if follower == "raft" else opencv()
    except DragError as error:
        return str(error)
    return None
