"""Launch tables of the Triton kernels and the order of the backends on CUDA: data, with the measurement behind it.

Nothing here imports Triton, so that ``ops`` can read ``CUDA_ORDER`` on a machine that has none. A row says what it
rests on in ``measured``; a measurement is the name of a file in ``bench/results/``.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

NOT_MEASURED = "not measured: chosen by reasoning, see the kernel's docstring"


class Order(NamedTuple):
    """The backends of an op on CUDA, the preferred one first; the first that is available serves."""

    backends: tuple[str, ...]
    measured: str


CUDA_ORDER: dict[str, Order] = {
    "motion_supervision": Order(("cuda", "triton", "reference"), NOT_MEASURED),
    "point_tracking": Order(("cuda", "triton", "reference"), NOT_MEASURED),
    "mask_loss": Order(("cuda", "triton", "reference"), NOT_MEASURED),
    "sample_feature": Order(("cuda", "triton", "reference"), NOT_MEASURED),
}


class Launch(NamedTuple):
    """How one kernel is launched.

    ``block`` counts what the kernel lays along its first axis (pixels or cells), ``block_c`` channels; both are powers
    of two. ``arch`` is the compute capability as one number (90), ``channels`` the largest C the row is for; None
    means any. ``max_registers`` is a ceiling per thread: left to itself the assembler sometimes spills a register or
    two for the sake of occupancy (tools/triton_resources.py shows it). ``fuse`` allows a·b + c in one rounding where
    the compiler likes; kernels/_shared.py says why that is the exception.
    """

    kernel: str
    block: int
    block_c: int
    num_warps: int
    max_registers: int | None = None
    fuse: bool = False
    arch: int | None = None
    channels: int | None = None
    measured: str = NOT_MEASURED

    def options(self) -> dict[str, object]:
        """What Triton's launch takes besides the kernel's own arguments."""
        return {"num_warps": self.num_warps, "maxnreg": self.max_registers, "enable_fp_fusion": self.fuse}


# The first row that fits wins, so rows for one architecture or few channels stand above the general ones.
LAUNCHES = (
    Launch("supervision_rows", block=16, block_c=32, num_warps=4),
    Launch("supervision_gradient", block=8, block_c=128, num_warps=4, max_registers=80),
    Launch("tracking_search", block=32, block_c=32, num_warps=4),
    Launch("tracking_choice", block=256, block_c=1, num_warps=1),
    Launch("mask_quads", block=16, block_c=128, num_warps=1, max_registers=192, fuse=True),
    Launch("mask_gradient", block=16, block_c=64, num_warps=4),
    Launch("sample", block=1, block_c=256, num_warps=2),
    Launch("activate_map", block=16, block_c=64, num_warps=4, fuse=True),
    Launch("activate_map_backward", block=16, block_c=64, num_warps=4, fuse=True),
    Launch("modulation_sums", block=64, block_c=32, num_warps=4),
    Launch("fir_activate_map", block=8, block_c=64, num_warps=4, fuse=True),
    Launch("fir_activate_map_backward", block=8, block_c=64, num_warps=4, fuse=True),
)


def power_of_two(count: int) -> int:
    """The smallest power of two that is ≥ count ≥ 1."""
    return 1 << (count - 1).bit_length()


@functools.cache
def architecture(device: torch.device) -> int | None:
    """Compute capability of a CUDA device as one number, 90 for 9.0; None for any other device."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def launch(kernel: str, channels: int, device: torch.device) -> Launch:
    """The row for a kernel, its ``block_c`` cut to the channels there are. Raises LookupError if there is no row."""
    arch = architecture(device)
    for row in LAUNCHES:
        fits = row.arch in (None, arch) and (row.channels is None or channels <= row.channels)
        if row.kernel == kernel and fits:
            return row._replace(block_c=min(row.block_c, power_of_two(max(channels, 1))))
    raise LookupError(f"kernels/configs.py has no launch for {kernel}")
