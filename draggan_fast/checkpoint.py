"""Network files: every kind that users have comes in as (configuration, effective weights), and ours go out.

Reads NVIDIA's StyleGAN2 pickles (PyTorch and TensorFlow), rosinality's ``.pt`` and draggan_fast's
``.safetensors``. The kind is recognised by content, never by name. No file can run code: pickles are read by
an interpreter of our own that only builds records (``_pickle_data``), and no file can take more memory than
it has bytes, times a small constant. What is not an unmodified, square StyleGAN2 generator is refused with
one sentence.

Tensor names and shapes are those of ``GeneratorConfig.tensor_shapes``; the weights are effective, that is
with every run-time gain multiplied in (see ``_family_common``).
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
import stat
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from . import _family_nvidia, _family_rosinality, _family_tensorflow
from ._family_common import Checkpoint, discriminator_only
from ._pickle_data import Inert, Refused, refuse_name, shown
from ._tensor_data import PersistentObject
from ._torch_files import ZIP_SIGNATURE, read_pickle, read_zip
from .atomic import write_bytes
from .errors import CheckpointError, DragError
from .generator import GeneratorConfig

FORMAT_VERSION = 1
# One entry for everything: safetensors writes several in random order, and files should be reproducible.
METADATA_KEY = "draggan_fast"
MAX_HEADER = 16 << 20
MAX_REASON = 600
STORED_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
KINDS = "an NVIDIA StyleGAN2 .pkl, a rosinality .pt or a draggan-fast .safetensors"


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a network file of any supported kind, recognised by its content; runs nothing that is in it.

    Raises CheckpointError, in one sentence, if the file cannot be read, is damaged, hostile, incomplete or
    has values that are not finite, or if it is another kind of network.
    """
    try:
        loaded = _read(Path(path))
        check_tensors(loaded.config, loaded.tensors)
    except (Refused, DragError) as error:
        raise _sentence("load", path, str(error)) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise _sentence("load", path, f"{reason}; check the path and its permissions") from None
    except Exception as error:  # no file may end the program, whatever a hostile one can think of
        kind = type(error).__name__
        raise _sentence("load", path, f"it is damaged in an unexpected way ({kind}); download it again") from error
    tensors = {name: loaded.tensors[name].to(torch.float32).contiguous() for name in sorted(loaded.tensors)}
    return Checkpoint(loaded.config, tensors, loaded.family, loaded.metadata)


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> None:
    """Writes our own format: a safetensors file with the configuration in its header.

    dtype: the type of the stored weights: float32, float16 or bfloat16. The same checkpoint always gives the
    same bytes. The file is replaced as a whole or not at all: on any failure (a full disk) an old one stays as
    it was. Raises CheckpointError if the checkpoint is incomplete, has values that are not finite (also after
    rounding to ``dtype``) or metadata that are not JSON, or if the file cannot be written.
    """
    try:
        if dtype not in STORED_TYPES.values():
            raise Refused(f"the type {dtype} is not one of float32, float16 and bfloat16")
        check_tensors(checkpoint.config, checkpoint.tensors)
        # Copies: the library refuses tensors that share memory.
        tensors = {
            name: tensor.detach().to("cpu", dtype, copy=True).contiguous()
            for name, tensor in checkpoint.tensors.items()
        }
        for name, tensor in tensors.items():
            if not _finite(tensor):
                raise Refused(f"the tensor {name} has values beyond the range of {dtype}; save it as float32")
        header = _header_text(checkpoint)
        write_bytes(path, safetensors.torch.save(tensors, {METADATA_KEY: header}))
    except (Refused, DragError) as error:
        raise _sentence("save", path, str(error)) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise _sentence("save", path, f"{reason}; what was there before is unchanged") from None


def content_hash(tensors: dict[str, Tensor], config: GeneratorConfig) -> str:
    """The identity of a network: SHA-256 over configuration and, by name, every tensor's type, shape, bytes."""
    digest = hashlib.sha256(_canonical_json(config.to_json()))
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(_canonical_json([name, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_tensors(config: GeneratorConfig, tensors: dict[str, Tensor]) -> None:
    """Raises CheckpointError unless ``tensors`` are exactly those of a network of this configuration, and finite."""
    expected = config.tensor_shapes()
    for name in sorted(expected.keys() - tensors.keys()):
        raise CheckpointError(f"the tensor {name} is missing; export the network again")
    for name in sorted(tensors.keys() - expected.keys()):
        raise CheckpointError(f"there is a tensor {shown(name)} that this network does not have; export it again")
    for name, shape in expected.items():
        found = tensors[name]
        if tuple(found.shape) != shape:
            raise CheckpointError(
                f"the tensor {name} has the shape {list(found.shape)}, but the other weights require {list(shape)}; "
                "export the network again"
            )
        if not found.dtype.is_floating_point or not _finite(found):
            raise CheckpointError(f"the tensor {name} has values that are not finite numbers; export the network again")


def _finite(tensor: Tensor) -> bool:
    # One pass, nothing allocated; NaN comes out as both extremes.
    return all(math.isfinite(extreme) for extreme in torch.aminmax(tensor.detach()))


def _shown_path(path: str | os.PathLike[str]) -> str:
    """A path for messages: control characters would break the one sentence."""
    return "".join(c if c.isprintable() else "?" for c in os.fspath(path))


def _sentence(verb: str, path: str | os.PathLike[str], reason: str) -> CheckpointError:
    shortened = reason if len(reason) <= MAX_REASON else reason[:MAX_REASON] + "…"
    return CheckpointError(f"Cannot {verb} {_shown_path(path)}: {shortened.rstrip('.')}.")


def _header_text(checkpoint: Checkpoint) -> str:
    header = {
        "version": FORMAT_VERSION,
        "config": checkpoint.config.to_json(),
        "metadata": checkpoint.metadata,
    }
    try:
        text = json.dumps(header, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused(f"its metadata is not plain JSON ({error})") from None
    if len(text) > MAX_HEADER // 2:
        raise Refused(f"its metadata has {len(text)} characters, more than a header may hold; shorten it")
    return text


def _canonical_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _read(path: Path) -> Checkpoint:
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise Refused(f"it is a directory; give the file itself, {KINDS}")
    if not stat.S_ISREG(mode):  # reading a pipe or a device may never end
        raise Refused(f"it is not a regular file; give {KINDS}")
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise Refused("it is empty; download it again")
        # Mapped, not read: of the three networks in a pickle only the one that is used is ever brought to
        # memory.
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    header_size = int.from_bytes(data[:8], "little")
    if data[:4] == ZIP_SIGNATURE:
        return _recognise(read_zip(data), len(data))
    # A pickle starts with 0x80 and its version, which could also be the size of a safetensors header.
    if data[:1] == b"\x80" and (data[8:9] != b"{" or header_size > MAX_HEADER):
        return _recognise(read_pickle(data), len(data))
    if data[8:9] == b"{":
        if header_size > min(MAX_HEADER, len(data) - 8):
            raise Refused(f"its safetensors header claims {header_size} bytes, which are not there; download it again")
        return _read_safetensors(path)
    # Pickles of protocol 0 and 1 have no signature, but a hostile one is worth naming.
    named = re.match(rb"[(\]})]*[ci]([\w.]{1,80})\r?\n([\w.]{1,80})\r?\n", data[:256])
    if named:
        raise refuse_name(named[1].decode("ascii", "replace"), named[2].decode("ascii", "replace"))
    raise Refused(f"it is not a network file (neither a pickle, a zip of torch.save nor safetensors); give {KINDS}")


def _recognise(root: Any, file_size: int) -> Checkpoint:
    """Finds out which program wrote the value of a pickle, and converts its generator."""
    if isinstance(root, (tuple, list)) and len(root) == 3 and isinstance(root[2], Inert):
        root = root[2]  # (G, D, Gs): the last is the moving average
    if isinstance(root, Inert) and root.name == _family_tensorflow.NETWORK:
        return _family_tensorflow.convert(root, file_size)
    if isinstance(root, PersistentObject):
        return _family_nvidia.convert(root, file_size)
    if isinstance(root, dict):
        if isinstance(root.get("G_ema"), PersistentObject):
            return _family_nvidia.convert(root["G_ema"], file_size)
        if isinstance(root.get("g_ema"), dict):
            return _family_rosinality.convert(root["g_ema"], root.get("latent_avg"), file_size)
        present = {key for key, value in root.items() if isinstance(key, str) and value is not None}
        if present & {"G", "g"}:
            raise Refused("it has a generator but not its moving average (G_ema), which is the one to use; save it too")
        if present & {"D", "d"}:
            raise discriminator_only()
        keys = ", ".join(shown(key) for key in sorted(present)[:6])
        raise Refused(f"it is a dictionary with the keys {keys or '(none)'}, but without a generator; give {KINDS}")
    raise Refused(f"it does not hold a StyleGAN2 generator; give {KINDS}")


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            if text is None:
                raise Refused(
                    "its safetensors header has no draggan_fast configuration; convert the original "
                    "checkpoint with "
                    "draggan_fast instead"
                )
            config, metadata = _parse_header(text)
            shapes = config.tensor_shapes()
            tensors: dict[str, Tensor] = {}
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                entry = file.get_slice(name)
                # Before the data is touched: other names and shapes are not worth their memory.
                if name in shapes and tuple(entry.get_shape()) == shapes[name]:
                    if entry.get_dtype() not in STORED_TYPES:
                        raise Refused(
                            f"the tensor {name} has the type {entry.get_dtype()}, not one of "
                            f"{', '.join(STORED_TYPES)}; save it again with draggan_fast"
                        )
                    # A copy: the library maps the file, which somebody may overwrite while we use it.
                    tensors[name] = file.get_tensor(name).to(torch.float32, copy=True)
                else:
                    tensors[name] = torch.empty(entry.get_shape(), device="meta")
    except safetensors.SafetensorError as error:
        raise Refused(f"its safetensors structure is damaged ({shown(error)}); download it again") from None
    return Checkpoint(config, tensors, "draggan-fast", metadata)


def _parse_header(text: str) -> tuple[GeneratorConfig, dict[str, Any]]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused("its draggan_fast configuration is not JSON; download it again") from None
    if not isinstance(header, dict) or not isinstance(header.get("metadata"), dict):
        raise Refused("its draggan_fast configuration is incomplete; download it again")
    if header.get("version") != FORMAT_VERSION:
        raise Refused(
            f"it is of the format version {shown(header.get('version'))}, but this program reads "
            f"{FORMAT_VERSION}; "
            "update draggan_fast"
        )
    try:
        return GeneratorConfig.from_json(header.get("config")), header["metadata"]
    except DragError as error:
        reason = str(error).rstrip(".")
        raise Refused(f"its header does not describe a network ({reason}); save it again with draggan_fast") from None
