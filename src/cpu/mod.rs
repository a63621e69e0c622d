//! What this processor and this process can do and may do: instruction sets ([`Isa`]), the kernel's permission for the
//! tile unit (`amx`), its configurations (`tile`), cache sizes (`cache`), cores (`cores`), memory for weights
//! (`memory`) and its limits (`limits`); and where threads wait for each other (`rendezvous`, `sync`).

pub mod amx;
pub mod cache;
mod control_groups;
pub mod cores;
#[cfg(amx_emulator)]
mod emulator;
pub mod limits;
pub mod memory;
pub mod rendezvous;
pub mod sync;
pub mod system;
pub mod tile;

use crate::diag::env::{IsaCeiling, env};
use crate::process::Once;

/// An instruction set that there are kernels for, in ascending order. The numbers are the C API's.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, any x86-64.
    Portable = 1,
    /// AVX-512 F/BW/VL/DQ with VNNI.
    Avx512 = 2,
    /// AMX-TILE, AMX-INT8, AMX-BF16, AVX-512 BF16 and all of the above.
    Amx = 3,
}

impl Isa {
    /// Lower-case name, as in `GGML_AMX_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }
}

/// Proof that the AVX-512 kernels may run: only [`Avx512::new`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    /// `Some` if [`isa`] allows every extension the kernels use.
    pub fn new() -> Option<Self> {
        (isa() >= Isa::Avx512).then_some(Self(()))
    }
}

/// Proof that tile instructions may run on this process's threads: only [`Amx::new`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Amx(());

impl Amx {
    /// `Some` if [`isa`] allows AMX.
    pub fn new() -> Option<Self> {
        (isa() == Isa::Amx).then_some(Self(()))
    }
}

/// The instruction set to use: the best of this CPU, the operating system and the kernel's permission (asked once per
/// process), at most the environment's ceiling `GGML_AMX_ISA`. No kernel runs above it.
pub fn isa() -> Isa {
    static ISA: Once<Isa> = Once::new();
    *ISA.get_or_init(|| match env().isa {
        Some(IsaCeiling::Portable) if cfg!(not(mutant = "ceiling")) => Isa::Portable,
        _ if !has_avx512() => Isa::Portable,
        Some(IsaCeiling::Avx512) => Isa::Avx512,
        None | Some(IsaCeiling::Amx) if is_x86_feature_detected!("avx512bf16") && amx::status().is_ok() => Isa::Amx,
        _ => Isa::Avx512,
    })
}

/// Whether the CPU and the operating system support every extension the AVX-512 kernels use.
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni")
}

/// Why [`isa`] is not AMX, `None` if it is.
pub fn why_not_amx() -> Option<String> {
    let missing = amx::status().clone().err();
    let ceiling = env().isa.filter(|c| *c < IsaCeiling::Amx);
    match ceiling {
        _ if isa() == Isa::Amx => None,
        Some(_) => Some(format!("GGML_AMX_ISA={} forbids AMX", isa().name())),
        None => Some(missing.unwrap_or_else(|| "this CPU has AMX but hides AVX-512 VNNI or BF16".to_string())),
    }
}

/// Why the drop-in buffer type must not serve, or `None` if it may.
///
/// Without AMX the host's own kernels are the better choice, unless the user asks for a lower instruction set by name
/// (tests do).
pub fn refusal() -> Option<String> {
    match env().isa {
        Some(IsaCeiling::Portable) => None,
        Some(IsaCeiling::Avx512) if Avx512::new().is_some() => None,
        Some(IsaCeiling::Avx512) => Some("GGML_AMX_ISA=avx512, but this CPU lacks AVX-512 VNNI".to_string()),
        None | Some(IsaCeiling::Amx) => why_not_amx(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two of three test runs set `GGML_AMX_ISA`, so that every ceiling is seen.
    #[test]
    fn nothing_runs_above_the_ceiling() {
        let highest = match std::env::var("GGML_AMX_ISA").as_deref() {
            Ok("portable") => Isa::Portable,
            Ok("avx512") => Isa::Avx512,
            _ => Isa::Amx,
        };
        assert!(isa() <= highest);
        assert_eq!(Avx512::new().is_some(), isa() >= Isa::Avx512);
        assert_eq!(Amx::new().is_some(), isa() == Isa::Amx);
    }
}
