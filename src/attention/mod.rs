//! FLASH_ATTN_EXT on the tile unit: `softmax(scale * Q K^T + mask) V` for many tokens, without ever holding all scores.
//!
//! Both products are made transposed, so that 16 queries are the 16 lanes of a vector and a softmax needs nothing
//! across lanes: scores are `K Q^T` (rows of the cache are tile rows as they lie), results `V^T P^T`. The queries of
//! all heads that share a head of the cache are one list, token by token; 32 of them are a query block, and as many
//! query blocks as fit into half the second-level cache with their results are a query group.
//!
//! ```text
//! threads take query groups from a counter:
//!     queries of the group -> tiles                                        (operands)
//!     for every key block of 128 keys that somebody in the group sees:     (mask)
//!         for every sub-block of 32 keys: keys, values -> tiles            (operands, cache_rows)
//!         for every query block of the group:                              (softmax)
//!             for every sub-block that it sees: scores = K Q^T + mask
//!             weights = 2^(score - largest); results *= correction
//!             for every 32 channels of V: results += V^T weights^T
//!     results / sums of weights -> memory
//! ```
//!
//! Numbers: queries and keys are two BF16 each, which F16 is without loss: an error of a score is one of its weight,
//! and grows with the scores. Weights and values are one BF16, or two ("two planes"); what softmax divides by is the
//! sum of the rounded weights. A row of results depends on the keys and values that its mask lets it see, and on no
//! others, whatever their bytes; nor on other rows, their number, or threads.
//!
//! Unsafe code here relies on three things, and names them:
//! - **operands**: Q, K, V, mask, sinks and output of an [`Attention`] that passed [`Attention::check`] are valid for
//!   the shapes that it gives;
//! - **scratch**: every part of a `Scratch` has the size that `Scratch::cut` gives it, and is this thread's alone;
//! - **full tiles**: AVX-512 and AMX are there, and full tiles are configured on this thread.

mod cache_rows;
mod mask;
mod operands;
mod scratch;
mod softmax;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cpu::Amx;
use crate::cpu::tile::TileUnit;
use crate::diag::counters;
use crate::matmul::{Output, Thread};
use crate::panel::decoded::ToFloat;
use scratch::{Blocking, Cutter, QueryBlock, Scratch};
use softmax::ScoreSteps;

/// Queries of a query block, keys of a sub-block, channels of a k-step: rows and columns of one result of the
/// microkernel.
const SIDE: usize = 32;
/// Keys of a key block: as many as are made tiles at a time.
const KEY_BLOCK: usize = 128;
/// Sub-blocks of a key block.
const SUB_BLOCKS: usize = KEY_BLOCK / SIDE;
/// The most channels that a head may have.
const MAX_WIDTH: usize = 1024;
/// Lanes of a vector of floats: half a query block.
const F32_LANES: usize = 16;
/// Bytes of a cache line.
const LINE: usize = 64;

/// How the numbers of a row are stored.
#[derive(Clone, Copy, Debug)]
pub enum Element {
    /// 32-bit floats.
    F32,
    /// IEEE half floats.
    F16,
    /// The upper halves of 32-bit floats.
    Bf16,
    /// Blocks of a row that this function decodes.
    Decoded(ToFloat),
}

/// Q, K or V: rows of contiguous channels for every head and sequence.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Address of element 0.
    pub data: *const u8,
    /// How the channels are stored.
    pub element: Element,
    /// Channels, rows (tokens or keys), heads, sequences.
    pub ne: [usize; 4],
    /// Bytes from one row, head and sequence to the next.
    pub nb: [usize; 3],
}

impl Heads {
    fn row(&self, row: usize, head: usize, sequence: usize) -> *const u8 {
        self.data.wrapping_add(row * self.nb[0] + head * self.nb[1] + sequence * self.nb[2])
    }
}

/// What is added to scaled scores: half floats, a row for every token, shared by all heads.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// Key 0 of token 0.
    pub data: *const u8,
    /// Bytes from one token to the next.
    pub stride: usize,
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Queries, F32.
    pub q: Heads,
    /// Keys; as many heads and sequences as V, which divide those of Q.
    pub k: Heads,
    /// Values.
    pub v: Heads,
    /// Mask, if there is one.
    pub mask: Option<Mask>,
    /// A score for every head of Q whose value is zero, F32, or null.
    pub sinks: *const f32,
    /// Scale of scores.
    pub scale: f32,
    /// Above 0: scaled scores `s` become `softcap * tanh(s)`.
    pub softcap: f32,
    /// The results: channels of V; bytes per head, token and sequence.
    pub output: Output,
}

/// Some queries that share a head of the cache.
struct QueryGroup {
    sequence: usize,
    /// The head of the cache.
    head: usize,
    /// The first query, in the list of all that share the head, and how many.
    first: usize,
    count: usize,
}

impl QueryGroup {
    fn query_blocks(&self) -> usize {
        self.count.div_ceil(SIDE)
    }
}

/// 32 keys of one head of the cache, or fewer at the end.
#[derive(Clone, Copy)]
struct SubBlock {
    first_key: usize,
    head: usize,
    sequence: usize,
}

impl Attention {
    /// Whether shapes fit each other and this code; `Err` names what does not.
    pub fn check(&self) -> Result<(), String> {
        let (q, k, v) = (&self.q.ne, &self.k.ne, &self.v.ne);
        if !matches!(self.q.element, Element::F32) {
            return Err("queries are not F32".to_string());
        }
        if q[0] != k[0] {
            return Err(format!("{} channels of queries, {} of keys", q[0], k[0]));
        }
        if k[1..] != v[1..] {
            return Err(format!("keys, heads and sequences {:?} of K, {:?} of V", &k[1..], &v[1..]));
        }
        if k[2] == 0 || k[3] == 0 || q[2] % k[2] != 0 || q[3] % k[3] != 0 {
            return Err(format!("heads and sequences {:?} of the cache do not divide {:?}", &k[2..], &q[2..]));
        }
        if [q[0], v[0]].iter().any(|width| !(1..=MAX_WIDTH).contains(width)) {
            return Err(format!("heads of {} and {} channels", q[0], v[0]));
        }
        self.work_size(1).map(|_| ()).ok_or_else(|| "the work buffer does not fit the address space".to_string())
    }

    /// Heads of Q that share a head of the cache.
    fn heads_per_cache_head(&self) -> usize {
        self.q.ne[2] / self.k.ne[2]
    }

    /// Queries that share a head of the cache.
    pub fn queries(&self) -> usize {
        self.q.ne[1] * self.heads_per_cache_head()
    }

    /// Query blocks of all heads and sequences: how many threads can have something to do.
    pub fn query_blocks(&self) -> usize {
        self.queries().div_ceil(SIDE) * self.k.ne[2] * self.q.ne[3]
    }

    /// Bytes of work buffer that `threads` threads need; `None` if that does not fit the address space.
    pub fn work_size(&self, threads: usize) -> Option<usize> {
        Blocking::new(self, threads)?.per_thread.checked_mul(threads)?.checked_add(2 * LINE)
    }

    /// Computes this thread's part, with one BF16 per weight and value or, if `two_planes`, with two. All threads of
    /// the operation must call it with the same operation.
    ///
    /// # Safety
    /// Operands, as in the module's text; `work` must be writable for [`Attention::work_size`] of the thread count and
    /// be shared by these threads alone.
    pub unsafe fn run(&self, proof: Amx, two_planes: bool, thread: &Thread<'_>, work: *mut u8) {
        let Some(blocking) = Blocking::new(self, thread.count) else { return };
        let work = work.wrapping_add(work.align_offset(LINE));
        // SAFETY: the first line of the work buffer is the counter's; any bytes are a number.
        let next = unsafe { &*work.cast::<AtomicUsize>() };
        if thread.index == 0 {
            next.store(0, Ordering::Relaxed);
            counters::count(counters::Op::FlashAttn, counters::Kernel::Bf16);
        }
        (thread.barrier)();
        let mut parts = Cutter::new(work.wrapping_add(LINE + thread.index * blocking.per_thread));
        let scratch = Scratch::cut(&blocking, &mut parts);
        let _tiles = TileUnit::enter_full(proof);
        loop {
            let unit = next.fetch_add(1, Ordering::Relaxed);
            let Some(group) = self.query_group(&blocking, unit) else { return };
            // SAFETY: operands; scratch: a thread cuts its own; full tiles; every number is taken by one thread.
            unsafe {
                if two_planes {
                    self.group::<true>(&blocking, &group, &scratch);
                } else {
                    self.group::<false>(&blocking, &group, &scratch);
                }
            }
        }
    }

    /// Query group number `unit`, if there are so many. Groups with the last tokens come first: they see the most keys.
    fn query_group(&self, blocking: &Blocking, unit: usize) -> Option<QueryGroup> {
        let heads = self.k.ne[2];
        if unit >= blocking.groups * heads * self.q.ne[3] {
            return None;
        }
        let size = blocking.query_blocks * SIDE;
        let first = (blocking.groups - 1 - unit / heads % blocking.groups) * size;
        let sequence = unit / heads / blocking.groups;
        Some(QueryGroup { sequence, head: unit % heads, first, count: size.min(blocking.queries - first) })
    }

    /// Token and head of Q of query `query` of a group.
    fn token_and_head(&self, group: &QueryGroup, query: usize) -> (usize, usize) {
        let heads = self.heads_per_cache_head();
        let index = group.first + query;
        (index / heads, group.head * heads + index % heads)
    }

    /// The keys from `first_key` on that a group's queries meet.
    fn sub_block(&self, group: &QueryGroup, first_key: usize) -> SubBlock {
        let sequence = group.sequence / (self.q.ne[3] / self.k.ne[3]);
        SubBlock { first_key, head: group.head, sequence }
    }

    /// # Safety
    /// Operands, scratch, full tiles; the group must exist, and be no other thread's.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn group<const TWO_PLANES: bool>(&self, blocking: &Blocking, group: &QueryGroup, scratch: &Scratch) {
        let steps = ScoreSteps::new(blocking.steps, self.k.planes());
        let keys = self.k.ne[1];
        let query_block = |index: usize| QueryBlock::new(blocking, scratch, index);
        // SAFETY: operands and scratch: the group has these query blocks, K and V have these keys. Full tiles.
        unsafe {
            for index in 0..group.query_blocks() {
                self.put_queries(blocking, group, index, query_block(index).queries);
                query_block(index).begin(blocking);
            }
            for first_key in (0..keys).step_by(KEY_BLOCK) {
                if !self.look_at_mask(group, first_key, scratch.visible) {
                    continue;
                }
                for sub in 0..SUB_BLOCKS.min((keys - first_key).div_ceil(SIDE)) {
                    let at = self.sub_block(group, first_key + sub * SIDE);
                    self.k.put_keys(at, blocking, scratch.rows, scratch.keys.add(sub * blocking.query_bytes()));
                    let non_finite = self.v.put_values::<TWO_PLANES>(at, blocking, sub, scratch);
                    scratch.non_finite.add(sub).write(non_finite);
                }
                for index in 0..group.query_blocks() {
                    self.query_block::<TWO_PLANES>(blocking, group, index, first_key, &steps, scratch);
                }
            }
            for index in 0..group.query_blocks() {
                self.finish(group, index, &query_block(index));
            }
        }
    }

    /// Whether a result is NaN or infinite.
    ///
    /// # Safety
    /// Operands; the results must have been written.
    pub unsafe fn has_nan(&self) -> bool {
        let [_, tokens, heads, sequences] = self.q.ne;
        // SAFETY: operands: the output has these results.
        unsafe { self.output.has_nan(self.v.ne[0], [heads, tokens, sequences]) }
    }
}
