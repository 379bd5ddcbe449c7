//! The control groups the demo's tenants live in: made in the hierarchy that is there, emptied and removed
//! with the value that stands for them.
//!
//! Cgroup v2 is preferred; where only v1 is mounted, the `cpu` or `cpuacct` hierarchy serves. A demo that was
//! killed leaves empty groups behind: the next one removes them.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};

use crate::facts;

/// How all of the demo's groups begin; the demo's process id follows.
const PREFIX: &str = "davy-demo-";

/// How long a group may take to empty.
const EMPTY_WITHIN: Duration = Duration::from_secs(5);

/// The demo's own group, with one group in it per tenant.
#[derive(Debug)]
pub struct Groups {
    dir: PathBuf,
}

impl Groups {
    /// Makes the groups.
    ///
    /// # Errors
    /// If no hierarchy lets them be made.
    pub fn create(names: &[&str]) -> Result<Self> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")
            .context("cannot read /proc/self/mountinfo")?;
        let mut reason =
            anyhow!("no cgroup hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup");
        for mount in hierarchies(&mountinfo) {
            remove_stale(&mount);
            let groups = Self {
                dir: mount.join(format!("{PREFIX}{}", std::process::id())),
            };
            match groups.make(names) {
                Ok(()) => return Ok(groups),
                Err(error) => reason = error,
            }
        }
        Err(reason)
    }

    fn make(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let dir = self.dir_of(name);
            fs::create_dir_all(&dir)
                .with_context(|| format!("cannot make the control group {}", dir.display()))?;
        }
        Ok(())
    }

    /// The directory of one tenant's group.
    pub fn dir_of(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.dir) {
            eprintln!(
                "left behind: the control group {} ({error:#})",
                self.dir.display()
            );
        }
    }
}

/// The mount points to try, cgroup v2 first.
fn hierarchies(mountinfo: &str) -> Vec<PathBuf> {
    let v2: String = mountinfo
        .lines()
        .filter(|line| line.contains(" - cgroup2 "))
        .map(|line| format!("{line}\n"))
        .collect();
    let mut mounts = facts::cgroup_mounts(&v2);
    for mount in facts::cgroup_mounts(mountinfo) {
        if !mounts.contains(&mount) {
            mounts.push(mount);
        }
    }
    mounts.into_iter().map(PathBuf::from).collect()
}

/// Removes the groups of demos that are no more.
fn remove_stale(mount: &Path) {
    let entries = fs::read_dir(mount).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Best effort: what stays is an empty directory.
            let _ = remove(&entry.path());
        }
    }
}

/// Ends every process in a group and its descendants, and removes them.
fn remove(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            remove(&path)?;
        }
    }
    let deadline = Instant::now() + EMPTY_WITHIN;
    loop {
        for pid in processes(dir) {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("cannot remove {}", dir.display()));
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn processes(dir: &Path) -> Vec<Pid> {
    fs::read_to_string(dir.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| Pid::from_raw(line.trim().parse().ok()?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_comes_first() {
        let mountinfo = "\
            31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            33 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let expected = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpu"].map(PathBuf::from);
        assert_eq!(hierarchies(mountinfo), expected);
        assert!(hierarchies("").is_empty());
    }
}
