//! From readings to messages: ties discovery, sums and tests together.
//!
//! [`Observer::look`] is called at least once a second, and right before [`Observer::close`] at each window's end. Clocks and
//! threads come through [`ThreadSource`], processes through [`Processes`]: nothing else is asked of the system.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use davy_abi::{FLAG_ENDED, TenantIndex};
use davy_evidence::{Level, SensorState, TenantEvidence, verdict};
use davy_proto::v1;
use tracing::{info, warn};

use crate::{
    check::NO_KVM,
    config::Config,
    error::chain,
    evidence::{HostSensors, Tests},
    governor::{FEW_LOOKS_NS, Step},
    kernel::Reading,
    message::{cut, message, most_telling},
    sensor::{
        Looks,
        kvm_exits::{Guests, HostStates},
        pmu::{self, Pmu},
        register_state,
        waits::Ledger,
    },
    source::ThreadSource,
    tenant::{
        Kind, Tenant,
        discover::{Processes, Registry},
    },
    uplink::Carried,
    window::{Accountant, ThreadDelta},
};

/// Most tenants in a window on the wire; a detector refuses windows with more.
const TENANTS_MAX: usize = 4_096;
/// How long stored tests wait for their tenant to be found, ns.
const CARRIED_WAIT_NS: u64 = 3_600_000_000_000;
/// A sensor that has not run after so many windows with threads to measure is warned of.
const NEVER_RAN_WINDOWS: u32 = 2;
/// The sensors' list says under this name if VMs cannot be found.
const VCPUS: &str = "vcpus";

/// What one look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// CPUs on which evidence is forming.
    pub forming_cpus: Vec<u32>,
    /// Slots of ended threads that were handed back.
    pub released: usize,
}

/// What the last closed window and the present readings amount to, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// Threads watched now.
    pub threads: usize,
    /// Tenants by verdict level: quiet, suspect, mining.
    pub tenants: BTreeMap<&'static str, u64>,
    /// Tenants left out of the last window, which had too many.
    pub tenants_left_out: u64,
    /// Threads that are not watched because they found no free slot, as of the last attempts.
    pub threads_refused: u64,
    /// The sensors' states on this host.
    pub sensors: Vec<(String, SensorState)>,
}

/// The span of a window, ns since the Unix epoch; `end > start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its begin.
    pub start_unix_ns: u64,
    /// Its end.
    pub end_unix_ns: u64,
}

/// The span that ends at `end_unix_ns` and lasted `elapsed_ns`. The wire refuses spans above an hour; a window
/// closed a moment late, or after the machine was held up, is said to have begun later than it did.
#[must_use]
pub fn span(end_unix_ns: u64, elapsed_ns: u64) -> Span {
    let elapsed_ns = elapsed_ns.clamp(1, 3_600_000_000_000);
    Span {
        start_unix_ns: end_unix_ns.saturating_sub(elapsed_ns),
        end_unix_ns,
    }
}

impl Span {
    /// The same, beginning where `previous` ended: span and end are read from two clocks at two moments, and windows
    /// that follow one another neither overlap nor leave a gap. Left as it is if the wall clock was set meanwhile.
    #[must_use]
    pub fn after(self, previous: Option<Self>) -> Self {
        const APART_NS_MAX: u64 = 1_000_000_000;
        match previous {
            Some(previous)
                if previous.end_unix_ns.abs_diff(self.start_unix_ns) < APART_NS_MAX
                    && previous.end_unix_ns < self.end_unix_ns =>
            {
                Self {
                    start_unix_ns: previous.end_unix_ns,
                    ..self
                }
            }
            _ => self,
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Observer<S, P> {
    source: S,
    processes: P,
    registry: Registry,
    accountant: Accountant,
    tests: Tests,
    /// `None`: its evidence says nothing of the sensor.
    pmu: Option<Pmu>,
    guests: Guests,
    waits: Ledger,
    readings: Vec<Reading>,
    deltas: Vec<ThreadDelta>,
    carried: HashMap<String, TenantEvidence>,
    /// `CLOCK_MONOTONIC` at which `carried` came.
    carried_at_ns: u64,
    /// `CLOCK_BOOTTIME` at which observing began.
    began_boottime_ns: u64,
    levels: HashMap<TenantIndex, Level>,
    looks: u64,
    ever_looked: bool,
    ever_watched: bool,
    /// Whether the kernel half has met a watched thread at a switch.
    ever_switched: bool,
    /// Windows that ended with threads watched, up to one more than [`NEVER_RAN_WINDOWS`].
    watching_windows: u32,
    overview: Overview,
    /// Why less is measured than could be; empty if nothing is shed.
    shed: String,
}

impl<S: ThreadSource, P: Processes> Observer<S, P> {
    /// An observer that has seen nothing yet; `source` has just begun.
    pub fn new(source: S, processes: P, config: &Config) -> Self {
        Self {
            registry: Registry::new(&config.tenant, config.name_pattern()),
            began_boottime_ns: source.boottime_ns(),
            source,
            processes,
            accountant: Accountant::default(),
            tests: Tests::default(),
            pmu: None,
            guests: Guests::default(),
            waits: Ledger::default(),
            readings: Vec::new(),
            deltas: Vec::new(),
            carried: HashMap::new(),
            carried_at_ns: 0,
            levels: HashMap::new(),
            looks: 0,
            ever_looked: false,
            ever_watched: false,
            ever_switched: false,
            watching_windows: 0,
            overview: Overview::default(),
            shed: String::new(),
        }
    }

    /// The same, with performance counters.
    #[must_use]
    pub fn with_pmu(mut self, pmu: Pmu) -> Self {
        self.pmu = Some(pmu);
        self
    }

    /// The performance counters, if there are any.
    pub fn pmu(&self) -> Option<&Pmu> {
        self.pmu.as_ref()
    }

    /// The source of readings.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// Watches one more tenant from now on, without configuration: `watch` has the source watch it as the tenant
    /// it is told, and says what it is.
    ///
    /// # Errors
    /// Those of `watch`; there is no such tenant then.
    pub fn enter<E>(
        &mut self,
        key: String,
        name: String,
        watch: impl FnOnce(&mut S, TenantIndex) -> Result<Kind, E>,
    ) -> Result<TenantIndex, E> {
        let index = self.registry.next_index();
        let kind = watch(&mut self.source, index)?;
        self.registry.enter(key, name, kind);
        Ok(index)
    }

    /// One tenant; `None` once its last window was closed.
    pub fn tenant(&self, index: TenantIndex) -> Option<&Tenant> {
        self.registry.tenant(index)
    }

    /// The readings of the last look, ended threads included.
    pub fn readings(&self) -> &[Reading] {
        &self.readings
    }

    /// What each thread did between the last two looks.
    pub fn deltas(&self) -> &[ThreadDelta] {
        &self.deltas
    }

    /// The CPUs on which the threads of these tenants ran last, by the tenants' keys.
    pub fn cpus_of(&self, keys: &[String]) -> Vec<u32> {
        if keys.is_empty() {
            return Vec::new();
        }
        let wanted = |index| {
            self.registry
                .tenant(index)
                .is_some_and(|tenant| keys.contains(&tenant.key))
        };
        let mut cpus: Vec<_> = self
            .readings
            .iter()
            .filter(|reading| !reading.ended() && wanted(reading.slot.tenant))
            .map(|reading| reading.slot.cpu)
            .collect();
        cpus.sort_unstable();
        cpus.dedup();
        cpus
    }

    /// The state at the last look and the last close.
    pub fn overview(&self) -> &Overview {
        &self.overview
    }

    /// Sheds what `step` says of the looks at registers, and has the sensors' states say `reason` from now on.
    pub fn shed(&mut self, step: Step, reason: String) {
        let least = match step {
            Step::Nothing | Step::CloserLooks | Step::Nudges => Duration::ZERO,
            Step::FewLooks => Duration::from_nanos(FEW_LOOKS_NS),
            Step::Looks => Duration::MAX,
        };
        if let Err(error) = self.source.pace(least) {
            warn!(
                error = chain(&error),
                "the looks at registers cannot be paced"
            );
        }
        self.shed = reason;
    }

    /// Gives what a detector had stored of this host's tests. It is used for tenants that were there before the agent,
    /// and are found within an hour.
    pub fn carry(&mut self, carried: Vec<Carried>) {
        if carried.is_empty() {
            return;
        }
        self.carried_at_ns = self.source.now_ns();
        self.carried
            .extend(carried.into_iter().map(|c| (c.tenant_key, c.evidence)));
    }

    /// Takes readings, finds tenants, adds up.
    pub fn look(&mut self) -> Look {
        self.registry.follow(&mut self.source, &self.processes);
        let mut now_ns = self.take_readings();
        if self
            .registry
            .adopt(&self.readings, &mut self.source, &self.processes)
        {
            now_ns = self.take_readings();
        }
        let (source, tenants) = (&self.source, &self.registry);
        self.guests.update(
            &self.readings,
            |index| tenants.tenant(index).is_some(),
            |reading| source.counted(reading),
        );
        let any_guest = self.readings.iter().any(Reading::is_vcpu);
        self.source.follow_guests(any_guest);
        self.resume_tests(now_ns);
        let registry = &self.registry;
        let deltas = self.accountant.update(&self.readings, now_ns, |index| {
            registry.tenant(index).is_some()
        });
        let source = &self.source;
        self.waits.update(
            &self.readings,
            |reading| source.waits(reading.index),
            |index| registry.tenant(index).is_some(),
        );
        let forming_cpus = self.tests.update(&deltas, |index| {
            registry
                .tenant(index)
                .is_some_and(|tenant| matches!(tenant.kind, Kind::Droplet { .. }))
        });
        if let Some(pmu) = &mut self.pmu {
            pmu.look(&self.readings, now_ns, |index| {
                let tenant = registry.tenant(index)?;
                Some(matches!(tenant.kind, Kind::Droplet { .. }))
            });
        }
        let looks = deltas.iter().map(|delta| delta.looks).sum::<u64>();
        self.looks += looks;
        self.ever_looked |= looks > 0;
        self.ever_watched |= !deltas.is_empty();
        self.ever_switched |=
            (self.readings.iter()).any(|r| r.slot.switch_ins > 0 || r.slot.flags & FLAG_ENDED != 0);
        self.deltas = deltas;
        self.overview.threads = self.accountant.threads();
        self.overview.threads_refused = self.registry.threads_refused();
        let mut released = 0;
        // One that left its tenant but lives is not released yet: the kernel half ends it at its next switch.
        for reading in &self.readings {
            if reading.slot.flags & FLAG_ENDED != 0 {
                self.source.release(reading);
                released += 1;
            }
        }
        Look {
            forming_cpus,
            released,
        }
    }

    /// Closes the window, which ends with the last look. The message's sequence and losses are the queue's to set.
    pub fn close(&mut self, span: Span) -> v1::Window {
        let span_ns = span.end_unix_ns.saturating_sub(span.start_unix_ns);
        if let Some(pmu) = &mut self.pmu {
            pmu.collect();
        }
        let sensors = self.sensors();
        let host = HostSensors {
            fp_rounding: state_of(&sensors, "fp_rounding"),
            register_randomness: state_of(&sensors, "register_randomness"),
        };
        let guest_host = HostStates {
            kvm_exits: state_of(&sensors, "kvm_exits"),
            msr_writes: state_of(&sensors, "msr_writes"),
        };
        let mut sums = self.accountant.close();
        let mut waits = self.waits.close();
        let successions = self.registry.successions();
        for &(ended, successor) in &successions {
            self.tests.merge(ended, successor);
            if let Some(pmu) = &mut self.pmu {
                pmu.merge(ended, successor);
            }
            self.guests.merge(ended, successor);
            if let Some(part) = sums.remove(&ended) {
                sums.entry(successor).or_default().add(&part);
            }
            if let Some(part) = waits.remove(&ended) {
                waits.entry(successor).or_default().add(&part);
            }
            if let Some(level) = self.levels.remove(&ended) {
                self.levels.insert(successor, level);
            }
        }
        self.overview.tenants.clear();
        let mut tenants = Vec::new();
        for tenant in self.registry.tenants() {
            if successions.iter().any(|&(ended, _)| ended == tenant.index) {
                continue;
            }
            let sums = sums.remove(&tenant.index).unwrap_or_default();
            let all_modes = self.tests.in_all_modes(tenant.index);
            let pmu = self.pmu.as_mut();
            let mixing = pmu.as_ref().map(|pmu| pmu.mixing(tenant.index));
            let mixing = mixing.unwrap_or_default();
            let mut evidence = self.tests.close(tenant.index, span_ns, host, &mixing);
            evidence.pmu = pmu.map(|pmu| pmu.close(tenant.index, span_ns, &all_modes));
            let guest = self.guests.close(tenant.index, guest_host);
            evidence.kvm_exits = guest.map(|guest| guest.kvm_exits);
            evidence.msr_writes = guest.map(|guest| guest.msr_writes);
            let verdict = verdict(&evidence);
            let level = level_name(verdict.level);
            *self.overview.tenants.entry(level).or_default() += 1;
            if self.levels.insert(tenant.index, verdict.level) != Some(verdict.level) {
                info!(tenant = %tenant.key, name = %tenant.name, verdict = level, reason = verdict.reasons.first(), "verdict");
            }
            let waited = waits.remove(&tenant.index).unwrap_or_default();
            let mut message = message(tenant, &sums, guest.as_ref(), &evidence, &verdict);
            message.waits = Some(waited.message(|pid| self.name_of(pid)));
            tenants.push((verdict.level, message));
        }
        let (tenants, left_out) = most_telling(tenants, TENANTS_MAX);
        if left_out > 0 && self.overview.tenants_left_out == 0 {
            warn!(
                left_out,
                "this host has more than {TENANTS_MAX} tenants: the least suspicious and idlest are not reported"
            );
        }
        self.overview.tenants_left_out = left_out;
        for index in self.registry.forget_ended() {
            self.accountant.forget(index);
            self.tests.forget(index);
            if let Some(pmu) = &mut self.pmu {
                pmu.forget(index);
            }
            self.guests.forget(index);
            self.levels.remove(&index);
        }
        self.overview.sensors = sensors
            .iter()
            .map(|(name, state, _)| ((*name).to_owned(), *state))
            .collect();
        self.warn_of_sensors_that_never_ran(&sensors);
        self.looks = 0;
        v1::Window {
            sequence: 0,
            start_unix_ns: span.start_unix_ns,
            end_unix_ns: span.end_unix_ns,
            tenants,
            lost_windows: 0,
            sensors: sensors
                .into_iter()
                .map(|(name, state, reason)| v1::SensorStatus {
                    sensor: name.to_owned(),
                    state: v1::SensorState::from(state).into(),
                    reason: cut(reason),
                })
                .collect(),
        }
    }

    /// Says once, after some windows, which sensors have had threads to measure and never did.
    fn warn_of_sensors_that_never_ran(&mut self, sensors: &[(&'static str, SensorState, String)]) {
        if self.overview.threads == 0 || self.watching_windows > NEVER_RAN_WINDOWS {
            return;
        }
        self.watching_windows += 1;
        if self.watching_windows <= NEVER_RAN_WINDOWS {
            return;
        }
        for (sensor, state, reason) in sensors {
            if *state == SensorState::NeverRan {
                warn!(sensor, "never ran: {reason}");
            }
        }
    }

    /// A process's tenant's key, and its command; empty where there is none.
    fn name_of(&self, tgid: u32) -> (String, String) {
        let mut slots = self.readings.iter().map(|reading| &reading.slot);
        let key = slots
            .find(|slot| slot.tgid == tgid && self.registry.tenant(slot.tenant).is_some())
            .and_then(|slot| self.registry.tenant(slot.tenant))
            .map(|tenant| tenant.key.clone());
        (key.unwrap_or_default(), self.processes.command(tgid))
    }

    /// Gives the time the readings are of.
    fn take_readings(&mut self) -> u64 {
        // The clock before the figures: an open interval is then never counted beyond the reading.
        let now_ns = self.source.now_ns();
        self.source.readings(&mut self.readings);
        now_ns
    }

    fn resume_tests(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.carried_at_ns) > CARRIED_WAIT_NS {
            self.carried.clear();
        }
        if self.carried.is_empty() {
            return;
        }
        for tenant in self.registry.tenants() {
            if !self.carried.contains_key(&tenant.key) {
                continue;
            }
            let of_tenant = self.readings.iter().map(|reading| &reading.slot);
            let Some(began_ns) = of_tenant
                .filter(|slot| slot.tenant == tenant.index)
                .map(|slot| slot.start_boottime_ns)
                .min()
            else {
                continue; // It has no thread yet.
            };
            let Some(evidence) = self.carried.remove(&tenant.key) else {
                continue;
            };
            if began_ns > self.began_boottime_ns {
                info!(tenant = %tenant.key, "it began after the agent did: its tests begin anew");
                continue;
            }
            let mut resumed = self.tests.resume(tenant.index, &evidence);
            if let (Some(pmu), Some(stored)) = (&mut self.pmu, &evidence.pmu) {
                resumed = resumed.and_then(|()| pmu.resume(tenant.index, stored));
            }
            match resumed {
                Ok(()) => {
                    info!(tenant = %tenant.key, "tests go on where they stood before the agent's restart");
                }
                Err(error) => {
                    warn!(tenant = %tenant.key, error = chain(&error), "the detector's stored tests cannot be used");
                }
            }
        }
    }

    /// What the sensors did on this host in the window that ends now.
    fn sensors(&mut self) -> Vec<(&'static str, SensorState, String)> {
        let looks = |in_window, ever| Looks {
            in_window,
            ever,
            all_confidential: false,
        };
        let (exits_read, exits_ever, msrs_fired) = self.guests.seen();
        let threads = u64::try_from(self.accountant.threads()).unwrap_or(u64::MAX);
        // Whoever has a droplet can find VMs, wherever the device's node is.
        let droplets =
            (self.registry.tenants()).any(|tenant| matches!(tenant.kind, Kind::Droplet { .. }));
        let no_vms = self
            .source
            .vcpus_unsupported()
            .or_else(|| (!droplets && !self.processes.kvm_present()).then(|| NO_KVM.to_owned()));
        self.source
            .sensors()
            .into_iter()
            .map(|(name, can, reason)| {
                let looks = match name {
                    // Without a switch the figures are those that /proc had when watching began.
                    "cpu" if !self.ever_switched => looks(0, false),
                    "cpu" => looks(threads, self.ever_watched),
                    "kvm_exits" => looks(u64::from(exits_read), exits_ever),
                    "msr_writes" => looks(u64::from(msrs_fired), msrs_fired),
                    _ => looks(self.looks, self.ever_looked),
                };
                let state = register_state(can, looks);
                let on_registers = matches!(name, "fp_rounding" | "register_randomness");
                let reason = match state {
                    SensorState::NeverRan if on_registers || name == "cpu" => {
                        never_ran(name, threads)
                    }
                    SensorState::Live | SensorState::Stalled if on_registers => self.shed.clone(),
                    // Of the others it says from where they have their figures.
                    _ => reason,
                };
                (name, state, reason)
            })
            .chain(self.pmu.as_ref().map(|pmu| {
                let (state, remark) = pmu.status();
                (pmu::NAME, state, remark)
            }))
            .chain(no_vms.map(|reason| (VCPUS, SensorState::Unsupported, reason)))
            .collect()
    }
}

/// Why a sensor that could measure has not yet.
fn never_ran(sensor: &str, threads: u64) -> String {
    match (sensor, threads) {
        (_, 0) => "no thread is watched yet".to_owned(),
        ("cpu", _) => {
            "its program is attached, but no watched thread has been switched since: the figures are those of the begin"
                .to_owned()
        }
        _ => "its program is attached, but has not looked at any watched thread's registers yet".to_owned(),
    }
}

fn state_of(sensors: &[(&'static str, SensorState, String)], name: &str) -> SensorState {
    sensors
        .iter()
        .find(|(sensor, ..)| *sensor == name)
        .map_or(SensorState::Unsupported, |(_, state, _)| *state)
}

/// A level as metrics and logs say it.
fn level_name(level: Level) -> &'static str {
    match level {
        Level::Quiet => "quiet",
        Level::Suspect => "suspect",
        Level::Mining => "mining",
    }
}

#[cfg(test)]
#[path = "observe_tests.rs"]
mod tests;
