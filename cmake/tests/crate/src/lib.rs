//! Stands in for the crate of this project: the entry that ggml-cpu calls, and one function of the header.

/// What `ggml-cpu.cpp` calls.
#[unsafe(export_name = "_Z28ggml_backend_amx_buffer_typev")]
pub extern "C" fn buffer_type() -> *mut u8 {
    std::ptr::null_mut()
}

/// What the header declares.
#[unsafe(no_mangle)]
pub extern "C" fn ggml_amx_version() -> *const u8 {
    c"0.1.0".as_ptr().cast()
}
