//! Threads that exist before they are watched: who they are, from /proc and control groups, and what the
//! scheduler's books say of them at that moment.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    str::FromStr,
};

use davy_abi::{FLAG_LIVE, FLAG_RENAMED, Slot, TenantIndex};

use super::KernelError;

/// Thread ids of the listed processes, sorted; processes that are gone are left out.
pub(super) fn of_processes(tgids: &[u32]) -> Vec<u32> {
    let mut tids: Vec<u32> = tgids
        .iter()
        .flat_map(|tgid| numbers_in(&format!("/proc/{tgid}/task")))
        .collect();
    tids.sort_unstable();
    tids
}

/// A process and its present descendants.
pub(super) fn tree(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for tgid in numbers_in("/proc") {
        if let Some(parent) = parent(tgid) {
            children.entry(parent).or_default().push(tgid);
        }
    }
    let mut found = vec![root];
    let mut seen = HashSet::from([root]);
    let mut next = 0;
    while let Some(&tgid) = found.get(next) {
        next += 1;
        for &child in children.get(&tgid).into_iter().flatten() {
            if seen.insert(child) {
                found.push(child);
            }
        }
    }
    found
}

/// Thread ids in a control group and in the groups below it, sorted.
pub(super) fn of_cgroup(directory: &Path) -> Result<Vec<u32>, KernelError> {
    let failed = |error: &std::io::Error| KernelError::NotACgroup {
        path: directory.display().to_string(),
        reason: error.to_string(),
    };
    // `cgroup.threads` is v2's name, `tasks` is v1's.
    let list = |group: &Path| {
        fs::read_to_string(group.join("cgroup.threads"))
            .or_else(|_| fs::read_to_string(group.join("tasks")))
    };
    let mut tids = Vec::new();
    let top = list(directory).map_err(|error| failed(&error))?;
    tids.extend(top.lines().filter_map(|line| line.parse::<u32>().ok()));
    let mut open: Vec<_> = subdirectories(directory);
    while let Some(group) = open.pop() {
        // A group may vanish while we look.
        let members = list(&group).unwrap_or_default();
        tids.extend(members.lines().filter_map(|line| line.parse::<u32>().ok()));
        open.extend(subdirectories(&group));
    }
    tids.sort_unstable();
    tids.dedup();
    Ok(tids)
}

fn subdirectories(directory: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn numbers_in(directory: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn parent(tgid: u32) -> Option<u32> {
    status_field(
        &fs::read_to_string(format!("/proc/{tgid}/status")).ok()?,
        "PPid:",
    )
}

fn status_field<T: FromStr>(status: &str, name: &str) -> Option<T> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}

/// A thread's books as /proc shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Books {
    tid: u32,
    tgid: u32,
    on_cpu_ns: u64,
    run_queue_wait_ns: u64,
    voluntary_switches: u64,
    involuntary_switches: u64,
    guest_ns: u64,
    start_boottime_ns: u64,
}

impl Books {
    /// Reads them; `None` if the thread is gone or dead.
    pub(super) fn read(tid: u32) -> Option<Self> {
        // /proc/<tid> answers for threads as well as for processes.
        let of_thread =
            |name: &str| fs::read_to_string(format!("/proc/{tid}/task/{tid}/{name}")).ok();
        let status = of_thread("status")?;
        let schedstat = of_thread("schedstat")?;
        let mut times = schedstat.split_whitespace().map(u64::from_str);
        let stat = of_thread("stat")?;
        // The name may hold spaces and brackets; fields are counted behind its last bracket (proc_pid_stat(5)).
        let fields: Vec<&str> = stat.get(stat.rfind(')')? + 2..)?.split(' ').collect();
        // A zombie, or a thread about to be none: its end is not to come any more.
        if matches!(fields.first(), Some(&("Z" | "X"))) {
            return None;
        }
        let ticks = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ns_per_tick = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
        Some(Self {
            tid,
            tgid: status_field(&status, "Tgid:")?,
            on_cpu_ns: times.next()?.ok()?,
            run_queue_wait_ns: times.next()?.ok()?,
            voluntary_switches: status_field(&status, "voluntary_ctxt_switches:")?,
            involuntary_switches: status_field(&status, "nonvoluntary_ctxt_switches:")?,
            guest_ns: ticks(43)? * ns_per_tick,
            start_boottime_ns: ticks(22)? * ns_per_tick,
        })
    }

    /// Whether both are of one thread; an id alone may have been given to another one.
    pub(super) fn same_thread(&self, other: &Self) -> bool {
        (self.tid, self.tgid, self.start_boottime_ns)
            == (other.tid, other.tgid, other.start_boottime_ns)
    }

    /// Whether the slot is this thread's: /proc tells the start only to the clock tick.
    pub(super) fn is_of(&self, slot: &Slot) -> bool {
        let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
        self.tid == slot.tid
            && self.tgid == slot.tgid
            && (slot.flags & FLAG_RENAMED != 0
                || self.start_boottime_ns / tick_ns == slot.start_boottime_ns / tick_ns)
    }

    /// A slot for the kernel half: everything until now is the base.
    pub(super) fn to_slot(self, tenant: TenantIndex) -> Slot {
        Slot {
            tid: self.tid,
            tgid: self.tgid,
            flags: FLAG_LIVE,
            tenant,
            start_boottime_ns: self.start_boottime_ns,
            on_cpu_ns: self.on_cpu_ns,
            guest_ns: self.guest_ns,
            run_queue_wait_ns: self.run_queue_wait_ns,
            voluntary_switches: self.voluntary_switches,
            involuntary_switches: self.involuntary_switches,
            base_on_cpu_ns: self.on_cpu_ns,
            base_guest_ns: self.guest_ns,
            base_run_queue_wait_ns: self.run_queue_wait_ns,
            base_voluntary_switches: self.voluntary_switches,
            base_involuntary_switches: self.involuntary_switches,
            ..Slot::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_of_this_process_has_this_process_and_its_child() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let tree = tree(std::process::id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(tree.contains(&std::process::id()));
        assert!(tree.contains(&child.id()));
    }

    #[test]
    fn books_of_this_thread_are_read_and_become_the_base() {
        let tid = std::process::id();
        let books = Books::read(tid).unwrap();
        assert_eq!((books.tid, books.tgid), (tid, tid));
        let slot = books.to_slot(7);
        assert_eq!(slot.on_cpu_ns, slot.base_on_cpu_ns);
        assert_eq!(slot.tenant, 7);
    }

    #[test]
    fn a_thread_that_does_not_exist_has_no_books() {
        assert_eq!(Books::read(u32::MAX), None);
    }

    #[test]
    fn a_directory_that_is_no_control_group_is_named() {
        let error = of_cgroup(Path::new("/tmp")).unwrap_err().to_string();
        assert!(error.starts_with("/tmp is not a control group"), "{error}");
    }
}
