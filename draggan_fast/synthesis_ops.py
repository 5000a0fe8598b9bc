"""The passes between the convolutions of a frozen network, and the choice of who computes them."""

from __future__ import annotations

from .kernels.modulated_conv import activate, activate_backward, fir, fir_backward

__all__ = ["activate", "activate_backward", "fir", "fir_backward"]
