"""More than a hundred kinds of broken records: each is named with its file, its line and the reason.

The second record of three is broken; the other two still read.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.owners import QUESTION, easy_r1, med_r1, mm_eureka, png, save, vlm_r1, write_lines
from PIL import Image

from grpo_fast import datacli
from grpo_fast.data import open_data
from grpo_fast.errors import BadData, BadImage, BadSettings

GOOD = {
    "vlm": lambda: vlm_r1("good.png"),
    "med": lambda: med_r1("good.png"),
    "easy": lambda: easy_r1(["good.png"]),
    "eureka": lambda: mm_eureka("good.png"),
}
DATA_URI = "data:image/png;base64," + base64.b64encode(png()).decode()


def line(**changes: Any) -> Callable[[dict], bytes]:
    """The good record with other columns; ... takes one away."""

    def change(record: dict) -> bytes:
        record = {key: value for key, value in {**record, **changes}.items() if value is not ...}
        return json.dumps(record).encode()

    return change


def turns(*given: Any) -> Callable[[dict], bytes]:
    return line(
        conversations=[dict(zip(("from", "value"), t, strict=True)) if isinstance(t, tuple) else t for t in given]
    )


def chat(*given: Any) -> Callable[[dict], bytes]:
    return line(message=json.dumps(list(given)))


def user(*content: Any) -> dict:
    return {"role": "user", "content": list(content)}


def raw(data: bytes) -> Callable[[dict], bytes]:
    return lambda record: data


def edited(old: str, new: str) -> Callable[[dict], bytes]:
    return lambda record: json.dumps(record).replace(old, new, 1).encode()


PART = {"type": "image", "image": "good.png"}
TEXT = {"type": "text", "text": QUESTION}
HUMAN = ("human", f"<image>{QUESTION}")

BROKEN = {
    # the line itself
    "latin-1": ("vlm", raw('{"id": "é"}'.encode("latin-1")), "not UTF-8: byte 0xe9 at position 8"),
    "utf-16": ("vlm", lambda r: json.dumps(r).encode("utf-16-le")[:40], "not valid JSON"),
    "lone continuation byte": ("vlm", raw(b'{"a": "\x80"}'), "not UTF-8: byte 0x80 at position 7"),
    "cut within a string": ("vlm", lambda r: json.dumps(r).encode()[:-20], "the JSON is cut off"),
    "cut after a key": ("vlm", raw(b'{"image": '), "the JSON is cut off"),
    "cut after a brace": ("vlm", raw(b"{"), "the JSON is cut off"),
    "cut between columns": ("med", raw(b'{"image": "good.png", '), "the JSON is cut off"),
    "no JSON": ("vlm", raw(b"hello"), "not valid JSON: Expecting value"),
    "single quotes": ("vlm", raw(b"{'image': 'a.png'}"), "not valid JSON: Expecting property name"),
    "missing comma": ("vlm", raw(b'{"a": 1 "b": 2}'), "not valid JSON: Expecting ',' delimiter"),
    "missing colon": ("vlm", raw(b'{"a" 1}'), "not valid JSON: Expecting ':' delimiter"),
    "trailing comma": ("vlm", raw(b'{"a": 1,}'), "not valid JSON"),
    "two objects": ("vlm", lambda r: json.dumps(r).encode() * 2, "not valid JSON: Extra data"),
    "tab in a string": ("vlm", raw(b'{"a": "x\ty"}'), "not valid JSON: Invalid control character"),
    "wrong escape": ("vlm", raw(b'{"a": "\\x41"}'), r"not valid JSON: Invalid \\\\?escape"),
    "short unicode escape": ("vlm", raw(b'{"a": "\\u12"}'), "not valid JSON: Invalid .*uXXXX escape"),
    "python None": ("vlm", raw(b'{"a": None}'), "not valid JSON: Expecting value"),
    "python True": ("vlm", raw(b'{"a": True}'), "not valid JSON: Expecting value"),
    "comment": ("vlm", raw(b"// a comment"), "not valid JSON: Expecting value"),
    "csv": ("vlm", raw(b"good.png,What?,C"), "not valid JSON: Expecting value"),
    "merge conflict": ("vlm", raw(b"<<<<<<< HEAD"), "not valid JSON: Expecting value"),
    "number of thousands of digits": ("vlm", raw(b'{"a": ' + b"9" * 5000 + b"}"), "not valid JSON: Exceeds the limit"),
    "nested too deeply": ("vlm", raw(b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "nested too deeply"),
    "a column twice": ("vlm", edited('"image"', '"image": "a.png", "image"'), "the key 'image' stands twice"),
    "byte order mark within": ("vlm", lambda r: b"\xef\xbb\xbf" + json.dumps(r).encode(), "not valid JSON"),
    # not an object
    "a list": ("vlm", raw(b"[1, 2]"), "of type list, not an object"),
    "a string": ("vlm", raw(b'"good.png"'), "of type str, not an object"),
    "a number": ("vlm", raw(b"17"), "of type int, not an object"),
    "null": ("vlm", raw(b"null"), "of type NoneType, not an object"),
    "true": ("vlm", raw(b"true"), "of type bool, not an object"),
    # other columns than the file's
    "no columns": ("vlm", raw(b"{}"), r"has the columns \(none\); this file's others have conversations, image"),
    "another format's columns": ("vlm", raw(json.dumps(med_r1()).encode()), "has the columns image, problem, solution"),
    "no conversations": ("vlm", line(conversations=...), "has the columns image; this file's others have"),
    "no problem": ("med", line(problem=...), "has the columns image, solution; this file's others have"),
    "no solution": ("med", line(solution=...), "has the columns image, problem; this file's others have"),
    "no answer": ("easy", line(answer=...), "has the columns problem, images; this file's others have"),
    "no message": ("eureka", line(message=...), "has the columns id, answer; this file's others have"),
    "misspelt column": ("med", edited('"solution"', '"soluton"'), "has the columns image, problem, soluton"),
    # conversations
    "conversations null": ("vlm", line(conversations=None), "conversations is missing"),
    "conversations a string": ("vlm", line(conversations="hi"), "conversations is not a list of turns"),
    "conversations an object": ("vlm", line(conversations={"from": "human"}), "conversations is not a list of turns"),
    "conversations empty": ("vlm", line(conversations=[]), "conversations is empty"),
    "only a question": ("vlm", turns(HUMAN), "does not end with an answer"),
    "only an answer": ("vlm", turns(("gpt", "C")), "the turns are assistant; after a system turn"),
    "answer first": ("vlm", turns(("gpt", "C"), HUMAN), "does not end with an answer"),
    "two questions": ("vlm", turns(HUMAN, HUMAN, ("gpt", "C")), "the turns are user, user, assistant"),
    "two answers": ("vlm", turns(HUMAN, ("gpt", "C"), ("gpt", "D")), "the turns are user, assistant, assistant"),
    "system turn late": ("vlm", turns(HUMAN, ("system", "x"), ("gpt", "C")), "the turns are user, system, assistant"),
    "system turn alone": ("vlm", turns(("system", "x"), ("gpt", "C")), "the turns are system, assistant"),
    "unknown speaker": ("vlm", turns(("bob", "hi"), ("gpt", "C")), r"conversations\[0\] is from 'bob'"),
    "speaker null": ("vlm", turns((None, "hi"), ("gpt", "C")), r"conversations\[0\] does not say whom it is from"),
    "speaker a number": ("vlm", turns((1, "hi"), ("gpt", "C")), r"conversations\[0\] is from 1"),
    "turn a string": ("vlm", turns(HUMAN, "C"), r"conversations\[1\] is of type str"),
    "turn a list": ("vlm", turns(HUMAN, ["gpt", "C"]), r"conversations\[1\] is of type list"),
    "turn without value": ("vlm", turns({"from": "human"}, ("gpt", "C")), r"conversations\[0\] is missing"),
    "question a number": ("vlm", turns(("human", 5), ("gpt", "C")), r"conversations\[0\] is of type int, not text"),
    "question a list": ("vlm", turns(("human", ["a"]), ("gpt", "C")), r"conversations\[0\] is of type list, not text"),
    "question empty": ("vlm", turns(("human", ""), ("gpt", "C")), r"conversations\[0\] is empty"),
    "question of blanks": ("vlm", turns(("human", " \n"), ("gpt", "C")), r"conversations\[0\] is empty"),
    "question only an image": ("vlm", turns(("human", "<image>\n"), ("gpt", "C")), "the question is empty"),
    "half a surrogate pair": ("vlm", turns(("human", "<image>\ud83d?"), ("gpt", "C")), "half of a surrogate pair"),
    # golds
    "gold missing": ("vlm", turns(HUMAN, {"from": "gpt"}), "the answer, is missing"),
    "gold null": ("med", line(solution=None), "solution is missing"),
    "gold empty": ("vlm", turns(HUMAN, ("gpt", "")), "the answer, is empty"),
    "gold of blanks": ("easy", line(answer=" \t"), "answer is empty"),
    "gold true": ("easy", line(answer=True), "answer is of type bool; an answer is text or a number"),
    "gold false": ("med", line(solution=False), "solution is of type bool"),
    "gold an object": ("easy", line(answer={"text": "C"}), "answer is of type dict, not text"),
    "gold an empty list": ("easy", line(answer=[]), "answer is of type list, not text"),
    "gold a list of texts": ("med", line(solution=["A", "B"]), r"solution\[0\] is of type str"),
    "gold a box with null": ("med", line(solution=[1, 2, None, 4]), r"solution\[2\] is of type NoneType"),
    "gold NaN": ("easy", line(answer=float("nan")), "answer is NaN"),
    "gold infinite": ("easy", line(answer=float("-inf")), "answer is infinite"),
    "gold a box with NaN": ("med", line(solution=[1, float("nan")]), r"solution\[1\] is NaN"),
    "gold the text nan": ("med", line(solution="nan"), "solution is NaN"),
    "gold an empty tag": ("med", line(solution="<answer> </answer>"), "solution has an empty answer tag"),
    "gold an open tag": ("med", line(solution="<answer> C"), "an answer tag without its other half"),
    "gold only a closing tag": ("med", line(solution="C</answer>"), "an answer tag without its other half"),
    "gold half a surrogate": ("easy", line(answer="\udc00"), "answer holds half of a surrogate pair"),
    "reward method a number": ("vlm", line(accu_reward_method=3), "accu_reward_method is of type int"),
    # questions in a column
    "problem null": ("med", line(problem=None), "problem is missing"),
    "problem empty": ("med", line(problem=""), "problem is empty"),
    "problem a number": ("easy", line(problem=12), "problem is of type int, not text"),
    "problem a list": ("easy", line(problem=["a"]), "problem is of type list, not text"),
    "problem only an image": ("easy", line(problem="<image>"), "the question is empty"),
    # image tags
    "tag without image": ("vlm", line(image=...), r"the text has 1 <image> tag\(s\), but the record has 0 image"),
    "one tag, two images": ("vlm", line(image=["good.png"] * 2), r"has 1 <image> tag\(s\), but the record has 2"),
    "two tags, one image": ("easy", line(problem="<image><image> x"), r"has 2 <image> tag\(s\), but the record has 1"),
    "tag in a problem without image": ("med", line(image=None, problem="<image> x"), "has 1 <image> tag"),
    # image references
    "image path empty": ("vlm", line(image=""), "an image path is empty"),
    "image path of blanks": ("med", line(image="  "), "an image path is empty"),
    "image a number": ("vlm", line(image=5), "an image is a int; known are"),
    "image true": ("med", line(image=True), "an image is a bool"),
    "image null in a list": ("easy", line(images=[None]), "an image is a null"),
    "image list in a list": ("easy", line(images=[["good.png"]]), "an image is a list"),
    "image an unknown object": ("med", line(image={"url": "x"}), "an image is a dict"),
    "image without bytes and path": ("easy", line(images=[{"bytes": None, "path": None}]), "neither bytes nor a path"),
    "image and images": ("easy", line(image="good.png"), "both image and images are given"),
    "image on the web": ("vlm", line(image="https://example.org/a.png"), "is not fetched: download it"),
    "image in a bucket": ("vlm", line(image="s3://bucket/a.png"), "is not fetched: download it"),
    "image path with NUL": ("vlm", line(image="a\x00.png"), "an image path holds a NUL"),
    "bare base64": ("vlm", line(image=DATA_URI[22:]), "an image path of .* characters; before base64"),
    "file URL without a path": ("eureka", chat(user({**PART, "image": "file://"}, TEXT)), "a file:// URL without"),
    "data URI without comma": ("vlm", line(image="data:image/png;base64"), "a data URI without a comma"),
    "data URI of text": ("vlm", line(image="data:text/plain;base64,aGk="), "a data URI of text/plain"),
    "data URI not base64": ("vlm", line(image="data:image/svg+xml,<svg/>"), "a data URI that is not base64"),
    "data URI of wrong base64": ("vlm", line(image="data:image/png;base64,@@@"), "is not valid base64"),
    "data URI of cut base64": ("vlm", line(image=DATA_URI[:-5]), "is not valid base64"),
    "data URI without data": ("vlm", line(image="data:image/png;base64,"), "an embedded image has no bytes"),
    "bytes of wrong base64": ("easy", line(images=[{"bytes": "@@", "path": None}]), "is not valid base64"),
    "a video": ("easy", line(videos=["a.mp4"]), "video .*/a.mp4 does not exist"),
    # a chat in a string
    "message null": ("eureka", line(message=None), "message is missing"),
    "message empty text": ("eureka", line(message=""), "message is empty"),
    "message no JSON": ("eureka", line(message="What?"), "message is not valid JSON: Expecting value"),
    "message cut": ("eureka", line(message='[{"role": "user", "con'), "message is not valid JSON: Unterminated"),
    "message an object": ("eureka", line(message='{"role": "user"}'), "message is not a list of turns"),
    "message without turns": ("eureka", line(message="[]"), "message is empty"),
    "message turn a string": ("eureka", chat("What?"), r"message\[0\] is of type str"),
    "message without role": ("eureka", chat({"content": "What?"}), r"message\[0\] has the role None"),
    "message unknown role": ("eureka", chat({"role": "human", "content": "x"}), "has the role 'human'"),
    "message of the answer": ("eureka", chat(user(TEXT), {"role": "assistant", "content": "C"}), "ends with a turn"),
    "message content missing": ("eureka", chat({"role": "user"}), r"message\[0\]\.content is missing"),
    "message content empty": ("eureka", chat(user()), r"message\[0\]\.content is empty"),
    "message content a number": ("eureka", chat({"role": "user", "content": 3}), "content is of type int, not text"),
    "message part unknown": ("eureka", chat(user(PART, {"type": "audio"})), "is neither a text nor an image or"),
    "message part a string": ("eureka", chat(user("What?")), r"content\[0\] is neither a text nor an image"),
    "message text missing": ("eureka", chat(user(PART, {"type": "text"})), r"content\[1\]\.text is missing"),
    "message image missing": ("eureka", chat(user({"type": "image"}, TEXT)), "an image part without an image"),
    "message without question": ("eureka", chat(user(PART)), "the question is empty"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "good.png")
    return tmp_path


@pytest.mark.parametrize("name", BROKEN)
def test_broken_line(folder: Path, name: str) -> None:
    kind, change, reason = BROKEN[name]
    good = json.dumps(GOOD[kind]()).encode()
    path = folder / "t.jsonl"
    path.write_bytes(b"\n".join([good, b"", change(GOOD[kind]()), good]) + b"\n")
    data = open_data([str(path)])
    assert len(data) == 3 and data[0].answer == data[2].answer == "C"
    with pytest.raises(BadData, match=rf"^{path}:3: .*{reason}"):
        data[1]


def test_there_are_a_hundred() -> None:
    assert len(BROKEN) >= 100
    assert len({reason for _, _, reason in BROKEN.values()}) >= 75


def test_array_elements_are_named_too(folder: Path) -> None:
    """Each breakage of columns, as an element of an indented array: the line is the one where the element begins."""
    good = json.dumps(med_r1("good.png"), indent=1)
    for name, (kind, change, reason) in BROKEN.items():
        record = change(GOOD[kind]())
        if kind != "med" or not record.endswith(b"}"):
            continue
        path = folder / "t.json"
        path.write_text(f"[\n{good},\n{record.decode()},\n{good}\n]")
        data = open_data([str(path)])
        with pytest.raises(BadData, match=rf"^{path}:7 \(record 2\): .*{reason}"):
            data[1]
        assert data[2].answer == "C", name


FOUND_BY_FOLDER = "x.png does not exist; image folders are set by --image-folders"
BROKEN_IMAGES = {
    "missing": ("vlm", lambda f: None, FOUND_BY_FOLDER),
    "an empty folder": ("med", lambda f: f.mkdir(), "x.png is an empty folder"),
    "empty": ("easy", lambda f: f.touch(), "x.png is an empty file"),
    "dangling link": ("vlm", lambda f: f.symlink_to("nowhere"), FOUND_BY_FOLDER),
}
BROKEN_IMAGES["a name too long"] = ("med", lambda f: None, "n" * 300 + " cannot be read: File name too long")
CORRUPT_IMAGES = {
    "text": lambda f: f.write_text("hello"),
    "html": lambda f: f.write_text("<html>404 Not Found</html>"),
    "cut": lambda f: f.write_bytes(png()[:200]),
    "only a header": lambda f: f.write_bytes(png()[:30]),
    "wrong checksum": lambda f: f.write_bytes(png().replace(b"IHDR", b"IHDX")),
    "zeros": lambda f: f.write_bytes(bytes(500)),
    "git lfs pointer": lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "a long strip": lambda f: Image.new("L", (2000, 4)).save(f, "PNG"),
    "float pixels": lambda f: Image.new("F", (8, 8), 0.5).save(f, "TIFF"),
}


def records_with(kind: str, image: str) -> list[dict]:
    changed = {"vlm": vlm_r1(image), "med": med_r1(image), "easy": easy_r1([image])}[kind]
    return [GOOD[kind](), changed, GOOD[kind]()]


@pytest.mark.parametrize("name", BROKEN_IMAGES)
def test_image_that_cannot_be_found(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind, make, reason = BROKEN_IMAGES[name]
    make(folder / "x.png")
    path = write_lines(folder / "t.jsonl", records_with(kind, "n" * 300 if name == "a name too long" else "x.png"))
    with pytest.raises(BadImage, match=rf"^{path}:2: image {folder}/{reason}"):
        open_data([str(path)])[1].images[0]()
    assert check(str(path)) == 1
    assert capsys.readouterr().out == f"{path}:2: image {folder}/{reason}" + "\n"


@pytest.mark.parametrize("name", CORRUPT_IMAGES)
def test_corrupt_image(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    CORRUPT_IMAGES[name](folder / "x.png")
    path = write_lines(folder / "t.jsonl", records_with("vlm", "x.png"))
    assert check(str(path)) == 0  # the file is there
    assert check(str(path), "--images") == 1
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 and out[0].startswith(f"{path}:2: image "), out


def test_corrupt_embedded_image(folder: Path) -> None:
    rows = [easy_r1([{"bytes": data, "path": None}]) for data in (png(), png()[:200], b"hello", png())]
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    data = open_data([str(folder / "t.parquet")])
    for index in (1, 2):
        with pytest.raises(BadImage, match=rf"t\.parquet: row {index + 1}: the embedded image cannot be read"):
            data[index].images[0]()
    assert data[3].images[0]().size == (40, 30)
    rows[2]["images"][0]["bytes"] = b""
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    with pytest.raises(BadData, match=r"t\.parquet: row 3: an embedded image has no bytes"):
        open_data([str(folder / "t.parquet")])[2]


def check(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    datacli.add_arguments(parser)
    return datacli.run(parser.parse_args(["check", *arguments]))


def test_check_names_them_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All breakages in one file of each format, between good lines: every one is named, and nothing else."""
    for kind, good in GOOD.items():
        broken = [change(good()) for of, change, _ in BROKEN.values() if of == kind]
        path = folder / f"{kind}.jsonl"
        path.write_bytes(b"\n".join(part for data in broken for part in (json.dumps(good()).encode(), data)))
        assert check(str(path), "--json") == 1
        told = json.loads(capsys.readouterr().out)
        assert told["files"][0]["records"] == 2 * len(broken) and told["files"][0]["bad"] == len(told["bad"])
        named = [one for one in told["bad"] if "was used before" not in one["reason"]]  # MM-EUREKA's lines have ids
        assert [one["line"] for one in named] == list(range(2, 2 * len(broken) + 1, 2))
        assert all(one["file"] == str(path) for one in named)


def test_duplicate_ids(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"id": id, **vlm_r1("good.png")} for id in ("a", "b", 7, "a", "7", "c")]
    path = write_lines(folder / "t.jsonl", records)
    assert check(str(path)) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{path}:4: the id 'a' was used before, in line 1",
        f"{path}:5: the id '7' was used before, in line 3",
    ]


WHOLE_FILES = {
    "empty": (b"", "is empty"),
    "blank": (b" \n\n", "is empty"),
    "only a byte order mark": (b"\xef\xbb\xbf", "is empty"),
    "empty array": (b"[]", "holds no records"),
    "UTF-16": (json.dumps(med_r1()).encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    "gzip": (b"\x1f\x8b\x08\x00rest", "is compressed with gzip"),
    "zip": (b"PK\x03\x04rest", "is a zip archive"),
    "an image": (png(), "is a PNG image, not a data file"),
    "NUL bytes": (b'{"a"\x00: 1}', "holds NUL bytes"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "unknown columns": (b'{"prompt": "x", "gold": 1}\n', r":1: the columns prompt, gold are of no known format"),
    "nothing readable": (b"{\n}\n", ":1: the JSON is cut off"),
    "one object over several lines": (
        json.dumps({"data": [med_r1()]}, indent=1).encode(),
        ":1: the JSON is cut off.*; a file is one JSON array, or one object a line",
    ),
    "cut Parquet": (b"PAR1rest", "is no readable Parquet file"),
    "text after an array": (b"[{}]\n[{}]", ":2: text after the array's closing bracket"),
    "two commas": (b'[{"problem": "x", "solution": 1},,{}]', None),
    "an Arrow file": (b"ARROW1rest", "is one Arrow file of a data set: name the folder"),
}


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_file_that_cannot_be_used(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, reason = WHOLE_FILES[name]
    path = tmp_path / "t.json"
    path.write_bytes(content)
    if reason is None:
        with pytest.raises(BadData, match="an element is missing: there is a comma too many"):
            open_data([str(path)])[1]
        return
    with pytest.raises(BadData, match=f"^{path}.*{reason}"):
        open_data([str(path)])
    assert check(str(path), "--json") == 1
    assert json.loads(capsys.readouterr().out)["bad"][0]["line"] is None


def test_byte_order_mark_is_accepted(folder: Path) -> None:
    for text in (json.dumps(med_r1()), json.dumps([med_r1()])):
        (folder / "t.json").write_text(text, encoding="utf-8-sig")
        assert open_data([str(folder / "t.json")])[0].answer == "C"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("datasets: [", "is not valid YAML"),
        ("other: 1", "has no list `datasets:`"),
        ("datasets: []", "has no list `datasets:`"),
        ("datasets:\n  - sampling_strategy: all", r"datasets\[0\]: json_path is missing"),
        ("datasets:\n  - json_path: no.json", r"datasets\[0\]: there is no file .*no\.json"),
        ("datasets:\n  - {json_path: t.jsonl, sampling_strategy: middle:3}", "'middle:3' is none of all, first:N"),
        ("datasets:\n  - {json_path: t.jsonl, sampling_strategy: 'first:x'}", "'first:x' is none of all, first:N"),
    ],
)
def test_broken_yaml(folder: Path, text: str, reason: str) -> None:
    write_lines(folder / "t.jsonl", [vlm_r1("good.png")])
    (folder / "mix.yaml").write_text(text)
    with pytest.raises(BadData, match=rf"^{folder}/mix\.yaml.*{reason}"):
        open_data([str(folder / "mix.yaml")])


def test_wrong_sources(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some/a.jsonl").touch()
    for source, reason in {
        f"{tmp_path}/no.jsonl": "there is no such file",
        "./no": "there is no such file",
        f"{tmp_path}/some": r"is a folder, but none that .* save_to_disk wrote; name the files in it \(a\.jsonl\)",
    }.items():
        with pytest.raises(BadData, match=reason):
            open_data([source])
    with pytest.raises(BadSettings, match="the splits train and test"):
        open_data(["phantom:dev"])
    with pytest.raises(BadSettings, match="no data is named"):
        open_data([])
    with pytest.raises(BadSettings, match="the image folder nowhere does not exist"):
        open_data([str(tmp_path / "some/a.jsonl")], image_folders=["nowhere"])
