"""Answers to a matrix: accuracy of each model (row) on each group of questions (column), and what it adds up to.

Overall figures are micro averages: right answers over questions asked, rows and columns weighing what they hold. The
generalisation of a row is the plain mean of its accuracies on the columns that it was not trained on, and the score of
the matrix the plain mean over all such cells. Empty cells are in none of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from grpo_fast.evaluate.answers import Answer
from grpo_fast.evaluate.tables import generalisation

Value = float | None  # None: empty
Cell = tuple[int, int]  # right answers, questions asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    title: str
    by: str  # modality or question_type
    rows: list[str]
    columns: list[str]
    values: list[list[Value]]  # [row][column], shares, or differences of shares where `signed`
    n: list[list[int]]  # [row][column], questions asked
    correct: list[list[int]] | None = None  # [row][column]; None: of differences
    row_overall: list[Value]  # [row]
    column_overall: list[Value]  # [column]
    overall: Value
    generalisation: list[Value]  # [row]; None also for rows that are no column
    score: Value
    empty: dict[str, str] = field(default_factory=dict)  # row: why
    signed: bool = False

    @property
    def empty_cells(self) -> int:
        return sum(value is None for line in self.values for value in line)


def matrix(
    title: str,
    by: str,
    columns: Sequence[str],
    answers: Mapping[str, Sequence[Answer] | None],
    empty: Mapping[str, str],
    apart: Sequence[str] = (),
) -> Matrix:
    """`answers` of each row; None: there are none, and `empty` says why. Rows set `apart` are in no column's overall
    figure."""
    counts = {row: _counted(given or (), by) for row, given in answers.items()}
    cells = [[counts[row].get(column, (0, 0)) for column in columns] for row in answers]
    values = [[_share([cell]) for cell in line] for line in cells]
    trained = {
        row: {column: value for column, value in zip(columns, line, strict=True) if value is not None}
        for row, line in zip(answers, values, strict=True)
        if row in columns
    }
    elsewhere = {row: found for row, found in trained.items() if found.keys() - {row}}
    scores = generalisation(elsewhere)
    off_diagonal = [value for row, found in elsewhere.items() for column, value in found.items() if column != row]
    together = [line for row, line in zip(answers, cells, strict=True) if row not in apart]
    return Matrix(
        title=title,
        by=by,
        rows=list(answers),
        columns=list(columns),
        values=values,
        n=[[asked for _, asked in line] for line in cells],
        correct=[[right for right, _ in line] for line in cells],
        row_overall=[_share(line) for line in cells],
        column_overall=[_share([line[place] for line in together]) for place in range(len(columns))],
        overall=_share([cell for line in together for cell in line]),
        generalisation=[scores.get(row) for row in answers],
        score=fmean(off_diagonal) if off_diagonal else None,
        empty=dict(empty),
    )


def difference(title: str, a: Matrix, b: Matrix) -> Matrix:
    """a - b, cell by cell and figure by figure; empty where one of them is."""
    if (a.rows, a.columns, a.by) != (b.rows, b.columns, b.by):
        raise ValueError("a difference needs two matrices of the same rows and columns")

    def lines(one: Sequence[Sequence[Value]], other: Sequence[Sequence[Value]]) -> list[list[Value]]:
        return [_minus(x, y) for x, y in zip(one, other, strict=True)]

    return Matrix(
        title=title,
        by=a.by,
        rows=a.rows,
        columns=a.columns,
        values=lines(a.values, b.values),
        n=[[min(x, y) for x, y in zip(one, other, strict=True)] for one, other in zip(a.n, b.n, strict=True)],
        row_overall=_minus(a.row_overall, b.row_overall),
        column_overall=_minus(a.column_overall, b.column_overall),
        overall=_minus([a.overall], [b.overall])[0],
        generalisation=_minus(a.generalisation, b.generalisation),
        score=_minus([a.score], [b.score])[0],
        empty={**a.empty, **b.empty},
        signed=True,
    )


def _counted(answers: Sequence[Answer], by: str) -> dict[str, Cell]:
    asked = [answer for answer in answers if not answer.skipped]
    n = Counter(getattr(answer, by) for answer in asked)
    right = Counter(getattr(answer, by) for answer in asked if answer.strict)
    return {name: (right[name], n[name]) for name in n}


def _share(cells: Sequence[Cell]) -> Value:
    asked = sum(n for _, n in cells)
    return sum(right for right, _ in cells) / asked if asked else None


def _minus(a: Sequence[Value], b: Sequence[Value]) -> list[Value]:
    return [None if x is None or y is None else x - y for x, y in zip(a, b, strict=True)]
