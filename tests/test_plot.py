"""The README's tables and figure are what the records say."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from draggan_fast.bench import figures, plot

import draggan_fast as dg

ROOT = Path(__file__).resolve().parent.parent
RECORDS = sorted((ROOT / "bench" / "results").glob("*_bench_*.json")) + sorted(
    (ROOT / "bench" / "results").glob("*_landmarks_*.json")
)


def step(engine, ms, ratio, resolution=256, precision="fp32", **rest):
    return {
        "suite": "step", "name": "step", "engine": engine, "model": f"random-{resolution}", "resolution": resolution,
        "points": 1, "mask": "none", "precision": precision, "p50_ms": ms, "ratio_to_published": ratio, **rest,
    }  # fmt: skip


def test_the_readme_shows_the_records():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = plot.load_rows(RECORDS)
    tables = plot.tables_of(rows)
    shown = re.findall(r"<!-- table:(.+) -->\n", text)
    assert {name.split()[0] for name in shown} == set(plot.TABLES)
    for name in shown:
        assert name in tables, f"no record has rows of {name}"
        assert plot.with_table(text, name, tables[name]) == text, (
            f"the README's table of {name} is not that of the records: make figures"
        )


def test_step_table():
    rows = [step("published", 2000.0, 1.0), step("reference", 500.0, 4.0), step("fast", 40.0, None, precision="bf16")]
    header, _, line = plot.step_table(rows).splitlines()
    assert header == "| picture | points | mask | published, fp32 | reference, fp32 | fast, bf16 |"
    assert line == "| 256² | 1 | none | 2.00 s | 500 ms (**4.0×**) | 40.0 ms (not verified) |"


def test_rows_of_later_files_replace_those_of_earlier_ones(tmp_path):
    paths = []
    for number, ms in enumerate((100.0, 200.0)):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps({"machine": {"cpu": number}, "rows": [step("published", ms, 1.0)]}))
    (row,) = plot.load_rows(paths)
    assert (row["p50_ms"], row["machine"]) == (200.0, {"cpu": 1})
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(dg.DragError, match="not a record"):
        plot.load_rows([tmp_path / "other.json"])


def test_a_marker_may_name_the_machine(tmp_path):
    paths = []
    for kind, ms in (("AVX512", 100.0), ("AVX2", 200.0)):
        paths.append(tmp_path / f"{kind}.json")
        machine = {"cpu": kind, "vector_instructions": kind}
        paths[-1].write_text(json.dumps({"machine": machine, "rows": [step("published", ms, 1.0)]}))
    tables = plot.tables_of(plot.load_rows(paths))
    assert set(tables) == {"step", "step AVX512", "step AVX2"}
    assert "100 ms" in tables["step AVX512"]
    assert "200 ms" not in tables["step AVX512"]
    assert tables["step"] == tables["step AVX2"]


def test_tables_go_between_their_markers():
    text = "a\n<!-- table:step -->\nold\n<!-- end -->\nb"
    assert plot.with_table(text, "step", "new") == "a\n<!-- table:step -->\nnew\n<!-- end -->\nb"
    assert plot.with_table(text, "memory", "new") == text


def test_figures_are_the_same_for_the_same_rows():
    rows = [step("published", 2000.0, 1.0), step("fast", 100.0, 20.0), step("fast", 300.0, 10.0, resolution=512)]
    drawn, again = figures.draw_all(rows), figures.draw_all(rows)
    assert drawn == again
    assert set(drawn) == {"step"}
    texts = ElementTree.fromstring(drawn["step"])
    assert texts.tag.endswith("svg")
