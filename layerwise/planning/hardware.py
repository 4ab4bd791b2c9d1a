"""Hardware a run can be planned for: memory, rates, bandwidth, power, price.

Rates are the vendors' dense peaks from their data sheets, without sparsity. Prices are a range of
public list prices per accelerator and hour, on demand, seen in May 2026 (mercatus-ai.com/blog/
cloud-gpu-pricing for A100, H100, H200; the others are our estimates from rental listings of that
spring and marked so): change them with `dataclasses.replace` where you know better.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from layerwise.errors import OptionError, unknown
from layerwise.planning.estimate import Estimate
from layerwise.planning.machine import available_memory, cpu_cores

GB = 10**9
T = 10**12  # operations per second
CUDA_STARTED = 500 * 2**20  # what the context has already taken when free memory is read


@dataclass(frozen=True)
class Hardware:
    """One accelerator, or this processor."""

    name: str
    kind: str  # "cpu", "cuda" or "mps"
    memory: int  # bytes
    rates: Mapping[str, float]  # FLOP/s by dtype; empty: measured when needed
    bandwidth: float  # bytes/s
    watts: Estimate  # while it trains
    dollars_per_hour: Estimate
    efficiency: Estimate = field(default=Estimate(0.4, 0.2, 0.65))  # of the roofline; see below


# What eager PyTorch reaches of the roofline on an accelerator: 20-65%, from published training
# throughputs of ResNet-50, ViT and GPT (MFU 25-60%). An estimate: no accelerator was available.


Rates = dict[str, float]
Price = tuple[float, float, float]


def _gpu(name: str, gb: float, rates: Rates, gb_s: float, board: float, price: Price) -> Hardware:
    """rates in TFLOP/s, gb_s: bandwidth, board: its watts, price: usual, low, high."""
    flops = MappingProxyType({k: v * T for k, v in rates.items()})
    watts = Estimate(0.75 * board, 0.5 * board, board)
    return Hardware(name, "cuda", int(gb * GB), flops, gb_s * GB, watts, Estimate(*price))


# fp32: the TF32 units are off by default in PyTorch for matrix products, so plain fp32 is planned
_TABLE = (
    # data sheets: NVIDIA B200 2024-11, H200 2023-11, H100 2022-03, A100 2020-05, L40S 2023-08,
    # L4 2023-03, T4 2018-09; GeForce RTX 4090 Ada whitepaper 2022-10, RTX 3090 2020-09
    _gpu("b200", 180, {"fp32": 75, "bf16": 2250, "fp16": 2250}, 7700, 1000, (6, 3.5, 14)),  # [est]
    _gpu("h200", 141, {"fp32": 67, "bf16": 989, "fp16": 989}, 4800, 700, (3.8, 2.5, 7)),
    _gpu("h100", 80, {"fp32": 67, "bf16": 989, "fp16": 989}, 3350, 700, (3, 1.99, 5)),
    _gpu("a100", 80, {"fp32": 19.5, "bf16": 312, "fp16": 312}, 2039, 400, (1.5, 0.8, 3)),
    _gpu("l40s", 48, {"fp32": 91.6, "bf16": 362, "fp16": 362}, 864, 350, (1.0, 0.6, 2)),  # [est]
    _gpu("l4", 24, {"fp32": 30.3, "bf16": 121, "fp16": 121}, 300, 72, (0.6, 0.35, 1)),  # [est]
    _gpu("t4", 16, {"fp32": 8.1, "bf16": 8.1, "fp16": 65}, 320, 70, (0.35, 0.15, 0.6)),  # [est]
    _gpu("4090", 24, {"fp32": 82.6, "bf16": 165, "fp16": 165}, 1008, 450, (0.5, 0.3, 0.8)),  # [est]
    _gpu("3090", 24, {"fp32": 35.6, "bf16": 71, "fp16": 71}, 936, 350, (0.3, 0.15, 0.5)),  # [est]
)
ACCELERATORS = {h.name: h for h in _TABLE}
NAMES = ("cpu", "cuda", "mps", *ACCELERATORS)


def hardware(name: str) -> Hardware:
    """A machine by name: "cpu", "cuda" and "mps" are of this one, the others are in the table.

    Errors: an unknown name, with the nearest known one.
    """
    name = name.lower().removeprefix("rtx").strip("-_ ")
    if name not in NAMES:
        raise unknown("hardware", name, NAMES)
    at_hand = {"cpu": _this_processor, "mps": _apple, "cuda": _local_gpu}
    return at_hand[name]() if name in at_hand else ACCELERATORS[name]


def _this_processor() -> Hardware:
    """This machine: rates are measured when a plan needs them, memory is read now.

    Power: 4 to 15 W per busy core with its share of memory and board [estimate]. Price: 0.02 to
    0.06 $ per core and hour, as clouds list virtual cores in 2025-2026 [estimate].
    """
    cores = cpu_cores()
    watts, price = (e.scaled(cores) for e in (Estimate(8, 4, 15), Estimate(0.04, 0.02, 0.06)))
    reached = Estimate(0.65, 0.35, 1.1)  # of the roofline of measured rates; see timing.py
    return Hardware("cpu", "cpu", available_memory(), {}, 0.0, watts, price, reached)


def _local_gpu() -> Hardware:
    """The CUDA GPU at hand: by its name from the table, its free memory as it is now.

    One that the table does not know is planned with an A100's rates and a wide interval.
    """
    import torch

    if not torch.cuda.is_available():
        raise OptionError(
            "hardware 'cuda' is the GPU of this machine, but PyTorch sees none here; name the one "
            f"that is meant: {', '.join(ACCELERATORS)}"
        )
    title = torch.cuda.get_device_name().lower()
    found = next((h for name, h in ACCELERATORS.items() if name in title.replace(" ", "")), None)
    free, _ = torch.cuda.mem_get_info()
    taken = torch.cuda.memory_reserved() + CUDA_STARTED
    if found is None:
        found = replace(ACCELERATORS["a100"], name=title, efficiency=Estimate(0.3, 0.05, 1.5))
    return replace(found, memory=free + taken)


def _apple() -> Hardware:
    """An Apple GPU by its unified memory: an M3 Pro's rates, of which M1 to M4 Max are 0.4 to 2.5.

    Sources: Apple's M3 family announcement, 2023-10 (bandwidth); public fp32 figures [estimate].
    """
    rates = {dtype: 6.5 * T for dtype in ("fp32", "bf16", "fp16")}
    watts, price, reached = Estimate(35, 15, 80), Estimate(0, 0, 1), Estimate(0.4, 0.12, 1)
    return Hardware("mps", "mps", available_memory(), rates, 150 * GB, watts, price, reached)
