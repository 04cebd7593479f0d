"""The wording of questions and the form of completions."""

from __future__ import annotations

from pathlib import Path

import pytest
from data.owners import QUESTION, vlm_r1, write_lines

from grpo_fast.data import open_data
from grpo_fast.data.prompts import prompt_style
from grpo_fast.errors import BadSettings
from grpo_fast.types import Sample

THINK = (  # Med-R1's, from its public code
    "{Question} Your task: 1. Think through the question step by step, enclose your reasoning process in "
    "<think>...</think> tags. 2. Then provide the correct single-letter choice (A, B, C, D,...) inside "
    "<answer>...</answer> tags. 3. No extra information or text outside of these tags."
)
NO_THINK = (
    "{Question} Your task: 1. Provide the correct single-letter choice (A, B, C, D,...) inside <answer>...</answer> "
    "tags. 2. No extra information or text outside of this tag."
)


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return open_data([str(write_lines(tmp_path / "t.jsonl", [vlm_r1()]))])[0]


@pytest.mark.parametrize(("name", "template"), [("think", THINK), ("no-think", NO_THINK), ("plain", "{Question}")])
def test_med_r1s_words(sample: Sample, name: str, template: str) -> None:
    style = prompt_style(name)
    worded = style(sample)
    assert style.name == name and style.template == template
    text = template.replace("{Question}", QUESTION)
    assert worded.messages == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    assert sample.messages[0]["content"][1]["text"] == QUESTION  # the raw question is left alone
    assert worded.images is sample.images and worded.answer == "C"


def test_demonstrations() -> None:
    for name, form in {
        "think": "<think>Ribs.</think><answer>C</answer>",
        "plain": "<think>Ribs.</think><answer>C</answer>",
        "no-think": "<answer>C</answer>",
        "think-after": "<answer>C</answer><think>Ribs.</think>",
    }.items():
        assert prompt_style(name).demonstration("C", "Ribs.") == form
    assert prompt_style("think").demonstration("C") == "<think></think><answer>C</answer>"


def test_templates_and_files(sample: Sample, tmp_path: Path) -> None:
    style = prompt_style('Look: {Question} Answer in {"json"} inside <answer></answer>.')
    assert style(sample).messages[0]["content"][1]["text"] == (
        f'Look: {QUESTION} Answer in {{"json"}} inside <answer></answer>.'
    )
    assert style.form == "no-think" and style.demonstration("C", "x") == "<answer>C</answer>"
    (tmp_path / "mine.txt").write_text("{Question}\nFirst <answer>, then <think>.\n", encoding="utf-8-sig")
    style = prompt_style(str(tmp_path / "mine.txt"))
    assert (style.name, style.form) == ("mine", "think-after") and style.template.endswith("<think>.")
    for wrong, reason in {
        "thnik": "no prompt style 'thnik': did you mean think?",
        "Just answer.": "known are think, no-think, think-after, plain, a text with {Question}",
        "{Question} {Question}": "must hold {Question} once, it does 2 times",
    }.items():
        with pytest.raises(BadSettings, match=reason.replace("{", r"\{").replace("?", r"\?")):
            prompt_style(wrong)
    (tmp_path / "none.txt").write_text("Answer.")
    with pytest.raises(BadSettings, match=r"none\.txt must hold \{Question\} once, it does 0 times"):
        prompt_style(str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    ("content", "worded"),
    [
        ("Q?", "<Q?>"),
        ([{"type": "text", "text": "Q?"}, {"type": "image"}], ["<Q?", None, ">"]),
        ([{"type": "text", "text": "A"}, {"type": "image"}, {"type": "text", "text": "B"}], ["<A", None, "B>"]),
        ([{"type": "image"}, {"type": "image"}, {"type": "text", "text": "B"}], [None, None, "<B>"]),
    ],
)
def test_images_keep_their_place(content, worded) -> None:
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    style = prompt_style("<{Question}>")
    messages = style(Sample("s", [*earlier, {"role": "user", "content": content}])).messages
    assert messages[:2] == earlier
    found = messages[2]["content"]
    assert (found if isinstance(found, str) else [part.get("text") for part in found]) == worded
