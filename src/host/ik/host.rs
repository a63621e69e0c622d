//! The ik_llama.cpp of this process: looked for once, with everything that its structs and numbers were found to be.

use std::cell::Cell;
use std::ops::Deref;

use super::discover::{self, IkOps};
use super::symbols::IkSymbols;
use super::types;
use crate::cpu;
use crate::diag::env::{Mode, env};
use crate::diag::log;
use crate::format::WeightType;
use crate::host::discover::{discover, unknown};
use crate::host::foreign::caught;
use crate::host::hbm::use_hbm;
use crate::host::{Core, Flavour, Symbols};
use crate::info;
use crate::panel::decoded::DecodedType;
use crate::process::Once;

/// An ik_llama.cpp whose layout was found out.
pub struct IkHost {
    core: Core,
    pub(super) ik: IkSymbols,
    /// Index of the pointer-sized member of `struct ggml_backend` that has its `supports_buft`.
    pub(super) supports_buft: usize,
    /// Numbers of the operations that only this ggml has.
    pub ik_ops: IkOps,
    /// Types whose rows the host interleaves and that are read here: ggml's number, and the type they are made of.
    interleaved: Vec<(i32, WeightType)>,
    /// Weight types that only the host can decode.
    decoded: Vec<&'static DecodedType>,
    /// Types of a KV cache, which the host decodes.
    pub(super) cached: Vec<&'static DecodedType>,
}

// SAFETY: function pointers, and facts about types that never change.
unsafe impl Send for IkHost {}
// SAFETY: as for `Send`.
unsafe impl Sync for IkHost {}

impl Deref for IkHost {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

thread_local! {
    /// Whether this thread is looking for the host.
    static FINDING: Cell<bool> = const { Cell::new(false) };
}

/// Sets [`FINDING`] until it is dropped.
struct Finding;

impl Finding {
    fn begin() -> Self {
        FINDING.set(true);
        Self
    }
}

impl Drop for Finding {
    fn drop(&mut self) {
        FINDING.set(false);
    }
}

impl IkHost {
    /// The host of this process, looked for once; `None` if it is not served, which one log line explains.
    pub(super) fn get() -> Option<&'static Self> {
        static HOST: Once<Option<IkHost>> = Once::new();
        if let Some(host) = HOST.get() {
            return host.as_ref();
        }
        // Trying out the host's functions may call functions of ours, which ask for the host.
        if FINDING.get() {
            return None;
        }
        let _finding = Finding::begin();
        let _until_it_is_there = log::hold();
        HOST.get_or_init(|| match caught(Self::find) {
            Ok(host) => {
                let mode = match (env().mode, cpu::isa()) {
                    (Mode::Packed, _) => "packed",
                    (_, cpu::Isa::Amx) => "in place",
                    _ => "in place (left to the host without AMX, but for those in a buffer of the type AMX)",
                };
                info!(
                    "version {}, in ik_llama.cpp, weights {mode}, kernels: {}",
                    env!("CARGO_PKG_VERSION"),
                    cpu::isa().name()
                );
                Some(host)
            }
            Err(reason) => {
                info!("not used: {reason}");
                None
            }
        })
        .as_ref()
    }

    fn find() -> Result<Self, String> {
        if env().mode == Mode::Off {
            return Err("GGML_AMX_MODE=off".to_string());
        }
        let (symbols, ik) = (Symbols::find(Flavour::Ik)?, IkSymbols::find(Flavour::Ik)?);
        if let Some(reason) = cpu::refusal() {
            return Err(reason);
        }
        let (core, (ik_ops, supports_buft)) = discover(&symbols, Flavour::Ik, |layout, context| {
            let (buffer, missing) = (&layout.buffer, |what: &str| unknown(format!("{what} is missing")));
            buffer.usage.ok_or_else(|| missing("ggml_backend_buffer.usage"))?;
            buffer.get_name.ok_or_else(|| missing("the name of a buffer"))?;
            // SAFETY: `context` is a live context of the host, and `layout` that of its tensors.
            let ops = unsafe { discover::ops(&symbols, &ik, &layout.tensor, context)? };
            Ok((ops, discover::supports_buft(&ik)?))
        })?;
        use_hbm(Flavour::Ik);
        let decoded = types::decoded(&symbols, &ik);
        let (interleaved, cached) = (types::interleaved(&decoded), types::cached(&symbols, &ik));
        Ok(Self { core, ik, supports_buft, ik_ops, interleaved, decoded, cached })
    }

    /// The type that ggml's type `number` is the interleaved form of, if that form is read here.
    pub(super) fn interleaved_type(&self, number: i32) -> Option<WeightType> {
        self.interleaved.iter().find(|(n, _)| *n == number).map(|(_, ty)| *ty)
    }

    /// ggml's type `number`, if it is one that the host decodes.
    pub(super) fn decoded_type(&self, number: i32) -> Option<&'static DecodedType> {
        self.decoded.iter().find(|ty| ty.number == number).copied()
    }
}
