"""Start latents from files: what is read, and what is refused before it can do harm."""

import io
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from draggan_fast import DragError
from draggan_fast.latent_file import read_latent

W = np.arange(12.0).reshape(3, 4)


def as_npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path, dtype, order):
    np.save(tmp_path / "w.npy", np.asarray(W, dtype=dtype, order=order))
    found = read_latent(str(tmp_path / "w.npy"))
    assert found.dtype == np.float32
    assert np.array_equal(found, W)


@pytest.mark.parametrize("name", ["w", "w_plus"])
def test_npz(tmp_path, name):
    np.savez_compressed(tmp_path / "w.npz", other=np.zeros(3), **{name: W})
    assert np.array_equal(read_latent(str(tmp_path / "w.npz")), W)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_safetensors(tmp_path, dtype):
    save_file({"w": torch.from_numpy(W).to(dtype), "x": torch.zeros(2)}, tmp_path / "w.safetensors")
    assert np.array_equal(read_latent(str(tmp_path / "w.safetensors")), W)


def claims_a_terabyte():
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (274877906944,), }"
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def bomb():
    """A small file whose only unneeded member unpacks to 256 MB."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other.npy", bytes(1 << 28))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("w.npy", b""),
        ("w.npy", as_npy(W)[:-9]),
        ("w.npy", claims_a_terabyte()),
        ("w.npy", as_npy(np.array(["a", "b"]))),
        ("w.npy", as_npy(np.array([{}], dtype=object), allow_pickle=True)),
        ("w.npy", as_npy(np.zeros((2, 2, 2, 2)))),
        ("w.npz", b"PK\x03\x04"),
        ("w.npz", bomb()),
        ("w.safetensors", b"\xff" * 20),
        ("w.txt", b"1 2 3"),
    ],
)
def test_refused_in_one_sentence(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DragError) as caught:
        read_latent(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_missing_names_and_files(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", x=W)
    for name in ("w.safetensors", "w.npz", "absent.npy", "absent.npz", "absent.safetensors"):
        with pytest.raises(DragError):
            read_latent(str(tmp_path / name))
