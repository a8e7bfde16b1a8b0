//! An allocator for programs that train: large blocks, which are mostly tensors, are in one heap that all threads share; all others are in the system's.
//!
//! Every training step allocates the same few hundred large blocks, on different threads. A heap that takes the lowest free range that is
//! large enough, and merges freed neighbours, keeps resident memory within a twentieth of the memory in use. Nothing returns to the system
//! between steps, so no step pays for fresh pages.
//!
//! The bytes of large blocks are counted, in both heaps; those of small blocks are not.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fmt,
    ptr::{NonNull, null_mut},
    sync::{Mutex, MutexGuard, PoisonError},
};

use interlock::tools::planner::MemoryMeter;
use linked_list_allocator::Heap;
use memmap2::{MmapOptions, MmapRaw};

/// Blocks of this many bytes or more are allocated in the shared heap, unless it is full.
const LARGE: usize = 64 << 10;

/// Sizes of the address range to reserve, in bytes, tried in order: unused addresses cost nothing, but the system may limit them.
#[cfg(unix)]
const ADDRESSES: [usize; 4] = [1 << 40, 64 << 30, 4 << 30, 256 << 20];
/// Empty on Windows, which counts addresses as used memory as soon as they are mapped: there all blocks come from the system.
#[cfg(not(unix))]
const ADDRESSES: [usize; 0] = [];

/// An allocator that keeps large tensors in one heap for all threads, and counts their bytes.
///
/// Every training step allocates the same few hundred large blocks, on different threads. In this heap they take the same places again, so that resident
/// memory stays within a twentieth of the memory in use, and no step pays for fresh pages. Blocks of less than 64 KiB come from the system, on
/// Windows all do. The measured memory of the documentation is with this allocator; the `interlock` command uses it. In a program:
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: interlock_backends::Allocator = interlock_backends::Allocator::new();
/// # let large = vec![1_u8; 1 << 20];
/// # assert!(interlock::tools::planner::MemoryMeter::in_use(&ALLOCATOR) >= large.len() as u64);
/// ```
pub struct Allocator(Mutex<Shared>);

struct Shared {
    heap: Heap,
    /// Whether reserving addresses has been tried.
    tried: bool,
    /// Bytes of all large blocks in use.
    in_use: usize,
    /// The largest value of `in_use` since the peak was last taken.
    peak: usize,
}

impl Allocator {
    /// Returns an allocator that has not reserved any addresses yet.
    #[allow(clippy::new_without_default)] // a default is no constant, which a static needs
    pub const fn new() -> Self {
        Self(Mutex::new(Shared { heap: Heap::empty(), tried: false, in_use: 0, peak: 0 }))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Allocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Allocator").finish_non_exhaustive()
    }
}

impl Shared {
    /// Allocates in the shared heap. Returns none if it is full or does not exist. The block is counted in every case.
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        if !self.tried {
            self.tried = true;
            self.reserve();
        }
        self.in_use += layout.size();
        self.peak = self.peak.max(self.in_use);
        self.heap.allocate_first_fit(layout).ok()
    }

    fn reserve(&mut self) {
        let map = |&len| MmapOptions::new().len(len).no_reserve_swap().map_anon().ok();
        let Some(map) = ADDRESSES.iter().find_map(map).map(MmapRaw::from) else { return };
        // Only a hint: the system may have no large pages.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        // SAFETY: nobody else uses these addresses, and they stay mapped, since `map` is forgotten.
        unsafe { self.heap.init(map.as_mut_ptr(), map.len()) };
        std::mem::forget(map);
    }

    fn holds(&self, block: *mut u8) -> bool {
        (self.heap.bottom()..self.heap.top()).contains(&block)
    }
}

// SAFETY: blocks come from two allocators that keep the contract, and go back to the one that they came from: large blocks by address, all
// others to the system's. Nothing here allocates while the lock is held: the heap keeps its list in its holes.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let pointer = if layout.size() < LARGE { None } else { self.shared().allocate(layout) };
        // SAFETY: as demanded of the caller.
        pointer.map_or_else(|| unsafe { System.alloc(layout) }, NonNull::as_ptr)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let pointer = if layout.size() < LARGE { None } else { self.shared().allocate(layout) };
        // SAFETY: as demanded of the caller; a block in the shared heap has the size asked for.
        unsafe {
            match pointer {
                Some(pointer) => {
                    pointer.write_bytes(0, layout.size());
                    pointer.as_ptr()
                }
                None => System.alloc_zeroed(layout),
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if layout.size() >= LARGE
            && let Some(pointer) = NonNull::new(block)
        {
            let mut shared = self.shared();
            shared.in_use -= layout.size();
            if shared.holds(block) {
                // SAFETY: the block came from this heap, by `alloc`, with this layout.
                return unsafe { shared.heap.deallocate(pointer, layout) };
            }
        }
        // SAFETY: the block came from the system's allocator.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        // SAFETY: as demanded of the caller; small blocks are the system's, before and after.
        unsafe {
            if layout.size() < LARGE && new < LARGE {
                return System.realloc(block, layout, new);
            }
            let Ok(other) = Layout::from_size_align(new, layout.align()) else { return null_mut() };
            let moved = self.alloc(other);
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(block, layout.size().min(new));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

impl MemoryMeter for Allocator {
    fn in_use(&self) -> u64 {
        self.shared().in_use as u64
    }

    fn take_peak(&self) -> u64 {
        let mut shared = self.shared();
        let in_use = shared.in_use;
        std::mem::replace(&mut shared.peak, in_use) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_blocks_count_until_they_are_freed() {
        let allocator = Allocator::new();
        let layout = |len| Layout::from_size_align(len, 8).unwrap();
        let seen = || (allocator.in_use() as usize / LARGE, allocator.take_peak() as usize / LARGE);
        // SAFETY: every block is freed once, with its layout.
        unsafe {
            let small = allocator.alloc(layout(LARGE - 1));
            let first = allocator.alloc(layout(LARGE));
            let second = allocator.alloc_zeroed(layout(2 * LARGE));
            assert_eq!(seen(), (3, 3));
            // Both blocks exist while the contents are copied.
            let first = allocator.realloc(first, layout(LARGE), 4 * LARGE);
            assert_eq!(seen(), (6, 7));
            allocator.dealloc(second, layout(2 * LARGE));
            assert_eq!(seen(), (4, 6));
            let first = allocator.realloc(first, layout(4 * LARGE), LARGE - 1);
            assert_eq!(seen(), (0, 4));
            allocator.dealloc(first, layout(LARGE - 1));
            allocator.dealloc(small, layout(LARGE - 1));
        }
        assert_eq!(seen(), (0, 0));
    }

    #[cfg(unix)]
    #[test]
    fn freed_large_blocks_merge_and_are_used_again() {
        let allocator = Allocator::new();
        let layout = |len| Layout::from_size_align(len, 64).unwrap();
        // SAFETY: every block is freed once, with its layout.
        unsafe {
            let blocks = [1, 2, 3].map(|i| (allocator.alloc_zeroed(layout(i * LARGE)), i * LARGE));
            for (i, &(block, len)) in blocks.iter().enumerate() {
                assert!(allocator.shared().holds(block) && (block as usize).is_multiple_of(64));
                assert!(std::slice::from_raw_parts(block, len).iter().all(|&byte| byte == 0));
                block.write_bytes(i as u8 + 1, len);
            }
            for &(block, len) in &blocks {
                allocator.dealloc(block, layout(len));
            }
            // The three were neighbours, at the lowest addresses: one block fits there, and is cleared if that is asked for.
            let all = allocator.alloc_zeroed(layout(6 * LARGE));
            assert_eq!(all, blocks[0].0);
            assert!(std::slice::from_raw_parts(all, 6 * LARGE).iter().all(|&byte| byte == 0));
            allocator.dealloc(all, layout(6 * LARGE));
        }
    }

    #[cfg(unix)]
    #[test]
    fn blocks_keep_their_contents_when_they_move_between_heaps() {
        let allocator = Allocator::new();
        let layout = |len| Layout::from_size_align(len, 8).unwrap();
        // SAFETY: the block is moved and freed with the layout it has.
        unsafe {
            let mut block = allocator.alloc(layout(100));
            assert!(!allocator.shared().holds(block));
            block.write_bytes(7, 100);
            for (from, to) in [(100, 2 * LARGE), (2 * LARGE, 4 * LARGE), (4 * LARGE, 50)] {
                block = allocator.realloc(block, layout(from), to);
                assert_eq!(allocator.shared().holds(block), to >= LARGE);
                assert!(std::slice::from_raw_parts(block, 50).iter().all(|&byte| byte == 7));
            }
            allocator.dealloc(block, layout(50));
        }
    }
}
