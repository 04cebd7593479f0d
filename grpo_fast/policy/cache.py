"""Features of a frozen tower, remembered by image: old, reference and training passes encode each image once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from grpo_fast.types import VisionFeatures, VisionInput

Key = tuple[str, tuple[int, int, int]]  # one colour has the same patches, and so the same digest, under any grid


class FeatureCache:
    """Least recently used out first. Forgets everything when a weight of the tower is written to, or an adapter of it
    is turned on or off."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[Key, VisionFeatures] = OrderedDict()
        self._bytes = 0
        self._state: tuple[object, ...] = ()

    def lookup(
        self,
        inputs: Sequence[VisionInput],
        given: Sequence[VisionFeatures | None],
        tower: nn.Module,
        encode: Callable[[Sequence[VisionInput]], tuple[VisionFeatures, ...]],
    ) -> tuple[VisionFeatures, ...]:
        state = _state(tower)
        if state != self._state:
            self.clear()
            self._state = state
        found = {_key(item): features for item, features in zip(inputs, given, strict=True) if features is not None}
        found |= {_key(item): self._kept[_key(item)] for item in inputs if _key(item) in self._kept}
        missing = list({_key(item): item for item in inputs if _key(item) not in found}.values())
        if missing:
            found |= zip(map(_key, missing), encode(missing), strict=True)
        for item in inputs:
            self._remember(_key(item), found[_key(item)])
        return tuple(found[_key(item)] for item in inputs)

    def clear(self) -> None:
        self._kept.clear()
        self._bytes = 0

    def _remember(self, key: Key, features: VisionFeatures) -> None:
        if key not in self._kept:
            self._kept[key] = features
            self._bytes += _size(features)
        self._kept.move_to_end(key)
        while self._bytes > self.limit_bytes and self._kept:
            self._bytes -= _size(self._kept.popitem(last=False)[1])


def _state(tower: nn.Module) -> tuple[object, ...]:
    weights = [(parameter.data_ptr(), parameter._version) for parameter in tower.parameters()]
    adapted: list[Any] = [module for module in tower.modules() if hasattr(module, "base_layer")]
    adapters = [(module.disable_adapters, tuple(module.active_adapters)) for module in adapted]
    return (*weights, *adapters)


def _key(item: VisionInput) -> Key:
    return item.key, item.grid


def _size(features: VisionFeatures) -> int:
    return sum(x.numel() * x.element_size() for x in (features.embeds, *features.deepstack))
