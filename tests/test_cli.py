"""The command line from outside: options, exit codes, and what doctor prints."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import grpo_fast
from grpo_fast import doctor
from grpo_fast.cli import main, parser
from grpo_fast.compare import command as compare_command
from grpo_fast.matrix import command as matrix_command
from grpo_fast.train import flags

README = Path(__file__).parents[1] / "README.md"
COMMANDS = re.findall(r"^(?:grpo-fast|torchrun .* -m grpo_fast) (.*)", README.read_text(encoding="utf-8"), re.MULTILINE)


def options(of: argparse.ArgumentParser) -> set[str]:
    return {option for action in of._actions for option in action.option_strings if option.startswith("--")}


def own(shown: set[str]) -> set[str]:
    return {option for option in shown if option.startswith("--") and "_" not in option}


def commands_of(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action.choices for action in of._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0]) if found else {}


def test_the_options_are_frozen() -> None:
    """Those of train and sft, which are their settings, are frozen in train/test_flags.py."""
    top = parser()
    commands = commands_of(top)
    assert options(top) == {"--help", "--version"}
    shown = {
        name: {o for action in one._actions if action.help != argparse.SUPPRESS for o in action.option_strings}
        for name, one in commands.items()
    }
    assert {
        "--by",
        "--models",
        "--base",
        "--think-minus-no-think",
        "--test-samples",
        "--jobs",
        "--skip-unreadable",
    } == (own(shown["matrix"]) - own(shown["train"]))
    assert {"--seeds", "--held-out-combinations", "--equal", "--benchmarks", "--test-samples", "--jobs"} == (
        own(shown["compare"]) - own(shown["train"])
    )
    settings = ("train", "sft", "matrix", "compare")
    assert {name: options(one) for name, one in commands.items() if name not in settings} == {
        "data": {"--help"},
        "doctor": {"--help", "--json"},
        "eval": {
            "--help", "--model", "--data", "--image-folders", "--train-data", "--prompt", "--max-samples",
            "--max-tokens", "--batch", "--max-pixels", "--seed", "--dtype", "--device", "--output", "--json",
        },
        "generate": {
            "--help", "--model", "--prompt", "--image", "--completions", "--max-tokens", "--temperature", "--top-k",
            "--top-p", "--min-p", "--repetition-penalty", "--greedy", "--stop", "--seed", "--max-pixels", "--dtype",
            "--device", "--json",
        },
        "report": {"--help", "--output", "--cases", "--watch"},
        "synth": {
            "--help", "--data", "--image-folders", "--max-samples", "--exclude", "--exclude-image-folders", "--prompt",
            "--output", "--name", "--image-root", "--fresh", "--json", "--k", "--temperature", "--top-p",
            "--max-tokens", "--max-pixels", "--seed", "--keep", "--min-words", "--max-words", "--max-repetition",
            "--max-similarity", "--every-question", "--model", "--batch", "--dtype", "--device", "--server",
            "--server-model", "--key-env", "--rate", "--concurrency", "--timeout", "--retries", "--extra",
        },
    }  # fmt: skip
    assert {name: options(one) for name, one in commands_of(commands["data"]).items()} == {
        "check": {"--help", "--image-folders", "--images", "--json"},
        "stats": {"--help", "--image-folders", "--chart", "--json"},
        "convert": {"--help", "--image-folders", "--to", "--images"},
    }
    assert {name: options(one) for name, one in commands_of(commands["synth"]).items()} == {
        "questions": {"--help", "--metadata", "--image-folder", "--output", "--image-root", "--options", "--seed"}
    }


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in commands_of(parser()):
        with pytest.raises(SystemExit) as exit_:
            main([name, "--help"])
        assert exit_.value.code == 0
        assert len(capsys.readouterr().out.splitlines()) > 5


@pytest.mark.parametrize("line", COMMANDS)
def test_the_readme_s_commands_lack_nothing(line: str) -> None:
    given = parser().parse_args(shlex.split(line, comments=True))
    if given.command in ("train", "sft", "matrix", "compare"):
        flags.settings_of(given, command="sft" if given.command == "sft" else "train")
    if given.command == "synth":
        assert given.data and given.output, "synth asks for both"


@pytest.mark.parametrize("study", [compare_command, matrix_command])
def test_a_study_says_where_it_goes(study: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([study.__name__.split(".")[1], "--help"])
    usage, _, shown = capsys.readouterr().out.partition("\n")
    assert "[--output DIR]" in usage
    about_output = shown[shown.index("  --output ") : shown.index("  --seed ")]
    assert f"{study.FOLDER}/" in about_output


def test_doctor_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and report["version"] == grpo_fast.__version__
    assert {backend["name"] for backend in report["backends"]} == {"torch", "native", "triton"}
    assert {one["name"]: one["usable"] for one in report["attention"]}["sdpa"]
    assert 0 < report["loss"]["error"] < 1e-2 and report["loss"]["ms"] > 0


def test_doctor_is_plain_when_piped() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "grpo_fast", "doctor"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "The loss works" in done.stdout


def test_without_a_command_it_trains(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr("grpo_fast.train.command.run", lambda arguments, command: started.append(command) or 0)
    monkeypatch.setattr(sys, "argv", ["grpo-fast"])
    assert main() == 0 and started == ["train"]


def test_an_unusable_backend_is_a_failure_with_its_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_FAST_BACKEND", "abacus")
    assert main(["doctor"]) == 1
    assert "abacus" in capsys.readouterr().out


def test_an_inaccurate_loss_fails() -> None:
    accurate = doctor.LossCheck("cpu", "float32", error=1e-6, torch_error=1e-6, ms=1.0, torch_ms=1.0)
    assert accurate.passed
    for error in (1e-5, float("inf"), float("nan")):
        assert not doctor.LossCheck("cpu", "float32", error=error, torch_error=1e-6, ms=1.0, torch_ms=1.0).passed


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["nonsense"], ["doctor", "--nonsense"]):
        with pytest.raises(SystemExit) as exit_:
            main(argv)
        assert exit_.value.code == 2
        assert "usage:" in capsys.readouterr().err


def test_packages_are_found_by_their_distribution_names() -> None:
    assert (doctor.installed("torch") is None) == (find_spec("torch") is None)
    assert doctor.installed("no-such-distribution") is None
