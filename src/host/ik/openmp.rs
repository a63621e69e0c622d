//! Whether the host's threads are those of an OpenMP region: then its barrier lets them sleep where they are more than
//! cores.

use std::ffi::CStr;

use libc::c_int;

use crate::host::Flavour;
use crate::host::symbols::{find, weak_table};
use crate::process::Once;

weak_table!(ggml_amx_openmp_symbols; "omp_in_parallel", "omp_get_num_threads",);

/// The type of both functions: no arguments.
type OmpFn = unsafe extern "C" fn() -> c_int;

/// `omp_in_parallel` and `omp_get_num_threads`, if both can be found in this process.
fn functions() -> Option<[OmpFn; 2]> {
    static FUNCTIONS: Once<Option<[OmpFn; 2]>> = Once::new();
    const NAMES: [&CStr; 2] = [c"omp_in_parallel", c"omp_get_num_threads"];
    *FUNCTIONS.get_or_init(|| {
        let [first, second] = [0, 1].map(|i| {
            // SAFETY: OpenMP's functions of these names have this type.
            find(Flavour::Ik.scope(), ggml_amx_openmp_symbols(i), NAMES[i])
                .map(|address| unsafe { std::mem::transmute::<*const libc::c_void, OmpFn>(address) })
        });
        Some([first?, second?])
    })
}

/// Whether this thread runs in an OpenMP region with others; false if no OpenMP can be found in this process.
pub fn is_inside() -> bool {
    // SAFETY: OpenMP allows the call anywhere.
    functions().is_some_and(|[is_parallel, _]| unsafe { is_parallel() } != 0)
}

/// How many threads the OpenMP region has that this thread runs in; `None` outside of one.
pub fn threads() -> Option<usize> {
    // SAFETY: OpenMP allows the call anywhere.
    functions().filter(|_| is_inside()).and_then(|[_, count]| usize::try_from(unsafe { count() }).ok())
}

#[cfg(test)]
mod tests {
    #[test]
    fn threads_of_a_test_are_not_openmps() {
        assert!(!super::is_inside());
        assert_eq!(super::threads(), None);
    }
}
