//! The experts that tokens chose: src2 of MUL_MAT_ID.

/// int32 numbers of experts, any strides.
#[derive(Clone, Copy, Debug)]
pub struct Choices {
    /// Address of the first.
    pub data: *const u8,
    /// Experts per token.
    pub used: usize,
    /// Tokens.
    pub tokens: usize,
    /// Bytes from one choice of a token to the next, and from one token to the next.
    pub nb: [usize; 2],
    /// Whether there may be numbers of no expert: their results are left alone.
    pub skip_others: bool,
}

impl Choices {
    /// Calls `f(token, slot, expert)` for every choice of one of `experts` experts.
    ///
    /// # Safety
    /// **The choices are valid**: their memory is readable, and every number is an expert's, unless others are to be
    /// skipped.
    pub unsafe fn each(&self, experts: usize, mut f: impl FnMut(usize, usize, usize)) {
        for token in 0..self.tokens {
            for slot in 0..self.used {
                // SAFETY: the choices are valid.
                let expert = unsafe { self.at(token, slot) } as usize;
                if !self.skip_others || expert < experts {
                    f(token, slot, expert);
                }
            }
        }
    }

    /// The lowest and the highest expert that was chosen, of `experts` experts; `None` if none was.
    ///
    /// # Safety
    /// The choices must be valid ([`Choices::each`]).
    pub unsafe fn ends(&self, experts: usize) -> Option<(usize, usize)> {
        let mut ends: Option<(usize, usize)> = None;
        // SAFETY: the choices are valid.
        unsafe {
            self.each(experts, |_, _, expert| {
                ends = Some(ends.map_or((expert, expert), |(low, high)| (low.min(expert), high.max(expert))));
            });
        }
        ends
    }

    /// How many of `experts` experts were chosen, and the highest of them (0 if none was).
    ///
    /// # Safety
    /// The choices must be valid ([`Choices::each`]).
    pub unsafe fn active(&self, experts: usize) -> (usize, usize) {
        let mut chosen = vec![false; experts];
        // SAFETY: the choices are valid.
        unsafe { self.each(experts, |_, _, expert| chosen[expert] = true) };
        (chosen.iter().filter(|is| **is).count(), chosen.iter().rposition(|is| *is).unwrap_or(0))
    }

    /// The number that was chosen.
    ///
    /// # Safety
    /// Its memory must be readable.
    unsafe fn at(&self, token: usize, slot: usize) -> i32 {
        // SAFETY: the memory of this choice is readable.
        unsafe { self.data.add(token * self.nb[1] + slot * self.nb[0]).cast::<i32>().read_unaligned() }
    }

    /// The first choice that is none of `experts` experts: token, slot, number.
    ///
    /// # Safety
    /// The memory must be readable.
    pub unsafe fn find_bad(&self, experts: usize) -> Option<(usize, usize, i32)> {
        let all = (0..self.tokens).flat_map(|token| (0..self.used).map(move |slot| (token, slot)));
        // SAFETY: the memory is readable.
        let mut numbers = all.map(|(token, slot)| (token, slot, unsafe { self.at(token, slot) }));
        numbers.find(|(_, _, number)| usize::try_from(*number).map_or(true, |n| n >= experts))
    }
}
