//! Types with codebooks: ggml's decoders, from the first host that has them.

use std::ffi::{CStr, c_void};
use std::sync::Mutex;

use ggml_amx::format::{Dequantise, WeightType};

static DECODERS: Mutex<Vec<(WeightType, Dequantise)>> = Mutex::new(Vec::new());

/// Reads the codebooks that are still missing from a host's decoders.
///
/// # Safety
/// What `find` finds must be ggml's functions of these names.
pub unsafe fn read(find: impl Fn(&CStr) -> Option<*mut c_void>) {
    for ty in WeightType::ALL.iter().filter(|ty| !ty.is_readable()) {
        let codebook = ty.info().codebook.expect("a type that is not readable has one");
        let Some(address) = find(codebook.decoder) else { continue };
        // SAFETY: `find` finds ggml's functions of these names (this function's contract).
        unsafe {
            let decode = std::mem::transmute::<*mut c_void, Dequantise>(address);
            if (codebook.read)(decode) {
                DECODERS.lock().expect("no panic").push((*ty, decode));
            }
        }
    }
}

/// The weights of a plain block, by the host's own decoder.
pub fn decode(ty: WeightType, block: &[u8], out: &mut [f32]) {
    assert_eq!((block.len(), out.len()), (ty.info().bytes, ty.info().block));
    let decoders = DECODERS.lock().expect("no panic");
    let (_, decode) = decoders.iter().find(|d| d.0 == ty).expect("refused when types are chosen");
    // Blocks of 16-bit numbers must be aligned.
    let aligned: Vec<u16> = block.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    // SAFETY: one block, its weights.
    unsafe { decode(aligned.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64) };
}
