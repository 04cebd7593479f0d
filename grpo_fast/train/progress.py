"""What a run's view knows at any moment, and how it says numbers."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

WINDOW = 40  # steps of a trend, and of the rate that the time left is told from
BARS = "▁▂▃▄▅▆▇█"
FLAT = "─"  # never changed: the lowest bar would look bad for a reward that is full all along
PHASES = {"sft": "SFT", "grpo": "GRPO"}
STAGES = ("start", "sft", "best", "grpo")


@dataclass(slots=True)
class Trend:
    """The last values of one metric, between the extremes that it has had in this phase."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    low: float = math.inf
    high: float = -math.inf

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self.recent.append(value)
            self.low, self.high = min(self.low, value), max(self.high, value)

    def line(self, width: int = WINDOW) -> str:
        span = self.high - self.low
        if not span > 1e-9 * max(abs(self.high), abs(self.low)):
            return FLAT * min(width, len(self.recent))
        return "".join(BARS[int((x - self.low) / span * (len(BARS) - 1) + 0.5)] for x in list(self.recent)[-width:])


@dataclass(slots=True)
class Evaluation:
    phase: str
    step: int
    accuracy: float


@dataclass(slots=True)
class Doing:
    """What goes on within a step."""

    name: str
    done: int = 0
    total: int = 0
    pace: str = ""


@dataclass(slots=True)
class Progress:
    clock: Callable[[], float] = time.monotonic
    phase: str = ""
    total: int = 0
    step: int = 0
    first: int = 0  # the step that this process began the phase at
    began: float = 0.0
    ends: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW + 1))  # when the last steps ended
    trends: dict[str, Trend] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    doing: Doing | None = None

    def enter(self, phase: str, total: int, start: int) -> None:
        self.phase, self.total, self.step, self.first = phase, total, start, start
        self.began = self.clock()
        self.ends = deque([self.began], maxlen=WINDOW + 1)
        self.trends, self.values, self.timing, self.doing = {}, {}, {}, None

    def advance(self, step: int, values: Mapping[str, float], timing: Mapping[str, float]) -> None:
        self.step, self.doing = step, None
        self.ends.append(self.clock())
        self.values, self.timing = {name: float(value) for name, value in values.items()}, dict(timing)
        if "clip_low" in self.values and "clip_high" in self.values:
            self.values["clipped"] = self.values["clip_low"] + self.values["clip_high"]
        for name, value in self.values.items():
            self.trends.setdefault(name, Trend()).add(value)

    def remember(self, accuracy: Mapping[str, float]) -> None:
        """Of an interrupted run, by stage: the first is the start, the last the newest."""
        self.evaluations = [Evaluation("", 0, accuracy[stage]) for stage in STAGES if stage in accuracy]

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        self.doing = None
        self.evaluations.append(Evaluation(self.phase, step, float(values["accuracy"])))

    @property
    def title(self) -> str:
        return PHASES.get(self.phase, self.phase)

    @property
    def best(self) -> Evaluation:
        return max(self.evaluations, key=lambda one: one.accuracy)

    def seconds_per_step(self) -> float | None:
        """Of the last steps, with what lay between them: evaluations, checkpoints."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1) if len(self.ends) > 1 else None

    def seconds_left(self) -> float | None:
        each = self.seconds_per_step()
        if each is None or self.step >= self.total:
            return None
        return max(each * (self.total - self.step) - (self.clock() - self.ends[-1]), 0.0)


def figure(value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size == 0:
        return "0"
    for least, digits in ((100, 0), (10, 1), (1, 2), (0.001, 3)):
        if size >= least:
            return f"{value:.{digits}f}"
    return f"{value:.0e}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "not finite"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def pace(seconds_per_step: float) -> str:
    if seconds_per_step > 1:
        return f"{seconds_per_step:.1f} s/step"
    return f"{1 / max(seconds_per_step, 1e-9):.1f} steps/s"


def machine(timing: Mapping[str, float]) -> str:
    """GPU memory, use and power where there is one, the process's own memory otherwise."""
    parts = []
    if "gpu_memory_mb" in timing:
        total = timing.get("gpu_memory_total_mb")
        parts.append(f"{timing['gpu_memory_mb'] / 1024:.1f}" + (f" of {total / 1024:.0f}" if total else "") + " GB")
    elif "host_memory_mb" in timing:
        parts.append(f"{timing['host_memory_mb'] / 1024:.1f} GB")
    if "gpu_utilisation" in timing:
        parts.append(f"{timing['gpu_utilisation']:.0f} % busy")
    if "gpu_power_w" in timing:
        parts.append(f"{timing['gpu_power_w']:.0f} W")
    return "   ".join(parts)


def speed(timing: Mapping[str, float]) -> str:
    units = (("tokens_per_second", "tokens/s"), ("completions_per_second", "completions/s"))
    return "   ".join(f"{figure(timing[name])} {unit}" for name, unit in units if name in timing)
