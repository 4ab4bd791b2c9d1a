"""fp32 linear layers, forward and backward: this package's choice of library beside PyTorch's.

    python bench/linear.py [--quick]

Contenders, each in a child process of its own, in turn, round after round: PyTorch as it comes; our
choice of matrix product alone; our allocator setting alone; both, as `runtime.start()` sets them.
The limit is what fused multiply-adds in registers reach on the same threads, measured by a loop in
C in the same round (left out without a C compiler or AVX512). Errors are against float64, as the
norm of the difference over the norm of the exact result, the largest of outputs and both gradients.
"""

import ctypes
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import sidebyside

SHAPES = {  # name: (M rows, K inputs, N outputs)
    "512 x 1024 x 4096": (512, 1024, 4096),
    "2048 x 768 x 768": (2048, 768, 768),
    "2048 x 768 x 3072": (2048, 768, 3072),
    "2048 x 3072 x 768": (2048, 3072, 768),
    "128 x 4096 x 4096": (128, 4096, 4096),
    "8192 x 256 x 1024": (8192, 256, 1024),
}
DEFAULTS = {"LAYERWISE_FP32_MATMUL": "default", "LAYERWISE_ALLOCATOR": "default"}
CONTENDERS = {  # name: which of our two settings stay as PyTorch and glibc have them
    "PyTorch": tuple(DEFAULTS),
    "product only": ("LAYERWISE_ALLOCATOR",),
    "allocator only": ("LAYERWISE_FP32_MATMUL",),
    "ours": (),
}
FMA_LOOP = """
#include <immintrin.h>
float loop(long n) {
  __m512 a[12], x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
  for (int i = 0; i < 12; i++) a[i] = _mm512_set1_ps(i);
  for (long k = 0; k < n; k++)
    for (int i = 0; i < 12; i++) a[i] = _mm512_fmadd_ps(a[i], x, y);
  float s = 0;
  for (int i = 0; i < 12; i++) s += _mm512_reduce_add_ps(a[i]);
  return s;
}
"""


def step(M: int, K: int, N: int):
    """A forward and backward pass of one layer as training has it, and its tensors."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    x = torch.randn(M, K, requires_grad=True)
    weight = torch.randn(N, K, requires_grad=True)
    bias = torch.randn(N, requires_grad=True)
    upstream = torch.randn(M, N)

    def run():
        y = F.linear(x, weight, bias)
        return y.detach(), *torch.autograd.grad(y, (x, weight), upstream)

    return run, (x.detach(), weight.detach(), bias.detach(), upstream)


def error(run, tensors) -> float:
    """The largest relative error against float64 of outputs and gradients."""
    x, weight, bias, upstream = (t.double() for t in tensors)
    exact = (x @ weight.T + bias, upstream @ weight, upstream.T @ x)
    return max(float((o.double() - e).norm() / e.norm()) for o, e in zip(run(), exact, strict=True))


def child(name: str, quick: bool) -> dict:
    """Per shape: GFLOP/s of forward and backward; then errors, peak memory, the register peak."""
    os.environ.update({key: DEFAULTS[key] for key in CONTENDERS[name]})
    from layerwise import runtime

    notes = runtime.start(device="cpu", dtype="fp32", threads=2).notes
    out: dict = {"notes": notes}
    for label, (M, K, N) in SHAPES.items():
        run, _ = step(M, K, N)
        seconds = 0.4 if quick else 1.5
        out[label] = sidebyside.rate(run, 6 * M * K * N, seconds, warmup=3) / 1e9
    out["peak_mb"] = sidebyside.peak_mb()
    out["error"] = max(error(*step(*shape)) for shape in SHAPES.values())
    out["limit"] = register_peak(2)
    return out


def register_peak(threads: int, n: int = 20_000_000) -> float:
    """GFLOP/s of fp32 fused multiply-adds that never leave the registers; 0 without a compiler, and
    without AVX512, which the loop is written for."""
    import torch

    compiler = shutil.which("cc")
    if not compiler or not torch.cpu._is_avx512_supported():
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        source, library = (pathlib.Path(folder, f) for f in ("loop.c", "loop.so"))
        source.write_text(FMA_LOOP)
        flags = ["-O2", "-funroll-loops", "-mavx512f", "-shared", "-fPIC"]
        built = subprocess.run([compiler, *flags, source, "-o", library], capture_output=True)
        if built.returncode:
            return 0.0
        loop = ctypes.CDLL(str(library)).loop  # ctypes lets other threads run meanwhile
        loop.argtypes, loop.restype = [ctypes.c_long], ctypes.c_float
        return max(timed(loop, threads, n) for _ in range(3))


def timed(loop, threads: int, n: int) -> float:
    workers = [threading.Thread(target=loop, args=(n,)) for _ in range(threads)]
    started = time.perf_counter()
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    return threads * n * 12 * 16 * 2 / (time.perf_counter() - started) / 1e9


def main() -> None:
    quick = "--quick" in sys.argv
    if "--child" in sys.argv:
        name = sys.argv[sys.argv.index("--child") + 1]
        print(json.dumps(child(name, quick)))
        return
    arguments = ["--quick"] if quick else []
    runs = sidebyside.rounds(__file__, list(CONTENDERS), arguments, n=2 if quick else 5)
    limit = statistics.median(r["limit"] for rs in runs.values() for r in rs)
    print("fp32 linear, forward + backward, GFLOP/s (median of rounds):", runs["ours"][0]["notes"])
    rows = [table_row(label, runs, limit) for label in SHAPES]
    sidebyside.markdown(("M x K x N", *runs, "ours / PyTorch", "ours / limit"), rows)
    print(
        f"register peak, 2 threads: {limit:.0f} GFLOP/s"
        if limit
        else "no C compiler or no AVX512: no limit"
    )
    for name, figures in runs.items():
        print(
            f"{name}: largest error {max(r['error'] for r in figures):.1e}, "
            f"peak memory {sidebyside.median(figures, 'peak_mb'):.0f} MB"
        )


def table_row(label: str, runs: dict, limit: float) -> list[str]:
    figures = {name: sidebyside.median(rs, label) for name, rs in runs.items()}
    share = f"{figures['ours'] / limit:.0%}" if limit else "-"
    ratio = sidebyside.ratio(runs["ours"], runs["PyTorch"], label)
    return [label, *(f"{f:.0f}" for f in figures.values()), f"{ratio:.2f}x", share]


if __name__ == "__main__":
    main()
