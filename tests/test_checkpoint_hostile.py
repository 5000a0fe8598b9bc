"""Files that are hostile, damaged or of another kind: refused with one sentence, no code run, no memory taken.

The corpus is loaded in one subprocess that may take little more memory than it has after a good load, and in which
every import, execution, compilation, process, socket and file opened for writing is recorded.
"""

import json
import os
import pickle
import random
import re
import subprocess
import sys

import pytest

from draggan_fast.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from draggan_fast.errors import CheckpointError, DragError
from tests import checkpoint_files as files
from tests.hostile_files import CANARY, CORPUS, ours

UNEXPECTED = "unexpected way"  # the last resort of load_checkpoint: no file here may need it

LOADER = """
import json, resource, sys
from pathlib import Path
from draggan_fast.checkpoint import load_checkpoint

folder, good, margin = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
for path in sorted(good.iterdir()):  # whatever is imported late is imported now
    load_checkpoint(path)
for path in folder.iterdir():
    if path.name.startswith("executable"):
        try:
            load_checkpoint(path)
        except ValueError:
            break
watched, events = ("import", "exec", "compile", "pickle", "marshal", "os.", "subprocess", "socket", "ctypes"), []

def watch(event, args):
    writes = event == "open" and args[1] not in (None, "r", "rb")
    if writes or event.startswith(watched) and event != "os.listdir":
        events.append(f"{event} {args!r:.200}")

sys.addaudithook(watch)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + margin
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
events.clear()
results = {}
for path in sorted(folder.iterdir()):
    events.clear()
    try:
        load_checkpoint(path)
        result = "loaded", ""
    except BaseException as error:
        result = type(error).__name__, str(error)
    results[path.name] = [*result, list(events)]
events.clear()
compile("1", "proof that the watch works", "eval")
try:
    bytearray(2 * margin)
except MemoryError:
    events.append("proof that the limit works")
print(json.dumps([results, events]))
"""
MARGIN = 160 << 20  # a sixtieth of what the greedy files claim


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """case → (error class, message, what happened), of loading every file of the corpus."""
    folder, good, work = (tmp_path_factory.mktemp(name) for name in ("corpus", "good", "work"))
    for case, (data, _) in CORPUS.items():
        (folder / case).write_bytes(data)
    config, tensors = files.small_network()
    (good / "nvidia").write_bytes(files.dump(files.nvidia_file(config, tensors)))
    (good / "rosinality").write_bytes(files.save(files.rosinality_file(config, tensors)))
    save_checkpoint(good / "ours", Checkpoint(config, tensors, "draggan-fast"))
    command = [sys.executable, "-c", LOADER, str(folder), str(good), str(MARGIN)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=work, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert not list(work.iterdir()), "a file was written while hostile files were read"
    loaded, proofs = json.loads(ran.stdout)
    assert len(proofs) == 2
    return loaded


@pytest.mark.parametrize("case", CORPUS)
def test_refused_in_one_sentence_and_nothing_run(results, case):
    kind, message, events = results[case]
    assert (kind, events) == ("CheckpointError", []), message
    assert re.search(CORPUS[case][1], message), message
    assert message.startswith("Cannot load /")
    assert message.endswith(".")
    assert len(message) < 800
    assert message.isprintable()
    assert UNEXPECTED not in message


def test_the_payload_is_live(tmp_path, monkeypatch):
    """The corpus proves something only if the usual way of reading it does run it."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(CORPUS["executable-system"][0])
    assert (tmp_path / CANARY).exists()


@pytest.fixture(scope="module")
def good_files():
    config, tensors = files.small_network()
    return {
        "nvidia": files.dump(files.nvidia_file(config, tensors)),
        "tensorflow": files.dump(files.tensorflow_file(config, tensors), 2),
        "rosinality": files.save(files.rosinality_file(config, tensors)),
        "legacy": files.save(files.rosinality_file(config, tensors), zipped=False),
        "ours": ours(config, tensors),
    }


@pytest.mark.parametrize("family", ["nvidia", "tensorflow", "rosinality", "legacy", "ours"])
def test_truncated_anywhere(tmp_path, good_files, family):
    data = good_files[family]
    path = tmp_path / "file"
    steps = {*range(1, 24), *range(24, len(data), len(data) // 60), *range(len(data) - 24, len(data))}
    for size in sorted(steps):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match="Cannot load") as caught:
            load_checkpoint(path)
        assert UNEXPECTED not in str(caught.value), size


@pytest.mark.parametrize("family", ["nvidia", "tensorflow", "rosinality", "legacy", "ours"])
def test_flipped_bytes_load_or_are_refused(tmp_path, good_files, family):
    rng = random.Random(7)
    path = tmp_path / "file"
    for _ in range(80):
        data = bytearray(good_files[family])
        for _ in range(rng.choice([1, 1, 4, 40])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        refusal = ""
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            refusal = f"{error} ({error.__cause__!r})"
        assert UNEXPECTED not in refusal


def test_what_is_not_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path, "it is a directory"),
        (tmp_path / "none.pkl", "No such file"),
        (tmp_path / "pipe", "not a regular file"),
        ("/dev/zero", "not a regular file"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            load_checkpoint(path)
        assert isinstance(caught.value, DragError)
