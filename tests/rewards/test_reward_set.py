"""The set of rewards, the small rewards, and gold answers that no completion could meet."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rewards_lab import sample, tagged

from grpo_fast.errors import BadReward
from grpo_fast.rewards import RewardSet, check_gold
from grpo_fast.rewards.accuracy import question_of
from grpo_fast.rewards.length import length
from grpo_fast.rewards.repetition import repetition
from grpo_fast.types import Sample

TEXTS = st.lists(
    st.sampled_from([tagged("C"), tagged("B"), "C", "", "a b c d e f g " * 9, "word " * 400]), min_size=1, max_size=6
)


def test_names_weights_and_total() -> None:
    with RewardSet.of(["accuracy", "format", "repetition"], [1.0, 0.5, 2.0]) as rewards:
        assert rewards.names == ("accuracy", "format", "repetition")
        assert rewards.weights.tolist() == [1.0, 0.5, 2.0] and rewards.weights.dtype == torch.float32
        (row,) = rewards([sample()], [(tagged("C"), "C", "<answer>C</answer>")])
        assert row["accuracy"].tolist() == [1.0, 0.0, 1.0]
        assert row["format"].tolist() == [1.0, 0.0, 0.0]
        assert rewards.total(row).tolist() == [1.5, 0.0, 1.0]
    assert RewardSet.of(["accuracy", "format"]).weights.tolist() == [1.0, 1.0]


def test_the_style_decides_the_format_and_how_answers_are_read() -> None:
    group = (tagged("C"), "<answer>C</answer>", "<answer>C</answer><think>x</think>", "The answer is C.")
    expected = {
        "think": ([1, 0, 0, 0], [1, 1, 1, 0]),
        "no-think": ([0, 1, 0, 0], [1, 1, 1, 0]),
        "think-after": ([0, 0, 1, 0], [1, 1, 1, 0]),
        "plain": ([1, 0, 0, 0], [1, 1, 1, 1]),
    }
    for style, (form, right) in expected.items():
        (row,) = RewardSet.of(["format", "accuracy"], style=style)([sample()], [group])
        assert (row["format"].tolist(), row["accuracy"].tolist()) == (form, right)


@given(TEXTS, st.randoms(use_true_random=False))
def test_a_reward_never_depends_on_the_group(group: list[str], chance: random.Random) -> None:
    rewards = RewardSet.of(["accuracy", "format", "repetition", "length"])
    (together,) = rewards([sample()], [group])
    order = list(range(len(group)))
    chance.shuffle(order)
    (shuffled,) = rewards([sample()], [[group[i] for i in order]])
    alone = rewards([sample()] * len(group), [[text] for text in group])
    for name in rewards.names:
        assert shuffled[name].tolist() == [together[name][i].item() for i in order]
        assert together[name].tolist() == [row[name].item() for row in alone]


@given(st.text(max_size=60).map(lambda text: text * 40))
def test_small_rewards_are_bounded(text: str) -> None:
    assert -1.0 < repetition(text) <= 0.0
    assert -0.2 <= length(text) <= 0.0


def test_repetition_by_hand() -> None:
    assert repetition("one two three four five") == 0.0  # below six words
    assert repetition("one two three four five six") == 0.0
    assert repetition("A b c d e f a B c d e f") == pytest.approx(-1 / 7)  # 7 n-grams, the last is the first
    assert repetition("go " * 12) == pytest.approx(-(1 - 1 / 7))
    assert repetition("a b a b", n=2) == pytest.approx(-1 / 3)


def test_length_by_hand() -> None:
    for words, worth in ((0, 0.0), (160, 0.0), (320, -0.1), (480, -0.2), (5000, -0.2)):
        assert length("word " * words) == pytest.approx(worth)


def test_a_right_answer_of_any_length_stays_above_a_wrong_one() -> None:
    with RewardSet.of(["accuracy", "length"]) as rewards:
        (row,) = rewards(
            [sample()], [(tagged("word " * 5000).replace("<answer>", "") + "<answer>C</answer>", tagged("B"))]
        )
        right, wrong = rewards.total(row).tolist()
        assert right > wrong


# unknown, near a known name, twice the same, none, weights of another number or not finite, settings
@pytest.mark.parametrize(
    ("specs", "given_settings", "told"),
    [
        (["acuracy"], {}, "did you mean accuracy"),
        (["beauty"], {}, "unknown reward 'beauty': There are accuracy, format"),
        (["format", "format"], {}, "two rewards are called 'format'"),
        ([], {}, "no reward"),
        (["format"], {"weights": [1.0, 2.0]}, "2 weights for 1 rewards"),
        (["format"], {"weights": [float("nan")]}, "finite"),
        (["format"], {"timeout": 0.0}, "timeout above 0"),
        (["format"], {"workers": -1}, "workers"),
    ],
)
def test_what_cannot_be_a_set(specs: list[str], given_settings: dict, told: str) -> None:
    with pytest.raises(BadReward, match=told):
        RewardSet.of(specs, **given_settings)


def test_groups_and_samples_have_to_match() -> None:
    with pytest.raises(ValueError, match="1 completions for 2 samples"):
        RewardSet.of(["format"])([sample(), sample()], [("x",)])


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (sample(answer=None), "sample train.jsonl:7 has no gold answer"),
        (sample(answer="  "), "sample train.jsonl:7 has no gold answer"),
        (sample(answer="E"), "sample train.jsonl:7: its gold answer 'E' cannot be read"),
        (sample(answer="liver", question="Which?", reward_method="mcq"), "'liver' cannot be read as a letter answer"),
        (sample(answer="liver", question="Which?", reward_method="numeric"), "as a numeric answer"),
        (sample(answer="maybe", question="Is it?", reward_method="yes_no"), "as a yes-no answer"),
        (sample(answer="?!", question="Which?"), "cannot be read as an answer"),
        (
            sample(reward_method="od_ap"),
            "train.jsonl:7: unknown accu_reward_method 'od_ap': use one of default, mcq, yes_no",
        ),
    ],
)
def test_gold_answers_that_no_completion_could_meet(one, told: str) -> None:
    with pytest.raises(BadReward, match=told):
        check_gold(one)
    with pytest.raises(BadReward, match=told):
        RewardSet.of(["accuracy"]).check(one)
    RewardSet.of(["format"]).check(one)


# VLM-R1's method of a sample, its gold, an answer that the method takes and one that it does not
@pytest.mark.parametrize(
    ("method", "gold", "right", "wrong"),
    [
        ("default", "C", "X-ray", "CT"),
        ("mcq", "C", "C. X-ray", "A"),
        ("yes_no", "Yes, clearly", "yes", "no"),
        ("math", "1/2", "\\frac{2}{4}", "2"),
        ("numeric", "3 lesions", "3", "4 lesions"),
        ("all_match", "C", "c.", "X-ray"),
        ("multi_label", "Mass", "mass", "Mass|Edema"),
    ],
)
def test_reward_methods_of_vlm_r1(method: str, gold: str, right: str, wrong: str) -> None:
    one = sample(answer=gold, reward_method=method)
    check_gold(one)
    (row,) = RewardSet.of(["accuracy"])([one], [(tagged(right), tagged(wrong))])
    assert row["accuracy"].tolist() == [1.0, 0.0]


def test_numbers_as_gold_answers() -> None:
    one = sample(answer=3, question="How many?")
    check_gold(one)
    (row,) = RewardSet.of(["accuracy"])([one], [(tagged("3"), tagged("4"))])
    assert row["accuracy"].tolist() == [1.0, 0.0]


def test_the_patients_context_is_no_option() -> None:
    """ "A) smoker" of a history must not be taken for the answer's text."""
    question, context = "What is shown? A) CT B) MRI", "History: A) smoker, B) gout, C) asthma"
    parts = [{"type": "text", "text": context}, {"type": "text", "text": question}]
    sample = Sample("s", [{"role": "user", "content": parts}], answer="B", meta={"context": context})
    assert question_of(sample) == question
    with RewardSet.of(["accuracy"]) as rewards:
        said = ["<think></think><answer>MRI</answer>", "<think></think><answer>gout</answer>"]
        assert rewards([sample], [said])[0]["accuracy"].tolist() == [1.0, 0.0]
