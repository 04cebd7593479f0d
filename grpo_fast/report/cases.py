"""Case studies: an image, its question and gold answer, and a group's completions with what they earned."""

from __future__ import annotations

import re
from typing import Any

from grpo_fast.report.folder import RunFolder, items, mapping, number, text
from grpo_fast.report.markup import Markup, tag
from grpo_fast.report.names import compact, label, signed
from grpo_fast.report.pictures import picture
from grpo_fast.report.samples import completions_of, is_correct

LONGEST = 3000  # characters of a completion
MOST_COMPLETIONS = 16
MOST_PICTURES = 4
ANSWER = re.compile(r"<answer>.*?</answer>", re.DOTALL)
GLYPHS = {True: "✓", False: "✗", None: "·"}
VERDICTS = {True: "right", False: "wrong", None: "not judged"}


def case(run: RunFolder, row: dict[str, Any], place: int, *, named: bool) -> Markup:
    completions = completions_of(row)
    outcomes = [is_correct(one) for one in completions]
    right, wrong = outcomes.count(True), outcomes.count(False)
    phase, step = text(row.get("phase")), number(row.get("step"))
    modality, kind = text(row.get("modality")), text(row.get("question_type"))
    where = f"{'evaluation' if phase == 'eval' else label(phase)}, step {compact(step)}"
    about = " · ".join(label(one) for one in (modality, kind) if one)
    dots = "".join(GLYPHS[one] for one in outcomes[:MOST_COMPLETIONS])
    score = f"{right} of {right + wrong} right" if right + wrong else "not judged"
    summary = tag(
        "summary",
        tag("span", class_="thumb"),
        tag("span", _shortened(text(row.get("question")).strip(), 160) or "(no question)", class_="ask", dir="auto"),
        tag("span", (run.name + " · " if named else "") + where + (" · " + about if about else ""), class_="where"),
        tag("span", tag("span", dots, class_="dots", aria_hidden="true"), " ", score, class_="score"),
    )
    body = tag(
        "div",
        tag("div", *_pictures(run, row), class_="pictures"),
        tag(
            "div",
            tag("p", _shortened(text(row.get("question")).strip(), LONGEST), class_="question", dir="auto"),
            tag(
                "p", tag("span", "Gold answer", class_="label"), " ", tag("bdi", text(row.get("answer"))), class_="gold"
            ),
        ),
        class_="asked",
    )
    more = len(completions) - MOST_COMPLETIONS
    return tag(
        "details",
        summary,
        body,
        tag("ol", *[_completion(one) for one in completions[:MOST_COMPLETIONS]], class_="completions"),
        tag("p", f"{more} more completions are in samples.jsonl.", class_="muted") if more > 0 else None,
        class_="case",
        id=f"case-{place}",
        data_run=run.name,
        data_phase="evaluation" if phase == "eval" else phase,
        data_step=compact(step),
        data_modality=modality,
        data_type=kind,
        data_right=right,
        data_wrong=wrong,
    )


def _pictures(run: RunFolder, row: dict[str, Any]) -> list[Markup]:
    names = [text(one) for one in items(row.get("images"))]
    found = []
    for number_, name in enumerate(names[:MOST_PICTURES], 1):
        made = picture(run.path, name)
        if isinstance(made, str):
            found.append(tag("p", f"No picture: {made}.", class_="muted missing"))
        else:
            found.append(
                tag("img", src=made.uri, width=made.width, height=made.height, alt=f"Image {number_} of the question")
            )
    if len(names) > MOST_PICTURES:
        found.append(tag("p", f"{len(names) - MOST_PICTURES} more images", class_="muted"))
    return found


def _completion(one: dict[str, Any]) -> Markup:
    verdict, advantage, reward = is_correct(one), number(one.get("advantage")), number(one.get("reward"))
    rewards = {name: number(value) for name, value in mapping(one.get("rewards")).items()}
    facts = [tag("span", f"{GLYPHS[verdict]} {VERDICTS[verdict]}", class_=f"verdict {_class(verdict)}")]
    if reward is not None:
        facts.append(tag("span", tag("span", "reward", class_="label"), f" {compact(reward)}"))
    facts += [
        tag("span", tag("span", name, class_="label"), f" {compact(value)}")
        for name, value in rewards.items() if len(rewards) > 1 or reward is None
    ]  # fmt: skip
    if (tokens := number(one.get("tokens"))) is not None:
        facts.append(tag("span", f"{tokens:.0f} ", tag("span", "tokens", class_="label")))
    if one.get("finished") is False:
        facts.append(tag("span", "cut at the limit", class_="cut"))
    if advantage is not None:
        facts.append(tag("span", tag("span", "advantage", class_="label"), f" {signed(advantage)} ", _bar(advantage)))
    said = text(one.get("text"))
    return tag(
        "li",
        tag("div", *facts, class_="facts"),
        tag("div", *_worded(_shortened(said, LONGEST)), class_="text", dir="auto")
        if said.strip()
        else tag("div", "(nothing)", class_="text muted"),
        class_=_class(verdict),
    )


def _class(verdict: bool | None) -> str:
    return {True: "right", False: "wrong", None: "unjudged"}[verdict]


def _bar(advantage: float) -> Markup:
    """From −2.5 to 2.5 deviations, 0 in the middle."""
    end = 30 + 12 * min(2.5, max(-2.5, advantage))
    return tag(
        "svg",
        tag("rect", x=f"{min(30.0, end):.1f}", y=2, width=f"{abs(end - 30):.1f}", height=6),
        tag("line", x1=30, x2=30, y1=0, y2=10),
        viewBox="0 0 60 10", class_="lean plus" if advantage >= 0 else "lean minus", aria_hidden="true",
    )  # fmt: skip


def _worded(said: str) -> list[str]:
    """The first answer tag is what is judged: it is marked."""
    found = ANSWER.search(said)
    if not found:
        return [said]
    return [said[: found.start()], tag("mark", found.group()), said[found.end() :]]


def _shortened(said: str, most: int) -> str:
    if len(said) <= most:
        return said
    return f"{said[:most]}… ({len(said) - most:,} more characters)" if most >= LONGEST else said[:most].rstrip() + "…"


def filters(rows: list[tuple[RunFolder, dict[str, Any]]]) -> Markup:
    """Choices are offered where there are several."""

    def choices(name: str, title: str, values: list[tuple[str, str]]) -> Markup | None:
        if len(values) < 2:
            return None
        options = [tag("option", "any", value="")] + [tag("option", said, value=v) for v, said in values]
        return tag("label", tag("span", title, class_="label"), tag("select", *options, data_filter=name))

    def seen(key: str) -> list[tuple[str, str]]:
        return [(one, label(one)) for one in sorted({text(row.get(key)) for _, row in rows} - {""})]

    outcomes = [("has-right", "some right"), ("has-wrong", "some wrong"), ("mixed", "right and wrong"),
                ("all-right", "all right"), ("all-wrong", "all wrong")]  # fmt: skip
    phases = sorted({"evaluation" if (p := text(row.get("phase"))) == "eval" else p for _, row in rows} - {""})
    steps = sorted({found for _, row in rows if (found := number(row.get("step"))) is not None})
    runs = list(dict.fromkeys(run.name for run, _ in rows))
    return tag(
        "form",
        tag("label", tag("span", "search", class_="label"),
            tag("input", type="search", data_filter="search", placeholder="any words")),
        choices("outcome", "outcome", outcomes),
        choices("run", "run", [(one, one) for one in runs]),
        choices("phase", "phase", [(one, label(one)) for one in phases]),
        choices("step", "step", [(compact(one), compact(one)) for one in steps]),
        choices("modality", "modality", seen("modality")),
        choices("type", "question type", seen("question_type")),
        tag("div", tag("output", aria_live="polite"), tag("button", "open all", type="button", data_open=True),
            tag("button", "reset", type="reset"), class_="actions"),
        class_="filters",
    )  # fmt: skip
