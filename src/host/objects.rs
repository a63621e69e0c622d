//! Buffers and buffer types of a host, read and made by the layout that was found ([`super::layout`]).

use libc::c_void;

use super::layout::{BufferLayout, BufferTypeLayout};

/// `struct ggml_backend_buffer`, of whatever version.
#[repr(C)]
pub struct RawBuffer([u8; 0]);

/// `struct ggml_backend_buffer_type`, of whatever version.
#[repr(C)]
pub struct RawBufferType([u8; 0]);

/// More members than any version of ggml's interfaces has.
pub const MOST_MEMBERS: usize = 32;

/// `struct ggml_backend_buffer_i`, with as many members as any version may have. The host's own struct is smaller and
/// is passed by value. By the System V ABI such a struct lies on the stack, so the host copies the members that it
/// knows.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct BufferInterface(pub [*const c_void; MOST_MEMBERS]);

impl BufferInterface {
    /// An interface without functions.
    pub const NONE: Self = Self([std::ptr::null(); MOST_MEMBERS]);

    /// Sets a member, if this version of the host has it.
    pub fn set(&mut self, member: impl Into<Option<usize>>, function: *const c_void) {
        if let Some(member) = member.into() {
            self.0[member] = function;
        }
    }
}

/// A live buffer of the host's.
///
/// LIVE BUFFER: `at` is a buffer of this layout for as long as this value is used. [`Buffer::new`] demands it.
#[derive(Clone, Copy)]
pub struct Buffer {
    at: *mut RawBuffer,
    layout: &'static BufferLayout,
}

impl Buffer {
    /// The buffer at an address; `None` if that is null.
    ///
    /// # Safety
    /// LIVE BUFFER: if not null, it must be a buffer of this layout for as long as the result is used.
    #[inline]
    pub unsafe fn new(at: *mut RawBuffer, layout: &'static BufferLayout) -> Option<Self> {
        (!at.is_null()).then_some(Self { at, layout })
    }

    #[inline]
    fn word(&self, index: usize) -> *mut usize {
        self.at.cast::<usize>().wrapping_add(index)
    }

    /// Its type.
    pub fn buft(&self) -> *mut RawBufferType {
        // SAFETY: LIVE BUFFER, and the layout says that this word is a field; so below.
        unsafe { *self.word(self.layout.buft) as *mut RawBufferType }
    }

    /// Its context: what the functions of its interface expect.
    pub fn context(&self) -> *mut c_void {
        // SAFETY: as in `buft`.
        unsafe { *self.word(self.layout.context) as *mut c_void }
    }

    /// Its size in bytes.
    pub fn size(&self) -> usize {
        // SAFETY: as in `buft`.
        unsafe { *self.word(self.layout.size) }
    }

    /// Its `enum ggml_backend_buffer_usage`; `None` in hosts that have none.
    pub fn usage(&self) -> Option<i32> {
        // SAFETY: as in `buft`.
        self.layout.usage.map(|word| unsafe { *self.word(word).cast::<i32>() })
    }

    /// Replaces its `free_buffer`; returns the old one.
    ///
    /// # Safety
    /// Nothing else may use the buffer meanwhile.
    pub unsafe fn replace_free(&self, function: *const c_void) -> *const c_void {
        // SAFETY: as in `buft`, and nothing else uses the buffer.
        unsafe { std::mem::replace(&mut *self.word(self.layout.free_buffer), function as usize) as *const c_void }
    }
}

/// Functions of a buffer type (`struct ggml_backend_buffer_type_i`). Members of later versions are NULL in what is made
/// of them, which means that the host does it its own way.
pub struct BufferTypeInterface {
    /// `const char * (buft)`.
    pub get_name: *const c_void,
    /// `buffer * (buft, size_t)`.
    pub alloc_buffer: *const c_void,
    /// `size_t (buft)`.
    pub get_alignment: *const c_void,
    /// `size_t (buft)`.
    pub get_max_size: *const c_void,
    /// `size_t (buft, const tensor *)`; may be null.
    pub get_alloc_size: *const c_void,
    /// `bool (buft)`.
    pub is_host: *const c_void,
}

impl BufferTypeInterface {
    /// Makes a buffer type, and behind it zeroed memory for fields of later versions. It lives as long as the process,
    /// because hosts keep the pointer in static lists.
    pub fn make(&self, layout: &BufferTypeLayout, device: *mut c_void, context: *mut c_void) -> *mut RawBufferType {
        let words = Box::leak(Box::new([std::ptr::null::<c_void>(); 2 * MOST_MEMBERS]));
        words[layout.get_name] = self.get_name;
        words[layout.alloc_buffer] = self.alloc_buffer;
        words[layout.get_alignment] = self.get_alignment;
        if let Some(at) = layout.get_max_size {
            words[at] = self.get_max_size;
        }
        words[layout.get_alloc_size] = self.get_alloc_size;
        words[layout.is_host] = self.is_host;
        if let Some(at) = layout.device {
            (words[at], words[at + 1]) = (device, context);
        }
        words.as_mut_ptr().cast()
    }
}
