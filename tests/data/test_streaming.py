"""Large files: only where records lie is kept, and records are found wherever blocks end."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.owners import easy_r1, med_r1, vlm_r1, write_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo_fast.data import open_data
from grpo_fast.data.files import jsonl, tables
from grpo_fast.data.files.json_array import JSONArray
from grpo_fast.data.files.jsonl import JSONLines
from grpo_fast.errors import BadData

VALUES = st.recursive(
    st.none() | st.integers(-9, 99) | st.text(alphabet='ab\\"[]{},:\n é', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from('"k\\[{'), inner, max_size=3),
    max_leaves=6,
)
LAX = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


@LAX
@given(
    records=st.lists(st.dictionaries(st.sampled_from(["a", 'b"', "c\\"]), VALUES, max_size=3), max_size=6),
    block=st.sampled_from([1, 2, 3, 7, 64, 1 << 20]),
    indent=st.sampled_from([None, 1]),
    ascii=st.booleans(),
    bom=st.booleans(),
)
def test_array_elements_are_found(tmp_path, monkeypatch, records, block, indent, ascii, bom) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(jsonl, "BLOCK", max(block, 3) if bom else block)
        text = json.dumps(records, indent=indent, ensure_ascii=ascii) + "\n "
        path = tmp_path / "a.json"
        path.write_text(text, encoding="utf-8-sig" if bom else "utf-8")
        array = JSONArray(path)
        assert [array.record(index) for index in range(len(array))] == records
        if indent:  # an element begins on a line of its own, which holds a brace at that depth and nothing else
            lines = text.split("\n")
            starts = [n for n, line in enumerate(lines, 1) if line in (" {", " {},", " {}")]
            assert [array.number(index) for index in range(len(array))] == starts


@LAX
@given(
    lines=st.lists(st.sampled_from(["", " ", "\t\r", "{}", '{"a": "é"}', '{"b": [1, 2]}\r']), max_size=9),
    block=st.sampled_from([3, 4, 5, 7, 64, 1 << 20]),
    last=st.sampled_from(["", "\n"]),
    bom=st.booleans(),
)
def test_lines_are_found(tmp_path, monkeypatch, lines, block, last, bom) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(jsonl, "BLOCK", block)
        path = tmp_path / "a.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" * bom + ("\n".join(lines) + last).encode())
        found = JSONLines(path)
        kept = [(number, json.loads(line)) for number, line in enumerate(lines, 1) if line.strip()]
        assert [(found.number(index), found.record(index)) for index in range(len(found))] == kept


@pytest.mark.parametrize("kind", ["jsonl", "array", "parquet"])
def test_memory_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """200k records: what is kept is the index (8 to 24 bytes a record), and reading at random adds nothing."""
    count = 200_000
    path = tmp_path / kind
    if kind == "parquet":
        monkeypatch.setattr(tables, "CACHE_BYTES", 1 << 20)
        with pq.ParquetWriter(path, pa.Table.from_pylist([easy_r1()]).schema) as writer:
            for start in range(0, count, 10_000):
                one = pa.Table.from_pylist([easy_r1([f"{start}.png"])])
                writer.write_table(one.take([0] * 10_000))
    else:
        line = json.dumps(vlm_r1() if kind == "jsonl" else med_r1())
        with open(path, "w") as file:
            file.write("" if kind == "jsonl" else "[")
            for n in range(count):
                file.write(line + ("\n" if kind == "jsonl" else ",\n" if n < count - 1 else "]"))
        assert path.stat().st_size > 20e6
    tracemalloc.start()
    data = open_data([str(path)])
    kept, at_most = tracemalloc.get_traced_memory()
    assert len(data) == count
    for index in range(0, count, 997):
        assert data[index].answer == "C"
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    arrow = pa.total_allocated_bytes()
    assert kept < 40 * count, f"{kept} bytes kept for {count} records"
    assert at_most < 40 * count + 40 * jsonl.BLOCK, f"{at_most} bytes at most while indexing"
    assert after < kept + (1 << 20), f"reading added {after - kept} bytes"
    assert arrow < 64 << 20, f"Arrow holds {arrow} bytes"


def test_only_the_line_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{**vlm_r1(), "id": n} for n in range(50)])
    data, parsed = open_data([str(path)]), []
    parse = jsonl.parse_json
    monkeypatch.setattr(jsonl, "parse_json", lambda raw, place: parsed.append(len(raw)) or parse(raw, place))
    assert data[40].id == "40" and data[-1].id == "49"
    assert len(parsed) == 2 and sum(parsed) < path.stat().st_size / 20


def test_parquet_keeps_few_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "CACHE_BYTES", 0)
    rows = [easy_r1([f"{n}.png"]) for n in range(100)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=7)
    data = open_data([str(tmp_path / "t.parquet")])
    source = data.parts[0].source
    for index in (0, 99, 50, 6, 7):
        assert data[index].images[0].path == tmp_path / f"{index}.png"
        assert len(source._kept) == 1


def test_data_sets_travel_to_other_processes(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([easy_r1(), easy_r1()]), tmp_path / "t.parquet")
    data = open_data([str(tmp_path / "t.parquet"), str(write_lines(tmp_path / "a.jsonl", [vlm_r1()]))]).select([2, 0])
    copy = pickle.loads(pickle.dumps(data))
    assert [sample.id for sample in copy] == [sample.id for sample in data] and len(copy) == 2


def test_file_that_is_taken_away(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [vlm_r1(), vlm_r1()])
    data = open_data([str(path)])
    path.unlink()
    with pytest.raises(BadData, match=r"a\.jsonl:2 cannot be read any more: No such file"):
        data[1]


def test_broken_ends_of_an_array(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    whole = json.dumps([med_r1(), med_r1(), med_r1()], indent=1)
    path.write_text(whole[:-25])
    data = open_data([str(path)])
    assert len(data) == 3 and data[1].answer == "C"
    with pytest.raises(BadData, match=r"a\.json:12 \(record 3\): the JSON is cut off"):
        data[2]
    path.write_text(whole + "\n[]")
    with pytest.raises(BadData, match=r"a\.json:18: text after the array's closing bracket"):
        open_data([str(path)])
    path.write_text("[ ]\n")
    with pytest.raises(BadData, match=r"a\.json holds no records"):
        open_data([str(path)])


def test_damaged_parquet_raises_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = [{**easy_r1([f"{n}.png"]), "problem": f"<image> {n * 7919}"} for n in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=20, compression="zstd")
    whole, random = path.read_bytes(), np.random.default_rng(5)
    refused = 0
    for _ in range(60):
        broken = bytearray(whole)
        for place in random.integers(4, len(whole), 5):
            broken[place] = random.integers(0, 256)
        path.write_bytes(broken)
        try:
            data = open_data([str(path)])
            assert [sample.answer for sample in data[::20]]
        except BadData as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 20
