"""Drawing on frames: the right marks at the right pixels, and no crash anywhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from draggan_fast.errors import MediaError
from draggan_fast.overlay import (
    HANDLE_RED,
    TARGET_BLUE,
    contact_sheet,
    draw_overlay,
    draw_watermark,
    side_by_side,
    upscale,
)

RED, BLUE = np.array(HANDLE_RED), np.array(TARGET_BLUE)
GREY = np.full((100, 120, 3), 128, np.uint8)


def frame(height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """A smooth picture [height, width, 3] with every colour in it."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def close(pixel: np.ndarray, colour: np.ndarray) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= 2)


def test_overlay_draws_handles_targets_and_arrow_at_x_y() -> None:
    before = GREY.copy()
    out = draw_overlay(GREY, [[20, 30]], [[90, 60]])
    assert np.array_equal(GREY, before)
    assert out.shape == GREY.shape
    assert out.dtype == np.uint8
    assert close(out[30, 20], RED)
    assert close(out[60, 90], BLUE)
    assert close(out[45, 55], np.array([255, 255, 255]))  # the arrow passes half-way
    assert close(out[20, 100], GREY[0, 0])
    ring = out[30, 20 : 20 + 6].min(axis=1)
    assert ring.max() > 200  # white around the handle


def test_overlay_is_centred_on_the_pixel() -> None:
    out = draw_overlay(GREY, [[60, 50]], [[60, 50]]).astype(int)
    patch = out[40:61, 50:71]
    assert np.array_equal(patch, patch[::-1])
    assert np.array_equal(patch, patch[:, ::-1])
    # Enlarged three times, the centre of pixel (60, 50) is that of (181, 151).
    out = draw_overlay(GREY, [[60, 50]], [[60, 50]], scale=3).astype(int)
    assert out.shape == (300, 360, 3)
    patch = out[151 - 20 : 151 + 21, 181 - 20 : 181 + 21]
    assert np.array_equal(patch, patch[::-1])
    assert np.array_equal(patch, patch[:, ::-1])


def test_handle_on_its_target_is_one_dot() -> None:
    out = draw_overlay(GREY, [[60, 50]], [[60, 50]]).reshape(-1, 3)
    assert any(close(pixel, RED) for pixel in out)
    assert not any(close(pixel, BLUE) for pixel in out)


def test_points_outside_and_on_borders() -> None:
    corners = [[0, 0], [119, 0], [0, 99], [119, 99], [-0.5, 50]]
    away = [[-500, -500], [1e9, 3], [60, -1e7], [300, 300], [-0.4, 50]]
    for a, b in itertools.product((corners, away), repeat=2):
        out = draw_overlay(GREY, a, b, numbers=True, trail=[b, a])
        assert out.shape == GREY.shape
    assert np.array_equal(draw_overlay(GREY, [[-50, -50]], [[-90, -50]]), GREY)


def test_no_points_and_tiny_frames() -> None:
    assert np.array_equal(draw_overlay(GREY, [], []), GREY)
    tiny = np.zeros((1, 1, 3), np.uint8)
    assert draw_overlay(tiny, [[0, 0]], [[5, 5]], np.ones((1, 1)), numbers=True).shape == (1, 1, 3)
    assert draw_overlay(np.zeros((1, 9, 3), np.uint8), [[0, 0]], [[5, 0]], [[1, 0] * 4 + [1]]).shape == (
        1,
        9,
        3,
    )


def test_mask_dims_only_what_is_fixed() -> None:
    picture = frame(100, 120)
    mask = np.zeros((100, 120), bool)
    mask[:, 60:] = True
    for given in (mask, mask.astype(np.float32), mask.astype(np.uint8) * 255):
        out = draw_overlay(picture, [], [], given)
        assert np.array_equal(out[:, 70:], picture[:, 70:])
        assert np.abs(np.diff(out[:, :50].astype(int), axis=2)).mean() < (
            0.5 * np.abs(np.diff(picture[:, :50].astype(int), axis=2)).mean()
        )
        assert (out[:, 59:61].min(axis=2).max(axis=1) > 165).all()  # the contour
    assert np.array_equal(draw_overlay(picture, [], [], np.ones((100, 120))), picture)


@pytest.mark.parametrize(
    "wrong",
    [
        {"handles": [[1, 2, 3]]},
        {"handles": [1, 2]},
        {"handles": "here"},
        {"handles": [[1, 2], [3, 4]]},
        {"handles": [[float("nan"), 2]]},
        {"targets": [[float("inf"), 2]]},
        {"trail": [[1, 2]]},
        {"trail": np.zeros((3, 2, 2))},
        {"movable_mask": np.ones((4, 4))},
        {"scale": 0},
        {"scale": float("nan")},
        {"scale": 1e4},
        {"mark_size": -1},
        {"frame": GREY.astype(np.float32)},
    ],
)
def test_wrong_overlays_are_refused(wrong: dict) -> None:
    with pytest.raises(MediaError):
        draw_overlay(**{"frame": GREY, "handles": [[1, 2]], "targets": [[3, 4]], **wrong})


@pytest.mark.parametrize("level", [0, 128, 255])
def test_watermark_is_legible_on_any_ground(level: int) -> None:
    ground = np.full((256, 256, 3), level, np.uint8)
    out = draw_watermark(ground)
    corner = out[-40:, -100:].astype(int).min(axis=2)
    assert corner.max() - corner.min() > 100
    assert np.array_equal(out[:200], ground[:200])
    thumbnail = np.zeros((8, 8, 3), np.uint8)
    assert np.array_equal(draw_watermark(thumbnail), thumbnail)


def test_upscale_and_sheets() -> None:
    assert upscale(frame(), 3).shape == (192, 288, 3)
    assert np.array_equal(upscale(frame(), 1), frame())
    sheet = contact_sheet([frame(), frame(32, 32), frame()], 2, ["one", "two × … é", "three " * 50], gap=4)
    assert sheet.shape[1] == 4 + 2 * (96 + 4)
    assert np.array_equal(sheet[4:68, 4:100], frame())
    row = side_by_side([frame(), frame()], gap=4)
    assert row.shape == (72, 204, 3)
    assert np.array_equal(row[4:68, 104:200], frame())
    for images, columns, labels in (([], 1, None), ([frame()], 0, None), ([frame()], 1, ["a", "b"])):
        with pytest.raises(MediaError):
            contact_sheet(images, columns, labels)
