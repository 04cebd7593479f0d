"""The typed hand-offs between the rooms of the house; nothing else crosses a wall.

Suffixes: P prompt tokens, R completion tokens, T packed tokens, N scored rows, S sequences (completions).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sample:
    """One question of someone's data set, as read: images stay unopened until they are asked for."""

    id: str
    messages: Sequence[Mapping[str, Any]]  # chat turns; content is text or a list of {"type": …} parts
    images: Sequence[Callable[[], Image]] = ()  # one per {"type": "image"} part, in order
    videos: Sequence[Callable[[], Sequence[Image]]] = ()  # frames, one per {"type": "video"} part
    answer: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)  # modality, question_type, …


@dataclass(frozen=True, slots=True)
class VisionInput:
    """One image or video as the tower wants it. Equal keys mean equal pixels: each key is encoded once."""

    kind: Literal["image", "video"]
    pixels: Tensor  # [patches, channels * temporal_patch * patch * patch] float
    grid: tuple[int, int, int]  # (t, h, w) in patches, before the spatial merge
    key: str  # digest of the pixels
    seconds_per_grid: float = 1.0  # video only: seconds that one step of t covers


@dataclass(frozen=True, slots=True)
class VisionFeatures:
    """What the tower made of one VisionInput: one row per placeholder token."""

    embeds: Tensor  # [tokens, H]
    deepstack: tuple[Tensor, ...] = ()  # Qwen3-VL: [tokens, H], added after the first decoder layers


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready for the model; the same ids feed rollout, scoring and training."""

    input_ids: Tensor  # [P] int64, image and video placeholders expanded
    positions: Tensor  # [3, P] int64, M-RoPE (t, h, w)
    vision: tuple[VisionInput, ...] = ()  # in the order of their placeholders
    features: tuple[VisionFeatures, ...] | None = None  # cached tower output per vision input, when the tower is frozen
    sample: Sample | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt and the G completions sampled from it."""

    prompt: Prompt
    completions: tuple[Tensor, ...]  # G × [R_i] int64, the stop token included where one was sampled
    sampler_logps: tuple[Tensor, ...] | None = None  # G × [R_i] fp32, as recorded while sampling
    finished: tuple[bool, ...] = ()  # G × whether a stop was sampled (False: cut at the limit)
    rewards: Mapping[str, Tensor] = field(default_factory=dict)  # name → [G]
    advantages: Tensor | None = None  # [G]
    old_logps: tuple[Tensor, ...] | None = None  # G × [R_i] fp32
    ref_logps: tuple[Tensor, ...] | None = None  # G × [R_i] fp32


@dataclass(frozen=True, slots=True, eq=False)
class RowGather:
    """out[k] = x[index[k]], and the inverse (CSR) that sums the copies of a row in a fixed order on the way back."""

    index: Tensor  # [K] int32, source row of each gathered row
    offsets: Tensor  # [T + 1] int64; row t was copied to dest[offsets[t]:offsets[t + 1]]
    dest: Tensor  # [K] int32, ascending within a source row


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPlan:
    """Segments of one varlen attention call: queries [cu_q[i], cu_q[i+1]) see gathered keys [cu_k[i], cu_k[i+1])."""

    cu_q: Tensor  # [segments + 1] int32, on the model's device
    cu_k: Tensor  # [segments + 1] int32
    host_q: tuple[int, ...]  # the same two, for backends that loop on the host
    host_k: tuple[int, ...]
    max_q: int
    max_k: int
    kv: RowGather | None = None  # None: keys are the packed rows themselves
    causal: bool = True  # aligned to the bottom right: the last query sees every key of its segment
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)  # masks and biases a backend derives once


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """Whole groups as one row of tokens: prompt, completion, completion, …, next prompt, ….

    Completions that are left out of the model (zero advantage) keep their place in the loss: they stand last in
    `targets`, `cu_seqlens` and `advantages`, have no packed tokens, and only normalisers see them.
    """

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [4, T] int64: place in its own sequence, then M-RoPE (t, h, w)
    plan: AttentionPlan
    vision: tuple[VisionInput, ...]  # distinct, in order of first use
    features: tuple[VisionFeatures | None, ...]  # per vision input, where the prompt brought them
    vision_rows: Tensor  # [placeholders] int64, ascending: packed rows that take a vision feature
    vision_source: Tensor  # [placeholders] int64, into the concatenated features of `vision`
    scored: RowGather  # packed row whose hidden state predicts each target in the model
    targets: Tensor  # [N] int64
    cu_seqlens: Tensor  # [S + 1] int64, on the CPU
    advantages: Tensor | None  # [S] fp32, on the CPU
    old_logps: Tensor | None  # [N] fp32
    ref_logps: Tensor | None  # [N] fp32
    sampler_logps: Tensor | None  # [N] fp32
    finished: Tensor | None  # [S] bool, on the CPU
    num_items_in_batch: float  # scored tokens of the whole step on this rank, left-out ones included
    scale: float  # this micro-batch's share of the step's loss, for losses that average within a batch
    entropy_scale: float  # beside it, of the entropy bonus: times `scale` it is the share of the step's tokens
    sequences: tuple[tuple[int, int], ...]  # (group, completion) of each of the S, as given to the packer

    @property
    def lm_tokens(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: Any) -> PackedBatch:
        """Everything that the device reads; what the loss reads on the host stays there."""
        on_host = {"cu_seqlens", "advantages", "finished", "sequences"}
        moved = {f.name: _to(getattr(self, f.name), device) for f in fields(self) if f.name not in on_host}
        return replace(self, **moved)


def _to(value: Any, device: Any) -> Any:
    if hasattr(value, "to"):
        return value.to(device, non_blocking=True)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: _to(getattr(value, f.name), device) for f in fields(value) if f.name != "cache"})
    return tuple(_to(item, device) for item in value) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What a loss gives back. `logps` and `entropy` are detached and 0 wherever `scored` is False."""

    loss: Tensor  # scalar fp32, differentiable
    logps: Tensor  # shaped like the targets, fp32
    entropy: Tensor  # shaped like the targets, fp32
    scored: Tensor  # shaped like the targets, bool
    metrics: Metrics


SUMS = (
    "loss",
    "sequences",
    "tokens",
    "scored_tokens",
    "kl",
    "entropy",
    "active_entropy",
    "active_tokens",
    "ratio",
    "clip_low",
    "clip_high",
    "clip_low_sequences",
    "clip_high_sequences",
    "phi",
    "phi_sequences",
    "scored_sequences",
    "sampler_correction",
)
MINIMA = ("ratio_min", "clip_low_min", "sampler_correction_min")
MAXIMA = ("ratio_max", "clip_high_max", "sampler_correction_max")


@dataclass(frozen=True, slots=True)
class Metrics:
    """One fp32 vector of sums, minima and maxima, so that micro-batches and ranks reduce in one go.

    `as_dict` divides: `kl`, `entropy`, `ratio` and `sampler_correction` are means over scored tokens, `clip_low` and
    `clip_high` over all tokens that count, or over sequences where ratios are theirs; vespo's `phi` is a mean over
    sequences with scored tokens.
    """

    values: Tensor  # [len(SUMS) + len(MINIMA) + len(MAXIMA)] fp32, on the loss's device
    by_sequence: bool = False  # clip shares and phi count sequences

    def active_entropy(self) -> Tensor:
        """[2] sum of the entropies that the bonus acts on, and their number."""
        first = SUMS.index("active_entropy")
        return self.values[first : first + 2].clone()

    def merge(self, *others: Metrics) -> Metrics:
        """The metrics of several micro-batches or ranks together."""
        parts = [m.values for m in (self, *others)]
        low, high = len(SUMS), len(SUMS) + len(MINIMA)
        stacked = parts[0].new_empty(len(parts), len(parts[0]))
        for row, part in zip(stacked, parts, strict=True):
            row.copy_(part)
        merged = stacked.sum(0)
        merged[low:high] = stacked[:, low:high].amin(0)
        merged[high:] = stacked[:, high:].amax(0)
        return Metrics(merged, self.by_sequence)

    def as_dict(self) -> dict[str, float]:
        """Means and extremes by name; copies the vector to the host once. Nothing scored gives 0."""
        raw: dict[str, float] = dict(zip(SUMS + MINIMA + MAXIMA, self.values.tolist(), strict=True))

        def mean(name: str, count: str) -> float:
            return raw[name] / raw[count] if raw[count] else 0.0

        suffix, units = ("_sequences", "sequences") if self.by_sequence else ("", "tokens")
        found = {name: raw[name] for name in ("loss", "sequences", "tokens", "scored_tokens")}
        for name in ("kl", "entropy", "ratio", "sampler_correction"):
            found[name] = mean(name, "scored_tokens")
        for name in ("clip_low", "clip_high"):
            found[name] = mean(name + suffix, units)
        found["clip_region"] = found["clip_low"] + found["clip_high"]
        found["phi"] = mean("phi" + suffix, "scored_sequences" if self.by_sequence else "scored_tokens")
        found["length"] = mean("tokens", "sequences")
        for name in MINIMA + MAXIMA:
            found[name] = raw[name] if abs(raw[name]) != float("inf") else 0.0
        return found


@dataclass(frozen=True, slots=True)
class PolicyRows:
    """Scored rows of consecutive sequences, and all that the loss needs to know of them besides their log-probs."""

    advantages: Tensor  # [N] fp32
    weights: Tensor  # [N] fp32: what the normaliser multiplies the row's loss with
    lengths: Tensor  # [S] int64: rows of each sequence here; they sum to N
    tokens: Tensor  # [S] fp32: scored tokens of each sequence, at least 1
    old_logps: Tensor | None = None  # [N] fp32; None: on policy
    ref_logps: Tensor | None = None  # [N] fp32; needed where beta is not 0
    sampler_logps: Tensor | None = None  # [N] fp32, NaN where the sampler could not say
    keep: Tensor | None = None  # [N] fp32 0/1: the entropy quantile's choice

    def slice(self, part: slice, lengths: Tensor, tokens: Tensor) -> PolicyRows:
        def cut(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[part]

        return PolicyRows(
            self.advantages[part], self.weights[part], lengths, tokens, cut(self.old_logps), cut(self.ref_logps),
            cut(self.sampler_logps), cut(self.keep),
        )  # fmt: skip


class PolicyTerms(NamedTuple):
    """What the policy loss says of each row, [N] fp32."""

    loss: Tensor  # [N] weighted: their sum is the loss
    grad: Tensor  # [N] d loss / d logp
    ratio: Tensor  # [N] importance ratio before any clipping; of the sequence under sequence-level ratios
    kl: Tensor  # [N] KL estimate, 0 without a reference
    phi: Tensor  # [N] vespo's sequence weight, 0 for other losses
    correction: Tensor  # [N] sampler correction, 1 without one
