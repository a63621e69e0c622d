//! Rows that are looked at before a precision is chosen: shared out over the threads, added up by all in one order, so that
//! all come to the same choice whatever their number.

use super::{ALIGN, Thread, split};
use crate::panel::outliers::ErrorStats;

/// Bytes for what so many rows show; `None` if they do not fit.
pub fn bytes(rows: usize) -> Option<usize> {
    rows.checked_mul(size_of::<ErrorStats>())?.checked_next_multiple_of(ALIGN)
}

/// What all of `rows` show; `look` adds what one does. A barrier inside.
///
/// # Safety
/// `slots` must be shared by the threads, have [`bytes`] for all rows, and be aligned; all threads must come with the same
/// rows.
pub unsafe fn together<R>(
    thread: &Thread<'_>,
    slots: *mut ErrorStats,
    rows: impl Iterator<Item = R> + Clone,
    mut look: impl FnMut(R, &mut ErrorStats),
) -> ErrorStats {
    let count = rows.clone().count();
    let mine = split::share(count, thread.index, thread.count);
    for (i, row) in rows.enumerate().skip(mine.start).take(mine.len()) {
        let mut seen = ErrorStats::default();
        look(row, &mut seen);
        // SAFETY: promised by the caller; shares are disjoint.
        unsafe { slots.add(i).write(seen) };
    }
    thread.wait();
    let mut all = ErrorStats::default();
    for i in 0..count {
        // SAFETY: every thread has written its share.
        all.add(unsafe { &*slots.add(i) });
    }
    all
}
