//! What the sensor asks of the kernel: [`Counters`], with the real one and what its refusals mean.

use std::{fmt, io};

use super::family::Event;
use crate::kernel::perf::{Counts, PerfGroup, Scope};

/// Opens groups of events on threads.
pub trait Counters: fmt::Debug + Send {
    /// Opens `events` as one group on the thread `tid` (0: the calling one), counting from now on.
    ///
    /// # Errors
    /// See [`OpenError`].
    fn open(
        &mut self,
        tid: u32,
        events: &[Event],
        scope: Scope,
    ) -> Result<Box<dyn Group>, OpenError>;
}

/// An open group; dropping it closes it.
pub trait Group: fmt::Debug + Send {
    /// Its counts so far, also after the thread's end.
    ///
    /// # Errors
    /// The kernel's.
    fn read(&self) -> io::Result<Counts>;
}

/// Why a group could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The thread has ended.
    #[error("the thread has ended")]
    ThreadGone,
    /// No descriptor is free.
    #[error(
        "no file descriptor is free: raise the limit on open files (LimitNOFILE= of the service)"
    )]
    NoDescriptors,
    /// This host cannot count that, or may not.
    #[error("{0}")]
    Unsupported(String),
}

impl OpenError {
    /// What the kernel's refusal means. Numbers of errors as in perf_event_open(2).
    #[must_use]
    pub fn from_io(error: &io::Error) -> Self {
        use rustix::io::Errno;
        let reason = match Errno::from_io_error(error) {
            Some(Errno::SRCH) => return Self::ThreadGone,
            Some(Errno::MFILE | Errno::NFILE) => return Self::NoDescriptors,
            Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
                "the kernel has no performance counters of this CPU: in a VM, give it a virtual PMU; on hardware, enable \
                 performance counters in the firmware"
            }
            Some(Errno::OPNOTSUPP) => {
                "the kernel cannot count this here: the CPU lacks the event, or guests have the counters to themselves (mediated vPMU)"
            }
            Some(Errno::ACCESS | Errno::PERM) => {
                "counting other programs is not allowed: run the agent as root or with CAP_PERFMON"
            }
            Some(Errno::NOSYS) => {
                "the kernel is built without CONFIG_PERF_EVENTS: use one that has it"
            }
            Some(Errno::INVAL) => {
                "the kernel does not take these events together: raise `pmu.reserve_counters`, so that fewer are counted at one time"
            }
            Some(Errno::BUSY) => {
                "another program has the counters to itself: end it, or do without them"
            }
            _ => return Self::Unsupported(format!("the kernel refused to count: {error}")),
        };
        Self::Unsupported(format!("{reason} ({error})"))
    }
}

/// The kernel's counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Perf;

impl Counters for Perf {
    fn open(
        &mut self,
        tid: u32,
        events: &[Event],
        scope: Scope,
    ) -> Result<Box<dyn Group>, OpenError> {
        let events: Vec<_> = events
            .iter()
            .map(|event| (event.kind, event.config))
            .collect();
        match PerfGroup::open(tid, &events, scope) {
            Ok(group) => Ok(Box::new(group)),
            Err(error) => Err(OpenError::from_io(&error)),
        }
    }
}

impl Group for PerfGroup {
    fn read(&self) -> io::Result<Counts> {
        Self::read(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meaning(errno: rustix::io::Errno) -> OpenError {
        OpenError::from_io(&io::Error::from(errno))
    }

    #[test]
    fn refusals_say_what_to_do() {
        use rustix::io::Errno;
        for (errno, words) in [
            (Errno::NOENT, "give it a virtual PMU"),
            (Errno::OPNOTSUPP, "mediated vPMU"),
            (Errno::ACCESS, "CAP_PERFMON"),
            (Errno::NOSYS, "CONFIG_PERF_EVENTS"),
            (Errno::INVAL, "pmu.reserve_counters"),
            (Errno::IO, "the kernel refused to count"),
        ] {
            let OpenError::Unsupported(reason) = meaning(errno) else {
                panic!("{errno} means unsupported");
            };
            assert!(reason.contains(words), "{reason}");
        }
        assert_eq!(meaning(Errno::SRCH), OpenError::ThreadGone);
        assert_eq!(meaning(Errno::MFILE), OpenError::NoDescriptors);
    }
}
