"""Completions as models write them, and what each is worth: judged by hand, one at a time.

A row: the completion; the answer that the tags hold; the answer that a lenient reader finds ("=": the same); whether it
is right ("yes", "lenient": only for a lenient reader, "no"); the prompt style whose format it keeps to ("": none).
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    completion: str
    said: str | None
    loosely: str | None
    right: str
    form: str
    gold: str
    question: str
    method: str


def section(
    question: str, gold: str, *rows: tuple[str, str | None, str | None, str, str], method: str = "auto"
) -> None:
    for completion, said, loosely, right, form in rows:
        ROWS.append(Row(completion, said, said if loosely == "=" else loosely, right, form, gold, question, method))


ROWS: list[Row] = []

MODALITY = "Which imaging modality was used for this picture? A) CT, B) MRI, C) X-ray, D) Ultrasound"

# The letter, well formed and nearly so.
section(
    MODALITY,
    "C",
    ("<think>Bones are white.</think><answer>C</answer>", "C", "=", "yes", "think"),
    ("<think>Bones are white.</think> <answer>C</answer>", "C", "=", "yes", "think"),
    ("<think>Bones are white.</think>\n<answer>C</answer>", "C", "=", "yes", "think"),
    ("<think>Bones are white.</think>\n\n<answer>C</answer>\n", "C", "=", "yes", "think"),
    ("\n<think>Bones are white.</think><answer>C</answer>", "C", "=", "yes", "think"),
    ("<think>First the bones.\nThen the air.\n</think>\n<answer>C</answer>", "C", "=", "yes", "think"),
    ("<think></think><answer>C</answer>", "C", "=", "yes", "think"),
    ("<think>x</think><answer> C </answer>", "C", "=", "yes", "think"),
    ("<think>x</think><answer>\nC\n</answer>", "C", "=", "yes", "think"),
    ("<think>Is 3 < 4? Then it is an X-ray.</think><answer>C</answer>", "C", "=", "yes", "think"),
    ("<answer>C</answer>", "C", "=", "yes", "no-think"),
    ("  <answer>C</answer>\n", "C", "=", "yes", "no-think"),
    ("<answer>C</answer><think>Bones are white.</think>", "C", "=", "yes", "think-after"),
    ("<answer>C</answer>\n<think>Bones\nare white.</think>\n", "C", "=", "yes", "think-after"),
    ("<think>x</think><answer>B</answer>", "B", "=", "no", "think"),
    ("<answer>D</answer>", "D", "=", "no", "no-think"),
    ("<think>x</think><answer>E</answer>", "E", "=", "no", "think"),
)

# The letter in other dress: Med-R1's exact comparison scores these 0.
section(
    MODALITY,
    "C",
    ("<think>x</think><answer>C)</answer>", "C)", "=", "yes", "think"),
    ("<think>x</think><answer>(C)</answer>", "(C)", "=", "yes", "think"),
    ("<think>x</think><answer>[C]</answer>", "[C]", "=", "yes", "think"),
    ("<think>x</think><answer>C.</answer>", "C.", "=", "yes", "think"),
    ("<think>x</think><answer>C:</answer>", "C:", "=", "yes", "think"),
    ("<think>x</think><answer>c</answer>", "c", "=", "yes", "think"),
    ("<think>x</think><answer>(c)</answer>", "(c)", "=", "yes", "think"),
    ("<think>x</think><answer>C. X-ray</answer>", "C. X-ray", "=", "yes", "think"),
    ("<think>x</think><answer>C) X-ray</answer>", "C) X-ray", "=", "yes", "think"),
    ("<think>x</think><answer>(C) X-ray</answer>", "(C) X-ray", "=", "yes", "think"),
    ("<think>x</think><answer>C: X-ray</answer>", "C: X-ray", "=", "yes", "think"),
    ("<think>x</think><answer>C, X-ray</answer>", "C, X-ray", "=", "yes", "think"),
    ("<think>x</think><answer>C - X-ray</answer>", "C - X-ray", "=", "yes", "think"),
    ("<think>x</think><answer>C – X-ray</answer>", "C – X-ray", "=", "yes", "think"),
    ("<think>x</think><answer>C X-ray</answer>", "C X-ray", "=", "yes", "think"),
    ("<think>x</think><answer>C.X-ray</answer>", "C.X-ray", "=", "yes", "think"),
    ("<think>x</think><answer>C)X-ray</answer>", "C)X-ray", "=", "yes", "think"),
    ("<think>x</think><answer>C. X-ray of the chest</answer>", "C. X-ray of the chest", "=", "yes", "think"),
    ("<think>x</think><answer>X-ray (C)</answer>", "X-ray (C)", "=", "yes", "think"),
    ("<think>x</think><answer>C (X-ray)</answer>", "C (X-ray)", "=", "yes", "think"),
    ("<think>x</think><answer>C (X-ray).</answer>", "C (X-ray).", "=", "yes", "think"),
    ("<think>x</think><answer>C (MRI)</answer>", "C (MRI)", "=", "no", "think"),
    ("<think>x</think><answer>C。</answer>", "C。", "=", "yes", "think"),
    ("<think>x</think><answer>C；</answer>", "C；", "=", "yes", "think"),
    ("<think>x</think><answer>C!</answer>", "C!", "=", "yes", "think"),
    ("<think>x</think><answer>C、X-ray</answer>", "C、X-ray", "=", "yes", "think"),
    ("<think>x</think><answer>C，X-ray</answer>", "C，X-ray", "=", "yes", "think"),
    ("<think>x</think><answer>【C】</answer>", "【C】", "=", "yes", "think"),
    ("<think>x</think><answer>答案是C。</answer>", "答案是C。", "=", "yes", "think"),
    ("<think>x</think><answer>选项C</answer>", "选项C", "=", "yes", "think"),
    ("<think>x</think><answer>C、D</answer>", "C、D", "=", "no", "think"),
    ("<think>x</think><answer>**C**</answer>", "**C**", "=", "yes", "think"),
    ("<think>x</think><answer>*C*</answer>", "*C*", "=", "yes", "think"),
    ("<think>x</think><answer>`C`</answer>", "`C`", "=", "yes", "think"),
    ('<think>x</think><answer>"C"</answer>', '"C"', "=", "yes", "think"),
    ("<think>x</think><answer>**C) X-ray**</answer>", "**C) X-ray**", "=", "yes", "think"),
    ("<think>x</think><answer>\\boxed{C}</answer>", "\\boxed{C}", "=", "yes", "think"),
    ("<think>x</think><answer>$\\boxed{C}$</answer>", "$\\boxed{C}$", "=", "yes", "think"),
    ("<think>x</think><answer>\\boxed{\\text{C}}</answer>", "\\boxed{\\text{C}}", "=", "yes", "think"),
    ("<think>x</think><answer>$C$</answer>", "$C$", "=", "yes", "think"),
    ("<think>x</think><answer>Ｃ</answer>", "Ｃ", "=", "yes", "think"),
    ("<think>x</think><answer>（Ｃ）</answer>", "（Ｃ）", "=", "yes", "think"),
    ("<think>x</think><answer>Ｃ：X-ray</answer>", "Ｃ：X-ray", "=", "yes", "think"),
    ("<think>x</think><answer>C\u200b</answer>", "C\u200b", "=", "yes", "think"),
    ("<think>x</think><answer>Option C</answer>", "Option C", "=", "yes", "think"),
    ("<think>x</think><answer>Answer: C</answer>", "Answer: C", "=", "yes", "think"),
    ("<think>x</think><answer>The answer is C.</answer>", "The answer is C.", "=", "yes", "think"),
    ("<think>x</think><answer>The correct option is (C) X-ray</answer>", "The correct option is (C) X-ray", "=", "yes",
     "think"),
)  # fmt: skip

# The text of an option instead of its letter.
section(
    MODALITY,
    "C",
    ("<think>x</think><answer>X-ray</answer>", "X-ray", "=", "yes", "think"),
    ("<think>x</think><answer>x-ray</answer>", "x-ray", "=", "yes", "think"),
    ("<think>x</think><answer>X-Ray.</answer>", "X-Ray.", "=", "yes", "think"),
    ("<think>x</think><answer>X ray</answer>", "X ray", "=", "yes", "think"),
    ("<think>x</think><answer>X‑ray</answer>", "X‑ray", "=", "yes", "think"),  # a no-break hyphen
    ("<think>x</think><answer>An X-ray</answer>", "An X-ray", "=", "yes", "think"),
    ("<think>x</think><answer>**X-ray**</answer>", "**X-ray**", "=", "yes", "think"),
    ("<think>x</think><answer>The answer is X-ray</answer>", "The answer is X-ray", "=", "yes", "think"),
    ("<think>x</think><answer>MRI</answer>", "MRI", "=", "no", "think"),
    ("<think>x</think><answer>ray</answer>", "ray", "=", "no", "think"),
    ("<think>x</think><answer>Not an X-ray</answer>", "Not an X-ray", "=", "no", "think"),
)

# No answer, several answers, answers that contradict themselves.
section(
    MODALITY,
    "C",
    ("", None, None, "no", ""),
    ("   \n", None, None, "no", ""),
    ("<think>x</think><answer></answer>", "", "=", "no", "think"),
    ("<think>x</think><answer>  </answer>", "", "=", "no", "think"),
    ("<think>x</think><answer>)</answer>", ")", "=", "no", "think"),
    ("<think>x</think><answer>?</answer>", "?", "=", "no", "think"),
    ("<think>x</think><answer>A, C</answer>", "A, C", "=", "no", "think"),
    ("<think>x</think><answer>C, A</answer>", "C, A", "=", "no", "think"),
    ("<think>x</think><answer>C, A, B</answer>", "C, A, B", "=", "no", "think"),
    ("<think>x</think><answer>C,A,B</answer>", "C,A,B", "=", "no", "think"),
    ("<think>x</think><answer>C - A - B</answer>", "C - A - B", "=", "no", "think"),
    ("<think>x</think><answer>C or D</answer>", "C or D", "=", "no", "think"),
    ("<think>x</think><answer>C and D</answer>", "C and D", "=", "no", "think"),
    ("<think>x</think><answer>C/D</answer>", "C/D", "=", "no", "think"),
    ("<think>x</think><answer>A B C D</answer>", "A B C D", "=", "no", "think"),
    ("<think>x</think><answer>ABCD</answer>", "ABCD", "=", "no", "think"),
    ("<think>x</think><answer>CD</answer>", "CD", "=", "no", "think"),
    ("<think>x</think><answer>C) X-ray or B) MRI</answer>", "C) X-ray or B) MRI", "=", "no", "think"),
    ("<think>x</think><answer>C. X-ray or MRI</answer>", "C. X-ray or MRI", "=", "no", "think"),
    ("<think>x</think><answer>C. MRI</answer>", "C. MRI", "=", "no", "think"),
    ("<think>x</think><answer>C) Ultrasound</answer>", "C) Ultrasound", "=", "no", "think"),
    ("<think>x</think><answer>B. X-ray</answer>", "B. X-ray", "=", "no", "think"),
    ("<think>x</think><answer>not C</answer>", "not C", "=", "no", "think"),
    ("<think>x</think><answer>A) CT, B) MRI, C) X-ray, D) Ultrasound</answer>",
     "A) CT, B) MRI, C) X-ray, D) Ultrasound", "=", "no", "think"),
    ("<think>x</think><answer>\\boxed{C} or \\boxed{D}</answer>", "\\boxed{C} or \\boxed{D}", "=", "no", "think"),
    ("<think>x</think><answer>I cannot tell.</answer>", "I cannot tell.", "=", "no", "think"),
    ("<think>x</think><answer>Cardiac CT</answer>", "Cardiac CT", "=", "no", "think"),
)  # fmt: skip

# Tags: several, nested, unclosed, in the wrong place, in the wrong case.
section(
    MODALITY,
    "C",
    ("<think>x</think><answer>C</answer><answer>A</answer>", "C", "=", "yes", ""),
    ("<think>x</think><answer>A</answer><answer>C</answer>", "A", "=", "no", ""),
    ("<answer>C</answer> or rather <answer>B</answer>", "C", "=", "yes", ""),
    ("<answer>A</answer><answer>B</answer><answer>C</answer><answer>D</answer>", "A", "=", "no", ""),
    ("<think>x</think><answer><answer>C</answer></answer>", "C", "=", "yes", ""),
    ("<answer><answer>C</answer>", "C", "=", "yes", ""),
    ("<answer><think>x</think>C</answer>", "C", "=", "yes", ""),
    ("<think>x</think><ANSWER>C</ANSWER>", "C", "=", "yes", ""),
    ("<Think>x</Think><Answer>C</Answer>", "C", "=", "yes", ""),
    ("<think>x</think>< answer >C</ answer >", None, "C", "lenient", ""),
    ("<think>x</think><answer>C", None, "C", "lenient", ""),
    ("<think>x</think><answer>C</answer", None, "C", "lenient", ""),
    ("<think>x</think>C</answer>", None, "C", "lenient", ""),
    ("<think>Maybe <answer>B</answer>, no.</think><answer>C</answer>", "C", "=", "yes", ""),
    ("<think>Maybe <answer>C</answer>, no.</think><answer>B</answer>", "B", "=", "no", ""),
    ("<think>So <answer>C</answer></think>", None, "C", "lenient", ""),
    ("<think>So <answer>C</answer>", "C", "=", "yes", ""),
    ("<answer>C</answer><think>Not <answer>B</answer>.</think>", "C", "=", "yes", ""),
    ("<think>a</think><think>b</think><answer>C</answer>", "C", "=", "yes", ""),
    ("<think>x</think><answer>C</answer></answer>", "C", "=", "yes", ""),
    ("x</think><answer>C</answer>", "C", "=", "yes", ""),
    ("<think>x<answer>C</answer></think>", None, "C", "lenient", ""),
    ("Sure! <think>x</think><answer>C</answer>", "C", "=", "yes", ""),
    ("<think>x</think> So: <answer>C</answer>", "C", "=", "yes", ""),
    ("<think>x</think><answer>C</answer> Hope this helps.", "C", "=", "yes", ""),
    ("<think>x</think><answer>C</answer><|im_end|>", "C", "=", "yes", ""),
    ("```\n<think>x</think><answer>C</answer>\n```", "C", "=", "yes", ""),
    ("<think>x</think>", None, None, "no", ""),
    ("<think>It goes on and on and on", None, "It goes on and on and on", "no", ""),
    ("<final>C</final>", None, "<final>C</final>", "no", ""),
)

# Without tags: only a lenient reader finds these.
section(
    MODALITY,
    "C",
    ("C", None, "C", "lenient", ""),
    ("C.", None, "C", "lenient", ""),
    ("C)", None, "C", "lenient", ""),
    ("(C)", None, "C", "lenient", ""),
    ("**C**", None, "C", "lenient", ""),
    ("**C)**", None, "C", "lenient", ""),
    ("Ｃ", None, "C", "lenient", ""),
    ("C) X-ray", None, "C) X-ray", "lenient", ""),
    ("X-ray", None, "X-ray", "lenient", ""),
    ("The answer is C", None, "C", "lenient", ""),
    ("The answer is C.", None, "C", "lenient", ""),
    ("The answer is (C).", None, "C", "lenient", ""),
    ("The answer is **C**.", None, "C", "lenient", ""),
    ("The answer is: C) X-ray.", None, "C", "lenient", ""),
    ("**Answer:** C", None, "C", "lenient", ""),
    ("**Answer: C**", None, "C", "lenient", ""),
    ("Final answer: C\n", None, "C", "lenient", ""),
    ("The correct option is C because bones are white.", None, "C", "lenient", ""),
    ("The correct choice would be C, an X-ray.", None, "C", "lenient", ""),
    ("The answer is X-ray.", None, "X-ray", "lenient", ""),
    ("The answer is X-ray. Bones are white.", None, "X-ray", "lenient", ""),
    ("The answer is not B. The answer is C.", None, "C", "lenient", ""),
    ("At first the answer is B, but then the answer is C.", None, "C", "lenient", ""),
    ("The correct answer is:\n\nC) X-ray", None, "C", "lenient", ""),
    ("The answer is:\nC", None, "C", "lenient", ""),
    ("Bones are white.\n\n**Answer:**\nX-ray", None, "X-ray", "lenient", ""),
    ("The final answer is :\n**C**\nBones are white.", None, "C", "lenient", ""),
    ("The answer is (C) or (D).", None, "(C) or (D)", "no", ""),
    ("The answer is C, D.", None, "C, D.", "no", ""),
    ("The answer is D", None, "D", "no", ""),
    ("So we get $\\boxed{C}$.", None, "\\boxed{C}", "lenient", ""),
    ("First \\boxed{B}, then corrected to \\boxed{C}", None, "\\boxed{C}", "lenient", ""),
    ("Bones are white and air is black.\nHence\nC", None, "C", "lenient", ""),
    ("Bones are white and air is black.\n\n(C) X-ray", None, "(C) X-ray", "lenient", ""),
    ("Bones are white and air is black.\nB", None, "B", "no", ""),
    ("<think>Bones.</think>C", None, "C", "lenient", ""),
    ("<think>Bones.</think>\nThe answer is C.", None, "C", "lenient", ""),
    ("<think>The answer is C.</think>", None, None, "no", ""),
    ("<think>The answer is C.</think>The answer is B.", None, "B", "no", ""),
    ("Computed tomography shows cross sections, which this picture is not, and an MRI shows soft tissue.", None, None,
     "no", ""),
    ("C is wrong and D is wrong, as is everything else that one could say about this.", None, None, "no", ""),
    ("A", None, "A", "no", ""),
)  # fmt: skip

# The gold answer in other dress.
for gold in ("C)", "(C)", "c", "C. X-ray", "X-ray", "<answer> C </answer>", "**C**"):
    section(
        MODALITY,
        gold,
        ("<think>x</think><answer>C</answer>", "C", "=", "yes", "think"),
        ("<think>x</think><answer>X-ray</answer>", "X-ray", "=", "yes", "think"),
        ("<think>x</think><answer>B</answer>", "B", "=", "no", "think"),
    )

# A gold answer that cannot be read rewards nothing, not even itself.
section(MODALITY, "E", ("<answer>E</answer>", "E", "=", "no", "no-think"))
section(
    MODALITY, "", ("<answer></answer>", "", "=", "no", "no-think"), ("<answer>C</answer>", "C", "=", "no", "no-think")
)
section("How many?", "many", ("<answer>many</answer>", "many", "=", "no", "no-think"), method="numeric")
section("Which?", "liver", ("<answer>liver</answer>", "liver", "=", "no", "no-think"), method="letter")
section("Is it?", "perhaps", ("<answer>perhaps</answer>", "perhaps", "=", "no", "no-think"), method="yes-no")
section("Which?", "Edema||Mass", ("<answer>Edema|Mass</answer>", "Edema|Mass", "=", "no", "no-think"),
        method="multi-label")  # fmt: skip

# No options in the question: the letter still counts, an abbreviated species is none.
section(
    "Which one? The options are drawn in the picture.",
    "B",
    ("<answer>B</answer>", "B", "=", "yes", "no-think"),
    ("<answer>(b)</answer>", "(b)", "=", "yes", "no-think"),
    ("<answer>B. the left one</answer>", "B. the left one", "=", "yes", "no-think"),
    ("<answer>B, C</answer>", "B, C", "=", "no", "no-think"),
    ("<answer>Bone</answer>", "Bone", "=", "no", "no-think"),
    ("<answer>b-mode</answer>", "b-mode", "=", "no", "no-think"),
)
section(
    "Which organism grows here?",
    "E. coli",
    ("<answer>E. coli</answer>", "E. coli", "=", "yes", "no-think"),
    ("<answer>e. coli.</answer>", "e. coli.", "=", "yes", "no-think"),
    ("<answer>E</answer>", "E", "=", "no", "no-think"),
    ("The answer is E. coli.", None, "E. coli", "lenient", ""),
)

# Options whose texts are letters, share words, or read like letters.
BLOOD = "What is the blood type? A) O B) A C) AB D) B"
section(
    BLOOD,
    "C",
    ("<answer>AB</answer>", "AB", "=", "yes", "no-think"),
    ("<answer>C</answer>", "C", "=", "yes", "no-think"),
    ("<answer>O</answer>", "O", "=", "no", "no-think"),
    ("<answer>A</answer>", "A", "=", "no", "no-think"),
    ("<answer>C) AB</answer>", "C) AB", "=", "yes", "no-think"),
)
VIEW = (
    "Which view is this?\n(A) Lateral view\n(B) A.P. view\n(C) CT angiography, axial\n(D) CT\n\nAnswer with the letter."
)
section(
    VIEW,
    "B",
    ("<answer>A.P. view</answer>", "A.P. view", "=", "yes", "no-think"),
    ("<answer>B) A.P. view</answer>", "B) A.P. view", "=", "yes", "no-think"),
    ("<answer>A) A.P. view</answer>", "A) A.P. view", "=", "no", "no-think"),
    ("<answer>A</answer>", "A", "=", "no", "no-think"),
)
section(
    VIEW,
    "C",
    ("<answer>CT angiography, axial</answer>", "CT angiography, axial", "=", "yes", "no-think"),
    ("<answer>C) CT angiography</answer>", "C) CT angiography", "=", "yes", "no-think"),
    ("<answer>CT</answer>", "CT", "=", "no", "no-think"),
    ("<answer>C) CT</answer>", "C) CT", "=", "no", "no-think"),
)
section(
    "Which one? A) cyst, B) Cyst, C) mass",
    "B",
    ("<answer>B</answer>", "B", "=", "yes", "no-think"),
    ("<answer>cyst</answer>", "cyst", "=", "no", "no-think"),  # two options read so
)
section(
    "Is the lung normal? A) Yes, B) No",
    "B",
    ("<answer>B</answer>", "B", "=", "yes", "no-think"),
    ("<answer>No</answer>", "No", "=", "yes", "no-think"),
    ("<answer>No, it is not.</answer>", "No, it is not.", "=", "yes", "no-think"),
    ("<answer>Yes</answer>", "Yes", "=", "no", "no-think"),
    ("<answer>B) No</answer>", "B) No", "=", "yes", "no-think"),
    ("<answer>A) No</answer>", "A) No", "=", "no", "no-think"),
    ("<answer>Nodule</answer>", "Nodule", "=", "no", "no-think"),
)

# Yes and no.
section(
    "Is there a fracture?",
    "no",
    ("<answer>no</answer>", "no", "=", "yes", "no-think"),
    ("<answer>No.</answer>", "No.", "=", "yes", "no-think"),
    ("<answer>NO</answer>", "NO", "=", "yes", "no-think"),
    ("<answer>No, there is none.</answer>", "No, there is none.", "=", "yes", "no-think"),
    ("<answer>**No**</answer>", "**No**", "=", "yes", "no-think"),
    ("<answer>The answer is no</answer>", "The answer is no", "=", "yes", "no-think"),
    ("<answer>yes</answer>", "yes", "=", "no", "no-think"),
    ("<answer>normal</answer>", "normal", "=", "no", "no-think"),
    ("<answer>not sure</answer>", "not sure", "=", "no", "no-think"),
    ("<answer>none</answer>", "none", "=", "no", "no-think"),
    ("<answer>yes/no</answer>", "yes/no", "=", "no", "no-think"),
    ("<answer>no, yes</answer>", "no, yes", "=", "no", "no-think"),
    ("No.", None, "No.", "lenient", ""),
    ("<think>Is it? No, yes, no.</think>\nAnswer: No", None, "No", "lenient", ""),
)
section(
    "Is it normal?",
    "Yes",
    ("<answer>Yes, there is no lesion.</answer>", "Yes, there is no lesion.", "=", "yes", "no-think"),
    ("<answer>yes or no</answer>", "yes or no", "=", "no", "no-think"),
    ("<answer>eyes</answer>", "eyes", "=", "no", "no-think"),
    ("<answer>true</answer>", "true", "=", "no", "no-think"),
)

# Numbers.
section(
    "How many lesions are there?",
    "3",
    ("<answer>3</answer>", "3", "=", "yes", "no-think"),
    ("<answer>3.</answer>", "3.", "=", "yes", "no-think"),
    ("<answer>3.0</answer>", "3.0", "=", "yes", "no-think"),
    ("<answer>three</answer>", "three", "=", "yes", "no-think"),
    ("<answer>3 lesions</answer>", "3 lesions", "=", "yes", "no-think"),
    ("<answer>$3$</answer>", "$3$", "=", "yes", "no-think"),
    ("<answer>\\boxed{3}</answer>", "\\boxed{3}", "=", "yes", "no-think"),
    ("<answer>３</answer>", "３", "=", "yes", "no-think"),
    ("<answer>x = 3</answer>", "x = 3", "=", "yes", "no-think"),
    ("<answer>about 3</answer>", "about 3", "=", "yes", "no-think"),
    ("<answer>\\frac{6}{2}</answer>", "\\frac{6}{2}", "=", "yes", "no-think"),
    ("<answer>3.4</answer>", "3.4", "=", "no", "no-think"),
    ("<answer>-3</answer>", "-3", "=", "no", "no-think"),
    ("<answer>30</answer>", "30", "=", "no", "no-think"),
    ("<answer>3 or 4</answer>", "3 or 4", "=", "no", "no-think"),
    ("<answer>3-4</answer>", "3-4", "=", "no", "no-think"),
    ("<answer>3 or more</answer>", "3 or more", "=", "no", "no-think"),
    ("<answer>>3</answer>", ">3", "=", "no", "no-think"),
    ("<answer>1 2 3 4 5</answer>", "1 2 3 4 5", "=", "no", "no-think"),
    ("<answer>T3</answer>", "T3", "=", "no", "no-think"),
    ("The answer is 3.", None, "3", "lenient", ""),
)
section(
    "How long is it?",
    "3.5 cm",
    ("<answer>3.5 cm</answer>", "3.5 cm", "=", "yes", "no-think"),
    ("<answer>3.5cm</answer>", "3.5cm", "=", "yes", "no-think"),
    ("<answer>3.5</answer>", "3.5", "=", "yes", "no-think"),
    ("<answer>3.52 cm</answer>", "3.52 cm", "=", "yes", "no-think"),
    ("<answer>35 mm</answer>", "35 mm", "=", "yes", "no-think"),
    ("<answer>0.035 m</answer>", "0.035 m", "=", "yes", "no-think"),
    ("<answer>$3.5\\text{ cm}$</answer>", "$3.5\\text{ cm}$", "=", "yes", "no-think"),
    ("<answer>3.5 centimeters</answer>", "3.5 centimeters", "=", "yes", "no-think"),
    ("<answer>$3.5 \\mathrm{~cm}$</answer>", "$3.5 \\mathrm{~cm}$", "=", "yes", "no-think"),
    ("<answer>$3.5\\;\\text{cm}$</answer>", "$3.5\\;\\text{cm}$", "=", "yes", "no-think"),
    ("<answer>3.5 mm</answer>", "3.5 mm", "=", "no", "no-think"),
    ("<answer>3.5 kg</answer>", "3.5 kg", "=", "no", "no-think"),
    ("<answer>3.6 cm</answer>", "3.6 cm", "=", "no", "no-think"),
    ("<answer>3.5 x 2 cm</answer>", "3.5 x 2 cm", "=", "no", "no-think"),
)
section(
    "How long is AB?",
    "2",
    ("<answer>2 cm</answer>", "2 cm", "=", "yes", "no-think"),
    ("<answer>2√3</answer>", "2√3", "=", "no", "no-think"),
    ("<answer>2^3</answer>", "2^3", "=", "no", "no-think"),
    ("<answer>$2^{10}$</answer>", "$2^{10}$", "=", "no", "no-think"),
    ("<answer>2⁶</answer>", "2⁶", "=", "no", "no-think"),
    ("<answer>2^x</answer>", "2^x", "=", "no", "no-think"),
    ("<answer>2π</answer>", "2π", "=", "no", "no-think"),
    ("<answer>$2\\pi$</answer>", "$2\\pi$", "=", "no", "no-think"),
    ("<answer>2 3</answer>", "2 3", "=", "no", "no-think"),
    ("<answer>2 million</answer>", "2 million", "=", "no", "no-think"),
    ("<answer>2 squared</answer>", "2 squared", "=", "no", "no-think"),
)
section(
    "How large is angle ABC?",
    "145°",
    ("<answer>$145^\\circ$</answer>", "$145^\\circ$", "=", "yes", "no-think"),
    ("<answer>$145^{\\circ}$</answer>", "$145^{\\circ}$", "=", "yes", "no-think"),
    ("<answer>145 degrees</answer>", "145 degrees", "=", "yes", "no-think"),
    ("<answer>$35^{\\circ}$</answer>", "$35^{\\circ}$", "=", "no", "no-think"),
)
for gold in ("6 cm^2", "6cm^{2}", "6 cm²"):
    section(
        "How large is the area?",
        gold,
        ("<answer>6</answer>", "6", "=", "yes", "no-think"),
        ("<answer>6cm²</answer>", "6cm²", "=", "yes", "no-think"),
        ("<answer>$6\\,\\mathrm{cm}^{2}$</answer>", "$6\\,\\mathrm{cm}^{2}$", "=", "yes", "no-think"),
        ("<answer>600 mm^{2}</answer>", "600 mm^{2}", "=", "yes", "no-think"),
        ("<answer>6 cm^{3}</answer>", "6 cm^{3}", "=", "no", "no-think"),
    )
section(
    "How many cells?",
    "1,200",
    ("<answer>1200</answer>", "1200", "=", "yes", "no-think"),
    ("<answer>1,200</answer>", "1,200", "=", "yes", "no-think"),
    ("<answer>1 200</answer>", "1 200", "=", "yes", "no-think"),
    ("<answer>1{,}200</answer>", "1{,}200", "=", "yes", "no-think"),
    ("<answer>1.2e3</answer>", "1.2e3", "=", "yes", "no-think"),
    ("<answer>1.2 × 10³</answer>", "1.2 × 10³", "=", "yes", "no-think"),
    ("<answer>$1.2 \\times 10^{3}$</answer>", "$1.2 \\times 10^{3}$", "=", "yes", "no-think"),
    ("<answer>1.2</answer>", "1.2", "=", "no", "no-think"),
    ("<answer>1, 200</answer>", "1, 200", "=", "no", "no-think"),
)
section(
    "What share is infected?",
    "50%",
    ("<answer>50%</answer>", "50%", "=", "yes", "no-think"),
    ("<answer>50 %</answer>", "50 %", "=", "yes", "no-think"),
    ("<answer>50 percent</answer>", "50 percent", "=", "yes", "no-think"),
    ("<answer>$50\\%$</answer>", "$50\\%$", "=", "yes", "no-think"),
    ("<answer>0.5</answer>", "0.5", "=", "yes", "no-think"),
    ("<answer>1/2</answer>", "1/2", "=", "yes", "no-think"),
    ("<answer>½</answer>", "½", "=", "yes", "no-think"),
    ("<answer>5%</answer>", "5%", "=", "no", "no-think"),
    ("<answer>50 mm</answer>", "50 mm", "=", "no", "no-think"),
)
section(
    "What is the temperature change?",
    "-1.5",
    ("<answer>-1.5</answer>", "-1.5", "=", "yes", "no-think"),
    ("<answer>−1.5</answer>", "−1.5", "=", "yes", "no-think"),  # a typographic minus
    ("<answer>-1½</answer>", "-1½", "=", "yes", "no-think"),
    ("<answer>1.5</answer>", "1.5", "=", "no", "no-think"),
)

# Formulas.
section(
    "What is the area?",
    "$2\\sqrt{2}$",
    ("<answer>$2\\sqrt{2}$</answer>", "$2\\sqrt{2}$", "=", "yes", "no-think"),
    ("<answer>2\\sqrt{2}</answer>", "2\\sqrt{2}", "=", "yes", "no-think"),
    ("<answer>$\\sqrt{8}$</answer>", "$\\sqrt{8}$", "=", "yes", "no-think"),
    ("<answer>\\boxed{\\sqrt{8}}</answer>", "\\boxed{\\sqrt{8}}", "=", "yes", "no-think"),
    ("<answer>The area is $2\\sqrt{2}$.</answer>", "The area is $2\\sqrt{2}$.", "=", "yes", "no-think"),
    ("<answer>$2\\sqrt{3}$</answer>", "$2\\sqrt{3}$", "=", "no", "no-think"),
    ("<answer>2</answer>", "2", "=", "no", "no-think"),
    ("<answer>$9^{9^{9^{9}}}$</answer>", "$9^{9^{9^{9}}}$", "=", "no", "no-think"),
    ("Hence it is \\boxed{\\sqrt{8}}.", None, "\\boxed{\\sqrt{8}}", "lenient", ""),
)
for gold in ("2√3", "2√{3}", "2√(3) cm", "$2\\sqrt{3}$"):  # as GEOQA writes them; math_verify alone reads the 2
    section(
        "How long is AB?",
        gold,
        ("<answer>2√3</answer>", "2√3", "=", "yes", "no-think"),
        ("<answer>2\\sqrt{3}</answer>", "2\\sqrt{3}", "=", "yes", "no-think"),
        ("<answer>√12</answer>", "√12", "=", "yes", "no-think"),
        ("<answer>2*sqrt(3)</answer>", "2*sqrt(3)", "=", "yes", "no-think"),
        ("<answer>2</answer>", "2", "=", "no", "no-think"),
        ("<answer>5√3</answer>", "5√3", "=", "no", "no-think"),
    )
section(
    "Which order of magnitude?",
    "10^-3",
    ("<answer>10⁻³</answer>", "10⁻³", "=", "yes", "no-think"),
    ("<answer>$10^{-3}$</answer>", "$10^{-3}$", "=", "yes", "no-think"),
    ("<answer>0.001</answer>", "0.001", "=", "yes", "no-think"),
    ("<answer>10</answer>", "10", "=", "no", "no-think"),
)
section(
    "Expand.",
    "x^2+2x+1",
    ("<answer>x²+2x+1</answer>", "x²+2x+1", "=", "yes", "no-think"),
    ("<answer>9⁹⁹⁹⁹⁹⁹</answer>", "9⁹⁹⁹⁹⁹⁹", "=", "no", "no-think"),
    ("<answer>x^2+2x+1</answer>", "x^2+2x+1", "=", "yes", "no-think"),
    ("<answer>$(x+1)^2$</answer>", "$(x+1)^2$", "=", "yes", "no-think"),
    ("<answer>$(x-1)^2$</answer>", "$(x-1)^2$", "=", "no", "no-think"),
    ("<answer>liver</answer>", "liver", "=", "no", "no-think"),
)

# Several labels: right only when all gold ones and no others are there.
section(
    "Which findings does the chest X-ray show?",
    "Edema|Pleural_Thickening",
    ("<answer>Edema|Pleural_Thickening</answer>", "Edema|Pleural_Thickening", "=", "yes", "no-think"),
    ("<answer>Pleural Thickening | Edema</answer>", "Pleural Thickening | Edema", "=", "yes", "no-think"),
    ("<answer>edema, pleural thickening</answer>", "edema, pleural thickening", "=", "yes", "no-think"),
    ("<answer>Edema，Pleural Thickening</answer>", "Edema，Pleural Thickening", "=", "yes", "no-think"),
    ("<answer>Edema、Pleural Thickening。</answer>", "Edema、Pleural Thickening。", "=", "yes", "no-think"),
    ("<answer>Edema, Pleural Thickening, Mass</answer>", "Edema, Pleural Thickening, Mass", "=", "no", "no-think"),
    ("<answer>Edema and pleural thickening.</answer>", "Edema and pleural thickening.", "=", "yes", "no-think"),
    ("<answer>Edema</answer>", "Edema", "=", "no", "no-think"),
    ("<answer>Edema|Pleural_Thickening|Mass</answer>", "Edema|Pleural_Thickening|Mass", "=", "no", "no-think"),
    ("<answer>Edema|Mass</answer>", "Edema|Mass", "=", "no", "no-think"),
    ("<answer>No Finding</answer>", "No Finding", "=", "no", "no-think"),
)
section(
    "Which findings does the chest X-ray show?",
    "No Finding",
    ("<answer>No Finding</answer>", "No Finding", "=", "yes", "no-think"),
    ("<answer>no finding.</answer>", "no finding.", "=", "yes", "no-think"),
    ("<answer>No Finding|Mass</answer>", "No Finding|Mass", "=", "no", "no-think"),
    ("<answer>Mass</answer>", "Mass", "=", "no", "no-think"),
)

# Free text.
section(
    "Which organ is shown?",
    "left kidney",
    ("<answer>left kidney</answer>", "left kidney", "=", "yes", "no-think"),
    ("<answer>Left Kidney.</answer>", "Left Kidney.", "=", "yes", "no-think"),
    ("<answer>the left  kidney</answer>", "the left  kidney", "=", "yes", "no-think"),
    ("<answer>left-kidney</answer>", "left-kidney", "=", "yes", "no-think"),
    ("<answer>kidney</answer>", "kidney", "=", "no", "no-think"),
    ("<answer>left kidney or spleen</answer>", "left kidney or spleen", "=", "no", "no-think"),
    ("Left kidney", None, "Left kidney", "lenient", ""),
    ("The answer is left kidney, of course not the right.", None, "left kidney, of course not the right", "no", ""),
)
section(
    "Which structure? A) Aorta B) Vena cava",
    "aorta",
    ("<answer>Aorta</answer>", "Aorta", "=", "yes", "no-think"),
    ("<answer>A</answer>", "A", "=", "no", "no-think"),  # a text is asked for by name
    method="text",
)
