"""Start latents from files that other programs write: .npy, .npz and .safetensors. Read as data, and checked before
anything large is read."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format
from safetensors import SafetensorError, safe_open

from .errors import DragError

NAMES = ("w_plus", "w")  # looked for in this order
MAX_VALUES = 1 << 16  # 18 rows of 512 are 9216


def read_latent(path: str) -> np.ndarray:
    """w [w_dim] or w_plus [num_ws, w_dim] (a leading 1 is allowed), float32.

    An .npz or .safetensors file holds it under the name w_plus or w (a saved session does); an .npy file is it.
    Raises DragError if the file cannot be read or holds no such array.
    """
    file = Path(path)
    try:
        if file.suffix == ".safetensors":
            return _from_safetensors(file)
        if file.suffix == ".npy":
            with file.open("rb") as stream:
                return _from_npy(stream)
        if file.suffix == ".npz":
            return _from_npz(file)
    except OSError as error:
        raise DragError(f"The latent {path!r} cannot be read: {error.strerror or error}.") from None
    except (ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, SafetensorError) as error:
        if isinstance(error, DragError):
            raise
        raise DragError(f"The latent {path!r} is damaged or not of its kind ({type(error).__name__}).") from None
    raise DragError(f"The latent {path!r} must be a .safetensors, .npy or .npz file.")


def _pick(names: set[str], path: Path) -> str:
    for name in NAMES:
        if name in names:
            return name
    raise DragError(f"{str(path)!r} holds no latent named w_plus or w.")


def _check_shape(shape: tuple[int, ...]) -> None:
    if not 1 <= len(shape) <= 3 or np.prod(shape, dtype=object) > MAX_VALUES:
        raise DragError(f"A latent has the shape [w_dim] or [num_ws, w_dim], not {list(shape)}.")


def _from_npy(stream: IO[bytes]) -> np.ndarray:
    version = npy_format.read_magic(stream)
    read_header = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}.get(version)
    if read_header is None:
        raise ValueError("unknown version")
    shape, fortran, dtype = read_header(stream)
    _check_shape(shape)
    if dtype.kind not in "fiu":
        raise DragError(f"A latent is an array of numbers, not of {dtype}.")
    count = int(np.prod(shape))
    data = stream.read(count * dtype.itemsize)
    array = np.frombuffer(data, dtype=dtype, count=count).reshape(shape, order="F" if fortran else "C")
    return array.astype(np.float32)


def _from_npz(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        names = {n.removesuffix(".npy") for n in archive.namelist()}
        with archive.open(_pick(names, path) + ".npy") as stream:
            return _from_npy(stream)


def _from_safetensors(path: Path) -> np.ndarray:
    with safe_open(path, framework="pt") as file:
        name = _pick(set(file.keys()), path)
        _check_shape(tuple(file.get_slice(name).get_shape()))
        return file.get_tensor(name).float().numpy()
