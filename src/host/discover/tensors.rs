//! `struct ggml_tensor`: the host's functions build tensors and nodes with known values, and a field is where its
//! values are in all of them, and nowhere else.

use std::ffi::CStr;
use std::ops::Range;

use libc::c_void;

use super::super::abi::{TYPE_F32, TYPE_I32};
use super::super::layout::{Ops, TensorLayout};
use super::super::objects::RawBufferType;
use super::super::peek;
use super::super::symbols::Symbols;
use super::probe::{Raw, ensure, made, unknown};
use crate::format::WeightType;

/// `GGML_OBJECT_SIZE`: what `ggml_tensor_overhead` counts besides the tensor, in bytes.
const OBJECT_SIZE: usize = 32;
/// Sizes of a tensor, in bytes, that are believed.
const SIZES: Range<usize> = 200..2048;
/// Operation numbers that are believed.
const OP_NUMBERS: Range<i32> = 1..1024;
/// Where the view begins, in bytes: a number that is nowhere else in a tensor.
const OFFSET: usize = 0x1230;
/// Where the view of that view begins in it, in bytes.
const OFFSET_IN_VIEW: usize = 8;
/// What `ggml_scale` scales by: a float that is nowhere else in a tensor.
const FACTOR: f32 = 123.5;

/// Tensors in a context of the host, and nodes that read them. None has data.
///
/// TRIAL: the context is alive, and all these are tensors in it, of `size` bytes. [`TrialTensors::new`] demands it.
pub struct TrialTensors<'a> {
    symbols: &'a Symbols,
    context: *mut c_void,
    /// Bytes of a tensor.
    size: usize,
    weight: Raw,
    x: Raw,
    rows: Raw,
    choices: Raw,
    /// Two products of the same kind.
    products: [Raw; 2],
    experts: Raw,
    view: Raw,
    /// A view of that view.
    second_view: Raw,
    reshaped: Raw,
    permuted: Raw,
    transposed: Raw,
    scaled: Raw,
    /// The offset of the name, and its bytes.
    name: (usize, usize),
}

const WEIGHT_NE: [i64; 4] = [64, 37, 3, 1];
const WEIGHT_NB: [usize; 4] = [18, 36, 36 * 37, 36 * 37 * 3];
const X_NE: [i64; 4] = [64, 11, 3, 1];
const X_NB: [usize; 4] = [4, 256, 256 * 11, 256 * 11 * 3];

impl<'a> TrialTensors<'a> {
    /// Makes them.
    ///
    /// # Safety
    /// TRIAL: `context` must be a context of the host that is alive for as long as this value is used.
    pub unsafe fn new(symbols: &'a Symbols, context: *mut c_void) -> Result<Self, String> {
        // SAFETY: TRIAL; the functions are called as ggml documents them.
        unsafe {
            let size = (symbols.ggml_tensor_overhead)().wrapping_sub(OBJECT_SIZE);
            ensure(SIZES.contains(&size) && size.is_multiple_of(8), || format!("sizeof(ggml_tensor) is {size}"))?;
            let new = |ty, ne: [i64; 4]| {
                let tensor = (symbols.ggml_new_tensor_4d)(context, ty, ne[0], ne[1], ne[2], ne[3]);
                made("ggml_new_tensor_4d", tensor)
            };
            let (weight, x) = (new(WeightType::Q4_0 as i32, WEIGHT_NE)?, new(TYPE_F32, X_NE)?);
            let (choices, rows) = (new(TYPE_I32, [2, 11, 1, 1])?, new(TYPE_F32, [64, 2, 11, 1])?);
            let name = Self::name(symbols, new(TYPE_F32, [1, 1, 1, 1])?, size)?;
            let view = made("ggml_view_1d", (symbols.ggml_view_1d)(context, x, 5, OFFSET))?;
            let trial = Self {
                symbols,
                context,
                size,
                weight,
                x,
                rows,
                choices,
                products: [(); 2].map(|()| (symbols.ggml_mul_mat)(context, weight, x)),
                experts: (symbols.ggml_mul_mat_id)(context, weight, rows, choices),
                view,
                second_view: (symbols.ggml_view_1d)(context, view, 2, OFFSET_IN_VIEW),
                reshaped: (symbols.ggml_reshape_1d)(context, x, 64 * 11 * 3),
                permuted: (symbols.ggml_permute)(context, x, 0, 2, 1, 3),
                transposed: (symbols.ggml_transpose)(context, x),
                scaled: (symbols.ggml_scale)(context, x, FACTOR),
                name,
            };
            ensure(trial.all().iter().all(|t| !t.is_null()), || "a trial tensor is NULL".into())?;
            Ok(trial)
        }
    }

    /// The offset of a tensor's name, and the bytes that it has there.
    ///
    /// # Safety
    /// `tensor` must be a live tensor of the host, of `size` bytes.
    unsafe fn name(symbols: &Symbols, tensor: Raw, size: usize) -> Result<(usize, usize), String> {
        const LONG: &CStr = c"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
            0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        // SAFETY: a live tensor; the host cuts a name to the bytes that it has.
        unsafe {
            (symbols.ggml_set_name)(tensor, LONG.as_ptr());
            let name = (symbols.ggml_get_name)(tensor);
            let at = (name as usize).wrapping_sub(tensor as usize);
            ensure(at < size, || "ggml_tensor.name is not in the tensor".into())?;
            let bytes = peek::name(name).len() + 1;
            ensure(at + bytes <= size && bytes >= 32, || format!("ggml_tensor.name has {bytes} bytes"))?;
            Ok((at, bytes))
        }
    }

    /// One more tensor, of `n` floats.
    pub fn floats(&self, n: i64) -> Result<Raw, String> {
        // SAFETY: TRIAL.
        made("ggml_new_tensor_4d", unsafe { (self.symbols.ggml_new_tensor_4d)(self.context, TYPE_F32, n, 1, 1, 1) })
    }

    /// Bytes of a tensor.
    pub fn size(&self) -> usize {
        self.size
    }

    fn all(&self) -> [Raw; 13] {
        let [first, second] = self.products;
        [
            self.weight,
            self.x,
            self.rows,
            self.choices,
            first,
            second,
            self.experts,
            self.view,
            self.second_view,
            self.reshaped,
            self.permuted,
            self.transposed,
            self.scaled,
        ]
    }

    fn read<T: Copy>(&self, tensor: Raw, offset: usize) -> T {
        debug_assert!(offset + size_of::<T>() <= self.size);
        // SAFETY: TRIAL, and the offset is inside the tensor.
        unsafe { tensor.byte_add(offset).cast::<T>().read_unaligned() }
    }

    /// The only offset of a `T` for which `fits` holds; `what` is the field's name.
    fn find<T>(&self, what: &str, fits: impl Fn(usize) -> bool) -> Result<usize, String> {
        let step = align_of::<T>();
        // The name is no field of numbers.
        let is_name = |at: usize| at + size_of::<T>() > self.name.0 && at < self.name.0 + self.name.1;
        let all = (0..=self.size - size_of::<T>()).step_by(step);
        let places: Vec<usize> = all.filter(|at| !is_name(*at) && fits(*at)).collect();
        match places[..] {
            [place] => Ok(place),
            _ => Err(unknown(format!("ggml_tensor.{what} was found at {places:?}"))),
        }
    }

    /// The layout and the operation numbers. `data` and `buffer` are the offsets of those fields, which tensors without
    /// data do not show.
    pub fn layout(&self, data: usize, buffer: usize) -> Result<(TensorLayout, Ops), String> {
        let ty = self.find::<i32>("type", |at| {
            [(self.weight, WeightType::Q4_0 as i32), (self.x, TYPE_F32), (self.choices, TYPE_I32)]
                .into_iter()
                .all(|(t, ty)| self.read::<i32>(t, at) == ty)
        })?;
        let (ne, nb) = self.dimensions()?;
        let op_params = self.find::<i32>("op_params", |at| self.read::<f32>(self.scaled, at) == FACTOR)?;
        let op = self.op()?;
        let src = self.src()?;
        let (view_src, view_offs) = self.view(src)?;
        let fields = [ty, buffer, ne, nb, op, op_params, view_src, view_offs, data, self.name.0];
        let behind_src = fields.into_iter().filter(|at| *at > src).min().unwrap_or(self.size);
        let layout = TensorLayout {
            size: self.size,
            ty,
            buffer,
            ne,
            nb,
            op,
            op_params,
            src,
            sources: self.sources(src, behind_src)?,
            view_src,
            view_offs,
            data,
            name: self.name.0,
            name_bytes: self.name.1,
            extra: None,
        };
        Ok((layout, self.ops(op)?))
    }

    /// The offsets of `ne` and `nb`.
    fn dimensions(&self) -> Result<(usize, usize), String> {
        let ne = self.find::<[i64; 4]>("ne", |at| {
            self.read::<[i64; 4]>(self.weight, at) == WEIGHT_NE && self.read::<[i64; 4]>(self.x, at) == X_NE
        })?;
        let nb = self.find::<[usize; 4]>("nb", |at| {
            self.read::<[usize; 4]>(self.weight, at) == WEIGHT_NB && self.read::<[usize; 4]>(self.x, at) == X_NB
        })?;
        // One right behind the other: a fifth dimension would be between them.
        ensure(ne.abs_diff(nb) == 32, || format!("ggml_tensor.ne at {ne} has not four dimensions, nb is at {nb}"))?;
        Ok((ne, nb))
    }

    /// The offset of `op`: 0 in all tensors, the same number in both products, and other numbers in the other nodes.
    fn op(&self) -> Result<usize, String> {
        let [product, again] = self.products;
        self.find::<i32>("op", |at| {
            let op = |t| self.read::<i32>(t, at);
            let mut numbers =
                [product, self.experts, self.view, self.reshaped, self.permuted, self.transposed, self.scaled].map(op);
            numbers.sort_unstable();
            [self.weight, self.x, self.rows, self.choices].into_iter().all(|t| op(t) == 0)
                && op(product) == op(again)
                && numbers.iter().all(|n| OP_NUMBERS.contains(n))
                && numbers.windows(2).all(|two| two[0] != two[1])
        })
    }

    /// The offset of `src`.
    fn src(&self) -> Result<usize, String> {
        self.find::<[Raw; 3]>("src", |at| {
            let sources = |t| self.read::<[Raw; 3]>(t, at);
            sources(self.products[0]) == [self.weight, self.x, std::ptr::null_mut()]
                && sources(self.experts) == [self.weight, self.rows, self.choices]
        })
    }

    /// The offsets of `view_src` and `view_offs`. A view of a view must be one of the tensor that has the memory.
    fn view(&self, src: usize) -> Result<(usize, usize), String> {
        let view_src = self.find::<Raw>("view_src", |at| at != src && self.read::<Raw>(self.view, at) == self.x)?;
        let view_offs = self.find::<usize>("view_offs", |at| self.read::<usize>(self.view, at) == OFFSET)?;
        let of_second = (self.read::<Raw>(self.second_view, view_src), self.read::<usize>(self.second_view, view_offs));
        ensure(of_second == (self.x, OFFSET + OFFSET_IN_VIEW), || {
            "ggml_tensor.view_src of a view of a view is not the tensor that has the memory".into()
        })?;
        Ok((view_src, view_offs))
    }

    /// The operation numbers; `op` is the offset of that field.
    fn ops(&self, op: usize) -> Result<Ops, String> {
        let number = |t| self.read::<i32>(t, op);
        let ops = Ops {
            mul_mat: number(self.products[0]),
            mul_mat_id: number(self.experts),
            no_data: [self.weight, self.reshaped, self.view, self.permuted, self.transposed].map(number),
        };
        // SAFETY: the numbers are those of real nodes, so they are in the host's table.
        let name = |op: i32| peek::name(unsafe { (self.symbols.ggml_op_name)(op) });
        for (number, wanted) in [(ops.mul_mat, "MUL_MAT"), (ops.mul_mat_id, "MUL_MAT_ID"), (ops.no_data[2], "VIEW")] {
            ensure(name(number) == wanted, || {
                format!("operation {number} should be {wanted:?}, it is {:?}", name(number))
            })?;
        }
        Ok(ops)
    }

    /// How many sources a tensor may have (`GGML_MAX_SRC`). No operation has as many, so a node is written into one
    /// place after the other, from offset `src` to at most `behind`. The host finds it as it makes a graph, as long as
    /// the place is a source.
    fn sources(&self, src: usize, behind: usize) -> Result<usize, String> {
        let symbols = self.symbols;
        // The node goes into a tensor without an operation, which a second node reads. SAFETY: TRIAL; the place is
        // inside the tensor. If it is no source, the host does not read it while it makes a graph.
        let is_visited = |place: usize| unsafe {
            let tensor = self.floats(8)?;
            let node = made("ggml_scale", (symbols.ggml_scale)(self.context, tensor, FACTOR))?;
            tensor.byte_add(place).cast::<Raw>().write_unaligned(self.products[0]);
            let graph = made("ggml_new_graph_custom", (symbols.ggml_new_graph_custom)(self.context, 16, false))?;
            (symbols.ggml_build_forward_expand)(graph, node);
            Ok::<bool, String>((symbols.ggml_graph_n_nodes)(graph) == 2)
        };
        let mut sources = 2;
        for place in (src + 16..behind).step_by(8) {
            if !is_visited(place)? {
                break;
            }
            sources += 1;
        }
        ensure((3..102).contains(&sources), || format!("ggml_tensor.src has {sources} places"))?;
        Ok(sources)
    }
}

/// The offset of a tensor's `extra`. The host's buffer type for repacked weights shows it, which writes one into each
/// tensor that it gets. `None` if there is no such type, or if it repacks nothing on this machine.
///
/// # Safety
/// `context` must be a live context of the host, `layout` that of its tensors, and `repack` one of its buffer types or
/// null.
pub unsafe fn extra(
    symbols: &Symbols,
    layout: &TensorLayout,
    context: *mut c_void,
    repack: *mut RawBufferType,
) -> Option<usize> {
    /// A shape that hosts repack: whole blocks, and a number of rows that is a power of 2.
    const NE: [i64; 2] = [256, 64];
    if repack.is_null() {
        return None;
    }
    // SAFETY: the functions are called as ggml documents them, on a tensor of a live context; the buffer is freed.
    unsafe {
        let t = (symbols.ggml_new_tensor_4d)(context, WeightType::Q4_0 as i32, NE[0], NE[1], 1, 1);
        if t.is_null() {
            return None;
        }
        let words = || (0..layout.size).step_by(8).map(|at| t.byte_add(at).cast::<usize>().read_unaligned());
        let before: Vec<usize> = words().collect();
        let buffer = (symbols.ggml_backend_buft_alloc_buffer)(repack, (symbols.ggml_nbytes)(t));
        if buffer.is_null() {
            return None;
        }
        (symbols.ggml_backend_tensor_alloc)(buffer, t, (symbols.ggml_backend_buffer_get_base)(buffer));
        let changed = words().zip(before).enumerate().filter(|(_, (now, before))| now != before);
        let places: Vec<usize> =
            changed.map(|(i, _)| 8 * i).filter(|at| ![layout.buffer, layout.data].contains(at)).collect();
        (symbols.ggml_backend_buffer_free)(buffer);
        match places[..] {
            [place] => Some(place),
            _ => None,
        }
    }
}
