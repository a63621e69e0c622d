//! The header's enums: names for numbers. Functions take and return plain `int32_t`, so that a value of a newer header
//! is an error and not undefined behaviour. The enum of weight types is made by the build script from the table in
//! `src/format/table.rs`.
#![allow(non_camel_case_types)]

use crate::cpu::Isa;
use crate::diag::Status;

/// Instruction sets, in rising order.
#[repr(C)]
pub enum ggml_amx_isa {
    /// The best one that the CPU, Linux and the environment variable GGML_AMX_ISA allow.
    GGML_AMX_ISA_AUTO = 0,
    /// Plain code, for any x86-64.
    GGML_AMX_ISA_PORTABLE = 1,
    /// AVX-512 with VNNI.
    GGML_AMX_ISA_AVX512 = 2,
    /// AMX-INT8.
    GGML_AMX_ISA_AMX = 3,
}

/// What functions of the stand-alone API return.
#[repr(C)]
pub enum ggml_amx_status {
    /// Done.
    GGML_AMX_OK = 0,
    /// A required pointer was NULL.
    GGML_AMX_NULL_POINTER = 1,
    /// struct_size is not the size that this library was built with.
    GGML_AMX_BAD_STRUCT_SIZE = 2,
    /// This library does not pack the weight type.
    GGML_AMX_UNKNOWN_TYPE = 3,
    /// A dimension is negative or not a multiple of the block, or a size overflows.
    GGML_AMX_BAD_SHAPE = 4,
    /// A stride is smaller than a row, or not a multiple of 4.
    GGML_AMX_OUT_OF_BOUNDS = 5,
    /// A buffer is smaller than the operation needs.
    GGML_AMX_BUFFER_TOO_SMALL = 6,
    /// The CPU or the environment does not allow what was asked for, or the type's codebook is missing.
    GGML_AMX_NOT_AVAILABLE = 7,
    /// Out of memory, or a bug in this library. ggml_amx_last_error says more.
    GGML_AMX_INTERNAL = 8,
}

// The numbers of the header are the library's.
const _: () = {
    assert!(ggml_amx_isa::GGML_AMX_ISA_AUTO as i32 == 0);
    assert!(ggml_amx_isa::GGML_AMX_ISA_PORTABLE as i32 == Isa::Portable as i32);
    assert!(ggml_amx_isa::GGML_AMX_ISA_AVX512 as i32 == Isa::Avx512 as i32);
    assert!(ggml_amx_isa::GGML_AMX_ISA_AMX as i32 == Isa::Amx as i32);
    assert!(ggml_amx_status::GGML_AMX_OK as i32 == Status::Ok as i32);
    assert!(ggml_amx_status::GGML_AMX_NULL_POINTER as i32 == Status::NullPointer as i32);
    assert!(ggml_amx_status::GGML_AMX_BAD_STRUCT_SIZE as i32 == Status::BadStructSize as i32);
    assert!(ggml_amx_status::GGML_AMX_UNKNOWN_TYPE as i32 == Status::UnknownType as i32);
    assert!(ggml_amx_status::GGML_AMX_BAD_SHAPE as i32 == Status::BadShape as i32);
    assert!(ggml_amx_status::GGML_AMX_OUT_OF_BOUNDS as i32 == Status::OutOfBounds as i32);
    assert!(ggml_amx_status::GGML_AMX_BUFFER_TOO_SMALL as i32 == Status::BufferTooSmall as i32);
    assert!(ggml_amx_status::GGML_AMX_NOT_AVAILABLE as i32 == Status::NotAvailable as i32);
    assert!(ggml_amx_status::GGML_AMX_INTERNAL as i32 == Status::Internal as i32);
};
