//! What a window's sequence means, given the last one settled for the same (host, agent instance).
//!
//! "Settled" is stored, rejected or declared lost. Sequences begin at 1 and are never reused by an instance.
//! Pure; the store asks it inside its transaction, so that two streams cannot both take one sequence.

/// How far ahead of the last settled sequence a window may be. At one window a second this is eleven days of
/// lost windows; anything above is a broken counter, and taking it would refuse all that follows as duplicates.
pub const SEQUENCE_JUMP_MAX: u64 = 1_000_000;

/// What to do with a window of some sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Settled before: acknowledge again, store nothing.
    Duplicate,
    /// New: store it.
    Next {
        /// Windows between the last settled one and this one that never arrived.
        missing: u64,
    },
    /// 0, or more than [`SEQUENCE_JUMP_MAX`] ahead: refuse it and leave the last settled sequence as it is.
    Absurd,
}

/// Judges `sequence` after `last` (0: none settled yet). `lost_by_word` is how many windows the agent says it
/// dropped since the last window it sent.
///
/// A gap and the agent's word count the same windows, so the larger of both is what is missing. With nothing
/// settled yet only the agent's word counts: the detector cannot tell windows that were lost from those that
/// an earlier database holds, and for the same reason the first sequence may be any.
#[must_use]
pub fn step(last: u64, sequence: u64, lost_by_word: u64) -> Step {
    if sequence == 0 || sequence > i64::MAX.unsigned_abs() - SEQUENCE_JUMP_MAX {
        return Step::Absurd;
    }
    if last == 0 {
        return Step::Next {
            missing: lost_by_word,
        };
    }
    if sequence <= last {
        return Step::Duplicate;
    }
    let gap = sequence - last - 1;
    if gap > SEQUENCE_JUMP_MAX {
        return Step::Absurd;
    }
    Step::Next {
        missing: gap.max(lost_by_word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_windows_miss_nothing() {
        assert_eq!(step(0, 1, 0), Step::Next { missing: 0 });
        assert_eq!(step(1, 2, 0), Step::Next { missing: 0 });
    }

    #[test]
    fn settled_sequences_are_duplicates() {
        assert_eq!(step(5, 5, 0), Step::Duplicate);
        assert_eq!(step(5, 1, 3), Step::Duplicate);
    }

    #[test]
    fn a_gap_and_the_agents_word_are_not_added_up() {
        assert_eq!(step(5, 9, 0), Step::Next { missing: 3 });
        assert_eq!(step(5, 9, 3), Step::Next { missing: 3 });
        assert_eq!(step(5, 6, 7), Step::Next { missing: 7 });
    }

    #[test]
    fn the_first_window_after_a_new_database_is_no_gap() {
        assert_eq!(step(0, 5001, 0), Step::Next { missing: 0 });
        assert_eq!(step(0, 5001, 2), Step::Next { missing: 2 });
    }

    #[test]
    fn absurd_sequences_are_refused() {
        assert_eq!(step(0, 0, 0), Step::Absurd);
        assert_eq!(step(7, 0, 0), Step::Absurd);
        assert_eq!(step(0, u64::MAX, 0), Step::Absurd);
        assert_eq!(step(7, 9 + SEQUENCE_JUMP_MAX, 0), Step::Absurd);
        assert_eq!(
            step(7, 8 + SEQUENCE_JUMP_MAX, 0),
            Step::Next {
                missing: SEQUENCE_JUMP_MAX
            }
        );
    }
}
