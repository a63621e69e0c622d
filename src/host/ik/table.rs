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
    ranges: RwLock<BTreeMap<usize, Entry<T>>>,
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
            ranges: RwLock::new(BTreeMap::new()),
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
        ranges.insert(base, Entry { bytes, what });
        self.count.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Forgets the ranges that have bytes in this one.
    pub fn remove(&self, range: Range<usize>) {
        let mut ranges = self.ranges.write();
        self.take_out(&mut ranges, range);
    }

    fn take_out(&self, ranges: &mut BTreeMap<usize, Entry<T>>, range: Range<usize>) {
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
        let (base, entry) = ranges.range(..=address).next_back()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_any_address_in_them_and_nowhere_else() {
        // The second one with more buffers than places for them.
        for buffers in [3, 100] {
            let table = Table::<usize>::new();
            for i in 0..buffers {
                let base = i * 1000 + 1000;
                table.add_region(base..base + 500);
                table.add(base + 10, 20, i);
                table.add(base + 30, 5, i + 1000);
            }
            assert_eq!(table.totals(), (2 * buffers, 25 * buffers));
            for i in 0..buffers {
                let base = i * 1000 + 1000;
                assert_eq!(table.at(base + 10), Some(i));
                assert_eq!(table.at(base + 11), None);
                assert_eq!(table.around(base + 29), Some((base + 10, i)));
                assert_eq!(table.around(base + 34), Some((base + 30, i + 1000)));
                for none in [base, base + 9, base + 35, base + 600] {
                    assert_eq!(table.around(none), None, "{none}");
                }
            }
            for i in 0..buffers {
                table.remove_region(i * 1000 + 1000..i * 1000 + 1500);
            }
            assert_eq!(table.totals(), (0, 0));
            assert!(table.around(1010).is_none() && table.left_out.load(Ordering::Relaxed) == 0);
        }
    }

    #[test]
    fn a_range_takes_the_place_of_those_it_overlaps() {
        let table = Table::<u32>::new();
        table.add_region(0..1000);
        (0..4).for_each(|i| table.add(i as usize * 100 + 100, 100, i));
        table.add(250, 100, 9);
        let found = [150, 220, 260, 340, 360, 450].map(|address| table.around(address));
        assert_eq!(found, [Some((100, 0)), None, Some((250, 9)), Some((250, 9)), None, Some((400, 3))]);
        table.remove(260..260);
        assert_eq!(table.totals(), (3, 300));
        table.remove(0..251);
        assert_eq!(table.totals(), (1, 100));
    }
}
