//! What requantising costs, per matrix ([`WeightError`]): measured once, by all threads of the first product that needs
//! it, and remembered.
//!
//! A tensor is known by its address, its shape and a sample of its bytes, because memory is used again for other
//! weights, and nobody tells when weights lie in the host's memory. What is written or freed in buffers of this library
//! is forgotten at once.

use crate::process::{Once, RwLock};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::work::{ALIGN, Scratch};
use super::{Gate, Stored, Thread, Weights, split};
use crate::dispatch::Storage;
use crate::format::LANES;
use crate::kernel::TILE_NR;
use crate::panel::precision::Precision;
use crate::panel::weight_error::WeightError;
use crate::panel::weight_sums::{MEASURED_COLS, UNIT_COLS, WeightSums};

/// Most channels that are remembered, of all matrices of all tensors, at about 6 bytes each. Beyond that, the tensor
/// that was used longest ago is forgotten.
const MAX_CHANNELS: usize = 1 << 29;
/// Most sums that are kept at a time while matrices are measured.
const MAX_SUMS: usize = 1 << 19;
/// Words of a tensor that are looked at, to know it again.
const SAMPLES: usize = 16;

/// What a tensor is known by, besides a sample of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    data: (usize, usize),
    ne: [usize; 4],
    nb: [usize; 3],
    name: &'static str,
    interleave: usize,
}

/// The matrices of a tensor.
pub struct Tensor {
    sample: u64,
    matrices: Box<[Once<WeightError>]>,
    /// Channels of them all.
    channels: usize,
    used: AtomicU64,
}

static ALL: RwLock<Option<HashMap<Key, Arc<Tensor>>>> = RwLock::new(None);
/// Counts searches, to tell what was used last.
static CLOCK: AtomicU64 = AtomicU64::new(0);

impl Weights {
    fn key(&self) -> Key {
        let info = self.stored.info();
        Key {
            data: (self.base as usize, self.offset),
            ne: self.ne,
            nb: self.nb,
            name: info.name,
            interleave: info.interleave,
        }
    }

    /// A hash of some of the bytes.
    ///
    /// # Safety
    /// The weights must be readable.
    unsafe fn sample(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let mut add = |at: usize| {
            // SAFETY: the word is inside the tensor, which is readable.
            let word = unsafe { (at as *const u64).read_unaligned() };
            hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
        };
        if let Stored::Packed(shape) = self.stored {
            let last = shape.packed_size().saturating_sub(8);
            (0..SAMPLES).for_each(|i| add(self.base as usize + (last as u128 * i as u128 / SAMPLES as u128) as usize));
        } else {
            let (rows, last) = (self.ne[1] * self.ne[2] * self.ne[3], self.row_bytes().saturating_sub(8));
            for i in 0..SAMPLES {
                let row = (rows as u128 * i as u128 / SAMPLES as u128) as usize;
                let (i2, i3) = (row / self.ne[1] % self.ne[2], row / self.ne[1] / self.ne[2]);
                let at = self.offset + row % self.ne[1] * self.nb[0] + i2 * self.nb[1] + i3 * self.nb[2];
                add(self.base as usize + at + i * 2_654_435_761 % (last + 1));
            }
        }
        hash
    }

    /// The tensor, about which nothing may be known yet.
    ///
    /// # Safety
    /// The weights must be readable.
    unsafe fn known(&self) -> Arc<Tensor> {
        let (key, now) = (self.key(), CLOCK.fetch_add(1, Ordering::Relaxed));
        // SAFETY: the weights are readable.
        let sample = unsafe { self.sample() };
        let found = |all: &Option<HashMap<Key, Arc<Tensor>>>| {
            let tensor = all.as_ref()?.get(&key).filter(|t| t.sample == sample)?;
            tensor.used.store(now, Ordering::Relaxed);
            Some(tensor.clone())
        };
        if let Some(tensor) = found(&ALL.read()) {
            return tensor;
        }
        let mut all = ALL.write();
        if let Some(tensor) = found(&all) {
            return tensor;
        }
        let map = all.get_or_insert_default();
        let channels = self.ne[0].saturating_mul(self.ne[2] * self.ne[3]);
        while !map.is_empty() && map.values().map(|t| t.channels).sum::<usize>() + channels > MAX_CHANNELS {
            let oldest = map.iter().min_by_key(|(_, t)| t.used.load(Ordering::Relaxed)).map(|(key, _)| *key);
            oldest.map(|key| map.remove(&key));
        }
        let matrices = (0..self.ne[2] * self.ne[3]).map(|_| Once::new()).collect();
        let tensor = Arc::new(Tensor { sample, matrices, channels, used: AtomicU64::new(now) });
        map.insert(key, tensor.clone());
        tensor
    }
}

/// Forgets tensors with bytes in this range, because these are written or freed.
pub fn forget(bytes: &Range<usize>) {
    let is_empty = |all: &Option<HashMap<Key, Arc<Tensor>>>| all.as_ref().is_none_or(HashMap::is_empty);
    // Loading a model writes much, and nothing is known yet.
    if is_empty(&ALL.read()) {
        return;
    }
    if let Some(all) = ALL.write().as_mut() {
        // The base of a tensor is inside its buffer, whatever part of it a view reaches.
        all.retain(|key, _| !bytes.contains(&key.data.0));
    }
}

/// What one operation knows of its matrices; made by one of its threads, seen by all.
pub struct KnownErrors {
    /// Of `up` and of the gate, if there is one.
    tensors: Vec<(Weights, Arc<Tensor>)>,
    /// Matrices that are not known yet.
    missing: Vec<Missing>,
}

/// A place in a work buffer where one thread puts what it knows, and all read it.
#[derive(Clone, Copy)]
pub struct SharedErrors(*mut *mut KnownErrors);

impl SharedErrors {
    /// Bytes of the place.
    pub const BYTES: usize = ALIGN;

    /// The place at `address`, which must be aligned.
    pub fn at(address: *mut u8) -> Self {
        Self(address.cast())
    }

    /// Puts it there.
    ///
    /// # Safety
    /// The place must be writable; one thread does this, the others read behind a barrier.
    pub unsafe fn set(self, known: KnownErrors) {
        // SAFETY: the place is writable, and nobody reads it yet.
        unsafe { *self.0 = Box::into_raw(Box::new(known)) };
    }

    /// What was put there.
    ///
    /// # Safety
    /// Something must have been, and not been freed.
    pub unsafe fn get<'a>(self) -> &'a KnownErrors {
        // SAFETY: it is alive, and nobody changes it.
        unsafe { &**self.0 }
    }

    /// Frees it.
    ///
    /// # Safety
    /// One thread does this, when nobody reads it any more.
    pub unsafe fn free(self) {
        // SAFETY: it is alive, and freed once.
        drop(unsafe { Box::from_raw(*self.0) });
    }
}

/// A matrix that is to be measured.
struct Missing {
    /// Number of its tensor in [`KnownErrors::tensors`], and its own in the tensor.
    tensor: usize,
    matrix: usize,
    /// Sums over each unit of its columns, as threads make them.
    units: Box<[Mutex<Option<WeightSums>>]>,
}

impl KnownErrors {
    /// For some matrices of an operation's weights. Types that lose nothing have no errors.
    ///
    /// # Safety
    /// The weights must be readable.
    pub unsafe fn new(weights: &Weights, gate: Option<&Gate>, matrices: impl Iterator<Item = usize> + Clone) -> Self {
        let lossless = weights.stored.info().storage == Storage::Plain(Precision::Bf16Twice);
        if lossless || matrices.clone().next().is_none() {
            return Self { tensors: Vec::new(), missing: Vec::new() };
        }
        let both = [Some(weights), gate.map(|g| &g.weights)];
        // SAFETY: the weights are readable.
        let tensors: Vec<_> = both.into_iter().flatten().map(|w| (*w, unsafe { w.known() })).collect();
        let units = units(weights);
        let missing = |(i, (_, tensor)): (usize, &(Weights, Arc<Tensor>))| {
            let unknown = matrices.clone().filter(|m| tensor.matrices[*m].get().is_none());
            let new = |matrix| Missing { tensor: i, matrix, units: (0..units).map(|_| Mutex::new(None)).collect() };
            unknown.map(new).collect::<Vec<_>>()
        };
        let missing = tensors.iter().enumerate().flat_map(missing).collect();
        Self { tensors, missing }
    }

    /// Measures what is missing, together with the other threads.
    ///
    /// # Safety
    /// The weights must be readable; all threads must come, each with its scratch; AVX-512 needed.
    pub unsafe fn measure(&self, thread: &Thread<'_>, scratch: Scratch) {
        if self.missing.is_empty() {
            return;
        }
        let (units, k) = (self.missing[0].units.len(), self.tensors[0].0.ne[0]);
        // A part at a time, for sums take more memory than what is made of them.
        for missing in self.missing.chunks((MAX_SUMS / (units * k).max(1)).max(1)) {
            for i in split::share(missing.len() * units, thread.index, thread.count) {
                let (missing, i) = (&missing[i / units], i % units);
                let weights = &self.tensors[missing.tensor].0;
                // SAFETY: the weights are readable, and the scratch is this thread's.
                let unit = unsafe { unit(weights, missing.matrix, i, scratch) };
                *missing.units[i].lock().unwrap_or_else(|e| e.into_inner()) = Some(unit);
            }
            thread.wait();
            for i in split::share(missing.len(), thread.index, thread.count) {
                let missing = &missing[i];
                let (weights, known) = &self.tensors[missing.tensor];
                let has_int8 = is_quantised(weights);
                let units = missing.units.iter().map(|unit| {
                    unit.lock().unwrap_or_else(|e| e.into_inner()).take().expect("every unit has its thread")
                });
                // Another operation may have been faster.
                let _ = known.matrices[missing.matrix].set(WeightError::of(k, units, has_int8));
            }
            thread.wait();
        }
    }

    /// The errors of a matrix, of `up` and of the gate if there is one.
    pub fn of(&self, matrix: usize) -> impl Iterator<Item = &WeightError> {
        self.tensors.iter().map(move |(_, t)| t.matrices[matrix].get().expect("was measured"))
    }
}

/// Whether weights have scales that int8 tiles could be made with.
fn is_quantised(weights: &Weights) -> bool {
    weights.stored.info().storage.weight_type().is_some()
}

/// Whether a part of the columns stands for all: of quantised weights, where there are many.
fn is_sampled(weights: &Weights) -> bool {
    is_quantised(weights) && weights.ne[1] > MEASURED_COLS
}

/// Units of columns that a matrix is measured in.
fn units(weights: &Weights) -> usize {
    if is_sampled(weights) { MEASURED_COLS / UNIT_COLS } else { weights.ne[1].div_ceil(UNIT_COLS) }
}

/// Sums over unit `unit` of the columns of a matrix.
///
/// # Safety
/// As for [`KnownErrors::measure`].
unsafe fn unit(weights: &Weights, matrix: usize, unit: usize, scratch: Scratch) -> WeightSums {
    let (mut sums, n) = (WeightSums::new(weights.ne[0]), weights.ne[1]);
    let slice = (matrix % weights.ne[2], matrix / weights.ne[2]);
    let mut add = |cols: Range<usize>, what: (bool, bool)| {
        // SAFETY: the columns are some of the matrix's, which is readable.
        unsafe {
            weights.each_run(slice, cols, true, scratch.gathered, |source, cols| {
                for panel in 0..cols.len().div_ceil(LANES) {
                    let lanes = LANES.min(cols.len() - panel * LANES);
                    source.add_to(&mut sums, panel, lanes, what, scratch.kernel);
                }
            });
        }
    };
    if !is_sampled(weights) {
        add(unit * UNIT_COLS..n.min((unit + 1) * UNIT_COLS), (true, true));
        return sums;
    }
    // Pairs of panels are measured, the first and the last among them; the size of all is looked at.
    let (pairs, last) = (MEASURED_COLS / TILE_NR, n.div_ceil(TILE_NR) - 1);
    for pair in split::share(pairs, unit, MEASURED_COLS / UNIT_COLS) {
        let first = pair * last / (pairs - 1) * TILE_NR;
        add(first..n.min(first + TILE_NR), (true, false));
    }
    let all = split::share(last + 1, unit, MEASURED_COLS / UNIT_COLS);
    add(all.start * TILE_NR..n.min(all.end * TILE_NR), (false, true));
    sums
}
