//! The two kinds of ggml that are served, and in which scope of the dynamic loader the served host of each kind is.

use std::sync::atomic::{AtomicPtr, Ordering};

use libc::c_void;

use super::loader::Scope;

/// What kind of ggml a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// llama.cpp's, [`super::Host`].
    Llama,
    /// ik_llama.cpp's, [`super::ik::IkHost`].
    Ik,
}

/// The scopes that find the functions of the served hosts, by flavour; null is [`Scope::GLOBAL`].
static SCOPES: [AtomicPtr<c_void>; 2] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 2];

impl Flavour {
    /// Says which scope finds the functions of the served host of this flavour.
    pub(crate) fn set_scope(self, scope: Scope) {
        SCOPES[self as usize].store(scope.raw(), Ordering::Release);
    }

    /// The scope that finds the functions of the served host of this flavour; the global one until
    /// [`Flavour::set_scope`].
    pub(crate) fn scope(self) -> Scope {
        // SAFETY: `Scope::GLOBAL`, or a scope that `set_scope` was given: open for ever.
        unsafe { Scope::from_raw(SCOPES[self as usize].load(Ordering::Acquire)) }
    }
}
