"""NVML readings of one NVIDIA GPU. Calls the driver's own library: there is nothing to install, and it may be missing.

https://docs.nvidia.com/deploy/nvml-api: every function returns 0 on success.
"""

import ctypes
from typing import Any, NamedTuple

_LIBRARY = "libnvidia-ml.so.1"


class GpuSample(NamedTuple):
    """`busy_share` is the share of the last sample period in which a kernel ran. None: not reported by this GPU."""

    busy_share: float | None
    memory_used_bytes: int | None
    memory_bytes: int | None
    power_watts: float | None


class _Utilization(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Gpu:
    def __init__(self, library: Any, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle

    def read(self) -> GpuSample:
        utilization, memory, milliwatts = _Utilization(), _Memory(), ctypes.c_uint()
        busy = self._ask("nvmlDeviceGetUtilizationRates", utilization)
        has_memory = self._ask("nvmlDeviceGetMemoryInfo", memory)
        has_power = self._ask("nvmlDeviceGetPowerUsage", milliwatts)
        return GpuSample(
            utilization.gpu / 100.0 if busy else None,
            memory.used if has_memory else None,
            memory.total if has_memory else None,
            milliwatts.value / 1000.0 if has_power else None,
        )

    def _ask(self, function: str, answer: Any) -> bool:
        return bool(getattr(self._library, function)(self._handle, ctypes.byref(answer)) == 0)


def open_gpu(uuid: str) -> Gpu | None:
    """Return the GPU of this UUID (`GPU-...`, as torch formats it), or None without NVML or such a GPU."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    handle = ctypes.c_void_p()
    if library.nvmlInit_v2() != 0 or library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) != 0:
        return None
    return Gpu(library, handle)
