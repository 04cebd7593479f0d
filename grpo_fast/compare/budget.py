"""What the two trainings have in common, and what each of them gets beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from grpo_fast.errors import BadSettings
from grpo_fast.train.settings import Settings

Equal = Literal["questions", "completions"]
EQUAL = get_args(Equal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Of one seed. `equal` says what an optimizer update holds as much of in both: questions, each with its
    demonstration in SFT and a group of sampled completions in RL; or completions, demonstrated or sampled."""

    equal: Equal
    questions: int  # labelled, the same for both
    steps: int  # GRPO's
    prompts: int  # of a step
    group: int
    minibatches: int
    passes: int

    @property
    def updates(self) -> int:
        """Optimizer updates: SFT's, and RL's over fresh completions."""
        return self.steps * self.minibatches

    @property
    def sft_batch(self) -> int:
        return self.prompts // self.minibatches * (self.group if self.equal == "completions" else 1)

    def lines(self) -> list[str]:
        asked = self.steps * self.prompts
        shown = self.updates * self.sft_batch
        again = f", {self.passes} passes over each step's completions" if self.passes > 1 else ""
        return [
            f"both start from the baseline and draw from the same {self.questions} labelled questions; equal: "
            f"{self.updates} optimizer updates and the {self.equal} of an update",
            f"+SFT  {self.updates} updates × {self.sft_batch} demonstrations = {shown} "
            f"({shown / self.questions:.2f} × the questions), each the whole reference answer",
            f"+RL   {self.updates} updates × {self.prompts // self.minibatches} questions = {asked} "
            f"({asked / self.questions:.2f} × the questions), {self.group} sampled completions of each = "
            f"{asked * self.group}{again}; the reference answer is seen by the reward alone",
        ]


def budget(settings: Settings, steps: int, questions: int, equal: Equal) -> Budget:
    rollout = settings.rollout
    if rollout.prompts_per_step % rollout.minibatches:
        raise BadSettings(
            f"prompts_per_step ({rollout.prompts_per_step}) is no multiple of minibatches ({rollout.minibatches}): the "
            "updates of SFT and RL could not hold as many questions"
        )
    if rollout.filter_groups:
        raise BadSettings("filter_groups draws questions beyond its budget: leave it off to compare")
    if steps == 0:
        raise BadSettings("steps is 0: there is no training to compare")
    return Budget(
        equal=equal, questions=questions, steps=steps, prompts=rollout.prompts_per_step, group=rollout.group_size,
        minibatches=rollout.minibatches, passes=rollout.updates_per_rollout,
    )  # fmt: skip
