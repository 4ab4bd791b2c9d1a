"""The imitated allocators on sequences whose outcome is known."""

from layerwise.planning.allocator import MB, CudaCache, Heap


def test_heap_reuses_what_was_freed():
    heap = Heap()
    for ident in range(100):
        heap.allocate(ident, 10 * MB)
        heap.release(ident)
    assert heap.high < 11 * MB


def test_heap_takes_the_smallest_hole_that_is_large_enough():
    heap = Heap()
    for ident, size in enumerate([4, 1, 8, 1]):  # the blocks of 1 MB keep the holes apart
        heap.allocate(ident, size * MB)
    heap.release(0)
    heap.release(2)
    high = heap.high
    heap.allocate(4, 3 * MB)  # into the hole of 4, not of 8
    heap.allocate(5, 7 * MB)
    assert heap.high == high


def test_heap_merges_neighbours():
    heap = Heap()
    for ident in range(4):
        heap.allocate(ident, 4 * MB)
    heap.release(0)
    heap.release(2)
    heap.release(1)
    high = heap.high
    heap.allocate(9, 11 * MB)
    assert heap.high == high


def test_pinned_ends_keep_a_block_from_its_own_place():
    """glibc before 2.38: the same size does not fit where it was while its ends are taken."""

    def extent(pinned: float) -> int:
        heap = Heap(pinned, life=50, seed=1)
        for ident in range(200):
            heap.allocate(ident, 10 * MB)
            if ident >= 3:
                heap.release(ident - 3)
        return heap.high

    assert extent(0.0) < 45 * MB
    assert extent(1.0) > extent(0.0)


def test_cuda_cache_rounds_to_segments():
    cache = CudaCache()
    cache.allocate(0, 1000)
    assert cache.high == 2 * MB  # small blocks share segments of 2 MB
    cache.allocate(1, 3 * MB)
    assert cache.high == 22 * MB  # from 1 to 10 MB: a segment of 20
    cache.allocate(2, 15 * MB)
    assert cache.high == 22 * MB  # the rest of that segment
    cache.allocate(3, 33 * MB)
    assert cache.high == 22 * MB + 34 * MB
    cache.release(3)
    cache.allocate(4, 30 * MB)
    assert cache.high == 56 * MB
