//! The header's enums. Functions take and return plain `int32_t`, so that a value of a newer header
//! is an error and not undefined behaviour; these give the numbers names.
#![allow(non_camel_case_types)]

use crate::cpu::Isa;
use crate::diag::Status;
use crate::format::WeightType;

/// Instruction sets, in rising order.
#[repr(C)]
pub enum ggml_amx_isa {
    /// The best one the CPU, the kernel and the environment variable GGML_AMX_ISA allow.
    GGML_AMX_ISA_AUTO = 0,
    /// Plain code, any x86-64.
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
    /// struct_size is not the size this library was built with.
    GGML_AMX_BAD_STRUCT_SIZE = 2,
    /// The weight type is none that this library packs.
    GGML_AMX_UNKNOWN_TYPE = 3,
    /// A dimension is negative, not a multiple of the block, or overflows.
    GGML_AMX_BAD_SHAPE = 4,
    /// A stride is smaller than a row, or not a multiple of 4.
    GGML_AMX_OUT_OF_BOUNDS = 5,
    /// A buffer is smaller than the operation needs.
    GGML_AMX_BUFFER_TOO_SMALL = 6,
    /// This CPU, or the environment, does not allow what was asked for, or the type's codebook is not there.
    GGML_AMX_NOT_AVAILABLE = 7,
    /// A bug in this library, or no memory; ggml_amx_last_error says more.
    GGML_AMX_INTERNAL = 8,
}

/// The weight types that are packed; the numbers are those of ggml's enum ggml_type, above 100 of ik_llama.cpp's.
#[repr(C)]
pub enum ggml_amx_type {
    /// 32 weights in 18 bytes.
    GGML_AMX_TYPE_Q4_0 = 2,
    /// 32 weights in 20 bytes.
    GGML_AMX_TYPE_Q4_1 = 3,
    /// 32 weights in 22 bytes.
    GGML_AMX_TYPE_Q5_0 = 6,
    /// 32 weights in 24 bytes.
    GGML_AMX_TYPE_Q5_1 = 7,
    /// 32 weights in 34 bytes.
    GGML_AMX_TYPE_Q8_0 = 8,
    /// 256 weights in 84 bytes.
    GGML_AMX_TYPE_Q2_K = 10,
    /// 256 weights in 110 bytes.
    GGML_AMX_TYPE_Q3_K = 11,
    /// 256 weights in 144 bytes.
    GGML_AMX_TYPE_Q4_K = 12,
    /// 256 weights in 176 bytes.
    GGML_AMX_TYPE_Q5_K = 13,
    /// 256 weights in 210 bytes.
    GGML_AMX_TYPE_Q6_K = 14,
    /// 256 weights in 66 bytes; ggml_amx_mul_mat needs a ggml in the process.
    GGML_AMX_TYPE_IQ2_XXS = 16,
    /// 256 weights in 74 bytes; ggml_amx_mul_mat needs a ggml in the process.
    GGML_AMX_TYPE_IQ2_XS = 17,
    /// 256 weights in 98 bytes; ggml_amx_mul_mat needs a ggml in the process.
    GGML_AMX_TYPE_IQ3_XXS = 18,
    /// 256 weights in 50 bytes; ggml_amx_mul_mat needs a ggml in the process.
    GGML_AMX_TYPE_IQ1_S = 19,
    /// 32 weights in 18 bytes.
    GGML_AMX_TYPE_IQ4_NL = 20,
    /// 256 weights in 110 bytes; ggml_amx_mul_mat needs a ggml in the process.
    GGML_AMX_TYPE_IQ3_S = 21,
    /// 256 weights in 82 bytes; ggml_amx_mul_mat needs a ggml in the process.
    GGML_AMX_TYPE_IQ2_S = 22,
    /// 256 weights in 136 bytes.
    GGML_AMX_TYPE_IQ4_XS = 23,
    /// 256 weights in 56 bytes; ggml_amx_mul_mat needs a ggml in the process.
    GGML_AMX_TYPE_IQ1_M = 29,
    /// 256 weights in 54 bytes.
    GGML_AMX_TYPE_TQ1_0 = 34,
    /// 256 weights in 66 bytes.
    GGML_AMX_TYPE_TQ2_0 = 35,
    /// 32 weights in 17 bytes.
    GGML_AMX_TYPE_MXFP4 = 39,
    /// 64 weights in 36 bytes.
    GGML_AMX_TYPE_NVFP4 = 40,
    /// 128 weights in 18 bytes.
    GGML_AMX_TYPE_Q1_0 = 41,
    /// 64 weights in 18 bytes.
    GGML_AMX_TYPE_Q2_0 = 42,
    /// 32 weights in 26 bytes; ik_llama.cpp's.
    GGML_AMX_TYPE_Q6_0 = 133,
    /// 256 weights in 76 bytes; ik_llama.cpp's.
    GGML_AMX_TYPE_IQ2_K = 137,
    /// 256 weights in 110 bytes; ik_llama.cpp's.
    GGML_AMX_TYPE_IQ3_K = 138,
    /// 256 weights in 144 bytes; ik_llama.cpp's.
    GGML_AMX_TYPE_IQ4_K = 139,
    /// 256 weights in 176 bytes; ik_llama.cpp's.
    GGML_AMX_TYPE_IQ5_K = 140,
    /// 256 weights in 212 bytes; ik_llama.cpp's.
    GGML_AMX_TYPE_IQ6_K = 141,
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
    assert!(ggml_amx_type::GGML_AMX_TYPE_Q4_0 as i32 == WeightType::Q4_0 as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_Q4_1 as i32 == WeightType::Q4_1 as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_Q5_0 as i32 == WeightType::Q5_0 as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_Q5_1 as i32 == WeightType::Q5_1 as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_Q8_0 as i32 == WeightType::Q8_0 as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_Q2_K as i32 == WeightType::Q2_K as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_Q3_K as i32 == WeightType::Q3_K as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_Q4_K as i32 == WeightType::Q4_K as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_Q5_K as i32 == WeightType::Q5_K as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_Q6_K as i32 == WeightType::Q6_K as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_IQ2_XXS as i32 == WeightType::IQ2_XXS as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_IQ2_XS as i32 == WeightType::IQ2_XS as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_IQ3_XXS as i32 == WeightType::IQ3_XXS as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_IQ1_S as i32 == WeightType::IQ1_S as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_IQ4_NL as i32 == WeightType::IQ4_NL as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_IQ3_S as i32 == WeightType::IQ3_S as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_IQ2_S as i32 == WeightType::IQ2_S as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_IQ4_XS as i32 == WeightType::IQ4_XS as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_IQ1_M as i32 == WeightType::IQ1_M as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_TQ1_0 as i32 == WeightType::TQ1_0 as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_TQ2_0 as i32 == WeightType::TQ2_0 as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_MXFP4 as i32 == WeightType::MXFP4 as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_NVFP4 as i32 == WeightType::NVFP4 as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_Q1_0 as i32 == WeightType::Q1_0 as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_Q2_0 as i32 == WeightType::Q2_0 as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_Q6_0 as i32 == WeightType::Q6_0 as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_IQ2_K as i32 == WeightType::IQ2_K as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_IQ3_K as i32 == WeightType::IQ3_K as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_IQ4_K as i32 == WeightType::IQ4_K as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_IQ5_K as i32 == WeightType::IQ5_K as i32);
    assert!(ggml_amx_type::GGML_AMX_TYPE_IQ6_K as i32 == WeightType::IQ6_K as i32);
    assert!(WeightType::ALL.len() == 31, "name the new type in ggml_amx_type");
};
