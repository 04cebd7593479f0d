"""However an image is given, it is opened when asked for, and reaches the model as the right pixels."""

from __future__ import annotations

import base64
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.owners import easy_r1, picture, png, save, vlm_r1, write_lines
from PIL import Image
from policy_inputs.make import CHAT_TEMPLATE, SPECIAL, build_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from grpo_fast.data import open_data
from grpo_fast.data.images import ImageFile, loader
from grpo_fast.data.prompts import prompt_style
from grpo_fast.policy.patches import VisionSettings
from grpo_fast.policy.processor import Processor


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_every_kind_of_reference(tmp_path: Path) -> None:
    path = save(tmp_path / "pics" / "50% a.png")
    text = base64.b64encode(png()).decode()
    references = [
        "pics/50% a.png", str(path), f"file://{path}", path.as_uri(), f"file://localhost{path}", "./pics/50% a.png",
        f"data:image/png;base64,{text}", f"data:image/png;base64,{text[:40]}\n{text[40:]}", f"DATA:;base64,{text}",
        png(), bytearray(png()), {"bytes": png(), "path": None}, {"bytes": None, "path": str(path)},
        {"bytes": text}, {"path": "pics/50% a.png"}, picture(),
    ]  # fmt: skip
    for reference in references:
        load = loader(reference, tmp_path, "t.jsonl:1")
        assert np.array_equal(np.asarray(load()), np.asarray(picture())), reference
        assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(load))()), np.asarray(picture()))


def test_images_are_opened_when_asked_for(tmp_path: Path) -> None:
    data = open_data([str(write_lines(tmp_path / "t.jsonl", [vlm_r1("late.png")]))])
    sample = data[0]
    save(tmp_path / "late.png", 3)
    assert isinstance(sample.images[0], ImageFile)
    assert np.array_equal(np.asarray(sample.images[0]()), np.asarray(picture(3)))


@pytest.fixture(scope="module")
def processor() -> Processor:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    tokens = Tokenizer(models.BPE(vocabulary, []))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, additional_special_tokens=list(SPECIAL))
    settings = VisionSettings(mean=(0.0,) * 3, std=(1.0,) * 3, min_pixels=28 * 28, max_pixels=112 * 112)
    return Processor(tokenizer, settings, build_config("qwen2_vl", tokenizer), chat_template=CHAT_TEMPLATE)


def seen(processor: Processor, sample: Any) -> np.ndarray:
    """[h, w, 3] bytes that the tower gets to see, put together again from its patches (merge blocks of 2 x 2)."""
    (vision,) = processor(sample).vision
    _, h, w = vision.grid
    patches = vision.pixels.reshape(h // 2, w // 2, 2, 2, 3, 2, 14, 14)[:, :, :, :, :, 0]  # both frames are alike
    image = patches.permute(0, 2, 5, 1, 3, 6, 4)
    return (image.reshape(h * 14, w * 14, 3).numpy() * 255).round().astype(np.uint8)


def written(tmp_path: Path) -> dict[str, tuple[bytes, np.ndarray]]:
    """Name: a file's bytes, and the upright RGB picture that a viewer shows on white."""
    rgb = picture(1, (56, 84))
    grey, palette = rgb.convert("L"), rgb.quantize(16)
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(np.where(np.arange(84)[:, None] < 42, 255, 0).repeat(56, 1).astype(np.uint8)))
    on_white = np.asarray(rgb).copy()
    on_white[42:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    deep = np.random.default_rng(2).integers(0, 65536, (84, 56), dtype=np.uint16)
    seen_through, keyed = np.asarray(palette.convert("RGB")).copy(), int(np.asarray(palette)[0, 0])
    seen_through[np.asarray(palette) == keyed] = 255
    jpeg = encoded(rgb, "JPEG")
    cmyk = encoded(rgb.convert("CMYK"), "JPEG")

    def three(values: np.ndarray) -> np.ndarray:
        return np.repeat(values[..., None], 3, -1)

    return {
        "rgb": (encoded(rgb), np.asarray(rgb)),
        "jpeg": (jpeg, np.asarray(Image.open(io.BytesIO(jpeg)))),
        "grey": (encoded(grey), three(np.asarray(grey))),
        "bilevel": (encoded(grey.convert("1")), three(np.asarray(grey.convert("1")) * np.uint8(255))),
        "palette": (encoded(palette), np.asarray(palette.convert("RGB"))),
        "palette with a clear colour": (encoded(palette, transparency=keyed), seen_through),
        "alpha": (encoded(alpha), on_white),
        "grey and alpha": (encoded(alpha.convert("LA")), np.concatenate([three(np.asarray(grey))[:42], on_white[42:]])),
        "16-bit": (encoded(Image.fromarray(deep)), three((deep >> 8).astype(np.uint8))),
        "16-bit tiff": (encoded(Image.fromarray(deep), "TIFF"), three((deep >> 8).astype(np.uint8))),
        "turned by EXIF": (encoded(rgb, exif=exif), np.asarray(rgb)[::-1].transpose(1, 0, 2)),
        "cmyk": (cmyk, np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB"))),
    }


@pytest.mark.parametrize("held", ["file", "parquet"])
def test_modes_end_to_end(tmp_path: Path, processor: Processor, held: str) -> None:
    """From a data file to the tower's patches, each pixel is the viewer's."""
    pictures = written(tmp_path)
    if held == "file":
        for number, (content, _) in enumerate(pictures.values()):
            (tmp_path / str(number)).write_bytes(content)
        path = write_lines(tmp_path / "t.jsonl", [vlm_r1(str(number)) for number in range(len(pictures))])
    else:
        path = tmp_path / "t.parquet"
        rows = [easy_r1([{"bytes": content, "path": None}]) for content, _ in pictures.values()]
        pq.write_table(pa.Table.from_pylist(rows), path)
    style = prompt_style("think")
    for sample, (name, (_, shown)) in zip(open_data([str(path)]), pictures.items(), strict=True):
        assert np.array_equal(seen(processor, style(sample)), shown), name


def test_order_of_images_end_to_end(tmp_path: Path, processor: Processor) -> None:
    for number in range(3):
        picture(number, (28 * (number + 1), 28)).save(tmp_path / f"{number}.png")
    record = easy_r1([f"{number}.png" for number in (2, 0, 1)], "A <image> B <image><image> C?")
    (sample,) = open_data([str(write_lines(tmp_path / "t.jsonl", [record]))])
    prompt = processor(prompt_style("no-think")(sample))
    assert [vision.grid[2] for vision in prompt.vision] == [6, 2, 4]
    text = processor.tokenizer.decode(prompt.input_ids.tolist())
    assert text.index("A ") < text.index("<|vision_start|>") < text.index(" B ") < text.index(" C? Your task: 1.")


def test_base64_in_json_lines(tmp_path: Path, processor: Processor) -> None:
    uri = "data:image/png;base64," + base64.b64encode(encoded(picture(4, (28, 28)))).decode()
    (tmp_path / "t.json").write_text(json.dumps([{"image": uri, "problem": "x", "solution": "y"}]))
    assert np.array_equal(seen(processor, open_data([str(tmp_path / "t.json")])[0]), np.asarray(picture(4, (28, 28))))
