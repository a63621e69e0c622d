//! Exceptions that the host throws. Rust's `catch_unwind` ends the process when an exception of another language
//! reaches it, so the frame that catches them is written by hand. Its personality function (what the unwinder asks
//! about a frame) catches everything but Rust's panics and the end of a thread, and goes on after the call.

use libc::{c_int, c_void};

use super::flavour::Flavour;
use super::symbols::{self, weak_table};
use crate::diag::border;

// Calls `function` with `argument`. Returns NULL, or what was thrown.
std::arch::global_asm!(
    ".pushsection .text.ggml_amx_call_caught,\"ax\",@progbits",
    ".hidden ggml_amx_call_caught",
    ".globl ggml_amx_call_caught",
    ".type ggml_amx_call_caught,@function",
    "ggml_amx_call_caught:",
    ".cfi_startproc",
    // 0x1b: the address is relative to this place, in four bytes (DW_EH_PE_pcrel | DW_EH_PE_sdata4).
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
    // The personality function lets the unwinder go on here, with what was thrown in rax.
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

/// The start of what is thrown (`struct _Unwind_Exception`).
#[repr(C)]
struct Exception {
    class: u64,
}

/// The class of Rust's panics.
const RUST: u64 = u64::from_ne_bytes(*b"MOZ\0RUST");
/// The classes of C++ exceptions. The last byte tells variants apart, so it is not compared.
const CXX: [u64; 2] = [u64::from_be_bytes(*b"GNUCC++\0"), u64::from_be_bytes(*b"CLNGC++\0")];

/// `_Unwind_Personality_Fn` of the frame above.
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
        // SAFETY: this is how a frame tells the unwinder to go on in it. Register 0 is rax, and the frame has a label
        // for this.
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
fn catch<T>(call: impl FnOnce() -> T) -> Option<T> {
    struct CaughtCall<F, T> {
        call: Option<F>,
        result: Option<T>,
    }
    unsafe extern "C-unwind" fn run<F: FnOnce() -> T, T>(argument: *mut c_void) {
        // SAFETY: `argument` is the struct below, which nothing else uses during the call.
        let caught = unsafe { &mut *argument.cast::<CaughtCall<F, T>>() };
        caught.result = caught.call.take().map(|call| call());
    }
    // The type of the closure has no name, so `run` is chosen by inference.
    fn run_of<F: FnOnce() -> T, T>(_: &CaughtCall<F, T>) -> unsafe extern "C-unwind" fn(*mut c_void) {
        run::<F, T>
    }
    let mut caught = CaughtCall { call: Some(call), result: None };
    let function = run_of(&caught);
    // SAFETY: the function fits its argument, which outlives the call.
    let thrown = unsafe { ggml_amx_call_caught(function, (&raw mut caught).cast()) };
    if !thrown.is_null() {
        // SAFETY: it was just caught, and is not used after this.
        unsafe { free(thrown) };
        return None;
    }
    caught.result
}

/// The result of `look`, which finds out something about a host. A panic in it and an exception of the host's become
/// errors: then nothing was changed yet, and the host goes on without this library.
pub(super) fn caught<T>(look: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let thrown = || Err("the host threw an exception while it was looked at".into());
    border::caught("what looks at a host", || catch(look))?.unwrap_or_else(thrown)
}

/// Frees what was thrown.
///
/// # Safety
/// `thrown` must be what [`ggml_amx_call_caught`] returned, and not used after this.
unsafe fn free(thrown: *mut Exception) {
    let function = |index, name| symbols::find(Flavour::Llama.scope(), ggml_amx_cxx_symbols(index), name);
    type Begin = unsafe extern "C" fn(*mut Exception) -> *mut c_void;
    type End = unsafe extern "C" fn();
    // SAFETY: `thrown` is an exception that was caught and not freed yet; the C++ runtime's functions of these names
    // have these types.
    unsafe {
        // The C++ runtime counts exceptions that were thrown and not caught yet: it must be told.
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

    #[test]
    fn a_panic_while_a_host_is_looked_at_is_an_error() {
        assert_eq!(caught(|| Ok(1)), Ok(1));
        assert_eq!(caught::<i32>(|| Err("why".into())), Err("why".to_string()));
        assert!(caught::<i32>(|| panic!("planted")).unwrap_err().contains("a bug in ggml-amx"));
    }
}
