"""Pictures, animations and masks as files; every file written says that it is machine-made.

Frames are uint8 `[H, W, 3]`. Marking follows the IPTC digital source type vocabulary: an XMP packet with
`Iptc4xmpExt:DigitalSourceType` in each format's own place, and the same in words where plain readers look.
"""

from __future__ import annotations

import importlib
import io
import math
import mmap
import os
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from .atomic import write_bytes
from .errors import MediaError
from .overlay import (
    Frame,
    check_frame,
    contact_sheet,
    draw_overlay,
    draw_watermark,
    side_by_side,
    upscale,
)
from .version import __version__

__all__ = [
    "DIGITAL_SOURCE_TYPE",
    "Frame",
    "Provenance",
    "check_animation",
    "contact_sheet",
    "draw_overlay",
    "draw_watermark",
    "load_mask",
    "read_provenance",
    "save_animation",
    "save_image",
    "side_by_side",
    "upscale",
]

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_FIELDS = {  # key of read_provenance: (prefix, namespace, property) in the XMP packet
    "digital_source_type": (
        "Iptc4xmpExt",
        "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
        "DigitalSourceType",
    ),
    "software": ("xmp", "http://ns.adobe.com/xap/1.0/", "CreatorTool"),
    "model": ("draggan", "urn:draggan-fast:xmp:1.0/", "Model"),
    "model_hash": ("draggan", "urn:draggan-fast:xmp:1.0/", "ModelHash"),
    "description": ("draggan", "urn:draggan-fast:xmp:1.0/", "Description"),
}
_PACKET_START, _PACKET_END = b"<?xpacket begin=", b"<?xpacket end="
_MAX_PACKET = 1 << 20
_XMP_UUID = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")  # marks an XMP box in MP4 files


@dataclass(frozen=True)
class Provenance:
    """What a file says about its origin: the model's name and the hash of its content, where known."""

    model: str | None = None
    model_hash: str | None = None

    @property
    def software(self) -> str:
        """Program name and version."""
        return f"draggan_fast {__version__}"

    @property
    def description(self) -> str:
        """One sentence in words, with the digital source type in it."""
        model = f" and the model {self.model}" if self.model else ""
        digest = f" ({self.model_hash})" if self.model and self.model_hash else ""
        return f"AI-generated with {self.software}{model}{digest}; digital source type {DIGITAL_SOURCE_TYPE}"

    def xmp(self) -> bytes:
        """The XMP packet: ASCII but for its byte-order mark, so that no container misreads it."""
        values = {
            "digital_source_type": DIGITAL_SOURCE_TYPE,
            "software": self.software,
            "model": self.model,
            "model_hash": self.model_hash,
            "description": self.description,
        }
        namespaces = {prefix: uri for prefix, uri, _ in _FIELDS.values()}
        attributes = [f'xmlns:{prefix}="{uri}"' for prefix, uri in namespaces.items()]
        for key, (prefix, _, name) in _FIELDS.items():
            if value := values[key]:
                clean = "".join(c if c.isprintable() else " " for c in value)
                attributes.append(f"{prefix}:{name}={quoteattr(clean)}")
        body = "\n   ".join(attributes).encode("ascii", "xmlcharrefreplace")
        return (
            _PACKET_START + b'"\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
            b'<x:xmpmeta xmlns:x="adobe:ns:meta/">\n <rdf:RDF xmlns:rdf="' + _RDF.encode() + b'">\n'
            b'  <rdf:Description rdf:about=""\n   ' + body + b"/>\n </rdf:RDF>\n</x:xmpmeta>\n" + _PACKET_END + b'"r"?>'
        )


def save_image(path: str | os.PathLike[str], image: Frame, *, info: Provenance, watermark: bool = False) -> None:
    """Write one picture, whole or not at all: `.png`, or `.webp` (quality 95).

    Args:
        image: uint8 `[H, W, 3]`.
        info: where the picture comes from; written into the file.
        watermark: also draw a small 'AI-generated' pill into the picture.
    Raises: MediaError for a wrong image, another suffix, or a file that cannot be written (an old one stays).
    """
    suffix = _suffix(path, (".png", ".webp"), "A picture")
    frame = check_frame(image, "image")
    _save(path, lambda: encode_image(frame, suffix, info=info, watermark=watermark))


def encode_image(image: Frame, suffix: str, *, info: Provenance, watermark: bool = False) -> bytes:
    """The content of the file that `save_image` writes; suffix: ".png" or ".webp"."""
    frame = check_frame(image, "image")
    picture = Image.fromarray(draw_watermark(frame) if watermark else frame)
    if suffix == ".png":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", info.xmp().decode())
        text.add_text("Software", info.software)
        text.add_itxt("Description", info.description)
        return _encoded(picture, format="PNG", pnginfo=text)
    _check_webp_size(frame)
    return _encoded(picture, format="WEBP", quality=95, method=5, xmp=info.xmp())


def check_animation(path: str | os.PathLike[str], *, fps: float = 12, loop: int = 0, hold_seconds: float = 1.5) -> str:
    """The suffix of an animation that `save_animation` could write; to be asked before long work.

    Raises: MediaError for another suffix, numbers out of range, or MP4 without PyAV.
    """
    suffix = _suffix(path, (".webp", ".gif", ".mp4"), "An animation")
    if not 0 < fps <= 120:
        raise MediaError(f"fps is {fps}; give a number above 0 and up to 120.")
    if not 0 <= hold_seconds <= 600:
        raise MediaError(f"hold_seconds is {hold_seconds}; give a number from 0 to 600.")
    if not 0 <= loop <= 65535:
        raise MediaError(f"loop is {loop}; give 0 to loop for ever, or a number up to 65535.")
    if suffix == ".mp4":
        _pyav()
    return suffix


def save_animation(
    path: str | os.PathLike[str],
    frames: Iterable[Frame],
    *,
    fps: float = 12,
    loop: int = 0,
    hold_seconds: float = 1.5,
    info: Provenance,
    watermark: bool = False,
) -> None:
    """Write an animation, whole or not at all: `.webp`, `.gif`, or `.mp4` (H.264, needs the extra `video`).

    Args:
        frames: uint8 `[H, W, 3]`, all of one size.
        fps: frames a second, up to 120. GIF counts in 1/100 s: each frame's end is rounded to that, and no
            frame is shorter than 2/100 s, because viewers slow shorter ones down.
        loop: 0 = for ever (GIF and WebP; in MP4 it is the player's choice).
        hold_seconds: how much longer the last frame stays; a longer duration, but repeated frames in MP4,
            where players cut a long last frame short.
        info, watermark: as in `save_image`.
    Raises: MediaError as in `save_image`, and for no frames, frames of several sizes, or MP4 without PyAV.
    """
    options: dict[str, Any] = {"fps": fps, "loop": loop, "hold_seconds": hold_seconds}
    suffix = check_animation(path, **options)
    _save(path, lambda: encode_animation(frames, suffix, info=info, watermark=watermark, **options))


def encode_animation(
    frames: Iterable[Frame],
    suffix: str,
    *,
    fps: float = 12,
    loop: int = 0,
    hold_seconds: float = 1.5,
    info: Provenance,
    watermark: bool = False,
) -> bytes:
    """The content of the file that `save_animation` writes; suffix: ".webp", ".gif" or ".mp4"."""
    shots = [check_frame(frame, f"frame {i + 1}") for i, frame in enumerate(frames)]
    if not shots:
        raise MediaError("There are no frames to write; give at least one.")
    for i, shot in enumerate(shots):
        if shot.shape != shots[0].shape:
            raise MediaError(
                f"Frame {i + 1} is {shot.shape[1]}×{shot.shape[0]} pixels but frame 1 is "
                f"{shots[0].shape[1]}×{shots[0].shape[0]}; all frames of an animation must have one size."
            )
    if watermark:
        shots = [draw_watermark(shot) for shot in shots]

    if suffix == ".gif":
        return _gif(shots, fps, loop, hold_seconds, info)
    if suffix == ".mp4":
        return _mp4(shots, fps, hold_seconds, info)
    _check_webp_size(shots[0])
    durations = [1000 / fps] * len(shots)
    durations[-1] += 1000 * hold_seconds
    first, *rest = [Image.fromarray(shot) for shot in shots]
    options = {"duration": durations, "loop": loop, "quality": 90, "method": 4, "xmp": info.xmp()}
    return _encoded(first, format="WEBP", save_all=True, append_images=rest, **options)


def read_provenance(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read back what a file says about its origin, whatever its format.

    The XMP packet is found by its markers, as the XMP specification provides for readers of unknown formats.
    Returns: those of digital_source_type, software, model, model_hash and description that are there; empty
    for a file without a readable packet. Raises: MediaError when the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return {}
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                start = data.find(_PACKET_START)
                end = data.find(_PACKET_END, start, start + _MAX_PACKET) if start >= 0 else -1
                packet = data[start:end] if end >= 0 else b""
    except (OSError, ValueError) as error:
        raise MediaError(f"Cannot read {path}: {_reason(error)}; give a file that can be read.") from error
    body = packet.partition(b"?>")[2]
    if not body or b"<!" in body:  # a document type could define entities that grow without bound
        return {}
    try:
        root = ElementTree.fromstring(body)
    except (ElementTree.ParseError, ValueError, LookupError):
        return {}
    found: dict[str, str] = {}
    for element in root.iter():
        for key, (_, uri, name) in _FIELDS.items():
            qualified = f"{{{uri}}}{name}"
            # Another program may have rewritten our attributes as elements, or as references.
            is_element = element.tag == qualified
            value = element.get(f"{{{_RDF}}}resource") or element.text if is_element else element.get(qualified)
            if value and value.strip():
                found.setdefault(key, value.strip())
    return found


def load_mask(path: str | os.PathLike[str], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Read a PNG as a movable mask: 1 where the picture may change, 0 where it must stay.

    A pixel is movable when its luminance, laid over black where it is transparent, is at least 128 of 255.
    In a picture of one single colour the shape can only be in the transparency, which then counts alone.

    Args:
        size: `(H, W)` of the picture that the mask is for.
    Returns: float32 `[H, W]` of zeros and ones.
    Raises: MediaError for a file that is not a readable PNG, is of another size, or lets nothing move.
    """
    return read_mask(path, str(path), size)


def read_mask(file: str | os.PathLike[str] | BinaryIO, name: str, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """`load_mask` of a path or an open file; name: what messages call it."""
    height, width = size
    try:
        with warnings.catch_warnings():
            # The size is compared before any pixel is decoded: all the guard that a large file needs.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=("PNG",))
        with image:
            if image.size != (width, height):
                raise MediaError(
                    f"The mask {name} is {image.width}×{image.height} pixels but the picture is "
                    f"{width}×{height}; give a mask of the picture's size."
                )
            if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scaling down
                luminance = np.asarray(image, np.float64) / 257
            else:
                rgba = image.convert("RGBA")
                colour, alpha = np.asarray(rgba.convert("RGB")), np.asarray(rgba.getchannel("A"), np.float64)
                plain = bool((colour == colour[0, 0]).all()) and alpha.min() < alpha.max()
                grey = np.asarray(rgba.convert("RGB").convert("L"))
                luminance = alpha if plain else grey * (alpha / 255)
    except MediaError:
        raise
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise MediaError(f"Cannot read the mask {name}: {_reason(error)}; give a whole PNG file.") from error
    mask = (np.rint(luminance) >= 128).astype(np.float32)
    if not mask.any():
        raise MediaError(f"The mask {name} lets nothing move; paint white what may change.")
    return mask


# ---- writing -------------------------------------------------------------------------------------


def _save(path: str | os.PathLike[str], encode: Callable[[], bytes]) -> None:
    try:
        data = encode()
        # By way of memory: encoders report a full disk in many ways, a plain write only in one.
        write_bytes(path, data)
    except MediaError:
        raise
    except (OSError, ValueError, MemoryError, struct.error) as error:
        raise MediaError(
            f"Cannot write {path}: {_reason(error)}; choose a folder that exists, is writable and has room."
        ) from error


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".;") or type(error).__name__


def _encoded(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return buffer.getvalue()


def _suffix(path: str | os.PathLike[str], known: tuple[str, ...], what: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in known:
        raise MediaError(f"{what} cannot be written to {path}; let the name end in {' or '.join(known)}.")
    return suffix


def _check_webp_size(frame: Frame) -> None:
    if max(frame.shape[:2]) > 16383:
        raise MediaError(f"WebP holds at most 16383 pixels a side, not {max(frame.shape[:2])}; choose another format.")


def _gif(shots: list[Frame], fps: float, loop: int, hold: float, info: Provenance) -> bytes:
    palette, spread = _gif_palette(shots)
    height, width = shots[0].shape[:2]
    # Ordered dithering: its pattern stands still, where error diffusion would boil from frame to frame.
    noise = np.tile(_bayer(8), (math.ceil(height / 8), math.ceil(width / 8)))[:height, :width, None] * spread
    images = [
        Image.fromarray(np.clip(np.rint(shot + noise), 0, 255).astype(np.uint8)).quantize(
            palette=palette, dither=Image.Dither.NONE
        )
        for shot in shots
    ]
    ends = [round(100 * i / fps) for i in range(len(shots) + 1)]
    durations = [10 * max(2, after - before) for before, after in pairwise(ends)]
    durations[-1] += 10 * round(100 * hold)
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=durations,
        loop=loop,
        comment=info.description.encode("ascii", "replace"),
        optimize=False,
    )
    data = buffer.getvalue()
    # XMP lies unblocked in its extension; the falling bytes after it lead readers of sub-blocks to its end.
    trailer = bytes([1, *range(255, -1, -1), 0])
    extension = b"\x21\xff\x0bXMP DataXMP" + info.xmp() + trailer
    return data[:-1] + extension + data[-1:]


def _gif_palette(shots: list[Frame]) -> tuple[Image.Image, float]:
    """One palette for all frames, and how far apart its colours lie, in levels.

    It has at most 255 colours: the last entry is left for the pixels that Pillow finds unchanged.
    """
    chosen = [shots[i] for i in sorted({round(i) for i in np.linspace(0, len(shots) - 1, 32)})]
    rng = np.random.default_rng(0)  # scattered samples: a grid could miss what is drawn regularly
    sample = np.concatenate([shot.reshape(-1, 3)[rng.integers(0, shot[..., 0].size, 4096)] for shot in chosen])
    colours = np.unique(sample, axis=0)
    if len(colours) > 255:
        reduced = Image.fromarray(sample[None]).quantize(215, Image.Quantize.MEDIANCUT, kmeans=2)
        colours = np.array(reduced.getpalette(), np.uint8).reshape(-1, 3)[:215]
        # Median cut goes by area and forgets small vivid marks; give the rest to the samples it serves worst.
        points = sample.astype(np.float32)
        error = np.full(len(points), np.inf, np.float32)
        for colour in colours:
            error = np.minimum(error, ((points - colour) ** 2).sum(1))
        for _ in range(40):
            worst = points[int(error.argmax())]
            colours = np.concatenate([colours, worst[None].astype(np.uint8)])
            error = np.minimum(error, ((points - worst) ** 2).sum(1))
        spread = min(24.0, 2.0 * float(np.sqrt(error.mean())))
    else:
        spread = 0.0
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours.tobytes())
    return palette, spread


def _bayer(size: int) -> npt.NDArray[np.float32]:
    """The ordered-dither matrix `[size, size]`, size a power of two: every threshold once, in (-0.5, 0.5)."""
    matrix = np.zeros((1, 1))
    while len(matrix) < size:
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return ((matrix + 0.5) / size**2 - 0.5).astype(np.float32)


def _pyav() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise MediaError("MP4 needs PyAV; run pip install 'draggan-fast[video]', or write .webp or .gif.") from error


def _mp4(shots: list[Frame], fps: float, hold: float, info: Provenance) -> bytes:
    av = _pyav()
    height, width = shots[0].shape[:2]
    pad = ((0, height % 2), (0, width % 2), (0, 0))  # 4:2:0 colour needs even sides
    codec = "libx264" if "libx264" in av.codecs_available else "h264"
    repeats = round(hold * fps)
    try:
        # A folder of its own: FFmpeg opens the file a second time to put its index first.
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "animation.mp4"
            with av.open(str(file), "w", format="mp4", options={"movflags": "+faststart"}) as container:
                words = info.description
                container.metadata.update(title="AI-generated animation", comment=words, description=words)
                stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
                stream.width, stream.height = width + width % 2, height + height % 2
                stream.pix_fmt = "yuv420p"
                stream.options = {"crf": "16", "preset": "medium"}
                context = stream.codec_context
                # Untagged small pictures are taken for the colours of old television: say BT.709, and mean it.
                context.color_primaries = context.color_trc = context.colorspace = 1
                context.color_range = 1
                for shot in [*shots, *[shots[-1]] * repeats]:
                    picture = av.VideoFrame.from_ndarray(np.pad(shot, pad, mode="edge"), format="rgb24")
                    picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
                    container.mux(stream.encode(picture))
                container.mux(stream.encode())
            data = file.read_bytes()
    except av.FFmpegError as error:
        raise MediaError(f"Cannot write the video: {_reason(error)}; check the disk, or write .webp.") from error
    packet = info.xmp()
    return data + struct.pack(">I4s16s", 24 + len(packet), b"uuid", _XMP_UUID) + packet
