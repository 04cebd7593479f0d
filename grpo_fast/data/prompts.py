"""How a question is put to the model, and what a completion of that form looks like."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from grpo_fast.data.context import is_context
from grpo_fast.errors import BadSettings
from grpo_fast.types import Sample

QUESTION = "{Question}"
CHOICE = "the correct single-letter choice (A, B, C, D,...) inside <answer>...</answer> tags."
# think and no-think are Med-R1's words; its think-after was never published: this one is ours.
TEMPLATES = {
    "think": f"{QUESTION} Your task: 1. Think through the question step by step, enclose your reasoning process in "
    f"<think>...</think> tags. 2. Then provide {CHOICE} 3. No extra information or text outside of these tags.",
    "no-think": f"{QUESTION} Your task: 1. Provide {CHOICE} 2. No extra information or text outside of this tag.",
    "think-after": f"{QUESTION} Your task: 1. Provide {CHOICE} 2. Then explain the answer step by step, enclose your "
    "reasoning process in <think>...</think> tags. 3. No extra information or text outside of these tags.",
    "plain": QUESTION,
}
Form = Literal["think", "no-think", "think-after"]


@dataclass(frozen=True, slots=True)
class PromptStyle:
    name: str
    template: str  # with {Question} once
    form: Form = "think"  # of a completion: reasoning first, none, or last

    def __call__(self, sample: Sample) -> Sample:
        """The sample with its last user turn worded; images, and the patient's context before it, keep their place."""
        if self.template == QUESTION:
            return sample
        turns = list(sample.messages)
        last = max((number for number, turn in enumerate(turns) if turn.get("role") == "user"), default=None)
        if last is None:
            raise BadSettings(f"sample {sample.id!r} has no user turn to put a question in")
        turns[last] = {**turns[last], "content": self._worded(turns[last]["content"], sample.meta)}
        return replace(sample, messages=turns)

    def demonstration(self, answer: str, reasoning: str = "") -> str:
        thought, said = f"<think>{reasoning}</think>", f"<answer>{answer}</answer>"
        return {"think": thought + said, "no-think": said, "think-after": said + thought}[self.form]

    def _worded(self, content: str | list[Mapping[str, Any]], meta: Mapping[str, Any]) -> str | list[Mapping[str, Any]]:
        before, _, after = self.template.partition(QUESTION)
        if isinstance(content, str):
            return before + content + after
        parts = [dict(part) for part in content]
        texts = [
            number for number, part in enumerate(parts) if part.get("type") == "text" and not is_context(part, meta)
        ]
        if not texts or texts[-1] < len(parts) - 1:  # an image comes last
            texts.append(len(parts))
            parts.append({"type": "text", "text": ""})
        parts[texts[0]]["text"] = before + parts[texts[0]]["text"]
        parts[texts[-1]]["text"] += after
        return [part for part in parts if part.get("type") != "text" or part["text"]]


def prompt_style(name_or_template_or_file: str) -> PromptStyle:
    given = name_or_template_or_file
    if given in TEMPLATES:
        return PromptStyle(given, TEMPLATES[given], _form(TEMPLATES[given]))
    if QUESTION in given:
        return _custom(given, "custom", "the prompt template")
    path = Path(given)
    if path.is_file():
        try:
            template = path.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BadSettings(f"the prompt template {given} cannot be read: {error}") from error
        return _custom(template, path.stem, f"the prompt template {given}")
    near = difflib.get_close_matches(given, TEMPLATES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise BadSettings(
        f"no prompt style {given!r}: {hint}known are {', '.join(TEMPLATES)}, a text with {QUESTION} in it, or a file "
        "that holds one"
    )


def _custom(template: str, name: str, what: str) -> PromptStyle:
    if template.count(QUESTION) != 1:
        raise BadSettings(f"{what} must hold {QUESTION} once, it does {template.count(QUESTION)} times")
    return PromptStyle(name, template, _form(template))


def _form(template: str) -> Form:
    """What the template asks for, by the order of its tags; think where it names none."""
    thought, said = template.find("<think>"), template.find("<answer>")
    if said >= 0 and thought < 0:
        return "no-think"
    return "think-after" if 0 <= said < thought else "think"
