//! `davy-agent trial`: watches a command's process tree, a process or a control group for a while, and says what
//! Davy would conclude, and why.
//!
//! It measures as the daemon does, with the same looks, tests and rule, in windows of one second and with a closer
//! look throughout; nothing is sent anywhere. A command is started for it and ended with it ([`command`]); processes and control groups are only
//! watched. Whatever is too little to tell is said so (`enough_samples`), never passed off as `quiet`.

pub mod command;
pub mod course;
pub mod document;
pub mod guests;
pub mod pmu;
pub mod text;
mod waits;

use std::{
    ffi::OsString,
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::Duration,
};

use anyhow::Context as _;
use davy_abi::{Counter, TenantIndex};
use davy_evidence::{Level, SensorState, TenantEvidence, add_known};
use davy_proto::v1;

use self::{
    command::{Ending, Running},
    course::{Books, Course, Judged, fractions, seconds},
    document::{
        Document, Ended, FpRounding, KvmExits, Machine, MsrWrites, RegisterRandomness, TargetName,
        VERSION,
    },
};
use crate::{
    config::{self, Config},
    kernel::{Kernel, KernelOptions},
    nudge::Nudger,
    observe::{Observer, span},
    run::{Schedule, unix_ns},
    sensor::{
        cpu::CpuFigures,
        pmu::{NAME as PMU, Pmu},
    },
    source::ThreadSource,
    tenant::{
        Kind,
        discover::{ProcFs, Processes},
    },
};

/// Length of a window, ms.
const WINDOW_MS: u64 = 1_000;
/// Between two looks, ns: what moves into a control group, or ends, is noticed this late.
const LOOK_INTERVAL_NS: u64 = 250_000_000;
/// The same while threads come and go so fast that slots run short.
const BUSY_LOOK_INTERVAL_NS: u64 = 50_000_000;

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A program and its arguments, run for the trial.
    Command(Vec<OsString>),
    /// A process that runs, and its descendants.
    Process(u32),
    /// A control group and the groups below it.
    Cgroup(PathBuf),
}

/// How a trial is done.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is watched.
    pub target: Target,
    /// For how long at most.
    pub length: Duration,
    /// Where a command's output goes; `None`: to standard error.
    pub output: Option<PathBuf>,
    /// End with the first window whose verdict is at least this.
    pub until: Option<Level>,
    /// Threads that can be watched at one time.
    pub slots_max: u32,
    /// Which CPUs are never nudged, and what may be counted.
    pub config: Config,
}

impl Options {
    /// The usual ones, for a minute.
    #[must_use]
    pub fn of(target: Target) -> Self {
        Self {
            target,
            length: Duration::from_secs(60),
            output: None,
            until: None,
            slots_max: KernelOptions::default().slots_max,
            config: Config::default(),
        }
    }
}

/// How far a trial is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Since its begin, s.
    pub seconds: f64,
    /// At most, s.
    pub of_seconds: f64,
    /// CPU time used, s.
    pub cpu_seconds: f64,
    /// Samples so far.
    pub samples: u64,
    /// Times a thread could not be watched so far.
    pub threads_unwatched: u64,
    /// The verdict so far.
    pub level: Level,
    /// Whether the tests have enough samples.
    pub enough_samples: bool,
    /// Whether it computes and yet its registers were never looked at.
    pub never_ran: bool,
}

/// Does a trial; a message on `stop` ends it early. `progress` is told after every window.
///
/// # Errors
/// If the kernel half cannot be loaded, or there is no such command, process or control group.
pub fn run(
    options: &Options,
    stop: &Receiver<()>,
    progress: &mut dyn FnMut(&Progress),
) -> anyhow::Result<Document> {
    let kernel = Kernel::load(&KernelOptions {
        slots_max: options.slots_max,
        find_vcpus: false,
        ..KernelOptions::default()
    })?;
    let mut trial = Trial::begin(kernel, options)?;
    // A trial is a closer look from begin to end: what runs alone on its CPU would give too few samples in a minute.
    let nudge = &options.config.nudge;
    let nudger = Nudger::start(&config::Nudge {
        rest_hz: nudge.closer_look_hz,
        ..nudge.clone()
    });
    let ended = trial.watch(options, &nudger, stop, progress)?;
    drop(nudger);
    let ending = trial.finish();
    Ok(trial.document(options, ended, ending))
}

struct Trial {
    observer: Observer<Kernel, ProcFs>,
    tenant: TenantIndex,
    command: Option<Running>,
    /// Of a process: when it started, so that its id means nobody else.
    start_ticks: u64,
    /// Threads that found no free slot when watching began.
    refused: u64,
    began_ns: u64,
    lasted_ns: u64,
    course: Course,
    waits: waits::Sums,
    /// Why a sensor is unsupported, by its name.
    reasons: Vec<(String, String)>,
    /// Polled in halts so far; `None`: not known.
    halt_poll_ns: Option<u64>,
}

impl Trial {
    fn begin(kernel: Kernel, options: &Options) -> anyhow::Result<Self> {
        let counters = Pmu::of_this_host(&options.config.pmu);
        let mut observer = Observer::new(kernel, ProcFs, &options.config).with_pmu(counters);
        let (mut command, mut start_ticks, mut refused) = (None, 0, 0);
        let name = text::target(&target_name(&options.target));
        let tenant = observer.enter("trial".to_owned(), name, |kernel, tenant| {
            Ok::<_, anyhow::Error>(match &options.target {
                Target::Command(argv) => {
                    let running = Running::start(kernel, tenant, argv, options.output.as_deref())?;
                    let tgid = running.id();
                    command = Some(running);
                    Kind::Process { tgid }
                }
                Target::Process(pid) => {
                    start_ticks = start_of(*pid)
                        .with_context(|| format!("there is no process {pid} that runs"))?;
                    refused = kernel.watch_tree(*pid, tenant)?.refused;
                    Kind::Process { tgid: *pid }
                }
                Target::Cgroup(dir) => {
                    refused = kernel.watch_cgroup(dir, tenant)?.refused;
                    Kind::Cgroup { dir: dir.clone() }
                }
            })
        })?;
        let began_ns = observer.source().now_ns();
        Ok(Self {
            observer,
            tenant,
            command,
            start_ticks,
            refused: u64::from(refused),
            began_ns,
            lasted_ns: 0,
            course: Course::default(),
            waits: waits::Sums::default(),
            reasons: Vec::new(),
            halt_poll_ns: None,
        })
    }

    /// Looks and closes windows until the trial ends.
    fn watch(
        &mut self,
        options: &Options,
        nudger: &Nudger,
        stop: &Receiver<()>,
        progress: &mut dyn FnMut(&Progress),
    ) -> anyhow::Result<Ended> {
        let length_ns = u64::try_from(options.length.as_nanos()).unwrap_or(u64::MAX);
        let busy = usize::try_from(options.slots_max / 16).unwrap_or(usize::MAX);
        let mut schedule = Schedule::new(self.began_ns, WINDOW_MS);
        let mut stopped = false;
        loop {
            let now_ns = self.observer.source().now_ns();
            let look = self.observer.look();
            nudger.look_closer(&look.forming_cpus, now_ns);
            let tenant = self.tenant;
            let deltas = self.observer.deltas().iter().copied();
            self.course
                .take(deltas.filter(|delta| delta.tenant == tenant));
            let turns = self.observer.pmu().map_or(&[][..], Pmu::turns);
            self.course
                .take_turns(turns.iter().filter(|turn| turn.tenant == tenant));
            self.lasted_ns = now_ns.saturating_sub(self.began_ns);
            let mut ended = if stopped {
                Some(Ended::Interrupted)
            } else if self.target_ended() {
                Some(match options.target {
                    Target::Cgroup(_) => Ended::CgroupVanished,
                    Target::Command(_) | Target::Process(_) => Ended::TargetEnded,
                })
            } else {
                (self.lasted_ns >= length_ns).then_some(Ended::Time)
            };
            let due_ns = schedule.close_due(now_ns);
            if due_ns.is_some() || ended.is_some() {
                self.close(due_ns.unwrap_or_else(|| schedule.elapsed_ns(now_ns)))?;
                progress(&self.progress(options));
                if ended.is_none() && options.until.is_some_and(|l| self.course.level() >= l) {
                    ended = Some(Ended::LevelReached);
                }
            }
            if let Some(ended) = ended {
                return Ok(ended);
            }
            let interval_ns = if look.released >= busy.max(1) {
                BUSY_LOOK_INTERVAL_NS
            } else {
                LOOK_INTERVAL_NS
            };
            schedule.look_after(now_ns, interval_ns.min(length_ns - self.lasted_ns));
            let pause = schedule.pause(self.observer.source().now_ns());
            match stop.recv_timeout(pause) {
                Ok(()) => stopped = true,
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody can say stop any more.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(pause),
            }
        }
    }

    /// Whether nothing is left to watch.
    fn target_ended(&self) -> bool {
        let Some(tenant) = self.observer.tenant(self.tenant) else {
            return true;
        };
        if tenant.ended {
            return true;
        }
        match (&tenant.kind, &self.command) {
            // A process that was dying as it came to be watched may never switch again, and so never end here.
            (Kind::Process { tgid }, None) if start_of(*tgid) != Some(self.start_ticks) => !self
                .observer
                .readings()
                .iter()
                .any(|r| r.slot.tenant == self.tenant && !r.ended() && r.slot.tgid != *tgid),
            _ => false,
        }
    }

    fn close(&mut self, span_ns: u64) -> anyhow::Result<()> {
        let window = self.observer.close(span(unix_ns(), span_ns));
        // A tenant that has ended has its last window here and none after it.
        let Some(tenant) = window.tenants.into_iter().next() else {
            return Ok(());
        };
        let evidence = tenant.evidence.unwrap_or_default();
        let evidence = TenantEvidence::try_from(&evidence).context("a window's evidence")?;
        self.reasons = (window.sensors.into_iter())
            .map(|status| (status.sensor, status.reason))
            .collect();
        let cpu = tenant.cpu.unwrap_or_default();
        self.halt_poll_ns = add_known(self.halt_poll_ns, cpu.halt_poll_ns);
        self.waits
            .add(tenant.waits.unwrap_or_default(), &tenant.key);
        let books = books(&cpu);
        self.course.close(span_ns, &books, &evidence);
        Ok(())
    }

    fn progress(&self, options: &Options) -> Progress {
        let judged = self.course.judged();
        Progress {
            seconds: seconds(self.lasted_ns),
            of_seconds: options.length.as_secs_f64(),
            cpu_seconds: self.course.cpu_seconds(),
            samples: judged.evidence.register_randomness.samples,
            threads_unwatched: self.unwatched(),
            level: judged.verdict.level,
            enough_samples: judged.enough_samples,
            never_ran: judged.evidence.fp_rounding.state == SensorState::NeverRan
                && self.course.cpu_seconds() >= text::BUSY_SHARE * seconds(self.lasted_ns),
        }
    }

    fn unwatched(&self) -> u64 {
        let counters = ThreadSource::counters(self.observer.source());
        let of = |counter: Counter| counters.get(counter as usize).copied().unwrap_or(0);
        self.refused + of(Counter::NoFreeSlot) + of(Counter::TableFull)
    }

    /// Ends the command's tree, if there is one.
    fn finish(&mut self) -> Option<Ending> {
        let unwatched = self.unwatched() > 0;
        let mut command = self.command.take()?;
        Some(command.end(&mut self.observer, self.tenant, unwatched))
    }

    fn document(self, options: &Options, ended: Ended, ending: Option<Ending>) -> Document {
        use std::os::unix::process::ExitStatusExt as _;

        let unwatched = self.unwatched();
        let (exit_code, exit_signal) = ending
            .and_then(|ending| ending.status)
            .map_or((None, None), |status| (status.code(), status.signal()));
        let judged = self.course.judged();
        let reason_of = |sensor: &str| {
            let found = self.reasons.iter().find(|(name, _)| name == sensor);
            found.map(|(_, reason)| reason.clone()).unwrap_or_default()
        };
        let mut document = Document {
            version: VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            machine: machine(),
            target: target_name(&options.target),
            ended,
            exit_code,
            exit_signal,
            left_running: ending.map_or(0, |ending| ending.left),
            seconds: seconds(self.lasted_ns),
            cpu_seconds: self.course.cpu_seconds(),
            threads: self.course.threads(),
            threads_unwatched: unwatched,
            samples: judged.evidence.register_randomness.samples,
            enough_samples: judged.enough_samples,
            fp_rounding: fp_rounding(&judged, reason_of("fp_rounding")),
            register_randomness: register_randomness(&judged, reason_of("register_randomness")),
            kvm_exits: judged
                .evidence
                .kvm_exits
                .map(|exits| KvmExits::new(&exits, self.halt_poll_ns, reason_of("kvm_exits"))),
            msr_writes: (judged.evidence.msr_writes)
                .map(|msrs| MsrWrites::new(&msrs, reason_of("msr_writes"))),
            pmu: (judged.evidence.pmu)
                .map(|counted| pmu::document(&counted, reason_of(PMU), Vec::new())),
            waits: Some(self.waits.document()),
            verdict: judged.verdict.level,
            families: judged.verdict.families,
            reasons: judged.verdict.reasons,
            trace_complete: false,
            windows: Vec::new(),
        };
        let said = text::further_reasons(&document, self.course.higher());
        document.reasons.splice(0..0, said);
        let (windows, mixes, complete) = self.course.into_trace();
        (document.windows, document.trace_complete) = (windows, complete);
        if let Some(pmu) = &mut document.pmu {
            pmu.trace = mixes;
        }
        document
    }
}

fn fp_rounding(judged: &Judged, reason: String) -> FpRounding {
    let fp = judged.evidence.fp_rounding;
    FpRounding {
        state: fp.state,
        reason,
        modes: fp.modes,
        llr: fp.llr,
        test_samples: fp.test_samples,
        concluded: fp.concluded,
        duty: fp.duty,
    }
}

fn register_randomness(judged: &Judged, reason: String) -> RegisterRandomness {
    let rr = judged.evidence.register_randomness;
    let (fraction, directed_fraction, general_fraction) = fractions(&rr);
    RegisterRandomness {
        state: rr.state,
        reason,
        samples: rr.samples,
        random: rr.random,
        fraction,
        directed_samples: rr.directed_samples,
        directed_random: rr.directed_random,
        directed_fraction,
        any_llr: rr.any_llr,
        any_concluded: rr.any_concluded,
        any_test_samples: rr.any_test_samples,
        directed_llr: rr.directed_llr,
        directed_concluded: rr.directed_concluded,
        directed_test_samples: rr.directed_test_samples,
        general_samples: rr.general_samples,
        general_random: rr.general_random,
        general_fraction,
        general_llr: rr.general_llr,
        general_concluded: rr.general_concluded,
        general_test_samples: rr.general_test_samples,
    }
}

fn books(cpu: &v1::Cpu) -> Books {
    Books {
        threads: cpu.threads,
        cpu: CpuFigures {
            on_cpu_ns: cpu.on_cpu_ns,
            guest_ns: cpu.guest_ns,
            run_queue_wait_ns: cpu.run_queue_wait_ns,
            voluntary_switches: cpu.voluntary_switches,
            involuntary_switches: cpu.involuntary_switches,
        },
    }
}

fn target_name(target: &Target) -> TargetName {
    match target {
        Target::Command(argv) => TargetName::Command(
            argv.iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
        ),
        Target::Process(pid) => TargetName::Pid(*pid),
        Target::Cgroup(dir) => TargetName::Cgroup(dir.display().to_string()),
    }
}

/// When a process started, clock ticks since boot; `None` if there is none, or all its threads are dead.
fn start_of(pid: u32) -> Option<u64> {
    let start_ticks = ProcFs.facts(pid)?.start_ticks;
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let lives = threads.flatten().any(|thread| {
        // State, field 3 of proc_pid_stat(5), behind the name in brackets.
        std::fs::read_to_string(thread.path().join("stat"))
            .ok()
            .and_then(|stat| Some(stat[stat.rfind(')')? + 1..].trim_start().to_owned()))
            .is_some_and(|state| !state.starts_with(['Z', 'X']))
    });
    lives.then_some(start_ticks)
}

fn machine() -> Machine {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(':'))
        .map_or("", |(_, model)| model.trim());
    Machine {
        kernel_release: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        cpu_model: model.to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
    }
}
