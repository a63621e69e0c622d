//! Whether the host's threads are those of an OpenMP region: then they sleep in its barrier if there are more than cores.

use std::ffi::CStr;

use libc::c_int;

use crate::host::Flavour;
use crate::host::symbols::{find, weak_table};
use crate::process::Once;

weak_table!(ggml_amx_openmp_symbols; "omp_in_parallel", "omp_get_num_threads",);

/// A function of OpenMP without arguments.
type Ask = unsafe extern "C" fn() -> c_int;

/// The functions of the table, if the process has an OpenMP that can be found.
fn functions() -> Option<[Ask; 2]> {
    static ASK: Once<Option<[Ask; 2]>> = Once::new();
    const NAMES: [&CStr; 2] = [c"omp_in_parallel", c"omp_get_num_threads"];
    *ASK.get_or_init(|| {
        let [first, second] = [0, 1].map(|i| {
            // SAFETY: OpenMP's functions of these names have this type.
            find(Flavour::Ik.scope(), ggml_amx_openmp_symbols(i), NAMES[i])
                .map(|address| unsafe { std::mem::transmute::<*const libc::c_void, Ask>(address) })
        });
        Some([first?, second?])
    })
}

/// Whether this thread runs in an OpenMP region with others. No, if the process has no OpenMP that can be found.
pub fn is_inside() -> bool {
    // SAFETY: it may be called anywhere.
    functions().is_some_and(|[is_parallel, _]| unsafe { is_parallel() } != 0)
}

/// The threads of the OpenMP region that this thread runs in, if there is one.
pub fn threads() -> Option<usize> {
    // SAFETY: as above.
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
