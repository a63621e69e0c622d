//! FLASH_ATTN_EXT on the tile unit: `softmax(scale * Q K^T + mask) V` for many tokens, without ever holding all scores.
//!
//! Both products are made transposed, so that 16 queries are the 16 lanes of a vector and a softmax needs nothing across
//! lanes: scores are `K Q^T` (rows of the cache are tile rows as they lie), results `V^T P^T`. The queries of all heads that
//! share a head of the cache are one list, token by token; 32 of them are a [`tile`](softmax), as many tiles as fit into
//! the second-level cache with their results a group. A group goes through the cache [`KEYS`] keys at a time, which are
//! made tiles for it ([`operands`]); keys that a tile's mask hides are not multiplied.
//!
//! Numbers: queries and keys are two BF16 each, which F16 is without loss: an error of a score is one of its weight, and
//! grows with the scores. Weights and values are one BF16, or two if [`Attention::run`] is told to be exact; what softmax
//! divides by is the sum of the rounded weights. A row of results depends on the keys and values that its mask lets it see,
//! and on no others, whatever their bytes; nor on other rows, their number, or threads.

mod operands;
mod softmax;
#[cfg(test)]
mod tests;

use std::arch::x86_64::__m512i;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cpu::Amx;
use crate::cpu::tile::TileUnit;
use crate::diag::counters;
use crate::matmul::{Output, Thread};
use crate::panel::decoded::ToFloat;
use crate::panel::precision::STEP_BYTES;
use softmax::{Steps, TileState};

/// Queries of a tile, keys of a sub-block, channels of a step.
const SIDE: usize = 32;
/// Keys that are made tiles at a time.
const KEYS: usize = 128;
/// Sub-blocks of them.
const SUBS: usize = KEYS / SIDE;
/// Most channels of a head.
const MAX_WIDTH: usize = 1024;
/// Bytes of queries and results of a group: half a second-level cache.
const GROUP_BYTES: usize = 1 << 20;
/// Groups per thread, so that all are done at about the same time.
const GROUPS_PER_THREAD: usize = 4;
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
    /// Blocks that this function decodes a row of.
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

/// Sizes of the parts of the work buffer.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Steps of 32 channels of a query, and blocks of 32 channels of a value.
    steps: usize,
    blocks: usize,
    /// Queries that share a head of the cache, tiles of a group, and groups.
    queries: usize,
    tiles: usize,
    groups: usize,
    /// Bytes per thread.
    per_thread: usize,
}

impl Plan {
    /// Bytes of a tile's queries: two planes.
    fn query_bytes(&self) -> usize {
        2 * self.steps * STEP_BYTES
    }

    /// Floats of a tile's results.
    fn result_floats(&self) -> usize {
        self.blocks * SIDE * SIDE
    }
}

/// What a thread works in; every part begins with a cache line.
#[derive(Clone, Copy)]
struct Scratch {
    /// Of every tile of a group: queries, results, and their largest scores and sums of weights.
    queries: *mut u8,
    results: *mut f32,
    largest: *mut f32,
    totals: *mut f32,
    /// What every tile sees of every sub-block.
    seen: *mut u8,
    /// Which keys of every sub-block have values that are not finite: a bit each.
    non_finite: *mut u32,
    /// Of [`KEYS`] keys.
    keys: *mut u8,
    values: *mut u8,
    /// Of one tile: scores, weights, a transposed mask.
    scores: *mut f32,
    weights: *mut u8,
    mask: *mut f32,
    /// 32 decoded rows, and pairs of 32 rows of values.
    rows: *mut f32,
    pairs: *mut __m512i,
}

/// Cuts parts off a buffer; with a null base they are only counted.
struct Parts {
    base: *mut u8,
    used: usize,
}

impl Parts {
    fn take<T>(&mut self, bytes: usize) -> *mut T {
        let part = self.base.wrapping_add(self.used).cast();
        self.used += bytes.next_multiple_of(LINE);
        part
    }
}

impl Scratch {
    fn cut(plan: &Plan, parts: &mut Parts) -> Self {
        let (queries, results) = (plan.tiles * plan.query_bytes(), plan.tiles * plan.result_floats() * 4);
        Self {
            queries: parts.take(queries),
            results: parts.take(results),
            largest: parts.take(plan.tiles * SIDE * 4),
            totals: parts.take(plan.tiles * SIDE * 4),
            seen: parts.take(plan.tiles * SUBS),
            non_finite: parts.take(SUBS * 4),
            keys: parts.take(SUBS * plan.query_bytes()),
            values: parts.take(2 * plan.blocks * SUBS * STEP_BYTES),
            scores: parts.take(SUBS * SIDE * SIDE * 4),
            weights: parts.take(2 * SUBS * STEP_BYTES),
            mask: parts.take(SIDE * SIDE * 4),
            rows: parts.take(SIDE * SIDE * plan.steps.max(plan.blocks) * 4),
            pairs: parts.take(2 * plan.blocks * SIDE * LINE),
        }
    }
}

/// Some queries that share a head of the cache.
struct Group {
    sequence: usize,
    /// Of the cache.
    head: usize,
    /// The first of them, and how many.
    first: usize,
    count: usize,
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

    /// Queries that share a head of the cache.
    pub fn queries(&self) -> usize {
        self.q.ne[1] * (self.q.ne[2] / self.k.ne[2])
    }

    /// Tiles of queries: how many threads can have something to do.
    pub fn tiles(&self) -> usize {
        self.queries().div_ceil(SIDE) * self.k.ne[2] * self.q.ne[3]
    }

    fn plan(&self, threads: usize) -> Option<Plan> {
        let (q, k) = (&self.q.ne, &self.k.ne);
        let (steps, blocks) = (q[0].div_ceil(SIDE), self.v.ne[0].div_ceil(SIDE));
        let queries = q[1].checked_mul(q[2] / k[2])?;
        let mut plan = Plan { steps, blocks, queries, tiles: 0, groups: 0, per_thread: 0 };
        let fits = GROUP_BYTES / (plan.query_bytes() + plan.result_floats() * 4);
        let all = queries.checked_mul(k[2])?.checked_mul(q[3])?;
        let fair = all.div_ceil(GROUPS_PER_THREAD * threads.max(1)).div_ceil(SIDE);
        plan.tiles = fair.min(fits).min(queries.div_ceil(SIDE)).max(1);
        plan.groups = queries.div_ceil(plan.tiles * SIDE);
        let mut parts = Parts { base: std::ptr::null_mut(), used: 0 };
        Scratch::cut(&plan, &mut parts);
        plan.per_thread = parts.used;
        Some(plan)
    }

    /// Bytes of work buffer that `threads` threads need; `None` if that does not fit.
    pub fn work_size(&self, threads: usize) -> Option<usize> {
        self.plan(threads)?.per_thread.checked_mul(threads)?.checked_add(2 * LINE)
    }

    /// Computes this thread's part, with one BF16 per weight and value or, if `exact`, with two. All threads of the
    /// operation must call it with the same operation.
    ///
    /// # Safety
    /// Shapes must have passed [`Attention::check`]; all pointers must be valid for them; `work` must be writable for
    /// [`Attention::work_size`] of the thread count and shared by these threads alone.
    pub unsafe fn run(&self, proof: Amx, exact: bool, thread: &Thread<'_>, work: *mut u8) {
        let Some(plan) = self.plan(thread.count) else { return };
        let work = work.wrapping_add(work.align_offset(LINE));
        // SAFETY: the first line of the buffer is the counter's, whatever it holds.
        let next = unsafe { &*work.cast::<AtomicUsize>() };
        if thread.index == 0 {
            next.store(0, Ordering::Relaxed);
            counters::count(counters::Op::FlashAttn, counters::Kernel::Bf16);
        }
        (thread.barrier)();
        let mut parts = Parts { base: work.wrapping_add(LINE + thread.index * plan.per_thread), used: 0 };
        let scratch = Scratch::cut(&plan, &mut parts);
        let heads = self.k.ne[2];
        let _tiles = TileUnit::enter_full(proof);
        loop {
            let unit = next.fetch_add(1, Ordering::Relaxed);
            if unit >= plan.groups * heads * self.q.ne[3] {
                return;
            }
            // The last tokens first: they see the most keys.
            let first = (plan.groups - 1 - unit / heads % plan.groups) * plan.tiles * SIDE;
            let group = Group {
                sequence: unit / heads / plan.groups,
                head: unit % heads,
                first,
                count: (plan.tiles * SIDE).min(plan.queries - first),
            };
            // SAFETY: passed on; the scratch is this thread's, the group nobody else's.
            unsafe { self.group(&plan, &group, exact, &scratch) };
        }
    }

    /// Token and head of query `query` of a group.
    fn token_and_head(&self, group: &Group, query: usize) -> (usize, usize) {
        let together = self.q.ne[2] / self.k.ne[2];
        let index = group.first + query;
        (index / together, group.head * together + index % together)
    }

    /// The sequence of the cache that a group's is compared with.
    fn cache_sequence(&self, group: &Group) -> usize {
        group.sequence / (self.q.ne[3] / self.k.ne[3])
    }

    /// # Safety
    /// As for [`Attention::run`]; full tiles must be configured.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn group(&self, plan: &Plan, group: &Group, exact: bool, scratch: &Scratch) {
        let steps = Steps::new(plan.steps, self.k.planes());
        let tiles = group.count.div_ceil(SIDE);
        let keys = self.k.ne[1];
        let tile = |index: usize| TileState::new(plan, scratch, index);
        // SAFETY: promised by the caller; tiles are inside the scratch, keys inside the cache.
        unsafe {
            for index in 0..tiles {
                self.put_queries(plan, group, index, tile(index).queries);
                tile(index).begin(plan);
            }
            for from in (0..keys).step_by(KEYS) {
                if !self.look(group, tiles, from, scratch.seen) {
                    continue;
                }
                for sub in 0..SUBS.min((keys - from).div_ceil(SIDE)) {
                    let place = (from + sub * SIDE, group.head, self.cache_sequence(group));
                    self.k.put_keys(place, plan, scratch.rows, scratch.keys.add(sub * plan.query_bytes()));
                    scratch.non_finite.add(sub).write(self.v.put_values(place, plan, sub, exact, scratch));
                }
                for index in 0..tiles {
                    if exact {
                        self.tile::<true>(plan, group, index, from, &steps, scratch);
                    } else {
                        self.tile::<false>(plan, group, index, from, &steps, scratch);
                    }
                }
            }
            for index in 0..tiles {
                self.finish(group, index, &tile(index));
            }
        }
    }

    /// Whether a result is NaN or infinite.
    ///
    /// # Safety
    /// The results must be there.
    pub unsafe fn has_nan(&self) -> bool {
        let [_, tokens, heads, sequences] = self.q.ne;
        // SAFETY: promised by the caller.
        unsafe { self.output.has_nan(self.v.ne[0], [heads, tokens, sequences]) }
    }
}
