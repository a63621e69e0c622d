//! Stands in for the crate of this project: the entry that ggml-cpu calls, and one function of the header.

/// What `ggml-cpu.cpp` calls.
#[unsafe(export_name = "_Z28ggml_backend_amx_buffer_typev")]
pub extern "C" fn buffer_type() -> *mut u8 {
    std::ptr::null_mut()
}

/// What stands in front of ik_llama.cpp's functions.
macro_rules! in_front_of {
    ($($name:ident)*) => {
        $(
            #[unsafe(no_mangle)]
            pub extern "C" fn $name() {}
        )*
    };
}

in_front_of! {
    __wrap_iqk_mul_mat_4d __wrap_iqk_mul_mat_moe __wrap_iqk_moe_fused_up_gate __wrap_iqk_flash_attn_noalibi
    __wrap_ggml_graph_compute __wrap_ggml_backend_cpu_init __wrap_ggml_backend_reg_get_count
    __wrap_ggml_backend_tensor_alloc __wrap_ggml_backend_alloc_ctx_tensors_from_buft
}

/// What binds a copy of the library to a further host.
#[unsafe(no_mangle)]
pub extern "C" fn ggml_amx_bind() {}

/// What the header declares.
#[unsafe(no_mangle)]
pub extern "C" fn ggml_amx_version() -> *const u8 {
    c"0.1.0".as_ptr().cast()
}
