//! What several files of `host::ik` do together. Runs of several contexts are tested as a host makes them: see
//! [`context`].

mod address_map;
mod context;
mod runs;
mod unpack;

use std::thread::ScopedJoinHandle;

use super::packed::PACKED;
use crate::cpu::memory::Region;
use crate::format::WeightType;
use crate::host::Tensor;
use crate::host::callbacks::range_of;
use crate::host::layout::TensorLayout;
use crate::panel::weights::Shape;

const K: usize = 64;
const N: usize = 32;

/// A buffer with one packed matrix.
struct PackedMatrix {
    region: Region,
    shape: Shape,
    plain: Vec<u8>,
}

impl PackedMatrix {
    /// `slices` matrices of N rows of K weights in Q4_0, whose scales are 1.
    fn load(slices: usize, seed: usize) -> Self {
        let shape = Shape::new(WeightType::Q4_0, K as i64, N as i64, slices as i64).unwrap();
        let byte = |i: usize| (i * 37 + i / 7 * 11 + seed * 53) as u8;
        let mut plain: Vec<u8> = (0..shape.plain_size()).map(byte).collect();
        plain.chunks_exact_mut(18).for_each(|block| block[..2].copy_from_slice(&0x3c00u16.to_le_bytes()));
        Self::of(shape, plain)
    }

    /// The matrix with these plain bytes.
    fn of(shape: Shape, plain: Vec<u8>) -> Self {
        let matrix = Self { region: Region::new(shape.packed_size()).unwrap(), shape, plain };
        PACKED.add_region(range_of(&matrix.region));
        matrix.pack();
        matrix
    }

    fn base(&self) -> *mut u8 {
        self.region.base().as_ptr()
    }

    fn pack(&self) {
        // SAFETY: the region has the packed size, and nobody computes with it now.
        unsafe { self.shape.write(self.base(), 0, &self.plain) };
        PACKED.add(self.base() as usize, self.shape.plain_size(), self.shape);
    }

    fn tensor(&self) -> Tensor {
        const LAYOUT: &TensorLayout = &TensorLayout::SAMPLE;
        let memory = Box::leak(Box::new([0u64; LAYOUT.size / 8]));
        // SAFETY: a tensor of this layout that lives for ever, of zeros: numbers, and pointers that may be null.
        unsafe {
            let tensor = Tensor::new(memory.as_mut_ptr().cast(), LAYOUT).unwrap();
            tensor.set_data(self.base().cast());
            tensor
        }
    }
}

impl Drop for PackedMatrix {
    fn drop(&mut self) {
        PACKED.remove_region(range_of(&self.region));
    }
}

/// Joins threads one by one, because ThreadSanitizer does not see that the end of a scope waits for them.
pub(super) fn join(threads: Vec<ScopedJoinHandle<'_, ()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
