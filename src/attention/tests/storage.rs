//! Rows of numbers in the storage of an element, there and back.

use half::{bf16, f16};

use super::*;

/// A decoder of signed bytes, in units of 1/30.
///
/// # Safety
/// `x` has `count` bytes, `y` room for as many floats.
unsafe extern "C" fn thirtieths(x: *const libc::c_void, y: *mut f32, count: i64) {
    for i in 0..count as usize {
        // SAFETY: `i` is below `count`.
        unsafe { *y.add(i) = f32::from(*x.cast::<i8>().add(i)) / 30.0 };
    }
}

/// A decoder of blocks as in Q8_0: a half float, then 32 signed bytes.
///
/// # Safety
/// `x` has the blocks of `count` numbers, `y` room for as many floats.
unsafe extern "C" fn eight_bits(x: *const libc::c_void, y: *mut f32, count: i64) {
    for i in 0..count as usize {
        // SAFETY: `i` is below `count`.
        unsafe {
            let block = x.cast::<u8>().add(i / 32 * 34);
            let scale = f16::from_le_bytes([*block, *block.add(1)]).to_f32();
            *y.add(i) = f32::from(*block.add(2 + i % 32).cast::<i8>()) * scale;
        }
    }
}

/// One byte per number.
pub const THIRTIETHS: Element = Element::Decoded(thirtieths);
/// Blocks as in Q8_0.
pub const EIGHT_BITS: Element = Element::Decoded(eight_bits);

pub fn is_eight_bits(element: Element) -> bool {
    matches!(element, Element::Decoded(f) if std::ptr::fn_addr_eq(f, eight_bits as crate::panel::decoded::ToFloat))
}

/// Whether a row of bytes 0xff is NaN.
pub fn can_be_nan(element: Element) -> bool {
    !matches!(element, Element::Decoded(_)) || is_eight_bits(element)
}

/// Bytes of a row of `width` numbers.
pub fn row_bytes(element: Element, width: usize) -> usize {
    match element {
        Element::F32 => 4 * width,
        Element::F16 | Element::Bf16 => 2 * width,
        Element::Decoded(_) if is_eight_bits(element) => width.div_ceil(32) * 34,
        Element::Decoded(_) => width,
    }
}

/// A row in the storage of an element.
pub fn stored(row: &[f32], element: Element) -> Vec<u8> {
    match element {
        Element::F32 => row.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Element::F16 => row.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Element::Bf16 => row.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        Element::Decoded(_) if is_eight_bits(element) => row
            .chunks(32)
            .flat_map(|block| {
                let scale = f16::from_f32(block.iter().fold(0f32, |a, v| a.max(v.abs())) / 127.0);
                let quant = |v: f32| if scale == f16::ZERO { 0 } else { (v / scale.to_f32()).round() as i8 as u8 };
                let mut bytes = scale.to_le_bytes().to_vec();
                bytes.extend((0..32).map(|i| block.get(i).map_or(0, |v| quant(*v))));
                bytes
            })
            .collect(),
        Element::Decoded(_) => row.iter().map(|v| (v * 30.0).clamp(-127.0, 127.0) as i8 as u8).collect(),
    }
}

/// The numbers that stored rows stand for.
pub fn read(bytes: &[u8], element: Element, width: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for row in bytes.chunks_exact(row_bytes(element, width)) {
        match element {
            Element::F32 => out.extend(row.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()))),
            Element::F16 => out.extend(row.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())),
            Element::Bf16 => out.extend(row.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())),
            Element::Decoded(to_float) => {
                let mut floats = vec![0.0; width];
                // SAFETY: a whole row, and room for its numbers.
                unsafe { to_float(row.as_ptr().cast(), floats.as_mut_ptr(), width as i64) };
                out.extend(floats);
            }
        }
    }
    out
}
