//! Proof of what only calls can show: which virtual functions the host calls, with what, and the order of its compute
//! parameters. A trial node is shown to the host's CPU device and computed by its CPU backend, and the objects of
//! [`super::cxx`] pass the calls on to [`answer`].
//!
//! The trial is made before anything is packed, but never while the buffer type is made: in a host whose own AMX code
//! was replaced that is inside the initialiser of its list of buffer types, which the trial walks. The host may compute
//! in another thread than the one that asks, so a trial belongs to the process and is known by its node.

mod calls;
mod node;
mod stage;

use super::foreign::caught;
use super::llama::Host;
use super::objects::RawBufferType;
use crate::info;
pub use calls::{Class, Method};
use stage::{TrialTurn, Verdict};
pub use stage::{answer, decline, is_proved};

/// Makes the trial, once; `traits` is the object that packed tensors carry. True if the host calls as it should, or
/// calls nothing. False, with one line in the log, if it calls in a way that is not known; and as long as the trial
/// waits for this thread.
pub fn prove(host: &'static Host, buft: *mut RawBufferType, traits: usize) -> bool {
    prove_for(host, buft, traits, false)
}

/// The same, from one of our virtual functions. A host that called none in its trial is tried again then: by now its
/// list of buffer types is made.
pub fn prove_called(host: &'static Host, buft: *mut RawBufferType, traits: usize) -> bool {
    prove_for(host, buft, traits, true)
}

fn prove_for(host: &'static Host, buft: *mut RawBufferType, traits: usize, called: bool) -> bool {
    let turn = match TrialTurn::begin(called, traits) {
        Ok(turn) => turn,
        Err(is_served) => return is_served,
    };
    let verdict = match caught(|| node::show(host, buft)) {
        Ok(Verdict::Uncalled) if called => Err("the host calls this library for some nodes only".to_string()),
        other => other,
    };
    turn.end(*verdict.as_ref().unwrap_or(&Verdict::Declined));
    if let Err(reason) = &verdict {
        info!("not used: {reason}");
    }
    verdict.is_ok()
}
