"""Work and memory counted, stops, waiting for room, and what a user can do wrong."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import transformers
from policy_lab import VOCAB, picture, prompt, tiny_model
from rollout_lab import ROW_BYTES, mixed_prompts
from tokenizers import Tokenizer, decoders, models
from torch.overrides import TorchFunctionMode

from grpo_fast.errors import BadSampling, Diverged, PromptMismatch, PromptTooLong
from grpo_fast.policy import GRPOPolicy, Packer
from grpo_fast.rollout import Engine, SamplingParams
from grpo_fast.rollout.static import at_fixed_shapes


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen2_vl", torch.float32)


def letters() -> transformers.PreTrainedTokenizerFast:
    """A token for each letter, so that a stop string spans several."""
    vocab = {chr(0x4E00 + i): i for i in range(VOCAB - 10)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=chr(0x4E00)))
    tokenizer.decoder = decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.add_special_tokens({"additional_special_tokens": ["<|special|>"]})
    return fast


class Counted:
    """What passes through the first blocks of tower and language model, seen from outside."""

    def __init__(self, model) -> None:
        self.patches, self.tokens = 0, []
        self.hooks = [
            model.model.visual.blocks[0].register_forward_pre_hook(self._patches),
            model.model.language_model.layers[0].register_forward_pre_hook(self._tokens, with_kwargs=True),
        ]

    def _patches(self, _, args) -> None:
        self.patches += args[0].shape[0]

    def _tokens(self, _, args, kwargs) -> None:
        self.tokens.append((args[0] if args else kwargs["hidden_states"]).shape[1])

    def __exit__(self, *_) -> None:
        for hook in self.hooks:
            hook.remove()

    def __enter__(self) -> Counted:
        return self


def test_every_image_and_every_prompt_once(model) -> None:
    shared = picture(1, dtype=torch.float32)
    prompts = [
        prompt(model, [3, shared, 9], 0),
        prompt(model, [30], 1),
        prompt(model, [2, picture(2, (1, 6, 4), dtype=torch.float32), 3, shared, 4], 2),
    ]
    engine, group_size, tokens = Engine(model), 8, 5
    with Counted(model) as counted:
        engine.generate(prompts, group_size, SamplingParams(max_tokens=tokens, stop_tokens=()))
    lengths = [len(one.input_ids) for one in prompts]
    assert counted.patches == 24 + 24
    assert counted.tokens == [sum(lengths), *[3 * group_size] * (tokens - 1)]
    stats = engine.stats
    assert (stats.images, stats.prefilled_tokens) == (2, sum(lengths))
    assert stats.kv_rows == sum(length + group_size * tokens for length in lengths)
    assert stats.kv_bytes == stats.kv_rows * ROW_BYTES
    assert stats.sampled_tokens == 3 * group_size * tokens
    assert stats.finished == stats.completions == 3 * group_size
    assert engine._pool is not None and engine._pool.rows == stats.kv_rows and engine._pool.used == 0
    buffers = sum(x.numel() * x.element_size() for x in (*engine._pool.keys, *engine._pool.values))
    assert buffers == stats.kv_bytes
    engine.release()
    assert engine._pool is None


def test_finished_completions_leave_the_batch(model) -> None:
    engine = Engine(model)
    params = SamplingParams(max_tokens=30, stop_tokens=tuple(range(7, 40)))
    groups = engine.generate(mixed_prompts(model, 5), 6, params)
    lengths = [len(c) for one in groups for c in one.completions]
    assert len(set(lengths)) > 4
    assert engine.stats.decode_rows == sum(lengths) - len(lengths)  # the first tokens come from the prefill
    for one in groups:
        for completion, finished in zip(one.completions, one.finished, strict=True):
            stops = [int(token) in params.stop_tokens for token in completion]
            assert not any(stops[:-1]) and stops[-1] == finished
            assert finished or len(completion) == 30


class Waits(TorchFunctionMode):
    """Which functions of a rollout would wait for a GPU, and how often: at copies that block."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        moved = func is torch.Tensor.to and any(isinstance(x, torch.device) for x in (*args, *kwargs.values()))
        waits = (moved or func is torch.Tensor.copy_) and not kwargs.get("non_blocking")
        waits |= func in (torch.Tensor.cpu, torch.Tensor.item, torch.Tensor.tolist)
        frame = sys._getframe(1)
        if waits and frame.f_code.co_filename.endswith(("rollout/schedule.py", "rollout/static.py")):
            self.found[frame.f_code.co_name] += 1
        return func(*args, **kwargs)


@pytest.mark.parametrize("static_shapes", [False, True])
def test_a_decoding_step_waits_once(model, static_shapes: bool) -> None:
    """A copy that blocks behind the model's layers would leave the GPU idle until the next launches."""
    engine = Engine(model, static_shapes=static_shapes)
    prompts, params = mixed_prompts(model, 3), SamplingParams(max_tokens=6, stop_tokens=())
    engine.generate(prompts, 2, params)
    with Waits() as waits:
        engine.generate(prompts, 2, params)
    steps = {name: count for name, count in waits.found.items() if name in ("_sample", "_eager", "hidden")}
    assert steps == {"_sample": engine.stats.decode_steps + 1}  # and after the prefill


def test_prompts_enter_as_room_frees(model) -> None:
    prompts = mixed_prompts(model, 9)
    params = SamplingParams(max_tokens=10, stop_tokens=tuple(range(7, 60)), seed=3)
    roomy, tight, narrow = Engine(model), Engine(model, kv_bytes=100 * ROW_BYTES), Engine(model, max_rows=4)
    expected = roomy.generate(prompts, 3, params)
    for engine in (tight, narrow):
        found = engine.generate(prompts, 3, params)
        for a, b in zip(expected, found, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a.completions, b.completions, strict=True))
        assert engine.stats.prefilled_tokens == roomy.stats.prefilled_tokens
        assert engine.stats.images == roomy.stats.images
    assert tight.stats.kv_rows <= 100 < roomy.stats.kv_rows
    assert tight.stats.decode_steps < 9 * 9  # not one prompt after the other


def test_stop_strings(model) -> None:
    tokenizer = letters()
    engine = Engine(model, tokenizer=tokenizer)
    one = prompt(model, [5])
    free = engine.generate([one], 4, SamplingParams(max_tokens=12, stop_tokens=()))[0]
    wanted = tokenizer.decode(free.completions[2][4:7])
    assert len(wanted) == 3
    params = SamplingParams(max_tokens=12, stop_tokens=(), stop_strings=("never there", wanted))
    made = engine.generate([one], 4, params)[0]
    assert torch.equal(made.completions[2], free.completions[2][:7])
    assert made.finished[2]
    for other in (0, 1, 3):
        assert made.finished[other] == (wanted in tokenizer.decode(free.completions[other]))


def test_bans_come_from_the_tokenizer(model) -> None:
    tokenizer = letters()
    banned = Engine(model, tokenizer=tokenizer).banned_tokens(SamplingParams())
    special = tokenizer.convert_tokens_to_ids("<|special|>")
    assert {special, *range(len(tokenizer), VOCAB)} <= set(banned)
    assert special not in Engine(model, tokenizer=tokenizer).banned_tokens(SamplingParams(stop_tokens=(special,)))
    assert 2 in Engine(model).stop_tokens(SamplingParams())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"temperature": 0}, "greedy=True"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"temperature": float("nan")}, "finite"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"stop_strings": "end"}, "stop_strings"),
        ({"stop_strings": ("",)}, "stop_strings"),
        ({"stop_tokens": (-1,)}, "stop_tokens"),
    ],
    ids=str,
)
def test_bad_settings(options: dict, complaint: str) -> None:
    with pytest.raises(BadSampling, match=complaint):
        SamplingParams(**options)


def test_bad_requests(model) -> None:
    engine, one = Engine(model), prompt(model, [5])
    for size in (0, -1, 1.5, True):
        with pytest.raises(BadSampling, match="group_size"):
            engine.generate([one], size)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadSampling, match="2 seeds for 1 prompts"):
        engine.generate([one], 1, seeds=[1, 2])
    with pytest.raises(BadSampling, match="tokenizer"):
        engine.generate([one], 1, SamplingParams(stop_strings=("x",)))
    with pytest.raises(BadSampling, match="outside the vocabulary"):
        engine.generate([one], 1, SamplingParams(stop_tokens=(VOCAB,)))
    with pytest.raises(PromptMismatch, match="placeholder"):
        engine.generate([prompt(model, [2, picture(0), 2]), _without_image(model)], 1)
    assert engine.generate([], 4) == []
    small = Engine(model, kv_bytes=40 * ROW_BYTES)
    with pytest.raises(PromptTooLong, match=r"prompt 1: .* 43 rows .* holds 40.*raise kv_bytes") as caught:
        small.generate([one, prompt(model, [13])], 3, SamplingParams(max_tokens=10))
    assert caught.value.tokens == 43
    with pytest.raises(ValueError, match="kv_bytes"):
        Engine(model, kv_bytes=0)


def _without_image(model):
    whole = prompt(model, [2, picture(0), 2])
    return type(whole)(whole.input_ids, whole.positions)


def test_a_model_without_images_is_refused() -> None:
    config = transformers.Qwen2Config(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match="model type 'qwen2' is not supported; known: qwen2_vl"):
        Engine(transformers.Qwen2ForCausalLM(config))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_model_is_named(bad: float) -> None:
    model = tiny_model("qwen2_vl", torch.float32, tied=False)
    engine, one, params = Engine(model), prompt(model, [5]), SamplingParams(greedy=True, max_tokens=4, stop_tokens=())
    first = int(engine.generate([one], 1, params)[0].completions[0][0])
    other = next(p for seed in range(1, 9) if first not in (p := prompt(model, [3], seed)).input_ids.tolist())
    last = int(other.input_ids[-1])
    assert len({first, last} | set(one.input_ids.tolist())) == 7
    embeddings = model.model.language_model.embed_tokens.weight.data
    embeddings[first] = bad  # met when the sampled token is fed back
    with pytest.raises(Diverged, match="prompt 0, completion 0, token 1: the logits are not finite"):
        engine.generate([one, other], 2, params)
    embeddings[last] = bad
    with pytest.raises(Diverged, match="prompt 1, completion 0, token 0: the logits are not finite"):
        engine.generate([one, other], 2, params)
    assert engine.policy.training


def test_an_interrupt_leaves_everything_as_it_was(model) -> None:
    policy = GRPOPolicy(model)
    engine = Engine(policy)
    prompts, params = mixed_prompts(model, 4), SamplingParams(max_tokens=8)
    expected = engine.generate(prompts, 3, params)
    implementation = model.model.language_model.config._attn_implementation

    def interrupt(stats) -> None:
        if stats.decode_steps == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts, 3, params, watch=interrupt)
    assert model.training and torch.is_grad_enabled()
    assert model.model.language_model.config._attn_implementation == implementation
    again = engine.generate(prompts, 3, params)
    for a, b in zip(expected, again, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.completions, b.completions, strict=True))


def test_a_rollout_leaves_every_part_in_its_mode(model) -> None:
    loaded = copy.deepcopy(model).eval()  # as from_pretrained gives it
    loaded.model.language_model.layers[1].train()
    engine = Engine(loaded)
    before = {name: part.training for name, part in engine.policy.named_modules()}
    engine.generate(mixed_prompts(model, 2), 1, SamplingParams(max_tokens=2))
    assert {name: part.training for name, part in engine.policy.named_modules()} == before


def test_an_engine_that_was_asked_in_inference_mode_goes_on_in_training() -> None:
    model = tiny_model("qwen2_vl", torch.float32)
    model.model.visual.requires_grad_(False)  # so that its features are kept
    policy = GRPOPolicy(model)
    engine, packer = Engine(policy), Packer(policy.prompt_spec, 10**6, policy.loss.options)
    prompts, params = mixed_prompts(model, 3), SamplingParams(max_tokens=4)
    with torch.inference_mode():
        first = engine.generate(prompts, 2, params)
    groups = [replace(one, advantages=torch.tensor([1.0, -1.0])) for one in first]
    (batch,) = packer.pack([replace(one, prompt=replace(one.prompt, features=None)) for one in groups]).batches
    policy.features.clear()
    with torch.inference_mode():
        policy.logps(batch)
    for one in (batch, *packer.pack(groups).batches):
        policy(one).loss.backward()
    second = engine.generate(prompts, 2, params)
    assert all(
        torch.equal(x, y)
        for a, b in zip(first, second, strict=True)
        for x, y in zip(a.completions, b.completions, strict=True)
    )


def test_more_graphs_than_torch_compiles_of_one_function() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()

    def prepared(size: int) -> torch.Tensor:
        x = torch.ones(size)

        def forward() -> torch.Tensor:
            return x + size

        return at_fixed_shapes(forward, backend=counter)()

    for size in range(1, 13):
        assert prepared(size).tolist() == size * [1.0 + size]
    assert counter.frame_count == 12
