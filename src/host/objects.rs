//! Buffers and buffer types of a host: those that are looked at, and those that are made here, after the layout that
//! was found ([`super::layout`]).

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

/// An interface of a buffer. The host takes its own, smaller one by value, so by the System V ABI it lies on the stack, and
/// the host copies what it knows.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Interface(pub [*const c_void; MOST_MEMBERS]);

impl Interface {
    /// Members that a host may do without.
    pub const NONE: Self = Self([std::ptr::null(); MOST_MEMBERS]);

    /// Sets the member at `place`, if this version of the host has it.
    pub fn set(&mut self, place: impl Into<Option<usize>>, function: *const c_void) {
        if let Some(place) = place.into() {
            self.0[place] = function;
        }
    }
}

/// A live buffer.
#[derive(Clone, Copy)]
pub struct Buffer {
    at: *mut RawBuffer,
    layout: &'static BufferLayout,
}

impl Buffer {
    /// The buffer at an address; `None` if that is null.
    ///
    /// # Safety
    /// A buffer of this layout must be there for as long as what is returned is used.
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
        // SAFETY: the buffer is alive, and the layout is its own; here and below.
        unsafe { *self.word(self.layout.buft) as *mut RawBufferType }
    }

    /// What its interface's functions expect.
    pub fn context(&self) -> *mut c_void {
        // SAFETY: as above.
        unsafe { *self.word(self.layout.context) as *mut c_void }
    }

    /// Its bytes.
    pub fn size(&self) -> usize {
        // SAFETY: as above.
        unsafe { *self.word(self.layout.size) }
    }

    /// What it is for; `None` in hosts that do not tell.
    pub fn usage(&self) -> Option<i32> {
        // SAFETY: as above.
        self.layout.usage.map(|word| unsafe { *self.word(word).cast::<i32>() })
    }

    /// Puts another function in the place of the one that frees it, which comes back.
    ///
    /// # Safety
    /// The buffer must be ours to write.
    pub unsafe fn replace_free(&self, function: *const c_void) -> *const c_void {
        // SAFETY: promised by the caller.
        unsafe { std::mem::replace(&mut *self.word(self.layout.free_buffer), function as usize) as *const c_void }
    }
}

/// Functions of a buffer type; those that are not named are NULL, which means that the host does it its own way.
pub struct BufferTypeFunctions {
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

impl BufferTypeFunctions {
    /// Makes a buffer type, with room behind it for what later versions have there. It lives as long as the process: hosts
    /// keep the pointer in static lists.
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
