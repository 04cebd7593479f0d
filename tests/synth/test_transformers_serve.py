"""The command against `transformers serve`: another's server, with a model, pictures and all."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_fast.data.phantom import phantom
from grpo_fast.errors import RunFailed
from grpo_fast.rewards.accuracy import question_of
from grpo_fast.synth import command
from grpo_fast.train import tiny

for name in ("fastapi", "uvicorn", "openai", "torchvision"):
    pytest.importorskip(
        name, reason="transformers serve shows Qwen-VL pictures with transformers[serving] and torchvision"
    )

# transformers' server finds the reply by these marks.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SERVE = "from transformers.cli.transformers import main; main()"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [question_of(sample) + sample.meta["response"] for sample in phantom("train", 40)]
    folder = tiny.build(tmp_path_factory.mktemp("models"), texts, hidden=64, layers=1, vision_layers=1, vision_width=32)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    config = folder / "generation_config.json"  # without the first it takes no notice of a temperature
    config.write_text(json.dumps(json.loads(config.read_text()) | {"do_sample": True, "top_k": 0}))
    return folder


@pytest.fixture(scope="module")
def url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    given = ["serve", str(model), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-c", SERVE, *given], stdout=file, stderr=file, env=environment)
    try:
        for _ in range(300):
            if process.poll() is not None:
                pytest.fail(f"transformers serve ended with {process.returncode}: {log.read_text()[-2000:]}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def synth(url: str, name: str, output: Path, *more: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    given = [
        "--data",
        "phantom",
        "--max-samples",
        "6",
        "--k",
        "3",
        "--max-tokens",
        "12",
        "--temperature",
        "2",
        "--server",
        url,
    ]
    return command.run(parser.parse_args([*given, "--server-model", name, "--output", str(output), *more]))


def chains(output: Path) -> dict[int, list[dict[str, object]]]:
    lines = (output / "chains.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["place"]: line["chains"] for line in map(json.loads, lines)}


def test_chains_of_a_real_server(url: str, model: Path, tmp_path: Path) -> None:
    assert synth(url, str(model), tmp_path / "a", "--concurrency", "1") == 0
    found = chains(tmp_path / "a")
    assert len(found) == 6 and all(len(one) == 3 for one in found.values())
    texts = [str(chain["text"]) for one in found.values() for chain in one]
    assert len(set(texts)) > 12 and not any("<|im_" in text or "Your task" in text for text in texts)
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["all"]["chains"] == 18 and not report["skipped"]
    assert report["all"]["refused"]["cut off"] == sum(not chain["finished"] for one in found.values() for chain in one)
    # Asked one at a time, it draws the same for the same seeds.
    assert synth(url, str(model), tmp_path / "b", "--concurrency", "1") == 0
    assert chains(tmp_path / "b") == found
    assert synth(url, str(model), tmp_path / "c", "--concurrency", "4") == 0
    assert len(chains(tmp_path / "c")) == 6


def test_a_model_it_does_not_serve(url: str, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"refused 3 questions in a row.*--server-model 'another'"):
        synth(url, "another", tmp_path)
