//! Tensors in memory of this library: packing and unpacking of any byte range, on several threads.
//!
//! Loaders hand tensors over on a single thread, so packing has a thread pool of its own, with a bounded number of
//! threads. Small ranges stay on the calling thread.
//!
//! Safety rests on one thing: a **range of the tensor** is plain bytes that lie inside it; the tensor's memory is valid
//! for [`Shape::packed_size`] bytes, and no other thread uses the same plain bytes meanwhile.

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
/// The most address space, in bytes, that a thread takes: its stack, and an arena of the allocator.
const THREAD_ADDRESSES: u64 = 136 << 20;
/// Packing is bound by memory bandwidth: more threads than this bring nothing.
const MAX_THREADS: usize = 32;

/// A pointer that threads share, each for other bytes.
#[derive(Clone, Copy)]
struct Disjoint(*mut u8);

// SAFETY: threads use disjoint ranges behind it.
unsafe impl Send for Disjoint {}
// SAFETY: threads use disjoint ranges behind it.
unsafe impl Sync for Disjoint {}

impl Disjoint {
    fn get(self) -> *mut u8 {
        self.0
    }
}

/// The threads that pack. Never freed.
struct Pool {
    /// The number of the process that has these threads.
    process: u32,
    /// `None` if only one thread is wanted, or no other could be started.
    threads: Option<ThreadPool>,
}

impl Pool {
    fn new(process: u32) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // Where address space is limited, the pool takes at most an eighth of it.
        let affordable = limits::addresses().map_or(MAX_THREADS, |bytes| (bytes / 8 / THREAD_ADDRESSES) as usize);
        let wanted = env().threads.unwrap_or(cores.min(MAX_THREADS)).min(affordable);
        let builder = || ThreadPoolBuilder::new().thread_name(|i| format!("ggml-amx-pack-{i}"));
        // A pool starts all its threads or none; with little memory left, a smaller one may start.
        let tries = std::iter::successors(Some(wanted), |n| Some(n / 2)).take_while(|n| *n > 1);
        Self { process, threads: { tries }.find_map(|n| builder().num_threads(n).build().ok()) }
    }
}

/// The pool of this process. Threads do not survive a fork, so a child makes its own. No lock is taken: if another
/// thread of the parent held it, it would stay locked in the child.
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
            // SAFETY: made above, and not published: another thread was faster.
            drop(unsafe { Box::from_raw(made) });
            first
        }
    };
    // SAFETY: a pool that is never freed.
    unsafe { &*pool }.threads.as_ref()
}

/// Cuts the range `offset..offset + len` where panels of 16 rows end, so that no two parts share a packed block, and
/// calls `f(offset, start within the range, length)` for every part.
fn for_each_panel(shape: &Shape, offset: usize, len: usize, f: impl Fn(usize, usize, usize) + Sync) {
    let panel = (LANES * shape.row_bytes).max(1);
    match pool() {
        Some(pool) if len >= PARALLEL_BYTES => {
            let (first, last) = (offset / panel, (offset + len - 1) / panel);
            pool.install(|| {
                (first..=last).into_par_iter().for_each(|i| {
                    let start = (i * panel).max(offset);
                    let end = ((i + 1) * panel).min(offset + len);
                    f(start, start - offset, end - start);
                });
            });
        }
        _ => f(offset, 0, len),
    }
}

/// The bytes of a tensor in one of our buffers, from some plain byte on.
pub enum TensorBytes {
    /// The tensor is packed: its shape, its base, and the plain byte.
    Packed(Shape, *mut u8, usize),
    /// The tensor is stored plain: the address of the byte.
    Plain(*mut u8),
}

impl TensorBytes {
    /// Writes `size` bytes from `data`.
    ///
    /// # Safety
    /// The `size` bytes must be a range of the tensor, as in the module's text; `data` must have as many.
    pub unsafe fn write(&self, data: *const u8, size: usize) {
        // SAFETY: a range of the tensor, and as many bytes on the other side.
        unsafe {
            match self {
                TensorBytes::Packed(shape, base, at) => {
                    write(shape, *base, *at, std::slice::from_raw_parts(data, size))
                }
                TensorBytes::Plain(at) => std::ptr::copy_nonoverlapping(data, *at, size),
            }
        }
    }

    /// Reads `size` bytes to `data`.
    ///
    /// # Safety
    /// The `size` bytes must be a range of the tensor; `data` must have room for as many.
    pub unsafe fn read(&self, data: *mut u8, size: usize) {
        // SAFETY: a range of the tensor, and as many bytes on the other side.
        unsafe {
            match self {
                TensorBytes::Packed(shape, base, at) => {
                    read(shape, *base, *at, std::slice::from_raw_parts_mut(data, size))
                }
                TensorBytes::Plain(at) => std::ptr::copy_nonoverlapping(at.cast_const(), data, size),
            }
        }
    }

    /// Sets `size` bytes to `value`.
    ///
    /// # Safety
    /// The `size` bytes must be a range of the tensor.
    pub unsafe fn fill(&self, size: usize, value: u8) {
        // SAFETY: a range of the tensor, and as many bytes on the other side.
        unsafe {
            match self {
                TensorBytes::Packed(shape, base, at) => fill(shape, *base, *at, size, value),
                TensorBytes::Plain(at) => std::ptr::write_bytes(*at, value, size),
            }
        }
    }
}

/// Packs `plain` at plain byte `offset` of the tensor at `base`.
///
/// # Safety
/// As many bytes as `plain` has must be a range of the tensor.
pub unsafe fn write(shape: &Shape, base: *mut u8, offset: usize, plain: &[u8]) {
    let base = Disjoint(base);
    for_each_panel(shape, offset, plain.len(), |offset, start, len| {
        // SAFETY: a range of the tensor; no two threads have the same plain bytes, nor then the same packed bytes.
        unsafe { shape.write(base.get(), offset, &plain[start..start + len]) }
    });
}

/// Reads plain bytes back from `offset` on.
///
/// # Safety
/// As many bytes as `plain` has must be a range of the tensor.
pub unsafe fn read(shape: &Shape, base: *const u8, offset: usize, plain: &mut [u8]) {
    let (base, len, plain) = (Disjoint(base.cast_mut()), plain.len(), Disjoint(plain.as_mut_ptr()));
    for_each_panel(shape, offset, len, |offset, start, len| {
        // SAFETY: a range of the tensor; no two threads have the same part of `plain`.
        unsafe { shape.read(base.get(), offset, std::slice::from_raw_parts_mut(plain.get().add(start), len)) }
    });
}

/// Sets `len` plain bytes from `offset` on to `value`.
///
/// # Safety
/// The `len` bytes must be a range of the tensor.
pub unsafe fn fill(shape: &Shape, base: *mut u8, offset: usize, len: usize, value: u8) {
    if offset == 0 && len == shape.plain_size() || cfg!(mutant = "fill-all") && len >= PARALLEL_BYTES {
        // Equal bytes need no permutation. The rows that pad the last panel get the value too; nobody reads them.
        // SAFETY: all of the tensor, which is valid for so many bytes.
        unsafe { std::ptr::write_bytes(base, value, shape.packed_size()) };
        return;
    }
    let base = Disjoint(base);
    for_each_panel(shape, offset, len, |offset, _, len| {
        // SAFETY: a range of the tensor; no two threads have the same plain bytes.
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
        // SAFETY: ranges of tensors that have the shape's sizes.
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
        // SAFETY: ranges of tensors that have the shape's sizes.
        unsafe {
            fill(&shape, packed.as_mut_ptr(), from, len, 9);
            read(&shape, packed.as_ptr(), 0, &mut back);
        }
        let expected = |i: usize| if (from..from + len).contains(&i) { 9 } else { 7 };
        assert!(back.iter().enumerate().all(|(i, v)| *v == expected(i)));
    }
}
