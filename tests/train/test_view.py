"""What a run shows on a terminal, in a pipe and to programs."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from grpo_fast.rollout import RolloutStats
from grpo_fast.train.ending import ending
from grpo_fast.train.live import Live
from grpo_fast.train.progress import BARS, FLAT, Progress, Trend, duration, figure, machine, pace, percent, speed
from grpo_fast.train.view import PAUSE, WIDTH, Lines, Silent, View, view

ESCAPE = "\x1b"
GPU = {"gpu_memory_mb": 12345.0, "gpu_memory_total_mb": 81920.0, "gpu_utilisation": 93.0, "gpu_power_w": 412.3}
SUMMARY: dict[str, Any] = {
    "accuracy": {"start": 0.242, "sft": 0.461, "grpo": 0.934},
    "intervals": {"start": [0.19, 0.30], "sft": [0.40, 0.52], "grpo": [0.90, 0.96]},
    "by_modality": {"histopathology": {"accuracy": {"start": 0.2, "sft": 0.5, "grpo": 1.0},
                                       "intervals": {"start": [0, 1], "sft": [0, 1], "grpo": [0.92, 1]}}},
    "seconds": 124.0,
    "completions_per_second": 102.3,
    "model": "runs/x/model",
    "folder": "runs/x",
    "next": {"the same as a page": "grpo-fast report runs/x", "an answer": "grpo-fast generate " + "long/" * 20},
}  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def values(step: int, rewards: Sequence[str] = ("accuracy", "format")) -> dict[str, float]:
    return {
        "reward": 1.2 + step / 1000, **{f"reward/{name}": 0.5 + step / 1000 for name in rewards}, "loss": 0.0,
        "kl": 0.001 * step, "entropy": 0.5, "clip_low": 0.01, "clip_high": 0.02, "length": 18.25, "truncated": 0.0,
        "groups_without_spread": 0.25, "learning_rate": 1e-6,
    }  # fmt: skip


def drive(shown: View, clock: Clock, *, gpu: bool = True, rewards: Sequence[str] = ("accuracy", "format")) -> None:
    shown.start(["model   tiny", "data    phantom (synthetic)"])
    shown.asking(RolloutStats(256, 64, sampled_tokens=100, decode_seconds=0.1))
    shown.evaluation(0, {"accuracy": 0.242})
    shown.phase("sft", 20)
    for step in range(1, 21):
        clock.now += 0.5
        shown.step(step, {"loss": 2.0 / step, "grad_norm": 1.0}, {"tokens_per_second": 2000.0})
    shown.evaluation(20, {"accuracy": 0.461})
    shown.phase("grpo", 200, 50)
    for step in range(51, 101):
        shown.rollout(RolloutStats(128, 64, sampled_tokens=1200, decode_seconds=0.2))
        clock.now += 2.0
        shown.update(1, 4)
        shown.step(step, values(step, rewards), {"tokens_per_second": 8420.0, "completions_per_second": 102.3,
                                                 **(GPU if gpu else {"host_memory_mb": 1024.0})})  # fmt: skip
        if step % 20 == 0:
            shown.evaluation(step, {"accuracy": 0.5 + step / 500})
    shown.note("checkpoint: runs/x/checkpoints/step-000100")
    shown.rollout(RolloutStats(128, 64, sampled_tokens=1200, decode_seconds=0.2))


def live(width: int = 80, height: int = 24) -> tuple[Live, Clock]:
    console = Console(
        width=width, height=height, file=io.StringIO(), force_terminal=True, highlight=False, markup=False
    )
    shown, clock = Live(console), Clock()
    shown.progress.clock = clock
    return shown, clock


def frame(shown: Live) -> list[str]:
    console = Console(width=shown.console.width, height=shown.console.height, file=io.StringIO(), record=True)
    console.print(shown.picture())
    return [line.rstrip() for line in console.export_text().splitlines()]


class TestPicture:
    # 80 × 24: the promise; 120 × 50: roomy; 81: a prime neighbour's off-by-one; 50 × 15: a pane
    @pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 50), (81, 24), (50, 15)])
    @pytest.mark.parametrize("rewards", [("accuracy",), tuple(f"a_long_name_of_a_reward_{i}" for i in range(12))])
    def test_it_fits(self, width: int, height: int, rewards: tuple[str, ...]) -> None:
        shown, clock = live(width, height)
        assert len(frame(shown)) < height
        drive(shown, clock, rewards=rewards)
        lines = frame(shown)
        shown._stop()
        assert len(lines) < height and max(map(len, lines)) < width
        assert any("GPU" in line for line in lines) and any("speed" in line for line in lines)

    def test_what_it_says_at_80_columns(self) -> None:
        shown, clock = live()
        drive(shown, clock)
        lines = frame(shown)
        shown._stop()
        text = "\n".join(lines)
        for said in (
            r"GRPO +━.* 100/200 +2\.0 s/step +3:20 left",
            r"rollout +━.* 64/128 +6000 tokens/s",
            r"held-out accuracy +70\.0 % +[▁▂▃▄▅▆▇█]{5}  start 24\.2 %, best 70\.0 %",
        ):
            assert re.search(f"^{said}$", text, re.MULTILINE), said
        rows = {line[:19].strip(): line[19:].split() for line in lines if line[:1].strip() or line[:3] == "  a"}
        assert rows["reward"][0] == "1.30" and len(rows["reward"][1]) == 40 and rows["reward"][1][-1] == "█"
        assert rows["accuracy"][0] == "0.600"
        assert rows["KL"][0] == "0.100" and rows["length"][0] == "18.2"
        assert rows["clipped"][:2] == ["3.0", "%"]  # both sides of the clip
        assert "12.1 of 80 GB   93 % busy   412 W" in text
        assert "8420 tokens/s   102 completions/s" in text
        assert "…" not in text and "loss" not in text

    def test_sft_shows_its_loss(self) -> None:
        shown, _ = live()
        shown.phase("sft", 10)
        shown.step(1, {"loss": 1.5, "grad_norm": 2.0}, {"host_memory_mb": 2048.0})
        text = "\n".join(frame(shown))
        assert re.search(r"^loss +1\.50 ", text, re.MULTILINE) and re.search(r"^memory +2\.0 GB$", text, re.MULTILINE)

    def test_what_goes_on_within_a_step(self) -> None:
        shown, _ = live()
        shown.phase("grpo", 10)
        said = []
        for tell in (
            lambda: shown.rollout(RolloutStats(8, 3)),
            lambda: shown.rollout(RolloutStats(8, 8)),
            lambda: shown.update(1, 2),
            lambda: shown.step(1, {"reward": 1.0}, {}),
            lambda: shown.asking(RolloutStats(8, 3)),
            lambda: shown.evaluation(1, {"accuracy": 0.5}),
        ):
            tell()
            said.append(frame(shown)[2].split()[:1])
        assert said == [["rollout"], ["scoring"], ["update"], [], ["held-out"], []]

    def test_the_last_picture_stays_and_the_ending_follows(self) -> None:
        shown, clock = live()
        with shown:
            drive(shown, clock)
            shown.done(SUMMARY)
        written = shown.console.file.getvalue()  # type: ignore[attr-defined]
        text = Text.from_ansi(written).plain
        assert text.index("SFT: 20 steps in 0:10, held-out accuracy 46.1 %") < text.index("checkpoint: runs/x")
        picture, after = text.rindex("zero-spread groups"), text.index("after GRPO")
        assert text.index("checkpoint: runs/x") < picture < after < text.index("What to type next")
        assert "rollout" not in text[text.rindex("GRPO  ", 0, picture) : picture]
        assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1  # the cursor is given back

    def test_an_exception_gives_the_terminal_back(self) -> None:
        shown, clock = live()
        with pytest.raises(KeyboardInterrupt), shown:
            drive(shown, clock)
            raise KeyboardInterrupt
        assert shown.console.file.getvalue().rstrip().endswith("\x1b[?25h")  # type: ignore[attr-defined]

    def test_markup_in_what_others_wrote_is_text(self) -> None:
        shown, _ = live()
        with shown:
            shown.start(["data    [bold]x[/bold] [/nothing]"])
            shown.note("skipped: [red]train.jsonl[/red]:3: [/] no image")
            shown.phase("[bold]", 3)
            shown.step(1, {"reward": 1.0, "reward/[blink]f.py:f": 1.0}, {})
            assert "[blink]f.py:f" in "\n".join(frame(shown))
            shown.done({**SUMMARY, "by_modality": {"[/b]": SUMMARY}, "model": "a[/b]"})
        text = Text.from_ansi(shown.console.file.getvalue()).plain  # type: ignore[attr-defined]
        assert "[bold]x[/bold] [/nothing]" in text and "[red]train.jsonl[/red]:3: [/] no image" in text


class TestLines:
    def test_plain_and_narrow(self) -> None:
        out, clock = io.StringIO(), Clock()
        shown = Lines(out)
        shown.progress.clock = clock
        drive(shown, clock)
        shown.done({**SUMMARY, "next": {}})
        lines = out.getvalue().splitlines()
        assert ESCAPE not in out.getvalue() and "\r" not in out.getvalue()
        assert max(map(len, lines)) <= WIDTH
        assert "GRPO: 200 steps, from step 50 on" in lines
        assert "held-out accuracy: 24.2 %" in lines
        assert "held-out accuracy after GRPO step 100: 70.0 % (start 24.2 %, best 70.0 %)" in lines
        assert "checkpoint: runs/x/checkpoints/step-000100" in lines

    def test_step_lines_keep_their_distance(self) -> None:
        out, clock = io.StringIO(), Clock()
        shown = Lines(out)
        shown.progress.clock = clock
        shown.phase("grpo", 100)
        times = {}
        for step in range(1, 101):
            clock.now += 0.3
            before = out.tell()
            shown.step(step, values(step), {})
            if out.tell() > before:
                times[step] = clock.now
        assert min(times) == 1 and max(times) == 100  # the first and the last are told
        waits = [b - a for a, b in zip(list(times.values())[:-2], list(times.values())[1:-1], strict=True)]
        assert waits and all(PAUSE <= wait < PAUSE + 0.31 for wait in waits)

    def test_going_on_it_remembers_the_start(self) -> None:
        out = io.StringIO()
        shown = Lines(out)
        shown.earlier({"sft": 0.5, "best": 0.8, "grpo": 0.7, "start": 0.25})
        shown.phase("grpo", 100, 50)
        shown.evaluation(60, {"accuracy": 0.75})
        assert "held-out accuracy after GRPO step 60: 75.0 % (start 25.0 %, best 80.0 %)" in out.getvalue()

    def test_a_stream_without_unicode(self) -> None:
        done = run_child("v.note('β → …')\nv.done(SUMMARY)", json=False, PYTHONIOENCODING="ascii")
        assert done.returncode == 0, done.stderr
        assert b"after GRPO" in done.stdout and ESCAPE.encode() not in done.stdout


class TestJson:
    def test_nothing_but_the_summary(self) -> None:
        out, err, clock = io.StringIO(), io.StringIO(), Clock()
        shown = Silent(out, err)
        shown.progress.clock = clock
        with shown:
            drive(shown, clock)
            assert out.getvalue() == ""
            shown.done({**SUMMARY, "kl": float("nan"), "settings": {"hub_token": "secret"}})
        assert json.loads(out.getvalue()) == {**SUMMARY, "kl": None, "settings": {"hub_token": "***"}}
        assert err.getvalue() == "checkpoint: runs/x/checkpoints/step-000100\n"

    def test_from_outside(self) -> None:
        done = run_child("v.start(['x'])\nv.note('skipped: y')\nv.phase('grpo', 2)\nv.done(SUMMARY)", json=True)
        assert json.loads(done.stdout) == SUMMARY and done.stderr.decode().strip() == "skipped: y"


def run_child(body: str, *, json: bool, **environment: str) -> subprocess.CompletedProcess[bytes]:
    head = f"from grpo_fast.train.view import view\nSUMMARY = {SUMMARY!r}\nwith view({json}, False) as v:\n"
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.indent(body, "    ")], capture_output=True,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("json", "terminal", "term", "kind"),
    [
        (True, True, "xterm", Silent),
        (False, True, "xterm", Live),
        (False, True, "dumb", Lines),
        (False, False, "xterm", Lines),
    ],
)
def test_which_view(json: bool, terminal: bool, term: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")  # stands for a terminal
    assert type(view(json, terminal)) is kind


class TestEnding:
    def told(self, summary: dict[str, Any]) -> str:
        console = Console(width=WIDTH, file=io.StringIO(), color_system=None)
        console.print(ending(summary), soft_wrap=True)
        return console.file.getvalue()  # type: ignore[attr-defined]

    def test_all_of_it(self) -> None:
        text = self.told(SUMMARY)
        assert re.search(r"all questions +24\.2 %  \(19–30\) +46\.1 %  \(40–52\) +93\.4 %  \(90–96\)", text)
        assert re.search(r"histopathology .* 100\.0 % \(92–100\)\n", text)
        assert "+69.2 points over the start, +47.3 points over SFT\n" in text
        assert "took 2:04, 102 completions/s" in text
        assert f"  {SUMMARY['next']['an answer']}\n" in text  # one piece, to be copied
        assert all(len(line) <= WIDTH for line in text.splitlines() if "long/" not in line)

    def test_names_from_data_are_text(self) -> None:
        odd = {"[/b]": SUMMARY["by_modality"]["histopathology"]}
        text = self.told({**SUMMARY, "by_modality": odd, "model": "[x]/m", "next": {"[a]": "[/c] [b]"}})
        assert all(one in text for one in ("[/b] ", "[x]/m", "# [a]", "[/c] [b]"))

    def test_only_what_there_is(self) -> None:
        assert self.told({}).strip() == ""
        text = self.told({"accuracy": {"start": 0.5, "sft": None, "grpo": 0.25}, "model": "m"})
        assert "-25.0 points over the start\n" in text and "SFT" not in text and "next" not in text
        assert "interval" not in text


class TestNumbers:
    @pytest.mark.parametrize(
        ("value", "told"),
        [(0, "0"), (0.00012, "1e-04"), (0.0123, "0.012"), (0.5, "0.500"), (1.8124, "1.81"), (-18.25, "-18.2"),
         (8420.4, "8420"), (float("nan"), "not finite"), (float("inf"), "not finite")],
    )  # fmt: skip
    def test_figure(self, value: float, told: str) -> None:
        assert figure(value) == told

    @pytest.mark.parametrize(
        ("call", "told"),
        [(lambda: duration(59.6), "1:00"), (lambda: duration(3725), "1:02:05"), (lambda: pace(2.04), "2.0 s/step"),
         (lambda: pace(0.5), "2.0 steps/s"), (lambda: percent(0.0131), "1.3 %"), (lambda: machine({}), ""),
         (lambda: speed({"tokens_per_second": 12.34}), "12.3 tokens/s")],
    )  # fmt: skip
    def test_words(self, call: Callable[[], str], told: str) -> None:
        assert call() == told

    def test_trend(self) -> None:
        trend = Trend()
        assert trend.line() == ""
        for value in (0.0, float("nan"), 0.5, 1.0):
            trend.add(value)
        assert trend.line() == BARS[0] + BARS[4] + BARS[-1]
        for _ in range(100):
            trend.add(0.0)
        assert trend.line() == BARS[0] * 40 and trend.line(8) == BARS[0] * 8
        same = Trend()
        same.add(0.98)
        same.add(0.98)
        assert same.line() == FLAT * 2

    def test_time_left_counts_down_and_knows_pauses(self) -> None:
        clock = Clock()
        progress = Progress(clock=clock)
        progress.enter("grpo", 100, 90)
        assert progress.seconds_left() is None
        for step in (91, 92):
            clock.now += 3.0
            progress.advance(step, {}, {})
        assert progress.seconds_left() == pytest.approx(24.0)
        clock.now += 2.0
        assert progress.seconds_left() == pytest.approx(22.0)
        clock.now += 100.0
        assert progress.seconds_left() == 0.0
