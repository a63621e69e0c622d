//! Tensors in memory of ours: parallel packing and unpacking of any byte range.
//!
//! Packing runs on a thread pool of this library with a bounded number of threads, because loaders
//! hand tensors over on a single thread. Small ranges stay on the calling thread.

pub mod held;

use std::sync::atomic::{AtomicPtr, Ordering};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::cpu::limits;
use crate::diag::env::env;
use crate::format::LANES;
use crate::panel::weights::Shape;

/// Below this many bytes a range is not worth waking other threads.
const PARALLEL_BYTES: usize = 1 << 20;
/// Addresses that a thread may take at most: its stack, and memory that it allocates from.
const THREAD_ADDRESSES: u64 = 136 << 20;
/// Packing is bound by memory bandwidth: more threads than this bring nothing.
const MAX_THREADS: usize = 32;

/// A pointer that may cross threads because every thread touches other bytes.
#[derive(Clone, Copy)]
struct Shared(*mut u8);

// SAFETY: see the users: ranges are disjoint.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(self) -> *mut u8 {
        self.0
    }
}

/// The threads that pack, and the process that they are threads of, by its number. Never freed.
struct Pool {
    process: u32,
    /// `None` if there is to be one thread only, or no other could be started.
    threads: Option<ThreadPool>,
}

impl Pool {
    fn new(process: u32) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // Few addresses are rather for the host.
        let affordable = limits::addresses().map_or(MAX_THREADS, |bytes| (bytes / 8 / THREAD_ADDRESSES) as usize);
        let wanted = env().threads.unwrap_or(cores.min(MAX_THREADS)).min(affordable);
        let builder = || ThreadPoolBuilder::new().thread_name(|i| format!("ggml-amx-pack-{i}"));
        // All of them or none: with little memory left, fewer may do.
        let tries = std::iter::successors(Some(wanted), |n| Some(n / 2)).take_while(|n| *n > 1);
        Self { process, threads: { tries }.find_map(|n| builder().num_threads(n).build().ok()) }
    }
}

/// The pool of this process. Threads do not survive a fork, so a child makes its own. No lock is taken: a child would
/// inherit it from a parent that was about to make the pool in another thread.
fn pool() -> Option<&'static ThreadPool> {
    static POOL: AtomicPtr<Pool> = AtomicPtr::new(std::ptr::null_mut());
    let process = crate::process::generation();
    let found = POOL.load(Ordering::Acquire);
    // SAFETY: null, or a pool that is never freed.
    if let Some(pool) = unsafe { found.as_ref() }.filter(|pool| pool.process == process) {
        return pool.threads.as_ref();
    }
    let made = Box::into_raw(Box::new(Pool::new(process)));
    let pool = match POOL.compare_exchange(found, made, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => made,
        Err(first) => {
            // SAFETY: made above, shown to nobody. Another thread of this process was faster.
            drop(unsafe { Box::from_raw(made) });
            first
        }
    };
    // SAFETY: as above.
    unsafe { &*pool }.threads.as_ref()
}

/// Cuts `offset..offset + len` where panels of 16 rows end, so that no two pieces share a packed
/// block, and calls `f(offset, start within the range, length)` for every piece.
fn for_each_piece(shape: &Shape, offset: usize, len: usize, f: impl Fn(usize, usize, usize) + Sync) {
    let piece = (LANES * shape.row_bytes).max(1);
    match pool() {
        Some(pool) if len >= PARALLEL_BYTES => {
            let (first, last) = (offset / piece, (offset + len - 1) / piece);
            pool.install(|| {
                (first..=last).into_par_iter().for_each(|i| {
                    let start = (i * piece).max(offset);
                    let end = ((i + 1) * piece).min(offset + len);
                    f(start, start - offset, end - start);
                });
            });
        }
        _ => f(offset, 0, len),
    }
}

/// Where plain bytes of a tensor in one of our buffers live.
pub enum Place {
    /// In the packed tensor, from this plain byte on.
    Packed(Shape, *mut u8, usize),
    /// Right here.
    Plain(*mut u8),
}

impl Place {
    /// Writes `size` bytes from `data`.
    ///
    /// # Safety
    /// The tensor must have them from here on, and be nobody else's meanwhile; `data` must be readable.
    pub unsafe fn write(&self, data: *const u8, size: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            match self {
                Place::Packed(shape, base, at) => write(shape, *base, *at, std::slice::from_raw_parts(data, size)),
                Place::Plain(at) => std::ptr::copy_nonoverlapping(data, *at, size),
            }
        }
    }

    /// Reads `size` bytes to `data`.
    ///
    /// # Safety
    /// As for [`Place::write`], with `data` writable.
    pub unsafe fn read(&self, data: *mut u8, size: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            match self {
                Place::Packed(shape, base, at) => read(shape, *base, *at, std::slice::from_raw_parts_mut(data, size)),
                Place::Plain(at) => std::ptr::copy_nonoverlapping(at.cast_const(), data, size),
            }
        }
    }

    /// Sets `size` bytes to `value`.
    ///
    /// # Safety
    /// As for [`Place::write`].
    pub unsafe fn fill(&self, size: usize, value: u8) {
        // SAFETY: promised by the caller.
        unsafe {
            match self {
                Place::Packed(shape, base, at) => fill(shape, *base, *at, size, value),
                Place::Plain(at) => std::ptr::write_bytes(*at, value, size),
            }
        }
    }
}

/// Packs `plain` at plain byte `offset` of the tensor at `base`.
///
/// # Safety
/// As for [`Shape::write`].
pub unsafe fn write(shape: &Shape, base: *mut u8, offset: usize, plain: &[u8]) {
    let base = Shared(base);
    for_each_piece(shape, offset, plain.len(), |offset, start, len| {
        // SAFETY: pieces are disjoint ranges of plain bytes, hence of packed bytes.
        unsafe { shape.write(base.get(), offset, &plain[start..start + len]) }
    });
}

/// Reads plain bytes back from `offset` on.
///
/// # Safety
/// As for [`Shape::read`].
pub unsafe fn read(shape: &Shape, base: *const u8, offset: usize, plain: &mut [u8]) {
    let (base, len, plain) = (Shared(base.cast_mut()), plain.len(), Shared(plain.as_mut_ptr()));
    for_each_piece(shape, offset, len, |offset, start, len| {
        // SAFETY: pieces are disjoint parts of `plain`.
        unsafe { shape.read(base.get(), offset, std::slice::from_raw_parts_mut(plain.get().add(start), len)) }
    });
}

/// Sets `len` plain bytes from `offset` on to `value`.
///
/// # Safety
/// As for [`Shape::fill`].
pub unsafe fn fill(shape: &Shape, base: *mut u8, offset: usize, len: usize, value: u8) {
    if offset == 0 && len == shape.plain_size() || cfg!(mutant = "fill-all") && len >= PARALLEL_BYTES {
        // A permutation of equal bytes. The padding rows get the value too, which nobody reads.
        // SAFETY: promised by the caller.
        unsafe { std::ptr::write_bytes(base, value, shape.packed_size()) };
        return;
    }
    let base = Shared(base);
    for_each_piece(shape, offset, len, |offset, _, len| {
        // SAFETY: pieces are disjoint.
        unsafe { shape.fill(base.get(), offset, len, value) }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::WeightType;

    #[test]
    fn a_large_range_is_packed_in_parallel_as_it_would_be_by_one_thread() {
        let shape = Shape::new(WeightType::Q6_K, 1024, 2001, 1).unwrap();
        let plain: Vec<u8> = (0..shape.plain_size()).map(|i| (i * 131 / 8) as u8).collect();
        let (mut a, mut b) = (vec![0; shape.packed_size()], vec![0; shape.packed_size()]);
        let mut back = vec![0; plain.len() - 5];
        // SAFETY: the buffers have the shape's sizes.
        unsafe {
            write(&shape, a.as_mut_ptr(), 0, &plain);
            shape.write(b.as_mut_ptr(), 0, &plain);
            read(&shape, a.as_ptr(), 5, &mut back);
        }
        assert!(a == b && back == plain[5..]);
    }

    #[test]
    fn filling_part_of_a_tensor_leaves_the_rest() {
        let shape = Shape::new(WeightType::Q4_0, 4096, 1024, 1).unwrap();
        let mut packed = vec![7; shape.packed_size()];
        let (from, len) = (1001, shape.plain_size() - 5003);
        let mut back = vec![0; shape.plain_size()];
        // SAFETY: the buffers have the shape's sizes.
        unsafe {
            fill(&shape, packed.as_mut_ptr(), from, len, 9);
            read(&shape, packed.as_ptr(), 0, &mut back);
        }
        let expected = |i: usize| if (from..from + len).contains(&i) { 9 } else { 7 };
        assert!(back.iter().enumerate().all(|(i, v)| *v == expected(i)));
    }
}
