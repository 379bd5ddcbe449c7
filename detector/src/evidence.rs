//! From a window's evidence to the detector's own verdict, how long that has stood, and what would be done about it.
//!
//! The agent proposes a verdict; the detector decides: it applies [`davy_evidence::verdict`] to the same evidence
//! and keeps its own answer. If the two differ the agent is of another version (or is lying), and that is counted.
//! Nothing here acts: a plan is recorded and shown.

use std::fmt;

use davy_evidence::Level;
use davy_proto::v1;

use crate::ingest::ValidTenant;

/// How long evidence stays good without a new window, ns (1 h): for carrying sequential tests over a restart of
/// the agent, and for a verdict to count as lasting.
pub const FRESH_NS: u64 = 3_600 * 1_000_000_000;

/// What the detector would do about a tenant: a step of the ladder of the design (observe, closer look, …, person).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Planned {
    /// Go on watching.
    Observe,
    /// Ask the agent for more samples.
    CloserLook,
    /// Let a person decide.
    CaseForAPerson,
}

impl Planned {
    /// All plans, mildest first.
    pub const ALL: [Self; 3] = [Self::Observe, Self::CloserLook, Self::CaseForAPerson];

    /// As people and the wire read it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::CloserLook => "closer look",
            Self::CaseForAPerson => "case for a person",
        }
    }

    /// The inverse of [`Planned::as_str`].
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|planned| planned.as_str() == text)
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What the evidence alone leads to, at most: the part of the ladder of DESIGN §3 that rests on no fact. What is decided about the
/// account, with its facts and safeties, is the policies' ([`davy_decision::decide`]).
#[must_use]
pub const fn plan(level: Level) -> Planned {
    match level {
        Level::Quiet => Planned::Observe,
        Level::Suspect => Planned::CloserLook,
        Level::Mining => Planned::CaseForAPerson,
    }
}

/// The level a tenant had before, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The level.
    pub level: Level,
    /// Since when, ns since the Unix epoch.
    pub since_unix_ns: u64,
    /// End of the last window, ns since the Unix epoch.
    pub last_seen_unix_ns: u64,
}

/// When the present level began: at the end of the first window that showed it, so that "lasted" never claims more
/// than was seen. A level does not last across a silence longer than [`FRESH_NS`].
#[must_use]
pub fn since(before: Option<Standing>, level: Level, start_unix_ns: u64, end_unix_ns: u64) -> u64 {
    match before {
        Some(before)
            if before.level == level
                && start_unix_ns.saturating_sub(before.last_seen_unix_ns) <= FRESH_NS =>
        {
            // A host whose clock was set back must not have begun in its own future.
            before.since_unix_ns.min(end_unix_ns)
        }
        _ => end_unix_ns,
    }
}

/// A tenant's window with the detector's own verdict.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// As received, but for the verdict, which is the detector's.
    pub window: v1::TenantWindow,
    /// The verdict's level.
    pub level: Level,
    /// What would be done.
    pub planned: Planned,
    /// Whether the agent proposed the same level.
    pub agent_agrees: bool,
}

/// Judges a tenant by its evidence alone.
#[must_use]
pub fn judge(tenant: ValidTenant) -> Judged {
    let ValidTenant {
        mut window,
        evidence,
        proposed,
    } = tenant;
    let verdict = davy_evidence::verdict(&evidence);
    let level = verdict.level;
    window.verdict = Some(v1::Verdict::from(verdict));
    Judged {
        window,
        level,
        planned: plan(level),
        agent_agrees: proposed == level,
    }
}

/// Rank of a level in the store, rising with suspicion; equal to the wire's number.
#[must_use]
pub const fn rank(level: Level) -> i64 {
    match level {
        Level::Quiet => 1,
        Level::Suspect => 2,
        Level::Mining => 3,
    }
}

/// The inverse of [`rank`].
#[must_use]
pub const fn level_of_rank(rank: i64) -> Option<Level> {
    match rank {
        1 => Some(Level::Quiet),
        2 => Some(Level::Suspect),
        3 => Some(Level::Mining),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use davy_evidence::TenantEvidence;

    use super::*;

    const HOUR_NS: u64 = FRESH_NS;

    fn tenant(evidence: TenantEvidence, proposed: Level) -> ValidTenant {
        let window = v1::TenantWindow {
            key: "qemu:a".into(),
            ..v1::TenantWindow::default()
        };
        ValidTenant {
            window,
            evidence,
            proposed,
        }
    }

    fn concluded() -> TenantEvidence {
        let mut evidence = TenantEvidence::default();
        evidence.fp_rounding.concluded = true;
        evidence.fp_rounding.duty = 1.0;
        evidence
    }

    #[test]
    fn one_class_of_evidence_is_at_most_a_closer_look() {
        let judged = judge(tenant(concluded(), Level::Suspect));
        assert_eq!(
            (judged.level, judged.planned),
            (Level::Suspect, Planned::CloserLook)
        );
        assert!(judged.agent_agrees);
    }

    #[test]
    fn two_classes_at_a_miners_duty_are_a_persons_case() {
        let mut evidence = concluded();
        evidence.register_randomness.directed_concluded = true;
        let judged = judge(tenant(evidence, Level::Mining));
        assert_eq!(
            (judged.level, judged.planned),
            (Level::Mining, Planned::CaseForAPerson)
        );
    }

    #[test]
    fn the_detectors_verdict_stands_against_the_agents() {
        let judged = judge(tenant(TenantEvidence::default(), Level::Mining));
        assert_eq!(
            (judged.level, judged.planned),
            (Level::Quiet, Planned::Observe)
        );
        assert!(!judged.agent_agrees);
        let expected: v1::Verdict = davy_evidence::verdict(&TenantEvidence::default()).into();
        assert_eq!(judged.window.verdict, Some(expected));
    }

    #[test]
    fn a_level_begins_with_the_window_that_shows_it_and_lasts() {
        assert_eq!(since(None, Level::Quiet, 10, 20), 20);
        let before = Standing {
            level: Level::Quiet,
            since_unix_ns: 20,
            last_seen_unix_ns: 20,
        };
        assert_eq!(since(Some(before), Level::Quiet, 20, 30), 20);
        assert_eq!(since(Some(before), Level::Suspect, 20, 30), 30);
    }

    #[test]
    fn a_level_does_not_last_across_a_long_silence() {
        let before = Standing {
            level: Level::Mining,
            since_unix_ns: 5,
            last_seen_unix_ns: 20,
        };
        let at = |gap: u64| since(Some(before), Level::Mining, 20 + gap, 30 + gap);
        assert_eq!(at(HOUR_NS), 5);
        assert_eq!(at(HOUR_NS + 1), 31 + HOUR_NS);
    }

    #[test]
    fn a_clock_set_back_does_not_leave_a_beginning_in_the_future() {
        let before = Standing {
            level: Level::Quiet,
            since_unix_ns: 500,
            last_seen_unix_ns: 600,
        };
        assert_eq!(since(Some(before), Level::Quiet, 90, 100), 100);
    }

    #[test]
    fn plans_and_ranks_have_inverses() {
        for planned in Planned::ALL {
            assert_eq!(Planned::from_text(planned.as_str()), Some(planned));
        }
        for level in [Level::Quiet, Level::Suspect, Level::Mining] {
            assert_eq!(level_of_rank(rank(level)), Some(level));
        }
    }
}
