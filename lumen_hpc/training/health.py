"""Checks GPUs and interconnect before training: matrix product, all-reduce and free memory of every rank."""

from __future__ import annotations

import socket
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from lumen_hpc.distributed import Ranks, gather_json

ROUNDS = 3
"""All-reduces, of which the fastest counts."""
MIN_SPEED_SHARE = 0.5
"""Share of the median speed below which a GPU counts as bad."""


@dataclass(frozen=True)
class Report:
    """Result of one rank."""

    rank: int
    host: str
    device: str
    tflops: float
    """Of a square matrix product: bfloat16 on a GPU, float32 elsewhere."""
    memory_gb: float
    """Free on the GPU, or on the host if there is no GPU."""
    gb_per_s: float
    """Bus bandwidth of the all-reduce, as nccl-tests count it: 2 (n-1)/n of the bytes per second."""
    fault: str = ""


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _product(size: int) -> float:
    """TFLOP/s of a matrix product, whose result is checked against exact arithmetic."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    ones = torch.ones(size, size, device=device, dtype=dtype)
    ones @ ones
    _synchronize()
    start = time.perf_counter()
    result = ones @ ones
    _synchronize()
    seconds = time.perf_counter() - start
    if not bool((result == size).all()):
        raise ArithmeticError("a product of ones is wrong: the device computes wrong results")
    return 2 * size**3 / seconds / 1e12


def _all_reduce(megabytes: float, world_size: int) -> float:
    """GB/s; the sum is checked."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensor = torch.ones(int(megabytes * 2**20 / 4), device=device)
    dist.all_reduce(tensor)
    fastest = float("inf")
    for _ in range(ROUNDS):
        tensor.fill_(1.0)
        _synchronize()
        start = time.perf_counter()
        dist.all_reduce(tensor)
        _synchronize()
        fastest = min(fastest, time.perf_counter() - start)
        if float(tensor[0]) != world_size or float(tensor[-1]) != world_size:
            raise ArithmeticError(f"an all-reduce of ones gave {float(tensor[0])}, not {world_size}")
    return tensor.numel() * 4 * 2 * (world_size - 1) / max(world_size, 1) / fastest / 1e9


def _free_memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] / 1e9
    import psutil

    return psutil.virtual_memory().available / 1e9


def check_devices(ranks: Ranks, *, size: int | None = None, megabytes: float | None = None) -> list[dict[str, Any]]:
    """Tests every rank's device and the links between them; all ranks call it, all get all reports.

    `size` of the product and `megabytes` of the all-reduce default to 8192 and 256 on GPUs, 256 and 4 elsewhere.
    Raises RuntimeError that names host and rank of each device that fails, and of each GPU that is slower than
    MIN_SPEED_SHARE times the median.
    """
    cuda = torch.cuda.is_available()
    tflops, bandwidth, fault = 0.0, 0.0, ""
    try:
        tflops = _product(size or (8192 if cuda else 256))
    except (RuntimeError, ArithmeticError) as error:  # the other ranks learn of it, instead of waiting for this one
        fault = f"{type(error).__name__}: {error}"
    if not any(gather_json(fault)):
        bandwidth = _all_reduce(megabytes or (256 if cuda else 4), ranks.world_size)
    own_report = Report(
        ranks.rank,
        socket.gethostname(),
        torch.cuda.get_device_name() if cuda else "cpu",
        tflops,
        _free_memory(),
        bandwidth,
        fault,
    )
    reports = [Report(**report) for report in gather_json(asdict(own_report))]
    if messages := fault_messages(reports, min_share=MIN_SPEED_SHARE if cuda else 0.0):
        raise RuntimeError(
            "the health check found bad devices; exclude these nodes and resubmit: " + "; ".join(messages)
        )
    return [asdict(report) for report in reports]


def fault_messages(reports: list[Report], *, min_share: float) -> list[str]:
    """A message for each rank that has a fault, or is slower than `min_share` times the median."""
    median = statistics.median(report.tflops for report in reports)
    messages = []
    for report in reports:
        label = f"{report.host} (rank {report.rank}, {report.device})"
        if report.fault:
            messages.append(f"{label}: {report.fault}")
        elif report.tflops < min_share * median:
            messages.append(f"{label}: {report.tflops:.1f} TFLOP/s where the median is {median:.1f}")
    return messages
