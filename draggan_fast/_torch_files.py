"""The containers that pickles of tensors come in: plain streams, PyTorch's zip files, its older plain files.

NVIDIA's files are plain streams in which every tensor carries a nested file of the older kind; those nested
files are read by the same code, and may name tensor storages and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import torch

from ._pickle_data import (
    Budget,
    FindName,
    Inert,
    Name,
    PersistentLoad,
    PickleReader,
    Refused,
    no_persistent_objects,
    refuse_name,
    shown,
)
from ._tensor_data import INERT_MODULES, INERT_NAMES, NAMES, STORAGES, Storage, sizes

MAX_ZIP_ENTRIES = 20_000
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # what torch.save wrote first before it wrote zip files
LEGACY_PROTOCOL = 1001
ZIP_SIGNATURE = b"PK\x03\x04"


def _find_storage(module: str, name: str) -> Name:
    if module != "torch" or name not in STORAGES:
        raise refuse_name(module, name)
    return Name(module, name)


def _find_nothing(module: str, name: str) -> Name:
    """For streams that hold numbers and texts only."""
    raise refuse_name(module, name)


class _NameFinder:
    """The names that may occur in a file; streams nested in tensors may name storages only."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __call__(self, module: str, name: str) -> Name:
        key = module, name
        if key in NAMES:
            return Name(module, name, NAMES[key])
        if key in INERT_NAMES or (module.startswith(INERT_MODULES) and name.isidentifier()):
            return Name(module, name, lambda args: Inert(f"{module}.{name}", args))
        if key == ("torch.storage", "_load_from_bytes"):
            return Name(module, name, self._load_from_bytes)
        return _find_storage(module, name)

    def _load_from_bytes(self, args: tuple[Any, ...]) -> Storage:
        (data,) = args
        if not isinstance(data, memoryview):
            raise TypeError
        storage = read_legacy(data, self._budget, _find_storage)
        if not isinstance(storage, Storage):
            raise Refused("the bytes of a tensor hold something that is not a tensor; download the file again")
        return storage


def read_pickle(data: memoryview) -> Any:
    """The value of a plain pickle file (NVIDIA's), or of a file of torch.save before 1.6."""
    budget = Budget()
    find_name = _NameFinder(budget)
    reader = PickleReader(data, find_name, budget)
    value = reader.load()
    if value == LEGACY_MAGIC:
        return read_legacy(data, budget, find_name)
    return value


def _storage_id(value: Any) -> tuple[str, torch.dtype, int]:
    """(key, type, elements) of a reference ('storage', type, key, device, elements[, view])."""
    kind, storage_type, key, _location, numel, *view = value
    if kind != "storage" or not isinstance(storage_type, Name) or not isinstance(key, str):
        raise TypeError
    if storage_type.name not in STORAGES or any(v is not None for v in view):
        raise Refused("it refers to a tensor storage of an unknown kind; save it again with a recent PyTorch")
    (numel,) = sizes((numel,), "size")
    return key, STORAGES[storage_type.name], numel


def read_legacy(data: memoryview, budget: Budget, find_name: FindName) -> Any:
    """torch.save before 1.6: five pickles (magic, protocol, machine, object, storage keys), then the storages."""
    position = 0
    storages: dict[str, Storage] = {}

    def load(find: FindName, persistent_load: PersistentLoad = no_persistent_objects) -> Any:
        nonlocal position
        reader = PickleReader(data, find, budget, persistent_load, position)
        value = reader.load()
        position = reader.position
        return value

    def find_storage(value: Any) -> Storage:
        key, dtype, numel = _storage_id(value)
        if numel * dtype.itemsize > len(data):
            raise Refused(
                f"a tensor claims {numel * dtype.itemsize} bytes, but all there is are {len(data)}; "
                "download the file again"
            )
        return storages.setdefault(key, Storage(dtype, numel))

    if load(_find_nothing) != LEGACY_MAGIC or load(_find_nothing) != LEGACY_PROTOCOL:
        raise Refused("the bytes of a tensor are not in PyTorch's format; download the file again")
    machine = load(_find_nothing)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise Refused("it was saved on a big-endian machine, which is not supported; save it again on another")
    value = load(find_name, find_storage)
    keys = load(_find_nothing)
    if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys) or set(keys) != set(storages):
        raise Refused("its list of tensor storages does not match its tensors; download the file again")
    for key in keys:
        storage = storages[key]
        if len(data) - position < 8:
            raise Refused(f"it ends early, in a tensor at byte {position}; download it again")
        (numel,) = struct.unpack_from("<q", data, position)
        position += 8
        size = storage.numel * storage.dtype.itemsize
        if numel != storage.numel or size > len(data) - position:
            raise Refused(
                f"a tensor claims {size} bytes at byte {position}, which are not there; download the file again"
            )
        storage.attach(data[position : position + size])
        position += size
    return value


def zip_entries(data: memoryview) -> Mapping[str, memoryview]:
    """Name → bytes of a zip file as torch.save writes it: not compressed, nothing behind it, no zip64.

    Reading it here instead of with ``zipfile`` bounds the memory before anything is parsed, and refuses
    compressed, encrypted, overlapping and doubly named entries and names that leave the archive.
    """
    damaged = Refused("its zip directory is damaged or cut off; download it again")
    if len(data) < 22 or data[-22:-18] != b"PK\x05\x06":
        raise damaged
    disk, first_disk, here, count, size, start, comment = struct.unpack_from("<4H2LH", data, len(data) - 18)
    if disk or first_disk or comment or here != count:
        raise damaged
    if count > MAX_ZIP_ENTRIES or start == 0xFFFFFFFF:
        raise Refused("its zip directory is larger than that of any StyleGAN2 checkpoint; it is not one")
    end = start + size
    if end > len(data) - 22:
        raise damaged
    entries: dict[str, memoryview] = {}
    total = 0
    position = start
    for _ in range(count):
        if position + 46 > end or data[position : position + 4] != b"PK\x01\x02":
            raise damaged
        flags, method = struct.unpack_from("<2H", data, position + 8)
        packed, unpacked, name_size, extra_size, comment_size = struct.unpack_from("<2L3H", data, position + 20)
        (header,) = struct.unpack_from("<L", data, position + 42)
        name = bytes(data[position + 46 : position + 46 + name_size]).decode("utf-8", "replace")
        position += 46 + name_size + extra_size + comment_size
        if flags & 1 or method or packed != unpacked:
            raise Refused(
                f"its zip entry {shown(name)} is compressed or encrypted, which PyTorch never does; "
                "save it again with torch.save"
            )
        parts = name.split("/")
        if name in entries or "\\" in name or any(part in ("", ".", "..") for part in parts):
            raise Refused(
                f"its zip entry {shown(name)} is not one that PyTorch writes; get the file from a source that you trust"
            )
        if header + 30 > start or data[header : header + 4] != ZIP_SIGNATURE:
            raise damaged
        local_name, local_extra = struct.unpack_from("<2H", data, header + 26)
        first = header + 30 + local_name + local_extra
        total += unpacked
        if first + unpacked > start or total > len(data):
            raise Refused(
                f"its zip entry {shown(name)} claims {unpacked} bytes, which are not there; download it again"
            )
        entries[name] = data[first : first + unpacked]
    return entries


def read_zip(data: memoryview) -> Any:
    """The value of a file of torch.save since 1.6: ``<folder>/data.pkl`` and one entry for each storage."""
    entries = zip_entries(data)
    streams = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(streams) != 1:
        raise Refused("it is a zip file, but not one that torch.save wrote; give the checkpoint file itself")
    folder = streams[0].removesuffix("data.pkl")
    if folder + "constants.pkl" in entries:
        raise Refused("it is a TorchScript program, not a checkpoint; give the checkpoint that it was made from")
    if bytes(entries.get(folder + "byteorder", memoryview(b"little"))) != b"little":
        raise Refused("it was saved on a big-endian machine, which is not supported; save it again on another")
    storages: dict[str, Storage] = {}

    def find_storage(value: Any) -> Storage:
        key, dtype, numel = _storage_id(value)
        if key not in storages:
            if f"{folder}data/{key}" not in entries:
                raise Refused(f"the data of its tensor storage {shown(key)} is missing; download the file again")
            storage = Storage(dtype, numel)
            storage.attach(entries[f"{folder}data/{key}"])
            storages[key] = storage
        return storages[key]

    budget = Budget()
    return PickleReader(entries[streams[0]], _NameFinder(budget), budget, find_storage).load()
