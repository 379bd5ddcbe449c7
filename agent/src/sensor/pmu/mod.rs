//! `pmu`: hardware performance counters of each watched thread.
//!
//! A sensor without a kernel half of its own: it counts by perf_event_open(2). Of a vCPU guest mode alone is counted, of other threads (plain
//! tenants, trials) user space alone: what the tenant computes, not what the VMM or the kernel does for it. Per thread there
//! is one group at a time: cycles and instructions, and the optional events of the present slice ([`budget`], [`family`]).
//! The mix of floating-point operations goes to a sequential test per thread ([`mixes`], [`davy_evidence::pmu`]).
//!
//! ```text
//! look: open for new threads ─ slice over? read, next slice ─ turn complete? its mix to the test ─ ended? read, close
//! close of a window: read all ─ estimates per thread ─ sums per tenant
//! ```
//!
//! States: *unsupported* where the kernel or the CPU cannot count (with the reason), *never ran* while no group was ever on the
//! counters with instructions to count, *stalled* where nothing new was counted in the window, else *live*.
//!
//! Limits: descriptors for at most half of the limit on open files (which the daemon raises as far as it may); threads beyond are not
//! counted, and the sensor's reason says how many. A slice lasts at least as long as two looks are apart, so what lives for less than that
//! is counted but gives no turn. Where guests have the counters to themselves (mediated vPMU) the kernel refuses, and the sensor is unsupported.

pub mod budget;
pub mod counters;
pub mod family;
pub mod mixes;
mod thread;

#[cfg(test)]
pub(crate) mod fake;

use std::collections::{BTreeMap, BTreeSet};

use davy_abi::{SlotIndex, TenantIndex};
use davy_evidence::{FpOps, HashRate, Pmu as Evidence, ResumeError, SensorState, pmu};
use serde::Deserialize;

use self::{
    budget::{Budget, Plan, plans},
    counters::{Counters, OpenError, Perf},
    family::{Cpu, PAIR, What, family_of, this_cpu},
    mixes::{Mixes, Standing, Turn},
    thread::{Figures, Outcome, Thread, has_mix},
};
use crate::{
    evidence::{InAllModes, Mixing},
    kernel::{Reading, perf::Scope},
    window::ThreadKey,
};

/// The sensor's name.
pub const NAME: &str = "pmu";

/// `[pmu]` of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Whether counters are used at all. Default: true.
    pub enabled: bool,
    /// General counters of each hardware thread that are left free for guests and for `perf`; 0 to 16. Default: 1. Guests have their
    /// counters in any case; [`budget`] says what this is for, and what greater values cost.
    pub reserve_counters: u32,
    /// How long a set of events is counted before the next one has its turn, ms; 1000 to 60000. Default: 1000.
    pub slice_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            enabled: true,
            reserve_counters: 1,
            slice_ms: 1_000,
        }
    }
}

/// What this host can count.
#[derive(Clone, Debug)]
struct Host {
    family: &'static str,
    general_counters: u32,
    plans: Vec<Plan>,
    threads_max: usize,
    slice_ns: u64,
}

#[derive(Debug)]
struct Entry {
    thread: Thread,
    /// Why its present slice is not counted.
    failed: Option<OpenError>,
    round: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Pmu {
    counters: Box<dyn Counters>,
    host: Result<Host, String>,
    threads: BTreeMap<(TenantIndex, ThreadKey), Entry>,
    /// Last figures of threads that ended in this window.
    ended: Vec<(TenantIndex, ThreadKey, Figures)>,
    mixes: Mixes,
    /// Turns that the last look completed.
    turns: Vec<Turn>,
    /// Tenants of which anything was ever counted.
    ever: BTreeSet<TenantIndex>,
    ever_counted: bool,
    /// Threads that the last look could not count, by the reason.
    uncounted: BTreeMap<String, u64>,
    /// Tenants of which a thread could not be counted in the last look.
    refused: BTreeSet<TenantIndex>,
    round: u64,
    /// Of the window, as of the last [`Pmu::collect`]: (wanted, counted), ns, and whether there were instructions.
    window: (u64, u64, bool),
}

impl Pmu {
    /// The kernel's counters on this machine.
    #[must_use]
    pub fn of_this_host(options: &Options) -> Self {
        let watchdog = std::fs::read_to_string("/proc/sys/kernel/nmi_watchdog")
            .is_ok_and(|content| content.trim() == "1");
        Self::new(options, &this_cpu(), watchdog, fds_max(), Box::new(Perf))
    }

    /// Counters of `cpu`, of which the kernel's watchdog may have one, with at most `fds_max` descriptors.
    #[must_use]
    pub fn new(
        options: &Options,
        cpu: &Cpu,
        watchdog: bool,
        fds_max: usize,
        mut counters: Box<dyn Counters>,
    ) -> Self {
        let host = host(options, cpu, watchdog, fds_max, counters.as_mut());
        Self {
            counters,
            host,
            threads: BTreeMap::new(),
            ended: Vec::new(),
            mixes: Mixes::default(),
            turns: Vec::new(),
            ever: BTreeSet::new(),
            ever_counted: false,
            uncounted: BTreeMap::new(),
            refused: BTreeSet::new(),
            round: 0,
            window: (0, 0, false),
        }
    }

    /// What is counted here in one sentence, or why nothing is.
    ///
    /// # Errors
    /// The reason.
    pub fn capability(&self) -> Result<String, String> {
        let host = self.host.as_ref().map_err(Clone::clone)?;
        let plan = &host.plans[0];
        let events: Vec<_> = plan.slices.iter().flatten().map(|e| e.name).collect();
        let mut text = format!(
            "{}, {} general counters: cycles and instructions always",
            host.family, host.general_counters
        );
        if !events.is_empty() {
            text += &format!("; in {} turns: {}", plan.slices.len(), events.join(", "));
        }
        if !plan.left_out.is_empty() {
            let names: Vec<_> = plan.left_out.iter().map(|event| event.name).collect();
            text += &format!(
                "; too few counters for {}: lower `pmu.reserve_counters`",
                names.join(", ")
            );
        }
        Ok(text)
    }

    /// Opens counters for threads that appeared, moves slices on, and closes those of threads that ended.
    /// `vcpus_only(tenant)`: whether only its vCPUs count; `None` if there is no such tenant.
    pub fn look(
        &mut self,
        readings: &[Reading],
        now_ns: u64,
        vcpus_only: impl Fn(TenantIndex) -> Option<bool>,
    ) {
        self.turns.clear();
        self.uncounted.clear();
        self.refused.clear();
        let Ok(host) = &self.host else {
            return;
        };
        self.round += 1;
        let mut failed = Vec::new();
        for reading in readings.iter().filter(|reading| !reading.ended()) {
            let tenant = reading.slot.tenant;
            let scope = match (reading.is_vcpu(), vcpus_only(tenant)) {
                (_, None) | (false, Some(true)) => continue,
                (true, Some(_)) => Scope::Guest,
                (false, Some(false)) => Scope::User,
            };
            let thread = ThreadKey {
                slot: reading.index,
                tgid: reading.slot.tgid,
                start_boottime_ns: reading.slot.start_boottime_ns,
            };
            let key = (tenant, thread);
            let there = self.threads.len();
            match self.threads.get_mut(&key) {
                Some(entry) if entry.thread.scope() == scope => {
                    entry.round = self.round;
                    if entry.thread.is_due(now_ns, host.slice_ns) {
                        let counters = self.counters.as_mut();
                        let slice = entry.thread.next_slice(counters, &host.plans, now_ns);
                        if let Ok(Outcome::Turn(matched)) = slice {
                            self.turns.push(Turn {
                                thread,
                                tenant,
                                matched,
                            });
                        }
                        entry.failed = slice.err();
                    }
                    failed.extend(entry.failed.clone().map(|error| (tenant, error)));
                }
                // Not there, or it has become a vCPU: what was counted of it as another thread ends below.
                before if before.is_none() && there >= host.threads_max => {
                    failed.push((tenant, OpenError::NoDescriptors));
                }
                None => {
                    let counters = self.counters.as_mut();
                    let opened =
                        Thread::open(counters, reading.slot.tid, scope, &host.plans, now_ns);
                    match opened {
                        Ok(thread) => {
                            let entry = Entry {
                                thread,
                                failed: None,
                                round: self.round,
                            };
                            self.threads.insert(key, entry);
                        }
                        Err(error) => failed.push((tenant, error)),
                    }
                }
                Some(_) => {}
            }
        }
        for (tenant, error) in failed {
            // One that has just ended is none that could not be counted.
            if error != OpenError::ThreadGone {
                *self.uncounted.entry(error.to_string()).or_default() += 1;
                self.refused.insert(tenant);
            }
        }
        for turn in &self.turns {
            self.mixes.add(turn);
        }
        self.end_unseen();
    }

    /// Turns that the last look completed.
    #[must_use]
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// Reads all counters, so that what follows tells of the window up to now.
    pub fn collect(&mut self) {
        let Ok(host) = &self.host else {
            return;
        };
        for entry in self.threads.values_mut() {
            entry.thread.collect(&host.plans);
        }
        let live = self.threads.values().map(|entry| entry.thread.window());
        let ended = self.ended.iter().map(|(_, _, figures)| figures);
        self.window = live
            .chain(ended)
            .fold((0, 0, false), |(wanted, counted, any), figures| {
                (
                    figures.enabled_ns.saturating_add(wanted),
                    figures.running_ns.saturating_add(counted),
                    any || figures.of(What::Instructions) > Some(0),
                )
            });
        self.ever_counted |= self.window.2;
    }

    /// The sensor's state on this host in the window, after [`Pmu::collect`], with a reason or a remark.
    #[must_use]
    pub fn status(&self) -> (SensorState, String) {
        if let Err(reason) = &self.host {
            return (SensorState::Unsupported, reason.clone());
        }
        let (wanted_ns, counted_ns, any) = self.window;
        let mut remarks: Vec<_> = self
            .uncounted
            .iter()
            .map(|(reason, threads)| format!("{threads} threads are not counted: {reason}"))
            .collect();
        if counted_ns < wanted_ns
            && (counted_ns as f64) < budget::RUNNING_SHARE_MIN * wanted_ns as f64
        {
            remarks.push(format!(
                "even cycles and instructions were counted in only {:.0} % of the time: guests or other programs need the counters",
                counted_ns as f64 * 100.0 / wanted_ns as f64
            ));
        }
        let state = if any {
            SensorState::Live
        } else if self.ever_counted {
            SensorState::Stalled
        } else if self.threads.is_empty() && !self.uncounted.is_empty() {
            SensorState::Unsupported
        } else {
            SensorState::NeverRan
        };
        (state, remarks.join("; "))
    }

    /// Which of a tenant's threads have `RandomX`'s mix now.
    #[must_use]
    pub fn mixing(&self, tenant: TenantIndex) -> Mixing {
        self.mixes.mixing(tenant)
    }

    /// What was counted for a tenant in the window of `span_ns`, after [`Pmu::collect`]; a new window begins.
    pub fn close(&mut self, tenant: TenantIndex, span_ns: u64, all_modes: &InAllModes) -> Evidence {
        let Ok(host) = &self.host else {
            // What a detector had stored still stands: the counters may have been there before the agent's start.
            return Evidence {
                state: SensorState::Unsupported,
                mix_state: SensorState::Unsupported,
                ..stored(&self.mixes.close(tenant, span_ns, all_modes))
            };
        };
        let has_mix = has_mix(&host.plans[0]);
        let mut figures: Vec<_> = threads_of(&mut self.threads, tenant)
            .map(|(key, entry)| (key, entry.thread.close_window()))
            .collect();
        self.ended.retain(|&(of, key, last)| {
            if of == tenant {
                figures.push((key, last));
            }
            of != tenant
        });
        let standing = self.mixes.close(tenant, span_ns, all_modes);
        let mut evidence = Evidence {
            hash_rate: hash_rate(&figures, &standing, span_ns),
            ..sums(&figures, stored(&standing))
        };
        let any = evidence.instructions > 0;
        if any {
            self.ever.insert(tenant);
        }
        let ever = self.ever.contains(&tenant);
        let refused = self.refused.contains(&tenant)
            && threads_of(&mut self.threads, tenant).next().is_none();
        evidence.state = state(any, ever, refused);
        evidence.mix_state = if has_mix {
            state(standing.turns > 0, standing.ever, refused)
        } else {
            SensorState::Unsupported
        };
        evidence
    }

    /// Takes up where a detector has a tenant's test of the mix stored.
    ///
    /// # Errors
    /// If the stored state is out of range or contradicts itself; nothing is changed then.
    pub fn resume(&mut self, tenant: TenantIndex, stored: &Evidence) -> Result<(), ResumeError> {
        self.mixes.resume(tenant, stored)
    }

    /// Makes what was counted for `ended`, a tenant that ended in this window, that of `successor`, which began in it.
    pub fn merge(&mut self, ended: TenantIndex, successor: TenantIndex) {
        self.mixes.merge(ended, successor);
        for (tenant, ..) in &mut self.ended {
            if *tenant == ended {
                *tenant = successor;
            }
        }
        if self.ever.remove(&ended) {
            self.ever.insert(successor);
        }
    }

    /// Forgets a tenant that has ended.
    pub fn forget(&mut self, tenant: TenantIndex) {
        self.mixes.forget(tenant);
        self.ever.remove(&tenant);
        self.ended.retain(|(of, ..)| *of != tenant);
    }

    /// Reads and closes the counters of threads that the last look did not see.
    fn end_unseen(&mut self) {
        let Ok(host) = &self.host else {
            return;
        };
        let (round, ended, mixes) = (self.round, &mut self.ended, &mut self.mixes);
        self.threads.retain(|&(tenant, key), entry| {
            if entry.round == round {
                return true;
            }
            entry.thread.collect(&host.plans);
            ended.push((tenant, key, entry.thread.close_window()));
            mixes.end(key, tenant);
            false
        });
    }
}

fn host(
    options: &Options,
    cpu: &Cpu,
    watchdog: bool,
    fds_max: usize,
    counters: &mut dyn Counters,
) -> Result<Host, String> {
    if !options.enabled {
        return Err("switched off by the configuration (`pmu.enabled`)".to_owned());
    }
    counters
        .open(0, &PAIR, Scope::User)
        .map_err(|error| error.to_string())?;
    let budget = Budget {
        general: cpu.general_counters,
        watchdog,
        reserve: options.reserve_counters,
        has_fixed_counters: cpu.has_fixed_counters,
    };
    let optional = budget.optional().ok_or_else(|| {
        format!(
            "of this CPU's {} counters, {} of the kernel's watchdog and {} in reserve leave too few: lower `pmu.reserve_counters`",
            budget.general,
            u32::from(watchdog),
            budget.reserve
        )
    })?;
    let family = family_of(cpu);
    let plans = plans(family.events, optional);
    let fds = plans.iter().map(Plan::fds).max().unwrap_or(PAIR.len());
    Ok(Host {
        family: family.name,
        general_counters: cpu.general_counters,
        threads_max: fds_max / fds,
        plans,
        slice_ns: options.slice_ms.saturating_mul(1_000_000),
    })
}

/// Raises this process's limit on open files as far as it may go. Not for one that starts other programs: they would inherit it.
pub fn raise_fd_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised it stays as it is, and fewer threads are counted, which the sensor says.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    );
}

/// Descriptors this sensor may use: half of the limit on open files.
fn fds_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let files = limit.current.unwrap_or(1 << 20);
    usize::try_from(files / 2).unwrap_or(usize::MAX)
}

fn threads_of(
    threads: &mut BTreeMap<(TenantIndex, ThreadKey), Entry>,
    tenant: TenantIndex,
) -> impl Iterator<Item = (ThreadKey, &mut Entry)> {
    let least = ThreadKey {
        slot: SlotIndex::MIN,
        tgid: 0,
        start_boottime_ns: 0,
    };
    let greatest = ThreadKey {
        slot: SlotIndex::MAX,
        tgid: u32::MAX,
        start_boottime_ns: u64::MAX,
    };
    threads
        .range_mut((tenant, least)..=(tenant, greatest))
        .map(|(&(_, key), entry)| (key, entry))
}

/// `any`: in this window; `refused`: it could not be counted, and nothing else of it is.
fn state(any: bool, ever: bool, refused: bool) -> SensorState {
    match (any, ever, refused) {
        (true, ..) => SensorState::Live,
        (false, _, true) => SensorState::Unsupported,
        (false, true, false) => SensorState::Stalled,
        (false, false, false) => SensorState::NeverRan,
    }
}

/// Where the tests stand.
fn stored(standing: &Standing) -> Evidence {
    Evidence {
        turns: standing.turns,
        matches: standing.matches,
        mix_llr: standing.nearest.llr(),
        mix_turns: standing.nearest.turns(),
        mix_concluded: standing.nearest.concluded(),
        ..Evidence::default()
    }
}

fn sums(figures: &[(ThreadKey, Figures)], base: Evidence) -> Evidence {
    // Known is what was counted of any thread: the others did not run while it was counted, or only just began.
    let sum = |what| {
        figures
            .iter()
            .filter_map(|(_, figures)| figures.of(what))
            .reduce(u64::saturating_add)
    };
    let time = |of: fn(&Figures) -> u64| {
        figures
            .iter()
            .fold(0_u64, |sum, (_, figures)| sum.saturating_add(of(figures)))
    };
    Evidence {
        cycles: sum(What::Cycles).unwrap_or(0),
        instructions: sum(What::Instructions).unwrap_or(0),
        cache_misses: sum(What::CacheMisses),
        branch_misses: sum(What::BranchMisses),
        fp: FpOps {
            add: sum(What::FpAdd),
            sub: sum(What::FpSub),
            add_sub: sum(What::FpAddSub),
            mul: sum(What::FpMul),
            div: sum(What::FpDiv),
            sqrt: sum(What::FpSqrt),
            div_sqrt: sum(What::FpDivSqrt),
            packed_double: sum(What::FpPackedDouble),
        },
        control_word_traps: sum(What::ControlWordTraps),
        divider_cycles: sum(What::DividerCycles),
        aes: sum(What::Aes),
        sha: sum(What::Sha),
        time_enabled_ns: time(|figures| figures.enabled_ns),
        time_running_ns: time(|figures| figures.running_ns),
        ..base
    }
}

/// What the divisions of the threads concluded amount to.
fn hash_rate(
    figures: &[(ThreadKey, Figures)],
    standing: &Standing,
    span_ns: u64,
) -> Option<HashRate> {
    // A packed-double operation is two FLOPs.
    const FLOPS_PER_OP: f64 = 2.0;
    let divisions = |figures: &Figures| {
        let apart = figures.of(What::FpDiv).map(|count| count as f64);
        apart.or_else(|| {
            let flops = figures.of(What::FpDivSqrt)? as f64;
            Some(flops / FLOPS_PER_OP * pmu::DIVISIONS_OF_DIV_SQRT)
        })
    };
    let all = figures
        .iter()
        .filter(|(key, _)| standing.concluded.contains(key))
        .filter_map(|(_, figures)| divisions(figures))
        .reduce(|sum, more| sum + more)?;
    let seconds = std::time::Duration::from_nanos(span_ns).as_secs_f64();
    if seconds <= 0.0 {
        return None;
    }
    let (low, high) = pmu::hash_rate(all / seconds);
    Some(HashRate { low, high })
}

#[cfg(test)]
mod tests;
