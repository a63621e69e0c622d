//! The API that needs no ggml: pack, unpack, multiply. For C test harnesses, and for programs that have weights in
//! GGUF's formats and nothing else of ggml. Every argument is checked here; nothing below is called with a bad one.

use libc::{c_char, c_void};

use crate::buffer;
use crate::cpu::{self, Isa};
use crate::diag::border::{self, ffi_boundary};
use crate::diag::{Error, Status, error};
use crate::format::WeightType;
use crate::host;
use crate::matmul::known_errors;
use crate::matmul::{Input, MatMul, Output, Settings, Weights, demand_of_user};
use crate::panel::weights::Shape;

use super::args::MulMatArgs;
use super::threads;

/// Runs the body of function `name`. An error is kept for `ggml_amx_last_error`; a panic becomes one.
fn guarded<T>(name: &str, f: impl FnOnce() -> Result<T, Error>) -> Result<T, Status> {
    error::clear_last();
    let done = border::caught(name, f).unwrap_or_else(|why| Err(Error::new(Status::Internal, why)));
    done.map_err(|e| {
        error::set_last(&e.message);
        e.status
    })
}

fn status(result: Result<(), Status>) -> i32 {
    result.err().unwrap_or(Status::Ok) as i32
}

fn fail<T>(status: Status, message: impl Into<String>) -> Result<T, Error> {
    Err(Error::new(status, message))
}

fn shape(ty: i32, k: i64, n: i64) -> Result<Shape, Error> {
    let known =
        || WeightType::ALL.iter().map(|t| format!("{} ({})", t.info().name, *t as i32)).collect::<Vec<_>>().join(", ");
    match WeightType::from_ggml(ty) {
        Some(ty) => Shape::new(ty, k, n, 1),
        None => fail(Status::UnknownType, format!("weight type {ty} is unknown; known are {}", known())),
    }
}

fn not_null<T>(name: &str, pointer: *const T) -> Result<(), Error> {
    if pointer.is_null() { fail(Status::NullPointer, format!("{name} is NULL")) } else { Ok(()) }
}

fn at_least(name: &str, have: usize, need: usize) -> Result<(), Error> {
    if have < need {
        fail(Status::BufferTooSmall, format!("{name} is {have}, {need} bytes are needed"))
    } else {
        Ok(())
    }
}

/// The version of this library, as in `"0.1.0"`. `GGML_AMX_VERSION` is the version of the header.
///
/// Returns: the text, never NULL.
///
/// Ownership: a static string of the library. Do not free it.
///
/// Threads: any, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn ggml_amx_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The error of the last call of the stand-alone API on this thread.
///
/// Returns: one line that names the bad argument; `""` if there was no error. Never NULL.
///
/// Ownership: the library's. It is valid until the next call of this API on the same thread. Do not free it.
///
/// Threads: any. Every thread has a text of its own.
#[unsafe(no_mangle)]
pub extern "C" fn ggml_amx_last_error() -> *const c_char {
    ffi_boundary!("ggml_amx_last_error", else c"".as_ptr(), { error::last() })
}

/// The best instruction set that can be used: what the CPU, Linux and the environment variable `GGML_AMX_ISA`
/// allow.
///
/// Returns: an `enum ggml_amx_isa`, never `GGML_AMX_ISA_AUTO`.
///
/// Threads: any, at any time. The first call asks Linux for permission to use AMX, once for the process.
#[unsafe(no_mangle)]
pub extern "C" fn ggml_amx_isa_available() -> i32 {
    ffi_boundary!("ggml_amx_isa_available", else Isa::Portable as i32, { cpu::isa() as i32 })
}

/// Why `ggml_amx_isa_available` does not return AMX.
///
/// Returns: one line; `""` if it does. Never NULL.
///
/// Ownership: a static string of the library. Do not free it.
///
/// Threads: any, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn ggml_amx_isa_reason() -> *const c_char {
    static REASON: crate::process::Once<std::ffi::CString> = crate::process::Once::new();
    ffi_boundary!("ggml_amx_isa_reason", else c"a bug in ggml-amx: a panic, see standard error".as_ptr(), {
        // Before the initialiser runs, because this may read the environment, and log what is wrong with it.
        let reason = cpu::why_not_amx().unwrap_or_default();
        REASON.get_or_init(|| std::ffi::CString::new(reason).unwrap_or_default()).as_ptr()
    })
}

/// The size of a weight matrix as a GGUF file has it.
///
/// Parameters:
/// - `type`: the weight type, an `enum ggml_amx_type`.
/// - `k`: weights per row, a multiple of the type's block.
/// - `n`: rows.
///
/// Returns: the number of bytes. 0 on error; `ggml_amx_last_error` says why.
///
/// Threads: any, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn ggml_amx_plain_size(r#type: i32, k: i64, n: i64) -> usize {
    guarded("ggml_amx_plain_size", || Ok(shape(r#type, k, n)?.plain_size())).unwrap_or(0)
}

/// The size of a weight matrix in packed form: the plain size with `n` rounded up to 16.
///
/// Parameters:
/// - `type`: the weight type, an `enum ggml_amx_type`.
/// - `k`: weights per row, a multiple of the type's block.
/// - `n`: rows.
///
/// Returns: the number of bytes. 0 on error; `ggml_amx_last_error` says why.
///
/// Threads: any, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn ggml_amx_packed_size(r#type: i32, k: i64, n: i64) -> usize {
    guarded("ggml_amx_packed_size", || Ok(shape(r#type, k, n)?.packed_size())).unwrap_or(0)
}

/// Packs a weight matrix: the same bytes in another order. The rows that round `n` up to 16 are zeroed.
///
/// Parameters:
/// - `type`: the weight type, an `enum ggml_amx_type`.
/// - `k`: weights per row, a multiple of the type's block.
/// - `n`: rows.
/// - `plain`: the matrix as a GGUF file has it, only read. It needs no alignment.
/// - `plain_size`: bytes at `plain`, at least `ggml_amx_plain_size(type, k, n)`.
/// - `packed`: where the packed matrix goes. It needs no alignment.
/// - `packed_size`: bytes at `packed`, at least `ggml_amx_packed_size(type, k, n)`.
///
/// Returns: an `enum ggml_amx_status`. On error `packed` is untouched.
///
/// Ownership: both buffers stay the caller's. `plain` is not needed after the call. Change packed bytes only by this
/// function: products remember by address what they measured of a packed matrix.
///
/// Threads: any. Calls on different buffers may run at the same time. A large matrix is packed on several threads of
/// the library, which are idle or gone when the call returns.
///
/// # Safety
/// Both pointers are NULL or valid for their sizes. The buffers do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggml_amx_pack(
    r#type: i32,
    k: i64,
    n: i64,
    plain: *const c_void,
    plain_size: usize,
    packed: *mut c_void,
    packed_size: usize,
) -> i32 {
    status(guarded("ggml_amx_pack", || {
        let shape = shape(r#type, k, n)?;
        not_null("plain", plain)?;
        not_null("packed", packed)?;
        at_least("plain_size", plain_size, shape.plain_size())?;
        at_least("packed_size", packed_size, shape.packed_size())?;
        let packed = packed.cast::<u8>();
        // SAFETY: both pointers are valid for their sizes (`# Safety`), which were checked to be large enough.
        unsafe {
            let last = shape.packed_size().saturating_sub(shape.panel_bytes());
            std::ptr::write_bytes(packed.add(last), 0, shape.packed_size() - last);
            buffer::write(&shape, packed, 0, std::slice::from_raw_parts(plain.cast(), shape.plain_size()));
        }
        let base = packed as usize;
        known_errors::forget(&(base..base + shape.packed_size()));
        Ok(())
    }))
}

/// Unpacks a weight matrix: gives back exactly the bytes that `ggml_amx_pack` has read.
///
/// Parameters:
/// - `type`, `k`, `n`: as they were for `ggml_amx_pack`.
/// - `packed`: the packed matrix, only read.
/// - `packed_size`: bytes at `packed`, at least `ggml_amx_packed_size(type, k, n)`.
/// - `plain`: where the matrix goes as a GGUF file has it. It needs no alignment.
/// - `plain_size`: bytes at `plain`, at least `ggml_amx_plain_size(type, k, n)`.
///
/// Returns: an `enum ggml_amx_status`. On error `plain` is untouched.
///
/// Ownership: both buffers stay the caller's.
///
/// Threads: any. Calls may read the same packed matrix at the same time.
///
/// # Safety
/// Both pointers are NULL or valid for their sizes. The buffers do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggml_amx_unpack(
    r#type: i32,
    k: i64,
    n: i64,
    packed: *const c_void,
    packed_size: usize,
    plain: *mut c_void,
    plain_size: usize,
) -> i32 {
    status(guarded("ggml_amx_unpack", || {
        let shape = shape(r#type, k, n)?;
        not_null("packed", packed)?;
        not_null("plain", plain)?;
        at_least("packed_size", packed_size, shape.packed_size())?;
        at_least("plain_size", plain_size, shape.plain_size())?;
        // SAFETY: both pointers are valid for their sizes (`# Safety`), which were checked to be large enough.
        unsafe {
            let plain = std::slice::from_raw_parts_mut(plain.cast::<u8>(), shape.plain_size());
            buffer::read(&shape, packed.cast(), 0, plain);
        }
        Ok(())
    }))
}

fn chosen_isa(isa: i32) -> Result<Isa, Error> {
    let wanted = match isa {
        0 => return Ok(cpu::isa()),
        1 => Isa::Portable,
        2 => Isa::Avx512,
        3 => Isa::Amx,
        _ => return fail(Status::NotAvailable, format!("isa {isa} is unknown; 0 to 3 are known")),
    };
    if wanted > cpu::isa() {
        let why = cpu::why_not_amx().filter(|_| wanted == Isa::Amx);
        let why = why.unwrap_or_else(|| "this CPU lacks AVX-512 VNNI, or GGML_AMX_ISA forbids it".to_string());
        return fail(Status::NotAvailable, format!("isa {} is not available: {why}", wanted.name()));
    }
    Ok(wanted)
}

/// Checks the stride of a matrix of floats, and that the matrix fits the address space.
fn check_rows(name: &str, stride: usize, rows: i64, row_bytes: usize) -> Result<(), Error> {
    if stride < row_bytes || !stride.is_multiple_of(4) {
        return fail(
            Status::OutOfBounds,
            format!("{name} is {stride}; at least {row_bytes} and a multiple of 4 is needed"),
        );
    }
    let end = usize::try_from(rows).ok().and_then(|r| r.checked_mul(stride)).filter(|b| *b <= isize::MAX as usize);
    end.map(|_| ()).ok_or_else(|| {
        Error::new(Status::BadShape, format!("m = {rows} rows of {name} {stride} do not fit the address space"))
    })
}

fn mul_mat(args: &MulMatArgs) -> Result<(), Error> {
    if args.reserved != 0 {
        return fail(Status::BadShape, "reserved must be 0");
    }
    let shape = shape(args.r#type, args.k, args.n)?;
    if !host::make_readable(shape.ty) {
        let why = "its codebook comes from ggml, and this process has none that gives it";
        return fail(Status::NotAvailable, format!("weight type {} cannot be multiplied: {why}", shape.ty.info().name));
    }
    if args.m < 0 || args.n_threads < 0 {
        return fail(
            Status::BadShape,
            format!("m = {} and n_threads = {} must not be negative", args.m, args.n_threads),
        );
    }
    let isa = chosen_isa(args.isa)?;
    not_null("packed", args.packed)?;
    not_null("src1", args.src1)?;
    not_null("dst", args.dst)?;
    at_least("packed_size", args.packed_size, shape.packed_size())?;
    check_rows("src1_stride", args.src1_stride, args.m, shape.k * 4)?;
    check_rows("dst_stride", args.dst_stride, args.m, shape.n * 4)?;
    let m = args.m as usize;
    if m == 0 || shape.n == 0 {
        return Ok(());
    }
    let product = MatMul {
        gate: None,
        weights: Weights::whole(shape, args.packed.cast(), [shape.k, shape.n, 1, 1]),
        input: Input { data: args.src1.cast(), ne: [shape.k, m, 1, 1], nb: [4, args.src1_stride, 0, 0] },
        output: Output { data: args.dst.cast(), nb: [args.dst_stride, 0, 0] },
    };
    product.check().map_err(|why| Error::new(Status::BadShape, why))?;
    // SAFETY: the product was checked; its pointers are valid for their sizes (`# Safety` of `ggml_amx_mul_mat`),
    // and the instruction set can be used.
    unsafe { threads::run(&product, Settings { isa, demand: demand_of_user() }, args.n_threads as usize) }
}

/// Multiplies packed weights with rows of floats.
///
/// Every row of `dst` keeps this bound, whatever the weights, the row and the other rows are. Take at least 256 results
/// of the row (if N is smaller, of several matrices): the sum of their squared errors against double precision, divided
/// by the sum of the squared exact results, is at most the largest of
/// - twice that of 8 bits per 32 activations on exact weights, which is what ggml's own kernels do,
/// - a tenth of the weight type's own error, but at most 3e-4,
/// - 1e-5.
///
/// Activations below 1e-30 count as 0. An activation or a scale that is not finite gives results that are not finite.
/// The number of threads never changes a bit. The library keeps the bound by estimating errors before it multiplies;
/// docs/numerics.md names the matrices for which the estimate may fail.
///
/// Parameters:
/// - `args`: all arguments, see `struct ggml_amx_mul_mat_args`; only read.
///
/// Returns: an `enum ggml_amx_status`. On error `dst` is untouched. For the IQ1, IQ2 and IQ3 types it is
/// `GGML_AMX_NOT_AVAILABLE` if no ggml is in the process, because their codebooks are read off its decoders.
///
/// Ownership: the struct and all buffers stay the caller's, and the library does not use them after the call. But it
/// remembers by address what it measured of a packed matrix, until `ggml_amx_pack` writes there.
///
/// Threads: any. Calls may run at the same time if each has a `dst` of its own; they may share weights and activations.
/// The call starts up to `n_threads` threads and ends them before it returns.
///
/// # Safety
/// `args` is NULL or points to `struct_size` readable bytes whose pointers are valid for their sizes. `dst` does not
/// overlap the inputs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggml_amx_mul_mat(args: *const MulMatArgs) -> i32 {
    status(guarded("ggml_amx_mul_mat", || {
        not_null("args", args)?;
        // SAFETY: not NULL, and every version of the struct starts with its size.
        let size = unsafe { (&raw const (*args).struct_size).read() };
        if size != size_of::<MulMatArgs>() {
            return fail(
                Status::BadStructSize,
                format!("struct_size is {size}, this library expects {}", size_of::<MulMatArgs>()),
            );
        }
        // SAFETY: the struct has the size of the one that is known here.
        mul_mat(unsafe { &*args })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_end_at_the_border() {
        use std::ptr::{null, null_mut};

        use crate::diag::border::trip::goes_on;

        // SAFETY: all of them panic before they look at anything.
        unsafe {
            let internal = Status::Internal as i32;
            goes_on("ggml_amx_pack", || ggml_amx_pack(2, 32, 1, null(), 0, null_mut(), 0) == internal);
            goes_on("ggml_amx_unpack", || ggml_amx_unpack(2, 32, 1, null(), 0, null_mut(), 0) == internal);
            goes_on("ggml_amx_mul_mat", || ggml_amx_mul_mat(null()) == internal);
            goes_on("ggml_amx_plain_size", || ggml_amx_plain_size(2, 32, 1) == 0);
            goes_on("ggml_amx_packed_size", || ggml_amx_packed_size(2, 32, 1) == 0);
            goes_on("ggml_amx_isa_available", || ggml_amx_isa_available() == Isa::Portable as i32);
            goes_on("ggml_amx_isa_reason", || *ggml_amx_isa_reason() != 0);
            goes_on("ggml_amx_last_error", || *ggml_amx_last_error() == 0);
        }
    }
}
