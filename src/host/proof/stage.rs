//! Where trials take place: one at a time in a process, until one has shown what the host is like. The host may call
//! our virtual functions in other threads than the one that makes the trial.

use std::sync::atomic::{AtomicBool, Ordering};

use super::super::waiting::Deadline;
use super::calls::{Method, Trial};
use crate::info;
use crate::process::{Condvar, Mutex};

/// What a trial showed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The host calls as it should.
    Proved,
    /// The host calls nothing: its list of buffer types is not made yet, or the program uses this library by its C
    /// functions only.
    Uncalled,
    /// The host calls in a way that is not known.
    Declined,
}

#[derive(Default)]
struct Stage {
    trial: Option<Trial>,
    verdict: Option<Verdict>,
}

static STAGE: Mutex<Stage> = Mutex::new(Stage { trial: None, verdict: None });
/// A trial has ended.
static ENDED: Condvar = Condvar::new();
/// Whether the verdict is [`Verdict::Proved`].
static PROVED: AtomicBool = AtomicBool::new(false);

/// Whether a trial has shown that the host calls as it should. Makes no trial.
#[inline]
pub fn is_proved() -> bool {
    PROVED.load(Ordering::Acquire)
}

/// As long as this lives, a trial of this thread is on the stage. It ends whatever happens, also if an exception
/// passes.
pub struct TrialTurn(());

impl TrialTurn {
    /// Waits for other trials, and begins one in which `get_tensor_traits` returns `traits`. `called` says that the
    /// host has called a virtual function: then another trial follows one in which it called none.
    ///
    /// The error is whether the host is served, if an earlier trial has shown that; and false if the trial that is
    /// going on waits for this thread.
    pub fn begin(called: bool, traits: usize) -> Result<Self, bool> {
        let deadline = Deadline::new();
        let mut stage = STAGE.lock();
        loop {
            match stage.verdict {
                Some(Verdict::Proved) => return Err(true),
                Some(Verdict::Declined) => return Err(false),
                Some(Verdict::Uncalled) if !called => return Err(true),
                _ => {}
            }
            let left = deadline.left();
            match &stage.trial {
                None => break,
                Some(trial) if !trial.is_here() => break,
                Some(trial) if trial.is_mine() || left.is_zero() => return Err(false),
                Some(_) => stage = ENDED.wait_timeout(stage, left),
            }
        }
        stage.verdict = None;
        stage.trial = Some(Trial::new(traits));
        Ok(Self(()))
    }

    /// Ends the trial with a verdict.
    pub fn end(self, verdict: Verdict) {
        let mut stage = STAGE.lock();
        stage.verdict = Some(verdict);
        PROVED.store(verdict == Verdict::Proved, Ordering::Release);
    }
}

impl Drop for TrialTurn {
    fn drop(&mut self) {
        let mut stage = STAGE.lock();
        stage.verdict.get_or_insert(Verdict::Declined);
        stage.trial = None;
        ENDED.notify_all();
    }
}

/// Does something with the trial that is going on; `None` if there is none.
pub fn with_trial<T>(act: impl FnOnce(&mut Trial) -> T) -> Option<T> {
    STAGE.lock().trial.as_mut().map(act)
}

/// Declines the host, with one line in the log, if nothing was shown yet and no trial is going on.
pub fn decline(reason: &str) {
    let is_new = {
        let mut stage = STAGE.lock();
        let is_new = matches!(stage.verdict, None | Some(Verdict::Uncalled)) && stage.trial.is_none();
        if is_new {
            stage.verdict = Some(Verdict::Declined);
        }
        is_new
    };
    if is_new {
        info!("not used: {reason}");
    }
}

/// The answer to a call of a virtual function while a trial is going on; `None` if there is none. Another thread that
/// does not ask about the trial's node waits until the trial has ended.
pub fn answer(method: Method, args: [usize; 3]) -> Option<usize> {
    let deadline = Deadline::new();
    let mut stage = STAGE.lock();
    loop {
        let trial = stage.trial.as_mut().filter(|trial| trial.is_here())?;
        if trial.is_mine() || args.contains(&trial.node) {
            return Some(trial.answer(method, args));
        }
        let left = deadline.left();
        if left.is_zero() {
            trial.refuse_thread(method);
        }
        if trial.error.is_some() {
            return Some(0);
        }
        stage = ENDED.wait_timeout(stage, left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_trial_there_is_no_answer() {
        assert_eq!(answer(Method::SupportsOp, [1, 2, 0]), None);
    }
}
