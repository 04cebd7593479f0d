"""Ids, pixels, positions against transformers' processors and `get_rope_index`, from a folder laid out as the hub's."""

from __future__ import annotations

import json

import pytest
import torch
from policy_inputs.make import CHAT_TEMPLATE, build_config, picture, preprocessing, sample_of
from transformers.processing_utils import ProcessorMixin
from transformers.video_utils import VideoMetadata

from grpo_fast.errors import BadCheckpoint, MissingChatTemplate
from grpo_fast.policy.patches import VisionSettings
from grpo_fast.policy.pretrained import load_chat_template
from grpo_fast.policy.processor import Processor
from grpo_fast.types import Prompt, Sample

A, B = picture(200, 90, 1), picture(60, 130, 2)
FRAMES = [picture(90, 70, seed) for seed in range(5)]  # odd: the last instant has one frame
only_qwen2 = pytest.mark.parametrize("model_type", ["qwen2_vl"])  # what does not depend on the family
MIXES = {
    "text": ["which modality is this?"],
    "image": [A, "which modality?"],
    "images": ["first ", A, " then ", B, A, " which?"],
    "adjacent": [A, B],
    "video": [FRAMES, "which modality?"],
    "mixed": ["a ", FRAMES, " b ", A, FRAMES[:2], " c ", B, "which?"],
}


@pytest.fixture(params=MIXES)
def mix(request):
    return MIXES[request.param]


def theirs(reference, prompt: Prompt, fps: float) -> list[int]:
    """The ids of transformers' own template rendering and placeholder expansion."""
    sample = prompt.sample
    assert sample is not None
    tokenizer = reference.tokenizer
    text = tokenizer.apply_chat_template(
        sample.messages, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    if not sample.videos:
        images = [load() for load in sample.images] or None
        return reference(images=images, text=[text])["input_ids"][0]
    # Without torchvision there is no video processor: its grids are given, the expansion is theirs.
    grids = {kind: torch.tensor([v.grid for v in prompt.vision if v.kind == kind]) for kind in ("image", "video")}
    counts = [len(load()) for load in sample.videos]
    metadata = [VideoMetadata(count, fps=fps, frames_indices=list(range(count))) for count in counts]
    inputs = {"image_grid_thw": grids["image"], "video_grid_thw": grids["video"], "video_metadata": metadata}
    images = [reference.replace_image_token(inputs, index) for index in range(len(sample.images))]
    videos = [reference.replace_video_token(inputs, index) for index in range(len(sample.videos))]
    expanded, _ = reference.get_text_with_replacements([text], images, videos)
    return tokenizer(expanded[0])["input_ids"]


@pytest.mark.parametrize("fps", [2.0, 0.7, 24.0])
def test_ids_and_positions(processor, reference, rope_model, model_type, mix, fps):
    prompt = processor(sample_of(*mix, fps=fps))
    assert prompt.input_ids.tolist() == theirs(reference, prompt, fps)

    def grids(kind):
        return torch.tensor([v.grid for v in prompt.vision if v.kind == kind]) if kind in kinds else None

    kinds = [v.kind for v in prompt.vision]
    ids = prompt.input_ids[None]
    types = torch.tensor(reference.create_mm_token_type_ids(ids.tolist()))
    seconds = [v.seconds_per_grid for v in prompt.vision if v.kind == "video"]
    assert seconds == [2 / fps] * kinds.count("video")
    extra = {"second_per_grid_ts": seconds} if model_type == "qwen2_5_vl" and seconds else {}
    positions, delta = rope_model.get_rope_index(ids, types, grids("image"), grids("video"), **extra)
    assert prompt.positions.dtype == torch.int64 and torch.equal(prompt.positions, positions[:, 0])
    assert int(prompt.positions.max()) + 1 - len(prompt.input_ids) == int(delta)


@pytest.mark.parametrize("name", ["image", "images", "adjacent"])
def test_pixels(processor, reference, name):
    sample = sample_of(*MIXES[name])
    prompt = processor(sample)
    wanted = reference(
        images=[load() for load in sample.images], text=["<|image_pad|>" * len(sample.images)], return_tensors="pt"
    )
    assert [list(v.grid) for v in prompt.vision] == wanted["image_grid_thw"].tolist()
    assert torch.equal(torch.cat([v.pixels for v in prompt.vision]), wanted["pixel_values"])


def test_equal_images_share_a_key(processor):
    first, second, third = processor(sample_of(A, B, A.copy())).vision
    assert first.key == third.key != second.key


def test_vision_follows_its_placeholders(processor):
    prompt = processor(sample_of(FRAMES, A, FRAMES[:2], B))
    assert [v.kind for v in prompt.vision] == ["video", "image", "video", "image"]
    alone = [processor(sample_of(part)).vision[0].key for part in (FRAMES, A, FRAMES[:2], B)]
    assert [v.key for v in prompt.vision] == alone


@only_qwen2
def test_rendered_text_is_qwens(processor, tokenizer):
    sample = sample_of(picture(56, 56), "which?")
    ids = processor(sample).input_ids
    text = tokenizer.decode(ids).replace("<|image_pad|>", "", 3)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>which?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_qwen3_timestamps_in_words(loaded, tokenizer):
    text = tokenizer.decode(loaded["qwen3_vl"](sample_of(FRAMES, fps=2.0)).input_ids)
    # Frames at 0, 0.5, 1, 1.5, 2 s; the last is shown twice.
    for time in ("<0.2 seconds>", "<1.2 seconds>", "<2.0 seconds>"):
        assert text.count(f"{time}<|vision_start|><|video_pad|>") == 1
    assert text.count("seconds>") == 3


@only_qwen2
def test_a_prefilled_answer_is_continued(processor, tokenizer):
    question = {"role": "user", "content": "which?"}
    sample = Sample("s", [question, {"role": "assistant", "content": "It is a"}])
    text = tokenizer.decode(processor(sample).input_ids)
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\nIt is a")


@only_qwen2
def test_columnar_none_keys_do_not_make_images(processor):
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "which?", "image": None, "video": None}]
    prompt = processor(Sample("s", [{"role": "user", "content": parts}], (lambda: A,)))
    assert torch.equal(prompt.input_ids, processor(sample_of(A, "which?")).input_ids)


@only_qwen2
def test_columnar_none_keys_of_a_message_are_not_defined(checkpoint, tokenizer):
    template = "{% for m in messages %}{{ m.content }}{% if m.tool_calls is defined %} calls{% endif %}{% endfor %}"
    processor = Processor.from_pretrained(checkpoint, chat_template=template)
    prompt = processor(Sample("s", [{"role": "user", "content": "which?", "tool_calls": None}]))
    assert tokenizer.decode(prompt.input_ids) == "which?"


def test_pixel_limits_can_be_set(checkpoint, model_type):
    low = Processor.from_pretrained(checkpoint, max_pixels=64 * 64)
    high = Processor.from_pretrained(checkpoint, min_pixels=300 * 300, max_pixels=400 * 400)
    unit = low.images.patch_size**2

    def pixels(processor, part):
        _, rows, columns = processor(sample_of(part)).vision[0].grid
        return rows * columns * unit

    assert pixels(low, A) <= 64 * 64 and 300 * 300 <= pixels(high, A) <= 400 * 400
    if model_type != "qwen3_vl":
        assert pixels(low, FRAMES) <= 64 * 64 and pixels(high, FRAMES) >= 300 * 300


# The layouts that transformers has written over the years; each must give the same processor.
LAYOUTS = ["legacy", "jinja", "tokenizer", "nested", "video file"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(checkpoint, processor, model_type, layout):
    wanted = processor
    raw = preprocessing(model_type)
    video = raw | {"size": {"shortest_edge": 10_000, "longest_edge": 20_000}, "min_pixels": None, "max_pixels": None}
    if layout == "jinja":
        (checkpoint / "chat_template.json").unlink()
        (checkpoint / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    if layout == "tokenizer":
        (checkpoint / "chat_template.json").unlink()
        config = json.loads((checkpoint / "tokenizer_config.json").read_text())
        (checkpoint / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": CHAT_TEMPLATE}))
    if layout == "nested":
        (checkpoint / "preprocessor_config.json").unlink()
        nested = {"image_processor": raw, "video_processor": video}
        (checkpoint / "processor_config.json").write_text(json.dumps(nested))
    if layout == "video file":
        (checkpoint / "video_preprocessor_config.json").write_text(json.dumps(video))
    given = Processor.from_pretrained(checkpoint)
    assert given.template.chat_template == CHAT_TEMPLATE == wanted.template.chat_template
    assert given.images == wanted.images
    limits = (given.videos.min_pixels, given.videos.max_pixels)
    own = layout in ("nested", "video file")
    assert limits == ((10_000, 20_000) if own else (wanted.images.min_pixels, wanted.images.max_pixels))


@only_qwen2
@pytest.mark.parametrize("number", range(1, 8))
def test_of_several_templates_the_one_that_transformers_takes(checkpoint, number):
    (checkpoint / "chat_template.json").unlink()
    for place, name in enumerate(("processor_config.json", "chat_template.json", "chat_template.jinja")):
        if number >> place & 1:
            text = f"{{# {name} #}}"
            (checkpoint / name).write_text(text if place == 2 else json.dumps({"chat_template": text}))
    wanted = ProcessorMixin.get_processor_dict(checkpoint)[0]["chat_template"]
    assert load_chat_template(checkpoint) == wanted
    assert Processor.from_pretrained(checkpoint).template.chat_template == wanted


def test_programmatic_equals_loaded(processor, tokenizer, model_type):
    built = Processor(
        tokenizer,
        VisionSettings.from_dict(preprocessing(model_type)),
        build_config(model_type, tokenizer),
        chat_template=CHAT_TEMPLATE,
    )
    sample = sample_of(*MIXES["mixed"])
    one, other = processor(sample), built(sample)
    assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.positions, other.positions)
    assert [v.key for v in one.vision] == [v.key for v in other.vision]


@pytest.mark.parametrize("name", ["text", "image", "images"])  # frames are resized by another library there
def test_auto_processor_where_torchvision_is(checkpoint, processor, name):
    pytest.importorskip("torchvision", reason="AutoProcessor of Qwen-VL imports torchvision")
    from transformers import AutoProcessor

    prompt = processor(sample_of(*MIXES[name]))
    auto = AutoProcessor.from_pretrained(checkpoint)
    sample = prompt.sample
    text = auto.apply_chat_template(sample.messages, chat_template=CHAT_TEMPLATE, add_generation_prompt=True)
    wanted = auto(images=[load() for load in sample.images] or None, text=[text], return_tensors="pt")
    assert torch.equal(prompt.input_ids, wanted["input_ids"][0])
    if prompt.vision:
        ours = torch.cat([v.pixels for v in prompt.vision])
        assert (ours - wanted["pixel_values"]).abs().max() <= 3 / 255 / 0.26  # torchvision rounds its bicubic elsewhere


def rewrite(checkpoint, name, change):
    path = checkpoint / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@only_qwen2
def test_missing_chat_template(checkpoint):
    (checkpoint / "chat_template.json").unlink()
    with pytest.raises(MissingChatTemplate, match=r"add chat_template.jinja"):
        Processor.from_pretrained(checkpoint)
    assert Processor.from_pretrained(checkpoint, chat_template=CHAT_TEMPLATE)(sample_of("hi")).vision == ()


@only_qwen2
def test_missing_preprocessor_config(checkpoint):
    (checkpoint / "preprocessor_config.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"has neither preprocessor_config\.json nor"):
        Processor.from_pretrained(checkpoint)


@only_qwen2
def test_broken_json(checkpoint):
    (checkpoint / "preprocessor_config.json").write_text("{")
    with pytest.raises(BadCheckpoint, match=r"preprocessor_config\.json is not JSON"):
        Processor.from_pretrained(checkpoint)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(BadCheckpoint, match=r"tokenizer or config\.json cannot be loaded"):
        Processor.from_pretrained(tmp_path)


def test_settings_against_config(checkpoint):
    rewrite(checkpoint, "preprocessor_config.json", lambda raw: raw | {"patch_size": 32})
    with pytest.raises(BadCheckpoint, match=r"image settings have .*\(32, 2, 2\), the model's config"):
        Processor.from_pretrained(checkpoint)


@only_qwen2
def test_tokenizer_without_the_placeholder(checkpoint):
    rewrite(checkpoint, "config.json", lambda raw: raw | {"image_token_id": 10**6})
    with pytest.raises(BadCheckpoint, match=r"config.image_token_id = 1000000 is not a token"):
        Processor.from_pretrained(checkpoint)


def test_other_model_types(tokenizer):
    from transformers import Qwen2Config

    with pytest.raises(BadCheckpoint, match="model type 'qwen2' is not supported; supported: qwen2_vl"):
        Processor(tokenizer, VisionSettings(), Qwen2Config())
