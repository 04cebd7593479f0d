"""`grpo-fast report` from outside."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from report.make import make_run

from grpo_fast.errors import BadSettings, GRPOFastError, RunFailed
from grpo_fast.report import command


def report(*argv: str | Path) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(one) for one in argv]))


def test_writes_into_the_run_or_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run", steps=3, held_out=4)
    assert report(folder) == 0
    assert "report.html (" in capsys.readouterr().out
    assert report(folder, "--output", tmp_path / "other.html", "--cases", "2") == 0
    assert (tmp_path / "other.html").read_bytes() != (folder / "report.html").read_bytes()
    assert "data-refresh" not in (folder / "report.html").read_text(encoding="utf-8").partition("<head>")[0]
    assert not [one for one in folder.iterdir() if one.name.startswith(".")]


def test_wrong_usage_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=1, held_out=2)
    for argv, kind, said in (
        ((tmp_path,), GRPOFastError, "is no run"),
        ((folder, "--cases", "-1"), BadSettings, "--cases must be at least 0"),
        ((folder, "--output", tmp_path), BadSettings, "is a folder"),
        ((folder, "--output", tmp_path / "no" / "page.html"), RunFailed, "cannot be written"),
    ):
        with pytest.raises(kind, match=said):
            report(*argv)


def test_watch_follows_the_run_and_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half way the page reloads itself and has what is new; each reader sees a whole page; the last page rests."""
    monkeypatch.setattr(command, "INTERVAL", 0.05)
    folder = make_run(tmp_path / "run", steps=4, held_out=4, finished=False)
    page = folder / "report.html"
    seen: list[str] = []

    def read_until(said: str) -> None:
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            if page.exists():
                text = page.read_text(encoding="utf-8")
                assert text.startswith("<!doctype html>") and text.endswith("</html>\n")
                seen.append(text)
                if said in text:
                    return
            time.sleep(0.01)

    def go_on() -> None:
        read_until('data-refresh="0.05"')
        with (folder / "metrics.jsonl").open("a") as metrics:
            metrics.write(json.dumps({"step": 5, "phase": "grpo", "a new name": 1.0}) + "\n")
        read_until("a new name")
        (folder / "summary.json").write_text("{}")

    other = threading.Thread(target=go_on)
    other.start()
    assert report(folder, "--watch", "--cases", "0") == 0
    other.join()
    assert "a new name" in seen[-1] and 'data-refresh="0.05"' in seen[-1]
    assert "data-refresh" not in page.read_text(encoding="utf-8").partition("<head>")[0]


def test_ctrl_c_ends_the_watch_with_a_page_that_rests(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=2, held_out=4, finished=False)
    script = (
        "import argparse, sys; from grpo_fast.report import command; p = argparse.ArgumentParser(); "
        "command.add_arguments(p); sys.exit(command.run(p.parse_args()))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder), "--watch"], stderr=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stderr and "Ctrl-C ends the watch" in watch.stderr.readline()
        watch.send_signal(signal.SIGINT)
        assert watch.wait(60) == 0
    assert "data-refresh" not in (folder / "report.html").read_text(encoding="utf-8").partition("<head>")[0]
