"""When a viewer is shown what: previews while running, the rhythm of frames, the whole picture at rest."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from draggan_fast import live_screen
from draggan_fast.live_screen import Screen
from draggan_fast.live_viewer import ViewSettings
from draggan_fast.metrics import Metrics


class Viewer:
    """Takes every frame at once."""

    def __init__(self, **view):
        self.view = ViewSettings(**view)
        self.sizes = []

    def wants_frame(self):
        return True

    def offer(self, frame):
        self.sizes.append(frame.size[0])


def drag():
    """A session of an 8×8 picture with a preview of 4×4."""
    points = np.zeros((1, 2), np.float32)
    return SimpleNamespace(
        preview=lambda: np.zeros((4, 4, 3), np.uint8), render=lambda: np.zeros((8, 8, 3), np.uint8),
        image_size=(8, 8), handle_points=points, target_points=points, done=False, steps=0, release=lambda: None,
    )  # fmt: skip


def begun(step_seconds, full_seconds, viewer, screen=None):
    """Whether a run with these measured times would be shown as previews."""
    screen = screen or Screen(Metrics())
    screen.stats.step_seconds, screen.stats.full_seconds = step_seconds, full_seconds
    screen.begin(viewer)
    return screen._previews


@pytest.mark.parametrize(
    ("step", "full", "view", "previews"),
    [
        (0.010, 0.020, {"fps": 60}, False),  # 33 pictures a second are smooth
        (0.015, 0.020, {"fps": 60}, True),
        (0.015, 0.020, {"fps": 20}, False),
        (0.030, 0.040, {"fps": 20}, True),
        (0.0, 0.0, {"fps": 60}, False),  # nothing is known yet
        (0.001, 0.001, {"preview": "always"}, True),
        (1.0, 1.0, {"preview": "never"}, False),
    ],
)
def test_previews_are_for_devices_that_are_slow(step, full, view, previews):
    assert begun(step, full, Viewer(**view)) is previews


def test_previews_and_full_pictures_do_not_alternate_from_run_to_run():
    screen, viewer = Screen(Metrics()), Viewer(fps=60)
    assert begun(0.016, 0.020, viewer, screen)
    assert begun(0.012, 0.020, viewer, screen)
    assert not begun(0.005, 0.015, viewer, screen)
    assert not begun(0.012, 0.020, viewer, screen)


def test_a_run_that_begins_while_a_sharper_picture_is_owed_is_shown_at_once(monkeypatch):
    monkeypatch.setattr(live_screen, "SHARP_AFTER", 60.0)
    screen, viewer = Screen(Metrics()), Viewer(fps=60, preview="auto")
    assert begun(0.5, 0.5, viewer, screen)
    screen.stats.step_seconds = 0.0
    screen.show(viewer, drag(), running=True)
    screen.rest(waiting=True)
    screen.due = 0.0
    screen.show(viewer, drag(), running=False)  # the last preview
    assert viewer.sizes == [4, 4]
    assert screen.owed
    assert screen.wakes_at(viewer) > time.monotonic() + 50
    screen.due = 0.0
    screen.show(viewer, drag(), running=False)  # not yet the sharper one
    assert viewer.sizes == [4, 4]
    screen.show(viewer, drag(), running=True)
    assert viewer.sizes == [4, 4, 4]


def test_whatever_else_is_to_be_shown_does_not_wait_for_sharpness(monkeypatch):
    monkeypatch.setattr(live_screen, "SHARP_AFTER", 60.0)
    screen, viewer = Screen(Metrics()), Viewer(preview="always")
    screen.begin(viewer)
    screen.rest(waiting=True)
    screen.show(viewer, drag(), running=False)
    screen.due = 0.0
    screen.owe()
    assert screen.wakes_at(viewer) == 0.0
    screen.show(viewer, drag(), running=False)
    assert len(viewer.sizes) == 2


def test_after_a_while_at_rest_the_picture_is_whole(monkeypatch):
    monkeypatch.setattr(live_screen, "SHARP_AFTER", 0.3)
    screen, viewer = Screen(Metrics()), Viewer(preview="auto")
    assert begun(0.5, 0.5, viewer, screen)
    screen.stats.step_seconds = 0.0
    screen.rest(waiting=True)
    screen.show(viewer, drag(), running=False)
    time.sleep(max(screen.wakes_at(viewer) - time.monotonic(), 0) + 0.01)
    screen.show(viewer, drag(), running=False)
    assert viewer.sizes == [4, 8]
    assert not screen.owed


def test_the_first_frames_show_whether_previews_are_needed():
    screen, viewer = Screen(Metrics()), Viewer(fps=60)
    slow = drag()
    slow.render = lambda: time.sleep(0.04) or np.zeros((8, 8, 3), np.uint8)
    screen.show(viewer, slow, running=False)  # the picture before the drag: its first layers were there already
    assert screen.stats.full_seconds == 0
    screen.begin(viewer)
    for _ in range(6):
        screen.due = 0.0
        screen.show(viewer, slow, running=True)
    assert viewer.sizes == [8, 8, 8, 8, 4, 4, 4]


def test_a_sharper_picture_is_counted_with_the_preview_before_it(monkeypatch):
    monkeypatch.setattr(live_screen, "SHARP_AFTER", 0.0)
    screen, viewer = Screen(Metrics()), Viewer(fps=60)
    assert begun(0.5, 0.5, viewer, screen)
    screen.stats.step_seconds = screen.stats.full_seconds = 0.0
    slow = drag()
    slow.preview = lambda: time.sleep(0.04) or np.zeros((4, 4, 3), np.uint8)
    screen.show(viewer, slow, running=True)
    screen.rest(waiting=True)
    screen._sharp_at = time.monotonic() + 60
    screen.due = 0.0
    screen.show(viewer, slow, running=False)
    screen._sharp_at = screen.due = 0.0
    screen.show(viewer, slow, running=False)
    assert viewer.sizes == [4, 4, 8]
    assert screen.stats.full_seconds >= 0.04
