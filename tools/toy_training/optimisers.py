# SPDX-License-Identifier: Apache-2.0
"""Muon, and Adam with equalised learning rates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """[n, a, b] → about the nearest semi-orthogonal matrices: singular values are driven towards 1.

    The usual quintic Newton–Schulz iteration, carried out on the a×a Gram matrices: for a ≪ b (a convolution's
    9·C_in columns) that is a third of the work of iterating on the matrices themselves.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalised(matrices.mT, steps).mT
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-12)
    gram = x @ x.mT
    one = torch.eye(gram.shape[1], device=gram.device, dtype=gram.dtype).expand_as(gram)
    total = one
    for _ in range(steps):
        factor = 3.4445 * one - 4.7750 * gram + 2.0315 * (gram @ gram)
        total = factor @ total
        gram = factor @ gram @ factor
    return total @ x


class Muon(torch.optim.Optimizer):
    """Momentum, then orthogonalisation, for weights that act as matrices (Jordan et al. 2024).

    Against Adam it needs far fewer steps here.  Weights of one shape are orthogonalised in one batch.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault((p.shape[0], p[0].numel()), []).append(p)
            for (rows, columns), members in alike.items():
                steps = []
                for p in members:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1.0 - group["momentum"])
                    steps.append(p.grad.lerp(buffer, group["momentum"]).reshape(rows, columns))
                scale = group["lr"] * math.sqrt(max(1.0, rows / columns))
                for p, update in zip(members, orthogonalised(torch.stack(steps))):
                    p.add_(update.reshape(p.shape), alpha=-scale)


def adam_groups(module: nn.Module, skip: set[int]) -> list[dict[str, Any]]:
    """Parameter groups by gain: weights are effective, so 1/√fan_in as learning rate is equalised learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for p in module.parameters():
        if id(p) not in skip:
            gain = 1.0 / math.sqrt(p[0].numel()) if p.ndim in (2, 4) else 1.0
            groups.setdefault(gain, []).append(p)
    return [{"params": members, "gain": gain} for gain, members in groups.items()]


def adam(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    return torch.optim.Adam([{**g, "lr": lr * g["gain"]} for g in groups], betas=betas, eps=1e-8, fused=True)
