//! The empty program, loaded and attached.

use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};
use aya::{Btf, Ebpf, programs::BtfTracePoint};

/// The object that build.rs made, aligned as the ELF reader wants it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/davy-empty-ebpf.o"));

/// What a program has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Events it ran for.
    pub runs: u64,
    /// Time it took for them, ns.
    pub ns: u64,
}

impl Cost {
    /// What was added since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            runs: self.runs.saturating_sub(earlier.runs),
            ns: self.ns.saturating_sub(earlier.ns),
        }
    }
}

/// The attached program; dropping it detaches it.
pub struct Empty {
    ebpf: Ebpf,
}

impl Empty {
    /// Loads and attaches it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach() -> Result<Self> {
        let mut ebpf = Ebpf::load(OBJECT).context("the empty program cannot be read")?;
        let btf = Btf::from_sys_fs().context("the kernel has no BTF")?;
        let program: &mut BtfTracePoint = ebpf
            .program_mut("empty")
            .context("the empty program is not in its object")?
            .try_into()?;
        program
            .load("sched_switch", &btf)
            .context("the empty program cannot be loaded: run as root")?;
        program
            .attach()
            .context("the empty program cannot be attached")?;
        Ok(Self { ebpf })
    }

    /// What it has cost since it was attached.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn cost(&self) -> Result<Cost> {
        let program = self
            .ebpf
            .program("empty")
            .context("the empty program is gone")?;
        let fd = program.fd()?.as_fd().as_raw_fd();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
        parse(&info).context("this kernel does not count runs of programs")
    }
}

/// `run_cnt` and `run_time_ns` (`bpf_prog_show_fdinfo`, kernel/bpf/syscall.c).
fn parse(fdinfo: &str) -> Option<Cost> {
    let field = |key: &str| {
        let line = fdinfo.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().parse().ok()
    };
    Some(Cost {
        runs: field("run_cnt:")?,
        ns: field("run_time_ns:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_account_is_read() {
        let cost = parse("pos:\t0\nrun_time_ns:\t1200\nrun_cnt:\t40\n").unwrap();
        assert_eq!(cost, Cost { runs: 40, ns: 1200 });
        assert_eq!(parse("pos:\t0\n"), None);
        let earlier = Cost { runs: 30, ns: 200 };
        assert_eq!(cost.since(earlier), Cost { runs: 10, ns: 1000 });
    }
}
