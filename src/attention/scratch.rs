//! How an operation is cut into query groups, and the memory that a thread works in.

use std::arch::x86_64::__m512i;

use super::mask::Visible;
use super::{Attention, F32_LANES, LINE, SIDE, SUB_BLOCKS};
use crate::panel::precision::STEP_BYTES;

/// Bytes of queries and results of a query group: half a second-level cache.
const GROUP_BYTES: usize = 1 << 20;
/// Query groups per thread, so that all threads are done at about the same time.
const GROUPS_PER_THREAD: usize = 4;
/// No score is less. The largest score of a query that has seen no key.
const NO_SCORE: f32 = f32::MIN;

/// The sizes of query groups and of what is kept for them.
#[derive(Clone, Copy, Debug)]
pub struct Blocking {
    /// k-steps of a query: its channels / 32, rounded up.
    pub steps: usize,
    /// Blocks of 32 channels of a value, rounded up.
    pub value_blocks: usize,
    /// Queries that share a head of the cache.
    pub queries: usize,
    /// Query blocks of a group.
    pub query_blocks: usize,
    /// Query groups of a head of the cache.
    pub groups: usize,
    /// Bytes of scratch per thread.
    pub per_thread: usize,
}

impl Blocking {
    /// For `threads` threads; `None` if the sizes do not fit the address space.
    pub fn new(op: &Attention, threads: usize) -> Option<Self> {
        let (q, k) = (&op.q.ne, &op.k.ne);
        let (steps, value_blocks) = (q[0].div_ceil(SIDE), op.v.ne[0].div_ceil(SIDE));
        let queries = q[1].checked_mul(q[2] / k[2])?;
        let mut blocking = Self { steps, value_blocks, queries, query_blocks: 0, groups: 0, per_thread: 0 };
        let fits = GROUP_BYTES / (blocking.query_bytes() + blocking.result_floats() * 4);
        let all = queries.checked_mul(k[2])?.checked_mul(q[3])?;
        let fair = all.div_ceil(GROUPS_PER_THREAD * threads.max(1)).div_ceil(SIDE);
        blocking.query_blocks = fair.min(fits).min(queries.div_ceil(SIDE)).max(1);
        blocking.groups = queries.div_ceil(blocking.query_blocks * SIDE);
        let mut parts = Cutter::new(std::ptr::null_mut());
        Scratch::cut(&blocking, &mut parts);
        blocking.per_thread = parts.used;
        Some(blocking)
    }

    /// Bytes of the tiles of a query block, or of a sub-block of keys: two planes.
    pub fn query_bytes(&self) -> usize {
        2 * self.steps * STEP_BYTES
    }

    /// Floats of the results of a query block.
    pub fn result_floats(&self) -> usize {
        self.value_blocks * SIDE * SIDE
    }
}

/// Cuts parts off a buffer; with a null base they are only counted.
pub struct Cutter {
    base: *mut u8,
    used: usize,
}

impl Cutter {
    /// Of the buffer at `base`.
    pub fn new(base: *mut u8) -> Self {
        Self { base, used: 0 }
    }

    /// The next `bytes` bytes, from the beginning of a cache line on.
    fn take<T>(&mut self, bytes: usize) -> *mut T {
        let part = self.base.wrapping_add(self.used).cast();
        self.used += bytes.next_multiple_of(LINE);
        part
    }
}

/// The memory that a thread works in; every part begins with a cache line.
#[derive(Clone, Copy)]
pub struct Scratch {
    /// Of every query block of a group: see [`QueryBlock`].
    queries: *mut u8,
    results: *mut f32,
    largest: *mut f32,
    totals: *mut f32,
    /// What every query block of a group sees of every sub-block.
    pub visible: *mut Visible,
    /// For every sub-block, the keys whose values are not all finite: a bit each.
    pub non_finite: *mut u32,
    /// Tiles of a key block: keys, and values.
    pub keys: *mut u8,
    pub values: *mut u8,
    /// Of one query block and a key block: scores, weights as tiles, and the mask of a sub-block, keys as rows.
    pub scores: *mut f32,
    pub weights: *mut u8,
    pub mask: *mut f32,
    /// 32 rows of keys or values, decoded to floats.
    pub rows: *mut f32,
    /// 32 rows of values as BF16, two rows interleaved: 16 channels a vector, one or two planes.
    pub pairs: *mut __m512i,
}

impl Scratch {
    /// Cuts a thread's scratch off its part of the work buffer.
    pub fn cut(blocking: &Blocking, parts: &mut Cutter) -> Self {
        let count = blocking.query_blocks;
        Self {
            queries: parts.take(count * blocking.query_bytes()),
            results: parts.take(count * blocking.result_floats() * 4),
            largest: parts.take(count * SIDE * 4),
            totals: parts.take(count * SIDE * 4),
            visible: parts.take(count * SUB_BLOCKS),
            non_finite: parts.take(SUB_BLOCKS * 4),
            keys: parts.take(SUB_BLOCKS * blocking.query_bytes()),
            values: parts.take(2 * blocking.value_blocks * SUB_BLOCKS * STEP_BYTES),
            scores: parts.take(SUB_BLOCKS * SIDE * SIDE * 4),
            weights: parts.take(2 * SUB_BLOCKS * STEP_BYTES),
            mask: parts.take(SIDE * SIDE * 4),
            rows: parts.take(SIDE * SIDE * blocking.steps.max(blocking.value_blocks) * 4),
            pairs: parts.take(2 * blocking.value_blocks * SIDE * LINE),
        }
    }
}

/// What is kept of a query block while its group walks through the cache.
pub struct QueryBlock {
    /// Its queries as tiles.
    pub queries: *mut u8,
    /// Sums of weighted values: a row of 32 queries for every channel.
    pub results: *mut f32,
    /// For every query, the score that its weights are relative to.
    pub largest: *mut f32,
    /// For every query, the sum of its weights.
    pub totals: *mut f32,
}

impl QueryBlock {
    /// Query block `index` of the group.
    pub fn new(blocking: &Blocking, scratch: &Scratch, index: usize) -> Self {
        Self {
            queries: scratch.queries.wrapping_add(index * blocking.query_bytes()),
            results: scratch.results.wrapping_add(index * blocking.result_floats()),
            largest: scratch.largest.wrapping_add(index * SIDE),
            totals: scratch.totals.wrapping_add(index * SIDE),
        }
    }

    /// No key was seen yet.
    ///
    /// # Safety
    /// Scratch; the query block must be one of the group.
    pub unsafe fn begin(&self, blocking: &Blocking) {
        // SAFETY: scratch.
        unsafe {
            std::slice::from_raw_parts_mut(self.results, blocking.result_floats()).fill(0.0);
            std::slice::from_raw_parts_mut(self.largest, SIDE).fill(NO_SCORE);
            std::slice::from_raw_parts_mut(self.totals, SIDE).fill(0.0);
        }
    }

    /// Results of 16 queries, half `half` of the block: of channel `channel`.
    pub fn result(&self, channel: usize, half: usize) -> *mut f32 {
        self.results.wrapping_add(channel * SIDE + half * F32_LANES)
    }
}
