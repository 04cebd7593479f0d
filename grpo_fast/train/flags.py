"""Settings from the command line: a flag for every field, and other trainers' names beside them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from grpo_fast.errors import BadSettings
from grpo_fast.train import recipes
from grpo_fast.train.aliases import ALIASES
from grpo_fast.train.batches import UNITS
from grpo_fast.train.fields import FIELDS, Field, build, nearest, title
from grpo_fast.train.layers import SFT_TWINS, Layer, file_layer, layer_of, merge
from grpo_fast.train.settings import SECTIONS, Settings
from grpo_fast.train.settings_file import Entry, entries, from_yaml, to_yaml

__all__ = ["add_arguments", "describe", "from_yaml", "settings_of", "to_yaml"]

UNUSED_IN_SFT = ("rollout", "rewards", "loss")
USED_IN_SFT = ("max_completion_length",)  # of evaluation

EXAMPLES = {
    "train": """\
examples:
  grpo-fast train              the embedded default: a tiny model learns synthetic questions, on any machine
  grpo-fast train --model Qwen/Qwen2-VL-2B-Instruct --data train.jsonl --image-folders images --output runs/mine
                               a real model on your own questions
  grpo-fast train --model Qwen/Qwen2.5-VL-7B-Instruct --data train.jsonl --lora-rank 64 --freeze-vision \\
      --activation-checkpointing
                               an adapter, on one GPU
  torchrun --nproc-per-node 8 -m grpo_fast train --recipe med-r1 --data train.json --parallel fsdp2
                               several GPUs; the numbers per step stay those of all devices together
  grpo-fast train --config runs/mine/settings.yaml --output runs/mine --resume on
                               go on where a run was stopped
  grpo-fast train --recipe med-r1 --print-settings > mine.yaml
                               a file to edit, for --config mine.yaml

--learning-rate and --learning_rate are one; names of TRL, VLM-R1, R1-V and EasyR1 are taken and explained.
Defaults are below a recipe, a recipe is below --config, and flags are above all. The tiny model has its own
defaults, those of --recipe phantom.
""",
    "sft": """\
examples:
  grpo-fast sft --model Qwen/Qwen2-VL-2B-Instruct --data chats.jsonl --output runs/sft
                               imitate the answers of a file
  grpo-fast sft --recipe med-r1-sft --data train.json --eval-data test.json
                               the supervised twin of a recipe
  torchrun --nproc-per-node 8 -m grpo_fast sft --config mine.yaml
                               several GPUs

--learning-rate, --epochs and --steps are those of the supervised phase here.
""",
}


def add_arguments(parser: argparse.ArgumentParser, *, command: str) -> None:
    """A group of flags for each section. A flag that is not given leaves no trace in the namespace."""
    parser.__class__ = SettingsParser  # whoever made it: errors of a hundred flags must fit on a line
    parser.allow_abbrev = False
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "%(prog)s [--recipe NAME] [--config FILE] [--SETTING VALUE …]"
    parser.epilog = EXAMPLES[command]
    first = parser.add_argument_group("Where settings come from")
    first.add_argument("--recipe", metavar="NAME", help=", ".join(recipes.names()))
    first.add_argument("--config", metavar="FILE", type=Path, help="settings in YAML, by section or flat")
    first.add_argument("--print-settings", action="store_true", help="print them as YAML, and end")
    first.add_argument("--json", action="store_true", help="one JSON object at the end, and no live view")
    first.add_argument(
        "--batch-unit", choices=UNITS, default=None,
        help="what --per_device_train_batch_size counts: completions (TRL, VLM-R1; default) or prompts (R1-V, Med-R1, "
        "open-r1)",
    )  # fmt: skip
    for twin, dest in (("--print_settings", "print_settings"), ("--batch_unit", "batch_unit")):
        kind: dict[str, Any] = {"choices": UNITS} if dest == "batch_unit" else {"action": "store_true"}
        first.add_argument(twin, dest=dest, help=argparse.SUPPRESS, default=argparse.SUPPRESS, **kind)
    for section in SECTIONS:
        group = parser.add_argument_group(title(section))
        for one in (one for one in FIELDS.values() if one.section == section):
            hidden = command == "sft" and section in UNUSED_IN_SFT and one.name not in USED_IN_SFT
            _add_flag(group, one, hidden=hidden or (command == "sft" and one.name in SFT_TWINS))
    for name in ALIASES:
        spellings = dict.fromkeys((f"--{name}", "--" + name.replace("_", "-")))
        parser.add_argument(*spellings, dest=_alias(name), nargs="*", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def settings_of(arguments: argparse.Namespace, *, command: str, tiny: Mapping[str, Any] | None = None) -> Settings:
    """Defaults < recipe < --config < flags; says on stderr what other trainers' names became.

    `tiny`: what the recipe of the tiny model gives way to where no recipe is named.
    With --print-settings it prints them and leaves, as --help does.
    """
    given = vars(arguments)
    layers = [_flags(given, command)]
    if given.get("config") is not None:
        layers.insert(0, file_layer(_read(given["config"]), command, note_twins=True))
    own = {name: value for layer in layers for name, value in layer.all.items()}
    below, notes = recipes.layers(given.get("recipe"), own, command)
    if tiny and below and given.get("recipe") is None:
        below.append({name: Entry(name, value, "for the tiny model", "") for name, value in tiny.items()})
    layers = [file_layer(one, command) for one in below] + layers
    merged = merge(layers, command, int(os.environ.get("WORLD_SIZE", "1")))
    settings = build(merged.values)
    if int(os.environ.get("RANK", "0")) == 0:
        for note in dict.fromkeys([*notes, *merged.notes]):
            print(f"grpo-fast: note: {note}", file=sys.stderr)
    if given.get("print_settings"):
        if given.get("recipe"):
            print(recipes.introduction(given["recipe"]))
        print(to_yaml(settings, origins=merged.origins), end="")
        raise SystemExit(0)
    if not settings.data.data:
        raise BadSettings(
            f"--recipe {given.get('recipe')} takes your data: --data FILE … (--data phantom: the embedded questions)"
            if given.get("recipe") else "data is empty: --data FILE …, or --data phantom"
        )  # fmt: skip
    return settings


def describe(settings: Settings, *, world: int = 1, command: str = "train") -> list[str]:
    """What a run is about to do, a line each: batches counted both in prompts and in completions."""
    model, rollout, loss, optim = settings.model, settings.rollout, settings.loss, settings.optim
    trained = f"LoRA of rank {model.lora_rank}" if model.lora_rank else "all weights"
    frozen = ", vision tower frozen" if model.freeze_vision else ""
    lines = [
        f"model    {model.model}: {trained}{frozen}",
        f"data     {' '.join(settings.data.data)}, prompt {settings.data.prompt}",
    ]
    if command == "sft":
        sft = settings.warm_start
        length = _length(sft.sft_steps, sft.sft_epochs)
        devices = f", {_shares(sft.sft_batch, world)} on each of {world} devices" if world > 1 else ""
        return [
            *lines,
            f"step     {sft.sft_batch} conversations{devices}",
            f"optim    {optim.optimizer}, learning rate {sft.sft_learning_rate:g}, {optim.lr_schedule}, {length}",
        ]
    prompts, group = rollout.prompts_per_step, rollout.group_size
    most = f"of at most {loss.max_completion_length} tokens"
    lines.append(f"step     {prompts} prompts × {group} completions = {prompts * group} completions {most}")
    if world > 1:
        shares = f"{_shares(prompts, world)} prompts, {_shares(prompts, world, group)} completions"
        lines.append(f"devices  {world} ({settings.run.parallel}): {shares} on each")
    updates = rollout.updates_per_rollout * rollout.minibatches
    if updates > 1:
        share = f" of {prompts // rollout.minibatches} prompts" if rollout.minibatches > 1 else ""
        lines.append(f"updates  {updates} per step{share}: {rollout.updates_per_rollout} × {rollout.minibatches}")
    weights = settings.rewards.reward_weights or [1.0] * len(settings.rewards.rewards)
    terms = [
        name if weight == 1 else f"{weight:g} {name}"
        for name, weight in zip(settings.rewards.rewards, weights, strict=True)
    ]
    lines.append(f"rewards  {' + '.join(terms)}")
    clip = f"{loss.epsilon:g}" + ("" if loss.epsilon_high is None else f" / {loss.epsilon_high:g}")
    lines.append(f"loss     {loss.loss_type}, β {loss.beta:g}, ε {clip}, temperature {loss.temperature:g}")
    length = _length(optim.steps, optim.epochs)
    lines.append(f"optim    {optim.optimizer}, learning rate {optim.learning_rate:g}, {optim.lr_schedule}, {length}")
    return lines


def _length(steps: int | None, epochs: float) -> str:
    return f"{epochs:g} × the data" if steps is None else f"{steps} steps"


def _shares(number: int, world: int, each: int = 1) -> str:
    low, over = divmod(number, world)
    return f"{low * each} or {(low + 1) * each}" if over else f"{low * each}"


class SettingsParser(argparse.ArgumentParser):
    """Says what is unknown and what is near it, in place of the usage of every flag."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, extra = super().parse_known_args(args, namespace)
        if extra:
            unknown = [one for one in extra if one.startswith("-")] or extra[:1]
            self.error("; ".join(map(self._unknown, unknown)))
        return found, extra

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"grpo-fast: {message}\n`{self.prog} --help` lists the settings\n")

    def _unknown(self, text: str) -> str:
        typed = text.partition("=")[0]
        known = [one for action in self._actions for one in action.option_strings if one.startswith("--")]
        like = [one for one in known if "_" in one] if "_" in typed else [one for one in known if "_" not in one]
        # EasyR1 writes section.name=value; the last name is the one to look for
        hint = nearest("--" + typed.lstrip("-").rpartition(".")[2], [*like, *known])
        return f"unknown setting {typed}{hint}" if "=" in text or typed.startswith("-") else f"what is {text!r} for?"


def _flags(given: Mapping[str, Any], command: str) -> Layer:
    own = {name: given[name] for name in FIELDS if name in given}
    foreign = {name: _unwrapped(given[_alias(name)]) for name in ALIASES if _alias(name) in given}
    notes = []
    if command == "sft":
        for name, twin in SFT_TWINS.items():
            if name not in own:
                continue
            if twin in own:
                raise BadSettings(f"{_flag(name)} is {_flag(twin)} in sft, and both are given")
            own[twin] = own.pop(name)
        notes = [
            f"{_flag(name)} has no effect in sft"
            for name in own if FIELDS[name].section in UNUSED_IN_SFT and name not in USED_IN_SFT
        ]  # fmt: skip
    layer = layer_of(own, foreign, dict.fromkeys(own, "flag"), _flag, command)
    layer.translation.notes[:0] = notes
    layer.unit = given.get("batch_unit")
    return layer


def _read(path: Path) -> dict[str, Entry]:
    try:
        return entries(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise BadSettings(f"--config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadSettings(f"--config {path}: not UTF-8 text: {error}") from error


def _add_flag(group: argparse._ArgumentGroup, one: Field, *, hidden: bool) -> None:
    shown = f"{one.help} (default {one.shown_default})".replace("%", "%%")
    metavar = "{" + ",".join(one.choices) + "}" if one.choices else {int: "N", float: "X", str: "TEXT"}.get(one.kind)
    spellings = dict.fromkeys((_flag(one.name), f"--{one.name}"))
    for spelling in spellings:
        common: dict[str, Any] = {
            "dest": one.name,
            "default": argparse.SUPPRESS,
            "help": argparse.SUPPRESS if hidden or spelling != _flag(one.name) else shown,
        }
        if one.many:
            group.add_argument(
                spelling, action="extend", nargs="*", type=_reader(one, item=True), metavar=metavar, **common
            )
        elif one.kind is bool:
            group.add_argument(spelling, nargs="?", const=True, type=_reader(one), metavar="BOOL", **common)
            no = f"--no{spelling[1:]}" if "_" not in spelling else f"--no_{one.name}"
            group.add_argument(no, action="store_const", const=False, **{**common, "help": argparse.SUPPRESS})
        else:
            group.add_argument(spelling, type=_reader(one), metavar=metavar, **common)


def _reader(one: Field, *, item: bool = False) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return one.read([text])[0] if item else one.read(text)
        except BadSettings as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _flag(name: str) -> str:
    return f"--{name}" if name in ALIASES else "--" + name.replace("_", "-")


def _alias(name: str) -> str:
    return f"alias {name}"  # a blank keeps it apart from every field


def _unwrapped(words: list[str]) -> Any:
    return True if not words else words[0] if len(words) == 1 else words
