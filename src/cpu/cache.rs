//! Cache sizes, from CPUID leaf 4.

use crate::process::Once;
use std::arch::x86_64::{__cpuid, __cpuid_count};

/// Second-level cache per core of CPUs with AMX, for where a hypervisor hides its size.
const USUAL_L2: usize = 2 << 20;

/// Bytes of a core's second-level cache.
pub fn l2_bytes() -> usize {
    static BYTES: Once<usize> = Once::new();
    *BYTES.get_or_init(|| data_cache(2).unwrap_or(USUAL_L2))
}

/// Bytes of the data cache (or the unified one) of a level, if CPUID describes it.
fn data_cache(level: u32) -> Option<usize> {
    if __cpuid(0).eax < 4 {
        return None;
    }
    (0..16).map(|i| __cpuid_count(4, i)).take_while(|r| r.eax & 31 != 0).find_map(|r| {
        const INSTRUCTIONS: u32 = 2;
        let (kind, at) = (r.eax & 31, r.eax >> 5 & 7);
        let parts = [(r.ebx >> 22) + 1, (r.ebx >> 12 & 0x3ff) + 1, (r.ebx & 0xfff) + 1, r.ecx.wrapping_add(1)];
        let bytes = parts.iter().map(|p| *p as usize).product();
        (kind != INSTRUCTIONS && at == level && bytes > 0).then_some(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_level_has_a_plausible_size() {
        assert!((64 << 10..=64 << 20).contains(&l2_bytes()), "{}", l2_bytes());
        assert!(data_cache(1).is_none_or(|l1| l1 < l2_bytes()));
    }
}
