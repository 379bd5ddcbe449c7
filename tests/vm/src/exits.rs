//! What the sensors `kvm_exits` and `msr_writes` say of real guests, against KVM's own account of each VM in debugfs
//! (`/sys/kernel/debug/kvm/<pid>-<fd>/`, sums over its vCPUs; `kvm_create_vm_debugfs`, virt/kvm/kvm_main.c).
//!
//! Both sources are checked on each kernel: the agent reads KVM's counters; a second kernel half, loaded here, is made to
//! use the tracepoint.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use davy_agent::kernel::{ExitsFrom, Kernel, KernelOptions, Reading};
use davy_proto::v1::{ExitSource, HistoryEntry, KvmExits, MsrWrites, SensorState};

use crate::Arguments;
use crate::cpu_truth::{Books, agrees};
use crate::guest::Guest;
use crate::inventory::Inventory;
use crate::report::{Report, State};

/// Patience for enough windows.
const PATIENCE: Duration = Duration::from_secs(150);
/// Span over which exits are compared.
const SPAN_NS: u64 = 20_000_000_000;
/// A window's figures are of the vCPU's last entry, at most half a second before; more on an emulated CPU with many guests.
const LATE_NS: u64 = 2_000_000_000;
/// For how long the tracepoint counts.
const TRACED: Duration = Duration::from_secs(8);
/// Share by which counts may differ.
const TOLERANCE: f64 = 0.05;

/// Registers that the load `tune-prefetcher` writes, each once.
const REGISTERS_TUNED: u64 = 4;

/// What is compared with KVM's accounts of two guests, read from the start of their loads on.
#[derive(Debug)]
pub(crate) struct Accounts {
    exits: Books,
    halts: Books,
    since_unix_ns: u64,
}

impl Accounts {
    /// Keeps reading the exits of a busy guest and the halts of an idle one.
    pub(crate) fn keep(busy: &Guest, idle: &Guest, since_unix_ns: u64) -> Result<Self> {
        Ok(Self {
            exits: Account::of(busy)?.keep("exits"),
            halts: Account::of(idle)?.keep("halt_exits"),
            since_unix_ns,
        })
    }

    /// All checks; only `miner` has tuned the prefetcher.
    pub(crate) async fn check(
        self,
        miner: &Guest,
        busy: &Guest,
        idle: &Guest,
        inventory: &mut Inventory,
        report: &mut Report,
    ) {
        let since = self.since_unix_ns;
        let exits = |exits: &KvmExits| Some(exits.exits);
        agree(
            busy,
            "exits",
            exits,
            (&self.exits, since),
            inventory,
            report,
        )
        .await;
        let halts = |exits: &KvmExits| exits.halts;
        agree(
            idle,
            "halt_exits",
            halts,
            (&self.halts, since),
            inventory,
            report,
        )
        .await;
        drop(self);
        msr_writes_seen(miner, REGISTERS_TUNED, busy, inventory, report).await;
        halt_polling_known(idle, inventory, report);
        tracepoint_agrees(busy, report).await;
    }
}

/// KVM's own account of a VM.
#[derive(Debug)]
struct Account {
    directory: PathBuf,
}

impl Account {
    fn of(guest: &Guest) -> Result<Self> {
        let all = "/sys/kernel/debug/kvm";
        let prefix = format!("{}-", guest.pid());
        for entry in fs::read_dir(all).with_context(|| format!("reading {all}"))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                return Ok(Self {
                    directory: entry.path(),
                });
            }
        }
        anyhow::bail!("{all} has no VM of process {}", guest.pid())
    }

    /// Keeps reading one of its counters.
    fn keep(&self, counter: &str) -> Books {
        Books::read_file(self.directory.join(counter))
    }

    fn now(&self, counter: &str) -> Result<u64> {
        let path = self.directory.join(counter);
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        text.trim()
            .parse()
            .with_context(|| format!("{} holds no number", path.display()))
    }
}

fn exits_of(entry: &HistoryEntry) -> Option<&KvmExits> {
    let evidence = entry.window.as_ref()?.evidence.as_ref()?;
    evidence.kvm_exits.as_ref()
}

fn msrs_of(entry: &HistoryEntry) -> Option<&MsrWrites> {
    let evidence = entry.window.as_ref()?.evidence.as_ref()?;
    evidence.msr_writes.as_ref()
}

/// The sums that the agent's windows have of one counter, against KVM's.
async fn agree(
    guest: &Guest,
    counter: &str,
    of: fn(&KvmExits) -> Option<u64>,
    (truth, since): (&Books, u64),
    inventory: &mut Inventory,
    report: &mut Report,
) {
    let name = guest.plan.name;
    let what = format!("enough windows to compare {counter} of {name}");
    let result = report
        .until(&what, PATIENCE, async || {
            if let Err(error) = inventory.look().await {
                return State::NotYet(format!("{error:#}"));
            }
            let windows = inventory.windows(name, since);
            // The first may have begun before the account was read; after the last there must be readings.
            let windows = windows.get(4..windows.len().saturating_sub(4)).unwrap_or_default();
            let (Some(first), Some(last)) = (windows.first(), windows.last()) else {
                return State::NotYet(format!("{} windows", windows.len()));
            };
            let (from, to) = (first.start_unix_ns, last.end_unix_ns);
            if to - from < SPAN_NS {
                return State::NotYet(format!("{} windows", windows.len()));
            }
            let figures: Vec<&KvmExits> = windows.iter().filter_map(|e| exits_of(e)).collect();
            let agent: u64 = figures.iter().filter_map(|exits| of(exits)).sum();
            let observed: u64 = figures.iter().map(|exits| exits.observed_ns).sum();
            let from_counters = |exits: &&&KvmExits| exits.source() == ExitSource::Counters;
            let counted = figures.iter().filter(from_counters).count();
            let (Some(least), Some(most)) = (
                truth.growth(from, to - LATE_NS),
                truth.growth(from - LATE_NS, to),
            ) else {
                return State::NotYet("no readings of KVM's account around the windows".to_owned());
            };
            let bounds = (least.0, most.1);
            let detail = format!(
                "{} windows over {} ms, {counted} of them with KVM's counters, over {} ms of them: agent {agent}, debugfs {} to {}",
                windows.len(),
                (to - from) / 1_000_000,
                observed / 1_000_000,
                bounds.0,
                bounds.1
            );
            if counted > 0 && bounds.1 > 0 && agrees(agent, bounds, TOLERANCE) {
                State::Reached(detail)
            } else {
                State::NotYet(detail)
            }
        })
        .await;
    report.record(&format!("{counter}-of-{name}-agree-with-kvm"), result);
}

/// The guest that wrote the prefetcher's registers is told from those that did not.
async fn msr_writes_seen(
    tuned: &Guest,
    writes: u64,
    untuned: &Guest,
    inventory: &mut Inventory,
    report: &mut Report,
) {
    let result = report
        .until(
            "writes to the prefetcher's registers",
            PATIENCE,
            async || {
                if let Err(error) = inventory.look().await {
                    return State::NotYet(format!("{error:#}"));
                }
                let of = |guest: &Guest| {
                    let all = inventory.windows(guest.plan.name, 0);
                    let newest = all.iter().rev().find_map(|entry| msrs_of(entry)).copied();
                    let within: u64 = all
                        .iter()
                        .filter_map(|entry| msrs_of(entry))
                        .map(|msrs| msrs.prefetcher_writes)
                        .sum();
                    newest.map(|msrs| (msrs.state(), within, msrs.prefetcher_writes_watched))
                };
                let (tuned, untuned) = (of(tuned), of(untuned));
                let detail = format!("tuned {tuned:?}, untuned {untuned:?}, {writes} written");
                let live = SensorState::Live;
                match (tuned, untuned) {
                    (_, Some((_, 1.., _) | (_, _, 1..))) => State::Wrong(detail),
                    (Some((state, within, watched)), Some((other, 0, 0)))
                        if (state, other) == (live, live)
                            && (within, watched) == (writes, writes) =>
                    {
                        State::Reached(detail)
                    }
                    _ => State::NotYet(detail),
                }
            },
        )
        .await;
    report.record("msr-writes-of-the-tuned-guest", result);
}

/// Halt-polling is known wherever KVM's counters are read, and is never more than the vCPUs' CPU time.
fn halt_polling_known(guest: &Guest, inventory: &Inventory, report: &mut Report) {
    let (mut polled, mut vcpu, mut windows) = (0, 0, 0);
    for entry in inventory.windows(guest.plan.name, 0) {
        let cpu = entry.window.as_ref().and_then(|window| window.cpu.as_ref());
        let Some((cpu, poll_ns)) = cpu.and_then(|cpu| Some((cpu, cpu.halt_poll_ns?))) else {
            continue;
        };
        windows += 1;
        polled += poll_ns;
        vcpu += cpu.vcpu_on_cpu_ns;
    }
    let detail = format!("{polled} ns polled in halts, {vcpu} ns on the CPU, in {windows} windows");
    let right = windows > 0 && polled <= vcpu;
    report.record(
        &format!("halt-polling-of-{}-known", guest.plan.name),
        if right { Ok(detail) } else { Err(detail) },
    );
}

/// Hides KVM's types in the kernel's BTF (stock kernels have them there too), then the module's BTF, then tracefs: `check` must
/// say where exits are from then, and what is missing.
pub(crate) fn missing_named(arguments: &Arguments, report: &mut Report) -> Result<()> {
    const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
    const WITHOUT_KVM: &str = "/tmp/vmlinux-without-kvm";
    const NO_MODULE: &str = "mount --bind /dev/null /sys/kernel/btf/kvm";
    const NO_TRACEFS: &str =
        "mount -t tmpfs none /sys/kernel/tracing && mount -t tmpfs none /sys/kernel/debug";
    fs::write(WITHOUT_KVM, without_kvm(fs::read(VMLINUX)?)).context("hiding KVM's types")?;
    let no_types = format!("mount --bind {WITHOUT_KVM} {VMLINUX}");
    let program = arguments.programs.join("davy-agent");
    let check = |hide: &[&str]| -> Result<Vec<String>> {
        let done = Command::new("unshare")
            .args(["--mount", "sh", "-c"])
            .arg(format!(
                "{} && exec {} check",
                hide.join(" && "),
                program.display()
            ))
            .output()
            .context("starting davy-agent check in unshare")?;
        ensure!(done.status.success(), "davy-agent check: {done:?}");
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let told = |line: &&str| line.contains(" kvm_exits ") || line.contains(" msr_writes ");
        Ok(said
            .lines()
            .map(str::trim)
            .filter(told)
            .map(str::to_owned)
            .collect())
    };
    let module = check(&[&no_types])?;
    let neither = check(&[&no_types, NO_MODULE])?;
    let nothing = check(&[&no_types, NO_MODULE, NO_TRACEFS])?;
    let says = |lines: &[String], starts: &str, words: &[&str]| {
        let fits = |line: &&String| {
            line.starts_with(starts) && words.iter().all(|word| line.contains(word))
        };
        lines.iter().any(|line| fits(&line))
    };
    // The module's own BTF, split from the kernel's, is read, and has no second copy of the kernel's types.
    let right = says(
        &module,
        "ok",
        &["kvm_exits", "tracepoint kvm:kvm_exit", "no struct kvm_vcpu"],
    ) && says(
        &neither,
        "ok",
        &[
            "tracepoint kvm:kvm_exit",
            "/sys/kernel/btf/kvm cannot be used",
        ],
    ) && says(
        &nothing,
        "UNSUPPORTED",
        &["/sys/kernel/btf/kvm", "tracefs is not mounted"],
    ) && says(
        &nothing,
        "UNSUPPORTED",
        &["msr_writes", "tracefs is not mounted"],
    );
    let detail = format!(
        "without the types {module:?}; nor a module's {neither:?}; nor tracefs {nothing:?}"
    );
    report.record(
        "agent-names-what-kvm-lacks",
        if right { Ok(detail) } else { Err(detail) },
    );
    Ok(())
}

/// The same BTF, in which KVM's struct has another name.
fn without_kvm(mut btf: Vec<u8>) -> Vec<u8> {
    let name = b"\0kvm_vcpu\0";
    if let Some(at) = btf.windows(name.len()).position(|bytes| bytes == name) {
        btf[at + 1] = b'x';
    }
    btf
}

/// A second kernel half counts a guest's exits at the tracepoint; its counts are KVM's.
async fn tracepoint_agrees(guest: &Guest, report: &mut Report) {
    let result = traced(guest).await.map_err(|error| format!("{error:#}"));
    report.record("tracepoint-agrees-with-kvm", result);
}

async fn traced(guest: &Guest) -> Result<String> {
    let account = Account::of(guest)?;
    let mut kernel = Kernel::load(&KernelOptions {
        slots_max: 256,
        exits: ExitsFrom::Tracepoint,
        ..KernelOptions::default()
    })?;
    kernel.follow_guests(true);
    let states = kernel.sensors();
    let said = states.iter().find(|(name, ..)| *name == "kvm_exits");
    let said = said.context("no state of kvm_exits")?.2.clone();
    ensure!(said.contains("tracepoint kvm:kvm_exit"), "said: {said}");
    let begun = Instant::now();
    let first = loop {
        if let Some(counts) = counts(&account, &kernel, guest)? {
            break counts;
        }
        ensure!(begun.elapsed() < PATIENCE, "no exit was counted");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    tokio::time::sleep(TRACED).await;
    let last = counts(&account, &kernel, guest)?.context("the record is gone")?;
    // What was before the program was attached is in neither difference.
    let mut details = Vec::new();
    for (at, name) in ["exits", "halt_exits", "io_exits", "irq_exits"]
        .iter()
        .enumerate()
    {
        let traced = last.traced[at] - first.traced[at];
        let least = last.before[at].saturating_sub(first.after[at]);
        let most = last.after[at] - first.before[at];
        let detail = format!("{name}: tracepoint {traced}, debugfs {least} to {most}");
        // A few that one counts a moment before the other weigh much where there are few.
        let near = traced + 5 >= least && traced <= most + 5;
        ensure!(near || agrees(traced, (least, most), TOLERANCE), "{detail}");
        details.push(detail);
    }
    ensure!(last.traced[0] > first.traced[0], "no exits: {details:?}");
    ensure!(!last.named.is_empty(), "no reason is named");
    details.push(last.named.join(", "));
    Ok(details.join("; "))
}

/// The tracepoint's counts, and KVM's right before and right after they were read.
struct Counts {
    traced: [u64; 4],
    before: [u64; 4],
    after: [u64; 4],
    named: Vec<String>,
}

fn counts(account: &Account, kernel: &Kernel, guest: &Guest) -> Result<Option<Counts>> {
    let truth = || -> Result<[u64; 4]> {
        Ok([
            account.now("exits")?,
            account.now("halt_exits")?,
            account.now("io_exits")?,
            account.now("irq_exits")?,
        ])
    };
    let before = truth()?;
    let mut readings: Vec<Reading> = Vec::new();
    kernel.readings(&mut readings);
    let vcpus = readings
        .iter()
        .filter(|reading| reading.slot.tgid == guest.pid())
        .filter_map(|reading| kernel.vcpu(reading));
    let vcpus: Vec<_> = vcpus.filter(|vcpu| vcpu.exits > 0).collect();
    let after = truth()?;
    let [vcpu] = vcpus[..] else {
        return Ok(None);
    };
    ensure!(
        vcpu.source == davy_abi::SOURCE_TRACEPOINT
            && vcpu.isa == davy_abi::ISA_SVM
            && vcpu.foreign == 0,
        "{vcpu:?}"
    );
    let named = vcpu.reason_codes.iter().zip(vcpu.reason_counts);
    let svm = davy_evidence::kvm_exits::Isa::Svm;
    Ok(Some(Counts {
        traced: [vcpu.exits, vcpu.halts, vcpu.io, vcpu.interrupts],
        before,
        after,
        named: named
            .filter(|&(_, count)| count > 0)
            .map(|(&code, count)| {
                format!(
                    "{} {count}",
                    davy_evidence::kvm_exits::reason_name(svm, code)
                )
            })
            .collect(),
    }))
}
