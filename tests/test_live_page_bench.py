"""What ``bench/live_page.py`` makes of a browser's shots; the browser itself is in test_page.py."""

import pytest
from draggan_fast.bench import live_page, page_soak

from draggan_fast import DragError


def test_live_page_counts_every_move_and_every_painted_frame():
    times = {"step": 8.0, "render": 4.0, "encode": 0.5, "wait": 0.0, "sinceStamp": 14.0, "paint": 6.0}
    shots = [
        {"latency": [], "times": times, "step": 3, "preview": False},
        {"latency": [50.0, 34.0], "times": times, "step": 4, "preview": False},
        {"latency": [20.0], "times": {**times, "step": 16.0}, "step": 7, "preview": True},
    ]
    found = live_page.summary([(shots, 500.0), ([], 500.0)])
    assert found["moves"] == 3
    assert found["pointer_to_paint_p50_ms"] == 34
    assert found["pointer_to_paint_p95_ms"] == found["pointer_to_paint_max_ms"] == 50
    assert found["painted_frames_per_s"] == 3
    assert found["steps_per_s"] == 4
    assert found["previews"] == 1
    assert found["medians_ms"]["step"] == 8
    nothing = live_page.summary([([], 500.0)])
    assert nothing["pointer_to_paint_p50_ms"] is None
    assert nothing["painted_frames"] == 0


def test_live_page_refuses_a_window_without_a_size():
    with pytest.raises(DragError, match="1280x800"):
        live_page.run(live_page.parser().parse_args(["--size", "large"]))


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "1e9"])
def test_a_soak_takes_minutes(minutes):
    with pytest.raises(DragError, match="minutes"):
        live_page.run(live_page.parser().parse_args([f"--soak={minutes}"]))


def test_a_soak_tells_growth_from_warming_up():
    def rows(*heaps):
        names = (*page_soak.METRICS, "server_rss_bytes")
        return [{**dict.fromkeys(names, 100), "heap_bytes": heap} for heap in heaps]

    assert page_soak.growth(rows(10, 20, 50, 50, 50, 50))["heap_bytes"] == 1
    assert page_soak.growth(rows(50, 50, 50, 50, 60, 90))["heap_bytes"] == 1.5
    assert page_soak.growth(rows(50))["heap_bytes"] == page_soak.growth(rows(50, 50))["dom_nodes"] == 1
