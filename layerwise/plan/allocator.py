"""Two memory allocators, imitated: how much they hold when a step asks for what it asks for.

What a process holds is more than the sum of its tensors: freed blocks lie between live ones and
are too small for what comes next. The trace knows every request in order, so the holes can be
counted instead of guessed. `Heap` is glibc's malloc as `runtime.tune_allocator` sets it (one
heap that only grows); `CudaCache` is PyTorch's caching allocator on CUDA.

Sources: glibc 2.36 malloc/malloc.c (best fit over size-sorted bins, neighbours merged on free);
PyTorch 2.13 c10/cuda/CUDACachingAllocator.cpp (rounding and pools).
"""

import bisect

_ALIGN = 64  # bytes: PyTorch asks for cache lines, malloc adds a header
_SMALL = 1024  # glibc keeps smaller blocks in per-thread lists; they leave no holes that matter
MB = 2**20


class Heap:
    """glibc's main heap: the smallest hole that is large enough, else grow at the top."""

    def __init__(self) -> None:
        self.top = 0  # end of the last block in use
        self.high = 0  # furthest byte ever in use: what stays resident
        self.blocks: dict[int, int] = {}  # ident -> start
        self.sizes: dict[int, int] = {}  # start of a block in use -> size
        self.holes: list[tuple[int, int]] = []  # (size, start), sorted
        self.hole_at: dict[int, int] = {}  # start -> size
        self.hole_ending: dict[int, int] = {}  # end -> start

    def allocate(self, ident: int, nbytes: int) -> None:
        size = _round_up(nbytes + 16, _ALIGN)
        place = bisect.bisect_left(self.holes, (size, -1))
        if place < len(self.holes):
            hole, start = self.holes[place]
            self._remove_hole(start)
            if hole > size:
                self._add_hole(start + size, hole - size)
        else:
            start, self.top = self.top, self.top + size
            self.high = max(self.high, self.top)
        self.blocks[ident], self.sizes[start] = start, size

    def release(self, ident: int) -> None:
        start = self.blocks.pop(ident)
        size = self.sizes.pop(start)
        if start + size in self.hole_at:
            size += self._remove_hole(start + size)
        if start in self.hole_ending:
            before = self.hole_ending[start]
            size += self._remove_hole(before)
            start = before
        if start + size == self.top:
            self.top = start
        else:
            self._add_hole(start, size)

    def _add_hole(self, start: int, size: int) -> None:
        bisect.insort(self.holes, (size, start))
        self.hole_at[start], self.hole_ending[start + size] = size, start

    def _remove_hole(self, start: int) -> int:
        size = self.hole_at.pop(start)
        del self.hole_ending[start + size]
        del self.holes[bisect.bisect_left(self.holes, (size, start))]
        return size


def _round_up(nbytes: int, unit: int) -> int:
    return -(-nbytes // unit) * unit
