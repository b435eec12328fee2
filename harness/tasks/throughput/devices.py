"""Peak rates of devices by name, and their energy by NVML."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Peaks:
    """Peak rates: dense operations per second by dtype, and bytes per second of device memory."""

    flops: dict[torch.dtype, float]
    bandwidth: float
    source: str


def _peaks(half: float, single: float, bandwidth: float, source: str) -> Peaks:
    """half: TFLOP/s of bfloat16 and float16. single: of float32 without TF32. bandwidth: GB/s."""
    flops = {torch.bfloat16: half * 1e12, torch.float16: half * 1e12, torch.float32: single * 1e12}
    return Peaks(flops, bandwidth * 1e9, source)


# by CUDA's name: memory and clocks differ within a family
PEAKS = {
    "NVIDIA H200": _peaks(989.5, 67, 4800, "NVIDIA H200 Tensor Core GPU data sheet, SXM, dense"),
    "NVIDIA H100 PCIe": _peaks(756.5, 51, 2000, "NVIDIA H100 Tensor Core GPU data sheet, PCIe, dense"),
    "NVIDIA H100 80GB HBM3": _peaks(989.5, 67, 3350, "NVIDIA H100 Tensor Core GPU data sheet, SXM, dense"),
    "NVIDIA A100-SXM4-80GB": _peaks(312, 19.5, 2039, "NVIDIA A100 Tensor Core GPU data sheet, 80GB SXM, dense"),
    "NVIDIA A100 80GB PCIe": _peaks(312, 19.5, 1935, "NVIDIA A100 Tensor Core GPU data sheet, 80GB PCIe, dense"),
    "NVIDIA A100-SXM4-40GB": _peaks(312, 19.5, 1555, "NVIDIA A100 Tensor Core GPU data sheet, 40GB SXM, dense"),
    "NVIDIA A100-PCIE-40GB": _peaks(312, 19.5, 1555, "NVIDIA A100 Tensor Core GPU data sheet, 40GB PCIe, dense"),
}


def peaks_of(name: str) -> Peaks | None:
    """Return the peak rates of a CUDA device by name; None if unknown."""
    return PEAKS.get(name)


def energy_meter(device: torch.device) -> Callable[[], float] | None:
    """Return a function that reads the GPU's energy in joules since its driver was loaded.

    None without a GPU or the package nvidia-ml-py, or if the GPU has no counter.
    """
    if device.type != "cuda":
        return None
    with contextlib.suppress(Exception):  # NVML's exceptions all mean that there is no reading
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3  # NVML counts millijoules
    return None
