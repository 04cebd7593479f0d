"""What the page holds, that it is well formed, and that nothing in it can run or load but its own scripts."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from report.make import SCRIPT, make_matrix, make_results, make_run, write_lines
from report.reading import Page

from grpo_fast.evaluate.stats import wilson
from grpo_fast.report.accuracy import MEAN, MODALITY, Row
from grpo_fast.report.curves import MAX_POINTS
from grpo_fast.report.folder import read_folders
from grpo_fast.report.page import build
from grpo_fast.report.tables import accuracy_table


def page_of(*folders: Path, cases: int = 60) -> Page:
    return Page(build(read_folders(folders), cases=cases))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def chart(page: Page, title: str) -> dict[str, Any]:
    (found,) = (one for one in page.data["charts"] if one["title"] == title)
    return found


def test_every_part_is_there(run_folder: Path) -> None:
    page = page_of(run_folder)
    assert not page.open
    sections = [found["id"] for found in page.all("section")]
    assert sections == [
        "overview", "curves", "accuracy", "heat-maps", "answer-lengths", "modalities", "case-studies", "settings",
        "environment",
    ]  # fmt: skip
    titles = {one["title"] for one in page.data["charts"]}
    assert titles >= {
        "Held-out accuracy", "Reward", "Reward · accuracy", "Reward · format", "KL to the reference", "Entropy",
        "Clipped share", "Length", "Gradient norm", "Learning rate", "Tokens a second",
    }  # fmt: skip
    assert len(page.all("figure", **{"data-chart": "0"})) == 1
    assert len([one for one in page.all("figure") if "data-chart" in one]) == len(page.data["charts"])
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert (link["href"] or "").removeprefix("#") in ids


def test_nothing_is_loaded_and_only_its_own_scripts_run(run_folder: Path) -> None:
    page = page_of(run_folder)
    (policy,) = (found["content"] or "" for found in page.all("meta") if "http-equiv" in found)
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for script in page.scripts[1:]:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    for _, found in page.elements:
        assert not [name for name in found if name.startswith("on") or name == "style"]
        assert (found.get("src") or "data:image/").startswith("data:image/")
        assert (found.get("href") or "#").startswith("#")
    assert not page.all("link") and not page.all("iframe")


def test_the_same_folder_gives_the_same_bytes(run_folder: Path) -> None:
    first, second = (build(read_folders([run_folder]), cases=20) for _ in range(2))
    assert first == second


def test_accuracies_and_intervals_are_those_of_the_run(run_folder: Path) -> None:
    page = page_of(run_folder)
    last = [row for row in read_lines(run_folder / "metrics.jsonl") if row["phase"] == "eval"][-1]
    answers = [row for row in read_lines(run_folder / "samples.jsonl") if row["phase"] == "eval"][-80:]
    ct = [row["completions"][0]["correct"] for row in answers if row["modality"] == "ct"]
    low, high = wilson(sum(ct), len(ct))
    first = next(row for row in read_lines(run_folder / "metrics.jsonl") if row["phase"] == "eval")
    assert f"CT10{100 * first['accuracy/ct']:.1f}{100 * last['accuracy/ct']:.1f}" in page.text
    assert f"{100 * low:.1f} – {100 * high:.1f}" in page.text
    assert "Lesion grading16" in page.text  # n of the question types: from the answers, all of which were kept
    accuracy = chart(page, "Held-out accuracy")["series"][0]
    assert accuracy["raw"][-1] == pytest.approx(last["accuracy"], rel=1e-4)
    expected = wilson(round(80 * last["accuracy"]), 80)
    assert (accuracy["low"][-1], accuracy["high"][-1]) == pytest.approx(expected, rel=1e-4)


def test_a_part_of_the_answers_gives_no_interval(tmp_path: Path) -> None:
    """Eight recorded answers of eighty must not pass for n = 80, nor for n = 8."""
    page = page_of(make_run(tmp_path / "partial", steps=12, held_out=80, kept=8, finished=False))
    assert "low" not in chart(page, "Held-out accuracy")["series"][0]
    assert "no interval is given yet" in page.text and "Held-out accuracy, last evaluation" not in page.text
    finished = page_of(make_run(tmp_path / "finished", steps=12, held_out=80, kept=8))
    assert "low" in chart(finished, "Held-out accuracy")["series"][0]
    assert "n = 80" in finished.text


def test_a_part_of_the_answers_with_the_same_accuracy_is_still_a_part(tmp_path: Path) -> None:
    """All wrong: eight recorded answers have the accuracy of all 80, and are not all 80."""
    row = {"step": 0, "phase": "eval", "modality": "ct", "question_type": "lesion-grading"}
    answers = [row | {"id": str(i), "completions": [{"text": "A", "correct": False}]} for i in range(8)]
    write_lines(tmp_path / "samples.jsonl", answers)
    write_lines(tmp_path / "metrics.jsonl", [{"step": 0, "phase": "eval", "accuracy": 0.0, "accuracy/ct": 0.0}])
    (tmp_path / "settings.yaml").write_text("eval_samples: 80\n")
    assert "no interval is given yet" in page_of(tmp_path).text
    (tmp_path / "settings.yaml").write_text("eval_samples: 8\n")
    assert "no interval is given yet" not in page_of(tmp_path).text


def test_phases_lie_end_to_end(run_folder: Path) -> None:
    page = page_of(run_folder)
    assert page.data["phases"] == [[["sft", 1, 30, 0], ["grpo", 31, 90, 30]]]
    assert chart(page, "Reward")["series"][0]["x"] == list(range(31, 91))
    assert chart(page, "Supervised loss")["series"][0]["x"] == list(range(1, 31))
    assert chart(page, "Held-out accuracy")["series"][0]["x"] == [0, 30, 40, 50, 60, 70, 80, 90]


def test_a_resumed_run_counts_each_step_once(tmp_path: Path) -> None:
    rows = [{"step": step, "phase": "grpo", "reward": float(step)} for step in [1, 2, 3, 4, 3, 4, 5]]
    rows[-2]["reward"] = 40.0
    write_lines(tmp_path / "metrics.jsonl", rows)
    series = chart(page_of(tmp_path), "Reward")["series"][0]
    assert series["x"] == [1, 2, 3, 4, 5] and series["raw"] == [1, 2, 3, 40, 5]


def test_smoothing_keeps_a_line_and_averages_noise(tmp_path: Path) -> None:
    rows = [{"step": i, "phase": "grpo", "reward": 5.0, "kl": float(i), "entropy": (-1.0) ** i} for i in range(200)]
    write_lines(tmp_path / "metrics.jsonl", rows)
    page = page_of(tmp_path)
    assert chart(page, "Reward")["series"][0]["smooth"] == [5.0] * 200
    kl, noise = (chart(page, name)["series"][0]["smooth"] for name in ("KL to the reference", "Entropy"))
    assert kl[100] == pytest.approx(100) and max(map(abs, noise[30:170])) < 0.01


def test_long_curves_are_thinned_without_losing_a_spike(tmp_path: Path) -> None:
    rows = [{"step": i, "phase": "grpo", "grad_norm": 1 + 0.1 * math.sin(i)} for i in range(30_000)]
    rows[12_345]["grad_norm"] = 99.0
    write_lines(tmp_path / "metrics.jsonl", rows)
    series = chart(page_of(tmp_path), "Gradient norm")["series"][0]
    assert len(series["x"]) <= MAX_POINTS and 99.0 in series["raw"]
    assert series["x"] == sorted(series["x"])


def test_cases_are_spread_over_the_run(run_folder: Path) -> None:
    page = page_of(run_folder, cases=30)
    assert len(page.cases) == 30
    training = [int(one["data-step"] or 0) for one in page.cases if one["data-phase"] == "grpo"]
    assert len(training) == 20 and min(training) <= 3 and max(training) >= 58
    assert len({one["data-modality"] for one in page.cases}) == 8
    assert not page_of(run_folder, cases=0).cases


def test_differences_from_the_defaults_come_first(run_folder: Path) -> None:
    page = page_of(run_folder)
    settings = page.text[page.text.index("Differences from the defaults") :]
    changed, rest = settings.split("settings at their defaults")
    assert "loss_type" in changed and "dapo" in changed and "beta" in changed
    assert "group_size" not in changed and "group_size" in rest


def test_several_runs_and_other_folders_share_a_page(run_folder: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "synthetic-b", seed=1, steps=20, held_out=40)
    page = page_of(run_folder, other, make_results(tmp_path / "evaluated"), make_matrix(tmp_path / "crossed"))
    assert page.data["runs"] == ["synthetic-a", "synthetic-b"]
    assert [one["run"] for one in chart(page, "Reward")["series"]] == [0, 1]
    for said in ("synthetic-grpo", "Synthetic matrix, %", "Think minus no-think, difference in points"):
        assert said in page.text
    assert len(page.all("button", **{"aria-pressed": "true"})) >= 2


def test_the_mean_of_the_groups_comes_after_them() -> None:
    rows = [Row(MODALITY, group, "model", 0.5) for group in ("ct", MEAN, "x-ray")]
    table = str(accuracy_table(rows, ["model"]))
    assert table.index("CT") < table.index("X-ray") < table.index(MEAN)


def test_text_of_data_and_models_stays_text(tmp_path: Path) -> None:
    """Hostile text wherever a run can hold text; what the parser finds is no more than with harmless text."""
    folder = make_run(tmp_path / "a<b>&'\"", steps=3, held_out=4)
    harmless = Page(build(read_folders([folder]), cases=60))
    samples, metrics = read_lines(folder / "samples.jsonl"), read_lines(folder / "metrics.jsonl")
    for row in samples:
        row |= {"modality": SCRIPT, "question_type": "-->" + SCRIPT, "question": SCRIPT, "answer": SCRIPT, "id": SCRIPT}
        row["images"] = [SCRIPT]
        for one in row["completions"]:
            one |= {"text": SCRIPT + "<!--\u2028\x00\ud800\u202e", "rewards": {SCRIPT: 1.0, "accuracy": 1.0}}
    for row in metrics:
        row[SCRIPT] = 1.0
    write_lines(folder / "samples.jsonl", samples)
    write_lines(folder / "metrics.jsonl", metrics)
    (folder / "settings.yaml").write_text(yaml.safe_dump({SCRIPT: SCRIPT}), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps({"versions": {SCRIPT: SCRIPT}, SCRIPT: [SCRIPT]}))
    html = build(read_folders([folder]), cases=60)
    html.encode("utf-8")
    page = Page(html)
    assert not page.open and page.scripts[1:] == harmless.scripts[1:]
    assert not page.all("img") and html.count("<script") == html.count("</script>") == len(page.scripts)
    assert page.text.count(SCRIPT) > 20 and SCRIPT in {one["title"] for one in page.data["charts"]}
    assert not re.search("[\x00-\x08\u202e\ud800]", html)


def test_the_page_stays_small(tmp_path: Path) -> None:
    """Long runs, long answers, large pictures."""
    folder = make_run(tmp_path / "large", steps=100, sft_steps=0, held_out=20)
    samples = read_lines(folder / "samples.jsonl")
    for row in samples:
        row["completions"] = [one | {"text": "word " * 2_000} for one in row["completions"][:1]] * 32
    write_lines(folder / "samples.jsonl", samples)
    names = [f"metric {i}" for i in range(120)]
    write_lines(
        folder / "metrics.jsonl", [{"step": i, "phase": "grpo", **dict.fromkeys(names, i / 7)} for i in range(2500)]
    )
    assert len(build(read_folders([folder]), cases=60)) < 12e6
