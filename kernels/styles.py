"""What a latent does to each layer of a frozen network, and the layers' gradients to the latent, in plain PyTorch: the
specification of the fast ones.

A layer's style is s = A·w + b, its demodulation d = (E·s² + ε)^−½ with E = Σ W² over the kernel (Karras et al. 2020,
§2.2). A ToRGB layer has the style in its few weights, and no demodulation. All float32. Per layer, lists of as many:
affine [C, w_dim], bias [C], energy E [C', C].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-8


def modulation(
    w_plus: Tensor, first_row: int, affines: Sequence[Tensor], biases: Sequence[Tensor], energies: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """(styles [B, C], demodulations [B, C']) of the layers to which rows ``first_row``… of w_plus [B, num_ws, w_dim]
    belong."""
    styles = [
        F.linear(w_plus[:, first_row + index], affine, bias)
        for index, (affine, bias) in enumerate(zip(affines, biases, strict=True))
    ]
    sums = (F.linear(style * style, energy) for style, energy in zip(styles, energies, strict=True))
    return styles, [torch.rsqrt(total + EPSILON) for total in sums]


def latent_gradient(
    grad_styles: Sequence[Tensor],
    grad_demodulations: Sequence[Tensor],
    styles: Sequence[Tensor],
    demodulations: Sequence[Tensor],
    energies: Sequence[Tensor],
    affines: Sequence[Tensor],
    divisors: Sequence[Tensor] | None = None,
) -> Tensor:
    """Gradients of styles [B, C] and demodulations [B, C'] → that of the layers' rows of w_plus, [B, layers, w_dim].

    divisors [B, 1]: by which each layer's gradient of its style must be divided (``frozen.Modulation``).
    """
    rows = []
    for index, (grad, style, demodulation) in enumerate(zip(grad_styles, styles, demodulations, strict=True)):
        # Through the demodulation: ∂d/∂s = −d³·E·s.
        total = grad - style * ((grad_demodulations[index] * demodulation**3) @ energies[index])
        rows.append((total if divisors is None else total / divisors[index]) @ affines[index])
    return torch.stack(rows, dim=1)


def to_rgb(x: Tensor, weight: Tensor, bias: Tensor, clamp: float | None) -> Tensor:
    """x [B, C, h, w] of any float type, weight [B, colours, C] with the style in it → [B, colours, h, w] float32;
    clamp: its bound, or None."""
    cells = x.permute(0, 2, 3, 1).flatten(1, 2)
    rgb = torch.matmul(cells, weight.transpose(1, 2).to(x.dtype)).float() + bias
    if clamp is not None:
        rgb = rgb.clamp(-clamp, clamp)
    return rgb.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
