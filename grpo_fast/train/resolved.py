"""Settings with what `auto` means for their model, and with single values changed."""

from __future__ import annotations

from typing import Any

from grpo_fast.train.fields import FIELDS, build
from grpo_fast.train.settings import Settings

TINY = "tiny"  # the model that is built from a config


def flat(settings: Settings) -> dict[str, Any]:
    return {name: getattr(getattr(settings, field.section), name) for name, field in FIELDS.items()}


def changed(settings: Settings, **values: Any) -> Settings:
    return build(flat(settings) | values)


def resolved(settings: Settings) -> Settings:
    """It stays so when the model becomes a folder that was trained from it."""
    tiny = settings.model.model == TINY
    prompt, static, warm = settings.data.prompt, settings.rollout.static_shapes, settings.warm_start.warm_start
    return changed(
        settings,
        prompt=("plain" if tiny else "think") if prompt == "auto" else prompt,
        static_shapes=("on" if tiny else "off") if static == "auto" else static,
        warm_start=("on" if tiny else "off") if warm == "auto" else warm,
    )
