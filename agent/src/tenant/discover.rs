//! Finds tenants: VMs by the vCPU threads the kernel half found, control groups and processes by configuration.
//!
//! [`Registry::follow`], then [`Registry::adopt`] with fresh readings, are called at least once a second. All it knows about processes comes
//! through [`Processes`], so it can be driven by a script.
//!
//! A VMM's threads are listed anew every few seconds: vhost workers since Linux 6.4 (`kernel/vhost_task.c`,
//! `vhost_task_create`) and io_uring workers (`io_uring/io-wq.c`, `create_io_thread`) are threads of the VMM made by
//! `copy_process` alone, of which the kernel half hears nothing. Before 6.4 vhost workers are kernel threads named `vhost-<tgid>` (`drivers/vhost/vhost.c`, `vhost_worker_create`), which
//! are looked for when a VM is found and once more later, because a guest's driver starts them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
};

use davy_abi::{FLAG_ENDED, FLAG_VCPU, TenantIndex};
use regex::Regex;
use tracing::{info, warn};

use super::{
    Kind, Tenant,
    identity::{ProcessFacts, droplet_id, identify},
};
use crate::{config, error::chain, kernel::Reading, source::ThreadSource};

/// When kernel threads of a VM are looked for a second time, after it was found, ns.
const SECOND_WORKER_LOOK_NS: u64 = 20_000_000_000;

/// How often all threads of a droplet's process are listed anew, ns.
const WATCH_AGAIN_NS: u64 = 5_000_000_000;
/// How often it is tried again to watch threads that found no free slot, ns.
const WATCH_REFUSED_AGAIN_NS: u64 = 1_000_000_000;

/// What discovery must know about processes and control groups.
pub trait Processes {
    /// Command line, program and start of a process; `None` if it is gone.
    fn facts(&self, tgid: u32) -> Option<ProcessFacts>;
    /// Kernel threads that work for a VMM process (vhost before Linux 6.4).
    fn kernel_workers(&self, tgid: u32) -> Vec<u32>;
    /// A process's short name, as the kernel has it; empty if it is gone.
    fn command(&self, tgid: u32) -> String;
    /// Whether a control group's directory exists.
    fn cgroup_exists(&self, dir: &Path) -> bool;
    /// Whether the kernel can run VMs now.
    fn kvm_present(&self) -> bool;
}

/// A tenant from the configuration.
#[derive(Clone, Debug)]
struct Wanted {
    name: String,
    what: WantedWhat,
    watched_as: Option<TenantIndex>,
    warned: bool,
    done: bool,
}

#[derive(Clone, Debug)]
enum WantedWhat {
    Cgroup(PathBuf),
    Process { pid: u32, tree: bool },
}

/// All tenants of this host.
#[derive(Debug)]
pub struct Registry {
    tenants: BTreeMap<TenantIndex, Tenant>,
    by_tgid: HashMap<u32, TenantIndex>,
    wanted: Vec<Wanted>,
    worker_looks: Vec<(u64, TenantIndex)>,
    /// Threads of each tenant that found no free slot at the last attempt; never 0.
    refused: BTreeMap<TenantIndex, u32>,
    watch_again_at_ns: u64,
    watch_refused_at_ns: u64,
    pattern: Option<Regex>,
    next_index: TenantIndex,
}

impl Registry {
    /// A registry that has found nothing yet.
    #[must_use]
    pub fn new(configured: &[config::Tenant], pattern: Option<Regex>) -> Self {
        let wanted = configured
            .iter()
            .filter_map(|tenant| {
                let what = match (&tenant.cgroup, tenant.pid) {
                    (Some(dir), _) => WantedWhat::Cgroup(dir.clone()),
                    (None, Some(pid)) => WantedWhat::Process {
                        pid,
                        tree: tenant.tree,
                    },
                    (None, None) => return None,
                };
                Some(Wanted {
                    name: tenant.name.clone(),
                    what,
                    watched_as: None,
                    warned: false,
                    done: false,
                })
            })
            .collect();
        Self {
            tenants: BTreeMap::new(),
            by_tgid: HashMap::new(),
            wanted,
            worker_looks: Vec::new(),
            refused: BTreeMap::new(),
            watch_again_at_ns: 0,
            watch_refused_at_ns: 0,
            pattern,
            next_index: 1,
        }
    }

    /// The tenants, ended ones included until [`Registry::forget_ended`].
    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.tenants.values()
    }

    /// One tenant.
    #[must_use]
    pub fn tenant(&self, index: TenantIndex) -> Option<&Tenant> {
        self.tenants.get(&index)
    }

    /// Threads that are not watched because they found no free slot, as of the last attempts.
    #[must_use]
    pub fn threads_refused(&self) -> u64 {
        self.refused.values().map(|&n| u64::from(n)).sum()
    }

    /// Tenants that have ended, each with the later one that has its key: the two are one tenant to the detector.
    /// A successor may itself have ended; the earlier ones come first.
    #[must_use]
    pub fn successions(&self) -> Vec<(TenantIndex, TenantIndex)> {
        let mut last_of: HashMap<&str, TenantIndex> = HashMap::new();
        let mut successions: Vec<_> = self
            .tenants
            .values()
            .rev()
            .filter_map(|tenant| {
                let later = last_of.insert(&tenant.key, tenant.index);
                later.map(|later| (tenant.index, later))
            })
            .collect();
        successions.reverse();
        successions
    }

    /// The index that the next tenant will have.
    #[must_use]
    pub fn next_index(&self) -> TenantIndex {
        self.next_index
    }

    /// Takes note of a tenant that is watched as [`Registry::next_index`] already.
    pub fn enter(&mut self, key: String, name: String, kind: Kind) {
        self.insert(Tenant {
            index: self.next_index,
            key,
            droplet_id: droplet_id(&name, self.pattern.as_ref()),
            name,
            kind,
            vcpus: 0,
            threads: 0,
            ended: false,
        });
    }

    /// Starts to watch what is configured and has appeared, and lets control groups' members be looked up again.
    /// Call before readings are taken.
    pub fn follow<S: ThreadSource>(&mut self, source: &mut S, processes: &impl Processes) {
        let gone = source.refresh_cgroups();
        for tenant in self.tenants.values_mut().filter(|tenant| !tenant.ended) {
            if let Kind::Cgroup { dir } = &tenant.kind
                && gone.contains(dir)
            {
                info!(tenant = %tenant.key, "tenant ended");
                tenant.ended = true;
                for wanted in &mut self.wanted {
                    if wanted.watched_as == Some(tenant.index) {
                        // It may be made anew.
                        (wanted.watched_as, wanted.warned) = (None, false);
                    }
                }
            }
        }
        self.watch_wanted(source, processes);
        self.look_for_workers(source, processes);
    }

    /// Takes note of `readings`: gives vCPU threads to their droplets and ends what is gone. `true` if something
    /// was newly watched, so that readings should be taken again.
    pub fn adopt<S: ThreadSource>(
        &mut self,
        readings: &[Reading],
        source: &mut S,
        processes: &impl Processes,
    ) -> bool {
        self.count_threads(readings);
        self.end_the_gone(processes);
        let more = self.watch_again(readings, source);
        self.adopt_vcpus(readings, source, processes) || more
    }

    /// Drops the tenants that have ended; call after their last window was closed. Returns their indices.
    pub fn forget_ended(&mut self) -> Vec<TenantIndex> {
        let ended: Vec<_> = self
            .tenants
            .values()
            .filter(|tenant| tenant.ended)
            .map(|tenant| tenant.index)
            .collect();
        for index in &ended {
            self.tenants.remove(index);
            self.refused.remove(index);
        }
        ended
    }

    fn count_threads(&mut self, readings: &[Reading]) {
        for tenant in self.tenants.values_mut() {
            (tenant.threads, tenant.vcpus) = (0, 0);
        }
        for Reading { slot, .. } in readings {
            if slot.flags & FLAG_ENDED == 0 // a thread that left has no tenant of ours any more
                && let Some(tenant) = self.tenants.get_mut(&slot.tenant)
            {
                tenant.threads += 1;
                tenant.vcpus += u32::from(slot.flags & FLAG_VCPU != 0);
            }
        }
    }

    /// Droplets and processes end with their last thread. A process that exists may have no thread that is watched, if no
    /// slot was free.
    fn end_the_gone(&mut self, processes: &impl Processes) {
        for tenant in self.tenants.values_mut().filter(|tenant| !tenant.ended) {
            let tgid = match tenant.kind {
                Kind::Droplet { tgid, .. } | Kind::Process { tgid } => tgid,
                Kind::Cgroup { .. } => continue,
            };
            let waits_for_slots = || {
                self.refused.contains_key(&tenant.index)
                    && processes.facts(tgid).is_some_and(|facts| {
                        matches!(tenant.kind, Kind::Process { .. })
                            && tenant.key == process_key(tgid, &facts)
                    })
            };
            if tenant.threads == 0 && !waits_for_slots() {
                info!(tenant = %tenant.key, "tenant ended");
                tenant.ended = true;
                if self.by_tgid.get(&tgid) == Some(&tenant.index) {
                    self.by_tgid.remove(&tgid);
                }
            }
        }
    }

    fn watch_wanted<S: ThreadSource>(&mut self, source: &mut S, processes: &impl Processes) {
        let mut wanted = std::mem::take(&mut self.wanted);
        for wanted in wanted
            .iter_mut()
            .filter(|wanted| !wanted.done && wanted.watched_as.is_none())
        {
            let index = self.next_index;
            let (key, kind, outcome) = match &wanted.what {
                WantedWhat::Cgroup(dir) => {
                    let outcome = if processes.cgroup_exists(dir) {
                        source.watch_cgroup(dir, index).map_err(|e| chain(&e))
                    } else {
                        Err("it does not exist yet".to_owned())
                    };
                    let kind = Kind::Cgroup { dir: dir.clone() };
                    (format!("cgroup:{}", dir.display()), kind, outcome)
                }
                WantedWhat::Process { pid, tree } => {
                    let Some(facts) = processes.facts(*pid) else {
                        wanted.warn("there is no such process");
                        continue;
                    };
                    let outcome = if *tree {
                        source.watch_tree(*pid, index)
                    } else {
                        source.watch_process(*pid, index)
                    };
                    let kind = Kind::Process { tgid: *pid };
                    (
                        process_key(*pid, &facts),
                        kind,
                        outcome.map_err(|e| chain(&e)),
                    )
                }
            };
            match outcome {
                Err(reason) => wanted.warn(&reason),
                Ok(watched) => {
                    note_refused(&mut self.refused, index, &wanted.name, watched.refused);
                    wanted.done = matches!(wanted.what, WantedWhat::Process { .. });
                    wanted.watched_as = Some(index);
                    self.enter(key, wanted.name.clone(), kind);
                }
            }
        }
        self.wanted = wanted;
    }

    /// Lists the threads of droplets' processes anew, and tries again where threads found no free slot. `true` if
    /// something was newly watched.
    fn watch_again<S: ThreadSource>(&mut self, readings: &[Reading], source: &mut S) -> bool {
        let now_ns = source.now_ns();
        let all = now_ns >= self.watch_again_at_ns;
        if !all && (self.refused.is_empty() || now_ns < self.watch_refused_at_ns) {
            return false;
        }
        if all {
            self.watch_again_at_ns = now_ns.saturating_add(WATCH_AGAIN_NS);
        }
        self.watch_refused_at_ns = now_ns.saturating_add(WATCH_REFUSED_AGAIN_NS);
        let mut changed = false;
        for tenant in self.tenants.values().filter(|tenant| !tenant.ended) {
            let index = tenant.index;
            let refused = self.refused.contains_key(&index);
            let outcome = match &tenant.kind {
                Kind::Droplet { tgid, .. } | Kind::Process { tgid }
                    if is_shared(*tgid, index, readings) =>
                {
                    continue;
                }
                Kind::Droplet { tgid, .. } if all || refused => source.watch_process(*tgid, index),
                Kind::Process { tgid } if refused => {
                    let tree = self.wanted.iter().any(|wanted| {
                        wanted.watched_as == Some(index)
                            && matches!(wanted.what, WantedWhat::Process { tree: true, .. })
                    });
                    if tree {
                        source.watch_tree(*tgid, index)
                    } else {
                        source.watch_process(*tgid, index)
                    }
                }
                Kind::Cgroup { dir } if refused => source.watch_cgroup(dir, index),
                _ => continue,
            };
            // Who is gone is ended elsewhere.
            let watched = outcome.unwrap_or_default();
            changed |= watched.added > 0;
            note_refused(&mut self.refused, index, &tenant.key, watched.refused);
        }
        changed
    }

    fn adopt_vcpus<S: ThreadSource>(
        &mut self,
        readings: &[Reading],
        source: &mut S,
        processes: &impl Processes,
    ) -> bool {
        let mut changed = false;
        let mut gone = HashSet::new();
        for reading in readings {
            let slot = &reading.slot;
            if slot.tenant != 0 || slot.flags & FLAG_VCPU == 0 || gone.contains(&slot.tgid) {
                continue;
            }
            if slot.flags & FLAG_ENDED != 0 && !self.by_tgid.contains_key(&slot.tgid) {
                // Died before anyone could ask who it was.
                source.release(reading);
                continue;
            }
            let index = match self.by_tgid.get(&slot.tgid) {
                Some(&index) => index,
                None => match self.found_vmm(slot.tgid, source, processes) {
                    Some(index) => index,
                    None => {
                        gone.insert(slot.tgid);
                        continue;
                    }
                },
            };
            source.assign(reading.index, index);
            if let Some(tenant) = self.tenants.get_mut(&index) {
                tenant.threads += 1;
                tenant.vcpus += 1;
            }
            changed = true;
        }
        changed
    }

    fn found_vmm<S: ThreadSource>(
        &mut self,
        tgid: u32,
        source: &mut S,
        processes: &impl Processes,
    ) -> Option<TenantIndex> {
        let facts = processes.facts(tgid)?;
        let identity = identify(tgid, &facts, self.pattern.as_ref());
        let index = self.next_index;
        let key = identity.key.clone();
        info!(key = %identity.key, name = %identity.name, tgid, "droplet found");
        self.insert(Tenant {
            index,
            key: identity.key,
            name: identity.name,
            droplet_id: identity.droplet_id,
            kind: Kind::Droplet {
                tgid,
                vmm: identity.vmm,
            },
            vcpus: 0,
            threads: 0,
            ended: false,
        });
        self.by_tgid.insert(tgid, index);
        match source.watch_process(tgid, index) {
            Ok(watched) => {
                note_refused(&mut self.refused, index, &key, watched.refused);
            }
            Err(error) => warn!(
                tgid,
                error = chain(&error),
                "only this VM's vCPU threads can be watched"
            ),
        }
        let now_ns = source.now_ns();
        self.worker_looks.push((now_ns, index));
        self.worker_looks
            .push((now_ns.saturating_add(SECOND_WORKER_LOOK_NS), index));
        Some(index)
    }

    fn look_for_workers<S: ThreadSource>(&mut self, source: &mut S, processes: &impl Processes) {
        let now_ns = source.now_ns();
        let due: Vec<_> = self
            .worker_looks
            .extract_if(.., |(at_ns, _)| *at_ns <= now_ns)
            .collect();
        for (_, index) in due {
            let Some(tenant) = self.tenants.get(&index).filter(|tenant| !tenant.ended) else {
                continue;
            };
            let Kind::Droplet { tgid, .. } = tenant.kind else {
                continue;
            };
            for worker in processes.kernel_workers(tgid) {
                if let Err(error) = source.watch_process(worker, index) {
                    warn!(
                        tgid,
                        worker,
                        error = chain(&error),
                        "cannot watch a vhost worker"
                    );
                }
            }
        }
    }

    /// Enters a tenant under its index, with a key no other present tenant has.
    fn insert(&mut self, mut tenant: Tenant) {
        let taken = |key: &str| self.tenants.values().any(|t| !t.ended && t.key == key);
        if taken(&tenant.key) {
            let unique = (2_u32..)
                .map(|n| format!("{}#{n}", tenant.key))
                .find(|key| !taken(key))
                .unwrap_or_else(|| format!("{}#", tenant.key));
            warn!(
                key = %tenant.key, reported_as = %unique,
                "two tenants on this host have the same identity; give each VM its own name or UUID"
            );
            tenant.key = unique;
        }
        self.next_index = self.next_index.wrapping_add(1).max(1);
        self.tenants.insert(tenant.index, tenant);
    }
}

impl Wanted {
    fn warn(&mut self, reason: &str) {
        if !self.warned {
            let (name, what) = (&self.name, &self.what);
            warn!(tenant = %name, ?what, reason, "cannot watch a configured tenant yet; asking again at every look");
            self.warned = true;
        }
    }
}

/// The key of a process; another that gets its number starts at another time.
fn process_key(tgid: u32, facts: &ProcessFacts) -> String {
    format!("pid:{tgid}@{}", facts.start_ticks)
}

/// Whether threads of the process belong to another tenant (a control group, say), which is not to lose them.
fn is_shared(tgid: u32, tenant: TenantIndex, readings: &[Reading]) -> bool {
    readings.iter().any(|reading| {
        let owner = reading.slot.tenant;
        reading.slot.tgid == tgid && !reading.ended() && owner != 0 && owner != tenant
    })
}

/// Keeps how many of a tenant's threads found no free slot, and says so when that begins and ends.
fn note_refused(
    all: &mut BTreeMap<TenantIndex, u32>,
    index: TenantIndex,
    tenant: &str,
    refused: u32,
) {
    if refused == 0 {
        if all.remove(&index).is_some() {
            info!(%tenant, "all threads are watched now");
        }
    } else if all.insert(index, refused).is_none() {
        warn!(%tenant, refused, "threads are not watched: raise slots_max; trying again every second");
    }
}

/// `/proc` and the control groups of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcFs;

/// `PF_KTHREAD` in `include/linux/sched.h`.
const PF_KTHREAD: u64 = 0x0020_0000;

/// Field `number` (counted from 1 as in proc(5), at least 3) of a `/proc/<pid>/stat` line.
fn stat_field(stat: &str, number: usize) -> Option<u64> {
    // The name, field 2, is in parentheses and may hold anything, also parentheses.
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name
        .split_ascii_whitespace()
        .nth(number.checked_sub(3)?)?
        .parse()
        .ok()
}

impl Processes for ProcFs {
    fn facts(&self, tgid: u32) -> Option<ProcessFacts> {
        let stat = std::fs::read_to_string(format!("/proc/{tgid}/stat")).ok()?;
        let line = std::fs::read(format!("/proc/{tgid}/cmdline")).ok()?;
        let line = line.strip_suffix(b"\0").unwrap_or(&line);
        let argv = if line.is_empty() {
            Vec::new()
        } else {
            line.split(|&byte| byte == 0)
                .map(|argument| String::from_utf8_lossy(argument).into_owned())
                .collect()
        };
        let exe = std::fs::read_link(format!("/proc/{tgid}/exe"))
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default();
        Some(ProcessFacts {
            argv,
            exe,
            start_ticks: stat_field(&stat, 22)?,
        })
    }

    fn kernel_workers(&self, tgid: u32) -> Vec<u32> {
        let comm = format!("vhost-{tgid}\n");
        let Ok(directory) = std::fs::read_dir("/proc") else {
            return Vec::new();
        };
        directory
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == comm)
                    && std::fs::read_to_string(format!("/proc/{pid}/stat"))
                        .ok()
                        .and_then(|stat| stat_field(&stat, 9))
                        .is_some_and(|flags| flags & PF_KTHREAD != 0)
            })
            .collect()
    }

    fn command(&self, tgid: u32) -> String {
        std::fs::read_to_string(format!("/proc/{tgid}/comm"))
            .map(|name| name.trim_end().to_owned())
            .unwrap_or_default()
    }

    fn cgroup_exists(&self, dir: &Path) -> bool {
        dir.is_dir()
    }

    fn kvm_present(&self) -> bool {
        // The device's node may be hidden from a container; sysfs shows what the kernel has registered.
        ["/dev/kvm", "/sys/devices/virtual/misc/kvm"]
            .iter()
            .any(|path| Path::new(path).exists())
    }
}

#[cfg(test)]
#[path = "discover_tests.rs"]
mod tests;
