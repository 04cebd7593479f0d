"""What the fused loss needs of the output layer: its weight, its bias, and the adapter on it.

Reading `.weight` of an adapted layer would leave the adapter out of the loss and train nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LoRA = tuple[Tensor, Tensor, float]  # A [r, H], B [V, r], scaling


@dataclass(frozen=True, slots=True)
class HeadOperands:
    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]
    lora: LoRA | None


def head_operands(head: Any) -> HeadOperands:
    if hasattr(head, "modules_to_save"):  # peft's wrapper around a fully trained copy
        disabled = head.disable_adapters or not head.active_adapters
        return head_operands(head.original_module if disabled else head.modules_to_save[head.active_adapters[0]])
    if isinstance(getattr(head, "lora_A", None), nn.ModuleDict):
        base = head_operands(head.get_base_layer())
        return HeadOperands(base.weight, base.bias, _lora(head))
    if isinstance(head, nn.Linear):
        return HeadOperands(head.weight, head.bias, None)
    kind = type(head)
    raise TypeError(
        f"the output layer is a {kind.__name__} ({kind.__module__}); the loss can read nn.Linear and peft's LoRA of it"
    )


def _lora(head: Any) -> LoRA | None:
    if head.disable_adapters or head.merged:
        return None
    names = [name for name in head.active_adapters if name in head.lora_A]
    if not names:
        return None
    for name in names:
        variant = getattr(head, "lora_variant", {}).get(name)
        unsupported = {
            "use_dora": head.use_dora.get(name, False),
            "lora_dropout": head.training and not isinstance(head.lora_dropout[name], nn.Identity),
            "lora_bias": head.lora_B[name].bias is not None,
            type(variant).__name__: variant is not None,
        }
        if any(unsupported.values()):
            option = next(option for option, used in unsupported.items() if used)
            raise NotImplementedError(
                f"adapter {name!r} on the output layer uses {option}, which the fused loss cannot apply; "
                "leave lm_head out of target_modules or turn the option off"
            )
    downs = [head.lora_A[name].weight for name in names]
    if len(names) == 1:
        return downs[0], head.lora_B[names[0]].weight, float(head.scaling[names[0]])
    return torch.cat(downs), torch.cat([head.lora_B[name].weight * head.scaling[name] for name in names], 1), 1.0
