"""The page in a real browser, where there is one: charts drawn, nothing complained about, no hostile text run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report.make import make_matrix, make_results, make_run

from grpo_fast.report.folder import read_folders
from grpo_fast.report.page import build

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the path")


def opened(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The document after its scripts ran, and what the browser's console said."""
    assert CHROMIUM
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            "--window-size=1280,900",
            f"--user-data-dir={profile}", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=60, env=os.environ | {"HOME": str(profile)}, encoding="utf-8",
    )  # fmt: skip
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


@needs_chromium
def test_charts_are_drawn_and_nothing_is_complained_about(run_folder: Path, tmp_path: Path) -> None:
    others = [make_results(tmp_path / "evaluated"), make_matrix(tmp_path / "crossed")]
    other = make_run(tmp_path / "synthetic-b", seed=3, steps=30, held_out=40)
    html = build(read_folders([run_folder, other, *others]), cases=12)
    page = tmp_path / "page.html"
    page.write_text(html, encoding="utf-8")
    document, console = opened(page, tmp_path / "profile")
    assert console == []
    figures = document.split("data-chart=")[1:]
    in_view = [one for one in figures if 'class="line' in one or 'class="some' in one]
    assert len(in_view) >= 20
    assert 'class="raw"' in document and "12 of 12 groups" in document
    assert not re.search(r' (?:d|x|y|x1|x2|y1|y2|cx|cy|width|height)="[^"]*(?:NaN|Infinity)', document)
    assert "<script>alert(1)" not in document.replace("&lt;", "<!") and 'src="x"' not in document


@needs_chromium
def test_a_script_that_was_changed_does_not_run(run_folder: Path, tmp_path: Path) -> None:
    """What the policy is for; and the console check above can fail."""
    html = build(read_folders([run_folder]), cases=2).replace("<script>", "<script>window.foreign = 1;")
    page = tmp_path / "page.html"
    page.write_text(html, encoding="utf-8")
    document, console = opened(page, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in console) and 'class="line' not in document


@needs_chromium
def test_the_median_of_equal_lengths_is_named_inside_its_chart(tmp_path: Path) -> None:
    """Nearly all answers as long as the longest: the median stands at the right edge."""
    lengths = [1, *[61] * 30]
    rows = [
        {"step": n, "phase": "grpo", "id": str(n), "completions": [{"text": "word " * words, "correct": True}]}
        for n, words in enumerate(lengths)
    ]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    page = tmp_path / "page.html"
    page.write_text(build(read_folders([tmp_path / "run"]), cases=0), encoding="utf-8")
    document, _ = opened(page, tmp_path / "profile")
    figure = next(one for one in document.split("data-chart=")[1:] if "median 61" in one)
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', figure)[1])
    label = re.search(r"<text ([^>]*)>median 61<", figure)[1]
    start, size = float(re.search(r'x="([\d.]+)"', label)[1]), 6 * len("median 61")
    left, right = (start - size, start) if 'text-anchor="end"' in label else (start, start + size)
    assert 0 <= left < right <= width
