//! `struct ggml_tensor`: tensors and nodes with known values in them, and where these are.

use std::ffi::CStr;
use std::ops::Range;

use libc::c_void;

use super::super::Ops;
use super::super::abi::{TYPE_F32, TYPE_I32};
use super::super::layout::TensorLayout;
use super::super::symbols::Symbols;
use super::{Raw, ensure, unknown};
use crate::format::WeightType;

/// `GGML_OBJECT_SIZE`: what `ggml_tensor_overhead` counts besides the tensor.
const OBJECT_SIZE: usize = 32;
/// Sizes of a tensor that are believed.
const SIZES: Range<usize> = 200..2048;
/// Operation numbers that are believed.
const NUMBERS: Range<i32> = 1..1024;
/// A number that is nowhere else in a tensor.
const OFFSET: usize = 0x1230;
/// The same as a float.
const FACTOR: f32 = 123.5;

/// Tensors of a context of the host, and nodes that read them; no data anywhere.
pub struct Trial<'a> {
    symbols: &'a Symbols,
    context: *mut c_void,
    /// Bytes of each.
    size: usize,
    weight: Raw,
    x: Raw,
    rows: Raw,
    choices: Raw,
    /// Two products of the same kind.
    products: [Raw; 2],
    experts: Raw,
    view: Raw,
    reshaped: Raw,
    permuted: Raw,
    transposed: Raw,
    scaled: Raw,
    /// Where the name is, and its bytes.
    name: (usize, usize),
}

const WEIGHT_NE: [i64; 4] = [64, 37, 3, 1];
const WEIGHT_NB: [usize; 4] = [18, 36, 36 * 37, 36 * 37 * 3];
const X_NE: [i64; 4] = [64, 11, 3, 1];
const X_NB: [usize; 4] = [4, 256, 256 * 11, 256 * 11 * 3];

impl<'a> Trial<'a> {
    /// Makes them.
    ///
    /// # Safety
    /// `context` must be a live context of the host.
    pub unsafe fn new(symbols: &'a Symbols, context: *mut c_void) -> Result<Self, String> {
        // SAFETY: documented uses of ggml's API on live tensors of this context.
        unsafe {
            let size = (symbols.ggml_tensor_overhead)().wrapping_sub(OBJECT_SIZE);
            ensure(SIZES.contains(&size) && size.is_multiple_of(8), || format!("sizeof(ggml_tensor) is {size}"))?;
            let new = |ty, ne: [i64; 4]| (symbols.ggml_new_tensor_4d)(context, ty, ne[0], ne[1], ne[2], ne[3]);
            let (weight, x) = (new(WeightType::Q4_0 as i32, WEIGHT_NE), new(TYPE_F32, X_NE));
            let (choices, rows) = (new(TYPE_I32, [2, 11, 1, 1]), new(TYPE_F32, [64, 2, 11, 1]));
            let name = Self::name(symbols, new(TYPE_F32, [1, 1, 1, 1]), size)?;
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
                view: (symbols.ggml_view_1d)(context, x, 5, OFFSET),
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

    /// Where a tensor has its name, and how long that may be.
    ///
    /// # Safety
    /// As for [`Trial::new`].
    unsafe fn name(symbols: &Symbols, tensor: Raw, size: usize) -> Result<(usize, usize), String> {
        const LONG: &CStr = c"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
            0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        // SAFETY: promised by the caller; the host cuts a name to the room it has.
        unsafe {
            (symbols.ggml_set_name)(tensor, LONG.as_ptr());
            let name = (symbols.ggml_get_name)(tensor);
            let at = (name as usize).wrapping_sub(tensor as usize);
            ensure(at < size, || "ggml_tensor.name is not in the tensor".into())?;
            let bytes = CStr::from_ptr(name).count_bytes() + 1;
            ensure(at + bytes <= size && bytes >= 32, || format!("ggml_tensor.name has {bytes} bytes"))?;
            Ok((at, bytes))
        }
    }

    /// One more tensor, of `n` floats.
    pub fn floats(&self, n: i64) -> Raw {
        // SAFETY: the context is alive.
        unsafe { (self.symbols.ggml_new_tensor_4d)(self.context, TYPE_F32, n, 1, 1, 1) }
    }

    /// Bytes of a tensor.
    pub fn size(&self) -> usize {
        self.size
    }

    fn all(&self) -> [Raw; 12] {
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
            self.reshaped,
            self.permuted,
            self.transposed,
            self.scaled,
        ]
    }

    fn read<T: Copy>(&self, tensor: Raw, offset: usize) -> T {
        debug_assert!(offset + size_of::<T>() <= self.size);
        // SAFETY: a live tensor has as many bytes.
        unsafe { tensor.byte_add(offset).cast::<T>().read_unaligned() }
    }

    /// The only offset at which `fits` holds, for something of type `T`.
    fn find<T>(&self, what: &str, fits: impl Fn(usize) -> bool) -> Result<usize, String> {
        let step = align_of::<T>();
        // Letters of the name are no numbers.
        let is_name = |at: usize| at + size_of::<T>() > self.name.0 && at < self.name.0 + self.name.1;
        let all = (0..=self.size - size_of::<T>()).step_by(step);
        let places: Vec<usize> = all.filter(|at| !is_name(*at) && fits(*at)).collect();
        match places[..] {
            [place] => Ok(place),
            _ => Err(unknown(format!("ggml_tensor.{what} was found at {places:?}"))),
        }
    }

    /// The layout and the operation numbers; `data` and `buffer` are where those are.
    ///
    /// # Safety
    /// The context must be alive.
    pub unsafe fn layout(&self, data: usize, buffer: usize) -> Result<(TensorLayout, Ops), String> {
        let null: Raw = std::ptr::null_mut();
        let [product, again] = self.products;
        let ty = self.find::<i32>("type", |at| {
            [(self.weight, WeightType::Q4_0 as i32), (self.x, TYPE_F32), (self.choices, TYPE_I32)]
                .into_iter()
                .all(|(t, ty)| self.read::<i32>(t, at) == ty)
        })?;
        let ne = self.find::<[i64; 4]>("ne", |at| {
            self.read::<[i64; 4]>(self.weight, at) == WEIGHT_NE && self.read::<[i64; 4]>(self.x, at) == X_NE
        })?;
        let nb = self.find::<[usize; 4]>("nb", |at| {
            self.read::<[usize; 4]>(self.weight, at) == WEIGHT_NB && self.read::<[usize; 4]>(self.x, at) == X_NB
        })?;
        let op_params = self.find::<i32>("op_params", |at| self.read::<f32>(self.scaled, at) == FACTOR)?;
        let op = self.find::<i32>("op", |at| {
            let op = |t| self.read::<i32>(t, at);
            let mut numbers =
                [product, self.experts, self.view, self.reshaped, self.permuted, self.transposed, self.scaled].map(op);
            numbers.sort_unstable();
            [self.weight, self.x, self.rows, self.choices].into_iter().all(|t| op(t) == 0)
                && op(product) == op(again)
                && numbers.iter().all(|n| NUMBERS.contains(n))
                && numbers.windows(2).all(|two| two[0] != two[1])
        })?;
        let src = self.find::<[Raw; 3]>("src", |at| {
            let sources = |t| self.read::<[Raw; 3]>(t, at);
            sources(product) == [self.weight, self.x, null]
                && sources(self.experts) == [self.weight, self.rows, self.choices]
        })?;
        let view_src = self.find::<Raw>("view_src", |at| at != src && self.read::<Raw>(self.view, at) == self.x)?;
        let view_offs = self.find::<usize>("view_offs", |at| self.read::<usize>(self.view, at) == OFFSET)?;
        let known = [
            (ty, 4),
            (buffer, 8),
            (ne, 32),
            (nb, 32),
            (op, 4),
            (op_params, 4),
            (view_src, 8),
            (view_offs, 8),
            (data, 8),
            self.name,
        ];
        let behind = known.into_iter().map(|(at, _)| at).filter(|at| *at > src).min().unwrap_or(self.size);
        // SAFETY: passed on.
        let sources = unsafe { self.sources(src, behind)? };
        let layout = TensorLayout {
            size: self.size,
            ty,
            buffer,
            ne,
            nb,
            op,
            op_params,
            src,
            sources,
            view_src,
            view_offs,
            data,
            name: self.name.0,
            name_bytes: self.name.1,
            extra: self.extra(&known),
        };
        let number = |t| self.read::<i32>(t, op);
        let ops = Ops {
            mul_mat: number(product),
            mul_mat_id: number(self.experts),
            no_data: [self.weight, self.reshaped, self.view, self.permuted, self.transposed].map(number),
        };
        // SAFETY: the numbers are those of real nodes.
        let name = |op: i32| unsafe { CStr::from_ptr((self.symbols.ggml_op_name)(op)) };
        for (number, wanted) in [(ops.mul_mat, c"MUL_MAT"), (ops.mul_mat_id, c"MUL_MAT_ID"), (ops.no_data[2], c"VIEW")]
        {
            ensure(name(number) == wanted, || {
                format!("operation {number} should be {wanted:?}, it is {:?}", name(number))
            })?;
        }
        Ok((layout, ops))
    }

    /// How many sources a tensor may have: as many places, from `src` on, as the host looks for nodes in when it makes a
    /// graph.
    ///
    /// # Safety
    /// As for [`Trial::layout`].
    unsafe fn sources(&self, src: usize, behind: usize) -> Result<usize, String> {
        let symbols = self.symbols;
        // SAFETY: documented uses of ggml's API; a place that is no source is looked at by nobody while a graph is made.
        let is_visited = |place: usize| unsafe {
            let node = (symbols.ggml_mul_mat)(self.context, self.weight, self.x);
            node.byte_add(place).cast::<Raw>().write_unaligned(self.products[0]);
            let graph = (symbols.ggml_new_graph_custom)(self.context, 16, false);
            (symbols.ggml_build_forward_expand)(graph, node);
            (symbols.ggml_graph_n_nodes)(graph) == 2
        };
        let places = (src + 16..behind).step_by(8);
        let visited = places.clone().take_while(|place| is_visited(*place)).count();
        ensure(visited > 0 && visited < 100, || format!("ggml_tensor.src has {} places", visited + 2))?;
        Ok(2 + visited)
    }

    /// `extra` lies behind the name. No function of the host tells, so it is only believed where nothing else can be there:
    /// where nothing is behind it but padding, and it is null in every trial tensor.
    fn extra(&self, known: &[(usize, usize)]) -> Option<usize> {
        let at = (self.name.0 + self.name.1).next_multiple_of(8);
        let is_last = self.size >= at + 8 && self.size <= at + 24 && known.iter().all(|(known, _)| *known < at);
        (is_last && self.all().into_iter().all(|t| self.read::<usize>(t, at) == 0)).then_some(at)
    }
}
