//! With `GGML_AMX_REPORT=products` (or `GGML_AMX_LOG=debug`), one line with the counts of products when the process
//! ends. It goes to standard error: the host's log may be muted or gone by then.

use super::border::ffi_boundary;
use super::{counters, delivery};

/// Has the line printed when the process ends; false if that cannot be done.
pub fn at_exit() -> bool {
    // SAFETY: `print` has the type that is asked for, and never unwinds.
    unsafe { libc::atexit(print) == 0 }
}

extern "C" fn print() {
    ffi_boundary!("the report", else (), {
        delivery::write_error(&format!("ggml-amx: products: {}\n", counters::report()));
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::border::trip::goes_on;

    #[test]
    fn panics_end_at_the_border() {
        goes_on("the report", || {
            print();
            true
        });
    }
}
