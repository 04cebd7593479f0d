"""The command line: `grpo-fast` and `python -m grpo_fast`. Exit codes: 0 fine, 1 the run failed, 2 wrong usage."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import grpo_fast
from grpo_fast import datacli, generate
from grpo_fast.compare import command as compare_command
from grpo_fast.errors import GRPOFastError, RunFailed
from grpo_fast.evaluate import command as evaluate_command
from grpo_fast.matrix import command as matrix_command
from grpo_fast.report import command as report_command
from grpo_fast.synth import command as synth_command
from grpo_fast.train import command as train_command

EXAMPLES = """\
examples:
  grpo-fast train              a tiny model learns synthetic questions: minutes, no GPU, no weights, no network
  grpo-fast train --model Qwen/Qwen2-VL-2B-Instruct --data train.jsonl --output runs/mine
                               a real model on your own questions; the same command again goes on where it stopped
  grpo-fast data check train.jsonl
                               every record that cannot be used, with file, line and reason
  grpo-fast eval --model runs/mine/model --data test.jsonl
                               accuracy by modality and question type, with intervals
  grpo-fast synth --model runs/mine/model --data questions.jsonl --output chains
                               reasoning data by rejection sampling, for grpo-fast sft
  grpo-fast report runs/mine   one HTML page: curves, tables, pictures, what was said
  grpo-fast generate --model Qwen/Qwen2-VL-2B-Instruct --image scan.png --prompt "What is shown?"
                               an answer; --completions 8 for a group of them
  grpo-fast doctor             what works on this machine, and a loss run end to end

exit codes: 0 fine, 1 the run failed or was interrupted, 2 wrong usage
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="grpo-fast",
        description="GRPO training of vision-language models with a loss fused into the head. "
        "Without a command: train, on the embedded questions.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"grpo-fast {grpo_fast.__version__}")
    commands = top.add_subparsers(dest="command", metavar="command")

    def command(name: str, help: str, description: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=description)

    for name, description in train_command.DESCRIPTIONS.items():
        train_command.add_arguments(command(name, description.partition(".")[0], description), command=name)
    evaluate_command.add_arguments(
        command(
            "eval",
            "accuracy of models on questions, with intervals",
            "Asks models questions, greedily, and gives accuracy by modality and question type. The same command goes "
            "on where it stopped.",
        )
    )
    report_command.add_arguments(
        command("report", "one HTML page of a run", "Writes one self-contained HTML page of one or several runs.")
    )
    matrix_command.add_arguments(
        command(
            "matrix",
            "one model per modality or question type, each asked all",
            "Trains a model on each modality or question type and evaluates each on all: cross-generalisation as "
            "tables and heat maps. Goes on where it stopped.",
        )
    )
    compare_command.add_arguments(
        command(
            "compare",
            "baseline, SFT and RL on the same data and budget",
            "Trains the baseline once by imitation and once by GRPO, on equal budgets and over several seeds, and "
            "compares the three. Goes on where it stopped.",
        )
    )
    synth_command.add_arguments(
        command(
            "synth",
            "reasoning data by rejection sampling",
            "Samples reasoning chains of questions with known answers and keeps those that are right and well-formed.",
        )
    )
    datacli.add_arguments(
        command("data", "check, count or convert data files", "Looks at data files of any of the known formats.")
    )
    generate.add_arguments(
        command(
            "generate",
            "completions of a question about images",
            "Samples completions of each prompt: every image encoded once, every prompt computed once.",
        )
    )
    doctor = command(
        "doctor",
        "what works on this machine, and why the rest does not",
        "Prints versions, devices, which backends are usable and why, the backend that each op will take, "
        "and runs the loss forward and backward against plain torch in fp64. Fails if it is less accurate than torch.",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_args(given or ["train"])
    try:
        return _run(arguments)
    except RunFailed as error:
        print(f"grpo-fast: {error}", file=sys.stderr)
        return 1
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
    match arguments.command:
        case "train" | "sft":
            return train_command.run(arguments, command=arguments.command)
        case "eval":
            return evaluate_command.run(arguments)
        case "report":
            return report_command.run(arguments)
        case "matrix":
            return matrix_command.run(arguments)
        case "compare":
            return compare_command.run(arguments)
        case "synth":
            return synth_command.run(arguments)
        case "data":
            return datacli.run(arguments)
        case "generate":
            return generate.run(arguments)
    from grpo_fast import doctor

    return doctor.run(as_json=arguments.json)
