"""Nothing that TRL's loss reads may be missing from the table; a new option in a new TRL fails here."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap

import pytest

pytest.importorskip("trl", minversion="1.16")

from parity.table import (
    COVERED_ELSEWHERE,
    INPUT_OPTIONS,
    LEVELS,
    LOSS_INPUTS,
    LOSS_TYPES,
    MODEL_INPUTS,
    READS_TO_OPTIONS,
    READS_WITHOUT_OPTION,
    ROWS,
)  # fmt: skip
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

LOSS = ast.parse(textwrap.dedent(inspect.getsource(GRPOTrainer._compute_loss)))
DEFAULTS = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}


def reads_of_self() -> set[str]:
    """`x` for every self.x read, `args.x` for every self.args.x."""
    reads = set()
    for node in ast.walk(LOSS):
        if not isinstance(node, ast.Attribute):
            continue
        if ast.unparse(node.value) == "self":
            reads.add(node.attr)
        elif ast.unparse(node.value) == "self.args":
            reads.add(f"args.{node.attr}")
    return reads


def reads_of_inputs() -> set[str]:
    keys = set()
    for node in ast.walk(LOSS):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "inputs":
            keys.add(ast.literal_eval(node.slice))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "inputs.get":
            keys.add(ast.literal_eval(node.args[0]))
    return keys


def strings_compared_with(attribute: str) -> set[str]:
    found = set()
    for node in ast.walk(LOSS):
        if isinstance(node, ast.Compare) and ast.unparse(node.left) == f"self.{attribute}":
            values = ast.literal_eval(node.comparators[0])
            found |= {values} if isinstance(values, str) else set(values)
    return found


def test_every_attribute_that_the_loss_reads_is_known() -> None:
    assert reads_of_self() == READS_TO_OPTIONS.keys() | READS_WITHOUT_OPTION


def test_every_input_that_the_loss_reads_is_known() -> None:
    assert reads_of_inputs() == LOSS_INPUTS.keys() | MODEL_INPUTS


def test_every_loss_type_and_level_is_in_the_table() -> None:
    assert strings_compared_with("loss_type") == set(LOSS_TYPES)
    assert strings_compared_with("importance_sampling_level") == set(LEVELS)


@pytest.mark.parametrize(
    "option", sorted({option for options in READS_TO_OPTIONS.values() for option in options} | set(INPUT_OPTIONS))
)
def test_every_option_is_exercised_off_its_default(option: str) -> None:
    assert option in DEFAULTS
    if option in {"loss_type", "importance_sampling_level", *COVERED_ELSEWHERE}:
        return
    if option == "gradient_accumulation_steps":
        assert any(row.accumulation > 1 for row in ROWS)
    elif option == "steps_per_generation":
        assert any(row.steps_per_generation != row.accumulation for row in ROWS)
    else:
        assert any(option in row.options and row.options[option] != DEFAULTS[option] for row in ROWS)


def test_rows_set_only_options_of_trl() -> None:
    assert {option for row in ROWS for option in row.options} <= DEFAULTS.keys()


def test_our_options_have_the_names_and_defaults_of_trl() -> None:
    from grpo_fast.config import LossOptions

    ours_alone = {"softcap"}
    for field in dataclasses.fields(LossOptions):
        name = f"vllm_{field.name}" if f"vllm_{field.name}" in DEFAULTS else field.name
        if field.name not in ours_alone:
            assert field.default == DEFAULTS[name], field.name
    offered = {field.name for field in dataclasses.fields(LossOptions)}
    read = {option for options in READS_TO_OPTIONS.values() for option in options} | set(INPUT_OPTIONS)
    by_call = {"use_vllm", "steps_per_generation", "router_aux_loss_coef"}
    assert {option.removeprefix("vllm_") for option in read - by_call} <= offered
