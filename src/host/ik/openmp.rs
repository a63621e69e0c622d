//! Whether the host's threads are those of an OpenMP region: then they sleep in its barrier if there are more than cores.

use crate::process::Once;
use std::ffi::CStr;

use libc::c_int;

use crate::host::Flavour;
use crate::host::symbols::{find, scope, weak_table};

weak_table!(ggml_amx_openmp_symbols; "omp_in_parallel",);

/// Whether this thread runs in an OpenMP region with others. No, if the process has no OpenMP that can be found.
pub fn is_inside() -> bool {
    static ASK: Once<Option<unsafe extern "C" fn() -> c_int>> = Once::new();
    const NAME: &CStr = c"omp_in_parallel";
    let ask = ASK.get_or_init(|| {
        // SAFETY: the table has a word, filled by the linker; volatile, because it may be null.
        let linked = unsafe { (&raw const ggml_amx_openmp_symbols).cast::<usize>().read_volatile() };
        // SAFETY: OpenMP's function of this name has this type.
        find(scope(Flavour::Ik), linked, NAME).map(|address| unsafe {
            std::mem::transmute::<*const libc::c_void, unsafe extern "C" fn() -> c_int>(address)
        })
    });
    // SAFETY: it has no arguments and may be called anywhere.
    ask.is_some_and(|ask| unsafe { ask() } != 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn threads_of_a_test_are_not_openmps() {
        assert!(!super::is_inside());
    }
}
