//! The tile unit in software, for tests on machines without one: built only with `--cfg amx_emulator`.
//!
//! A CPU without AMX raises SIGILL at every tile instruction. The handler here decodes the instruction, does to eight
//! tiles of the thread what the manual says (Intel SDM, "Intel AMX instruction set reference"), and continues behind
//! it. In int8 results have the hardware's bits, in BF16 those of the manual's pseudo-code. A trap takes about a
//! microsecond, so this says nothing about speed.

use crate::process::Once;
use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::UnsafeCell;

use super::has_avx512;
use super::tile::{TILE_BYTES, TILE_ROWS};

/// Eight registers and their shapes.
struct State {
    /// Rows and bytes per row; zeros: not configured.
    shapes: [(usize, usize); 8],
    data: [[[u8; TILE_BYTES]; TILE_ROWS]; 8],
}

#[repr(align(64))]
struct Aligned(UnsafeCell<State>);

thread_local! {
    static STATE: Aligned = const {
        Aligned(UnsafeCell::new(State { shapes: [(0, 0); 8], data: [[[0; TILE_BYTES]; TILE_ROWS]; 8] }))
    };
}

/// Takes over SIGILL, once per process. The error says what this CPU lacks for it.
pub fn install() -> Result<(), String> {
    static DONE: Once<Result<(), String>> = Once::new();
    DONE.get_or_init(|| {
        if !has_avx512() || !is_x86_feature_detected!("avx512bf16") {
            return Err("the emulator of the tile unit needs AVX-512 VNNI and BF16".to_string());
        }
        // SAFETY: all zeros is a valid sigaction; the handler has the signature that SA_SIGINFO asks for.
        let code = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut())
        };
        if code == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().to_string()) }
    })
    .clone()
}

/// What an instruction does; tiles by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    LoadConfig,
    Release,
    Zero(usize),
    Load(usize),
    Store(usize),
    /// Registers of the sums, of the left factor and of the right one.
    Int8(usize, usize, usize),
    Bf16(usize, usize, usize),
}

/// One tile instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    op: Op,
    len: usize,
    /// Memory operand: address without the index, and the scaled index, which is the distance of rows.
    address: usize,
    stride: usize,
}

/// Decodes the instruction at `code`; `registers` are the general registers in the order of their numbers. `None` if it
/// is none of the tile unit's.
///
/// # Safety
/// `code` must be the address of an instruction.
unsafe fn decode(code: *const u8, registers: &[usize; 16]) -> Option<Instruction> {
    // SAFETY: no byte is read before those in front of it have shown that the instruction has it.
    let byte = |i: usize| unsafe { *code.add(i) };
    if byte(0) != 0xc4 || byte(1) & 0x1f != 2 {
        return None;
    }
    // The three-byte VEX prefix holds R, X, B and vvvv inverted.
    let (extended, prefix) = (!byte(1), byte(2));
    let (x, b) = (extended >> 6 & 1, extended >> 5 & 1);
    let (vvvv, mandatory) = (usize::from(!prefix >> 3 & 15), prefix & 3);
    let (opcode, modrm) = (byte(3), byte(4));
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    let op = match (opcode, mandatory, mode == 3) {
        (0x49, 0, true) if modrm == 0xc0 => Op::Release,
        (0x49, 0, false) if reg == 0 => Op::LoadConfig,
        (0x49, 3, true) => Op::Zero(reg),
        (0x4b, 3 | 1, false) => Op::Load(reg),
        (0x4b, 2, false) => Op::Store(reg),
        (0x5e, 3, true) => Op::Int8(reg, rm, vvvv),
        (0x5c, 2, true) => Op::Bf16(reg, rm, vvvv),
        _ => return None,
    };
    if mode == 3 {
        return Some(Instruction { op, len: 5, address: 0, stride: 0 });
    }
    let (mut at, mut stride, mut address) = (5, 0, 0usize);
    let mut base = Some(rm + 8 * usize::from(b));
    if rm == 4 {
        let sib = byte(5);
        at = 6;
        let index = usize::from(sib >> 3 & 7) + 8 * usize::from(x);
        stride = if index == 4 { 0 } else { registers[index] << (sib >> 6) };
        let low = usize::from(sib & 7);
        base = (mode != 0 || low != 5).then_some(low + 8 * usize::from(b));
    }
    let four = |at: usize| i32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]) as usize;
    let displacement = match (mode, base, rm) {
        (0, _, 5) => {
            // The address is relative to the next instruction.
            base = None;
            address = code as usize + at + 4;
            at += 4;
            four(at - 4)
        }
        (0, Some(_), _) => 0,
        (1, _, _) => {
            at += 1;
            i32::from(byte(at - 1) as i8) as usize
        }
        _ => {
            at += 4;
            four(at - 4)
        }
    };
    let address = address.wrapping_add(displacement).wrapping_add(base.map_or(0, |r| registers[r]));
    Some(Instruction { op, len: at, address, stride })
}

/// # Safety
/// Only for the kernel to call as a signal handler: `context` is a `ucontext_t` of this thread.
unsafe extern "C" fn handler(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a `ucontext_t`; the memory operand is what the interrupted code would have accessed.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        use libc::*;
        let numbers = [
            REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11,
            REG_R12, REG_R13, REG_R14, REG_R15,
        ];
        let general = numbers.map(|n| registers[n as usize] as usize);
        let mut at = registers[REG_RIP as usize] as usize as *const u8;
        let mut done = 0;
        // Tile instructions often follow each other: one trap serves them all.
        while let Some(instruction) = decode(at, &general) {
            STATE.with(|state| run(&mut *state.0.get(), &instruction));
            at = at.add(instruction.len);
            done += 1;
        }
        if done == 0 {
            // Another instruction: the process ends with the signal.
            signal(SIGILL, SIG_DFL);
            return;
        }
        registers[REG_RIP as usize] = at as usize as i64;
    }
}

/// # Safety
/// The memory operand must be valid; AVX-512 must be there.
unsafe fn run(state: &mut State, instruction: &Instruction) {
    let row = |r: usize| instruction.address.wrapping_add(r.wrapping_mul(instruction.stride));
    let fault = |what: &str| -> ! {
        eprintln!("emulated tile unit: {what}: {:?}", instruction.op);
        std::process::abort()
    };
    let shape = |t: usize| if state.shapes[t].0 == 0 { fault("tile is not configured") } else { state.shapes[t] };
    // SAFETY: the memory operand is valid; rows and bytes are at most those of a tile, as loading the configuration
    // checked.
    unsafe {
        match instruction.op {
            Op::Release => state.shapes = [(0, 0); 8],
            Op::LoadConfig => {
                let config = std::slice::from_raw_parts(instruction.address as *const u8, 64);
                if config[0] != 1 {
                    fault("palette is not 1");
                }
                for (t, shape) in state.shapes.iter_mut().enumerate() {
                    let bytes = u16::from_le_bytes([config[16 + 2 * t], config[17 + 2 * t]]);
                    *shape = (usize::from(config[48 + t]), usize::from(bytes));
                    if shape.0 > TILE_ROWS || shape.1 > TILE_BYTES || (shape.0 == 0) != (shape.1 == 0) {
                        fault("shape of a tile");
                    }
                }
                state.data = [[[0; TILE_BYTES]; TILE_ROWS]; 8];
            }
            Op::Zero(t) => {
                shape(t);
                state.data[t] = [[0; TILE_BYTES]; TILE_ROWS];
            }
            Op::Load(t) => {
                let (rows, bytes) = shape(t);
                state.data[t] = [[0; TILE_BYTES]; TILE_ROWS];
                for r in 0..rows {
                    std::ptr::copy_nonoverlapping(row(r) as *const u8, state.data[t][r].as_mut_ptr(), bytes);
                }
            }
            Op::Store(t) => {
                let (rows, bytes) = shape(t);
                for r in 0..rows {
                    std::ptr::copy_nonoverlapping(state.data[t][r].as_ptr(), row(r) as *mut u8, bytes);
                }
            }
            Op::Int8(sums, a, b) | Op::Bf16(sums, a, b) => {
                let ((m, n), (m_a, k), (k_b, n_b)) = (shape(sums), shape(a), shape(b));
                if m != m_a || n != n_b || k != 4 * k_b || sums == a || sums == b || a == b {
                    fault("shapes of a product");
                }
                let (left, right) = (state.data[a], state.data[b]);
                match instruction.op {
                    Op::Int8(..) => int8(&mut state.data[sums], &left, &right, m, k_b),
                    _ => bf16(&mut state.data[sums], &left, &right, m, k_b),
                }
            }
        }
    }
}

/// A tile register.
type Tile = [[u8; TILE_BYTES]; TILE_ROWS];

/// TDPBSSD: `sums[m][n] += sum of a[m][k] * b[k][n]` over groups of four signed bytes.
///
/// # Safety
/// AVX-512 VNNI must be there.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn int8(sums: &mut Tile, a: &Tile, b: &Tile, m: usize, k: usize) {
    // SAFETY: rows of tiles are 64 bytes.
    unsafe {
        let right: [__m512i; TILE_ROWS] = std::array::from_fn(|i| _mm512_loadu_si512(b[i].as_ptr().cast()));
        // VPDPBUSD takes unsigned bytes on one side: a + 128. What that adds, 128 times the sum of b, is subtracted.
        let ones =
            right[..k].iter().fold(_mm512_setzero_si512(), |s, b| _mm512_dpbusd_epi32(s, _mm512_set1_epi8(1), *b));
        let off = _mm512_slli_epi32::<7>(ones);
        for (sums, a) in sums.iter_mut().zip(a).take(m) {
            let mut sum = _mm512_sub_epi32(_mm512_loadu_si512(sums.as_ptr().cast()), off);
            for (four, right) in a.chunks_exact(4).zip(right).take(k) {
                let four = i32::from_le_bytes([four[0], four[1], four[2], four[3]]) ^ 0x8080_8080_u32 as i32;
                sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(four), right);
            }
            _mm512_storeu_si512(sums.as_mut_ptr().cast(), sum);
        }
    }
}

/// TDPBF16PS: products of even and of odd channels are summed up separately, then added to the sums; denormals are
/// zero.
///
/// # Safety
/// AVX-512 must be there.
#[target_feature(enable = "avx512f")]
unsafe fn bf16(sums: &mut Tile, a: &Tile, b: &Tile, m: usize, k: usize) {
    // Denormals are zero as operands and as results; exceptions are masked.
    const MXCSR: u32 = 0x9fc0;
    let mut before = 0u32;
    // SAFETY: rows of tiles are 64 bytes. The control word is put back before anything else computes with floats.
    unsafe {
        asm!("stmxcsr [{0}]", "ldmxcsr [{1}]", in(reg) &mut before, in(reg) &MXCSR, options(nostack));
        let high = _mm512_set1_epi32(-0x1_0000);
        let right: [[__m512; 2]; TILE_ROWS] = std::array::from_fn(|i| {
            let pairs = _mm512_loadu_si512(b[i].as_ptr().cast());
            [_mm512_slli_epi32::<16>(pairs), _mm512_and_si512(pairs, high)].map(|v| _mm512_castsi512_ps(v))
        });
        for (sums, a) in sums.iter_mut().zip(a).take(m) {
            let mut parts = [_mm512_setzero_ps(); 2];
            for (four, right) in a.chunks_exact(4).zip(right).take(k) {
                let pair = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
                let left = [pair << 16, pair & 0xffff_0000].map(|v| _mm512_castsi512_ps(_mm512_set1_epi32(v as i32)));
                parts[0] = _mm512_fmadd_ps(left[0], right[0], parts[0]);
                parts[1] = _mm512_fmadd_ps(left[1], right[1], parts[1]);
            }
            let sum = _mm512_loadu_ps(sums.as_ptr().cast());
            _mm512_storeu_ps(sums.as_mut_ptr().cast(), _mm512_add_ps(sum, _mm512_add_ps(parts[0], parts[1])));
        }
        asm!("ldmxcsr [{0}]", in(reg) &before, options(nostack, readonly));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodings as an assembler writes them, with registers whose numbers need the prefix's extra bits.
    #[test]
    fn instructions_are_decoded_as_an_assembler_writes_them() {
        let registers: [usize; 16] = std::array::from_fn(|i| 0x1000 * (i + 1));
        // SAFETY: the bytes are whole instructions.
        let decoded = |bytes: &[u8]| unsafe { decode(bytes.as_ptr(), &registers) };
        let plain = |op, len| Some(Instruction { op, len, address: 0, stride: 0 });
        assert_eq!(decoded(&[0xc4, 0xe2, 0x78, 0x49, 0xc0]), plain(Op::Release, 5));
        assert_eq!(decoded(&[0xc4, 0xe2, 0x7b, 0x49, 0xd8]), plain(Op::Zero(3), 5));
        assert_eq!(decoded(&[0xc4, 0xe2, 0x43, 0x5e, 0xd6]), plain(Op::Int8(2, 6, 7), 5));
        assert_eq!(decoded(&[0xc4, 0xe2, 0x4a, 0x5c, 0xc4]), plain(Op::Bf16(0, 4, 6), 5));
        // tileloadd tmm5, [r9 + r10*1 + 1024]
        let load = decoded(&[0xc4, 0x82, 0x7b, 0x4b, 0xac, 0x11, 0x00, 0x04, 0x00, 0x00]);
        assert_eq!(load, Some(Instruction { op: Op::Load(5), len: 10, address: 0xa000 + 1024, stride: 0xb000 }));
        // tilestored [rax + rcx*1 - 64], tmm0
        let store = decoded(&[0xc4, 0xe2, 0x7a, 0x4b, 0x44, 0x08, 0xc0, 0, 0, 0]);
        assert_eq!(store, Some(Instruction { op: Op::Store(0), len: 7, address: 0x1000 - 64, stride: 0x2000 }));
        // ldtilecfg [rdx]
        let config = decoded(&[0xc4, 0xe2, 0x78, 0x49, 0x02, 0, 0, 0, 0, 0]);
        assert_eq!(config, Some(Instruction { op: Op::LoadConfig, len: 5, address: 0x3000, stride: 0 }));
        assert_eq!(decoded(&[0x0f, 0x0b, 0, 0, 0]), None);
    }

    #[test]
    fn products_are_those_of_plain_loops() {
        if install().is_err() {
            println!("SKIPPED: no AVX-512 BF16");
            return;
        }
        let mut state = 1u32;
        let mut random = || -> Tile {
            std::array::from_fn(|_| {
                std::array::from_fn(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
            })
        };
        let (a, b) = (random(), random());
        let mut sums = random();
        let before = sums;
        // SAFETY: `install` found the vector extensions.
        unsafe { int8(&mut sums, &a, &b, 16, 16) };
        for m in 0..16 {
            for n in 0..16 {
                let at = |t: &Tile| i32::from_le_bytes(t[m][4 * n..4 * n + 4].try_into().unwrap());
                let dot: i32 =
                    (0..64).map(|k| i32::from(a[m][k] as i8) * i32::from(b[k / 4][4 * n + k % 4] as i8)).sum();
                assert_eq!(at(&sums), at(&before).wrapping_add(dot));
            }
        }
        // Whole numbers: sums are exact in any order.
        let whole = |t: &Tile| -> Tile {
            let number = |v: u8| (f32::from(v as i8).to_bits() >> 16) as u16;
            std::array::from_fn(|r| std::array::from_fn(|i| number(t[r][i / 2]).to_le_bytes()[i % 2]))
        };
        let (x, y) = (whole(&a), whole(&b));
        let mut sums = [[0; TILE_BYTES]; TILE_ROWS];
        // SAFETY: `install` found the vector extensions.
        unsafe { bf16(&mut sums, &x, &y, 16, 16) };
        for m in 0..16 {
            for n in 0..16 {
                let dot: i32 =
                    (0..32).map(|k| i32::from(a[m][k] as i8) * i32::from(b[k / 2][2 * n + k % 2] as i8)).sum();
                assert_eq!(f32::from_le_bytes(sums[m][4 * n..4 * n + 4].try_into().unwrap()), dot as f32);
            }
        }
    }
}
