"""Where a detector runs: the device and the thread counts of the libraries that share this process."""

from __future__ import annotations

import cv2
import faiss
import torch


class DeviceError(RuntimeError):
    """The device asked for is not there."""


def resolve_device(name: str) -> torch.device:
    """The device behind ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.

    Raises:
        DeviceError: on another name, or ``cuda`` where torch finds no GPU.
    """
    match name:
        case "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        case "cpu":
            return torch.device("cpu")
        case "cuda" if torch.cuda.is_available():
            return torch.device("cuda")
        case "cuda":
            raise DeviceError("device cuda was asked for, but torch finds no CUDA GPU here; accepted: auto, cpu")
    raise DeviceError(f"unknown device {name!r}; accepted: auto, cpu, cuda")


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; without them it is right as well, but slow."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def keep_float32() -> None:
    """Convolutions and products in float32 as it is, not in TF32: a threshold holds for scores of one precision.

    TF32 is cuDNN's default for convolutions. For products it is that of some containers, by an environment variable
    (``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE``): the vectors of a density's inner products would have eleven bits.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def set_threads(count: int) -> None:
    """Give torch, FAISS and OpenCV the same number of threads, so that their pools do not fight over the cores."""
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)
    cv2.setNumThreads(count)
