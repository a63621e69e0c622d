//! Members of the interfaces of buffers and buffer types: which stub each of the host's functions calls.

use crate::diag::border::ffi_boundary;
use std::cell::{Cell, RefCell, UnsafeCell};

use libc::c_void;

use super::super::abi::USAGE_WEIGHTS;
use super::super::layout::{BufferLayout, BufferTypeLayout};
use super::super::objects::{Interface, MOST_MEMBERS, RawBuffer, RawBufferType};
use super::super::peek;
use super::super::symbols::Symbols;
use super::tensors::Trial;
use super::{Raw, ensure, unknown};

/// Whose stub it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Buffer,
    Type,
}

/// A call of a stub.
#[derive(Clone, Copy, Debug)]
struct Call {
    of: Of,
    member: usize,
    args: [usize; 3],
}

thread_local! {
    static CALLS: RefCell<Vec<Call>> = const { RefCell::new(Vec::new()) };
    /// What stubs of buffers and of types return while they are not known.
    static RETURNS: Cell<[usize; 2]> = const { Cell::new([0; 2]) };
    /// What those return that are known: alignments, sizes and so on that go together.
    static ANSWERS: RefCell<Vec<(Of, usize, usize)>> = const { RefCell::new(Vec::new()) };
}

/// What a buffer type of stubs aligns by.
const ALIGNMENT: usize = 64;

/// The memory of the buffer of stubs. A page each: hosts may want more than they ask for. Hosts write there, if anybody.
#[repr(C, align(4096))]
struct Memory(UnsafeCell<[u64; 1024]>);

// SAFETY: only hosts use it.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new([0; 1024]));

fn memory() -> usize {
    MEMORY.0.get() as usize
}

extern "C" fn stub<const TYPE: bool, const MEMBER: usize>(a: usize, b: usize, c: usize) -> usize {
    ffi_boundary!("a stub", else 0, {
        let of = if TYPE { Of::Type } else { Of::Buffer };
        CALLS.with_borrow_mut(|calls| calls.push(Call { of, member: MEMBER, args: [a, b, c] }));
        let known = ANSWERS.with_borrow(|all| all.iter().find(|a| (a.0, a.1) == (of, MEMBER)).map(|a| a.2));
        known.unwrap_or(RETURNS.get()[of as usize])
    })
}

macro_rules! stubs {
    ($type:literal: $($member:literal)*) => { Interface([$(stub::<$type, $member> as *const c_void),*]) };
    ($type:literal) => {
        stubs!($type: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
    };
}

/// A buffer type of stubs, and behind them words that are not like each other.
#[repr(C)]
struct TypeOfStubs {
    interface: Interface,
    behind: [usize; 8],
}

/// Which members are known by now.
#[derive(Default)]
struct Known {
    buffer: Vec<usize>,
    of_type: Vec<usize>,
}

impl Known {
    fn of(&mut self, of: Of) -> &mut Vec<usize> {
        match of {
            Of::Buffer => &mut self.buffer,
            Of::Type => &mut self.of_type,
        }
    }

    /// The member that `call` reaches besides those that are known; none if it reaches those only. Its first arguments
    /// must be `args`.
    fn member(
        &mut self,
        (of, what): (Of, &str),
        returns: [usize; 2],
        args: &[usize],
        call: impl FnOnce(),
    ) -> Result<Option<usize>, String> {
        CALLS.take();
        RETURNS.set(returns);
        call();
        let calls = CALLS.take();
        let mut new = None;
        for call in calls {
            if self.of(call.of).contains(&call.member) {
                continue;
            }
            let other = call.of != of || new.is_some_and(|member| member != call.member);
            ensure(!other, || format!("{what} also calls member {} of a {:?}", call.member, call.of))?;
            ensure(call.args[..args.len()] == *args, || {
                format!("{what} calls member {} with other arguments than are known", call.member)
            })?;
            new = Some(call.member);
        }
        self.of(of).extend(new);
        ANSWERS.with_borrow_mut(|all| all.extend(new.map(|member| (of, member, returns[of as usize]))));
        Ok(new)
    }

    /// The same for one that there must be.
    fn needed(
        &mut self,
        of: (Of, &str),
        returns: [usize; 2],
        args: &[usize],
        call: impl FnOnce(),
    ) -> Result<usize, String> {
        let what = of.1.to_string();
        self.member(of, returns, args, call)?.ok_or_else(|| unknown(format!("{what} calls no member of its own")))
    }
}

/// Finds the members, and where a tensor has its data and its buffer, which come back last.
///
/// # Safety
/// The host's functions; the trial's context must be alive.
pub unsafe fn find(
    symbols: &Symbols,
    trial: &Trial<'_>,
) -> Result<(BufferLayout, BufferTypeLayout, [usize; 2]), String> {
    const MARKER: usize = 0x1110;
    const SIZE: usize = size_of::<Memory>();
    let mut known = Known::default();
    ANSWERS.take();
    let mut of_stubs = TypeOfStubs { interface: stubs!(true), behind: std::array::from_fn(|i| 0x2220 + 16 * i) };
    let buft = (&raw mut of_stubs).cast::<RawBufferType>();
    // SAFETY: the host calls stubs only; tensors stay inside the stubs' memory; the buffer is freed on every path.
    unsafe {
        let words = buft.cast::<usize>();
        let words: Vec<usize> = (0..MOST_MEMBERS + of_stubs.behind.len()).map(|i| *words.add(i)).collect();
        let of_type = type_members(symbols, trial, buft, &words, &mut known)?;
        let buffer = (symbols.ggml_backend_buffer_init)(buft, stubs!(false), MARKER as *mut c_void, SIZE);
        ensure(!buffer.is_null(), || "ggml_backend_buffer_init gave NULL".into())?;
        let found = buffer_members(symbols, trial, buffer, [buft as usize, MARKER, SIZE], &mut known);
        let at = buffer as usize;
        let free = known.needed((Of::Buffer, "ggml_backend_buffer_free"), [0; 2], &[at], || {
            (symbols.ggml_backend_buffer_free)(buffer)
        });
        let (buffer, places) = found?;
        Ok((BufferLayout { free_buffer: free?, ..buffer }, of_type, places))
    }
}

/// # Safety
/// As for [`find`]; `buft` is made of stubs, `words` what it consists of.
unsafe fn type_members(
    symbols: &Symbols,
    trial: &Trial<'_>,
    buft: *mut RawBufferType,
    words: &[usize],
    known: &mut Known,
) -> Result<BufferTypeLayout, String> {
    const BYTES: usize = 48;
    let (at, t) = (buft as usize, trial.floats(1024)?);
    let mut needed =
        |what, returns, args: &[usize], call: &dyn Fn()| known.needed((Of::Type, what), [0, returns], args, call);
    // SAFETY: promised by the caller; a name is a C string.
    unsafe {
        let name = c"trial".as_ptr() as usize;
        let get_name = needed("ggml_backend_buft_name", name, &[at], &|| _ = (symbols.ggml_backend_buft_name)(buft))?;
        let alloc_buffer = needed("ggml_backend_buft_alloc_buffer", 0, &[at, BYTES], &|| {
            (symbols.ggml_backend_buft_alloc_buffer)(buft, BYTES);
        })?;
        let get_alignment = needed("ggml_backend_buft_get_alignment", ALIGNMENT, &[at], &|| {
            (symbols.ggml_backend_buft_get_alignment)(buft);
        })?;
        // As many bytes as it has: more or fewer would end the process.
        let bytes = (symbols.ggml_nbytes)(t);
        let get_alloc_size = needed("ggml_backend_buft_get_alloc_size", bytes, &[at, t as usize], &|| {
            (symbols.ggml_backend_buft_get_alloc_size)(buft, t);
        })?;
        let is_host = needed("ggml_backend_buft_is_host", 0, &[at], &|| {
            (symbols.ggml_backend_buft_is_host)(buft);
        })?;
        let get_max_size = match symbols.ggml_backend_buft_get_max_size {
            None => None,
            Some(max_size) => {
                let what = (Of::Type, "ggml_backend_buft_get_max_size");
                known.member(what, [0, 1 << 20], &[at], || _ = max_size(buft))?
            }
        };
        let device = match symbols.ggml_backend_buft_get_device {
            None => None,
            Some(get_device) => {
                let device = get_device(buft) as usize;
                let place = words.iter().position(|word| *word == device).filter(|_| CALLS.take().is_empty());
                Some(place.ok_or_else(|| unknown("ggml_backend_buffer_type.device"))?)
            }
        };
        let last = [get_name, alloc_buffer, get_alignment, get_alloc_size, is_host].into_iter().max();
        ensure(device.is_none_or(|device| Some(device) > last), || "ggml_backend_buffer_type.device".into())?;
        Ok(BufferTypeLayout { get_name, alloc_buffer, get_alignment, get_max_size, get_alloc_size, is_host, device })
    }
}

/// All but the member that frees; and where a tensor has its data and its buffer.
///
/// # Safety
/// As for [`find`]; `buffer` has an interface of stubs, and this type, context and size.
unsafe fn buffer_members(
    symbols: &Symbols,
    trial: &Trial<'_>,
    buffer: *mut RawBuffer,
    [buft, context, size]: [usize; 3],
    known: &mut Known,
) -> Result<(BufferLayout, [usize; 2]), String> {
    let at = buffer as usize;
    let find = |what: &str, from: usize, to: usize, value: usize| {
        let place = (from..to).find(|i| peek::word(at + 8 * i) == Some(value));
        place.ok_or_else(|| unknown(format!("ggml_backend_buffer.{what}")))
    };
    let members = find("buft", 0, MOST_MEMBERS + 1, buft)?;
    let context = find("context", members + 1, members + 4, context)?;
    let size = find("size", members + 1, members + 4, size)?;
    // SAFETY: the host calls stubs only.
    unsafe {
        let get_base = known.needed((Of::Buffer, "ggml_backend_buffer_get_base"), [memory(), 0], &[at], || {
            _ = (symbols.ggml_backend_buffer_get_base)(buffer)
        })?;
        let (t, data) = (trial.floats(8)?, memory() + size_of::<Memory>() / 2);
        let bytes = (symbols.ggml_nbytes)(t);
        let read = |t: Raw| {
            let words = t.cast::<usize>();
            (0..trial.size() / 8).map(|i| words.add(i).read_unaligned()).collect::<Vec<usize>>()
        };
        let before = read(t);
        let init_tensor =
            known.needed((Of::Buffer, "ggml_backend_tensor_alloc"), [0, bytes], &[at, t as usize], || {
                (symbols.ggml_backend_tensor_alloc)(buffer, t, data as *mut c_void);
            })?;
        let after = read(t);
        let set_to = |what: &str, value: usize| {
            let places: Vec<usize> = (0..after.len()).filter(|i| after[*i] == value && before[*i] == 0).collect();
            match places[..] {
                [place] => Ok(8 * place),
                _ => Err(unknown(format!("ggml_tensor.{what} was found at {places:?}"))),
            }
        };
        let places = [set_to("data", data)?, set_to("buffer", at)?];

        let (tensor, mut scratch) = (t as usize, [0u64; 4]);
        let p = scratch.as_mut_ptr().cast::<c_void>();
        let rows = [at, tensor, p as usize];
        let set_tensor = known.needed((Of::Buffer, "ggml_backend_tensor_set"), [0; 2], &rows, || {
            (symbols.ggml_backend_tensor_set)(t, p, 0, 4)
        })?;
        let get_tensor = known.needed((Of::Buffer, "ggml_backend_tensor_get"), [0; 2], &rows, || {
            (symbols.ggml_backend_tensor_get)(t, p, 0, 4)
        })?;
        let clear = known.needed((Of::Buffer, "ggml_backend_buffer_clear"), [0; 2], &[at], || {
            (symbols.ggml_backend_buffer_clear)(buffer, 0)
        })?;
        let mut maybe = |what, args: &[usize], call: Option<&dyn Fn()>| match call {
            Some(call) => known.member((Of::Buffer, what), [0; 2], args, call),
            None => Ok(None),
        };
        let memset = symbols.ggml_backend_tensor_memset.map(|f| move || f(t, 0, 0, 4));
        let set_2d = symbols.ggml_backend_tensor_set_2d.map(|f| move || f(t, p, 0, 4, 2, 8, 8));
        let get_2d = symbols.ggml_backend_tensor_get_2d.map(|f| move || f(t, p, 0, 4, 2, 8, 8));
        let other = trial.floats(8)?;
        let copy = symbols.ggml_backend_buffer_copy_tensor.map(|f| move || _ = f(other, t));
        let reset = symbols.ggml_backend_buffer_reset.map(|f| move || f(buffer));
        fn some(call: &Option<impl Fn()>) -> Option<&dyn Fn()> {
            call.as_ref().map(|call| call as &dyn Fn())
        }
        let memset_tensor = maybe("ggml_backend_tensor_memset", &rows[..2], some(&memset))?;
        let set_tensor_2d = maybe("ggml_backend_tensor_set_2d", &rows, some(&set_2d))?;
        let get_tensor_2d = maybe("ggml_backend_tensor_get_2d", &rows, some(&get_2d))?;
        let cpy_tensor = maybe("ggml_backend_buffer_copy_tensor", &[at, other as usize, tensor], some(&copy))?;
        let reset = maybe("ggml_backend_buffer_reset", &[at], some(&reset))?;
        let get_name = match symbols.ggml_backend_buffer_name {
            None => None,
            Some(buffer_name) => {
                let name = c"trial".as_ptr() as usize;
                known.member((Of::Buffer, "ggml_backend_buffer_name"), [name; 2], &[at], || _ = buffer_name(buffer))?
            }
        };
        let usage = symbols.ggml_backend_buffer_set_usage.and_then(|set_usage| {
            let place = size.max(context) + 1;
            let usage = || peek::word(at + 8 * place).map(|word| word as i32);
            let before = usage();
            set_usage(buffer, USAGE_WEIGHTS);
            (before == Some(0) && usage() == Some(USAGE_WEIGHTS)).then_some(place)
        });
        let layout = BufferLayout {
            members,
            get_name,
            // Found by whoever frees the buffer.
            free_buffer: 0,
            get_base,
            init_tensor,
            memset_tensor,
            set_tensor,
            get_tensor,
            set_tensor_2d,
            get_tensor_2d,
            cpy_tensor,
            clear,
            reset,
            buft: members,
            context,
            size,
            usage,
        };
        Ok((layout, places))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_end_at_the_border() {
        use crate::diag::border::trip::goes_on;

        goes_on("a stub", || stub::<true, 3>(0, 0, 0) == 0);
    }
}
