//! Ranges of memory by address: tensors that are packed, and the buffers that they lie in. Kernels ask it for any
//! address, from any number of threads, while models are loaded and unloaded; for memory of others they need no lock.

use std::collections::BTreeMap;
use std::ops::Range;

use super::sync::{AtomicUsize, Ordering, RwLock};

/// What is known of some ranges. So many buffers are told from other memory without a lock.
pub struct Table<T, const REGIONS: usize = 64> {
    /// First and last byte of buffers; a last byte of 0: none.
    regions: [[AtomicUsize; 2]; REGIONS],
    /// Buffers that found no place there.
    left_out: AtomicUsize,
    /// How many ranges there are, and their bytes.
    count: AtomicUsize,
    bytes: AtomicUsize,
    ranges: RwLock<Ranges<T>>,
}

/// Ranges by their first byte.
struct Ranges<T>(BTreeMap<usize, Entry<T>>);

impl<T> Default for Ranges<T> {
    /// In a process that was forked while another thread wrote them: it would take packed weights for plain ones.
    fn default() -> Self {
        eprintln!(
            "ggml-amx: this process was forked while another thread loaded or freed packed weights: they cannot be used"
        );
        std::process::abort();
    }
}

struct Entry<T> {
    bytes: usize,
    what: T,
}

impl<T: Copy, const REGIONS: usize> Table<T, REGIONS> {
    /// Nothing is known.
    pub fn new() -> Self {
        Self {
            regions: std::array::from_fn(|_| [AtomicUsize::new(0), AtomicUsize::new(0)]),
            left_out: AtomicUsize::new(0),
            count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            ranges: RwLock::new(Ranges(BTreeMap::new())),
        }
    }

    /// Notes the memory of a new buffer.
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

    /// Forgets a buffer and all ranges in it.
    pub fn remove_region(&self, range: Range<usize>) {
        self.remove(range.clone());
        let _ranges = self.ranges.write();
        let mut noted = self.regions.iter().filter(|r| r[1].load(Ordering::Relaxed) != 0);
        match noted.find(|r| r[0].load(Ordering::Relaxed) == range.start) {
            Some([_, last]) => last.store(0, Ordering::Release),
            None => _ = self.left_out.fetch_sub(1, Ordering::AcqRel),
        }
    }

    /// Whether `address` may lie in one of the buffers. Of a buffer that is there all the while, the answer is right
    /// whatever happens to others.
    fn may_be_inside(&self, address: usize) -> bool {
        let inside = |[first, last]: &[AtomicUsize; 2]| {
            let last = last.load(Ordering::Acquire);
            (first.load(Ordering::Relaxed)..=last).contains(&address)
        };
        self.regions.iter().any(inside) || self.left_out.load(Ordering::Acquire) > 0
    }

    /// Notes `bytes` bytes from `base` on, in place of all ranges that overlap them.
    pub fn add(&self, base: usize, bytes: usize, what: T) {
        let mut ranges = self.ranges.write();
        self.take_out(&mut ranges, base..base + bytes);
        ranges.0.insert(base, Entry { bytes, what });
        self.count.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Forgets the ranges that have bytes in this one.
    pub fn remove(&self, range: Range<usize>) {
        let mut ranges = self.ranges.write();
        self.take_out(&mut ranges, range);
    }

    fn take_out(&self, Ranges(ranges): &mut Ranges<T>, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        // Ranges do not overlap each other: only the last one that begins before the end may be too long.
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

    /// What is known of the range that begins at `base`.
    pub fn at(&self, base: usize) -> Option<T> {
        self.around(base).filter(|(begin, _)| *begin == base).map(|(_, what)| what)
    }

    /// The range that `address` lies in: where it begins, and what is known of it.
    pub fn around(&self, address: usize) -> Option<(usize, T)> {
        if !self.any() || !self.may_be_inside(address) {
            return None;
        }
        let ranges = self.ranges.read();
        let (base, entry) = ranges.0.range(..=address).next_back()?;
        (address - base < entry.bytes).then_some((*base, entry.what))
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
