"""What the machine is doing: memory, utilisation and power of this process's GPU, memory of the host."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATM = Path("/proc/self/statm")  # sizes in pages; the second is what lies in memory
MB = 1 << 20


class Devices:
    """`sample()` takes well under a millisecond and never waits for the device. What cannot be had is left out.

    Nothing is asked of a GPU that this process does not compute on: CUDA is not initialised for the asking.
    """

    def __init__(self) -> None:
        self._handles: dict[int, tuple[Any, Any]] = {}

    def sample(self) -> dict[str, float]:
        return {**_host(), **(self._gpu(torch.cuda.current_device()) if torch.cuda.is_initialized() else {})}

    def _gpu(self, device: int) -> dict[str, float]:
        if device not in self._handles:
            self._handles[device] = _nvml_handle(device)
        nvml, handle = self._handles[device]
        found: dict[str, float] = {}
        if nvml is None:
            free, total = torch.cuda.mem_get_info(device)
            return {"gpu_memory_mb": (total - free) / MB, "gpu_memory_total_mb": total / MB}

        def ask(query: Callable[[Any], Any], into: Callable[[Any], dict[str, float]]) -> None:
            try:
                found.update(into(query(handle)))
            except nvml.NVMLError:  # a MIG slice has no utilisation, some cards tell no power
                return

        ask(
            nvml.nvmlDeviceGetMemoryInfo,
            lambda memory: {"gpu_memory_mb": memory.used / MB, "gpu_memory_total_mb": memory.total / MB},
        )
        ask(nvml.nvmlDeviceGetUtilizationRates, lambda rates: {"gpu_utilisation": float(rates.gpu)})
        ask(nvml.nvmlDeviceGetPowerUsage, lambda milliwatts: {"gpu_power_w": milliwatts / 1000})
        return found


def _nvml_handle(device: int) -> tuple[Any, Any]:
    """By UUID as CUDA tells it: NVML numbers all cards of the machine and knows nothing of CUDA_VISIBLE_DEVICES."""
    try:
        import pynvml
    except ImportError:
        return None, None
    uuid = torch.cuda.get_device_properties(device).uuid
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None, None
    for kind in ("GPU", "MIG"):
        try:
            return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"{kind}-{uuid}")
        except pynvml.NVMLError:
            continue
    return None, None


def _host() -> dict[str, float]:
    if not STATM.is_file():  # only Linux has it
        return {}
    pages = int(STATM.read_text().split()[1])
    return {"host_memory_mb": pages * os.sysconf("SC_PAGE_SIZE") / MB}
