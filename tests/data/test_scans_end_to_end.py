"""Real CT, MR and ultrasound files, as scanners wrote them, through `grpo-fast train` and `grpo-fast eval`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data.owners import write_lines
from data.scans import CT, MR, ULTRASOUND, bundled, series
from PIL import Image
from pydicom import dcmread

from grpo_fast import cli
from grpo_fast.data import open_data
from grpo_fast.policy.processor import Processor

OPTIONS = "A) CT, B) MRI, C) Ultrasound"
SMALL = [
    "--model", "tiny", "--sft-steps", "1", "--sft-batch", "4", "--steps", "1", "--prompts-per-step", "2",
    "--group-size", "2", "--max-completion-length", "6", "--eval-every", "0", "--threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    series(folder / "ct", 5)
    cine = str(bundled("examples_ybr_color.dcm"))
    shown = {
        "A": [str(bundled(CT)), "ct#slices=3", "ct", str(bundled("693_J2KI.dcm"))],
        "B": [str(bundled(name)) for name in (MR, "MR_small_RLE.dcm", "examples_overlay.dcm")],
        "C": [str(bundled(ULTRASOUND)), str(bundled("examples_palette.dcm")), f"{cine}#slices=2"],
    }
    modality = {"A": "CT", "B": "MR", "C": "Ultrasound"}
    records = [
        {
            "image": reference,
            "problem": f"<image>Which modality is it? {OPTIONS}",
            "solution": f"<answer>{letter}</answer>",
            "modality": modality[letter],
            "history": "Cough, A) dry or B) wet.",
        }
        for letter, references in shown.items()
        for reference in references
    ]
    moving = {"image": None, "video": cine, "problem": f"<video>Which modality is it? {OPTIONS}"}
    return write_lines(folder / "scans.jsonl", [*records, {**records[-1], **moving}])


def test_train_and_eval(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    run, answers = tmp_path / "run", tmp_path / "eval"
    try:
        trained = cli.main(["train", *SMALL, "--data", str(scans), "--eval-data", str(scans), "--output", str(run)])
        assert trained == 0, capsys.readouterr().err
        asked = ["eval", "--model", str(run / "model"), "--data", str(scans), "--max-tokens", "6", "--batch", "4"]
        assert cli.main([*asked, "--output", str(answers), "--json"]) == 0, capsys.readouterr().err
    finally:
        torch.set_num_threads(threads)
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["accuracy"]) == {"start", "sft", "grpo"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"sft", "grpo", "eval"} <= {line["phase"] for line in lines}
    (evaluated, *_) = [line for line in lines if line["phase"] == "eval"]
    assert {"accuracy/ct", "accuracy/mri", "accuracy/ultrasound"} <= evaluated.keys()
    cases = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    # The pictures that the run kept are the scans: the MR as its file says it is to be shown.
    kept = [np.asarray(Image.open(run / name)) for case in cases for name in case["images"]]
    pixels = dcmread(bundled(MR)).pixel_array.astype(np.float64)
    mr = np.rint(((pixels - 599.5) / 1599 + 0.5).clip(0, 1) * 255).astype(np.uint8)
    assert any(picture.shape == (64, 64, 3) and np.array_equal(picture, np.stack([mr] * 3, -1)) for picture in kept)
    several = [case for case in cases if len(case["images"]) == 3]
    assert several and all(len(set(case["images"])) == 3 for case in several)  # three different slices
    (answered,) = answers.rglob("answers.jsonl")
    assert len(answered.read_text().splitlines()) == len(open_data([str(scans)]))
    processor = Processor.from_pretrained(str(run / "model"))
    prompts = [processor(sample) for sample in open_data([str(scans)])]
    kinds = [[vision.kind for vision in prompt.vision] for prompt in prompts]
    assert [len(one) for one in kinds] == [1, 3, 1, 1, 1, 1, 1, 1, 1, 2, 1] and kinds[-1] == ["video"]
    assert prompts[-1].vision[0].grid[0] == 1  # two frames, of a second
