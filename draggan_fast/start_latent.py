"""The latent a drag starts from: of a seed, or as given; whatever does not fit the model is refused."""

from __future__ import annotations

from numbers import Real

import numpy as np
import torch
from torch import Tensor

from .config import DragConfig
from .errors import DragError
from .inputs import class_label, is_whole
from .loading import Model

MAX_W = 1e6  # far beyond any latent (they are of the size of 1), and far below where squares overflow


def check_start(
    model: Model, config: DragConfig, noise: str, truncation_psi: float, truncation_cutoff: int | None
) -> float:
    """truncation_psi as a float; raises DragError if anything does not fit the model."""
    network = model.config
    if config.feature_block >= network.num_blocks:
        last = network.num_blocks - 1
        raise DragError(f"feature_block {config.feature_block} does not exist: {model.name} has 0 to {last}.")
    if config.layers > network.num_ws:
        raise DragError(f"layers is {config.layers}, but {model.name} has {network.num_ws} rows of w_plus.")
    if noise not in ("const", "none"):
        raise DragError(f"noise must be 'const' or 'none' while dragging, not {noise!r}.")
    psi, cutoff = truncation_psi, truncation_cutoff
    if isinstance(psi, bool) or not isinstance(psi, Real) or not abs(psi) < 1e6:
        raise DragError(f"truncation_psi must be a number between -1e6 and 1e6, not {psi!r}.")
    if cutoff is not None and not (is_whole(cutoff) and 0 <= cutoff <= network.num_ws):
        raise DragError(f"truncation_cutoff must be None or a row from 0 to {network.num_ws}, not {cutoff!r}.")
    return float(psi)


@torch.no_grad()
def seed_latent(
    model: Model, seed: int | None, label: int | None, truncation_psi: float, truncation_cutoff: int | None
) -> Tensor:
    """[1, num_ws, w_dim]: z from numpy's RandomState(seed), mapped and truncated."""
    network, device = model.config, model.device
    if not is_whole(seed) or not 0 <= seed < 2**32:
        raise DragError(f"seed must be a whole number from 0 to {2**32 - 1}, not {seed!r}.")
    z = torch.from_numpy(np.random.RandomState(seed).randn(1, network.z_dim)).float().to(device)
    return model.generator.mapping(z, class_label(label, network.c_dim, device), truncation_psi, truncation_cutoff)


def given_latent(model: Model, w: Tensor | np.ndarray) -> Tensor:
    """[w_dim] or [num_ws, w_dim] → [1, num_ws, w_dim] float32 on the model's device."""
    network = model.config
    try:
        array = w.detach().cpu().float().numpy() if isinstance(w, Tensor) else np.array(w, dtype=np.float32)
    except (TypeError, ValueError):
        raise DragError("w must be an array of numbers.") from None
    latent = torch.tensor(array, device=model.device)
    if latent.ndim == 3 and latent.shape[0] == 1:
        latent = latent[0]
    if latent.ndim == 1:
        latent = latent[None]
    if latent.ndim != 2 or latent.shape[0] not in (1, network.num_ws) or latent.shape[1] != network.w_dim:
        expected = f"[{network.w_dim}] or [{network.num_ws}, {network.w_dim}]"
        raise DragError(f"w must have the shape {expected}, not {list(latent.shape)}.")
    if not torch.isfinite(latent).all():
        raise DragError("w holds NaN or infinite values.")
    if latent.abs().max() > MAX_W:
        raise DragError(f"w holds values beyond ±{MAX_W:g}: no network draws anything from those.")
    return latent.expand(network.num_ws, -1).clone().unsqueeze(0)
