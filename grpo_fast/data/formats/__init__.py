"""How a record says its question: one reader for each layout that people use."""

from __future__ import annotations

from grpo_fast.data.formats.easy_r1 import EASY_R1
from grpo_fast.data.formats.mm_eureka import MM_EUREKA
from grpo_fast.data.formats.problem_solution import PROBLEM_SOLUTION
from grpo_fast.data.formats.vlm_r1 import VLM_R1

FORMATS = (VLM_R1, MM_EUREKA, PROBLEM_SOLUTION, EASY_R1)
