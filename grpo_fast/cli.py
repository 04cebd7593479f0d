"""The command line: `grpo-fast` and `python -m grpo_fast`. Exit codes: 0 fine, 1 the run failed, 2 wrong usage."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import grpo_fast
from grpo_fast import generate
from grpo_fast.errors import GRPOFastError

EXAMPLES = """\
examples:
  grpo-fast doctor             what works on this machine, and a loss run end to end
  grpo-fast doctor --json      the same for programs
  GRPO_FAST_BACKEND=torch grpo-fast doctor
                               the same with every op in plain torch
  grpo-fast generate --model Qwen/Qwen2-VL-2B-Instruct --image scan.png --prompt "What is shown?"
                               an answer; --completions 8 for a group of them

exit codes: 0 fine, 1 the run failed, 2 wrong usage
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="grpo-fast",
        description="GRPO training of vision-language models with a loss fused into the head. "
        "Without a command: doctor.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"grpo-fast {grpo_fast.__version__}")
    commands = top.add_subparsers(dest="command", metavar="command")
    doctor = commands.add_parser(
        "doctor",
        help="what works on this machine, and why the rest does not",
        description="Prints versions, devices, which backends are usable and why, the backend that each op will take, "
        "and runs the loss forward and backward against plain torch in fp64. Fails if it is less accurate than torch.",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    generate.add_arguments(
        commands.add_parser(
            "generate",
            help="completions of a question about images",
            description="Samples completions of each prompt: every image encoded once, every prompt computed once.",
        )
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        return _run(arguments)
    except GRPOFastError as error:
        print(f"grpo-fast: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("grpo-fast: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        return 0


def _run(arguments: argparse.Namespace) -> int:
    from grpo_fast import doctor

    if arguments.command == "generate":
        return generate.run(arguments)
    if arguments.command is None:
        print("No command given: running `grpo-fast doctor` (`grpo-fast --help` lists what there is).\n")
    return doctor.run(as_json=arguments.command is not None and arguments.json)
