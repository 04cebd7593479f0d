"""Every hand-judged completion, and properties that hold for any."""

import time

import pytest
from completions import MODALITY, ROWS, Row
from hypothesis import given
from hypothesis import strategies as st

from grpo_fast.errors import BadReward
from grpo_fast.rewards.answers import graded, is_correct, options
from grpo_fast.rewards.extract import extract
from grpo_fast.rewards.format import FORMS, follows_format

NUMBERED = [pytest.param(row, id=f"{i}-{row.completion[-24:]!r}") for i, row in enumerate(ROWS)]


def test_the_table_is_large_and_has_no_row_twice() -> None:
    assert len(ROWS) >= 200
    assert len(set(ROWS)) == len(ROWS)
    assert {row.right for row in ROWS} == {"yes", "lenient", "no"}


@pytest.mark.parametrize("row", NUMBERED)
def test_hand_judged(row: Row) -> None:
    text, asked = row.completion, {"question": row.question, "method": row.method}
    assert extract(text) == row.said
    assert extract(text, lenient=True) == row.loosely
    assert is_correct(text, row.gold, **asked) == (row.right == "yes")
    assert is_correct(text, row.gold, **asked, lenient=True) == (row.right != "no")
    assert [style for style in FORMS if follows_format(text, style)] == ([row.form] if row.form else [])


WORDS = st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "C", "(C)", "\\boxed{", "}", "X-ray", "\n",
                         "is", "answer", "$", "3", "|", "no", "**", "\u200b", "½", "^", "A) "])  # fmt: skip


@given(st.lists(WORDS, max_size=14).map("".join), st.text(max_size=30))
def test_any_text_is_judged_without_an_error(completion: str, gold: str) -> None:
    strict = is_correct(completion, gold, question=MODALITY)
    if strict:
        assert is_correct(completion, gold, question=MODALITY, lenient=True)
        assert extract(completion)
    assert graded(completion, "C", question=MODALITY) in (0.0, 1.0)


@given(st.text(alphabet="abc C)(|<>/3.\\$", max_size=20))
def test_reasoning_never_changes_what_the_tag_says(thought: str) -> None:
    assert extract(f"<think>{thought}</think><answer>C</answer>") == "C"


@given(st.permutations("ABCD"), st.integers(0, 3))
def test_exactly_one_option_is_right(letters: list[str], gold: int) -> None:
    asked = {"question": MODALITY}
    assert sum(is_correct(f"<answer>{one}</answer>", "ABCD"[gold], **asked) for one in letters) == 1
    texts = options(MODALITY).values()
    assert sum(is_correct(f"<answer>{one}</answer>", "ABCD"[gold], **asked) for one in texts) == 1


# what a model may repeat up to its limit: spaces, tags, brackets, boxes, digits, markers
@pytest.mark.parametrize(
    "again", [" ", "<think>", "</think><answer>", "(", "\\boxed{", "1 ", "C, ", "A) ", "answer is ", "^"]
)
@pytest.mark.parametrize("around", ["{}", "<answer>x{}(C</answer>", "<answer>C{}("])
def test_reading_takes_linear_time(again: str, around: str) -> None:
    text = around.replace("{}", (again * 20_000)[:20_000])
    started = time.process_time()
    for gold, question in (("C", MODALITY), ("3", "How many?"), ("Edema|Mass", "Which?"), ("liver", "Which?")):
        is_correct(text, gold, question=question, lenient=True)
    follows_format(text)
    assert time.process_time() - started < 2  # milliseconds; 7 s where a pattern backtracks


def test_labels_are_graded() -> None:
    gold = "Edema|Mass|Pneumonia"
    for said, worth in (("Edema", 1.0), ("Mass|Edema", 2.0), (gold, 3.0), ("Edema|Hernia", 0.0), ("Hernia", 0.0)):
        assert graded(f"<answer>{said}</answer>", gold) == worth
    assert graded("<answer>No Finding</answer>", "No Finding") == 0.25
    assert is_correct("<answer>No Finding</answer>", "No Finding")
    assert graded("<answer>Edema|Edema|Edema</answer>", gold) == 1.0


# one line, lines of their own, brackets, lower case, letters in the question's text, a styled prompt, two runs, none
@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("Which? A)CT, B)MRI", {"A": "CT", "B": "MRI"}),
        ("Which?\nA. CT\nB. MRI\nAnswer with the option's letter.", {"A": "CT", "B": "MRI"}),
        ("Which? (A) CT (B) MRI (C) none of these", {"A": "CT", "B": "MRI", "C": "none of these"}),
        ("Which? a) CT b) MRI", {"A": "CT", "B": "MRI"}),
        ("Who?\nA: lufthansa\nB: delta", {"A": "lufthansa", "B": "delta"}),
        ("Is this hepatitis A. or B. type? A) yes, acute B) no", {"A": "yes, acute", "B": "no"}),
        ("Which? A) CT, B) MRI Your task: 1. Think (A, B, C, D,...)", {"A": "CT", "B": "MRI"}),
        ("A) old B) older. Which? A) CT B) MRI", {"A": "CT", "B": "MRI"}),
        ("Which? Ａ）CT Ｂ）MRI", {"A": "CT", "B": "MRI"}),
        ("Which? A) 1,200 cells, B) 3.5 cm", {"A": "1,200 cells", "B": "3.5 cm"}),
        ("Vitamin A) is what?", {}),
        ("What is shown?", {}),
        ("", {}),
    ],
)
def test_options(question: str, found: dict[str, str]) -> None:
    assert options(question) == found


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(BadReward, match=r"fuzzy.*letter"):
        is_correct("<answer>C</answer>", "C", method="fuzzy")


def test_formulas_off_the_main_thread() -> None:
    from threading import Thread

    pytest.importorskip("math_verify")
    seen: list[bool] = []
    thread = Thread(target=lambda: seen.append(is_correct("<answer>$\\sqrt{8}$</answer>", "$2\\sqrt{2}$")))
    thread.start()
    thread.join()
    assert seen == [True]
