"""Every kernel configuration that a launcher can ask for, by GPU, as the ahead-of-time compiler takes it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

POINTERS = {
    **dict.fromkeys(("h", "w", "e"), "*bf16"),
    **dict.fromkeys(("y", "offsets", "lengths", "ends", "groups", "group_of"), "*i64"),
    **dict.fromkeys(("index", "dest"), "*i32"),
    **{"allowed": "*i8", "uniform": "*fp64", "tokens": "*i64"},
}
INTEGERS = frozenset(
    {"n", "N", "V", "K8", "rows", "blocks", "draws", "tiles", "width", "width_blocks", "write"}
    | {"stride", "h_stride8", "w_stride8", "e_stride8"}
)
FLOATS = frozenset(
    {"inv_temp", "softcap", "scale", "epsilon", "clip_low", "clip_high", "delta", "beta", "threshold"}
    | {"cut_low", "cut_high", "k_pos", "k_neg", "lam_pos", "lam_neg"}
)


# The variants with most registers: --brief compiles these alone, and all of GEMM 1, which is not among them.
HEAVIEST = {
    "_exp_rows_kernel": ("softcap fp32 unaligned", "softcap fp32 aligned"),
    "_grad_rows_kernel": ("softcap fp32 aligned",),
    "shift_kernel": ("expected",),
    "_finish_kernel": ("expected entropy",),
    "target_kernel": ("expected",),
    "rescue_kernel": ("store",),
    "_advantages_kernel": ("batch",),
    "_gather_kernel": ("fp32 unaligned",),
    "_gather_backward_kernel": ("fp32 unaligned",),
    "_block_sums_kernel": ("aligned", "unaligned"),
    "_draw_kernel": ("unaligned",),
    "_prompt_kernel": ("bf16, 7 heads, 8 shares",),
    "_own_kernel": ("bf16, 7 heads, 8 shares",),
    "_policy_loss_kernel": ("clipped sequence everything", "vespo sequence everything"),
}


@dataclass(frozen=True)
class Entry:
    """One binary that a launcher can ask for."""

    arch: int
    module: str
    kernel: str
    variant: str
    constants: Mapping[str, object]
    warps: int = 4
    stages: int = 3
    dtypes: Mapping[str, str] = field(default_factory=dict)  # of pointers, where they differ from POINTERS and *fp32
    aligned: bool = True  # pointers and strides that Triton specialises are multiples of 16
    gemm: bool = False
    specialised: bool = False
    descriptors: bool = False


def entries(arch: int) -> Iterator[Entry]:
    from grpo_fast.kernels import (
        advantages,
        decode_attention,
        draw,
        exp_guards,
        kv_gather,
        launch,
        policy_loss,
        shifted_exp,
    )

    table = launch.TABLES[arch]
    alignments = ((True, "aligned"), (False, "unaligned"))

    tilings = [("", table.store, table.sums, table.descriptors)]
    if table.plain:
        tilings.append(("plain ", *table.plain, table.descriptors))
    if table.descriptors:
        tilings.append(("by pointers ", table.product(True, False), table.product(False, False), False))
    for name, store, sums, descriptors in tilings:
        for what, gemm in (("store", store), ("sums", sums), ("entropy", sums)):
            constants = {
                "BM": gemm.bm, "BN": gemm.bn, "BK": gemm.bk, "GROUP": gemm.group, "DESCRIPTORS": descriptors,
                "SPECIALISED": gemm.specialised, "STORE": what == "store", "ENTROPY": what == "entropy",
            }  # fmt: skip
            yield Entry(
                arch, "shifted_exp", "_gemm_exp_kernel", f"{name}{what}", constants, gemm.warps, gemm.stages,
                gemm=True, specialised=gemm.specialised, descriptors=descriptors,
            )  # fmt: skip

    for expected in (False, True):
        dtypes = {} if expected else {"expected_logp": "*i64"}
        word = "expected" if expected else "bare"
        constants = {"EXPECTED": expected, "ROWS": 64, "BK": exp_guards.SHIFT_DEPTH}
        yield Entry(arch, "exp_guards", "shift_kernel", word, constants, dtypes=dtypes, gemm=True)
        for entropy in (False, True):
            constants = {
                "EXPECTED": expected, "ENTROPY": entropy, "ROWS": shifted_exp._ROWS, "TILES": exp_guards.TILES
            }  # fmt: skip
            variant = f"{word}{' entropy' if entropy else ''}"
            yield Entry(arch, "shifted_exp", "_finish_kernel", variant, constants, dtypes=dtypes)
        constants = {"EXPECTED": expected, "BN": table.store.bn, "TILES": exp_guards.TILES}
        yield Entry(arch, "exp_guards", "target_kernel", word, constants, dtypes=dtypes)
    for what in ("store", "sums", "entropy"):
        constants = {"STORE": what == "store", "ENTROPY": what == "entropy", "BLOCK_Y": 1024}
        constants |= {"BLOCK_V": exp_guards.RESCUE_BLOCK, "BLOCK_K": exp_guards.RESCUE_BLOCK}
        yield Entry(arch, "exp_guards", "rescue_kernel", what, constants)

    for softcap, (aligned, word) in itertools.product((False, True), alignments):
        cap = "softcap " if softcap else ""
        constants = {"SOFTCAP": softcap, "BLOCK": table.row_block}
        for out in ("fp32", "bf16"):
            yield Entry(
                arch, "rows", "_exp_rows_kernel", f"{cap}{out} {word}", constants, table.row_warps,
                dtypes={"out": f"*{out}"}, aligned=aligned,
            )  # fmt: skip
        for out in ("fp32", "bf16", "fp16"):
            yield Entry(
                arch, "rows", "_grad_rows_kernel", f"{cap}{out} {word}", constants, table.row_warps,
                dtypes={"out": f"*{out}"}, aligned=aligned,
            )  # fmt: skip

    for scale in ("group", "batch", "none"):
        constants = {"SCALE": scale, "BLOCK": advantages._BLOCK}
        yield Entry(arch, "advantages", "_advantages_kernel", scale, constants, warps=1)

    for dtype, (aligned, word) in itertools.product(("fp32", "bf16", "fp16"), alignments):
        dtypes = {"x": f"*{dtype}", "grad": f"*{dtype}", "out": f"*{dtype}"}
        for kernel in ("_gather_kernel", "_gather_backward_kernel"):
            constants = {"BLOCK": kv_gather._BLOCK}
            yield Entry(arch, "kv_gather", kernel, f"{dtype} {word}", constants, dtypes=dtypes, aligned=aligned)

    for aligned, word in alignments:
        constants = {"BLOCK": draw.BLOCK, "SPAN": draw._SPAN, "BLOCKS": 1024}
        for kernel in ("_block_sums_kernel", "_draw_kernel"):
            yield Entry(arch, "draw", kernel, word, constants, aligned=aligned)

    for dtype, key_heads, heads, shares in (("bf16", 2, 6, 1), ("bf16", 4, 7, 8), ("fp16", 2, 6, 8)):
        dtypes = dict.fromkeys(("q", "new_k", "new_v", "keys", "values", "out"), f"*{dtype}")
        constants = {"KEY_HEADS": key_heads, "HEADS": heads, "D": 128, "KEYS": decode_attention._KEYS, "SHARES": shares}
        variant = f"{dtype}, {heads} heads, {shares} shares"
        for kernel, queries, gemm in (("_prompt_kernel", decode_attention._QUERIES, True), ("_own_kernel", 16, False)):
            constants = {**constants, "QUERIES": queries}
            yield Entry(arch, "decode_attention", kernel, variant, constants, dtypes=dtypes, gemm=gemm)

    for loss in ("clipped", "cispo", "sapo", "vespo"):
        for sequence, everything in itertools.product((False, True), (False, True)):
            constants = {
                "LOSS": loss, "SEQUENCE_RATIO": sequence, "OLD": everything, "DELTA": everything and loss == "clipped",
                "KL": everything, "BIAS_CORRECTION": everything, "SAMPLER": "token" if everything else "none",
                "TRUNCATE": everything, "OFF_POLICY": everything, "OFF_POLICY_SAMPLER": everything, "KEEP": everything,
                "BLOCK": policy_loss._BLOCK,
            }  # fmt: skip
            variant = f"{loss} {'sequence' if sequence else 'token'} {'everything' if everything else 'bare'}"
            yield Entry(arch, "policy_loss", "_policy_loss_kernel", variant, constants)


def type_of(name: str, entry: Entry) -> str:
    if name in FLOATS:
        return "fp32"
    if name in INTEGERS or name.endswith("_stride"):
        return "i32"
    return entry.dtypes.get(name, POINTERS.get(name, "*fp32"))
