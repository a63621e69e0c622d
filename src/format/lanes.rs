//! Reading one number of each of the 16 rows of a packed block: in plain code one row at a time, in registers one row
//! per 32-bit lane.

use std::arch::x86_64::*;

use super::LANES;

/// The f16 at byte `at`.
pub(super) fn f16_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_bits(word_at(bytes, at)).to_f32()
}

/// The little-endian 16-bit number at byte `at`.
pub(super) fn word_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The little-endian 32-bit number of row `lane`, of those that begin with `bytes`.
pub(super) fn dword(bytes: &[u8], lane: usize) -> u32 {
    u32::from_le_bytes(bytes[4 * lane..4 * lane + 4].try_into().expect("four bytes"))
}

/// Nibble `group` of row `lane` in a field at `at` whose bytes hold two groups each, the even one in the low nibble.
pub(super) fn nibble_of_group(block: &[u8], at: usize, group: usize, lane: usize) -> u8 {
    block[at + group / 2 * LANES + lane] >> (group % 2 * 4) & 15
}

/// The f16 of every row.
///
/// # Safety
/// 32 readable bytes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn f16_lanes(bytes: *const u8) -> __m512 {
    // SAFETY: 16 numbers of 2 bytes are readable.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.cast()) })
}

/// The byte of every row.
///
/// # Safety
/// 16 readable bytes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn byte_lanes(bytes: *const u8) -> __m512i {
    // SAFETY: 16 bytes are readable.
    _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(bytes.cast()) })
}

/// The signed byte of every row.
///
/// # Safety
/// 16 readable bytes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn signed_byte_lanes(bytes: *const u8) -> __m512i {
    // SAFETY: 16 bytes are readable.
    _mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(bytes.cast()) })
}

/// The 16-bit number of every row.
///
/// # Safety
/// 32 readable bytes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn word_lanes(bytes: *const u8) -> __m512i {
    // SAFETY: 16 numbers of 2 bytes are readable.
    _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(bytes.cast()) })
}

/// Four bytes of every row: its 32-bit number, or four weights.
///
/// # Safety
/// 64 readable bytes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn dword_lanes(bytes: *const u8) -> __m512i {
    // SAFETY: 64 bytes are readable.
    unsafe { _mm512_loadu_si512(bytes.cast()) }
}
