"""The file that a run goes on from: cut anywhere, edited, of other settings, of other data, open twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_fast.errors import BadSettings
from grpo_fast.synth.chains import Chain, ChainFile, Outcome
from grpo_fast.types import Sample

SETTINGS = {"model": "m", "k": 2, "extra": {}}


def sample(place: int, gold: str = "A") -> Sample:
    return Sample(id=f"q{place}", messages=[{"role": "user", "content": f"Number {place}?"}], answer=gold)


def outcome(place: int, text: str = "so") -> Outcome:
    return Outcome(place, (Chain(f"{text} {place}", True), Chain("cut", False)))


def written(folder: Path, *places: int) -> Path:
    with ChainFile(folder, SETTINGS) as file:
        for place in places:
            file.append([(sample(place), outcome(place))])
    return folder / "chains.jsonl"


def test_what_was_appended_comes_back(tmp_path: Path) -> None:
    odd = "line\nbreak \u2028 \ud83d half a pair \udc80 “quotes”"
    with ChainFile(tmp_path, SETTINGS) as file:
        file.append([(sample(4), outcome(4)), (sample(0), Outcome(0, (Chain(odd, True),)))])
        assert file.chains(4, sample(4)) == list(outcome(4).chains)
    with ChainFile(tmp_path, SETTINGS) as file:
        assert len(file) == 2 and 4 in file and 1 not in file
        assert file.chains(4, sample(4)) == list(outcome(4).chains)
        assert file.chains(0, sample(0)) == [Chain(odd.encode(errors="backslashreplace").decode(), True)]
        file.append([(sample(2), outcome(2))])
        assert file.chains(2, sample(2)) == list(outcome(2).chains)


def test_cut_anywhere_it_holds_the_whole_lines_before(tmp_path: Path) -> None:
    path = written(tmp_path, 7, 3, 5)
    whole = path.read_bytes()
    ends = [n + 1 for n, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(0, len(whole) + 1, 7):
        path.write_bytes(whole[:cut])
        with ChainFile(tmp_path, SETTINGS) as file:
            assert len(file) == sum(end <= cut for end in ends)
            file.append([(sample(9), outcome(9))])
        lines = [json.loads(line)["place"] for line in path.read_text().splitlines()]
        assert lines == [*[7, 3, 5][: sum(end <= cut for end in ends)], 9]


def test_a_spoilt_line_leaves_its_question_unasked(tmp_path: Path) -> None:
    path = written(tmp_path, 7, 3, 5)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"place": 3, "chains": [{}]}\n' + b"\x00\x00\n" + lines[2])
    with ChainFile(tmp_path, SETTINGS) as file:
        assert 7 in file and 5 in file and 3 not in file


def test_other_settings_are_refused_with_what_changed(tmp_path: Path) -> None:
    path = written(tmp_path, 1)
    with pytest.raises(BadSettings, match=r"k was 2, is 3.*--fresh"):
        ChainFile(tmp_path, {**SETTINGS, "k": 3}).__enter__()
    assert path.read_bytes()
    with ChainFile(tmp_path, {**SETTINGS, "k": 3}, fresh=True) as file:
        assert len(file) == 0
        file.append([(sample(1), outcome(1))])
    with pytest.raises(BadSettings, match="k was 3, is 2"):
        ChainFile(tmp_path, SETTINGS).__enter__()
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(BadSettings, match=r"settings.json cannot be read"):
        ChainFile(tmp_path, SETTINGS).__enter__()


def test_a_folder_without_chains_takes_any_settings(tmp_path: Path) -> None:
    written(tmp_path)
    with ChainFile(tmp_path, {**SETTINGS, "model": "the right name"}) as file:
        file.append([(sample(1), outcome(1))])
    with pytest.raises(BadSettings, match="model was 'the right name', is 'm'"):
        written(tmp_path)


def test_other_data_are_refused(tmp_path: Path) -> None:
    written(tmp_path, 1)
    with (
        ChainFile(tmp_path, SETTINGS) as file,
        pytest.raises(BadSettings, match=r"question 2 .* the data have changed"),
    ):
        file.chains(1, sample(1, gold="B"))


def test_open_in_one_process_at_a_time(tmp_path: Path) -> None:
    with ChainFile(tmp_path, SETTINGS), pytest.raises(BadSettings, match="another run is writing"):
        ChainFile(tmp_path, SETTINGS).__enter__()
    with ChainFile(tmp_path, SETTINGS) as file:
        assert len(file) == 0
