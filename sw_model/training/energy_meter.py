"""Energy of the whole board, by NVML's own counter."""

import ctypes
import os

__all__ = ["EnergyMeter"]


class EnergyMeter:
    """Watt-hours since the meter was made; None where there is no NVIDIA driver.

    The board is the first of CUDA_VISIBLE_DEVICES, or number 0; its idle power is included.
    """

    def __init__(self) -> None:
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        index = int(first) if first.isdigit() else 0
        self._handle = ctypes.c_void_p()
        try:
            self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            self._nvml = None
            return
        failed = self._nvml.nvmlInit_v2() or self._nvml.nvmlDeviceGetHandleByIndex_v2(
            index, ctypes.byref(self._handle)
        )
        if failed:
            self._nvml = None
            return
        self._start = self._millijoules()

    def _millijoules(self) -> int:
        value = ctypes.c_ulonglong()
        if self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(value)):
            self._nvml = None
            return 0
        return value.value

    def watt_hours(self) -> float | None:
        """Since the start."""
        if self._nvml is None:
            return None
        now = self._millijoules()
        return None if self._nvml is None else (now - self._start) / 3.6e6
