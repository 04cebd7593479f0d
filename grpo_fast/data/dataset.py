"""Records of any number of files as one sequence of samples, read when asked for."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from grpo_fast.data import names
from grpo_fast.data.files import Source
from grpo_fast.data.record import Format, Record
from grpo_fast.errors import BadData, BadSettings
from grpo_fast.types import Sample


@dataclass(frozen=True, slots=True)
class Part(Sequence[Sample]):
    """One file, its format, and where its images lie."""

    source: Source
    format: Format
    folder: Path

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> Any:
        place = self.source.place(index)
        columns = self.source.record(index)
        if not isinstance(columns, Mapping):
            raise BadData(f"{place}: the record is of type {type(columns).__name__}, not an object with columns")
        if not self.format.recognise(columns):
            raise BadData(
                f"{place}: has the columns {', '.join(map(str, columns)) or '(none)'}; this file's others have "
                f"{self.format.columns}"
            )
        return self.format.sample(Record(columns, place, self.folder, self.source.path))


class Dataset(Sequence[Sample]):
    """Random access in bounded memory: `d[i]` is a Sample, or BadData that names file, line and reason.

    Choosing (`select`, `take`, `where`, `split`, slices) gives data sets over the same files.
    """

    def __init__(self, parts: Sequence[Sequence[Sample]], order: np.ndarray | None = None) -> None:
        self.parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self._order = order  # [len] int64 into the parts laid end to end; None: all of them

    @classmethod
    def joined(cls, datasets: Sequence[Dataset]) -> Dataset:
        parts = [part for one in datasets for part in one.parts]
        if all(one._order is None for one in datasets):
            return cls(parts)
        starts = np.cumsum([0, *(one._starts[-1] for one in datasets)])
        return cls(parts, np.concatenate([one.order + start for one, start in zip(datasets, starts, strict=False)]))

    @property
    def order(self) -> np.ndarray:
        return np.arange(self._starts[-1]) if self._order is None else self._order

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._order is None else len(self._order)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: int | slice) -> Sample | Dataset:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        part, row = self._find(index)
        return part[row]

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def place(self, index: int) -> tuple[str, int]:
        """File and line (or row, from 1) of a record, readable or not."""
        part, row = self._find(index)
        return (part.source.path, part.source.number(row)) if isinstance(part, Part) else ("phantom", row + 1)

    def select(self, indices: Iterable[int]) -> Dataset:
        chosen = np.fromiter(indices, np.int64)
        if len(chosen) and not -len(self) <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"an index lies outside the {len(self)} records")
        return Dataset(self.parts, self.order[chosen])

    def take(self, count: int) -> Dataset:
        """The first `count`, or all where there are fewer."""
        return self[:count]

    def split(self, share: float, seed: int = 0) -> tuple[Dataset, Dataset]:
        """(train, held out), both in the order of the files; `share` is held out, at least one record of each."""
        if not 0 < share < 1:
            raise BadSettings(f"the share to hold out must lie between 0 and 1, got {share}")
        if len(self) < 2:
            raise BadData(f"{len(self)} record(s) cannot be split into a part to train on and a part to hold out")
        held = min(max(1, round(share * len(self))), len(self) - 1)
        # RandomState's stream is frozen by numpy: the same seed splits alike everywhere and for good.
        shuffled = np.random.RandomState(seed).permutation(len(self))
        return self.select(np.sort(shuffled[held:])), self.select(np.sort(shuffled[:held]))

    def where(self, modality: Sequence[str] = (), question_type: Sequence[str] = ()) -> Dataset:
        """Those about these modalities and of these question types; empty: any. Reads every record once.

        A record that cannot be read stays, so that whoever asks for it hears why.
        """
        wanted = {
            "modality": {names.modality(name) for name in modality},
            "question_type": {names.question_type(name) for name in question_type},
        }
        if not any(wanted.values()):
            return self
        seen: dict[str, Counter[str]] = {"modality": Counter(), "question_type": Counter()}
        kept = []
        for index in range(len(self)):
            try:
                meta = self[index].meta
            except BadData:
                kept.append(index)
                continue
            for label, counts in seen.items():
                counts[meta.get(label, "unknown")] += 1
            if all(not allowed or meta.get(label) in allowed for label, allowed in wanted.items()):
                kept.append(index)
        for label, allowed in wanted.items():
            for name in sorted(allowed - seen[label].keys()):
                raise BadSettings(_no_such(label, name, seen[label]))
        return self.select(kept)

    def _find(self, index: int) -> tuple[Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index = index + len(self) if index < 0 else index
        place = index if self._order is None else int(self._order[index])
        part = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self.parts[part], place - int(self._starts[part])


def _no_such(label: str, name: str, seen: Counter[str]) -> str:
    near = difflib.get_close_matches(name, list(seen), n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    found = ", ".join(f"{one} ({count})" for one, count in seen.most_common(12))
    return f"no record has the {label.replace('_', ' ')} {name}{hint}; found: {found or 'none'}"
