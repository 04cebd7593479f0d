"""Each of the seven formats, from files written as their owners write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.owners import QUESTION, easy_r1, med_r1, mm_eureka, picture, png, save, vlm_r1, write_lines

from grpo_fast.data import Dataset, open_data
from grpo_fast.data.dataset import Part
from grpo_fast.data.files.rows import open_hub
from grpo_fast.data.formats import PROBLEM_SOLUTION
from grpo_fast.errors import BadData, BadSettings

ASKED = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]


def shows(load: Any, seed: int = 0) -> bool:
    return np.array_equal(np.asarray(load().convert("RGB")), np.asarray(picture(seed)))


def test_vlm_r1_jsonl(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / f"2d/cls/x_ray/{number}.png", number)
    records = [
        {"id": 7, **vlm_r1("2d/cls/x_ray/0.png"), "accu_reward_method": "mcq", "source": "VQA-RAD"},
        vlm_r1([f"2d/cls/x_ray/{n}.png" for n in (1, 2)], "<image> against <image>: which?", "<answer> B </answer>"),
        {"conversations": vlm_r1(question="What is 2 + 2?", answer=4)["conversations"]},
        vlm_r1(question=QUESTION, answer="<think>Ribs.</think>\n<answer>C</answer>"),
    ]  # fmt: skip
    data = open_data([str(write_lines(tmp_path / "gmai_rl.jsonl", records))])
    one, two, text_only, reasoned = data
    assert (one.id, one.answer, one.messages) == ("7", "C", ASKED) and shows(one.images[0])
    assert one.meta["reward_method"] == "mcq" and one.meta["columns"]["source"] == "VQA-RAD"
    assert one.meta["modality"] == "x-ray" and one.meta["source"] == f"{tmp_path}/gmai_rl.jsonl:1"
    assert one.meta["response"] == "C" and one.meta["image_paths"] == [f"{tmp_path}/2d/cls/x_ray/0.png"]
    assert [part["type"] for part in two.messages[0]["content"]] == ["image", "text", "image", "text"]
    assert two.messages[0]["content"][1]["text"] == "against " and two.answer == "B"
    assert shows(two.images[0], 1) and shows(two.images[1], 2) and two.meta["response"] == "<answer> B </answer>"
    assert not text_only.images and text_only.answer == "4" and "modality" not in text_only.meta
    assert reasoned.answer == "C" and reasoned.meta["response"].startswith("<think>Ribs.")
    assert reasoned.messages == ASKED  # without a tag, the image comes first


def test_vlm_r1_keeps_earlier_turns(tmp_path: Path) -> None:
    turns = [
        {"from": "system", "value": "You are a radiologist."},
        {"from": "human", "value": "Side by side: <image><image>"},
        {"from": "gpt", "value": "Two scans."},
        {"from": "human", "value": QUESTION},
        {"from": "gpt", "value": "A"},
    ]
    data = open_data([str(write_lines(tmp_path / "t.jsonl", [{"image": ["a.png", "b.png"], "conversations": turns}]))])
    messages = data[0].messages
    assert [turn["role"] for turn in messages] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in messages[1]["content"]] == ["text", "image", "image"]
    assert messages[2]["content"] == "Two scans." and messages[3]["content"] == [{"type": "text", "text": QUESTION}]
    assert len(data[0].images) == 2 and data[0].answer == "A"


def test_images_without_tags_come_first_of_all(tmp_path: Path) -> None:
    turns = [*vlm_r1(question="Look.")["conversations"], *vlm_r1(question=QUESTION)["conversations"]]
    (sample,) = open_data([str(write_lines(tmp_path / "t.jsonl", [{"image": ["a.png"], "conversations": turns}]))])
    assert sample.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "Look."}]
    assert sample.messages[2]["content"] == [{"type": "text", "text": QUESTION}]


@pytest.mark.parametrize("indent", [None, 1, 4])
def test_med_r1_json_array(tmp_path: Path, indent: int | None) -> None:
    save(tmp_path / "all/Images/0.png")
    path = tmp_path / "CT(Computed Tomography)_train.json"
    path.write_text(json.dumps([med_r1(), {**med_r1(), "problem": 'a "quoted\\" ]}, question'}], indent=indent))
    data = open_data([str(path)], image_folders=[str(tmp_path / "all")])
    assert len(data) == 2 and data[0].messages == ASKED and data[0].answer == "C" and shows(data[0].images[0])
    assert data[1].messages[0]["content"][1]["text"] == 'a "quoted\\" ]}, question'
    assert data[0].meta["modality"] == "ct" and "response" not in data[0].meta
    line = {None: 1, 1: 2, 4: 2}[indent]
    assert data[0].meta["source"] == f"{path}:{line} (record 1)"
    assert data.place(1) == (str(path), {None: 1, 1: 7, 4: 7}[indent])


@pytest.mark.parametrize("as_dict", [False, True])
def test_r1_v_saved_to_disk(tmp_path: Path, as_dict: bool) -> None:
    columns = {
        "image": [picture(number) for number in range(5)],
        "problem": [f"{QUESTION} {number}" for number in range(5)],
        "solution": ["<answer> C </answer>", "<think>Bones.</think> <answer> D </answer>", "A", "B", "C"],
        "original_answer": list("abcde"),
    }
    features = datasets.Features(
        {"image": datasets.Image(), **{name: datasets.Value("string") for name in list(columns)[1:]}}
    )
    rows = datasets.Dataset.from_dict(columns, features=features)
    held: Any = datasets.DatasetDict(train=rows, test=rows.select([4])) if as_dict else rows
    held.save_to_disk(str(tmp_path / "clevr"))
    data = open_data([str(tmp_path / "clevr")])
    assert [sample.answer for sample in data] == ["C", "D", "A", "B", "C"]
    assert all(shows(sample.images[0], number) for number, sample in enumerate(data))
    assert data[1].meta["response"].startswith("<think>") and "response" not in data[0].meta
    assert data[3].meta["columns"]["original_answer"] == "d" and "row 4" in data[3].meta["source"]
    if as_dict:
        (test,) = open_data([f"{tmp_path}/clevr@test"])
        assert shows(test.images[0], 4)
        with pytest.raises(BadData, match="holds the splits train, test: name one"):
            open_data([f"{tmp_path}/clevr@dev"])


def test_r1_v_in_several_shards_and_in_memory(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict(
        {
            "image": [picture(number) for number in range(6)],
            "problem": [f"q {number}" for number in range(6)],
            "solution": list("ABCDAB"),
        }
    )
    rows.save_to_disk(str(tmp_path / "shards"), num_shards=3)
    for source in (str(tmp_path / "shards"), rows):
        data = open_data([source])  # in memory, datasets hands out PIL images
        assert [sample.answer for sample in data] == list("ABCDAB")
        assert all(shows(sample.images[0], number) for number, sample in enumerate(data))


def test_mm_eureka_v0_parquet(tmp_path: Path) -> None:
    save(tmp_path / "images/1.png", 1)
    rows = [
        {"image": {"bytes": png(0), "path": "0.png"}, "image_path": "a/0.png", "problem": QUESTION, "solution": "C"},
        {"image": None, "image_path": "images/1.png", "problem": QUESTION, "solution": "<answer>B</answer>"},
        {"image": {"bytes": png(2), "path": None}, "image_path": None, "problem": QUESTION, "solution": "A"},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "v0.parquet", row_group_size=2)
    data = open_data([str(tmp_path / "v0.parquet")])
    assert [sample.answer for sample in data] == ["C", "B", "A"]
    assert all(shows(sample.images[0], number) for number, sample in enumerate(data))
    assert all(sample.messages == ASKED for sample in data)


def test_mm_eureka_jsonl(tmp_path: Path) -> None:
    inside, elsewhere = save(tmp_path / "0.png"), save(tmp_path / "a b" / "1.png", 1)
    chat = [{"role": "system", "content": "Think."}, {"role": "user", "content": "What is 1 + 1?"}]
    records = [
        mm_eureka(f"file://{inside}", "5"),
        mm_eureka(elsewhere.as_uri(), "6"),
        {"id": "7", "message": json.dumps(chat), "answer": "$2$"},
    ]
    one, two, text_only = open_data([str(write_lines(tmp_path / "mmk12.jsonl", records))])
    assert (one.id, one.answer, one.messages) == ("5", "C", ASKED) and shows(one.images[0])
    assert "%20" in elsewhere.as_uri() and shows(two.images[0], 1)
    assert text_only.answer == "$2$" and text_only.messages[0] == chat[0] and not text_only.images


def test_easy_r1_paths(tmp_path: Path) -> None:
    save(tmp_path / "Images/0.png"), save(tmp_path / "Images/1.png", 1)
    records = [easy_r1(), easy_r1(["Images/0.png", "Images/1.png"], "First <image>, then <image>.")]
    one, two = open_data([str(write_lines(tmp_path / "easy.jsonl", records))])
    assert one.messages == ASKED and one.answer == "C" and shows(one.images[0])
    assert two.messages[0]["content"] == [
        {"type": "text", "text": "First "},
        {"type": "image"},
        {"type": "text", "text": ", then "},
        {"type": "image"},
        {"type": "text", "text": "."},
    ]
    assert shows(two.images[1], 1) and "response" not in one.meta


def test_easy_r1_parquet_of_datasets(tmp_path: Path) -> None:
    """As hiyouga/geometry3k: a list of images in each row, embedded."""
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "problem": datasets.Value("string"),
            "answer": datasets.Value("string"),
        }
    )
    rows = {"images": [[picture(0)], [picture(1), picture(2)], []], "problem": ["<image>a", "<image><image>b", "c"]}
    rows["answer"] = ["3", "\\sqrt{2}", "x"]
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "geometry.parquet"))
    data = open_data([str(tmp_path / "geometry.parquet")])
    assert [len(sample.images) for sample in data] == [1, 2, 0] and data[1].answer == "\\sqrt{2}"
    assert shows(data[0].images[0]) and shows(data[1].images[1], 2)


def test_vlm_r1_yaml(tmp_path: Path) -> None:
    (tmp_path / "refs").mkdir()
    array = [{**med_r1(f"Images/{n}.png"), "solution": [n, 2, 3, 4.5]} for n in range(10)]
    (tmp_path / "refs/rec.json").write_text(json.dumps(array))
    write_lines(tmp_path / "lines.jsonl", [{"id": n, **vlm_r1(answer="ABCD"[n % 4])} for n in range(10)])
    (tmp_path / "mix.yaml").write_text(
        "datasets:\n"
        "  - json_path: refs/rec.json\n    sampling_strategy: first:3\n"
        f"  - json_path: {tmp_path}/lines.jsonl\n    sampling_strategy: end:25%\n"
        "  - json_path: lines.jsonl\n    sampling_strategy: random:4\n"
        "  - json_path: lines.jsonl\n"
    )
    data = open_data([str(tmp_path / "mix.yaml")])
    assert len(data) == 3 + 3 + 4 + 10
    assert [sample.answer for sample in data[:3]] == [f"[{n}, 2, 3, 4.5]" for n in range(3)]
    assert [sample.id for sample in data[3:6]] == ["7", "8", "9"]
    drawn = [sample.id for sample in data[6:10]]
    assert len(set(drawn)) == 4 and drawn == [sample.id for sample in open_data([str(tmp_path / "mix.yaml")])[6:10]]
    assert str(data[0].images[0].path) == str(tmp_path / "refs/Images/0.png")  # beside its own file


@pytest.mark.parametrize("column", ["options", "choices"])
@pytest.mark.parametrize("given", [{"A": "CT", "B": "MRI", "C": None}, {"a": "CT", "b": "MRI"}, ["CT", "MRI"]])
def test_options_of_a_column_are_shown_where_the_answer_is_their_letter(column: str, given: Any) -> None:
    """Without them, B says nothing to the model."""
    asked = {"problem": "<image>Which modality?", "images": ["a.png"], column: given}
    lines = [
        {**asked, "answer": "B"},
        {**asked, "answer": "B", "problem": "<image>Which modality? A) CT, B) MRI"},
        {**asked, "answer": "MRI"},  # open-ended on purpose
        {**asked, "answer": "E"},
    ]
    texts = [sample.messages[0]["content"][1]["text"] for sample in open_data([lines])]
    assert texts == [
        "Which modality?\nA) CT\nB) MRI", "Which modality? A) CT, B) MRI", "Which modality?", "Which modality?",
    ]  # fmt: skip
    solved = {"problem": "Which?", "solution": "<answer> b </answer>", column: given}
    turns = {"conversations": vlm_r1(question="Which?", answer="(A)")["conversations"], column: given}
    for record in (solved, turns):
        (sample,) = open_data([[record]])
        assert sample.messages[0]["content"] == [{"type": "text", "text": "Which?\nA) CT\nB) MRI"}]


def test_options_that_bring_their_letters() -> None:
    (sample,) = open_data([[{"problem": "Which?", "answer": "A", "options": ["A. CT", "B. MRI"]}]])
    assert sample.messages[0]["content"] == [{"type": "text", "text": "Which?\nA. CT\nB. MRI"}]


@pytest.mark.parametrize(
    "given",
    ["A) CT B) MRI", [], {}, {"A": 1}, [{"A": "CT"}], ["CT", 3], {"first": "CT"}, np.array(["CT"]), None],
)
def test_options_of_another_kind_are_left_alone(given: Any) -> None:
    (sample,) = open_data([[{"problem": "Which?", "answer": "A", "options": given}]])
    assert sample.messages[0]["content"] == [{"type": "text", "text": "Which?"}]


def test_several_files_and_folders(tmp_path: Path) -> None:
    save(tmp_path / "x/Images/0.png", 1), save(tmp_path / "y/Images/0.png", 2)
    lines = str(write_lines(tmp_path / "a.jsonl", [vlm_r1("Images/0.png")]))
    (tmp_path / "b.json").write_text(json.dumps([med_r1()]))
    folders = [str(tmp_path / "x"), str(tmp_path / "y")]
    one, two = open_data([lines, str(tmp_path / "b.json")], image_folders=folders)
    assert shows(one.images[0], 1) and shows(two.images[0], 2)
    one, two = open_data([lines, str(tmp_path / "b.json")], image_folders=folders[1:])
    assert shows(one.images[0], 2) and shows(two.images[0], 2)
    with pytest.raises(BadSettings, match="2 image folders for 3 data files"):
        open_data([lines] * 3, image_folders=folders)


def test_content_and_not_the_name_decides(tmp_path: Path) -> None:
    """Every layout in every container that can hold it, under names that say nothing or lie."""
    records = [vlm_r1(), med_r1(), easy_r1(), mm_eureka("file:///x.png")]
    for record in records:
        write_lines(tmp_path / "lines.json", [record])
        (tmp_path / "array.jsonl").write_text(json.dumps([record]))
        pq.write_table(pa.Table.from_pylist([record]), tmp_path / "table.txt")
        for name in ("lines.json", "array.jsonl", "table.txt"):
            (sample,) = open_data([str(tmp_path / name)])
            assert sample.answer == "C" and sample.messages == ASKED


def test_data_sets_that_datasets_loads(tmp_path: Path) -> None:
    """What stands behind a hub name, with a folder in the hub's place: `datasets.load_dataset`, images undecoded."""
    rows = {"image": [picture(1), None], "problem": ["a", "b"], "solution": ["A", "B"]}
    features = datasets.Features({"image": datasets.Image()} | {n: datasets.Value("string") for n in list(rows)[1:]})
    (tmp_path / "set/data").mkdir(parents=True)
    for split in ("train", "test"):
        held = datasets.Dataset.from_dict(rows, features=features)
        held.to_parquet(str(tmp_path / f"set/data/{split}-00000-of-00001.parquet"))
    for name in (f"{tmp_path}/set", f"{tmp_path}/set@test"):
        source = open_hub(name)
        assert source.path == name and source.record(0)["image"]["bytes"].startswith(b"\x89PNG")
        one, two = Dataset([Part(source, PROBLEM_SOLUTION, source.folder)])
        assert shows(one.images[0], 1) and not two.images and one.meta["source"] == f"{name}: row 1"
    with pytest.raises(BadData, match="no data set of the hub that can be loaded"):
        open_hub(f"{tmp_path}/set@dev")
    with pytest.raises(BadData, match=r"name the files in it \(data/test-00000-of-00001\.parquet, data/train"):
        open_data([f"{tmp_path}/set"])


def test_hub_name_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadData, match="someone/no-such-set: no such file, and no data set of the hub"):
        open_data(["someone/no-such-set"])


@pytest.mark.parametrize(("package", "name"), [("pyarrow.parquet", "t.parquet"), ("datasets", "someone/set")])
def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str) -> None:
    pq.write_table(pa.Table.from_pylist([easy_r1()]), tmp_path / "t.parquet")
    monkeypatch.setitem(__import__("sys").modules, package, None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadData, match=r'pip install "grpo-fast\[data\]"'):
        open_data([name])
