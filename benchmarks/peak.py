"""Peak extra memory of one implementation: what it needs beyond its inputs and the gradients it returns.

On CUDA this is the allocator's own high-water mark. On a CPU it is the resident set's: Linux resets the mark through
/proc/self/clear_refs, so the peak also holds what never passes torch's allocator (packing buffers of the BLAS, native
code). For a clean reading each implementation runs in its own process, in which every freed block goes back to the
system at once; elsewhere than on Linux nothing is reported.

As a script: reads one JSON request on stdin, prints one JSON object a line.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from cases import Case, Inputs, make_inputs
from measure import import_package, synchronize
from peers import IMPLEMENTATIONS, Implementation

CLEAR_REFS = Path("/proc/self/clear_refs")
CHILD_ENV = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
    "MKL_DISABLE_FAST_MM": "1",
}


def step(implementation: Implementation, inputs: Inputs, case: Case) -> Callable[[], torch.Tensor | None]:
    """One timed unit of work: log-probs alone, or the loss forward and backward with fresh gradients.

    Returns the log-probs [B, T] where they come for free.
    """

    def score() -> torch.Tensor:
        with torch.no_grad():
            return implementation.logps(inputs)

    def train() -> torch.Tensor | None:
        inputs.hidden.grad = inputs.weight.grad = None
        loss, logps = implementation.loss(inputs)
        loss.backward()
        return None if logps is None else logps.detach()

    return score if case.head == "no_grad" else train


def warm_up(implementation: Implementation, case: Case, device: torch.device) -> None:
    """Two short batches of different shapes: kernels load, and what compiles learns that lengths vary."""
    for rows in (16, 48):
        inputs = make_inputs(replace(case, rows=rows), device, realistic=False)
        step(implementation, implementation.prepare(inputs), case)()


def peak_cuda(run: Callable[[], object], inputs: Inputs) -> float:
    device = inputs.hidden.device
    inputs.hidden.grad = inputs.weight.grad = None
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    synchronize(device)
    return max(0, torch.cuda.max_memory_allocated(device) - before - _gradient_bytes(inputs)) / 1e6


def peaks_cpu(name: str, cases: Sequence[Case], threads: int, tick: Callable[[], None]) -> dict[Case, float | None]:
    """Megabytes per case, or None where a case failed or the system keeps no resettable high-water mark."""
    if not os.access(CLEAR_REFS, os.W_OK):
        return dict.fromkeys(cases)
    request = {"name": name, "threads": threads, "cases": [_pack(case) for case in cases]}
    child = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | CHILD_ENV,
    )
    assert child.stdin is not None and child.stdout is not None
    with child:
        child.stdin.write(json.dumps(request))
        child.stdin.close()
        peaks: dict[Case, float | None] = dict.fromkeys(cases)
        for line, case in zip(child.stdout, cases, strict=False):
            peaks[case] = json.loads(line)["peak_mb"]
            tick()
    return peaks


def _serve() -> None:
    request = json.load(sys.stdin)
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not mix with the results
    torch.set_num_threads(request["threads"])
    import_package()
    implementation = IMPLEMENTATIONS[request["name"]]
    for peak in peaks_of(implementation, [_unpack(packed) for packed in request["cases"]]):
        print(json.dumps({"peak_mb": peak}), file=results, flush=True)


def peaks_of(implementation: Implementation, cases: Sequence[Case]) -> Iterator[float | None]:
    device = torch.device("cpu")
    for case in cases:
        warm_up(implementation, case, device)
        inputs = implementation.prepare(make_inputs(case, device, realistic=False))
        run = step(implementation, inputs, case)
        before = resident("VmRSS", reset=True)
        run()
        yield max(0.0, (resident("VmHWM") - before - _gradient_bytes(inputs)) / 1e6)


def resident(field: Literal["VmRSS", "VmHWM"], *, reset: bool = False) -> int:
    if reset:
        gc.collect()
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if malloc_trim is not None:
            malloc_trim(0)
        CLEAR_REFS.write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _gradient_bytes(inputs: Inputs) -> int:
    return sum(leaf.grad.nbytes for leaf in (inputs.hidden, inputs.weight) if leaf.grad is not None)


def _pack(case: Case) -> dict[str, Any]:
    return asdict(case) | {"dtype": case.dtype_name}


def _unpack(packed: dict[str, Any]) -> Case:
    return Case(**(packed | {"dtype": getattr(torch, packed["dtype"])}))


if __name__ == "__main__":
    _serve()
