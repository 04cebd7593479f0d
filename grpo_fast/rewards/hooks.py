"""Reward functions of other trainers, from FILE.py:FUNCTION, unchanged.

The form is recognised by the signature:
- TRL `f(prompts, completions, **columns) -> list[float | None]`, plain or async; completions are
  `[[{"role": "assistant", "content": text}]]`, every column of the data is repeated per completion, `image` and
  `images` are opened when they are looked at; `solution` is VLM-R1's, between answer tags, where the data are its
  lines; None means that the reward does not apply to this completion;
- EasyR1 `compute_score(reward_inputs)` of a list of dicts, or `compute_score(reward_input)` of one, returning dicts
  with `overall`; also its earlier `(predicts, ground_truths)` and `(predict, ground_truth)`;
- MM-EUREKA `reward_func(queries, prompts, labels)`, returning a tensor or a dict with `rewards`.

A group's completions are given in one call. The file runs with the rights of the trainer: nothing is confined.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from grpo_fast.errors import BadReward
from grpo_fast.rewards.base import Ask
from grpo_fast.rewards.columns import chatml, columns
from grpo_fast.types import Sample

Form = Literal["trl", "easyr1", "easyr1-one", "easyr1-pairs", "easyr1-pair", "mm-eureka"]
GIVEN = {"easyr1": 1, "easyr1-one": 1, "easyr1-pairs": 2, "easyr1-pair": 2, "mm-eureka": 3}  # by position
FORMS_TOLD = (
    "f(prompts, completions, **columns) as in TRL, compute_score(reward_inputs) or compute_score(reward_input) as in "
    "EasyR1, or reward_func(queries, prompts, labels) as in MM-EUREKA"
)


@dataclass(frozen=True, slots=True)
class Hook:
    name: str
    spec: str
    function: Callable[..., Any]
    form: Form
    accepts: frozenset[str] | None  # names of its parameters; None: any
    requires: frozenset[str]

    @property
    def one_by_one(self) -> bool:
        return self.form in ("easyr1-one", "easyr1-pair")

    @property
    def wants_images(self) -> bool:
        return self.form == "trl" and (self.accepts is None or bool(self.accepts & {"image", "images"}))

    def is_slow(self, sample: Sample) -> bool:
        return True

    def __call__(self, ask: Ask) -> Any:
        gold = ask.sample.answer
        if self.form == "trl":
            return self._trl(ask)
        if self.form == "mm-eureka":
            prompt = ask.prompt or chatml(ask.sample)
            count = len(ask.completions)
            given = self._called([prompt + text for text in ask.completions], [prompt] * count, [gold] * count)
            return self._item(given, "rewards") if isinstance(given, dict) else given
        if self.form == "easyr1-pairs":
            scores = self._called(list(ask.completions), [gold] * len(ask.completions))
        elif self.form == "easyr1-pair":
            scores = [self._called(text, gold) for text in ask.completions]
        else:
            inputs: list[dict[str, Any]] = [{"response": text, "ground_truth": gold} for text in ask.completions]
            for one, ids in zip(inputs, ask.completion_ids or (), strict=ask.completion_ids is not None):
                one["response_length"] = len(ids)
            scores = self._called(inputs) if self.form == "easyr1" else [self._called(one) for one in inputs]
        if not isinstance(scores, list | tuple):
            raise BadReward(f"reward {self.spec} returned {type(scores).__name__}, not a list of dicts")
        return [self._item(one, "overall") if isinstance(one, dict) else one for one in scores]

    def _trl(self, ask: Ask) -> Any:
        given = columns(ask)
        missing = self.requires - set(given)
        if missing:
            raise BadReward(
                f"reward {self.spec} needs {', '.join(sorted(missing))}, which sample {ask.sample.id} does not bring; "
                f"there are {', '.join(sorted(given))}"
            )
        accepted = given if self.accepts is None else {name: given[name] for name in self.accepts & set(given)}
        return self._called(**accepted)

    def _called(self, *args: Any, **kwargs: Any) -> Any:
        result = self.function(*args, **kwargs)
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result

    def _item(self, scores: dict[str, Any], name: str) -> Any:
        if name not in scores:
            raise BadReward(
                f"reward {self.spec} returned a dict without {name!r}: it has {', '.join(map(str, scores))}"
            )
        return scores[name]


async def _awaited(result: Any) -> Any:
    return await result


def load_hook(spec: str) -> Hook:
    """The function that FILE.py:FUNCTION names. Running the file is the only way to get at it."""
    file, _, name = spec.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise BadReward(f"reward {spec}: there is no file {path}")
    module = _module(path)
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise BadReward(f"reward {spec}: {path.name} has no function {name!r}; it has {', '.join(own) or 'none'}")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise BadReward(f"reward {spec}: its signature cannot be read: {error}") from error
    form = _form(spec, function, parameters, getattr(module, "REWARD_TYPE", None))
    named = (p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    needed = {p.name: p.default is p.empty for p in named}
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unset = [name for name, need in needed.items() if need and name not in list(parameters)[: GIVEN.get(form)]]
    if unset:
        raise BadReward(
            f"reward {spec} needs {', '.join(unset)}, which nothing here sets: give "
            f"{'it' if len(unset) == 1 else 'each'} a default in the file"
        )
    requires = frozenset(name for name, need in needed.items() if need)
    return Hook(name, spec, function, form, None if anything else frozenset(needed), requires)


def _form(spec: str, function: Any, parameters: Any, declared: str | None) -> Form:
    names = list(parameters)
    if {"queries", "labels"} <= set(names):
        return "mm-eureka"
    if {"completions", "completion_ids"} & set(names):
        return "trl"
    if names[:2] == ["predicts", "ground_truths"]:
        return "easyr1-pairs"
    if len(names) > 1 and names[0] in ("predict", "predict_str") and names[1] == "ground_truth":
        return "easyr1-pair"
    if declared in ("batch", "sequential"):  # EasyR1 writes it into the file
        return "easyr1" if declared == "batch" else "easyr1-one"
    if names and (names[0].startswith("reward_input") or getattr(function, "__name__", "") == "compute_score"):
        return "easyr1" if names[0].endswith("s") else "easyr1-one"
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return "trl"
    raise BadReward(f"reward {spec} has parameters ({', '.join(names)}), no form that is known: {FORMS_TOLD}")


@cache
def _module(path: Path) -> ModuleType:
    name = f"grpo_fast_reward_file_{path.stem}_{abs(hash(str(path))):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadReward(f"reward file {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: a file called math.py must not hide Python's
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's own file: anything may come out of it
        del sys.modules[name]
        raise BadReward(f"reward file {path}{_line(error, path)} cannot be loaded: {_kind(error)}") from error
    return module


def _line(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f", line {error.lineno},"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}," if lines else ""


def _kind(error: BaseException) -> str:
    told = error.msg if isinstance(error, SyntaxError) else error
    return f"{type(error).__name__}: {told}"
