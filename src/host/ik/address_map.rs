//! Ranges of memory, looked up by address: packed tensors, and the buffers that they lie in. Any thread may look up any
//! address at any time, while other threads load and unload models. An address outside of all buffers is told without a
//! lock.

use std::collections::BTreeMap;
use std::ops::Range;

use super::sync::{AtomicUsize, Ordering, RwLock};

/// Ranges of memory, with a `T` for each. Up to `REGIONS` buffers are told from other memory without a lock.
pub struct AddressMap<T, const REGIONS: usize = 64> {
    /// Addresses of the first and the last byte of each buffer; a last byte of 0 means that the entry is free.
    regions: [[AtomicUsize; 2]; REGIONS],
    /// How many buffers found no free entry there: while there are any, every look-up takes the lock.
    left_out: AtomicUsize,
    /// How many ranges there are.
    count: AtomicUsize,
    /// Bytes of all ranges together.
    bytes: AtomicUsize,
    ranges: RwLock<Ranges<T>>,
}

/// Ranges by the address of their first byte. They do not overlap.
struct Ranges<T>(BTreeMap<usize, Entry<T>>);

impl<T> Default for Ranges<T> {
    /// What a forked child gets if another thread was writing the ranges during the fork. Without them packed weights
    /// would be taken for plain ones, so the process ends.
    fn default() -> Self {
        eprintln!(
            "ggml-amx: this process was forked while another thread loaded or freed packed weights: they cannot be used"
        );
        std::process::abort();
    }
}

struct Entry<T> {
    bytes: usize,
    value: T,
}

impl<T: Copy, const REGIONS: usize> AddressMap<T, REGIONS> {
    /// Without buffers and ranges.
    pub fn new() -> Self {
        Self {
            regions: std::array::from_fn(|_| [AtomicUsize::new(0), AtomicUsize::new(0)]),
            left_out: AtomicUsize::new(0),
            count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            ranges: RwLock::new(Ranges(BTreeMap::new())),
        }
    }

    /// Adds the memory of a new buffer, in which ranges will lie.
    pub fn add_region(&self, range: Range<usize>) {
        let _ranges = self.ranges.write();
        match self.regions.iter().find(|r| r[1].load(Ordering::Relaxed) == 0) {
            Some([first, last]) => {
                first.store(range.start, Ordering::Relaxed);
                last.store(range.end - 1, Ordering::Release);
            }
            None => _ = self.left_out.fetch_add(1, Ordering::AcqRel),
        }
    }

    /// Removes a buffer and all ranges in it.
    pub fn remove_region(&self, range: Range<usize>) {
        self.remove(range.clone());
        let _ranges = self.ranges.write();
        let mut used = self.regions.iter().filter(|r| r[1].load(Ordering::Relaxed) != 0);
        match used.find(|r| r[0].load(Ordering::Relaxed) == range.start) {
            Some([_, last]) => last.store(0, Ordering::Release),
            None => _ = self.left_out.fetch_sub(1, Ordering::AcqRel),
        }
    }

    /// Whether `address` may lie in one of the buffers. For addresses in a buffer that stays, this is true whatever
    /// happens to other buffers at the same time.
    fn may_be_inside(&self, address: usize) -> bool {
        let inside = |[first, last]: &[AtomicUsize; 2]| {
            let last = last.load(Ordering::Acquire);
            (first.load(Ordering::Relaxed)..=last).contains(&address)
        };
        self.regions.iter().any(inside) || self.left_out.load(Ordering::Acquire) > 0
    }

    /// Adds the range of `bytes` bytes from `base` on, in place of all ranges that overlap it.
    pub fn add(&self, base: usize, bytes: usize, value: T) {
        let mut ranges = self.ranges.write();
        self.remove_from(&mut ranges, base..base + bytes);
        ranges.0.insert(base, Entry { bytes, value });
        self.count.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Removes all ranges that overlap this one.
    pub fn remove(&self, range: Range<usize>) {
        let mut ranges = self.ranges.write();
        self.remove_from(&mut ranges, range);
    }

    fn remove_from(&self, Ranges(ranges): &mut Ranges<T>, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        // Ranges do not overlap each other: if the last one that begins before the end does not reach in here, none
        // does.
        while let Some((&base, entry)) = ranges.range(..range.end).next_back() {
            let bytes = entry.bytes;
            if base + bytes <= range.start {
                break;
            }
            ranges.remove(&base);
            self.count.fetch_sub(1, Ordering::AcqRel);
            self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        }
    }

    /// The value of the range that begins at `base`, if there is one.
    pub fn at(&self, base: usize) -> Option<T> {
        self.around(base).filter(|(begin, _)| *begin == base).map(|(_, value)| value)
    }

    /// The address and the value of the range that `address` lies in.
    pub fn around(&self, address: usize) -> Option<(usize, T)> {
        if !self.any() || !self.may_be_inside(address) {
            return None;
        }
        let ranges = self.ranges.read();
        let (base, entry) = ranges.0.range(..=address).next_back()?;
        (address - base < entry.bytes).then_some((*base, entry.value))
    }

    /// Whether there is any range.
    pub fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// How many ranges there are, and their bytes.
    pub fn totals(&self) -> (usize, usize) {
        (self.count.load(Ordering::Acquire), self.bytes.load(Ordering::Acquire))
    }
}
