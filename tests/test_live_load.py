"""The load benchmark: its parts run, and its record says what they found. No test asserts a time."""

import json

import pytest
from draggan_fast.bench import live_load

import draggan_fast as dg


def test_a_short_run(tmp_path, capsys):
    out = tmp_path / "live.json"
    arguments = ["eight", "soak", "--seconds", "0.5", "--minutes", "0.03", "--threads", "1", "--json", str(out)]
    assert live_load.main(arguments) == 0
    record = json.loads(out.read_text())
    assert record["machine"]["cores"] >= 1
    eight, soak = record["parts"]["eight"], record["parts"]["soak"]
    assert eight["viewers"] == 8
    assert eight["latency_ms"]["count"] > 0
    assert eight["latency_ms"]["p50"] <= eight["latency_ms"]["p95"]
    assert soak["connections"] >= 4
    assert soak["unexpected"] == []
    assert soak["memory_mb"]
    printed = capsys.readouterr().out
    assert printed.startswith("eight: {")
    assert "soak: {" in printed


def test_quantiles():
    assert live_load.quantiles([]) == {"count": 0}
    assert live_load.quantiles([float(v) for v in range(101)]) == {"count": 101, "p50": 50.0, "p95": 95.0}


def test_unknown_parts_are_refused():
    with pytest.raises(dg.DragError, match="no part 'nine'"):
        live_load.main(["nine"])
