//! The sequential tests of a tenant's threads, and the tenant's evidence made of them. Pure.
//!
//! Every thread has its own tests (`davy_evidence`): samples of different threads are never mixed. A tenant's
//! evidence is that of the thread nearest to a conclusion. Of a droplet only vCPU threads count: what the VMM
//! itself computes (an encrypted migration, say) is not the guest's doing.
//!
//! CPU time counts for the duty from the conclusion on. Where in a window fewer than a quarter of the looks find a sample outside
//! rounding mode 0, other programs had the rest of the thread's time (a vCPU is many programs' thread) and it counts in
//! proportion: a node that verifies now and then does not become a miner by what runs beside it, nor an honest program that follows one.
//!
//! An ended thread, or one that left, counts until its CPU time has left the duty's span; then it is forgotten.
//!
//! What a detector had stored of a tenant's tests is a test of its own, without CPU time, until a thread that has given no
//! sample yet gives one such as the tests look for: that thread goes on with it. It is dropped as soon as threads
//! have concluded the same by themselves, and after an hour.

use std::collections::{BTreeMap, HashMap, VecDeque};

use davy_abi::TenantIndex;
use davy_evidence::{
    FpRounding, RegisterRandomness, SensorState, TenantEvidence, fp_rounding,
    register_randomness::{self, Samples, Standing},
};

use crate::{
    sensor::{
        Looks,
        fp_rounding::{Modes, add, any_directed},
        register_randomness::{General, all, directed},
        register_state,
    },
    window::{ThreadDelta, ThreadKey},
};

/// Over how much time the duty is averaged, ns.
pub const DUTY_SPAN_NS: u64 = 60_000_000_000;

/// For how long what a detector had stored stands without a thread that goes on with it, ns.
pub const CARRIED_NS_MAX: u64 = 3_600_000_000_000;

/// Least share of looks that find a sample outside mode 0 where RandomX has all of a thread's time. Two of three of its samples lie there,
/// and one look in four is at general registers instead, which makes a half; but a miner that is throttled goes to sleep in mode 0, each
/// time with a look, and shows 28 % at 30 % of a CPU. So up to twice its share of a busy vCPU is taken for RandomX's duty.
const DIRECTED_OF_LOOKS: f64 = 0.25;

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
    /// On-CPU time in the window since the conclusion.
    on_cpu_ns: u64,
    /// Looks in that time, and samples outside mode 0 among them.
    looks: u64,
    directed: u64,
    /// What counted in the windows closed within the duty's span, oldest first, aligned at the newest.
    closed_on_cpu_ns: VecDeque<u64>,
    is_confidential: bool,
    counts: bool,
    ended: bool,
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

    /// The tenant's evidence of the window of `span_ns` that ends now; a new window begins.
    pub fn close(
        &mut self,
        tenant: TenantIndex,
        span_ns: u64,
        host: HostSensors,
    ) -> TenantEvidence {
        self.tenants.entry(tenant).or_default().close(span_ns, host)
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

    /// `stands`: whether `fp_rounding` stood concluded throughout the delta.
    fn add_on_cpu(&mut self, delta: &ThreadDelta, stands: bool) {
        if stands {
            self.on_cpu_ns = self.on_cpu_ns.saturating_add(delta.cpu.on_cpu_ns);
            self.looks = self.looks.saturating_add(delta.looks);
            self.directed = self.directed.saturating_add(directed(&delta.modes));
        }
    }

    /// CPU time in the window that was RandomX's.
    fn duty_ns(&self) -> u64 {
        let share = ratio(self.directed, self.looks) / DIRECTED_OF_LOOKS;
        if share >= 1.0 {
            return self.on_cpu_ns;
        }
        let counts = std::time::Duration::from_nanos(self.on_cpu_ns).mul_f64(share);
        u64::try_from(counts.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Tenant {
    fn close(&mut self, span_ns: u64, host: HostSensors) -> TenantEvidence {
        self.drop_carried(span_ns);
        self.close_duty_window(span_ns);
        let evidence = TenantEvidence {
            fp_rounding: self.fp_rounding(host.fp_rounding),
            register_randomness: self.register_randomness(host.register_randomness),
            // Not a test's: the observer adds them.
            kvm_exits: None,
            msr_writes: None,
            pmu: None,
        };
        (self.modes, self.random, self.looks) = ([0; 4], [0; 4], 0);
        self.general = General::default();
        for thread in self.threads.values_mut() {
            (thread.on_cpu_ns, thread.looks, thread.directed) = (0, 0, 0);
        }
        self.threads.retain(|_, thread| {
            !thread.ended
                || (thread.fp_rounding.concluded()
                    && thread.closed_on_cpu_ns.iter().any(|&ns| ns > 0))
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

    /// Enters the window into the duty's ring, and drops windows that begin before the duty's span.
    fn close_duty_window(&mut self, span_ns: u64) {
        self.spans_ns.push_back(span_ns);
        let total = |spans: &VecDeque<u64>| spans.iter().sum::<u64>();
        while self.spans_ns.len() > 1 && total(&self.spans_ns) > DUTY_SPAN_NS {
            self.spans_ns.pop_front();
        }
        for thread in self.threads.values_mut() {
            thread.closed_on_cpu_ns.push_back(thread.duty_ns());
            while thread.closed_on_cpu_ns.len() > self.spans_ns.len() {
                thread.closed_on_cpu_ns.pop_front();
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

    fn fp_rounding(&self, host: SensorState) -> FpRounding {
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
        let duty_ns = concluded()
            .flat_map(|thread| &thread.closed_on_cpu_ns)
            .fold(0_u64, |sum, &ns| sum.saturating_add(ns));
        FpRounding {
            state: register_state(host, self.looks()),
            modes: self.modes,
            llr: nearest.llr(),
            test_samples: nearest.samples(),
            concluded: nearest.concluded(),
            concluded_threads: u32::try_from(concluded().count()).unwrap_or(u32::MAX),
            concluded_on_cpu_ns: concluded()
                .fold(0, |sum: u64, thread| sum.saturating_add(thread.duty_ns())),
            duty: ratio(duty_ns, span_ns),
        }
    }

    fn register_randomness(&self, host: SensorState) -> RegisterRandomness {
        let tests = || {
            self.threads
                .values()
                .filter(|thread| thread.counts)
                .map(|thread| &thread.register_randomness)
                .chain(
                    self.carried
                        .as_ref()
                        .map(|carried| &carried.register_randomness),
                )
        };
        let [any, directed_test, general] =
            STANDINGS.map(|standing| tests().map(standing).max_by(nearer).unwrap_or_default());
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
