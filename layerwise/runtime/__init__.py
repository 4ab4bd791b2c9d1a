"""Device, dtype, precision, threads, seeds and memory allocator: what the machine offers.

Knows no model. `start()` is called once by a verb, never by an import.
"""

import ctypes
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from layerwise.errors import OptionError, unknown

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
KERNELS = 512  # that oneDNN keeps; with its own 1,024 texts of many lengths take 250 MB more
MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**28)}


@dataclass(frozen=True)
class Runtime:
    """What a run computes with."""

    device: str  # "cpu", "cuda", "mps"
    dtype: torch.dtype  # of the arithmetic; weights stay in fp32
    threads: int
    notes: tuple[str, ...] = ()  # what was chosen and why, one sentence each
    warnings: tuple[str, ...] = ()  # what was asked for and is slow here, one sentence each

    def autocast(self) -> Any:
        """A context in which matrix products and convolutions run in `dtype`."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device, dtype=self.dtype)


def kernels_kept() -> int:
    """How many kernels oneDNN keeps: as `start` says, unless the user says otherwise."""
    return int(os.environ.get(CAPACITY, KERNELS))


def start(device: str = "auto", dtype: str = "auto", threads: int = 0) -> Runtime:
    """Choose device, dtype and threads, tune the allocator, pick the fast exact fp32 product.

    dtype: "auto", "fp32", "bf16" or "fp16"; threads: 0 for one per core that this process may use.
    Errors: a device or dtype that this machine does not have.
    """
    notes = [tune_allocator()]
    os.environ.setdefault(CAPACITY, str(KERNELS))
    device = choose_device(device)
    threads = threads or usable_cores()
    torch.set_num_threads(threads)
    if device == "cpu":
        from layerwise.runtime.precision import choose_fp32_matmul

        notes.append(choose_fp32_matmul())
    chosen, why = choose_dtype(device, dtype)
    warned = tuple(sentence for sentence in [why_slow(device, chosen)] if sentence)
    return Runtime(device, chosen, threads, tuple(n for n in (*notes, why) if n) + warned, warned)


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def choose_device(device: str) -> str:
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise unknown("device", device, ("cpu", "cuda", "mps", "auto"))
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise OptionError("device 'cuda' was asked for, but PyTorch sees no CUDA GPU here; use cpu")
    return device


def choose_dtype(device: str, dtype: str) -> tuple[torch.dtype, str]:
    """bf16 where the processor or GPU multiplies in it natively, else fp32; and why."""
    if dtype != "auto":
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
        return DTYPES[dtype], f"{dtype}: as asked"
    if native_bf16(device):
        return torch.bfloat16, "bf16 arithmetic: this hardware multiplies in it natively"
    return torch.float32, "fp32 arithmetic: this hardware has no native bf16"


def native_bf16(device: str) -> bool:
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        return multiplies_in(torch.bfloat16)
    return False


@cache
def multiplies_in(dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels of its own for products in `dtype` on this processor.

    A small product is tried and compared with fp32: the processor's flags do not say whether
    oneDNN makes use of them (ONEDNN_MAX_CPU_ISA may hold it down). For bf16 the flags are asked as
    well, because with AVX512 alone oneDNN emulates it.
    """
    if dtype == torch.float32:
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16 and not torch.cpu._is_avx512_bf16_supported():
        return False
    with _disable_current_modes(), torch.no_grad(), torch.autocast("cpu", enabled=False):
        x = torch.linspace(-1, 1, 16 * 32, device="cpu", dtype=torch.float32).view(16, 32)
        weight, exact = x.flip(0), x @ x.flip(0).T
        try:
            found = tried_product(x.to(dtype), weight.to(dtype)).float()
        except (RuntimeError, NotImplementedError):
            return False
        return bool((found - exact).norm() < 0.02 * exact.norm())


def tried_product(x: Tensor, weight: Tensor) -> Tensor:
    """By the oneDNN operation that the fast paths use, which has no fallback."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def kernel_dtype(dtype: torch.dtype) -> torch.dtype:
    """For networks rewritten to be fast on the CPU: `dtype`, or fp32 where it lacks kernels."""
    return dtype if multiplies_in(dtype) else torch.float32


def without_autocast(dtype: torch.dtype) -> Any:
    """A context in which fp32 stays fp32, even where the run around it has autocast on."""
    return torch.autocast("cpu", enabled=False) if dtype == torch.float32 else nullcontext()


def why_slow(device: str, dtype: torch.dtype) -> str:
    """A sentence where products in `dtype` take longer than in fp32 on this processor, else ""."""
    if device != "cpu" or dtype == torch.float32 or (native_bf16(device) and dtype != torch.half):
        return ""
    ratio = seconds_of_product(dtype) / seconds_of_product(torch.float32)
    name = next(n for n, d in DTYPES.items() if d == dtype)
    if ratio < 1.5:
        return ""
    return (
        f"{name} was asked for, but a matrix product takes {ratio:.{0 if ratio > 9 else 1}f} times "
        "as long in it as in fp32 on this processor; --dtype fp32 is faster"
    )


def seconds_of_product(dtype: torch.dtype, n: int = 256) -> float:
    """Of two n x n matrices, the fastest of three."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        a, times = torch.ones(n, n, dtype=dtype, device="cpu"), []
        for _ in range(4):
            started = time.perf_counter()
            torch.mm(a, a)
            times.append(time.perf_counter() - started)
    return min(times[1:])


def tune_allocator() -> str:
    """Keep freed memory in the process (glibc): large tensors otherwise cause page faults again.

    Measured: up to 2.7x in training throughput for a few percent more peak memory.
    """
    if sys.platform != "linux" or os.environ.get("LAYERWISE_ALLOCATOR") == "default":
        return ""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return "allocator left as it is: not glibc"
    done = [libc.mallopt(option, value) for option, value in MALLOPT.values()]
    return "allocator keeps freed memory (glibc mallopt)" if all(done) else ""


def mix(*parts: int) -> int:
    """One 63-bit seed from several integers, e.g. (seed, epoch, step); stable everywhere."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Inside, PyTorch's global generator is seeded by `parts`; afterwards it is as before."""
    before = torch.get_rng_state()
    torch.manual_seed(mix(*parts))
    try:
        yield
    finally:
        torch.set_rng_state(before)


def generator(*parts: int) -> torch.Generator:
    """A generator seeded by integers, for code that takes its randomness as an argument."""
    return torch.Generator().manual_seed(mix(*parts))


@contextmanager
def evaluating(network: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Inside, the network is in eval mode, with or without gradients; each part's own mode comes
    back after."""
    modes = [(m, m.training) for m in network.modules()]
    network.eval()
    try:
        with torch.enable_grad() if gradients else torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def peak_memory_mb() -> float:
    """The most memory this process has had resident (GPU: allocated), in MB."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    with suppress(OSError, StopIteration), open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def forget_peak() -> None:
    """Start `peak_memory_mb` again from here, after handing back freed memory (Linux, CUDA)."""
    give_back()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError), open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # the high-water mark becomes what is resident now


def give_back() -> None:
    """Hand freed memory back to the system, which the allocator keeps for later (Linux)."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def cpu_field(name: str) -> str:
    """What Linux says of the processor under this name; "" where it says nothing."""
    with suppress(OSError), open("/proc/cpuinfo") as f:
        return next((line.split(":")[1].strip() for line in f if line.startswith(name)), "")
    return ""


def environment() -> dict[str, Any]:
    """Versions and machine, for reports and bug reports."""
    import PIL

    import layerwise

    return {
        "layerwise": layerwise.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "platform": platform.platform(),
        "processor": cpu_field("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
