"""answers.jsonl survives being cut anywhere, and is not trusted under other settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_fast.errors import RunFailed
from grpo_fast.evaluate.answers import Answer, AnswerFile

MADE = [
    Answer(place=n, id=str(n), question="q ü\u2028\x0b", gold="A", completion="\ud83d\r\n", strict=n % 2 == 0)
    for n in range(10)
]


def file(folder: Path, **changed: object) -> AnswerFile:
    return AnswerFile(folder, {"questions": 10, "prompt": "think", "weights": [["w", 1]]} | changed)


def test_a_file_cut_at_any_byte_goes_on_at_a_whole_batch(tmp_path: Path) -> None:
    writer = file(tmp_path)
    writer.begin([])
    for start in range(0, 10, 4):
        writer.append(MADE[start : start + 4])
    whole = writer.path.read_bytes()
    assert file(tmp_path).kept(4) == (MADE, "")
    ends = [0, *(i + 1 for i, byte in enumerate(whole) if byte == ord("\n"))]
    for size in sorted(
        {*range(0, len(whole), 97), *(end + by for end in ends for by in (-1, 0, 1))} - {-1, len(whole) + 1}
    ):
        writer.path.write_bytes(whole[:size])
        lines = sum(end <= size for end in ends) - 1
        kept, word = file(tmp_path).kept(4)
        assert kept == (MADE if lines == 10 else MADE[: lines // 4 * 4]) and word == ""
        again = file(tmp_path)
        again.begin(kept)
        for start in range(len(kept), 10, 4):
            again.append(MADE[start : start + 4])
        assert writer.path.read_bytes() == whole


def test_changed_settings_are_told(tmp_path: Path) -> None:
    assert file(tmp_path).kept(4) == ([], "")
    file(tmp_path).begin(MADE)
    assert file(tmp_path, prompt="plain").kept(4)[0] == []
    assert "prompt was 'think', is 'plain': starting anew" in file(tmp_path, prompt="plain").kept(4)[1]
    assert "weights has changed: starting anew" in file(tmp_path, weights=[["w", 2]]).kept(4)[1]
    (tmp_path / "settings.json").unlink()
    assert "settings.json cannot be read: starting anew" in file(tmp_path).kept(4)[1]


def test_foreign_lines_end_what_is_kept(tmp_path: Path) -> None:
    file(tmp_path).begin(MADE)
    lines = (tmp_path / "answers.jsonl").read_bytes().split(b"\n")
    (tmp_path / "answers.jsonl").write_bytes(b"\n".join([*lines[:5], b'{"id": 1}', *lines[5:]]))
    assert file(tmp_path).kept(1)[0] == MADE[:5]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunFailed, match=r"taken.* cannot be written"):
        file(tmp_path / "taken").begin([])
