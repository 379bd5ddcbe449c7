//! What the programs cost, by the kernel's own account: `run_cnt` and `run_time_ns` in the program's fdinfo
//! (`bpf_prog_show_fdinfo`, kernel/bpf/syscall.c), kept while `BPF_ENABLE_STATS` is on.

use std::os::fd::{AsFd, AsRawFd};

use aya::Ebpf;

/// One program's cost since it was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramCost {
    /// The program's name.
    pub name: String,
    /// Events it ran for.
    pub run_count: u64,
    /// Time it took for them, ns.
    pub run_time_ns: u64,
}

pub(super) fn costs(ebpf: &Ebpf) -> Vec<ProgramCost> {
    ebpf.programs()
        .filter_map(|(name, program)| {
            let fd = program.fd().ok()?;
            let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
            parse(name, &std::fs::read_to_string(path).ok()?)
        })
        .collect()
}

/// `None` if the kernel does not say, or never measured.
fn parse(name: &str, fdinfo: &str) -> Option<ProgramCost> {
    let field = |key: &str| {
        let line = fdinfo.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().parse::<u64>().ok()
    };
    let run_count = field("run_cnt:")?;
    (run_count > 0).then_some(ProgramCost {
        name: name.to_owned(),
        run_count,
        run_time_ns: field("run_time_ns:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo_is_read() {
        let cost = parse("p", "pos:\t0\nrun_time_ns:\t1200\nrun_cnt:\t40\n").unwrap();
        assert_eq!((cost.run_count, cost.run_time_ns), (40, 1200));
        assert_eq!(parse("p", "pos:\t0\n"), None);
        assert_eq!(parse("p", "run_time_ns:\t0\nrun_cnt:\t0\n"), None);
    }
}
