"""One session on a GPU: everything that needs one, checked, tuned and measured, in three calls of ten minutes.

python benchmarks/gpu_session.py --part check     correctness: tests, fp64, bits, syncs, graphs, memory, sanitizer
python benchmarks/gpu_session.py --part tune      launch tables and chunk sizes, against cuBLAS
python benchmarks/gpu_session.py --part measure   loss, step, decode and training, against peers and floors
python benchmarks/gpu_session.py --part verdict   the table of thresholds again, from what --out holds; needs no GPU
python benchmarks/gpu_session.py --dry-run        the plan with its budgets

Written to --out as it comes: steps.jsonl (a line for each step), session.log, launch_table.txt, kernels.csv,
verdict.json, verdict.md. Parts may run in several calls: with the same --out, or with their steps.jsonl put together.
Ends with 0 if every step ran and no threshold was missed, with 1 otherwise, with 2 without a CUDA device.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gpu_plan import CALL_SECONDS, PARTS, STEPS, describe
from gpu_run import HERE, gpu_state, read_records, run_steps
from gpu_verdict import judge, kernels_csv, launch_table, markdown


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS, "all", "verdict"], default="all")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results/<gpu>-<date>")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help=f"of each part (default {CALL_SECONDS})")
    parser.add_argument("--only", metavar="STEP,…", help="these steps alone")
    parser.add_argument("--commit", help="where the files are no git checkout")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and end")
    options = parser.parse_args(argv)
    parts = PARTS if options.part == "all" else tuple(part for part in PARTS if part == options.part)
    wanted = set(options.only.split(",")) if options.only else None
    unknown = (wanted or set()) - {step.name for part in parts for step in STEPS[part]}
    if unknown:
        parser.error(f"no step {', '.join(sorted(unknown))} in {', '.join(parts)}; --dry-run lists them")
    if options.dry_run:
        print(describe(parts, options.budget))
        return 0
    if options.part == "verdict":
        if options.out is None:
            parser.error("--part verdict needs --out: the folder that holds steps.jsonl")
        return 0 if _write_verdict(options.out) else 1

    import torch

    if not torch.cuda.is_available():
        print(f"no CUDA device: nothing was run. On one, this would be:\n{describe(parts, options.budget)}")
        return 2
    from measure import commit

    state = gpu_state() or {}
    gpu = state.get("name") or torch.cuda.get_device_name()
    today = datetime.date.today().isoformat()
    out: Path = options.out or HERE / "results" / f"{gpu.lower().replace(' ', '-')}-{today}"
    out.mkdir(parents=True, exist_ok=True)
    stamp = {"commit": options.commit or commit(), "gpu": gpu, "driver": state.get("driver_version"), "date": today}
    ran = True
    for part in parts:
        steps = [step for step in STEPS[part] if wanted is None or step.name in wanted]
        records = run_steps(part, steps, out, options.budget or CALL_SECONDS, stamp)
        ran &= all(record["status"] in ("ok", "absent") for record in records)
        met = _write_verdict(out)  # after each part: a later one may not come back
    return 0 if ran and met else 1


def _write_verdict(out: Path) -> bool:
    """Whether no threshold was missed; what was not measured is named, and misses nothing yet."""
    records = read_records(out / "steps.jsonl")
    if not records:
        print(f"{out}: no steps.jsonl with a record in it", file=sys.stderr)
        return False
    verdict = judge(records)
    (out / "verdict.json").write_text(json.dumps(verdict, indent=1) + "\n")
    (out / "verdict.md").write_text(markdown(verdict))
    for name, text in (("launch_table.txt", launch_table(records)), ("kernels.csv", kernels_csv(records))):
        if text:
            (out / name).write_text(text)
    print(markdown(verdict))
    return not any(row["result"] in ("fail", "void") for row in verdict["thresholds"])


if __name__ == "__main__":
    sys.exit(main())
