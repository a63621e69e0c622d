//! Who serves the host that a caller belongs to: this library, or a twin of it. Asked by functions of the drop-in
//! surface, which have names of our own; [`super::behind`] is for those that stand in front of a host's.

use super::callers::CallerCache;
use super::hosts::{ONLY_IK, is_served, only};
use super::twin::{self, Twin};
use crate::host::Flavour;
use crate::host::loader::{LoadedObject, Scope, object_of, our_object};
use crate::host::symbols::weak_table;

/// Who serves a host.
#[derive(Clone, Copy)]
pub enum Server {
    /// This library; the host is of this flavour.
    Here(Flavour),
    /// A twin of this library.
    Twin(&'static Twin),
    /// Nobody: a further host of a flavour, for which no twin could be loaded.
    Nobody,
}

impl Server {
    /// As a number that is not 0.
    fn number(self) -> usize {
        match self {
            Self::Nobody => 1,
            Self::Here(Flavour::Llama) => 2,
            Self::Here(Flavour::Ik) => 3,
            Self::Twin(twin) => 4 + twin.number,
        }
    }

    fn from_number(number: usize) -> Self {
        match number {
            2 => Self::Here(Flavour::Llama),
            3 => Self::Here(Flavour::Ik),
            _ => number.checked_sub(4).and_then(Twin::at).map_or(Self::Nobody, Self::Twin),
        }
    }
}

/// Who serves the host that a caller belongs to. `caller` is the address that the call returns to.
pub fn server(caller: usize) -> Server {
    static KNOWN: CallerCache = CallerCache::new();
    if let Some(flavour) = twin::bound() {
        return Server::Here(flavour);
    }
    if let Some(number) = KNOWN.find(caller) {
        return Server::from_number(number);
    }
    let server = look_for(caller);
    KNOWN.note(caller, server.number(), false);
    server
}

#[cold]
fn look_for(caller: usize) -> Server {
    let object = LoadedObject::of(caller);
    if object.begin == our_object() {
        // The linker has put this library into the host's object, or into a program.
        return Server::Here(if is_linked_with_ik() { Flavour::Ik } else { Flavour::Llama });
    }
    // A program that loads its hosts itself is linked with none. Then it means the host that the global scope finds, or
    // the only one that there is.
    let global = || Scope::GLOBAL.find(c"ggml_init").map(|function| function as usize);
    let init = object.find(c"ggml_init").or_else(global).or_else(|| only(c"ggml_init"));
    let Some(init) = init else { return Server::Here(Flavour::Llama) };
    let host = LoadedObject::of(init);
    let flavour = if host.has(&ONLY_IK[1..]) { Flavour::Ik } else { Flavour::Llama };
    if is_served(flavour, host.begin) {
        // llama.cpp consists of several objects. The caller's object finds all of them, if it is linked with the host.
        let by_caller = flavour == Flavour::Llama && object.find(c"ggml_init") == Some(init);
        flavour.set_scope(if by_caller { object.keep() } else { host.keep() });
        return Server::Here(flavour);
    }
    let begin = host.begin;
    Twin::of(flavour, begin, host.keep()).map_or(Server::Nobody, Server::Twin)
}

weak_table!(ggml_amx_only_ik; "ggml_fused_up_gate", "ggml_init",);

/// Whether this library was linked into one object with an ik_llama.cpp, or the loader has bound it to one.
fn is_linked_with_ik() -> bool {
    let or_global = |linked: usize, name| match linked {
        0 => Scope::GLOBAL.find(name).map(|function| function as usize),
        linked => Some(linked),
    };
    match (or_global(ggml_amx_only_ik(0), ONLY_IK[1]), or_global(ggml_amx_only_ik(1), ONLY_IK[2])) {
        (Some(only_ik), Some(init)) => object_of(only_ik) == object_of(init),
        _ => false,
    }
}
