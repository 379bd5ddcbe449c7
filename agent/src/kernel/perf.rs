//! Performance counters of threads, by perf_event_open(2): groups that are opened, read and closed.
//!
//! A group counts one thread wherever it runs, and only what that thread does itself (`inherit` is off). Its events are on the CPU
//! together or not at all. Nothing is sampled: no ring buffer, no interrupts beyond the counters' own overflow.
//!
//! Groups are never `pinned`. The counters that KVM opens on behalf of a guest's virtual PMU are (`pmc_reprogram_counter`,
//! arch/x86/kvm/pmu.c), and the kernel schedules pinned groups of a CPU or thread before all others (`ctx_sched_in`,
//! kernel/events/core.c): where counters are short, a guest has its own and these groups wait, which shows in
//! [`Counts::time_running_ns`].

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use perf_event_open_sys::{self as sys, bindings};

/// Most events in a group. x86 has at most 16 general and 16 fixed counters (`INTEL_PMC_MAX_GENERIC`, arch/x86).
pub const EVENTS_MAX: usize = 16;

/// What a group counts of its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Guest mode alone, kernel and user of the guest alike: a vCPU without its VMM (`exclude_host`).
    Guest,
    /// User space alone: what the program itself computes (`exclude_kernel`, `exclude_hv`, `exclude_guest`).
    User,
}

/// Where an event's number comes from: `type` of perf_event_attr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One of the kernel's generic hardware events (`PERF_COUNT_HW_…`).
    Hardware,
    /// The CPU's own number.
    Raw,
    /// One of the kernel's own clocks and counts (`PERF_COUNT_SW_…`).
    Software,
}

/// Counts of a group; all only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// How long the thread ran with the group enabled, ns.
    pub time_enabled_ns: u64,
    /// How long of that the group was on the counters, ns.
    pub time_running_ns: u64,
    /// One per event, in the order in which they were opened.
    pub values: Vec<u64>,
}

/// A group of open events. Dropping it closes them.
#[derive(Debug)]
pub struct PerfGroup {
    leader: OwnedFd,
    members: Vec<OwnedFd>,
}

impl PerfGroup {
    /// Opens events for the thread `tid` (0: the calling one) as one group, and starts them together.
    ///
    /// # Errors
    /// The kernel's; `InvalidInput` for no events or more than [`EVENTS_MAX`].
    pub fn open(tid: u32, events: &[(Kind, u64)], scope: Scope) -> io::Result<Self> {
        let Some((first, rest)) = events.split_first() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if events.len() > EVENTS_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let leader = open_event(tid, *first, scope, None)?;
        let members = rest
            .iter()
            .map(|event| open_event(tid, *event, scope, Some(leader.as_raw_fd())))
            .collect::<io::Result<Vec<_>>>()?;
        // SAFETY: the descriptor is open for as long as `leader` lives, which outlasts the call; the request takes a
        // number, no pointer.
        let started =
            unsafe { sys::ioctls::ENABLE(leader.as_raw_fd(), bindings::PERF_IOC_FLAG_GROUP) };
        if started < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { leader, members })
    }

    /// Reads all events at once. Still answers after the thread has ended.
    ///
    /// # Errors
    /// The kernel's; `UnexpectedEof` if it gave less than the group has.
    pub fn read(&self) -> io::Result<Counts> {
        const WORD: usize = size_of::<u64>();
        // PERF_FORMAT_GROUP: nr, time_enabled, time_running, one value per event (perf_event_open(2)).
        let mut bytes = [0_u8; (3 + EVENTS_MAX) * WORD];
        let read = rustix::io::read(self.leader.as_fd(), &mut bytes)?;
        let mut words = bytes[..read]
            .chunks_exact(WORD)
            .map(|word| word.try_into().map_or(0, u64::from_ne_bytes));
        let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let events = words.next().ok_or_else(short)?;
        let time_enabled_ns = words.next().ok_or_else(short)?;
        let time_running_ns = words.next().ok_or_else(short)?;
        let values: Vec<u64> = words.collect();
        if values.len() != self.members.len() + 1 || usize::try_from(events) != Ok(values.len()) {
            return Err(short());
        }
        Ok(Counts {
            time_enabled_ns,
            time_running_ns,
            values,
        })
    }
}

fn open_event(
    tid: u32,
    (kind, config): (Kind, u64),
    scope: Scope,
    leader: Option<RawFd>,
) -> io::Result<OwnedFd> {
    let mut attr = bindings::perf_event_attr {
        size: u32::try_from(size_of::<bindings::perf_event_attr>()).unwrap_or(u32::MAX),
        type_: match kind {
            Kind::Hardware => bindings::PERF_TYPE_HARDWARE,
            Kind::Raw => bindings::PERF_TYPE_RAW,
            Kind::Software => bindings::PERF_TYPE_SOFTWARE,
        },
        config,
        read_format: u64::from(
            bindings::PERF_FORMAT_GROUP
                | bindings::PERF_FORMAT_TOTAL_TIME_ENABLED
                | bindings::PERF_FORMAT_TOTAL_TIME_RUNNING,
        ),
        ..bindings::perf_event_attr::default()
    };
    // Only the leader waits for the start: its members follow it.
    attr.set_disabled(u64::from(leader.is_none()));
    match scope {
        Scope::Guest => attr.set_exclude_host(1),
        Scope::User => {
            attr.set_exclude_kernel(1);
            attr.set_exclude_hv(1);
            attr.set_exclude_guest(1);
        }
    }
    let tid = i32::try_from(tid).map_err(|_| io::ErrorKind::InvalidInput)?;
    let flags = std::ffi::c_ulong::from(bindings::PERF_FLAG_FD_CLOEXEC);
    // SAFETY: `attr` is a whole perf_event_attr with its size set, alive for the call, and the kernel writes at most that size;
    // the counting it asks for touches no memory of this process.
    let fd = unsafe { sys::perf_event_open(&raw mut attr, tid, -1, leader.unwrap_or(-1), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_without_events_or_with_too_many_is_refused() {
        let open = |events: &[(Kind, u64)]| {
            PerfGroup::open(0, events, Scope::User)
                .map(|_| ())
                .unwrap_err()
                .kind()
        };
        assert_eq!(open(&[]), io::ErrorKind::InvalidInput);
        let many = [(Kind::Software, 0); EVENTS_MAX + 1];
        assert_eq!(open(&many), io::ErrorKind::InvalidInput);
    }
}
