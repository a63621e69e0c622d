//! Exceptions of the host's. Rust ends the process where it is to catch one that is not its own, so the frame that catches
//! them is made by hand: its personality takes whatever is neither a panic nor the end of a thread, and goes on behind
//! the call.

use libc::{c_int, c_void};

use super::Flavour;
use super::symbols::{self, weak_table};

// The call of `function` with `argument`: NULL, or what was thrown.
std::arch::global_asm!(
    ".pushsection .text.ggml_amx_call_caught,\"ax\",@progbits",
    ".hidden ggml_amx_call_caught",
    ".globl ggml_amx_call_caught",
    ".type ggml_amx_call_caught,@function",
    "ggml_amx_call_caught:",
    ".cfi_startproc",
    // Relative to the place, four bytes.
    ".cfi_personality 0x1b, {personality}",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    "xor eax, eax",
    // Where the personality goes on: what was thrown is in rax.
    ".hidden ggml_amx_caught",
    ".globl ggml_amx_caught",
    "ggml_amx_caught:",
    "pop rbp",
    ".cfi_def_cfa rsp, 8",
    "ret",
    ".cfi_endproc",
    ".size ggml_amx_call_caught, . - ggml_amx_call_caught",
    ".popsection",
    personality = sym personality,
);

unsafe extern "C-unwind" {
    fn ggml_amx_call_caught(
        function: unsafe extern "C-unwind" fn(*mut c_void),
        argument: *mut c_void,
    ) -> *mut Exception;
}

unsafe extern "C" {
    static ggml_amx_caught: [u8; 1];
    fn _Unwind_SetGR(context: *mut c_void, register: c_int, value: usize);
    fn _Unwind_SetIP(context: *mut c_void, address: usize);
    fn _Unwind_DeleteException(exception: *mut Exception);
}

weak_table!(ggml_amx_cxx_symbols; "__cxa_begin_catch", "__cxa_end_catch",);

/// The head of what is thrown (`struct _Unwind_Exception`).
#[repr(C)]
struct Exception {
    class: u64,
}

/// The class of Rust's panics.
const RUST: u64 = u64::from_ne_bytes(*b"MOZ\0RUST");
/// Those of C++ runtimes, whose last byte tells variants apart.
const CXX: [u64; 2] = [u64::from_be_bytes(*b"GNUCC++\0"), u64::from_be_bytes(*b"CLNGC++\0")];

unsafe extern "C" fn personality(
    version: c_int,
    actions: c_int,
    class: u64,
    exception: *mut Exception,
    context: *mut c_void,
) -> c_int {
    /// `_Unwind_Action`.
    const SEARCH: c_int = 1;
    const HANDLER: c_int = 4;
    const FORCED: c_int = 8;
    /// `_Unwind_Reason_Code`.
    const HANDLER_FOUND: c_int = 6;
    const INSTALL_CONTEXT: c_int = 7;
    const CONTINUE: c_int = 8;
    if version != 1 || actions & FORCED != 0 || class == RUST {
        CONTINUE
    } else if actions & SEARCH != 0 {
        HANDLER_FOUND
    } else if actions & HANDLER != 0 {
        // SAFETY: what the unwinder wants of a frame that catches; register 0 is rax.
        unsafe {
            _Unwind_SetGR(context, 0, exception as usize);
            _Unwind_SetIP(context, (&raw const ggml_amx_caught) as usize);
        }
        INSTALL_CONTEXT
    } else {
        CONTINUE
    }
}

/// What `call` returns; `None` if an exception that is not Rust's came out of it. Panics pass.
pub fn catch<T>(call: impl FnOnce() -> T) -> Option<T> {
    struct Job<F, T> {
        call: Option<F>,
        done: Option<T>,
    }
    unsafe extern "C-unwind" fn run<F: FnOnce() -> T, T>(job: *mut c_void) {
        // SAFETY: the job below.
        let job = unsafe { &mut *job.cast::<Job<F, T>>() };
        job.done = job.call.take().map(|call| call());
    }
    fn runner<F: FnOnce() -> T, T>(_: &Job<F, T>) -> unsafe extern "C-unwind" fn(*mut c_void) {
        run::<F, T>
    }
    let mut job = Job { call: Some(call), done: None };
    let function = runner(&job);
    // SAFETY: the job outlives the call.
    let thrown = unsafe { ggml_amx_call_caught(function, (&raw mut job).cast()) };
    if !thrown.is_null() {
        // SAFETY: caught, and used no more.
        unsafe { end(thrown) };
        return None;
    }
    job.done
}

/// Frees what was caught.
///
/// # Safety
/// It must have been caught here.
unsafe fn end(thrown: *mut Exception) {
    let function = |index: usize, name| {
        // SAFETY: the table has a word per name; volatile, because the compiler must not assume that it is never null.
        let linked = unsafe { (&raw const ggml_amx_cxx_symbols).cast::<usize>().add(index).read_volatile() };
        symbols::find(symbols::scope(Flavour::Llama), linked, name)
    };
    type Begin = unsafe extern "C" fn(*mut Exception) -> *mut c_void;
    type End = unsafe extern "C" fn();
    // SAFETY: promised by the caller; the C++ runtime's functions of these names have these types.
    unsafe {
        // C++ counts what was thrown and not caught.
        let is_cxx = CXX.iter().any(|class| class >> 8 == (*thrown).class >> 8);
        match (function(0, c"__cxa_begin_catch"), function(1, c"__cxa_end_catch")) {
            (Some(begin), Some(end)) if is_cxx => {
                std::mem::transmute::<*const c_void, Begin>(begin)(thrown);
                std::mem::transmute::<*const c_void, End>(end)();
            }
            _ => _Unwind_DeleteException(thrown),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// What a foreign runtime throws.
    #[repr(C, align(16))]
    struct Thrown {
        class: u64,
        cleanup: unsafe extern "C" fn(c_int, *mut Thrown),
        private: [usize; 2],
        freed: *mut bool,
    }

    unsafe extern "C" fn cleanup(_: c_int, thrown: *mut Thrown) {
        // SAFETY: the flag of the test.
        unsafe { *(*thrown).freed = true };
    }

    unsafe extern "C-unwind" {
        fn _Unwind_RaiseException(thrown: *mut Thrown) -> c_int;
    }

    #[test]
    fn foreign_exceptions_are_caught_and_freed_and_panics_pass() {
        assert_eq!(catch(|| 1), Some(1));
        struct Dropped<'a>(&'a mut bool);
        impl Drop for Dropped<'_> {
            fn drop(&mut self) {
                *self.0 = true;
            }
        }
        let (mut dropped, mut freed) = (false, false);
        let mut thrown =
            Thrown { class: u64::from_be_bytes(*b"TEST\0\0\0\0"), cleanup, private: [0; 2], freed: &raw mut freed };
        let caught = catch(|| {
            let _dropped = Dropped(&mut dropped);
            // SAFETY: a well-formed exception, caught by the frame above.
            unsafe { _Unwind_RaiseException(&raw mut thrown) }
        });
        assert_eq!((caught, dropped, freed), (None, true, true));
        assert!(catch_unwind(AssertUnwindSafe(|| catch(|| panic!("planted")))).is_err());
    }
}
