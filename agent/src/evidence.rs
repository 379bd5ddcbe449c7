//! The sequential tests of a tenant's threads, and the tenant's evidence made of them. Pure.
//!
//! Every thread has its own tests (`davy_evidence`): samples of different threads are never mixed. A tenant's
//! evidence is that of the thread nearest to a conclusion. Of a droplet only vCPU threads count: what the VMM
//! itself computes (an encrypted migration, say) is not the guest's doing.
//!
//! Where threads stand in all four rounding modes, the other tests' figures are those of such a thread: two classes of evidence of two
//! threads are not two classes of one program.
//!
//! CPU time counts for the duty from the conclusion on, as far as it was `RandomX`'s: a vCPU is many programs' thread. Looks after an
//! involuntary switch meet what runs on a thread in proportion to its time; the share of them that finds a sample outside rounding mode 0,
//! against that of `RandomX` alone, is `RandomX`'s share of the time. Without such a look nothing counts. So a node that verifies now and
//! then does not become a miner by what runs beside it, nor an honest program that follows one. Where a second class of evidence stands on
//! one of the threads, only the time of threads counts on which both stand: what another thread does in all four modes is not that one's duty.
//!
//! A conclusion stands while samples come: after an hour without one of any kind a thread's tests begin anew.
//! An ended thread, or one that left, counts until its CPU time has left the duty's span; then it is forgotten.
//!
//! What a detector had stored of a tenant's tests is a test of its own, without CPU time, until a thread that has given no
//! sample yet gives one such as the tests look for: that thread goes on with it. It is dropped as soon as threads
//! have concluded the same by themselves, and after an hour.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use davy_abi::TenantIndex;
use davy_evidence::{
    FpRounding, RegisterRandomness, SensorState, TenantEvidence, fp_rounding,
    register_randomness::{self, Samples, Standing},
};

use crate::{
    sensor::{
        Looks,
        fp_rounding::{Involuntary, Modes, add, any_directed},
        register_randomness::{General, all, directed},
        register_state,
    },
    window::{ThreadDelta, ThreadKey},
};

/// Over how much time the duty is averaged, ns.
pub const DUTY_SPAN_NS: u64 = 60_000_000_000;

/// For how long what a detector had stored stands without a thread that goes on with it, and a thread's tests without a sample, ns.
pub const CARRIED_NS_MAX: u64 = 3_600_000_000_000;

/// Share of looks at vector registers after involuntary switches that find a sample outside mode 0 where `RandomX` has all of a thread's
/// time. A prototype showed 68 % before the corpus was made; what `RandomX` computes between its programs lies in mode 0, and the room left
/// overstates its share by an eighth at most.
const DIRECTED_OF_LOOKS: f64 = 0.6;

/// With so many looks after involuntary switches a window has a share of its own; windows with fewer have one together. Looks come more often
/// while a closer look lasts: one share for all would be that of the windows with most looks.
const LOOKS_TO_TELL: u64 = 8;

/// What the sensors on registers can do on this host.
#[derive(Clone, Copy, Debug)]
pub struct HostSensors {
    /// `fp_rounding`.
    pub fp_rounding: SensorState,
    /// `register_randomness`.
    pub register_randomness: SensorState,
}

#[derive(Debug, Default)]
struct Thread {
    fp_rounding: fp_rounding::Test,
    register_randomness: register_randomness::Test,
    /// In the window since the conclusion.
    since: Concluded,
    /// The same in the windows closed within the duty's span, oldest first, aligned at the newest.
    closed: VecDeque<Concluded>,
    /// Since its last sample, ns, and whether there was one in this window.
    silent_ns: u64,
    sampled: bool,
    is_confidential: bool,
    counts: bool,
    ended: bool,
}

/// What a thread did while its `fp_rounding` stood concluded.
#[derive(Clone, Copy, Debug, Default)]
struct Concluded {
    on_cpu_ns: u64,
    involuntary: Involuntary,
}

/// Threads of a tenant whose mix of floating-point operations is `RandomX`'s.
#[derive(Debug, Default)]
pub struct Mixing {
    /// Them.
    pub threads: BTreeSet<ThreadKey>,
    /// Also what a detector had stored.
    pub carried: bool,
}

/// Threads of a tenant that compute in all four rounding modes: whose `fp_rounding` stands concluded.
#[derive(Debug, Default)]
pub struct InAllModes {
    threads: HashSet<ThreadKey>,
    carried: bool,
}

impl InAllModes {
    /// These threads; `carried`: also what a detector had stored.
    pub fn of(threads: impl IntoIterator<Item = ThreadKey>, carried: bool) -> Self {
        Self {
            threads: threads.into_iter().collect(),
            carried,
        }
    }

    /// Whether a thread's other tests count: where any stand in all modes, only theirs do.
    #[must_use]
    pub fn admits(&self, thread: ThreadKey) -> bool {
        self.is_empty() || self.threads.contains(&thread)
    }

    /// The same for what a detector had stored.
    #[must_use]
    pub fn admits_carried(&self) -> bool {
        self.is_empty() || self.carried
    }

    fn is_empty(&self) -> bool {
        self.threads.is_empty() && !self.carried
    }
}

#[derive(Debug, Default)]
struct Tenant {
    threads: HashMap<ThreadKey, Thread>,
    /// Spans of the windows closed within the duty's span, ns, oldest first.
    spans_ns: VecDeque<u64>,
    modes: Modes,
    random: Modes,
    general: General,
    looks: u64,
    ever_looked: bool,
    carried: Option<Carried>,
}

/// What a detector had stored of a tenant's tests.
#[derive(Clone, Copy, Debug)]
struct Carried {
    fp_rounding: fp_rounding::Test,
    register_randomness: register_randomness::Test,
    /// Spans of the windows closed since, ns.
    age_ns: u64,
}

/// The tests of all tenants.
#[derive(Debug, Default)]
pub struct Tests {
    tenants: BTreeMap<TenantIndex, Tenant>,
}

impl Tests {
    /// Resumes a tenant's tests where a detector has them stored; the module's documentation says how.
    ///
    /// # Errors
    /// If the stored state is out of range or contradicts itself; nothing is changed then.
    pub fn resume(
        &mut self,
        tenant: TenantIndex,
        stored: &TenantEvidence,
    ) -> Result<(), davy_evidence::ResumeError> {
        let (fp, rr) = (&stored.fp_rounding, &stored.register_randomness);
        let carried = Carried {
            fp_rounding: fp_rounding::Test::resume(fp.llr, fp.test_samples, fp.concluded)?,
            register_randomness: register_randomness::Test::resume(
                Standing {
                    llr: rr.any_llr,
                    concluded: rr.any_concluded,
                    samples: rr.any_test_samples,
                },
                Standing {
                    llr: rr.directed_llr,
                    concluded: rr.directed_concluded,
                    samples: rr.directed_test_samples,
                },
                Standing {
                    llr: rr.general_llr,
                    concluded: rr.general_concluded,
                    samples: rr.general_test_samples,
                },
            )?,
            age_ns: 0,
        };
        self.tenants.entry(tenant).or_default().carried = Some(carried);
        Ok(())
    }

    /// Adds what the threads did since the last call; `vcpus_only(tenant)`: whether other threads are left out.
    /// Returns the CPUs on which evidence is forming now: where a closer look would tell more.
    pub fn update(
        &mut self,
        deltas: &[ThreadDelta],
        vcpus_only: impl Fn(TenantIndex) -> bool,
    ) -> Vec<u32> {
        let mut forming = Vec::new();
        for delta in deltas {
            let tenant = self.tenants.entry(delta.tenant).or_default();
            let thread = tenant.threads.entry(delta.thread).or_default();
            thread.ended = delta.ended;
            thread.is_confidential |= delta.is_confidential;
            thread.counts |= delta.is_vcpu || !vcpus_only(delta.tenant);
            if !thread.counts || thread.is_confidential {
                continue;
            }
            if thread.fp_rounding.samples() == 0
                && (any_directed(&delta.modes)
                    || all(&delta.random) > 0
                    || delta.general.random > 0)
                && let Some(carried) = tenant.carried.take()
            {
                thread.fp_rounding = carried.fp_rounding;
                thread.register_randomness = carried.register_randomness;
            }
            if thread.add(delta) && !delta.ended {
                forming.push(delta.cpu_number);
            }
            tenant.looks = tenant.looks.saturating_add(delta.looks);
            tenant.ever_looked |= delta.looks > 0;
            add(&mut tenant.modes, &delta.modes);
            add(&mut tenant.random, &delta.random);
            tenant.general.add(delta.general);
        }
        forming.sort_unstable();
        forming.dedup();
        forming
    }

    /// Which of the tenant's threads compute in all four rounding modes now.
    #[must_use]
    pub fn in_all_modes(&self, tenant: TenantIndex) -> InAllModes {
        self.tenants
            .get(&tenant)
            .map(Tenant::in_all_modes)
            .unwrap_or_default()
    }

    /// The tenant's evidence of the window of `span_ns` that ends now; a new window begins.
    ///
    /// `mixing`: threads whose mix of floating-point operations stands concluded ([`crate::sensor::pmu`]).
    pub fn close(
        &mut self,
        tenant: TenantIndex,
        span_ns: u64,
        host: HostSensors,
        mixing: &Mixing,
    ) -> TenantEvidence {
        let tenant = self.tenants.entry(tenant).or_default();
        tenant.close(span_ns, host, mixing)
    }

    /// Makes the threads of `ended`, a tenant that ended in this window, threads of `successor`, which began in it.
    pub fn merge(&mut self, ended: TenantIndex, successor: TenantIndex) {
        let Some(ended) = self.tenants.remove(&ended) else {
            return;
        };
        let successor = self.tenants.entry(successor).or_default();
        for (key, mut thread) in ended.threads {
            thread.ended = true;
            successor.threads.entry(key).or_insert(thread);
        }
        // The successor has closed no window: the rings of its threads are empty.
        successor.spans_ns = ended.spans_ns;
        successor.looks = successor.looks.saturating_add(ended.looks);
        successor.ever_looked |= ended.ever_looked;
        successor.carried = successor.carried.take().or(ended.carried);
        add(&mut successor.modes, &ended.modes);
        add(&mut successor.random, &ended.random);
        successor.general.add(ended.general);
    }

    /// Forgets a tenant that has ended.
    pub fn forget(&mut self, tenant: TenantIndex) {
        self.tenants.remove(&tenant);
    }
}

impl Thread {
    /// Adds samples and CPU time; `true` if evidence is forming: a test that has not concluded moved towards it.
    fn add(&mut self, delta: &ThreadDelta) -> bool {
        self.sampled |= all(&delta.modes) > 0 || delta.general.samples > 0;
        let before = self.register_randomness;
        let stood = self.fp_rounding.concluded();
        self.fp_rounding.add(delta.modes);
        self.add_on_cpu(delta, stood && self.fp_rounding.concluded());
        self.register_randomness.add(Samples {
            modes: delta.modes,
            random: delta.random,
            general: delta.general.samples,
            general_random: delta.general.random,
        });
        let fp_forms = !self.fp_rounding.concluded()
            && any_directed(&delta.modes)
            && self
                .fp_rounding
                .llr()
                .iter()
                .filter(|&&nats| nats > 0.0)
                .count()
                >= 2;
        let now = self.register_randomness;
        let forms = |now: Standing, before: Standing| !now.concluded && now.llr > before.llr;
        fp_forms || forms(now.any(), before.any()) || forms(now.general(), before.general())
    }

    /// A window of `span_ns` has ended.
    fn grow_silent(&mut self, span_ns: u64) {
        let sampled = std::mem::take(&mut self.sampled);
        self.silent_ns = if sampled {
            0
        } else {
            self.silent_ns.saturating_add(span_ns)
        };
        if self.silent_ns > CARRIED_NS_MAX {
            self.fp_rounding = fp_rounding::Test::default();
            self.register_randomness = register_randomness::Test::default();
        }
    }

    /// `stands`: whether `fp_rounding` stood concluded throughout the delta.
    fn add_on_cpu(&mut self, delta: &ThreadDelta, stands: bool) {
        if stands {
            self.since.add(Concluded {
                on_cpu_ns: delta.cpu.on_cpu_ns,
                involuntary: delta.involuntary,
            });
        }
    }

    /// `RandomX`'s part of what the thread used in the window, and in the duty's span, ns.
    fn duty_ns(&self) -> (u64, u64) {
        let mut span_ns = 0_u64;
        let mut few = Concluded::default();
        for window in self.closed.iter().chain([&self.since]) {
            if window.tells() {
                span_ns = span_ns.saturating_add(window.randomx_ns(window.on_cpu_ns));
            } else {
                few.add(*window);
            }
        }
        let window = if self.since.tells() {
            &self.since
        } else {
            &few
        };
        (
            window.randomx_ns(self.since.on_cpu_ns),
            span_ns.saturating_add(few.randomx_ns(few.on_cpu_ns)),
        )
    }
}

impl Concluded {
    fn add(&mut self, more: Self) {
        self.on_cpu_ns = self.on_cpu_ns.saturating_add(more.on_cpu_ns);
        self.involuntary.add(more.involuntary);
    }

    /// Whether its own looks tell `RandomX`'s share of it.
    fn tells(&self) -> bool {
        self.involuntary.looks >= LOOKS_TO_TELL
    }

    /// `RandomX`'s part of `on_cpu_ns`, at the share these looks show.
    fn randomx_ns(&self, on_cpu_ns: u64) -> u64 {
        let Involuntary { looks, directed } = self.involuntary;
        let share = ratio(directed, looks) / DIRECTED_OF_LOOKS;
        if share >= 1.0 {
            return on_cpu_ns;
        }
        let part = std::time::Duration::from_nanos(on_cpu_ns).mul_f64(share);
        u64::try_from(part.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Tenant {
    fn in_all_modes(&self) -> InAllModes {
        let concluded = |test: &fp_rounding::Test| test.concluded();
        InAllModes::of(
            (self.threads.iter())
                .filter(|(_, thread)| thread.counts && concluded(&thread.fp_rounding))
                .map(|(&key, _)| key),
            (self.carried.as_ref()).is_some_and(|carried| concluded(&carried.fp_rounding)),
        )
    }

    fn close(&mut self, span_ns: u64, host: HostSensors, mixing: &Mixing) -> TenantEvidence {
        self.drop_carried(span_ns);
        self.drop_old_windows(span_ns);
        let evidence = TenantEvidence {
            fp_rounding: self.fp_rounding(host.fp_rounding, mixing),
            register_randomness: self.register_randomness(host.register_randomness),
            // Not a test's: the observer adds them.
            kvm_exits: None,
            msr_writes: None,
            pmu: None,
        };
        (self.modes, self.random, self.looks) = ([0; 4], [0; 4], 0);
        self.general = General::default();
        for thread in self.threads.values_mut() {
            let closed = std::mem::take(&mut thread.since);
            thread.closed.push_back(closed);
            thread.grow_silent(span_ns);
        }
        self.threads.retain(|_, thread| {
            !thread.ended
                || (thread.fp_rounding.concluded()
                    && thread.closed.iter().any(|window| window.on_cpu_ns > 0))
        });
        evidence
    }

    /// Drops what was carried if it is too old, or threads have concluded the same by themselves.
    fn drop_carried(&mut self, span_ns: u64) {
        let Some(carried) = &mut self.carried else {
            return;
        };
        carried.age_ns = carried.age_ns.saturating_add(span_ns);
        let (fp, rr) = (&carried.fp_rounding, &carried.register_randomness);
        let tests = || self.threads.values().filter(|thread| thread.counts);
        let own = tests().any(|thread| thread.fp_rounding.samples() > 0)
            && (!fp.concluded() || tests().any(|thread| thread.fp_rounding.concluded()))
            && STANDINGS.iter().all(|standing| {
                !standing(rr).concluded
                    || tests().any(|thread| standing(&thread.register_randomness).concluded)
            });
        if own || carried.age_ns > CARRIED_NS_MAX {
            self.carried = None;
        }
    }

    /// Drops windows that begin before the duty's span, to which the window of `span_ns` that ends now is added.
    fn drop_old_windows(&mut self, span_ns: u64) {
        self.spans_ns.push_back(span_ns);
        let total = |spans: &VecDeque<u64>| spans.iter().sum::<u64>();
        while self.spans_ns.len() > 1 && total(&self.spans_ns) > DUTY_SPAN_NS {
            self.spans_ns.pop_front();
        }
        for thread in self.threads.values_mut() {
            while thread.closed.len() >= self.spans_ns.len() {
                thread.closed.pop_front();
            }
        }
    }

    fn looks(&self) -> Looks {
        let mut counting = self
            .threads
            .values()
            .filter(|t| t.counts && !t.ended)
            .peekable();
        Looks {
            in_window: self.looks,
            ever: self.ever_looked,
            all_confidential: counting.peek().is_some() && counting.all(|t| t.is_confidential),
        }
    }

    fn fp_rounding(&self, host: SensorState, mixing: &Mixing) -> FpRounding {
        let tests = || self.threads.values().filter(|thread| thread.counts);
        // A concluded test stands for the tenant even if another one has the greater sum just now.
        let nearest = tests()
            .map(|thread| &thread.fp_rounding)
            .chain(self.carried.as_ref().map(|carried| &carried.fp_rounding))
            .max_by(|a, b| {
                (a.concluded().cmp(&b.concluded()))
                    .then(a.least_llr().total_cmp(&b.least_llr()))
                    .then(a.samples().cmp(&b.samples()))
            })
            .copied()
            .unwrap_or_default();
        let concluded = || tests().filter(|thread| thread.fp_rounding.concluded());
        let span_ns = self.spans_ns.iter().sum::<u64>();
        let (window_ns, duty_ns) = self.of_both_classes(mixing).map(Thread::duty_ns).fold(
            (0_u64, 0_u64),
            |(window, span), (more, longer)| {
                (window.saturating_add(more), span.saturating_add(longer))
            },
        );
        FpRounding {
            state: register_state(host, self.looks()),
            modes: self.modes,
            llr: nearest.llr(),
            test_samples: nearest.samples(),
            concluded: nearest.concluded(),
            concluded_threads: u32::try_from(concluded().count()).unwrap_or(u32::MAX),
            concluded_on_cpu_ns: window_ns,
            duty: ratio(duty_ns, span_ns),
        }
    }

    /// The threads whose time counts: those in all four modes; where a second class of evidence stands on such a thread, or on what was
    /// carried, only those on which it does.
    fn of_both_classes<'a>(&'a self, mixing: &Mixing) -> impl Iterator<Item = &'a Thread> {
        let carried = (self.carried.as_ref()).is_some_and(|carried| {
            carried.fp_rounding.concluded()
                && (carried.register_randomness.directed().concluded || mixing.carried)
        });
        let in_all_modes: Vec<_> = (self.threads.iter())
            .filter(|(_, thread)| thread.counts && thread.fp_rounding.concluded())
            .map(|(key, thread)| {
                let second =
                    thread.register_randomness.directed().concluded || mixing.threads.contains(key);
                (thread, second)
            })
            .collect();
        let any = carried || in_all_modes.iter().any(|&(_, second)| second);
        in_all_modes
            .into_iter()
            .filter(move |&(_, second)| second || !any)
            .map(|(thread, _)| thread)
    }

    fn register_randomness(&self, host: SensorState) -> RegisterRandomness {
        let tests = |among: &InAllModes| {
            let threads = (self.threads.iter())
                .filter(|&(&key, thread)| thread.counts && among.admits(key))
                .map(|(_, thread)| thread.register_randomness);
            let carried = (self.carried.as_ref()).filter(|_| among.admits_carried());
            threads
                .chain(carried.map(|carried| carried.register_randomness))
                .collect::<Vec<_>>()
        };
        let nearest = |standing: fn(&register_randomness::Test) -> Standing, tests: &[_]| {
            (tests.iter().map(standing))
                .max_by(nearer)
                .unwrap_or_default()
        };
        let everywhere = tests(&InAllModes::default());
        let any = nearest(register_randomness::Test::any, &everywhere);
        let general = nearest(register_randomness::Test::general, &everywhere);
        let directed_test = nearest(
            register_randomness::Test::directed,
            &tests(&self.in_all_modes()),
        );
        RegisterRandomness {
            state: register_state(host, self.looks()),
            samples: all(&self.modes),
            random: all(&self.random),
            directed_samples: directed(&self.modes),
            directed_random: directed(&self.random),
            any_llr: any.llr,
            any_concluded: any.concluded,
            any_test_samples: any.samples,
            directed_llr: directed_test.llr,
            directed_concluded: directed_test.concluded,
            directed_test_samples: directed_test.samples,
            general_samples: self.general.samples,
            general_random: self.general.random,
            general_llr: general.llr,
            general_concluded: general.concluded,
            general_test_samples: general.samples,
        }
    }
}

/// Where a thread's tests on register randomness stand.
const STANDINGS: [fn(&register_randomness::Test) -> Standing; 3] = [
    register_randomness::Test::any,
    register_randomness::Test::directed,
    register_randomness::Test::general,
];

/// A concluded test before one that is not; then the greater sum, then the more samples.
fn nearer(a: &Standing, b: &Standing) -> std::cmp::Ordering {
    (a.concluded.cmp(&b.concluded))
        .then(a.llr.total_cmp(&b.llr))
        .then(a.samples.cmp(&b.samples))
}

/// `part / whole`; 0 of nothing.
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    std::time::Duration::from_nanos(part).as_secs_f64()
        / std::time::Duration::from_nanos(whole).as_secs_f64()
}

#[cfg(test)]
#[path = "evidence_tests.rs"]
mod tests;
