"""The run folder: every line whole, kill -9 and resume leave the same bytes, pictures once, no secrets."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from grpo_fast.errors import BadCheckpoint, BadImage, BadSettings, RunFailed
from grpo_fast.evaluate.ask import Asked
from grpo_fast.train import folder as folder_module
from grpo_fast.train.devices import Devices
from grpo_fast.train.folder import FILES, RunFolder, rows
from grpo_fast.train.scrub import scrubbed, scrubbed_text
from grpo_fast.train.trackers import TensorBoard, Wandb
from grpo_fast.types import Group, Prompt, Sample


def contents(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in FILES}


def picture(colour: int, size: tuple[int, int] = (400, 300)) -> Callable[[], Image.Image]:
    return lambda: Image.new("RGB", size, (colour, 0, 0))


def group(*images: Callable[[], Image.Image], id: str = "q1", size: int = 2) -> Group:
    question = [*({"type": "image"} for _ in images), {"type": "text", "text": "What is “shown”?"}]
    sample = Sample(
        id, [{"role": "user", "content": question}], images, answer="C", meta={"modality": "ct", "question_type": "x"}
    )
    prompt = Prompt(torch.arange(3), torch.zeros(3, 3), sample=sample)
    return Group(prompt, tuple(torch.arange(2 + i) for i in range(size)), finished=(True,) + (False,) * (size - 1))


def write_step(run: RunFolder, step: int) -> None:
    run.log(step, "grpo", {"reward": step / 3, "kl": 0.1 * step})
    run.timing(step, "grpo", {"seconds": 0.25})
    rewards = {"accuracy": torch.tensor([1.0, 0.0]), "format": torch.tensor([1.0, float("nan")])}
    run.samples(step, "grpo", [group()], [["a", "b"]], [rewards], [torch.tensor([1.0, -1.0])], [[True, False]])


class TestLines:
    def test_what_a_line_says(self, tmp_path: Path) -> None:
        with RunFolder(tmp_path / "run") as run:
            run.log(3, "grpo", {"reward": 1.5, "kl": float("nan"), "loss": float("inf"), "reward/accuracy": 0.25})
            write_step(run, 4)
        assert (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0] == (
            '{"step": 3, "phase": "grpo", "reward": 1.5, "kl": null, "loss": null, "reward/accuracy": 0.25}'
        )
        (told,) = rows(tmp_path / "run" / "samples.jsonl")
        assert told["question"] == "What is “shown”?" and told["answer"] == "C" and told["modality"] == "ct"
        assert told["completions"] == [
            {"text": "a", "rewards": {"accuracy": 1.0, "format": 1.0}, "reward": 2.0, "advantage": 1.0, "tokens": 2,
             "finished": True, "correct": True},
            {"text": "b", "rewards": {"accuracy": 0.0, "format": None}, "reward": 0.0, "advantage": -1.0, "tokens": 3,
             "finished": False, "correct": False},
        ]  # fmt: skip

    def test_equal_values_give_equal_bytes(self, tmp_path: Path) -> None:
        with RunFolder(tmp_path) as run:
            for value in (1, 1.0, True, torch.tensor(1.0), torch.tensor(1, dtype=torch.int64)):
                run.log(0, "grpo", {"x": value})
            for value in (0.0, -0.0, torch.tensor(-0.0)):
                run.log(1, "grpo", {"x": value})
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert len(set(lines[:5])) == 1 and len(set(lines[5:])) == 1

    def test_floats_come_back_to_the_last_bit(self, tmp_path: Path) -> None:
        values = {str(i): x for i, x in enumerate((torch.randn(200, dtype=torch.float64) * 1e-7).tolist())}
        with RunFolder(tmp_path) as run:
            run.log(0, "grpo", values)
        (back,) = rows(tmp_path / "metrics.jsonl")
        assert {name: back[name] for name in values} == values

    def test_totals_are_the_weighted_rewards(self, tmp_path: Path) -> None:
        with RunFolder(tmp_path) as run:
            run.samples(
                0, "grpo", [group()], [["a", "b"]], [{"accuracy": torch.tensor([1.0, 0.0])}], [None], [None],
                totals=[torch.tensor([2.5, 0.5])],
            )  # fmt: skip
        (told,) = rows(tmp_path / "samples.jsonl")
        assert [one["reward"] for one in told["completions"]] == [2.5, 0.5]
        assert [(one["advantage"], one["correct"]) for one in told["completions"]] == [(None, None)] * 2

    def test_answers_to_held_out_questions(self, tmp_path: Path) -> None:
        sample = group(picture(3)).prompt.sample
        assert sample is not None
        asked = Asked(sample, "C", tokens=2, finished=True, strict=False, lenient=True, formatted=True)
        with RunFolder(tmp_path) as run:
            run.answers(40, [asked])
        (told,) = rows(tmp_path / "samples.jsonl")
        assert (told["step"], told["phase"], told["id"], len(told["images"])) == (40, "eval", "q1", 1)
        assert told["completions"] == [
            {"text": "C", "rewards": {"accuracy": 0.0, "format": 1.0}, "reward": 1.0, "advantage": None, "tokens": 2,
             "finished": True, "correct": False}
        ]  # fmt: skip

    def test_at_most_four_groups_a_step(self, tmp_path: Path) -> None:
        groups = [group(id=f"q{i}") for i in range(7)]
        with RunFolder(tmp_path) as run:
            run.samples(0, "grpo", groups, [["a", "b"]] * 7, [{}] * 7, None, None)
        assert [line["id"] for line in rows(tmp_path / "samples.jsonl")] == ["q0", "q1", "q2", "q3"]

    def test_text_that_is_no_unicode_is_written(self, tmp_path: Path) -> None:
        with RunFolder(tmp_path) as run:
            run.samples(0, "grpo", [group(size=1)], [["half \ud83d a pair\u2028\n"]], [{}], None, None)
        (told,) = rows(tmp_path / "samples.jsonl")
        assert told["completions"][0]["text"] == "half ? a pair\u2028\n"

    def test_a_full_disk_leaves_no_half_line(self, tmp_path: Path) -> None:
        import resource

        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with RunFolder(tmp_path) as run:
            run.log(0, "grpo", {"x": 1})
            whole = (tmp_path / "metrics.jsonl").read_bytes()
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 9, before[1]))  # the second line fits in part
            try:
                with pytest.raises(RunFailed, match=r"metrics\.jsonl cannot be written: .*what it held is kept"):
                    run.log(1, "grpo", {"x": 1})
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
                signal.signal(signal.SIGXFSZ, old)
        assert (tmp_path / "metrics.jsonl").read_bytes() == whole


class TestResume:
    def test_rewind_then_the_same_steps_give_the_same_bytes(self, tmp_path: Path) -> None:
        with RunFolder(tmp_path / "straight") as run:
            for step in range(6):
                write_step(run, step)
        with RunFolder(tmp_path / "resumed") as run:
            for step in range(3):
                write_step(run, step)
            sizes = run.sizes()
            for step in range(3, 5):
                write_step(run, step)
        for name in FILES:
            with open(tmp_path / "resumed" / name, "ab") as file:
                file.write(b'{"step": 5, "pha')  # kill -9 in the middle of a line
        assert len(list(rows(tmp_path / "resumed" / "metrics.jsonl"))) == 5
        with RunFolder(tmp_path / "resumed") as run:
            run.rewind(sizes)
            for step in range(3, 6):
                write_step(run, step)
        assert contents(tmp_path / "resumed") == contents(tmp_path / "straight")

    def test_kill_9_at_random_moments(self, tmp_path: Path) -> None:
        """A process that writes without end is killed; whatever is there is whole lines and rewinds to its sizes."""
        script = textwrap.dedent("""
            import json, sys
            from pathlib import Path
            from grpo_fast.train.folder import RunFolder
            path, saved = Path(sys.argv[1]), Path(sys.argv[2])
            run = RunFolder(path)
            start, sizes = json.loads(saved.read_text()) if saved.exists() else (0, {})
            run.rewind(sizes)
            for step in range(start, 10**9):
                run.log(step, "grpo", {"reward": step / 7, "text": 1e-9 * step})
                run.timing(step, "grpo", {"seconds": 0.5})
                if step % 50 == 49:
                    saved.with_suffix(".new").write_text(json.dumps([step + 1, run.sizes()]))
                    saved.with_suffix(".new").replace(saved)
        """)
        path, saved = tmp_path / "run", tmp_path / "saved.json"
        metrics, reached = path / "metrics.jsonl", 0
        for round in range(4):
            child = subprocess.Popen([sys.executable, "-c", script, str(path), str(saved)])
            deadline = time.monotonic() + 60
            while not saved.exists() or json.loads(saved.read_text())[0] <= reached:
                assert child.poll() is None and time.monotonic() < deadline
                time.sleep(0.003)
            time.sleep(0.0017 * round)
            child.send_signal(signal.SIGKILL)
            child.wait()
            reached = json.loads(saved.read_text())[0]
        assert metrics.read_bytes().endswith(b"\n")
        steps = [(row["step"], row["reward"]) for row in rows(metrics)]
        assert steps == [(i, i / 7) for i in range(len(steps))] and len(steps) >= reached > 0

    def test_files_of_another_run_are_refused(self, tmp_path: Path) -> None:
        with RunFolder(tmp_path) as run:
            write_step(run, 0)
            before = contents(tmp_path)
            sizes = run.sizes()
            for wrong in (sizes["metrics.jsonl"] + 1, sizes["metrics.jsonl"] - 3):
                with pytest.raises(BadCheckpoint, match=r"metrics\.jsonl is not the file"):
                    run.rewind({**sizes, "timing.jsonl": 0, "metrics.jsonl": wrong})
                assert contents(tmp_path) == before  # nothing cut before everything was checked

    def test_rewind_to_nothing_starts_again(self, tmp_path: Path) -> None:
        with RunFolder(tmp_path) as run:
            write_step(run, 0)
            run.rewind({})
            assert run.sizes() == dict.fromkeys(FILES, 0)


class TestFolder:
    @pytest.mark.parametrize("content", ["", "{}", '{"accuracy": 1}\n', "no json\n", "[1]\n"])
    def test_what_is_no_run_is_refused_and_left_alone(self, tmp_path: Path, content: str) -> None:
        (tmp_path / ("metrics.jsonl" if content.endswith("\n") else "thesis.tex")).write_text(content)
        before = sorted(tmp_path.iterdir())
        with pytest.raises(BadSettings, match="holds no run"):
            RunFolder(tmp_path, trackers=[TensorBoard()])
        assert sorted(tmp_path.iterdir()) == before

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("")
        with pytest.raises(BadSettings, match="cannot be written"):
            RunFolder(tmp_path / "run")

    def test_two_processes_do_not_write_one_run(self, tmp_path: Path) -> None:
        script = "import sys; from pathlib import Path; from grpo_fast.train.folder import RunFolder; " \
            "RunFolder(Path(sys.argv[1]))"  # fmt: skip
        command = [sys.executable, "-c", script, str(tmp_path)]
        with RunFolder(tmp_path) as run:
            write_step(run, 0)
            run.rewind(run.sizes())
            second = subprocess.run(command, capture_output=True, text=True)
            assert second.returncode != 0 and "another process is writing this run" in second.stderr
        assert subprocess.run(command).returncode == 0

    def test_default_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(folder_module.time, "strftime", lambda form: "2026-11-20-153012")
        first = RunFolder.default_path()
        assert first == Path("runs/2026-11-20-153012")
        RunFolder(first).close()
        assert RunFolder.default_path() == Path("runs/2026-11-20-153012-2")

    def test_summary_is_whole_or_absent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with RunFolder(tmp_path) as run:
            run.write_summary({"accuracy": {"start": 0.25, "grpo": float("nan")}, "model": tmp_path / "model"})
            told = json.loads((tmp_path / "summary.json").read_text())
            assert told == {"accuracy": {"start": 0.25, "grpo": None}, "model": str(tmp_path / "model")}

            def full(*_: object) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(os, "fsync", full)
            with pytest.raises(RunFailed, match=r"summary\.json cannot be written: No space left"):
                run.write_summary({"accuracy": {}})
            assert json.loads((tmp_path / "summary.json").read_text()) == told
            assert not list(tmp_path.glob(".summary*"))


class TestPictures:
    def test_each_picture_is_written_once(self, tmp_path: Path) -> None:
        groups = [group(picture(10), picture(20)), group(picture(20), id="q2"), group(picture(20, (300, 400)), id="q3")]
        with RunFolder(tmp_path) as run:
            run.samples(0, "grpo", groups, [["a", "b"]] * 3, [{}] * 3, None, None)
            written = {path: path.stat().st_mtime_ns for path in (tmp_path / "samples").iterdir()}
            run.samples(1, "grpo", groups, [["a", "b"]] * 3, [{}] * 3, None, None)
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "samples").iterdir()} == written
        one, two, three = (line["images"] for line in list(rows(tmp_path / "samples.jsonl"))[:3])
        assert one[1] == two[0] and len({*one, *two, *three}) == len(written) == 3
        with Image.open(tmp_path / one[0]) as shown:
            assert shown.size == (256, 192) and shown.getpixel((5, 5)) == (10, 0, 0)

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "1", "CMYK"])
    def test_any_mode(self, tmp_path: Path, mode: str) -> None:
        with RunFolder(tmp_path) as run:
            run.samples(0, "eval", [group(lambda: Image.new(mode, (9, 5)))], [["a", "b"]], [{}], None, None)
        (told,) = rows(tmp_path / "samples.jsonl")
        with Image.open(tmp_path / told["images"][0]) as shown:
            assert shown.size == (9, 5)

    def test_a_picture_that_is_gone_costs_no_line(self, tmp_path: Path) -> None:
        def gone() -> Image.Image:
            raise BadImage("it was there")

        with RunFolder(tmp_path) as run:
            run.samples(0, "grpo", [group(gone, picture(1))], [["a", "b"]], [{}], None, None)
        (told,) = rows(tmp_path / "samples.jsonl")
        assert len(told["images"]) == 1


SECRETS = [
    "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567",
    "sk-proj-4fT9xQ_abcdefgh0123456789",
    "ghp_0123456789abcdefghijABCDEFGHIJ0123",
    "AKIAIOSFODNN7EXAMPLE",
    "Bearer abcdefgh12345678",
    "http://user:hunter22@proxy:8080/x",
]


class TestSecrets:
    @pytest.mark.parametrize("secret", SECRETS)
    def test_known_kinds_go_wherever_they_stand(self, secret: str) -> None:
        left = json.dumps(scrubbed({"note": f"called with {secret} today", "deep": [{"x": (secret,)}]}))
        assert secret.split()[-1] not in left and "hunter22" not in left
        assert "called with" in left and "today" in left

    @pytest.mark.parametrize(
        "name",
        ["HF_TOKEN", "WANDB_API_KEY", "api_key", "token", "key", "MY_SECRET_THING", "db-password", "aws.credentials",
         "Authorization", "apikey", "accessToken"],
    )  # fmt: skip
    def test_names_that_say_secret(self, name: str) -> None:
        assert scrubbed({name: "correct horse"}) == {name: "***"}
        assert scrubbed({name: ["a", {"b": "c"}]}) == {name: ["***", {"b": "***"}]}

    def test_what_is_no_secret_stays(self) -> None:
        harmless = {
            "max_prompt_tokens": 512, "token_budget": 16384, "tokens_per_second": 8.5, "token": None, "stop": ["</a>"],
            "model": "/data/hf_datasets/sk-learn/tokenizer", "keep": 2, "keyboard": "qwerty", "url": "https://a.b/c:d",
            "commit": "0123456789abcdef0123456789abcdef01234567", "mean_ms_per_token": 0.25, "monkey": "see",
        }  # fmt: skip
        assert scrubbed(harmless) == harmless

    def test_values_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOME_API_KEY", "abcdefabcdefabcdef")
        assert scrubbed_text("x=abcdefabcdefabcdef;") == "x=***;"

    def test_nothing_of_it_in_the_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
        settings = f"# with {SECRETS[0]}\nrun:\n  name: try\n  api_key: |\n    several\n    lines\nmodel: tiny\n"
        with RunFolder(tmp_path) as run:
            run.write_settings(settings)
            assert "tiny" in (tmp_path / "settings.yaml").read_text()
            argv = f"--key {SECRETS[1]} {os.environ['WANDB_API_KEY']}"
            run.write_summary({"settings": {"hub_token": "x1"}, "argv": argv})
            found = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()).decode()
        for secret in (SECRETS[0], SECRETS[1], "several", "x1", os.environ["WANDB_API_KEY"]):
            assert secret not in found

    def test_harmless_settings_keep_their_comments(self, tmp_path: Path) -> None:
        text = "# what is known\nlearning_rate: 1.0e-06  # ours\n"
        with RunFolder(tmp_path) as run:
            run.write_settings(text)
        assert (tmp_path / "settings.yaml").read_text() == text


class Recorder:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def open(self, run: Path) -> None:
        self.seen.append("open")

    def log(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        self.seen.append((step, phase, dict(values)))

    def rewind(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.seen.append([row["step"] for row in rows])

    def close(self) -> None:
        self.seen.append("close")


class TestTrackers:
    def test_metrics_and_timing_reach_every_tracker(self, tmp_path: Path) -> None:
        one, two = Recorder(), Recorder()
        with RunFolder(tmp_path, trackers=[one, two]) as run:
            run.log(1, "grpo", {"reward": 1, "kl": math.nan})
            sizes = run.sizes()
            run.timing(1, "grpo", {"seconds": 2.0})
            run.rewind(sizes)
        assert one.seen == two.seen
        assert one.seen == ["open", (1, "grpo", {"reward": 1.0}), (1, "grpo", {"seconds": 2.0}), [1], "close"]

    def test_tensorboard_holds_the_run_as_it_is_after_a_resume(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        with RunFolder(tmp_path, trackers=[TensorBoard()]) as run:
            run.log(1, "sft", {"loss": 2.0})
            run.log(1, "grpo", {"reward": 1.0})
            sizes = run.sizes()
            run.log(2, "grpo", {"reward": 9.0})
        with RunFolder(tmp_path, trackers=[TensorBoard()]) as run:
            run.rewind(sizes)
            run.log(2, "grpo", {"reward": 2.0})
            run.timing(2, "grpo", {"seconds": 3.0})
        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        told = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        assert told == {"sft/loss": [(1, 2.0)], "grpo/reward": [(1, 1.0), (2, 2.0)], "grpo/seconds": [(2, 3.0)]}

    def test_tensorboard_names_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
        with pytest.raises(BadSettings, match="pip install tensorboard"):
            TensorBoard()

    def test_wandb_offline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")
        with RunFolder(tmp_path, trackers=[Wandb(name="try", settings={"hub_token": "abcdefgh"})]) as run:
            run.log(1, "grpo", {"reward": 1.0})
        assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
        assert not any(b"abcdefgh" in path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file())
        assert capfd.readouterr().out == ""

    def test_wandb_names_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("grpo_fast.train.trackers.find_spec", lambda name: None)
        with pytest.raises(BadSettings, match="pip install wandb"):
            Wandb()


class TestDevices:
    @pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc")
    def test_host_memory_is_the_kernels_figure(self) -> None:
        told = Devices().sample()["host_memory_mb"]
        status = Path("/proc/self/status").read_text()
        kb = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
        assert told == pytest.approx(kb / 1024, rel=0.05)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without CUDA")
    def test_nothing_of_a_gpu_without_one(self) -> None:
        assert set(Devices().sample()) <= {"host_memory_mb"}

    @pytest.mark.gpu
    def test_the_gpu_of_this_process(self) -> None:
        held = torch.zeros(64 << 20, device="cuda")  # 256 MB
        told = Devices().sample()
        assert held.numel() * 4 / 2**20 < told["gpu_memory_mb"] <= told["gpu_memory_total_mb"]
        total = torch.cuda.get_device_properties(0).total_memory / 2**20
        assert told["gpu_memory_total_mb"] == pytest.approx(total, rel=0.1)
