//! May this process use the tile unit? Four things must agree: the CPU's feature bits, the palette that it describes,
//! the state components that the operating system enabled, and the kernel's permission (Linux gives tile data only to
//! processes that ask).

use crate::process::Once;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

/// What CPUID and XCR0 say: one value, so that tests can invent machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuFacts {
    /// `CPUID.7.0:EDX[24]`.
    pub amx_tile: bool,
    /// `CPUID.7.0:EDX[25]`.
    pub amx_int8: bool,
    /// `CPUID.7.0:EDX[22]`.
    pub amx_bf16: bool,
    /// `CPUID.1:ECX[27]`: XGETBV may be used.
    pub osxsave: bool,
    /// XCR0, 0 if it cannot be read.
    pub xcr0: u64,
    /// CPUID.1D.0:EAX: highest palette.
    pub max_palette: u32,
    /// CPUID.1D.1: bytes per row of a tile.
    pub bytes_per_row: u32,
    /// CPUID.1D.1: tile registers.
    pub tile_names: u32,
    /// CPUID.1D.1: rows of a tile.
    pub max_rows: u32,
    /// `CPUID.1E.0:EBX[7:0]`: deepest K of a TMUL, in dwords.
    pub tmul_max_k: u32,
}

/// XCR0 bits of XTILECFG (17) and XTILEDATA (18).
const XCR0_TILE: u64 = 3 << 17;
const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
const XFEATURE_XTILEDATA: libc::c_long = 18;

impl CpuFacts {
    /// Reads them from this CPU.
    pub fn read() -> Self {
        let highest = __cpuid(0).eax;
        let mut facts = Self { osxsave: __cpuid(1).ecx >> 27 & 1 == 1, ..Self::default() };
        if highest >= 7 {
            let edx = __cpuid_count(7, 0).edx;
            facts.amx_tile = edx >> 24 & 1 == 1;
            facts.amx_int8 = edx >> 25 & 1 == 1;
            facts.amx_bf16 = edx >> 22 & 1 == 1;
        }
        if facts.osxsave {
            // SAFETY: OSXSAVE is set, so XGETBV exists and XCR0 is readable.
            facts.xcr0 = unsafe { xcr0() };
        }
        if facts.amx_tile && highest >= 0x1e {
            facts.max_palette = __cpuid_count(0x1d, 0).eax;
            let palette = __cpuid_count(0x1d, 1);
            facts.bytes_per_row = palette.ebx & 0xffff;
            facts.tile_names = palette.ebx >> 16;
            facts.max_rows = palette.ecx & 0xffff;
            facts.tmul_max_k = __cpuid_count(0x1e, 0).ebx & 0xff;
        }
        facts
    }

    /// `Ok` if the hardware and the operating system allow AMX-INT8 and AMX-BF16, else which check failed.
    pub fn check(&self) -> Result<(), String> {
        let features = [(self.amx_tile, "AMX-TILE"), (self.amx_int8, "AMX-INT8"), (self.amx_bf16, "AMX-BF16")];
        if let Some((_, missing)) = features.iter().find(|(there, _)| !there) {
            return Err(format!("this CPU (or its hypervisor) does not offer {missing}"));
        }
        if !self.osxsave || self.xcr0 & XCR0_TILE != XCR0_TILE {
            return Err(format!(
                "the operating system did not enable tile state (XCR0 is {:#x}, bits 17 and 18 are needed)",
                self.xcr0
            ));
        }
        let palette = (self.tile_names, self.max_rows, self.bytes_per_row, self.tmul_max_k);
        if self.max_palette < 1
            || self.tile_names < 8
            || self.max_rows < 16
            || self.bytes_per_row < 64
            || self.tmul_max_k < 16
        {
            return Err(format!(
                "the CPU describes no usable tile palette (tiles, rows, bytes per row, depth = {palette:?}; 8, 16, 64, 16 are needed)"
            ));
        }
        Ok(())
    }
}

/// # Safety
/// CPUID must report OSXSAVE.
#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: with OSXSAVE the instruction and register 0 exist.
    unsafe { _xgetbv(0) }
}

/// Asks the kernel for permission to use tile data. A forked child inherits it; after exec it must be asked for again.
fn request_permission() -> Result<(), String> {
    // SAFETY: with this code arch_prctl takes a number and touches no memory.
    let code = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
    if code == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::ENOSPC) => {
            "the kernel refused AMX: a thread of this process has a signal stack (sigaltstack) too small for tile state; \
             register larger ones (AT_MINSIGSTKSZ) or load this library first"
                .to_string()
        }
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS) => {
            format!("the kernel refused AMX: it knows no permission for tile data (Linux 5.16 is needed; {error})")
        }
        _ => format!("the kernel refused AMX: arch_prctl(ARCH_REQ_XCOMP_PERM): {error}"),
    })
}

/// Whether AMX may be used, decided at the first call; the error is one line for the log.
pub fn status() -> &'static Result<(), String> {
    static STATUS: Once<Result<(), String>> = Once::new();
    STATUS.get_or_init(|| {
        let found = CpuFacts::read().check().and_then(|()| request_permission());
        #[cfg(amx_emulator)]
        let found = found.or_else(|_| super::emulator::install());
        found
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAPPHIRE_RAPIDS: CpuFacts = CpuFacts {
        amx_tile: true,
        amx_int8: true,
        amx_bf16: true,
        osxsave: true,
        xcr0: 0x602e7,
        max_palette: 1,
        bytes_per_row: 64,
        tile_names: 8,
        max_rows: 16,
        tmul_max_k: 16,
    };

    #[test]
    fn a_sapphire_rapids_passes() {
        assert_eq!(SAPPHIRE_RAPIDS.check(), Ok(()));
    }

    #[test]
    fn a_cpu_without_amx_is_named_as_such() {
        let reason = CpuFacts { amx_tile: false, ..SAPPHIRE_RAPIDS }.check().unwrap_err();
        assert!(reason.contains("AMX-TILE"), "{reason}");
        let reason = CpuFacts { amx_int8: false, ..SAPPHIRE_RAPIDS }.check().unwrap_err();
        assert!(reason.contains("AMX-INT8"), "{reason}");
        let reason = CpuFacts { amx_bf16: false, ..SAPPHIRE_RAPIDS }.check().unwrap_err();
        assert!(reason.contains("AMX-BF16"), "{reason}");
    }

    #[test]
    fn an_operating_system_without_tile_state_is_named_as_such() {
        for xcr0 in [0x2e7, 0x202e7, 0x402e7] {
            let reason = CpuFacts { xcr0, ..SAPPHIRE_RAPIDS }.check().unwrap_err();
            assert!(reason.contains("XCR0"), "{reason}");
        }
        assert!(CpuFacts { osxsave: false, ..SAPPHIRE_RAPIDS }.check().is_err());
    }

    #[test]
    fn a_hypervisor_that_reports_zero_palettes_is_refused() {
        let zero =
            CpuFacts { max_palette: 0, bytes_per_row: 0, tile_names: 0, max_rows: 0, tmul_max_k: 0, ..SAPPHIRE_RAPIDS };
        assert!(zero.check().unwrap_err().contains("palette"));
    }
}
