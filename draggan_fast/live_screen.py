"""What a viewer sees of a picture and when: the rhythm of frames, previews in motion, the whole picture at rest."""

from __future__ import annotations

import time

from . import live_pictures, protocol
from .live_stats import Stats
from .live_viewer import Viewer
from .metrics import Metrics
from .protocol import Frame
from .session import DragSession

SMOOTH = 1 / 30  # seconds a frame: who asks for more is still better served with full pictures at that rate
KEPT = 0.75  # of that time may full pictures take where previews were sent
JUDGED = 3  # frames
SHARP_AFTER = 0.2  # seconds of rest, in live mode, before a full picture follows the previews


class Screen:
    """Times are those of ``time.monotonic``; only in ``stamp``, that of the targets that the picture reflects and when
    they arrived, it is ``time.perf_counter``."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.clear()

    def clear(self) -> None:
        """For another picture: it is to be shown at once."""
        self.stats = Stats()
        self.owed = True  # also if nothing more changes, a frame is to be sent
        self.due = 0.0  # not before, while running and for what is owed
        self.loss: float | None = None
        self.scrubbed = False
        self.stamp: tuple[int, float | None] = (0, None)
        self._previews = False
        self._judged = 0  # full pictures while running, up to the first few
        self._preview_ms = 0.0
        self._sharp_at = 0.0
        self._only_sharper = False  # what is owed is what has been shown, as a full picture

    def owe(self) -> None:
        """Something else is to be shown, also if nothing runs."""
        self.owed, self._only_sharper = True, False

    def begin(self, viewer: Viewer | None) -> None:
        """A run begins."""
        self.stats.begin()
        self.choose(viewer)

    def choose(self, viewer: Viewer | None) -> None:
        """Whether frames are previews while running; decided when a run begins, and once more when the first frames
        have shown what they take, so that they do not alternate. Nor do they from run to run: who was sent previews
        gets full pictures only when these are well within the time."""
        if viewer is None:
            return
        budget = max(viewer.view.period, SMOOTH) * (KEPT if self._previews else 1.0)
        too_slow = self.stats.step_seconds + self.stats.full_seconds > budget
        self._previews = viewer.view.preview == "always" or (viewer.view.preview == "auto" and too_slow)

    def rest(self, waiting: bool) -> None:
        """The run has ended, or waits for targets: who drags on within a moment is not shown another sharpness."""
        self.owe()
        self._sharp_at = time.monotonic() + SHARP_AFTER if waiting else 0.0

    @property
    def _rest_due(self) -> float:
        return max(self.due, self._sharp_at) if self._only_sharper else self.due

    def wakes_at(self, viewer: Viewer) -> float | None:
        """When a picture at rest is to be shown, if it is."""
        return self._rest_due if self.owed and viewer.wants_frame() else None

    def show(self, viewer: Viewer, drag: DragSession, running: bool) -> None:
        """A frame, if one is due and the viewer can take it. Raises whatever drawing raises."""
        now = time.monotonic()
        due = self.due if running else self._rest_due
        if not (running or self.owed) or now + self.stats.step_seconds / 2 < due:
            return
        if not viewer.wants_frame():
            if running:
                self.stats.dropped += 1
                self.due = now + viewer.view.period
            return
        resting = not running and now >= self._sharp_at
        preview = self._previews and (not resting or viewer.view.preview == "always")
        frame = self._frame(viewer, drag, running, preview)
        viewer.offer(frame)
        if running and not preview:
            self._judged += 1
            if self._judged == JUDGED:
                self.choose(viewer)
        # A steady rhythm, without making up for what was missed.
        self.due = max(self.due + viewer.view.period, now + viewer.view.period / 2)
        self.owed = self._only_sharper = not running and not resting and bool(frame.flags & protocol.FLAG_PREVIEW)
        if not (self.owed or running):
            drag.release()

    def _frame(self, viewer: Viewer, drag: DragSession, running: bool, preview: bool) -> Frame:
        start = time.perf_counter()
        picture = drag.preview() if preview else drag.render()
        rendered = time.perf_counter()
        kind = live_pictures.format_for(picture, viewer.view.format)
        data = live_pictures.encode(picture, kind, viewer.view.quality)
        encoded = time.perf_counter()
        handles, targets = drag.handle_points, drag.target_points
        distances = ((handles - targets) ** 2).sum(axis=1) ** 0.5
        flags = (
            protocol.FLAG_PREVIEW * (picture.shape[0] < drag.image_size[0])
            + protocol.FLAG_DONE * drag.done
            + protocol.FLAG_RUNNING * running
            + protocol.FLAG_TIMELINE * self.scrubbed
        )
        render, encode = (rendered - start) * 1e3, (encoded - rendered) * 1e3
        # Of a picture at rest the first layers may be there already: what the preview before it took belongs to it.
        full = None
        if preview:
            self._preview_ms = render
        elif running or self._only_sharper:
            full = render + encode + (self._preview_ms if self._only_sharper else 0.0)
        times = self.stats.shown(render, encode, full)
        self._metrics.stage("render", rendered - start)
        self._metrics.stage("encode", encoded - rendered)
        stamp, arrived = self.stamp
        return Frame(
            kind,
            flags,
            drag.steps,
            stamp,
            (picture.shape[1], picture.shape[0]),
            *times,
            self.loss,
            tuple((float(x), float(y), float(d)) for (x, y), d in zip(handles, distances)),
            data,
            arrived if stamp else None,
        )
