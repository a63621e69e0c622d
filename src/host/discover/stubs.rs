//! A buffer and a buffer type whose members are all stubs. A stub notes that it was called and with what, so a call of
//! a host's function shows which member the function uses.

use std::cell::{Cell, RefCell, UnsafeCell};

use libc::c_void;

use super::super::objects::BufferInterface;
use super::probe::{ensure, unknown};
use crate::diag::border::ffi_boundary;

/// Whose member a stub is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A buffer's.
    Buffer,
    /// A buffer type's.
    Type,
}

/// A call of a stub.
#[derive(Clone, Copy, Debug)]
struct StubCall {
    owner: Owner,
    member: usize,
    /// Its first three arguments, of which it may have fewer.
    args: [usize; 3],
}

thread_local! {
    static CALLS: RefCell<Vec<StubCall>> = const { RefCell::new(Vec::new()) };
    /// What stubs of buffers and of types return as long as their member is not known.
    static RETURNS: Cell<[usize; 2]> = const { Cell::new([0; 2]) };
    /// What the stubs of known members return. Hosts compare sizes and alignments, so a member keeps its value.
    static ANSWERS: RefCell<Vec<(Owner, usize, usize)>> = const { RefCell::new(Vec::new()) };
}

extern "C" fn stub<const TYPE: bool, const MEMBER: usize>(a: usize, b: usize, c: usize) -> usize {
    ffi_boundary!("a stub", else 0, {
        let owner = if TYPE { Owner::Type } else { Owner::Buffer };
        CALLS.with_borrow_mut(|calls| calls.push(StubCall { owner, member: MEMBER, args: [a, b, c] }));
        let known = ANSWERS.with_borrow(|all| all.iter().find(|a| (a.0, a.1) == (owner, MEMBER)).map(|a| a.2));
        known.unwrap_or(RETURNS.get()[owner as usize])
    })
}

macro_rules! stubs {
    ($type:literal: $($member:literal)*) => { BufferInterface([$(stub::<$type, $member> as *const c_void),*]) };
    ($type:literal) => {
        stubs!($type: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
    };
}

/// An interface of a buffer, made of stubs.
pub fn buffer_interface() -> BufferInterface {
    stubs!(false)
}

/// A buffer type whose interface is made of stubs. The words after it all differ, so that a field among them is told by
/// its value.
#[repr(C)]
pub struct StubBufferType {
    interface: BufferInterface,
    behind: [usize; 8],
}

impl StubBufferType {
    /// A new one.
    pub fn new() -> Self {
        Self { interface: stubs!(true), behind: std::array::from_fn(|i| 0x2220 + 16 * i) }
    }

    /// Its words as they are in memory.
    pub fn words(&self) -> Vec<usize> {
        self.interface.0.iter().map(|member| *member as usize).chain(self.behind).collect()
    }
}

/// The memory that the buffer of stubs says it has: two pages, because hosts may want more than they ask for. Nobody
/// but a host would read or write it.
#[repr(C, align(4096))]
struct BufferMemory(UnsafeCell<[u64; 1024]>);

// SAFETY: this library only takes its address.
unsafe impl Sync for BufferMemory {}

static BUFFER_MEMORY: BufferMemory = BufferMemory(UnsafeCell::new([0; 1024]));

/// Bytes of the memory of the buffer of stubs.
pub const BUFFER_BYTES: usize = size_of::<BufferMemory>();

/// The address of the memory of the buffer of stubs.
pub fn buffer_memory() -> usize {
    BUFFER_MEMORY.0.get() as usize
}

/// Which members are known by now.
pub struct KnownMembers {
    of_buffer: Vec<usize>,
    of_type: Vec<usize>,
}

impl KnownMembers {
    /// None. There is one such value at a time in a thread: what the stubs note and return is the thread's.
    pub fn none() -> Self {
        ANSWERS.take();
        Self { of_buffer: Vec::new(), of_type: Vec::new() }
    }

    fn of(&mut self, owner: Owner) -> &mut Vec<usize> {
        match owner {
            Owner::Buffer => &mut self.of_buffer,
            Owner::Type => &mut self.of_type,
        }
    }

    /// Whether no stub was called since this was asked last, or since the last member was found.
    pub fn is_quiet(&self) -> bool {
        CALLS.take().is_empty()
    }

    /// The member that the host's function `what` calls, besides members that are known already; `None` if it calls no
    /// other. `call` calls that function. Unknown members of buffers and of types return `returns`; the first arguments
    /// must be `args`.
    pub fn member(
        &mut self,
        (owner, what): (Owner, &str),
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
            if self.of(call.owner).contains(&call.member) {
                continue;
            }
            let other = call.owner != owner || new.is_some_and(|member| member != call.member);
            ensure(!other, || format!("{what} also calls member {} of a {:?}", call.member, call.owner))?;
            ensure(call.args[..args.len()] == *args, || {
                format!("{what} calls member {} with other arguments than are known", call.member)
            })?;
            new = Some(call.member);
        }
        self.of(owner).extend(new);
        ANSWERS.with_borrow_mut(|all| all.extend(new.map(|member| (owner, member, returns[owner as usize]))));
        Ok(new)
    }

    /// The same for a member that must be there.
    pub fn needed(
        &mut self,
        function: (Owner, &str),
        returns: [usize; 2],
        args: &[usize],
        call: impl FnOnce(),
    ) -> Result<usize, String> {
        let missing = || unknown(format!("{} calls no member of its own", function.1));
        self.member(function, returns, args, call)?.ok_or_else(missing)
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
