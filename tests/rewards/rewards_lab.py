"""Samples, and reward files as their owners write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpo_fast.types import Sample

QUESTION = "Which modality? A) CT, B) MRI, C) X-ray, D) Ultrasound"


def sample(
    name: str = "train.jsonl:7", answer: Any = "C", question: str = QUESTION, images: tuple = (), **meta: Any
) -> Sample:
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    return Sample(name, [{"role": "user", "content": content}], images, answer=answer, meta=meta)


def write(folder: Path, text: str, name: str = "rewards.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def tagged(answer: str) -> str:
    return f"<think>x</think><answer>{answer}</answer>"


TRL_FILE = """
import re

def accuracy(completions, solution, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if s in c else 0.0 for c, s in zip(contents, solution)]

def by_modality(prompts, completions, modality, hospital, **kwargs):
    assert all(p[-1]["role"] == "user" for p in prompts)
    return [0.5 if (m, h) == ("ct", "Basel") else 0.0 for m, h in zip(modality, hospital)]

def only_math(completions, task, **kwargs):
    return [None if t != "math" else 1.0 for t in task]

async def judge(completions, **kwargs):
    import asyncio
    await asyncio.sleep(0)
    return [float(len(c[0]["content"])) for c in completions]

def width(completions, images, image, **kwargs):
    return [i[0].width + one.height / 1000 for i, one in zip(images, image)]

def strict(completions, solution):
    return [1 if completion[0]["content"] == s else 0 for completion, s in zip(completions, solution)]

def tokens(completion_ids, **kwargs):
    return [-float(len(ids)) for ids in completion_ids]
"""

# VLM-R1's and R1-V's way: the gold answer may or may not stand in tags, and further columns come by keyword
VLM_R1_FILE = """
import re

def accuracy_reward(completions, solution, **kwargs):
    rewards = []
    contents = [completion[0]["content"] for completion in completions]
    for content, sol, method in zip(contents, solution, kwargs.get("accu_reward_method")):
        sol_match = re.search(r"<answer>(.*?)</answer>", sol)
        truth = sol_match.group(1).strip() if sol_match else sol.strip()
        match = re.search(r"<answer>(.*?)</answer>", content, re.DOTALL)
        said = match.group(1).strip() if match else content.strip()
        assert method == "mcq" and kwargs.get("image_path")[0] == ["scan.png"] and kwargs.get("problem")[0]
        rewards.append(1.0 if said == truth else 0.0)
    return rewards
"""

# VLM-R1's reward of boxes reads the gold one between the tags that its loader writes around every solution
VLM_R1_BOX_FILE = """
import json
import re

def iou_reward(completions, solution, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    rewards = []
    for content, sol in zip(contents, solution):
        sol = json.loads(re.findall(r"<answer>(.*?)</answer>", sol, re.DOTALL)[-1].strip())
        found = re.search(r"\\[(\\d+),\\s*(\\d+),\\s*(\\d+),\\s*(\\d+)]", content)
        rewards.append(1.0 if found and [int(one) for one in found.groups()] == sol else 0.0)
    return rewards
"""

EASYR1_BATCH_FILE = """
import re
from typing import Any

REWARD_NAME = "r1v"
REWARD_TYPE = "batch"

def format_reward(response: str) -> float:
    return 1.0 if re.fullmatch(r"<think>.*?</think>\\s*<answer>.*?</answer>", response, re.DOTALL) else 0.0

def accuracy_reward(response: str, ground_truth: str) -> float:
    found = re.search(r"<answer>(.*?)</answer>", response)
    return 1.0 if found and found.group(1).strip() == ground_truth.strip() else 0.0

def compute_score(reward_inputs: list[dict[str, Any]], format_weight: float = 0.1) -> list[dict[str, float]]:
    if not isinstance(reward_inputs, list):
        raise ValueError("Please use `reward_type=batch` for this reward function.")
    scores = []
    for reward_input in reward_inputs:
        format_score = format_reward(reward_input["response"])
        accuracy_score = accuracy_reward(reward_input["response"], reward_input["ground_truth"])
        scores.append({
            "overall": (1 - format_weight) * accuracy_score + format_weight * format_score,
            "format": format_score,
            "accuracy": accuracy_score,
        })
    return scores
"""

EASYR1_ONE_FILE = """
from typing import Any

def compute_score(reward_input: dict[str, Any], format_weight: float = 0.5) -> dict[str, float]:
    if not isinstance(reward_input, dict):
        raise ValueError("Please use `reward_type=sequential` for this reward function.")
    right = 1.0 if reward_input["ground_truth"] in reward_input["response"] else 0.0
    return {"overall": right - 0.01 * reward_input["response_length"], "accuracy": right}
"""

EASYR1_EARLIER_FILE = """
from typing import Dict, List

def compute_score(predicts: List[str], ground_truths: List[str], format_weight: float = 0.1) -> List[Dict[str, float]]:
    scores = [float(truth in predict) for predict, truth in zip(predicts, ground_truths)]
    return [{"overall": score, "format": 0.0, "accuracy": score} for score in scores]

def one(predict: str, ground_truth: str) -> Dict[str, float]:
    return {"overall": float(ground_truth in predict)}
"""

MM_EUREKA_FILE = """
import re
import torch

def get_response_from_query(q: str):
    pos = re.search(r"<\\|im_start\\|>assistant\\n", q)
    return "" if pos is None else q[pos.end():].replace("<|im_end|>", "").strip()

def reward_func(queries, prompts, labels):
    rewards, accuracy = [], []
    for query, prompt, answer in zip(queries, prompts, labels):
        response = get_response_from_query(query)
        assert query.startswith(prompt) and response
        accuracy.append(1.0 if f"<answer>{answer}</answer>" in response else 0.0)
        rewards.append(accuracy[-1] + 0.5)
    return {"rewards": torch.tensor(rewards, dtype=torch.float32), "accuracy_rewards": torch.tensor(accuracy)}

def plain(queries, prompts, labels, **kwargs):
    return torch.ones(len(queries), 1)
"""
