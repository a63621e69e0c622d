//! What the machine can do at this moment: the tile unit's peak and the bandwidth of plain reads.

use std::arch::asm;
use std::arch::x86_64::{
    _MM_HINT_T0, _mm_prefetch, _mm512_load_si512, _mm512_reduce_or_epi64, _mm512_setzero_si512, _mm512_xor_si512,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use ggml_amx::cpu::memory::Region;
use ggml_amx::cpu::tile::TileUnit;
use ggml_amx::cpu::{Amx, Avx512};

/// TDPBSSD of full tiles in a peak window: about 4 ms.
pub const PEAK_TDPS: usize = 720_000;
/// Multiply-adds of one.
pub const TDP_MACS: f64 = 16.0 * 16.0 * 64.0;

/// Memory that is read: more than a last-level cache holds, one part after the other.
const READ_BYTES: usize = 512 << 20;
/// Bytes of one part.
pub const READ_PART: usize = 64 << 20;
/// Bytes of one step of the loop, and how far ahead it prefetches.
const STEP: usize = 512;
const AHEAD: usize = 4096;

/// Waits by spinning, as hosts' barriers do.
pub struct Spin {
    arrived: AtomicUsize,
    count: usize,
}

impl Spin {
    /// For `count` threads.
    pub fn new(count: usize) -> Self {
        Self { arrived: AtomicUsize::new(0), count }
    }

    /// How many threads.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns when all threads have called it.
    pub fn wait(&self) {
        let ticket = self.arrived.fetch_add(1, Ordering::AcqRel);
        let all = (ticket / self.count + 1) * self.count;
        while self.arrived.load(Ordering::Acquire) < all {
            std::hint::spin_loop();
        }
    }
}

/// 4 KB of random bytes: operands of the peak loop.
#[repr(align(64))]
struct Operands([u8; 4096]);

static OPERANDS: Operands = {
    let mut bytes = [0; 4096];
    let (mut state, mut i) = (1u64, 0);
    while i < bytes.len() {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        bytes[i] = (state >> 56) as u8;
        i += 1;
    }
    Operands(bytes)
};

/// Seconds for a window of TDPBSSD with random operands: with zeros the unit draws less power and is
/// up to a quarter faster, which no product can have.
pub fn peak(proof: Amx) -> f64 {
    let _tiles = TileUnit::enter_full(proof);
    // SAFETY: full tiles are configured; the operands are four tiles.
    unsafe {
        asm!(
            "tileloadd tmm4, [{from} + {row}*1]",
            "tileloadd tmm5, [{from} + {row}*1 + 1024]",
            "tileloadd tmm6, [{from} + {row}*1 + 2048]",
            "tileloadd tmm7, [{from} + {row}*1 + 3072]",
            from = in(reg) OPERANDS.0.as_ptr(), row = in(reg) 64usize, options(nostack, preserves_flags, readonly)
        );
    }
    let start = Instant::now();
    for _ in 0..PEAK_TDPS / 8 {
        // SAFETY: full tiles are configured; results are thrown away.
        unsafe {
            asm!(
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                options(nostack, preserves_flags)
            );
        }
    }
    start.elapsed().as_secs_f64()
}

/// Memory to read, on huge pages where there are any.
pub struct Reader {
    region: Region,
}

impl Reader {
    /// Makes the memory and writes every page of it.
    pub fn new() -> Self {
        let region = Region::new(READ_BYTES).expect("memory for the read loop");
        // SAFETY: the region is that long and nobody else has it.
        unsafe { region.base().as_ptr().write_bytes(1, READ_BYTES) };
        Self { region }
    }

    /// Seconds of thread `index` of `count` for its share of part `part`.
    pub fn read(&self, part: usize, index: usize, count: usize) -> f64 {
        let share = READ_PART / count / STEP * STEP;
        let at = part % (READ_BYTES / READ_PART) * READ_PART + index * share;
        // SAFETY: the share lies inside the region.
        let bytes = unsafe { std::slice::from_raw_parts(self.region.base().as_ptr().add(at), share) };
        let start = Instant::now();
        if Avx512::new().is_some() {
            // SAFETY: AVX-512 is there; the region is 64-byte aligned and shares are whole steps.
            std::hint::black_box(unsafe { read_avx512(bytes) });
        } else {
            // SAFETY: any 8 bytes are a u64; the region is 64-byte aligned.
            let words = unsafe { bytes.align_to::<u64>().1 };
            std::hint::black_box(words.iter().fold(0, |a, w| a ^ w));
        }
        start.elapsed().as_secs_f64()
    }
}

/// Xor of everything, in 8 vectors side by side.
///
/// # Safety
/// AVX-512 F must be there; `bytes` must be 64-byte aligned and whole steps long.
#[target_feature(enable = "avx512f")]
unsafe fn read_avx512(bytes: &[u8]) -> i64 {
    let mut sums = [_mm512_setzero_si512(); 8];
    for step in bytes.chunks_exact(STEP) {
        for (i, sum) in sums.iter_mut().enumerate() {
            let at = step.as_ptr().wrapping_add(64 * i);
            // SAFETY: inside the step; prefetching may go past the end, it never faults.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                *sum = _mm512_xor_si512(*sum, _mm512_load_si512(at.cast()));
            }
        }
    }
    _mm512_reduce_or_epi64(sums.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_xor_si512(a, b)))
}
