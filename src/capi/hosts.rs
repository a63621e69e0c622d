//! The hosts of the process, as the dynamic loader shows them: which objects have a host, and which hosts this library
//! serves itself: the first of each flavour that calls.

use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::host::Flavour;
use crate::host::loader::{LoadedObject, OpenObject, files, our_object};

/// What one object of an ik_llama.cpp has. The last two are functions that nothing of ours stands in front of.
pub const ONLY_IK: [&CStr; 3] = [c"iqk_mul_mat_4d", c"ggml_fused_up_gate", c"ggml_init"];

/// First bytes of the objects that have the served hosts, by flavour; 0 as long as there is none.
static SERVED_HOSTS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// Whether this library serves the host of this flavour in the object that begins here. It serves the first that is
/// asked about.
pub fn is_served(flavour: Flavour, object: usize) -> bool {
    match SERVED_HOSTS[flavour as usize].compare_exchange(0, object, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => true,
        Err(host) => host == object,
    }
}

/// Whether an address lies in this library or in a twin of it. Not if the library is a part of a host's object.
pub fn is_of_ours(address: usize) -> bool {
    let object = LoadedObject::of(address);
    object.begin == our_object() || object.has(&[c"ggml_amx_bind"]) && !object.has(&[c"ggml_init"])
}

/// The addresses of a function in all objects of the process that find it, without ours. An address may come several
/// times.
pub fn everywhere(name: &CStr) -> Vec<usize> {
    let of_file = |file: &CString| Some(OpenObject::loaded(file)?.find(name)? as usize);
    files().iter().filter_map(of_file).filter(|address| !is_of_ours(*address)).collect()
}

/// The address of a function that the process has only once.
pub fn only(name: &CStr) -> Option<usize> {
    let all = everywhere(name);
    all.first().copied().filter(|first| all.iter().all(|other| other == first))
}
