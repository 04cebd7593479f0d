"""Samples that contradict themselves: refused by name, with the sample's id, before any pixel work where possible."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image
from policy_inputs.make import picture, sample_of

from grpo_fast.errors import BadImage, GRPOFastError, PromptMismatch, PromptTooLong
from grpo_fast.policy.processor import Processor
from grpo_fast.types import Sample

A = picture(200, 90)

only_qwen2 = pytest.mark.parametrize("model_type", ["qwen2_vl"])  # what does not depend on the family


def user(content, images=(), videos=()):
    return Sample("q17", [{"role": "user", "content": content}], images, videos)


IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


@only_qwen2
@pytest.mark.parametrize(
    "sample, message",
    [
        (user([IMAGE, IMAGE], (lambda: A,)), r"2 image placeholder\(s\), but it has 1 image"),
        (user([IMAGE], (lambda: A, lambda: A)), r"1 image placeholder\(s\), but it has 2 image"),
        (user("which?", (lambda: A,)), r"0 image placeholder\(s\), but it has 1 image"),
        (user([IMAGE]), r"1 image placeholder\(s\), but it has 0 image"),
        (user([VIDEO]), r"1 video placeholder\(s\), but it has 0 video"),
        (user("which?", (), (lambda: [A],)), r"0 video placeholder\(s\), but it has 1 video"),
        (user([VIDEO], (lambda: A,)), r"0 image placeholder\(s\), but it has 1 image"),
        (user([{"video": "a.mp4"}], (), (lambda: [A],)), r"1 video\(s\), but 0 .* part"),
        (Sample("q17", []), "has no messages"),
    ],
)
def test_counts_disagree(processor, sample, message):
    with pytest.raises(PromptMismatch, match=rf"sample 'q17'.*{message}"):
        processor(sample)


@only_qwen2
@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>"])
@pytest.mark.parametrize("place", ["part", "string", "system"])
def test_typed_placeholders(processor, token, place):
    typed = f"what does {token} mean?"
    turns = [{"role": "user", "content": [IMAGE, {"type": "text", "text": typed if place == "part" else "which?"}]}]
    if place != "part":
        turns.insert(0, {"role": "system" if place == "system" else "user", "content": typed})
    with pytest.raises(PromptMismatch, match=r"sample 'q17': a message's text contains <\|(image|video)_pad\|>"):
        processor(Sample("q17", turns, (lambda: A,)))


@only_qwen2
def test_a_typed_placeholder_cannot_stand_for_a_given_image(processor):
    with pytest.raises(PromptMismatch, match="would be taken for a picture"):
        processor(user("<|vision_start|><|image_pad|><|vision_end|>which?", (lambda: A,)))


@only_qwen2
def test_a_template_that_refuses(checkpoint):
    processor = Processor.from_pretrained(checkpoint, chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(PromptMismatch, match=r"sample 'q17': the chat template refuses .* roles must alternate"):
        processor(user("which?"))


@only_qwen2
def test_a_template_that_forgets_images(checkpoint):
    processor = Processor.from_pretrained(checkpoint, chat_template="{{ messages[0].content[1].text }}")
    with pytest.raises(PromptMismatch, match=r"0 image placeholder\(s\), but it has 1 image"):
        processor(user([IMAGE, {"type": "text", "text": "which?"}], (lambda: A,)))


@only_qwen2
@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), float("inf"), "two"])
def test_frame_rates(processor, fps):
    with pytest.raises(PromptMismatch, match="sample 's1': a video's fps must be a number above 0"):
        processor(sample_of([A, A], fps=fps))


@only_qwen2
def test_numpy_frame_rates_are_numbers(processor):
    assert processor(sample_of([A, A], fps=np.float32(4))).vision[0].seconds_per_grid == 0.5


def test_bad_images_name_sample_and_index(processor):
    for bad, message in ((Image.new("RGB", (1, 5000)), "1 x 5000 pixels"), (Image.new("RGB", (0, 5)), "is empty")):
        with pytest.raises(BadImage, match=rf"sample 'q17', image 1 .*{message}"):
            processor(sample_of(A, bad, id="q17"))
    with pytest.raises(BadImage, match="sample 'q17', video 0, frame 1"):
        processor(sample_of([A, Image.new("RGB", (1, 5000))], id="q17"))


def test_one_pixel(processor):
    vision = processor(sample_of(picture(1, 1), "which?")).vision[0]
    side = 64 if processor.timestamps else 56
    assert vision.grid == (1, side // processor.images.patch_size, side // processor.images.patch_size)
    assert vision.pixels.view(-1, 3, vision.pixels.shape[1] // 3).var(dim=(0, 2)).max() < 1e-12  # one colour


@only_qwen2
def test_long_prompts_are_refused_whole(processor):
    sample = sample_of(A, "which?", id="q17")
    length = len(processor(sample).input_ids)
    processor.max_prompt_tokens = length
    assert len(processor(sample).input_ids) == length
    processor.max_prompt_tokens = length - 1
    with pytest.raises(PromptTooLong, match=rf"sample 'q17': the prompt has {length} tokens, \d+ of them") as caught:
        processor(sample)
    assert caught.value.tokens == pickle.loads(pickle.dumps(caught.value)).tokens == length


@only_qwen2
def test_many(processor):
    samples = [sample_of("which?", id="a"), sample_of(A, "which?", id="b"), sample_of("which modality?", id="c")]
    prompts, dropped = processor.many(samples)
    assert [p.sample.id for p in prompts] == ["a", "b", "c"] and dropped == []
    processor.max_prompt_tokens = len(prompts[2].input_ids)
    prompts, dropped = processor.many(samples, on_long="drop")
    assert [p.sample.id for p in prompts] == ["a", "c"] and dropped == ["b"]
    with pytest.raises(PromptTooLong, match="sample 'b'"):
        processor.many(samples)
    with pytest.raises(PromptMismatch):  # only length drops: any other fault is raised
        processor.many([user([IMAGE])], on_long="drop")


def test_every_error_is_one_of_ours_and_a_value_error():
    assert all(issubclass(error, GRPOFastError) for error in (BadImage, PromptMismatch, PromptTooLong))
    assert issubclass(GRPOFastError, ValueError)
