"""The fields of the settings as a table, and how a value typed in a shell or a YAML file becomes one of theirs."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from grpo_fast.errors import BadSettings
from grpo_fast.train.settings import NOT_SETTINGS, SECTIONS, Settings

# The loss's options stand on the ground, where help texts have no place.
LOSS_HELP = {
    "loss_type": "what is averaged over what, and how ratios are bounded",
    "importance_sampling_level": "ratios of single tokens, or of whole completions (GSPO)",
    "epsilon": "ratios below 1 - epsilon are clipped",
    "epsilon_high": "ratios above 1 + epsilon_high are clipped; none: the same as epsilon; cispo: the cap itself",
    "delta": "upper bound of the ratio where clipping sets none; none: off",
    "beta": "weight of the KL to the reference model; 0: no reference is kept",
    "use_bias_correction_kl": "weigh the KL by the importance ratio",
    "temperature": "of sampling, and of the log-probs that are trained",
    "max_completion_length": "tokens of a completion at most; dr_grpo also divides by it",
    "mask_truncated_completions": "completions cut at the limit count for nothing",
    "top_entropy_quantile": "train this share of the tokens, those of highest entropy; 1: all",
    "entropy_coef": "bonus for entropy; 0: off",
    "use_adaptive_entropy": "move the bonus so that entropy stays near entropy_target",
    "entropy_coef_min": "the adaptive bonus stays above",
    "entropy_coef_max": "the adaptive bonus stays below",
    "entropy_coef_delta": "the adaptive bonus moves by this much a step",
    "entropy_target": "entropy that the adaptive bonus aims at",
    "off_policy_mask_threshold": "leave out bad completions whose KL to the sampling policy is above; none: off",
    "importance_sampling_correction": "with sampler_correction: correct for the sampler's log-probs",
    "importance_sampling_mode": "correct tokens or sequences, by truncating or by masking",
    "importance_sampling_clip_max": "upper bound of the sampler correction; none: unbounded",
    "importance_sampling_clip_min": "lower bound of the sampler correction; none: unbounded",
    "sapo_temperature_pos": "sapo's temperature for positive advantages",
    "sapo_temperature_neg": "sapo's temperature for negative advantages",
    "vespo_k_pos": "vespo's power for positive advantages",
    "vespo_lambda_pos": "vespo's decay for positive advantages",
    "vespo_k_neg": "vespo's power for negative advantages",
    "vespo_lambda_neg": "vespo's decay for negative advantages",
    "softcap": "logits become softcap * tanh(logits / softcap); none: as they are",
}
TITLES = {"loss": "The loss: names, meanings and defaults of TRL's GRPOConfig"}
TRUE, FALSE, NONE = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("none", "null", "")


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    section: str
    kind: type  # bool, int, float or str: of the value, or of each item
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    optional: bool = False
    many: bool = False

    def read(self, value: Any) -> Any:
        """A shell's text or a YAML value as this field's; BadSettings says what was expected."""
        if self.many:
            items = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
            return [self._one(item) for item in items]
        if self.optional and (value is None or (isinstance(value, str) and value.lower() in NONE)):
            return None
        return self._one(value)

    def _one(self, value: Any) -> Any:
        if self.choices:
            return self._choice(value)
        read = {bool: _truth, int: _whole, float: _number, str: _text}[self.kind](value)
        if read is None:
            raise BadSettings(f"{self.name} must be {self.expected}, got {_shown(value)}")
        return read

    def _choice(self, value: Any) -> str:
        text = str(value).lower()  # YAML makes truth values of on and off, and None of an empty one
        if text not in self.choices:
            for yes, no in (("on", "off"), ("group", "none")):  # TRL's scale_rewards may be a truth value
                if {yes, no} <= {*self.choices} and text in ("true", "false"):
                    return yes if text == "true" else no
            raise BadSettings(f"{self.name} must be {self.expected}, got {_shown(value)}{nearest(text, self.choices)}")
        return text

    @property
    def expected(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text (in quotes)"}
        return kinds[self.kind] + (" or none" if self.optional else "")

    @property
    def shown_default(self) -> str:
        if self.many:
            return " ".join(map(str, self.default)) or "empty"
        if self.default is None or isinstance(self.default, bool):
            return str(self.default).lower()
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default) or "empty"


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean …?', or nothing where no name is near."""
    by_key: dict[str, str] = {}
    for one in known:  # of names that differ in their dashes the first stands
        by_key.setdefault(one.replace("-", "_").lower(), one)
    near = difflib.get_close_matches(name.replace("-", "_").lower(), by_key, n=1, cutoff=0.6)
    return f"; did you mean {by_key[near[0]]}?" if near else ""


def build(values: Mapping[str, Any]) -> Settings:
    """Settings of flat values that were read; what is not named keeps its default."""
    parts: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, value in values.items():
        parts[FIELDS[name].section][name] = value
    try:
        return Settings(**{section: kind(**parts[section]) for section, kind in SECTIONS.items()})
    except BadSettings:
        raise
    except ValueError as error:  # of the loss, whose room knows no settings
        raise BadSettings(str(error)) from error


def title(section: str) -> str:
    return TITLES.get(section) or str(SECTIONS[section].__doc__).rstrip(".")


def _truth(value: Any) -> bool | None:
    text = str(value).lower()
    return True if text in TRUE else False if text in FALSE else None


def _whole(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return int(str(value))
    except ValueError:
        number = _number(value)  # 1e5, as people write budgets
    return int(number) if number is not None and math.isfinite(number) and number == int(number) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)  # YAML's 1e-6 is text: its numbers have a dot
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)


def _field(section: str, name: str, annotation: Any, default: Any, help: str) -> Field:
    optional = many = False
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not type(None))
        optional = True
    if get_origin(annotation) is list:
        (annotation,) = get_args(annotation)
        many = True
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    return Field(name, section, str if choices else annotation, default, help, choices, optional, many)


def _fields() -> dict[str, Field]:
    found = {}
    for section, kind in SECTIONS.items():
        hints = get_type_hints(kind)
        for one in fields(kind):
            if one.name in NOT_SETTINGS:
                continue
            default = one.default if one.default is not MISSING else one.default_factory()  # type: ignore[misc]
            help = one.metadata.get("help") or LOSS_HELP[one.name]
            assert one.name not in found, f"two sections have a field {one.name}"
            found[one.name] = _field(section, one.name, hints[one.name], default, help)
    return found


FIELDS = _fields()
