"""The CUDA ops on the CPU: csrc/cuda/*.cuh compiled for the emulator beside this file, called like the reference.

Every buffer a kernel writes starts as NaN (integers: as a pattern) and stands between guards, so that what was not
written, or was written outside, shows. The guards of inputs are NaN too: a read beyond them spoils results.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ORDERS = {"forward": 0, "backward": 1, "shuffled": 2}
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
GUARD = 64  # elements before and behind; a multiple of every vector, so that alignment is what it would be
PATTERN = -7  # of unwritten integers


class View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 4)]


def compiler() -> str | None:
    return shutil.which("g++") or shutil.which("clang++")


def build(folder: Path) -> Emulator:
    """Compiles the kernels into a folder; a few seconds."""
    library = folder / "cuda_emulator.so"
    command = [str(compiler()), "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += ["-ffp-contract=off", "-shared", "-fPIC", f"-I{HERE}", f"-I{ROOT}", "-include", "emulator.h"]
    result = subprocess.run(
        [*command, "-o", str(library), str(HERE / "ops.cpp")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return Emulator(ctypes.CDLL(str(library)))


def view(tensor: torch.Tensor) -> View:
    return View(tensor.data_ptr(), (ctypes.c_int64 * 4)(*tensor.stride()))


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def guarded_input(tensor: torch.Tensor) -> torch.Tensor:
    """The same values and strides inside a storage that is NaN (or the pattern) everywhere else."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())) if tensor.numel() else 0
    blank = float("nan") if tensor.is_floating_point() else PATTERN
    store = torch.full((span + 2 * GUARD,), blank, dtype=tensor.dtype)
    return store.as_strided(tensor.shape, tensor.stride(), GUARD).copy_(tensor)


class Emulator:
    """The four ops with the arguments and results of kernels/reference.py.

    ``order``, one of ORDERS, is the order in which threads and blocks take their turns.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.order = "forward"

    def _numbers(self, feature, image_size, points=0, radius=0):
        return (ctypes.c_int * 8)(*feature.shape, *image_size, points, radius)

    def _buffers(self):
        """A function that makes guarded output buffers, and one that checks their guards."""
        made = []

        def make(shape, dtype=torch.float32, memory_format=torch.contiguous_format):
            strides = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=memory_format).stride()
            blank = float("nan") if dtype.is_floating_point else PATTERN
            count = torch.Size(shape).numel()
            store = torch.full((count + 2 * GUARD,), blank, dtype=dtype)
            made.append(store)
            return store.as_strided(shape, strides, GUARD)

        def check():
            for store in made:
                for guard in (store[:GUARD], store[store.numel() - GUARD :]):
                    assert (guard.isnan() if guard.is_floating_point() else guard == PATTERN).all(), "a guard was hit"

        return make, check

    def _call(self, name, feature, numbers, *arguments):
        function = getattr(self.library, name)
        function.restype = ctypes.c_char_p
        problem = function(DTYPES[feature.dtype], ORDERS[self.order], numbers, view(feature), *arguments)
        assert problem is None, problem.decode()

    def _gradient_like(self, make, feature):
        last = feature.is_contiguous(memory_format=torch.channels_last) and not feature.is_contiguous()
        return make(feature.shape, feature.dtype, torch.channels_last if last else torch.contiguous_format)

    def sample_feature(self, feature, points, image_size):
        make, check = self._buffers()
        feature, points = guarded_input(feature), guarded_input(points.contiguous())
        numbers = self._numbers(feature, image_size, points.shape[1])
        sampled = make((*points.shape[:2], feature.shape[1]))
        self._call("sample_feature", feature, numbers, pointer(points), pointer(sampled))
        check()
        return sampled

    def point_tracking(self, feature, reference_feature, handle_points, active, r2, image_size):
        make, check = self._buffers()
        feature, reference = guarded_input(feature), guarded_input(reference_feature.float().contiguous())
        handles, active = guarded_input(handle_points.contiguous()), active.contiguous()
        numbers = self._numbers(feature, image_size, handles.shape[1], r2)
        candidates = handles.shape[0] * handles.shape[1] * self.library.track_candidates(numbers)
        moved, distance = make(handles.shape), make(handles.shape[:2])
        scratch = (make((candidates,)), make((candidates,), torch.int32))
        arguments = (reference, handles, active, moved, distance, *scratch)
        self._call("point_tracking", feature, numbers, *map(pointer, arguments))
        check()
        return moved, distance

    def motion_supervision(
        self, feature, handle_points, target_points, active, r1, image_size, crop_origin=None, whole_size=None
    ):
        make, check = self._buffers()
        feature, active = guarded_input(feature), active.contiguous()
        handles, targets = guarded_input(handle_points.contiguous()), guarded_input(target_points.contiguous())
        numbers = self._numbers(feature, image_size, handles.shape[1], r1)
        grad, loss = self._gradient_like(make, feature), make((feature.shape[0],))
        library = self.library
        rows = handles.shape[0] * handles.shape[1] * library.patch_rows(numbers)
        windows = make((handles.shape[0] * handles.shape[1] * library.patch_window_bytes() // 4,), torch.int32)
        patch_rows = make((rows * library.patch_row_bytes() // 4,), torch.int32)
        row_loss = make((rows * library.channel_chunks(numbers),))
        row_gradient = make((rows * library.patch_columns(numbers) * feature.shape[1],))
        scratch = (windows, patch_rows, row_loss, row_gradient)
        outputs = (view(grad), *map(pointer, (loss, *scratch)))
        origins = None if crop_origin is None else guarded_input(crop_origin.contiguous())
        crops = (None if origins is None else pointer(origins), *(whole_size or image_size))
        self._call("motion_supervision", feature, numbers, *map(pointer, (handles, targets, active)), *crops, *outputs)
        check()
        return loss, grad

    def mask_loss(self, feature, feature0, movable_mask, image_size):
        make, check = self._buffers()
        feature, feature0 = guarded_input(feature), guarded_input(feature0)
        mask = guarded_input(movable_mask.float().contiguous())
        numbers = self._numbers(feature, image_size)
        grad, loss = self._gradient_like(make, feature), make((feature.shape[0],))
        batch, _, rows, columns = feature.shape
        sums = make((batch * rows * columns * 4,))
        partial = make((batch * self.library.mask_blocks(numbers),))
        finished = make((batch,), torch.int32)
        outputs = (view(grad), *map(pointer, (loss, sums, partial, finished)))
        self._call("mask_loss", feature, numbers, view(feature0), pointer(mask), *outputs)
        check()
        return loss, grad
