"""A whole run: from settings to a trained model, its folder and what to say of it.

    start ─► warm start (a model built from a config, or where asked) ─► GRPO ─► model/ and summary.json

Each part goes on where an interrupted run of the same folder left it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from grpo_fast.data import Dataset
from grpo_fast.data.prompts import PromptStyle, prompt_style
from grpo_fast.errors import BadData, BadSettings
from grpo_fast.policy import GRPOPolicy
from grpo_fast.rewards import RewardSet
from grpo_fast.rollout import Engine, SamplingParams
from grpo_fast.train import assemble, export, state, tiny
from grpo_fast.train.draws import Draws
from grpo_fast.train.flags import to_yaml
from grpo_fast.train.folder import RunFolder
from grpo_fast.train.grpo import check_grpo, run_grpo
from grpo_fast.train.held_out import HeldOut
from grpo_fast.train.interrupts import Interrupted, Interrupts, how_to_go_on, interrupts
from grpo_fast.train.optim import eight_bit
from grpo_fast.train.questions import Labelled, datasets, labelled
from grpo_fast.train.ranks import Ranks, ranks
from grpo_fast.train.resolved import TINY, resolved
from grpo_fast.train.session import CHECKPOINTS, Session
from grpo_fast.train.settings import Settings
from grpo_fast.train.sft import Demonstrations, demonstrated, run_supervised, stop_token_of
from grpo_fast.train.summary import finish
from grpo_fast.train.trackers import TensorBoard, Tracker, Wandb
from grpo_fast.train.view import View
from grpo_fast.types import Sample

ORDERS = SFT_ORDER, GRPO_ORDER = 0, 1  # each phase has an order of its own
TEXTS = 2000  # questions that a tiny model's tokenizer is trained on


def train(settings: Settings, view: View, *, command: str = "train") -> dict[str, Any]:
    """The summary, as written. Interrupted (Ctrl-C, SIGTERM) after its last whole step was saved."""
    settings = resolved(settings)
    with ranks(settings.run.device) as group, interrupts(view.note) as asked:
        if settings.run.threads:
            torch.set_num_threads(settings.run.threads)
        torch.manual_seed(settings.run.seed)
        rewards = _checked(settings, group, command)
        path = Path(group.gather(settings.run.output or str(RunFolder.default_path()))[0])
        folder = RunFolder(path, trackers=_trackers(settings)) if group.first else None
        group.wait()
        try:
            session, source, questions = _session(settings, group, view, asked, path, folder, command)
            return _run(session, source, questions, rewards, command)
        except (Interrupted, KeyboardInterrupt):
            view.note(how_to_go_on(path))
            raise
        finally:
            if rewards is not None:
                rewards.close()
            if folder is not None:
                folder.close()


def _checked(settings: Settings, ranks: Ranks, command: str) -> RewardSet | None:
    """What a phase would refuse when it begins is refused before the folder is made and the first question asked."""
    if settings.optim.optimizer == "adamw_8bit":
        eight_bit()
    if command == "sft":
        return None
    check_grpo(settings, ranks)
    own = settings.rewards
    return RewardSet.of(
        own.rewards, own.reward_weights, style=prompt_style(settings.data.prompt).form, timeout=own.reward_timeout,
        workers=own.workers,
    )  # fmt: skip


def _run(session: Session, source: str, questions: Dataset, rewards: RewardSet | None, command: str) -> dict[str, Any]:
    settings, position = session.settings, session.position
    if "start" not in position.accuracy:
        session.evaluate(0, "start")
    taught = _taught(settings, questions, command)
    if position.phase == "sft" and taught is not None:
        _supervise(session, taught)
    if rewards is not None:
        if position.phase == "sft":
            position.phase, position.step, position.cursor, position.owes = "grpo", 0, 0, False
        reference = _reference(session, source, warmed="sft" in position.accuracy)
        run_grpo(session, _draws(session, questions, GRPO_ORDER, rewards.check), rewards, reference)
    return finish(session, source, len(questions), command)


def _session(
    settings: Settings, ranks: Ranks, view: View, asked: Interrupts, path: Path, folder: RunFolder | None, command: str
) -> tuple[Session, str, Dataset]:
    """Everything that a run needs, where its last checkpoint left it; with the model's source, and the questions."""
    questions, others = datasets(settings)
    style = prompt_style(settings.data.prompt)
    found = _checkpoint(settings, path, ranks)
    source = _source(settings, questions, style, path, ranks, fresh=found is None)
    processor = assemble.load_processor(settings.model, settings.data, source)
    policy = assemble.build_policy(settings, source, ranks)
    wrapped = assemble.wrapped(policy, settings, ranks)
    engine = Engine(
        policy, tokenizer=processor.tokenizer, kv_bytes=settings.rollout.kv_bytes,
        static_shapes=settings.rollout.static_shapes == "on",
    )  # fmt: skip
    held_out = HeldOut(
        others, processor, style, ranks, count=settings.data.eval_samples, seed=settings.run.seed,
        max_tokens=settings.max_tokens,
    )  # fmt: skip
    session = Session(
        settings, ranks, path, folder, view, asked, policy, wrapped, processor, style, engine, held_out
    )  # fmt: skip
    held_out.watch = session.watch_asking
    if found is not None:
        session.position = state.load(found, wrapped, None)
        if command == "sft" and session.position.phase == "grpo":
            raise BadSettings(f"--output {path} holds a run of `grpo-fast train`: name another folder for sft")
        view.note(f"going on from {found}")
        view.earlier(session.position.accuracy)
    if folder is not None:
        folder.write_settings(to_yaml(settings))
        folder.rewind(session.position.sizes)
    return session, source, questions


def _trackers(settings: Settings) -> list[Tracker]:
    run = settings.run
    found: list[Tracker] = [TensorBoard()] if run.tensorboard else []
    return [*found, Wandb(name=run.name, settings=asdict(settings))] if run.wandb else found


def _source(settings: Settings, train: Dataset, style: PromptStyle, path: Path, ranks: Ranks, *, fresh: bool) -> str:
    """Where the model comes from: its name, or the folder that a tiny one is built in."""
    if settings.model.model != TINY:
        return settings.model.model
    folder = path / TINY
    if ranks.first and fresh:
        texts = [text for sample in islice(_usable(train), TEXTS) for text in _texts(style(sample), style)]
        tiny.build(folder, texts, seed=settings.run.seed)
    ranks.wait()
    return str(folder)


def _usable(samples: Sequence[Sample]) -> Iterator[Sample]:
    for place in range(len(samples)):
        try:
            yield samples[place]
        except BadData:
            continue


def _texts(sample: Sample, style: PromptStyle) -> list[str]:
    found = [demonstrated(sample, style, as_it_stands=False)]
    for message in sample.messages:
        content = message["content"]
        found += [content] if isinstance(content, str) else [part["text"] for part in content if part.get("text")]
    return found


def _checkpoint(settings: Settings, path: Path, ranks: Ranks) -> Path | None:
    """Where the run goes on from. Without resuming, what an earlier run kept in the folder is removed."""
    folder, resume = path / CHECKPOINTS, settings.run.resume
    if resume == "off" and ranks.first:
        shutil.rmtree(folder, ignore_errors=True)
    ranks.wait()
    found = state.latest(folder)
    if resume == "on" and found is None:
        raise BadSettings(f"resume is on, but {folder} holds no whole checkpoint")
    return found


def _taught(settings: Settings, train: Dataset, command: str) -> Labelled | None:
    if command == "sft":
        return Labelled(train)
    if settings.warm_start.warm_start == "off":
        return None
    return labelled(settings.warm_start, train, settings.run.seed)


def _supervise(session: Session, taught: Labelled) -> None:
    settings, own = session.settings, session.settings.warm_start
    stops = session.engine.stop_tokens(SamplingParams())
    demonstrations = Demonstrations(
        _draws(session, taught.samples, SFT_ORDER),
        session.processor,
        session.style,
        stop_token_of(stops, session.processor.tokenizer),
        as_it_stands=taught.held_back is None,
    )
    steps = own.sft_steps
    if steps is None:
        steps = max(1, round(own.sft_epochs * len(taught.samples) / own.sft_batch))
    look = None
    if taught.held_back is not None:
        look = HeldOut(
            taught.held_back, session.processor, session.style, session.ranks, count=0, seed=settings.run.seed,
            max_tokens=settings.max_tokens, watch=session.watch_asking,
        )  # fmt: skip

    def enough() -> bool:
        asked = look(session.engine) if look is not None else []
        return sum(one.strict for one in asked) >= own.warm_start_until * max(len(asked), 1)

    run_supervised(session, demonstrations, steps, enough=None if look is None else enough)


def _draws(
    session: Session, samples: Sequence[Sample], order: int, check: Callable[[Sample], None] | None = None
) -> Draws:
    settings = session.settings
    return Draws(
        samples, session.processor, session.style, session.ranks,
        seed=len(ORDERS) * settings.run.seed + order, stop_on_bad=settings.data.on_bad == "stop", check=check,
    )  # fmt: skip


def _reference(session: Session, source: str, warmed: bool) -> GRPOPolicy | None:
    """The policy as GRPO found it; None where nothing is compared with it, or the adapter can be turned off for it."""
    settings = session.settings
    if settings.loss.beta == 0.0 or settings.model.lora_rank:
        return None
    if warmed:  # no checkpoint that is kept has these weights: an interrupted run would look for them in vain
        place = session.path / "reference"
        if session.position.step == 0:
            export.export(session.wrapped, source, place)
        source = str(place)
    reference = assemble.build_policy(settings, source, session.ranks).requires_grad_(False).eval()
    return assemble.sharded(reference, settings, session.ranks)
