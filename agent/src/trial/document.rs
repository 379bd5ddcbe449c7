//! The document a trial gives: `davy-agent trial --json`. Described for its readers in `docs/trial.md`.
//!
//! [`VERSION`] grows when a field changes its meaning or goes; fields may be added without it. It holds counts
//! and the scheduler's books, never register contents.

use davy_evidence::{Family, Level, SensorState};
use serde::{Deserialize, Serialize};

pub use super::{
    guests::{KvmExits, MsrWrites},
    pmu::Pmu,
};
use crate::sensor::fp_rounding::Modes;

/// Version of the form.
pub const VERSION: u32 = 1;

/// What a trial found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// [`VERSION`].
    pub version: u32,
    /// Version of the agent.
    pub agent_version: String,
    /// Where it was.
    pub machine: Machine,
    /// What was watched.
    #[serde(flatten)]
    pub target: TargetName,
    /// Why the trial ended.
    pub ended: Ended,
    /// The command's exit code; absent if there was no command or it was ended by a signal.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exit_code: Option<i32>,
    /// The signal that ended the command.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exit_signal: Option<i32>,
    /// Threads of the command that could not be ended.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub left_running: u64,
    /// How long it lasted, wall time, s.
    pub seconds: f64,
    /// CPU time that was used in it, s.
    pub cpu_seconds: f64,
    /// Threads that were watched in it.
    pub threads: u64,
    /// Times a thread could not be watched, because no slot was free.
    pub threads_unwatched: u64,
    /// Samples of registers, over all threads: looks at which they had changed.
    pub samples: u64,
    /// Whether every test concluded or had enough samples to tell. A `quiet` without that says little.
    pub enough_samples: bool,
    /// The sensor `fp_rounding`.
    pub fp_rounding: FpRounding,
    /// The sensor `register_randomness`.
    pub register_randomness: RegisterRandomness,
    /// The sensor `kvm_exits`; absent where nothing that was watched is a vCPU.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kvm_exits: Option<KvmExits>,
    /// The sensor `msr_writes`; likewise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub msr_writes: Option<MsrWrites>,
    /// The sensor `pmu`; absent from a trial by an agent without it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pmu: Option<Pmu>,
    /// Behind whom its threads waited for a CPU; null in documents of agents that did not measure it.
    #[serde(default)]
    pub waits: Option<Waits>,
    /// What Davy would conclude at the trial's end.
    pub verdict: Level,
    /// What is computed, where that can be told.
    pub families: Vec<Family>,
    /// In words and numbers.
    pub reasons: Vec<String>,
    /// Whether `windows` has every thread's counts: beyond [`PARTS_MAX`] entries they are left out.
    pub trace_complete: bool,
    /// The feature trace: what the tests were fed with.
    pub windows: Vec<Window>,
}

/// Most entries of [`Window::by_thread`] in one document.
pub const PARTS_MAX: usize = 500_000;

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `uname -r`.
    pub kernel_release: String,
    /// As the kernel names it; empty if it does not.
    pub cpu_model: String,
    /// CPUs the agent may use.
    pub cpus: usize,
}

/// What was watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetName {
    /// The command's words.
    Command(Vec<String>),
    /// A process's id.
    Pid(u32),
    /// A control group's directory.
    Cgroup(String),
}

/// Why a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Its time was over.
    Time,
    /// Everything that was watched has ended.
    TargetEnded,
    /// The control group is gone.
    CgroupVanished,
    /// The level it was to last until was reached.
    LevelReached,
    /// It was told to stop.
    Interrupted,
}

/// Behind whom threads waited for a CPU; the parts add up to all of the wait.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// Who ran meanwhile, the most first; at most 5.
    pub behind: Vec<WaitedBehind>,
    /// Behind all other processes, ns.
    pub others_ns: u64,
    /// Beside an idle CPU: it was waking up, or a quota was used up, ns.
    pub idle_ns: u64,
    /// Not known: too brief, on another CPU before a move, or too many ran meanwhile, ns.
    pub unknown_ns: u64,
}

/// A process that ran meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitedBehind {
    /// Its id.
    pub pid: u32,
    /// As the kernel names it; empty if it had ended before it could be named.
    pub command: String,
    /// Whether it is one of the trial's own.
    pub own: bool,
    /// How long, ns.
    pub ns: u64,
}

/// What `fp_rounding` found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FpRounding {
    /// Live if it measured at any time.
    pub state: SensorState,
    /// Why it is unsupported.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub reason: String,
    /// Samples by rounding mode (MXCSR.RC 0 to 3), all threads.
    pub modes: Modes,
    /// The test of the thread nearest to a conclusion: one cumulative sum per mode, nats.
    pub llr: [f64; 4],
    /// Samples that thread has given to its test.
    pub test_samples: u64,
    /// Whether a thread's test stands concluded at the end.
    pub concluded: bool,
    /// Share of one CPU that the threads concluded used, averaged over at most the last minute.
    pub duty: f64,
}

/// What `register_randomness` found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegisterRandomness {
    /// Live if it measured at any time.
    pub state: SensorState,
    /// Why it is unsupported.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub reason: String,
    /// Samples, all threads.
    pub samples: u64,
    /// Those with enough random registers.
    pub random: u64,
    /// `random / samples`; null without samples.
    pub fraction: Option<f64>,
    /// Samples outside rounding mode 0.
    pub directed_samples: u64,
    /// Those with enough random registers.
    pub directed_random: u64,
    /// `directed_random / directed_samples`; null without samples there.
    pub directed_fraction: Option<f64>,
    /// Test over all samples, of the thread nearest to a conclusion, nats.
    pub any_llr: f64,
    /// Whether it stands concluded at the end.
    pub any_concluded: bool,
    /// Samples of that thread.
    #[serde(default)]
    pub any_test_samples: u64,
    /// Test over the samples outside rounding mode 0, of the thread nearest to a conclusion, nats.
    pub directed_llr: f64,
    /// Whether it stands concluded at the end.
    pub directed_concluded: bool,
    /// Samples of that thread.
    #[serde(default)]
    pub directed_test_samples: u64,
    /// Samples of general registers.
    #[serde(default)]
    pub general_samples: u64,
    /// Those with enough random registers.
    #[serde(default)]
    pub general_random: u64,
    /// `general_random / general_samples`; null without samples.
    #[serde(default)]
    pub general_fraction: Option<f64>,
    /// Test over the samples of general registers, of the thread nearest to a conclusion, nats.
    #[serde(default)]
    pub general_llr: f64,
    /// Whether it stands concluded at the end.
    #[serde(default)]
    pub general_concluded: bool,
    /// Samples of that thread.
    #[serde(default)]
    pub general_test_samples: u64,
}

/// One window, about a second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// How long it lasted, ns.
    pub span_ns: u64,
    /// Threads that were watched in it.
    pub threads: u32,
    /// CPU time used in it, ns.
    pub on_cpu_ns: u64,
    /// Time waited for a CPU, ns.
    pub run_queue_wait_ns: u64,
    /// Switches that were asked for.
    pub voluntary_switches: u64,
    /// Switches that were not.
    pub involuntary_switches: u64,
    /// The verdict at its end.
    pub verdict: Level,
    /// What the threads did in it, in the order in which the tests were told. A thread comes up more than
    /// once if it was looked at more than once.
    pub by_thread: Vec<Part>,
}

/// What one thread did between two looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Which one, in the order of their appearance.
    pub thread: u32,
    /// CPU time, ns.
    pub on_cpu_ns: u64,
    /// Looks at its registers.
    pub looks: u64,
    /// Samples by rounding mode.
    pub modes: Modes,
    /// Of those, with enough random registers.
    pub random: Modes,
    /// Samples of general registers.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub general_samples: u64,
    /// Of those, with enough random registers.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub general_random: u64,
    /// Looks at the vector registers after it had left its CPU involuntarily.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub involuntary_looks: u64,
    /// Of those, with a sample outside rounding mode 0.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub involuntary_directed: u64,
    /// It is a vCPU.
    #[serde(skip_serializing_if = "is_false", default)]
    pub vcpu: bool,
    /// Its registers are encrypted.
    #[serde(skip_serializing_if = "is_false", default)]
    pub confidential: bool,
    /// This is its last part.
    #[serde(skip_serializing_if = "is_false", default)]
    pub ended: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}
