"""Reward files of other trainers, unchanged, and what is said of those that cannot be used."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from rewards_lab import (
    EASYR1_BATCH_FILE,
    EASYR1_EARLIER_FILE,
    EASYR1_ONE_FILE,
    MM_EUREKA_FILE,
    TRL_FILE,
    VLM_R1_BOX_FILE,
    VLM_R1_FILE,
    sample,
    tagged,
    write,
)

from grpo_fast.data import open_data
from grpo_fast.errors import BadReward, RunFailed
from grpo_fast.rewards import RewardSet

GROUP = (tagged("C"), tagged("B"), "C")
OPENED: list[str] = []


def picture() -> Image.Image:
    OPENED.append("picture")
    return Image.new("RGB", (40, 30))


def reward(spec: str, one=None, group=GROUP, **given) -> list[float]:
    with RewardSet.of([spec]) as rewards:
        (row,) = rewards([one or sample()], [group], **given)
        (name,) = rewards.names
        assert row[name].dtype == torch.float32 and spec.endswith(f":{name}")
        return row[name].tolist()


def test_trl(tmp_path: Path) -> None:
    file = write(tmp_path, TRL_FILE)
    assert reward(f"{file}:accuracy") == [1.0, 0.0, 1.0]
    one = sample(modality="ct", columns={"hospital": "Basel", "task": "math"})
    assert reward(f"{file}:by_modality", one) == [0.5] * 3
    assert reward(f"{file}:judge") == [float(len(text)) for text in GROUP]
    assert reward(f"{file}:strict") == [0.0, 0.0, 1.0]
    assert reward(f"{file}:tokens", completion_ids=[[[1, 2], [1], []]]) == [-2.0, -1.0, 0.0]


def test_vlm_r1(tmp_path: Path) -> None:
    one = sample(reward_method="mcq", image_paths=["scan.png"])
    assert reward(write(tmp_path, VLM_R1_FILE) + ":accuracy_reward", one) == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("gold", ["[1, 2, 3, 4]", "<answer> [1, 2, 3, 4] </answer>", [1, 2, 3, 4]])
def test_vlm_r1_on_its_own_lines(tmp_path: Path, gold) -> None:
    """Its loader hands each solution over between answer tags, however the line has it."""
    turns = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": gold}]
    (one,) = open_data([[{"conversations": turns}]])
    group = (tagged("[1, 2, 3, 4]"), tagged("[1, 2, 3, 5]"))
    assert reward(write(tmp_path, VLM_R1_BOX_FILE) + ":iou_reward", one, group) == [1.0, 0.0]
    (own,) = open_data([[{"conversations": turns, "solution": "<answer>[1, 2, 3, 5]</answer>"}]])
    assert reward(write(tmp_path, VLM_R1_BOX_FILE) + ":iou_reward", own, group) == [0.0, 1.0]


def test_none_means_not_applicable(tmp_path: Path) -> None:
    file = write(tmp_path, TRL_FILE)
    with RewardSet.of(["accuracy", f"{file}:only_math"], [1.0, 2.0]) as rewards:
        vqa, maths = rewards(
            [sample(columns={"task": "vqa"}), sample(columns={"task": "math"})], [GROUP[:2], GROUP[:2]]
        )
        assert vqa["only_math"].isnan().all()
        assert rewards.total(vqa).tolist() == [1.0, 0.0]
        assert rewards.total(maths).tolist() == [3.0, 2.0]


def test_images_are_opened_once_and_only_when_looked_at(tmp_path: Path) -> None:
    file, one = write(tmp_path, TRL_FILE), sample(images=(picture,))
    OPENED.clear()
    assert reward(f"{file}:accuracy", one) == [1.0, 0.0, 1.0]
    assert not OPENED
    assert reward(f"{file}:width", one) == pytest.approx([40.03] * 3)
    assert len(OPENED) == 2  # `images` and `image`, for three completions


def test_installed_trl(tmp_path: Path) -> None:
    """TRL's own functions, imported into a user's file and named from there."""
    theirs = pytest.importorskip("trl.rewards")
    pytest.importorskip("math_verify")
    file = write(
        tmp_path,
        "from trl.rewards import accuracy_reward, think_format_reward\n"
        "from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment\n"
        "repeats = get_repetition_penalty_reward(2)\noverlong = get_soft_overlong_punishment(4, 2)\n",
    )
    group = ("<think>\nhalf\n</think>\nIt is \\boxed{\\frac{1}{2}}", "It is \\boxed{\\frac{1}{3}}", "<think>x")
    chats = [[{"role": "assistant", "content": text}] for text in group]
    one = sample(answer="$\\frac{1}{2}$")
    assert reward(f"{file}:accuracy_reward", one, group) == theirs.accuracy_reward(chats, [one.answer] * 3) == [1, 0, 0]
    assert reward(f"{file}:think_format_reward", one, group) == theirs.think_format_reward(chats) == [1, 0, 0]
    ids = [[1, 1, 1, 1], [1, 2, 3], [1] * 9]
    expected = theirs.get_repetition_penalty_reward(2)(ids)
    assert reward(f"{file}:repeats", one, group, completion_ids=[ids]) == pytest.approx(expected)
    expected = theirs.get_soft_overlong_punishment(4, 2)(ids)
    assert reward(f"{file}:overlong", one, group, completion_ids=[ids]) == pytest.approx(expected)


def test_unparseable_gold_in_installed_trl_is_not_applicable(tmp_path: Path) -> None:
    pytest.importorskip("trl.rewards")
    pytest.importorskip("math_verify")
    file = write(tmp_path, "from trl.rewards import accuracy_reward\n")
    with RewardSet.of([f"{file}:accuracy_reward"]) as rewards:
        (row,) = rewards([sample(answer="liver")], [("liver", "$1$")])
        assert row["accuracy_reward"].isnan().all() and rewards.total(row).tolist() == [0.0, 0.0]


def test_easyr1(tmp_path: Path) -> None:
    batch = write(tmp_path, EASYR1_BATCH_FILE, "math.py")
    assert reward(f"{batch}:compute_score") == pytest.approx([1.0, 0.1, 0.0])
    one = write(tmp_path, EASYR1_ONE_FILE, "one.py")
    found = reward(f"{one}:compute_score", completion_ids=[[[1], [1, 2], [1, 2, 3]]])
    assert found == pytest.approx([0.99, -0.02, 0.97])
    earlier = write(tmp_path, EASYR1_EARLIER_FILE, "earlier.py")
    assert reward(f"{earlier}:compute_score") == [1.0, 0.0, 1.0]
    assert reward(f"{earlier}:one") == [1.0, 0.0, 1.0]


def test_mm_eureka(tmp_path: Path) -> None:
    file = write(tmp_path, MM_EUREKA_FILE)
    prompts = ["<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n"]
    assert reward(f"{file}:reward_func", prompts=prompts) == [1.5, 0.5, 0.5]
    assert reward(f"{file}:reward_func", sample(images=(picture,))) == [1.5, 0.5, 0.5]
    assert reward(f"{file}:plain") == [1.0] * 3


def test_a_neighbour_does_not_hide_python(tmp_path: Path) -> None:
    write(tmp_path, "raise RuntimeError('not this one')\n", "tabnanny.py")
    text = (
        "import tabnanny\ndef f(completions, **k):\n    return [float(callable(tabnanny.check))] * len(completions)\n"
    )
    assert reward(write(tmp_path, text) + ":f") == [1.0] * 3


def test_a_file_may_import_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "WORTH = 0.25\n", "neighbour_of_rewards.py")
    text = (
        "def f(completions, **k):\n    from neighbour_of_rewards import WORTH\n    return [WORTH] * len(completions)\n"
    )
    assert reward(write(tmp_path, text) + ":f") == [0.25] * 3


# what is wrong with a file, and what the message has to hold
@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        ("def g(completions): ...", "f", r"no function 'f'; it has g"),
        ("f = 3", "f", r"no function 'f'; it has none"),
        ("x = 1\n\ndef f(:\n", "f", r"line 3, cannot be loaded: SyntaxError"),
        ("x = 1\nimport no_such_package_here\n", "f", r"line 2, cannot be loaded: ModuleNotFoundError"),
        ("import sys\nsys.exit(3)\n", "f", r"line 2, cannot be loaded: SystemExit: 3"),
        ("def f(a, b): ...", "f", r"parameters \(a, b\).*TRL.*EasyR1.*MM-EUREKA"),
        ("def f(completions, trainer_state): return [0.0]", "f", r"needs trainer_state.*train.jsonl:7.*solution"),
        ("def f(completion_ids): return [0.0]", "f", r"needs completion_ids"),
        (
            "def compute_score(reward_inputs): return [{'score': 1.0}]",
            "compute_score",
            r"without 'overall': it has score",
        ),
        ("def compute_score(reward_inputs): return {'overall': 1.0}", "compute_score", r"returned dict, not a list"),
        ("def reward_func(queries, prompts, labels): return {}", "reward_func", r"without 'rewards'"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, name: str, told: str) -> None:
    with pytest.raises(BadReward, match=rf"(?s){told}"):
        reward(write(tmp_path, text) + f":{name}")


@pytest.mark.parametrize(
    ("signature", "needs"),
    [
        ("compute_score(reward_inputs, max_response_length, overlong_buffer_length=8, *, factor)",
         "max_response_length, factor"),
        ("compute_score(reward_input, scale)", "scale"),
        ("compute_score(predicts, ground_truths, scale)", "scale"),
        ("compute_score(predict_str, ground_truth, mask)", "mask"),
        ("reward_func(queries, prompts, labels, scale)", "scale"),
    ],
)  # fmt: skip
def test_parameters_that_nothing_sets_are_named_before_the_run(tmp_path: Path, signature: str, needs: str) -> None:
    """EasyR1's dapo.py is told three of them by its settings."""
    file = write(tmp_path, f"def {signature}: ...\n")
    with pytest.raises(BadReward, match=rf"needs {needs}, which nothing here sets: give .* a default in the file"):
        RewardSet.of([f"{file}:{signature.partition('(')[0]}"])


def test_a_missing_file_and_an_unnamed_function(tmp_path: Path) -> None:
    with pytest.raises(BadReward, match=r"there is no file .*absent\.py"):
        RewardSet.of([f"{tmp_path}/absent.py:f"])
    with pytest.raises(BadReward, match="say which function"):
        RewardSet.of([f"{tmp_path}/absent.py"])


# what a function returns or raises, and what the message has to hold
@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return [1.0]", r"returned 1 rewards for 3 completions of sample train.jsonl:7"),
        ("return [0.0, float('nan'), 0.0]", r"returned nan.*train.jsonl:7, completion 2: '<think>x</think><answer>B"),
        ("return [0.0, 0.0, float('inf')]", r"returned inf.*completion 3: 'C'"),
        ("return [0.0, '1', 0.0]", r"returned '1', which is no finite number.*completion 2"),
        ("return 1.0", r"returned float, not a list"),
        ("return None", r"returned NoneType, not a list"),
        ("return [1 / ('B' not in c[0]['content']) for c in completions]",
         r"ZeroDivisionError.*rewards.py, line 2.*sample train.jsonl:7, completion 2: '<think>x</think><answer>B"),
        ("return kwargs['gold']", r"KeyError: 'gold'.*sample train.jsonl:7, completion 1"),
        ("import sys; sys.exit(1)", r"SystemExit"),
        ("assert len(completions) == 1; return [0.0]", r"AssertionError.*for none of its completions alone"),
    ],
)  # fmt: skip
def test_a_broken_reward_stops_the_run(tmp_path: Path, body: str, told: str) -> None:
    file = write(tmp_path, f"def f(completions, **kwargs):\n    {body}\n")
    with RewardSet.of([f"{file}:f"]) as rewards, pytest.raises(RunFailed, match=rf"(?s){told}"):
        rewards([sample()], [GROUP])


def test_a_lone_completion_is_not_asked_again_to_find_what_broke(tmp_path: Path) -> None:
    text = "asked = 0\ndef f(completions, **kwargs):\n    global asked\n    asked += 1\n    assert asked > 1\n"
    file = write(tmp_path, text + "    return [0.0]\n")
    with RewardSet.of([f"{file}:f"]) as rewards, pytest.raises(RunFailed, match=r"train\.jsonl:7, completion 1"):
        rewards([sample()], [("A",)])


def test_tensors_and_arrays_are_numbers(tmp_path: Path) -> None:
    text = "import numpy, torch\ndef f(completions, **k): return [torch.tensor(1.0), numpy.float32(0.5), True]\n"
    text += "def g(completions, **k): return numpy.arange(3)\n"
    file = write(tmp_path, text)
    assert reward(f"{file}:f") == [1.0, 0.5, 1.0]
    assert reward(f"{file}:g") == [0.0, 1.0, 2.0]
