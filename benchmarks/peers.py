"""The implementations under one signature: log-probs of every position, and the policy loss ready for backward.

Each is called the way its own project calls it. `import` statements sit inside the functions: an implementation that
is not installed is reported as such and the others run.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from cases import EPSILON, Inputs, policy_loss
from torch import Tensor

if TYPE_CHECKING:
    from grpo_fast import GRPOLoss


@dataclass(frozen=True, slots=True)
class Implementation:
    label: str
    logps: Callable[[Inputs], Tensor]  # [B, T]; positions that are not scored may hold anything
    loss: Callable[[Inputs], tuple[Tensor, Tensor | None]]  # the loss and, where it comes for free, logps [B, T]
    unavailable: Callable[[torch.device, torch.dtype], str | None]  # why it cannot run here
    prepare: Callable[[Inputs], Inputs] = lambda inputs: inputs  # done once, outside every measurement


def _needs(*modules: str, cuda: bool = False, half: bool = False) -> Callable[[torch.device, torch.dtype], str | None]:
    def check(device: torch.device, dtype: torch.dtype) -> str | None:
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            return f"{', '.join(missing)} not installed"
        if cuda and device.type != "cuda":
            return "needs a GPU"
        if half and dtype == torch.float32:
            return "the same as TRL for fp32 inputs"
        return None

    return check


def _with_policy_loss(logps_of: Callable[[Inputs], Tensor]) -> Callable[[Inputs], tuple[Tensor, Tensor | None]]:
    def loss(inputs: Inputs) -> tuple[Tensor, Tensor]:
        logps = logps_of(inputs)
        return policy_loss(logps, inputs), logps

    return loss


def _scored(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Hidden states and targets of the scored rows; views where every position is scored."""
    hidden, targets = inputs.hidden.flatten(0, 1), inputs.targets.flatten()
    if len(inputs.rows) == len(targets):
        return hidden, targets
    return hidden[inputs.rows], targets[inputs.rows]


def _spread(values: Tensor, inputs: Inputs) -> Tensor:
    """`values [N]` of the scored rows at their positions in [B, T]."""
    if len(values) == inputs.mask.numel():
        return values.view(inputs.mask.shape)
    return values.new_zeros(inputs.mask.numel()).index_copy(0, inputs.rows, values).view(inputs.mask.shape)


@cache
def _grpo_loss() -> GRPOLoss:
    from grpo_fast import GRPOLoss

    return GRPOLoss(loss_type="dapo", epsilon=EPSILON)


def _ours_loss(inputs: Inputs) -> tuple[Tensor, Tensor]:
    out = _grpo_loss()(
        inputs.hidden,
        inputs.weight,
        inputs.targets,
        advantages=inputs.advantages_cpu,
        mask=inputs.mask_cpu,
        old_logps=inputs.old_logps,
    )
    return out.loss, out.logps


def _ours_linear(inputs: Inputs) -> Tensor:
    from grpo_fast import linear_logprobs

    hidden, targets = _scored(inputs)
    logps = linear_logprobs(hidden, inputs.weight, targets)
    assert isinstance(logps, Tensor)  # a pair only with entropy=True
    return _spread(logps, inputs)


def _plain(inputs: Inputs) -> Tensor:
    logits = (inputs.hidden @ inputs.weight.T).float()
    return logits.log_softmax(-1).gather(-1, inputs.targets[..., None])[..., 0]


def _trl(inputs: Inputs) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    on_triton = inputs.hidden.device.type == "cuda"  # TRL compacts rows only there; elsewhere it scores every position
    hidden, targets = _scored(inputs) if on_triton else (inputs.hidden.flatten(0, 1), inputs.targets.flatten())
    logps = ChunkedLogProbFunction.apply(
        hidden.to(inputs.weight.dtype), inputs.weight, None, targets, 1.0, 32768, None, 1.0, ("log_probs",)
    )[0]
    return _spread(logps, inputs) if on_triton else logps.view(inputs.mask.shape)


def _fp32_head(inputs: Inputs) -> Inputs:
    weight = inputs.weight.detach().float().requires_grad_(inputs.weight.requires_grad)
    return replace(inputs, weight=weight)


def _liger_logps(inputs: Inputs) -> Tensor:
    from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase

    return LigerFusedLinearPPOBase.chunk_forward(inputs.hidden, inputs.weight, inputs.targets)


def _liger_loss(inputs: Inputs, sequences_per_chunk: int | None) -> tuple[Tensor, None]:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss_fn = LigerFusedLinearGRPOLoss(
        beta=0.0,
        use_ref_model=False,
        loss_type="bnpo",
        temperature=1.0,
        chunk_size=sequences_per_chunk or len(inputs.targets),
    )
    loss, _ = loss_fn(
        inputs.hidden,
        inputs.weight,
        inputs.targets,
        inputs.mask,
        inputs.advantages,
        old_per_token_logps=inputs.old_logps,
    )
    return loss, None


def _cce(inputs: Inputs, filter_eps: str | None) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    targets = inputs.targets
    if len(inputs.rows) < targets.numel():
        targets = targets.masked_fill(~inputs.mask, -100)
    impl = "cce" if targets.device.type == "cuda" else "torch_compile"
    return -linear_cross_entropy(
        inputs.hidden, inputs.weight, targets, reduction="none", filter_eps=filter_eps, impl=impl
    )


def _verl(inputs: Inputs) -> Tensor:
    _stub_parents("verl.utils")
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy  # pyright: ignore[reportMissingImports]

    logps, _ = linear_cross_entropy(inputs.hidden.flatten(0, 1), inputs.weight, inputs.targets.flatten(), 1.0, "none")
    return logps.view(inputs.mask.shape)


def _stub_parents(name: str) -> None:
    """Empty modules for `name` and its parents, so that a kernel loads without the framework around it."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        module_name = ".".join(parts[:depth])
        if module_name in sys.modules:
            continue
        spec = importlib.util.find_spec(module_name)
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError(f"{module_name} is not a package")
        module = ModuleType(module_name)
        module.__path__ = list(spec.submodule_search_locations)
        sys.modules[module_name] = module


IMPLEMENTATIONS: dict[str, Implementation] = {
    "ours": Implementation("grpo-fast GRPOLoss", _ours_linear, _ours_loss, _needs("grpo_fast")),
    "ours_linear": Implementation(
        "grpo-fast linear_logprobs", _ours_linear, _with_policy_loss(_ours_linear), _needs("grpo_fast")
    ),
    "torch": Implementation("PyTorch, full logits", _plain, _with_policy_loss(_plain), _needs()),
    "trl": Implementation("TRL", _trl, _with_policy_loss(_trl), _needs("trl")),
    "trl_fp32": Implementation(
        "TRL, fp32 head", _trl, _with_policy_loss(_trl), _needs("trl", half=True), prepare=_fp32_head
    ),
    "liger": Implementation("Liger", _liger_logps, partial(_liger_loss, sequences_per_chunk=1), _needs("liger_kernel")),
    # Liger's default chunk is one sequence; given the whole batch it still tiles inside, and is often faster
    "liger_whole": Implementation(
        "Liger, batch in one chunk",
        _liger_logps,
        partial(_liger_loss, sequences_per_chunk=None),
        _needs("liger_kernel"),
    ),
    "cce": Implementation(
        "CCE",
        partial(_cce, filter_eps=None),
        _with_policy_loss(partial(_cce, filter_eps=None)),
        _needs("cut_cross_entropy"),
    ),
    "cce_filtered": Implementation(
        "CCE, filtered gradients",
        partial(_cce, filter_eps="auto"),
        _with_policy_loss(partial(_cce, filter_eps="auto")),
        _needs("cut_cross_entropy", cuda=True),
    ),
    "verl": Implementation("verl", _verl, _with_policy_loss(_verl), _needs("verl", cuda=True)),
}
