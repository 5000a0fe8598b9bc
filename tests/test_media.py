"""Files, provenance, masks: what is written can be read back, nothing is left half-written."""

from __future__ import annotations

import functools
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from draggan_fast import atomic, media
from draggan_fast.errors import DragError, MediaError
from draggan_fast.media import (
    DIGITAL_SOURCE_TYPE,
    Provenance,
    draw_overlay,
    load_mask,
    read_provenance,
    save_animation,
    save_image,
)
from draggan_fast.overlay import HANDLE_RED, TARGET_BLUE
from draggan_fast.version import __version__

INFO = Provenance(model='toy "animals" <é&日>', model_hash="sha256:" + "ab12" * 16)
RED, BLUE = np.array(HANDLE_RED), np.array(TARGET_BLUE)


def frame(height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """A smooth picture [height, width, 3] with every colour in it."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def moving(count: int = 6, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """The same picture with a red dot that moves."""
    return [draw_overlay(frame(height, width), [[8 + 6 * i, 20]], [[8 + 6 * i, 20]]) for i in range(count)]


def check_provenance(path: Path) -> None:
    told = read_provenance(path)
    assert told["digital_source_type"] == DIGITAL_SOURCE_TYPE
    assert told["software"] == f"draggan_fast {__version__}"
    assert told["model"] == INFO.model
    assert told["model_hash"] == INFO.model_hash
    assert DIGITAL_SOURCE_TYPE in told["description"]


# ---- pictures ----------------------------------------------------------------------------------------


def test_png_is_exact_and_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_image(path, frame(), info=INFO)
    with Image.open(path) as image:
        image.load()
        assert np.array_equal(np.asarray(image), frame())
        assert image.info["Software"] == f"draggan_fast {__version__}"
        assert DIGITAL_SOURCE_TYPE in image.info["Description"]
        assert DIGITAL_SOURCE_TYPE in image.info["XML:com.adobe.xmp"]
    check_provenance(path)


def test_webp_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.WEBP"
    save_image(str(path), frame(), info=INFO)
    with Image.open(path) as image:
        assert DIGITAL_SOURCE_TYPE.encode() in image.info["xmp"]
        assert np.abs(np.asarray(image.convert("RGB"), float) - frame()).mean() < 4
    check_provenance(path)


def test_model_is_optional(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", frame(), info=Provenance())
    told = read_provenance(tmp_path / "a.png")
    assert set(told) == {"digital_source_type", "software", "description"}


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.gif"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MediaError, match=r"\.png or \.webp"):
        save_image(tmp_path / name, frame(), info=INFO)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), "picture", None]
)
def test_wrong_images_are_refused(tmp_path: Path, bad: object) -> None:
    with pytest.raises(MediaError, match="uint8"):
        save_image(tmp_path / "a.png", bad, info=INFO)  # type: ignore[arg-type]


# ---- animations --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "tolerance"), [(".webp", 5.0), (".gif", 6.0)])
def test_animation(tmp_path: Path, suffix: str, tolerance: float) -> None:
    path, frames = tmp_path / f"a{suffix}", moving()
    save_animation(path, iter(frames), fps=12, hold_seconds=1.5, info=INFO)
    ends: list[float] = [0]
    with Image.open(path) as image:
        assert image.n_frames == len(frames)
        assert image.info["loop"] == 0
        for i, shot in enumerate(frames):
            image.seek(i)
            image.load()
            ends.append(ends[-1] + image.info["duration"])
            assert np.abs(np.asarray(image.convert("RGB"), float) - shot).mean() < tolerance
    wanted = [1000 * i / 12 for i in range(7)]
    wanted[-1] += 1500
    assert np.abs(np.subtract(ends, wanted)).max() <= 5  # rounding must not add up
    check_provenance(path)


def test_gif_comment_and_structure(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    save_animation(path, moving(), info=INFO)
    with Image.open(path) as image:
        assert DIGITAL_SOURCE_TYPE.encode() in image.info["comment"]
    # Walk the file as a reader does that knows nothing of XMP: by sub-blocks, to the very end.
    data = path.read_bytes()
    at = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    labels = []
    while data[at] != 0x3B:
        if data[at] == 0x21:
            labels.append(data[at + 1])
            at += 2
        else:
            local = data[at + 9]
            at += 10 + (3 * 2 ** ((local & 7) + 1) if local & 0x80 else 0) + 1
        while data[at]:
            at += data[at] + 1
        at += 1
    assert at == len(data) - 1
    assert labels[-1] == 0xFF


def test_gif_keeps_vivid_marks_and_flat_colours(tmp_path: Path) -> None:
    grey = np.repeat(np.linspace(60, 200, 200, dtype=np.uint8)[None, :, None], 100, 0).repeat(3, 2)
    busy = np.clip(grey.astype(int) + np.random.default_rng(0).integers(-30, 30, grey.shape), 0, 255)
    marked = draw_overlay(busy.astype(np.uint8), [[50, 50]], [[150, 50]], mark_size=2)
    flat = np.full((20, 30, 3), (12, 200, 77), np.uint8)
    save_animation(tmp_path / "a.gif", [marked, marked], info=INFO)
    save_animation(tmp_path / "b.gif", [flat], info=INFO)
    with Image.open(tmp_path / "a.gif") as image:
        got = np.asarray(image.convert("RGB"), int)
    assert np.abs(got[50, 50] - RED).max() < 30
    assert np.abs(got[50, 150] - BLUE).max() < 30
    with Image.open(tmp_path / "b.gif") as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), flat)


def test_fast_gif_is_not_slowed_down_by_viewers(tmp_path: Path) -> None:
    save_animation(tmp_path / "a.gif", moving(4), fps=120, hold_seconds=0, info=INFO)
    with Image.open(tmp_path / "a.gif") as image:
        for i in range(image.n_frames):
            image.seek(i)
            assert image.info["duration"] >= 20


def test_mp4(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV (extra video) is not installed")
    path, frames = tmp_path / "a.mp4", moving(6, 47, 63)
    save_animation(path, frames, fps=12, hold_seconds=0.5, info=INFO)
    with av.open(str(path)) as container:
        assert DIGITAL_SOURCE_TYPE in container.metadata["comment"]
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 64, 48)
        shots = [
            picture.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
            for picture in container.decode(video=0)
        ]
    assert len(shots) == 6 + 6
    assert np.abs(shots[3][:47, :63].astype(float) - frames[3]).mean() < 6
    # The XMP packet is a box of its own: the boxes must still tile the file.
    data, at, kinds = path.read_bytes(), 0, []
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        kinds.append(kind)
        at += size
    assert at == len(data)
    assert kinds[-1] == b"uuid"
    assert kinds.index(b"moov") < kinds.index(b"mdat")  # plays while it loads
    check_provenance(path)


def test_mp4_without_pyav_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(media.importlib, "import_module", missing)
    with pytest.raises(DragError, match=r"pip install 'draggan-fast\[video\]'"):
        save_animation(tmp_path / "a.mp4", moving(2), info=INFO)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_single_frame_and_watermark(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save_animation(path, [np.zeros((128, 128, 3), np.uint8)], info=INFO, watermark=True)
    with Image.open(path) as image:
        assert np.asarray(image.convert("RGB"))[-24:, -80:].max() > 150
    check_provenance(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": []},
        {"frames": [frame(), frame(32, 32)]},
        {"fps": 0},
        {"fps": float("nan")},
        {"hold_seconds": -1},
        {"hold_seconds": float("inf")},
        {"loop": -1},
    ],
)
def test_wrong_animations_are_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(MediaError):
        save_animation(tmp_path / "a.webp", **{"frames": moving(2), "info": INFO, **wrong})
    assert not list(tmp_path.iterdir())


def test_webp_size_limit(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="16383"):
        save_image(tmp_path / "a.webp", np.zeros((1, 16384, 3), np.uint8), info=INFO)


# ---- whole or not at all -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.gif", "b.webp"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX resource limits")
    path = tmp_path / name
    path.write_bytes(b"old")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    if name in ("a.gif", "b.webp"):
        write = functools.partial(save_animation, path, [noise, noise[::-1]], info=INFO)
    else:
        write = functools.partial(save_image, path, noise, info=INFO)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(MediaError, match="Cannot write") as caught:
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_folders_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "none" / "a.png", tmp_path / "file" / "a.png", tmp_path / "folder.png"):
        with pytest.raises(MediaError, match="Cannot write"):
            save_image(path, frame(), info=INFO)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_replacing_follows_links_and_keeps_the_umask(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    os.symlink(tmp_path / "real.txt", tmp_path / "link.txt")
    atomic.write_bytes(tmp_path / "link.txt", b"new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "real.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(KeyboardInterrupt), atomic.replacing(tmp_path / "real.txt"):
        raise KeyboardInterrupt
    assert (tmp_path / "real.txt").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 3


# ---- reading provenance ------------------------------------------------------------------------------

PACKET = '<?xpacket begin="" id="x"?>{}<?xpacket end="r"?>'
BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb">]><a>&b;</a>'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no packet",
        "<?xpacket begin=",
        PACKET.format("<a"),
        PACKET.format(""),
        PACKET.format(BOMB),
        "\x00" * 4096,
    ],
)
def test_foreign_and_broken_files_say_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "a").write_text(content)
    assert read_provenance(tmp_path / "a") == {}


def test_packets_rewritten_by_other_programs_are_read(tmp_path: Path) -> None:
    rdf = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
    iptc = 'xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    for inner in (
        f"<i:DigitalSourceType> {DIGITAL_SOURCE_TYPE} </i:DigitalSourceType>",
        f'<i:DigitalSourceType rdf:resource="{DIGITAL_SOURCE_TYPE}"/>',
    ):
        (tmp_path / "a").write_text(PACKET.format(f"<r {rdf} {iptc}>{inner}</r>"))
        assert read_provenance(tmp_path / "a") == {"digital_source_type": DIGITAL_SOURCE_TYPE}


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="Cannot read"):
        read_provenance(tmp_path / "none.png")


# ---- masks -------------------------------------------------------------------------------------------

SHAPE = np.zeros((6, 9), np.uint8)
SHAPE[1:4, 2:7] = 255


def mask_file(tmp_path: Path, image: Image.Image) -> Path:
    path = tmp_path / "mask.png"
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_every_mode(tmp_path: Path, mode: str) -> None:
    deep = mode == "I;16"
    image = Image.fromarray(SHAPE.astype(np.uint16) * 257) if deep else Image.fromarray(SHAPE).convert(mode)
    mask = load_mask(mask_file(tmp_path, image), (6, 9))
    assert mask.dtype == np.float32
    assert np.array_equal(mask, SHAPE / 255)


def test_mask_threshold(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[127, 128]], np.uint8))
    assert load_mask(mask_file(tmp_path, image), (1, 2)).tolist() == [[0, 1]]


def test_mask_in_the_transparency(tmp_path: Path) -> None:
    for colour in (0, 255):  # one colour: the transparency is the mask
        rgba = np.dstack([np.full((6, 9, 3), colour, np.uint8), SHAPE])
        assert np.array_equal(load_mask(mask_file(tmp_path, Image.fromarray(rgba)), (6, 9)), SHAPE / 255)
    painted = np.dstack([np.full((6, 9), 255, np.uint8), *[np.full((6, 9), 255, np.uint8)] * 2, SHAPE])
    painted[0, 0, :3] = 10  # black and white paint on a transparent ground
    painted[0, 0, 3] = 255
    assert np.array_equal(load_mask(mask_file(tmp_path, Image.fromarray(painted)), (6, 9)), SHAPE / 255)


def test_mask_of_another_size_names_both(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="9×6 pixels but the picture is 6×9"):
        load_mask(mask_file(tmp_path, Image.fromarray(SHAPE)), (9, 6))


def test_mask_that_lets_nothing_move(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="nothing move"):
        load_mask(mask_file(tmp_path, Image.new("L", (9, 6))), (6, 9))


def test_broken_masks_and_bombs(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    whole = io.BytesIO()
    Image.fromarray(SHAPE).save(whole, "PNG")
    header = struct.pack(">4sIIBBBBB", b"IHDR", 60_000, 60_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    jpeg = io.BytesIO()
    Image.fromarray(SHAPE).save(jpeg, "JPEG")
    for content in (b"", b"text", whole.getvalue()[:48], bomb + whole.getvalue()[33:], jpeg.getvalue()):
        path.write_bytes(content)
        with pytest.raises(MediaError, match="mask"):
            load_mask(path, (6, 9))
    with pytest.raises(MediaError, match="No such file"):
        load_mask(tmp_path / "none.png", (6, 9))
