//! The members of buffers and buffer types: which stub ([`super::stubs`]) each of the host's functions calls. Tensors
//! that are put into the buffer of stubs show on the way where a tensor has its data and its buffer.

use libc::c_void;

use super::super::abi::USAGE_WEIGHTS;
use super::super::layout::{BufferLayout, BufferTypeLayout};
use super::super::objects::{MOST_MEMBERS, RawBuffer, RawBufferType};
use super::super::peek;
use super::super::symbols::Symbols;
use super::probe::{Raw, ensure, unknown};
use super::stubs::{self, BUFFER_BYTES, KnownMembers, Owner, StubBufferType, buffer_memory};
use super::tensors::TrialTensors;

/// What a buffer type of stubs aligns by.
const ALIGNMENT: usize = 64;
/// The context of the buffer of stubs.
const CONTEXT: usize = 0x1110;

/// What was found.
pub struct Members {
    /// `struct ggml_backend_buffer`.
    pub buffer: BufferLayout,
    /// `struct ggml_backend_buffer_type`.
    pub buffer_type: BufferTypeLayout,
    /// The offset of `ggml_tensor.data`.
    pub tensor_data: usize,
    /// The offset of `ggml_tensor.buffer`.
    pub tensor_buffer: usize,
}

/// Finds the members, and where a tensor has its data and its buffer.
///
/// # Safety
/// The functions must be the host's, and the trial's context alive.
pub unsafe fn find(symbols: &Symbols, trial: &TrialTensors<'_>) -> Result<Members, String> {
    let mut known = KnownMembers::none();
    let mut buft = StubBufferType::new();
    let words = buft.words();
    let buft = (&raw mut buft).cast::<RawBufferType>();
    // SAFETY: the host calls stubs only; tensors stay inside the stubs' memory; the buffer is freed on every path.
    unsafe {
        let buffer_type = type_members(symbols, trial, buft, &words, &mut known)?;
        let interface = stubs::buffer_interface();
        let buffer = (symbols.ggml_backend_buffer_init)(buft, interface, CONTEXT as *mut c_void, BUFFER_BYTES);
        ensure(!buffer.is_null(), || "ggml_backend_buffer_init gave NULL".into())?;
        let found = BufferProbe { symbols, trial, buffer, known: &mut known }.run(buft);
        let free = known.needed((Owner::Buffer, "ggml_backend_buffer_free"), [0; 2], &[buffer as usize], || {
            (symbols.ggml_backend_buffer_free)(buffer)
        });
        let (buffer, tensor_data, tensor_buffer) = found?;
        Ok(Members { buffer: BufferLayout { free_buffer: free?, ..buffer }, buffer_type, tensor_data, tensor_buffer })
    }
}

/// The members of a buffer type.
///
/// # Safety
/// As for [`find`]; `buft` is a buffer type of stubs, and `words` what it consists of.
unsafe fn type_members(
    symbols: &Symbols,
    trial: &TrialTensors<'_>,
    buft: *mut RawBufferType,
    words: &[usize],
    known: &mut KnownMembers,
) -> Result<BufferTypeLayout, String> {
    const BYTES: usize = 48;
    let (at, t) = (buft as usize, trial.floats(1024)?);
    let mut needed =
        |what, returns, args: &[usize], call: &dyn Fn()| known.needed((Owner::Type, what), [0, returns], args, call);
    // SAFETY: the host calls stubs only; where it wants a name it gets a C string.
    unsafe {
        let name = c"trial".as_ptr() as usize;
        let get_name = needed("ggml_backend_buft_name", name, &[at], &|| _ = (symbols.ggml_backend_buft_name)(buft))?;
        let alloc_buffer = needed("ggml_backend_buft_alloc_buffer", 0, &[at, BYTES], &|| {
            (symbols.ggml_backend_buft_alloc_buffer)(buft, BYTES);
        })?;
        let get_alignment = needed("ggml_backend_buft_get_alignment", ALIGNMENT, &[at], &|| {
            (symbols.ggml_backend_buft_get_alignment)(buft);
        })?;
        // The tensor's own size: some versions end the process if it is more or less.
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
                let what = (Owner::Type, "ggml_backend_buft_get_max_size");
                known.member(what, [0, 1 << 20], &[at], || _ = max_size(buft))?
            }
        };
        let device = match symbols.ggml_backend_buft_get_device {
            None => None,
            Some(get_device) => {
                let device = get_device(buft) as usize;
                let place = words.iter().position(|word| *word == device).filter(|_| known.is_quiet());
                Some(place.ok_or_else(|| unknown("ggml_backend_buffer_type.device"))?)
            }
        };
        let last = [get_name, alloc_buffer, get_alignment, get_alloc_size, is_host].into_iter().max();
        ensure(device.is_none_or(|device| Some(device) > last), || "ggml_backend_buffer_type.device".into())?;
        Ok(BufferTypeLayout { get_name, alloc_buffer, get_alignment, get_max_size, get_alloc_size, is_host, device })
    }
}

/// What is asked of the buffer of stubs.
///
/// PROBE: the functions are the host's, the trial's context is alive, and `buffer` is a buffer of stubs.
struct BufferProbe<'a> {
    symbols: &'a Symbols,
    trial: &'a TrialTensors<'a>,
    buffer: *mut RawBuffer,
    known: &'a mut KnownMembers,
}

/// Members that a host may lack.
struct OptionalMembers {
    get_name: Option<usize>,
    memset_tensor: Option<usize>,
    set_tensor_2d: Option<usize>,
    get_tensor_2d: Option<usize>,
    cpy_tensor: Option<usize>,
    reset: Option<usize>,
}

impl BufferProbe<'_> {
    /// The layout of a buffer without the member that frees it, and the offsets of a tensor's data and buffer.
    ///
    /// # Safety
    /// PROBE; `buft` is the buffer's type.
    unsafe fn run(mut self, buft: *mut RawBufferType) -> Result<(BufferLayout, usize, usize), String> {
        let members = self.field("buft", 0..MOST_MEMBERS + 1, buft as usize)?;
        let context = self.field("context", members + 1..members + 4, CONTEXT)?;
        let size = self.field("size", members + 1..members + 4, BUFFER_BYTES)?;
        let (symbols, buffer, tensor) = (self.symbols, self.buffer, self.trial.floats(8)?);
        // SAFETY: PROBE; the host calls stubs only.
        unsafe {
            let get_base = self.needed("ggml_backend_buffer_get_base", [buffer_memory(), 0], &[], || {
                _ = (symbols.ggml_backend_buffer_get_base)(buffer)
            })?;
            let (init_tensor, tensor_data, tensor_buffer) = self.place_tensor(tensor)?;
            let mut scratch = [0u64; 4];
            let p = scratch.as_mut_ptr().cast::<c_void>();
            let range = [tensor as usize, p as usize];
            let set_tensor = self.needed("ggml_backend_tensor_set", [0; 2], &range, || {
                (symbols.ggml_backend_tensor_set)(tensor, p, 0, 4)
            })?;
            let get_tensor = self.needed("ggml_backend_tensor_get", [0; 2], &range, || {
                (symbols.ggml_backend_tensor_get)(tensor, p, 0, 4)
            })?;
            let clear = self
                .needed("ggml_backend_buffer_clear", [0; 2], &[], || (symbols.ggml_backend_buffer_clear)(buffer, 0))?;
            let OptionalMembers { get_name, memset_tensor, set_tensor_2d, get_tensor_2d, cpy_tensor, reset } =
                self.optional(tensor, p)?;
            let layout = BufferLayout {
                members,
                get_name,
                // Found last, by freeing the buffer: see `find`.
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
                usage: self.usage(size.max(context) + 1),
            };
            Ok((layout, tensor_data, tensor_buffer))
        }
    }

    /// The word of the buffer, among `words`, that has this value.
    fn field(&self, what: &str, mut words: std::ops::Range<usize>, value: usize) -> Result<usize, String> {
        let at = self.buffer as usize;
        let word = words.find(|i| peek::word(at + 8 * i) == Some(value));
        word.ok_or_else(|| unknown(format!("ggml_backend_buffer.{what}")))
    }

    /// The member that a function of the host's calls, with the buffer and then `args`.
    fn member(
        &mut self,
        what: &str,
        returns: [usize; 2],
        args: &[usize],
        call: impl FnOnce(),
    ) -> Result<Option<usize>, String> {
        self.known.member((Owner::Buffer, what), returns, &[&[self.buffer as usize], args].concat(), call)
    }

    /// The same for a member that must be there.
    fn needed(
        &mut self,
        what: &str,
        returns: [usize; 2],
        args: &[usize],
        call: impl FnOnce(),
    ) -> Result<usize, String> {
        self.known.needed((Owner::Buffer, what), returns, &[&[self.buffer as usize], args].concat(), call)
    }

    /// Puts a tensor into the buffer: `init_tensor`, and the offsets of the tensor's data and buffer.
    ///
    /// # Safety
    /// PROBE; the tensor is the trial's.
    unsafe fn place_tensor(&mut self, tensor: Raw) -> Result<(usize, usize, usize), String> {
        let (symbols, buffer, words) = (self.symbols, self.buffer, self.trial.size() / 8);
        let data = buffer_memory() + BUFFER_BYTES / 2;
        // SAFETY: PROBE; a tensor has as many words.
        unsafe {
            let read = || (0..words).map(|i| tensor.cast::<usize>().add(i).read_unaligned()).collect::<Vec<usize>>();
            let (bytes, before) = ((symbols.ggml_nbytes)(tensor), read());
            let init_tensor = self.needed("ggml_backend_tensor_alloc", [0, bytes], &[tensor as usize], || {
                (symbols.ggml_backend_tensor_alloc)(buffer, tensor, data as *mut c_void);
            })?;
            let after = read();
            let set_to = |what: &str, value: usize| {
                let places: Vec<usize> = (0..words).filter(|i| after[*i] == value && before[*i] == 0).collect();
                match places[..] {
                    [place] => Ok(8 * place),
                    _ => Err(unknown(format!("ggml_tensor.{what} was found at {places:?}"))),
                }
            };
            Ok((init_tensor, set_to("data", data)?, set_to("buffer", buffer as usize)?))
        }
    }

    /// The members that a host may lack.
    ///
    /// # Safety
    /// PROBE; the tensor is the trial's and lies in the buffer, `p` has 32 bytes.
    unsafe fn optional(&mut self, tensor: Raw, p: *mut c_void) -> Result<OptionalMembers, String> {
        let (symbols, buffer, other) = (self.symbols, self.buffer, self.trial.floats(8)?);
        let name = c"trial".as_ptr() as usize;
        let range = [tensor as usize, p as usize];
        let mut maybe = |what: &str, returns: usize, args: &[usize], call: Option<&dyn Fn()>| match call {
            Some(call) => self.member(what, [returns; 2], args, call),
            None => Ok(None),
        };
        fn some(call: &Option<impl Fn()>) -> Option<&dyn Fn()> {
            call.as_ref().map(|call| call as &dyn Fn())
        }
        // SAFETY: PROBE; the host calls stubs only.
        unsafe {
            let memset = symbols.ggml_backend_tensor_memset.map(|f| move || f(tensor, 0, 0, 4));
            let set_2d = symbols.ggml_backend_tensor_set_2d.map(|f| move || f(tensor, p, 0, 4, 2, 8, 8));
            let get_2d = symbols.ggml_backend_tensor_get_2d.map(|f| move || f(tensor, p, 0, 4, 2, 8, 8));
            let copy = symbols.ggml_backend_buffer_copy_tensor.map(|f| move || _ = f(other, tensor));
            let reset = symbols.ggml_backend_buffer_reset.map(|f| move || f(buffer));
            let buffer_name = symbols.ggml_backend_buffer_name.map(|f| move || _ = f(buffer));
            let copied = [other as usize, tensor as usize];
            Ok(OptionalMembers {
                memset_tensor: maybe("ggml_backend_tensor_memset", 0, &range[..1], some(&memset))?,
                set_tensor_2d: maybe("ggml_backend_tensor_set_2d", 0, &range, some(&set_2d))?,
                get_tensor_2d: maybe("ggml_backend_tensor_get_2d", 0, &range, some(&get_2d))?,
                cpy_tensor: maybe("ggml_backend_buffer_copy_tensor", 0, &copied, some(&copy))?,
                reset: maybe("ggml_backend_buffer_reset", 0, &[], some(&reset))?,
                get_name: maybe("ggml_backend_buffer_name", name, &[], some(&buffer_name))?,
            })
        }
    }

    /// The word `word` if it starts with the buffer's usage.
    ///
    /// # Safety
    /// PROBE.
    unsafe fn usage(&self, word: usize) -> Option<usize> {
        let set_usage = self.symbols.ggml_backend_buffer_set_usage?;
        let usage = || peek::word(self.buffer as usize + 8 * word).map(|word| word as i32);
        let before = usage();
        // SAFETY: PROBE.
        unsafe { set_usage(self.buffer, USAGE_WEIGHTS) };
        (before == Some(0) && usage() == Some(USAGE_WEIGHTS)).then_some(word)
    }
}
