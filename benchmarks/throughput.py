"""How fast, how large and how exact grpo-fast is beside its peers, each part from one interleaved run.

python benchmarks/throughput.py                 every part at a size that fits the machine, with one table at the end
python benchmarks/throughput.py loss            one part in full, and its files under results/local
python benchmarks/throughput.py loss --json     the same numbers as JSON on stdout, and nothing else
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

HERE = Path(__file__).resolve().parent
PARTS = ("loss", "step", "rollout", "train", "scale")


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    from measure import import_package

    import_package()
    parts = {name: importlib.import_module(name) for name in PARTS}
    parser = _parser(parts)
    everything = not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help"))
    if everything:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        runs = [parser.parse_args([name, *module.BRIEF[device], *argv]) for name, module in parts.items()]
    else:
        runs = [parser.parse_args(argv)]

    from transformers.utils import logging

    logging.set_verbosity_error()
    only_json = runs[0].json
    with _stdout_for_results(only_json) as stdout:
        results = {}
        for run in runs:
            if everything:
                print(f"{run.part}: {_summary(parts[run.part])}", file=sys.stderr)
            results[run.part] = parts[run.part].run(run)
            _report(run.part, parts[run.part], results[run.part], run)
        if everything:
            _overview(results, runs[0])
        if only_json:
            json.dump(results if everything else results[runs[0].part], stdout, indent=1)
            stdout.write("\n")
    return 1 if any(_ours_is_wrong(result) for result in results.values()) else 0


def _parser(parts: dict[str, ModuleType]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="part", metavar="|".join(parts), required=True)
    for name, module in parts.items():
        summary = _summary(module)
        part = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        module.add_arguments(part)
        part.add_argument("--json", action="store_true", help="JSON on stdout, nothing else")
        part.add_argument(
            "--out",
            type=Path,
            metavar="DIR",
            help="folder for the files (default benchmarks/results/local; with --json none)",
        )
    return parser


def _summary(module: ModuleType) -> str:
    """What the part measures, without its own name before it."""
    first = (module.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(first.partition(": ")[2].split())


@contextmanager
def _stdout_for_results(only_json: bool) -> Iterator[TextIO]:
    """With `--json`, whatever any library or compiler prints goes to stderr; only the caller writes to stdout."""
    if not only_json:
        yield sys.stdout
        return
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(saved), "w") as stdout:
            yield stdout
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def _overview(results: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    import overview

    found = overview.ratios(results)
    if not args.json:
        overview.show(found)
    if out := _folder(args):
        overview.save(found, next(iter(results.values()))["machine"], out / "throughput.png")


def _folder(args: argparse.Namespace) -> Path | None:
    return args.out or (None if args.json else HERE / "results" / "local")


def _report(part: str, module: ModuleType, result: dict[str, Any], args: argparse.Namespace) -> None:
    if not args.json:
        module.show(result)
    out = _folder(args)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{part}.json").write_text(json.dumps(result, indent=1) + "\n")
    if hasattr(module, "save"):
        module.save(result, out)
    print(f"written to {os.path.relpath(out)}", file=sys.stderr)


def _ours_is_wrong(result: dict[str, Any]) -> bool:
    rows = result.get("loss", [])
    return any(row["impl"].startswith("ours") and row["status"] in ("refused", "failed") for row in rows)


if __name__ == "__main__":
    sys.exit(main())
