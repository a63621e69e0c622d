//! Functions in front of the host's that hand calls on by a jump, with registers and stack as they came. So arguments
//! that a later version of the host adds arrive, the caller gets what the host's function returns, and exceptions pass.
//!
//! - [`goes_where`] declares a function that asks where the call goes: to the host's own function, or to one of ours.
//! - [`jumps_on`] declares one of ours for a kernel. It asks a function of this library, with the arguments that are
//!   known. If that declines, it jumps to the host's own kernel.

/// Bytes of the registers that are saved on the stack: six integer registers, `rax` (number of vector registers in a
/// variadic call), `r10` (static chain), and `xmm0` to `xmm7`.
pub(super) const SAVED: usize = 8 * 8 + 8 * 16;

/// The answer to a function that [`jumps_on`] has declared.
#[repr(u8)]
pub(super) enum Answer {
    /// The host does it.
    Declined = 0,
    /// Everything is done, and the caller gets `true`.
    Done = 1,
    /// The caller gets `false`.
    Failed = 2,
}

impl From<Option<bool>> for Answer {
    fn from(done: Option<bool>) -> Self {
        match done {
            None => Self::Declined,
            Some(true) => Self::Done,
            Some(false) => Self::Failed,
        }
    }
}

/// Makes a stack frame of `{frame}` bytes and saves the registers that may hold arguments in it.
macro_rules! save {
    () => {
        concat!(
            ".cfi_startproc\n",
            "push rbp\n",
            ".cfi_def_cfa_offset 16\n",
            ".cfi_offset rbp, -16\n",
            "mov rbp, rsp\n",
            ".cfi_def_cfa_register rbp\n",
            "sub rsp, {frame}\n",
            "mov [rbp - 8], rdi\n",
            "mov [rbp - 16], rsi\n",
            "mov [rbp - 24], rdx\n",
            "mov [rbp - 32], rcx\n",
            "mov [rbp - 40], r8\n",
            "mov [rbp - 48], r9\n",
            "mov [rbp - 56], rax\n",
            "mov [rbp - 64], r10\n",
            "movaps [rbp - 80], xmm0\n",
            "movaps [rbp - 96], xmm1\n",
            "movaps [rbp - 112], xmm2\n",
            "movaps [rbp - 128], xmm3\n",
            "movaps [rbp - 144], xmm4\n",
            "movaps [rbp - 160], xmm5\n",
            "movaps [rbp - 176], xmm6\n",
            "movaps [rbp - 192], xmm7\n",
        )
    };
}
pub(super) use save;

/// Jumps to the address in `rax`, with registers and stack as they were before `save!`.
macro_rules! jump {
    () => {
        concat!(
            "mov r11, rax\n",
            "mov rdi, [rbp - 8]\n",
            "mov rsi, [rbp - 16]\n",
            "mov rdx, [rbp - 24]\n",
            "mov rcx, [rbp - 32]\n",
            "mov r8, [rbp - 40]\n",
            "mov r9, [rbp - 48]\n",
            "mov rax, [rbp - 56]\n",
            "mov r10, [rbp - 64]\n",
            "movaps xmm0, [rbp - 80]\n",
            "movaps xmm1, [rbp - 96]\n",
            "movaps xmm2, [rbp - 112]\n",
            "movaps xmm3, [rbp - 128]\n",
            "movaps xmm4, [rbp - 144]\n",
            "movaps xmm5, [rbp - 160]\n",
            "movaps xmm6, [rbp - 176]\n",
            "movaps xmm7, [rbp - 192]\n",
            "leave\n",
            ".cfi_remember_state\n",
            ".cfi_def_cfa rsp, 8\n",
            "jmp r11\n",
            ".cfi_restore_state\n",
        )
    };
}
pub(super) use jump;

/// Declares `$name`, which jumps to the address that `$find` (`extern "C"`) returns. `$find` gets the address that the
/// call returns to and the first two integer arguments.
macro_rules! goes_where {
    ($(#[$attribute:meta])* $name:ident: $find:path) => {
        $(#[$attribute])*
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            std::arch::naked_asm!(
                $crate::capi::jump::save!(),
                "mov rdx, rsi",
                "mov rsi, rdi",
                "mov rdi, [rbp + 8]",
                "call {find}",
                $crate::capi::jump::jump!(),
                ".cfi_endproc",
                frame = const $crate::capi::jump::SAVED,
                find = sym $find,
            )
        }
    };
}
pub(super) use goes_where;

/// Declares `$name`, which calls `$ask` (an `extern "C"` function that returns an [`Answer`]) with the arguments in
/// registers and a copy of the first `$words` words on the stack. If that declines, it jumps to the address that
/// `$real` (`extern "C"`) returns.
macro_rules! jumps_on {
    ($(#[$attribute:meta])* $name:ident: $ask:path, or $real:path, $words:expr) => {
        $(#[$attribute])*
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            std::arch::naked_asm!(
                $crate::capi::jump::save!(),
                // Copies the known arguments on the stack. They lie behind the saved frame pointer and the return
                // address.
                "lea rsi, [rbp + 16]",
                "mov rdi, rsp",
                "mov ecx, {words}",
                "rep movsq",
                "mov rdi, [rbp - 8]",
                "mov rsi, [rbp - 16]",
                "mov rcx, [rbp - 32]",
                "call {ask}",
                "test al, al",
                "jne 2f",
                "call {real}",
                $crate::capi::jump::jump!(),
                "2:",
                "cmp al, 1",
                "sete al",
                "movzx eax, al",
                "leave",
                ".cfi_def_cfa rsp, 8",
                "ret",
                ".cfi_endproc",
                frame = const $crate::capi::jump::SAVED + ($words * 8usize).next_multiple_of(16),
                words = const $words - if cfg!(mutant = "stack-word") { 1 } else { 0 },
                ask = sym $ask,
                real = sym $real,
            )
        }
    };
}
pub(super) use jumps_on;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Answer;

    /// What `ask` takes (six integers in registers, nine floats of which one is on the stack, and more integers), two
    /// more arguments at the end, and another result.
    type LaterArgs = unsafe extern "C" fn(
        i32,
        f32,
        i64,
        f32,
        i32,
        f32,
        i64,
        f32,
        i32,
        f32,
        i64,
        f32,
        f32,
        f32,
        f32,
        i64,
        i32,
        *const u8,
        f64,
        i64,
    ) -> i64;

    static SEEN: Mutex<Vec<f64>> = Mutex::new(Vec::new());
    static TAKE: AtomicU8 = AtomicU8::new(0);

    macro_rules! note { ($($x:expr),*) => { SEEN.lock().unwrap().extend([$($x as f64),*]) } }

    #[rustfmt::skip]
    unsafe extern "C" fn ask(
        a: i32, b: f32, c: i64, d: f32, e: i32, f: f32, g: i64, h: f32, i: i32, j: f32, k: i64, l: f32, m: f32, n: f32,
        o: f32, p: i64, q: i32, r: *const u8,
    ) -> Answer {
        note!(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r as usize);
        match TAKE.load(Ordering::Relaxed) {
            0 => Answer::Declined,
            1 => Answer::Done,
            _ => Answer::Failed,
        }
    }

    #[rustfmt::skip]
    unsafe extern "C" fn later(
        a: i32, b: f32, c: i64, d: f32, e: i32, f: f32, g: i64, h: f32, i: i32, j: f32, k: i64, l: f32, m: f32, n: f32,
        o: f32, p: i64, q: i32, r: *const u8, s: f64, t: i64,
    ) -> i64 {
        note!(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r as usize, s, t);
        0x1234_5678_9abc
    }

    extern "C" fn real() -> usize {
        later as *const () as usize
    }

    jumps_on! {
        // One float and three integers lie on the stack.
        in_front: ask, or real, 4
    }

    #[test]
    fn given_a_call_that_is_declined_then_every_argument_and_the_result_pass() {
        let (known, all): (Vec<f64>, Vec<f64>) = ((1..=18).map(f64::from).collect(), (1..=20).map(f64::from).collect());
        let call = || {
            SEEN.lock().unwrap().clear();
            // SAFETY: both functions take these arguments.
            let result = unsafe {
                std::mem::transmute::<*const (), LaterArgs>(in_front as *const ())(
                    1,
                    2.,
                    3,
                    4.,
                    5,
                    6.,
                    7,
                    8.,
                    9,
                    10.,
                    11,
                    12.,
                    13.,
                    14.,
                    15.,
                    16,
                    17,
                    18 as *const u8,
                    19.,
                    20,
                )
            };
            (result, SEEN.lock().unwrap().clone())
        };
        assert_eq!(call(), (0x1234_5678_9abc, [known.clone(), all].concat()));
        for (answer, wanted) in [(1, 1), (2, 0)] {
            TAKE.store(answer, Ordering::Relaxed);
            assert_eq!(call(), (wanted, known.clone()));
        }
    }
}
