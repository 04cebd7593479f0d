"""From a session's records: every threshold with what was measured, the launch table, the kernels that took the time.

A threshold without a measurement is "not measured", and a speed without green tests of the same commit is "void".
Neither is ever a pass.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_plan import HEADS, TILINGS

Record = Mapping[str, Any]
TESTS = ("tests", "kernel_tests", "accuracy")
HEADLINE_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Threshold:
    name: str
    step: str
    found: Callable[[Sequence[Record]], float | None]  # from the rows of that step
    least: float | None = None
    most: float | None = None
    aim: float | None = None
    speed: bool = True  # counts with green tests alone


def thresholds() -> Iterator[Threshold]:
    for head in HEADS:
        yield Threshold(
            f"trained head, {head}: share of three cuBLAS products",
            "loss_sizes",
            _share(head, "trained"),
            0.9,
            aim=0.95,
        )
    for head in HEADS:
        yield Threshold(f"frozen head, {head}: share of two", "loss_sizes", _share(head, "frozen"), 0.9)
    for head in HEADS:
        yield Threshold(f"forward only, {head}: share of one", "loss_sizes", _share(head, "no_grad"), 0.85)
    for peer, names, least in (
        ("TRL", ("trl",), 1.4), ("Liger's GRPO loss", ("liger", "liger_whole"), 3.0), ("verl", ("verl",), 1.4),
        ("CCE", ("cce", "cce_filtered"), 1.3),
    ):  # fmt: skip
        yield Threshold(
            f"loss, trained head: times faster than {peer}", f"loss_peers/{names[0]}", _faster(names), least
        )
    yield Threshold("log-prob error on peaky logits, nats", "accuracy", _worst("logp_error"), most=1e-4, speed=False)
    yield Threshold("bits that differ between two runs", "determinism", _worst(""), most=0.0, speed=False)
    yield Threshold("on policy, the ratio's distance from 1", "on_policy", _worst("|ratio"), most=0.0, speed=False)
    yield Threshold("host syncs around loss and backward", "sync", _worst("host syncs"), most=0.0, speed=False)
    yield Threshold("replayed gradients that differ", "graph", _worst("replayed"), most=0.0, speed=False)
    yield Threshold("extra memory at N = 65 536, share of the byte budget", "memory", _memory, most=1.0, speed=False)
    yield Threshold("errors under compute-sanitizer memcheck", "memcheck", _worst("memcheck"), most=0.0, speed=False)
    yield Threshold("errors under compute-sanitizer racecheck", "racecheck", _worst("racecheck"), most=0.0, speed=False)
    yield Threshold("optimisation step: times faster than TRL's", "step_trl", _of_2b("speedup_vs_trl"), 4.0)
    yield Threshold("optimisation step: peak memory over TRL's", "step_trl", _of_2b("peak_vs_trl"), most=0.5)
    yield Threshold("decode at 512 completions: share of the bandwidth floor", "decode", _decode, 0.6)


def _timed(rows: Sequence[Record], impl: str, head: str, kind: str) -> Record | None:
    hidden, vocab = HEADS[head]
    wanted = {"impl": impl, "status": "ok", "rows": HEADLINE_ROWS, "hidden": hidden, "vocab": vocab, "head": kind}
    return next((row for row in rows if wanted.items() <= row.items()), None)


def _share(head: str, kind: str) -> Callable[[Sequence[Record]], float | None]:
    def found(rows: Sequence[Record]) -> float | None:
        row = _timed(rows, "ours", head, kind)
        return None if row is None else row["share_of_floor"]

    return found


def _faster(names: Sequence[str]) -> Callable[[Sequence[Record]], float | None]:
    """Than the faster of a peer's ways, in the same interleaved run."""

    def found(rows: Sequence[Record]) -> float | None:
        ours = _timed(rows, "ours", "2B", "trained")
        peers = [row["ms"] for name in names if (row := _timed(rows, name, "2B", "trained"))]
        return min(peers) / ours["ms"] if ours and peers else None

    return found


def _worst(prefix: str) -> Callable[[Sequence[Record]], float | None]:
    def found(rows: Sequence[Record]) -> float | None:
        values = [float(row["value"]) for row in rows if row.get("check", "").startswith(prefix) and "check" in row]
        return _largest(values)

    return found


def _largest(values: Sequence[float]) -> float | None:
    return next((value for value in values if value != value), max(values)) if values else None


def _memory(rows: Sequence[Record]) -> float | None:
    return _largest([row["peak_mb"] / row["budget_mb"] for row in rows if "peak_mb" in row])


def _of_2b(name: str) -> Callable[[Sequence[Record]], float | None]:
    return lambda rows: next((row.get(name) for row in rows if row.get("step") == "Qwen2-VL-2B"), None)


def _decode(rows: Sequence[Record]) -> float | None:
    shares = [row.get("share_of_bandwidth_floor") for row in rows if row.get("concurrent") == 512]
    return max((share for share in shares if share is not None), default=None)


def judge(records: Sequence[Record]) -> dict[str, Any]:
    by_step = {record["step"]: record for record in records}
    tests = {name: by_step[name]["status"] if name in by_step else "not run" for name in TESTS}
    green = all(status == "ok" for status in tests.values())
    rows = []
    for one in thresholds():
        record = by_step.get(one.step)
        value = one.found(record["rows"]) if record else None
        result, note = _result(one, value, record, green)
        bound = f"≥ {one.least:g}" if one.least is not None else f"≤ {one.most:g}"
        rows.append({"name": one.name, "bound": bound, "aim": one.aim, "value": value, "result": result, "note": note})
    last = records[-1]
    return {
        "gpu": last.get("gpu"), "driver": last.get("driver"), "commit": last.get("commit"), "date": last.get("date"),
        "tests": tests, "thresholds": rows,
        "steps": [{key: one.get(key) for key in ("part", "step", "status", "seconds", "reason")} for one in records],
    }  # fmt: skip


def _result(one: Threshold, value: float | None, record: Record | None, green: bool) -> tuple[str, str]:
    status = "not run" if record is None else record["status"]
    if value is None:
        return "not measured", "" if status == "ok" else status + (
            f": {record['reason']}" if record and record.get("reason") else ""
        )
    met = value >= one.least if one.least is not None else value <= (one.most or 0.0)
    if not one.speed:
        # what was checked before a step broke off shows a violation, never that there is none
        return (
            ("pass", "")
            if met and status == "ok"
            else ("fail", "")
            if not met
            else ("not measured", f"{status}: incomplete")
        )
    if not green:
        return "void", "tests of this commit are not green"
    return ("pass" if met else "fail"), "" if status == "ok" else f"the step ended as {status}"


def markdown(verdict: Mapping[str, Any]) -> str:
    tests = ", ".join(f"{name} {status}" for name, status in verdict["tests"].items())
    lines = [
        f"# {verdict['gpu']}, {verdict['date']}", "",
        f"Driver {verdict['driver']}, commit {verdict['commit']}. Tests: {tests}.", "",
        "| | bound | aim | measured | |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in verdict["thresholds"]:
        value = "" if row["value"] is None else f"{row['value']:.3g}"
        aim = "" if row["aim"] is None else f"{row['aim']:g}"
        word = row["result"] + (f" ({row['note']})" if row["note"] else "")
        lines.append(f"| {row['name']} | {row['bound']} | {aim} | {value} | {word} |")
    lines += ["", "| step | | seconds | |", "|---|---|---|---|"]
    lines += [
        f"| {s['part']}/{s['step']} | {s['status']} | {s['seconds']:.0f} | {s['reason'] or ''} |"
        for s in verdict["steps"]
    ]
    return "\n".join(lines) + "\n"


def launch_table(records: Sequence[Record]) -> str:
    """The fastest tiling over all heads as launch.py writes it; empty until one was right and timed everywhere."""
    times: dict[str, dict[tuple[str, int], dict[str, Record]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        if record["step"].startswith("tiles/") and record["status"] == "ok":  # a wrong tiling is not a candidate
            for row in record["rows"]:
                if "kernel_ms" in row:
                    times[row["tiling"]][row["variant"], row["stages"]][row["head"]] = row
    best: dict[str, tuple[float, dict[str, int]]] = {}  # milliseconds over heads and variants, stages of each variant
    for tiling, found in times.items():
        picked = {variant: fastest for variant in ("store", "entropy") if (fastest := _fastest(found, variant))}
        if len(picked) == 2:
            best[tiling] = (
                sum(ms for ms, _ in picked.values()),
                {name: stages for name, (_, stages) in picked.items()},
            )
    if not best:
        return ""
    known = {tiles.name: tiles for tiles in TILINGS}
    by_time = sorted(best, key=lambda name: best[name][0])
    first, triton = by_time[0], [name for name in by_time if not known[name].cuda]
    lines = ["cuda=True"] if known[first].cuda else []
    for chosen in triton[:1]:
        stages = best[chosen][1]
        lines += ["store=" + _gemm(chosen, stages["store"]), "sums=" + _gemm(chosen, stages["entropy"])]
        plain = [name for name in triton if not known[name].specialised]
        if known[chosen].specialised and plain:
            stages = best[plain[0]][1]
            lines.append(f"plain=({_gemm(plain[0], stages['store'])}, {_gemm(plain[0], stages['entropy'])})")
    passes = [
        row
        for record in records
        if record["step"] == "rows"
        for row in record["rows"]
        if row.get("row_pass") not in (None, "copy")
    ]
    if passes:
        total: dict[str, float] = defaultdict(float)
        for row in passes:
            total[row["row_pass"]] += row["ms"]
        block, warps = min(total, key=lambda name: total[name]).split(",")
        lines.append(f"row_block={block}, row_warps={warps}")
    shares = [
        f"# {variant} {head}: {100 * row['share_of_cublas']:.1f} % of cuBLAS, {row['tflop_per_s']:.0f} TFLOP/s"
        for variant, stages in best[first][1].items()
        for head, row in times[first][variant, stages].items()
    ]
    others = [f"# {name}: {best[name][0]:.2f} ms in all" for name in by_time]
    return "\n".join([*(line + "," for line in lines), *shares, *others]) + "\n"


def _fastest(found: Mapping[tuple[str, int], Mapping[str, Record]], variant: str) -> tuple[float, int] | None:
    """Milliseconds over all heads, and the stages; None unless every head was timed."""
    totals = [
        (sum(row["kernel_ms"] for row in heads.values()), stages)
        for (name, stages), heads in found.items()
        if name == variant and set(heads) == set(HEADS)
    ]
    return min(totals, default=None)


def _gemm(name: str, stages: int) -> str:
    t = next(tiles for tiles in TILINGS if tiles.name == name)
    special = ", specialised=True" if t.specialised else ""
    group = f", group={t.group}" if t.group != 16 else ""
    return f"Gemm(bm={t.bm}, bn={t.bn}, bk={t.bk}, warps={t.warps}, stages={stages}{special}{group})"


def kernels_csv(records: Sequence[Record]) -> str:
    rows = [row for record in records for row in record["rows"] if "rank" in row]
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["trace", "rank", "kernel", "calls", "ms", "share"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
