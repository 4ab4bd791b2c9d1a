"""Two memory allocators, imitated: how much they hold when a step asks for what it asks for.

What a process holds is more than the sum of its tensors: freed blocks lie between live ones and
are too small for what comes next. The trace knows every request in order, so the holes can be
counted instead of guessed. `Heap` is glibc's malloc as `runtime.tune_allocator` sets it (one
heap that only grows); `CudaCache` is PyTorch's caching allocator on CUDA.

Sources: glibc 2.36 malloc/malloc.c (best fit over size-sorted bins, neighbours merged on free;
`_int_memalign` asks for 96 bytes more than it needs and gives the ends back); PyTorch 2.13
c10/cuda/CUDACachingAllocator.cpp (rounding and pools).
"""

import bisect
import heapq
import random

MB = 2**20
_LINE = 64  # PyTorch's alignment on the CPU
_HEADER, _LEAST = 8, 32  # glibc: bytes before a block, the smallest block


class Holes:
    """Free stretches of one address space: best fit, neighbours merged."""

    def __init__(self) -> None:
        self.by_size: list[tuple[int, int]] = []  # (size, start), sorted
        self.starting: dict[int, int] = {}  # start -> size
        self.ending: dict[int, int] = {}  # end -> start

    def add(self, start: int, size: int) -> None:
        bisect.insort(self.by_size, (size, start))
        self.starting[start], self.ending[start + size] = size, start

    def remove(self, start: int) -> int:
        size = self.starting.pop(start)
        del self.ending[start + size]
        del self.by_size[bisect.bisect_left(self.by_size, (size, start))]
        return size

    def best(self, size: int) -> tuple[int, int] | None:
        """Take the smallest hole of at least `size`: (start, its size), or None."""
        place = bisect.bisect_left(self.by_size, (size, -1))
        if place == len(self.by_size):
            return None
        start = self.by_size[place][1]
        return start, self.remove(start)

    def merge(self, start: int, size: int) -> tuple[int, int]:
        """Grow a freed stretch by the holes that touch it."""
        if start + size in self.starting:
            size += self.remove(start + size)
        if start in self.ending:
            before = self.ending[start]
            size += self.remove(before)
            start = before
        return start, size


class Heap:
    """glibc's main heap under aligned requests.

    Before 2.38 glibc hands the cut-off ends of an aligned block (16 to 112 bytes) to small
    allocations, and while one of those lives the large block cannot merge with its neighbours, so
    the next request of the very same size does not fit into its place. `pinned` is the share of
    ends that are taken so, `life` for how many requests on average; both random, from `seed`.
    """

    def __init__(self, pinned: float = 0.0, life: float = 100.0, seed: int = 0):
        self.top = 0  # end of the last block in use
        self.high = 0  # furthest byte ever in use: what stays resident
        self.holes = Holes()
        self.blocks: dict[int, tuple[int, int]] = {}  # ident -> (start, size)
        self._pinned, self._life = pinned, life
        self._random = random.Random(seed)
        self._pins: list[tuple[float, int, int]] = []  # (when it goes, start, size)
        self._clock = 0

    def allocate(self, ident: int, nbytes: int) -> None:
        self._clock += 1
        while self._pins and self._pins[0][0] <= self._clock:
            self._give(*heapq.heappop(self._pins)[1:])
        need = _round_up(nbytes + _HEADER, 16)
        start, size = self._take(need + _LINE + _LEAST)
        lead = -(start + 16) % _LINE
        lead += _LINE if 0 < lead < _LEAST else 0
        self._cut_off(start, lead)
        start, size = start + lead, size - lead
        if size - need >= _LEAST:
            self._cut_off(start + need, size - need)
            size = need
        self.blocks[ident] = start, size

    def release(self, ident: int) -> None:
        self._give(*self.blocks.pop(ident))

    def _take(self, size: int) -> tuple[int, int]:
        found = self.holes.best(size)
        if found is None:
            start, self.top = self.top, self.top + size
            self.high = max(self.high, self.top)
            return start, size
        start, hole = found
        if hole - size < _LEAST:
            return start, hole
        self.holes.add(start + size, hole - size)
        return start, size

    def _cut_off(self, start: int, size: int) -> None:
        if size and size < 128 and self._random.random() < self._pinned:
            until = self._clock + self._random.expovariate(1 / self._life)
            heapq.heappush(self._pins, (until, start, size))
        elif size:
            self._give(start, size)

    def _give(self, start: int, size: int) -> None:
        start, size = self.holes.merge(start, size)
        if start + size == self.top:
            self.top = start
        else:
            self.holes.add(start, size)


class CudaCache:
    """PyTorch's CUDA caching allocator: segments of two pools, split and merged, never returned."""

    def __init__(self) -> None:
        self.high = 0  # reserved bytes
        self.pools = {"small": Holes(), "large": Holes()}
        self.blocks: dict[int, tuple[str, int, int]] = {}
        self._next = 0  # address of the next segment

    def allocate(self, ident: int, nbytes: int) -> None:
        size = _round_up(max(nbytes, 1), 512)
        pool = "small" if size <= MB else "large"
        start, hole = self.pools[pool].best(size) or self._segment(pool, size)
        if hole - size >= (512 if pool == "small" else MB + 1):
            self.pools[pool].add(start + size, hole - size)
            hole = size
        self.blocks[ident] = pool, start, hole

    def release(self, ident: int) -> None:
        pool, start, size = self.blocks.pop(ident)
        self.pools[pool].add(*self.pools[pool].merge(start, size))

    def _segment(self, pool: str, size: int) -> tuple[int, int]:
        large = 20 * MB if size < 10 * MB else _round_up(size, 2 * MB)
        segment = 2 * MB if pool == "small" else large
        start, self._next = self._next, self._next + segment + 1  # segments never touch
        self.high += segment
        return start, segment


def _round_up(nbytes: int, unit: int) -> int:
    return -(-nbytes // unit) * unit
