//! Answers about callers that are remembered. Looking up who calls takes time, and locks of the loader's that another
//! thread may have held as this process was forked. Finding a remembered answer takes no lock.

use std::ffi::{CStr, c_char, c_int};
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use crate::host::loader::{self, Scope};

/// How many callers are remembered.
const SLOTS: usize = 64;
/// How many slots a caller may be in.
const WAYS: usize = 8;
/// Answers below are no addresses.
const FIRST_ADDRESS: usize = 1 << 16;

/// Answers to calls by the address that they return to. An answer holds as long as two objects are loaded: the one that
/// the caller lies in and the one that the answer lies in, if it is an address. The loader, too, binds a caller once.
pub struct CallerCache([Slot; SLOTS]);

/// One caller. Slots are seqlocks: one thread writes at a time, and a reader sees whether one wrote meanwhile.
struct Slot {
    /// Odd while a thread writes.
    version: AtomicUsize,
    /// The address that the calls return to; 0 in an empty slot.
    caller: AtomicUsize,
    answer: AtomicUsize,
    /// [`object_id`] of the caller and of the answer, or both 0 if their objects stay as long as the process.
    objects: [AtomicUsize; 2],
}

impl CallerCache {
    /// An empty one.
    pub const fn new() -> Self {
        const fn empty() -> Slot {
            Slot {
                version: AtomicUsize::new(0),
                caller: AtomicUsize::new(0),
                answer: AtomicUsize::new(0),
                objects: [const { AtomicUsize::new(0) }; 2],
            }
        }
        Self([const { empty() }; SLOTS])
    }

    /// The slots that a caller may be in.
    fn slots(&self, caller: usize) -> impl Iterator<Item = &Slot> {
        let first = (caller.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % SLOTS;
        (0..WAYS).map(move |i| &self.0[(first + i) % SLOTS])
    }

    /// The answer for calls that return to `caller`, if it is known.
    pub fn find(&self, caller: usize) -> Option<usize> {
        for slot in self.slots(caller) {
            let version = slot.version.load(Ordering::Acquire);
            if slot.caller.load(Ordering::Relaxed) != caller {
                continue;
            }
            let answer = slot.answer.load(Ordering::Relaxed);
            let objects = slot.objects.each_ref().map(|object| object.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if version & 1 != 0 || slot.version.load(Ordering::Relaxed) != version {
                return None;
            }
            return (objects == [0; 2] || objects == [caller, answer].map(object_id)).then_some(answer);
        }
        None
    }

    /// Remembers an answer. `stays` says that neither object will ever be unloaded. If all slots of the caller are
    /// taken, one is overwritten.
    pub fn note(&self, caller: usize, answer: usize, stays: bool) {
        let find_object = Scope::GLOBAL.find(c"_dl_find_object").map_or(0, |function| function as usize);
        FIND_OBJECT.store(find_object, Ordering::Relaxed);
        let is_free = |slot: &&Slot| [0, caller].contains(&slot.caller.load(Ordering::Relaxed));
        let Some(slot) = self.slots(caller).find(is_free).or_else(|| self.slots(caller).nth(answer % WAYS)) else {
            return;
        };
        let version = slot.version.load(Ordering::Relaxed);
        let begun = slot.version.compare_exchange(version, version | 1, Ordering::AcqRel, Ordering::Relaxed);
        if version & 1 != 0 || begun.is_err() {
            return;
        }
        fence(Ordering::Release);
        slot.caller.store(caller, Ordering::Relaxed);
        slot.answer.store(answer, Ordering::Relaxed);
        for (object, at) in slot.objects.iter().zip([caller, answer]) {
            object.store(if stays { 0 } else { object_id(at) }, Ordering::Relaxed);
        }
        slot.version.store(version + 2, Ordering::Release);
    }
}

/// The address of the C library's `_dl_find_object`; 0 if it has none, or if it was not looked for yet. It is not
/// called by name, because that would demand a version of the C library.
static FIND_OBJECT: AtomicUsize = AtomicUsize::new(0);

/// A number of the object that an address lies in. An object that is loaded in its place later has another number.
/// Found without the loader's locks, if the C library can do that; older ones only have a function that takes one.
fn object_id(address: usize) -> usize {
    /// `struct dl_find_object` (dlfcn.h): flags, first and last byte, link map, unwind tables, and what later versions
    /// may add.
    type DlFindObject = [usize; 12];
    if address < FIRST_ADDRESS {
        return 0;
    }
    let find = FIND_OBJECT.load(Ordering::Relaxed);
    if find == 0 {
        return loader::changes() as usize;
    }
    let mut found: DlFindObject = [0; 12];
    // SAFETY: the C library's function of this name has this type, and takes any address. A link map begins with an
    // address and a name.
    unsafe {
        let find = std::mem::transmute::<usize, unsafe extern "C" fn(usize, *mut DlFindObject) -> c_int>(find);
        if find(address, &mut found) != 0 {
            return 0;
        }
        let [_, begin, end, map, ..] = found;
        let name = *(map as *const *const c_char).add(1);
        let name = if name.is_null() { &[] } else { CStr::from_ptr(name).to_bytes() };
        name.iter().fold(map ^ begin.rotate_left(17) ^ end.rotate_left(31), |hash, byte| {
            (hash ^ usize::from(*byte)).wrapping_mul(0x100_0000_01b3)
        })
    }
}
