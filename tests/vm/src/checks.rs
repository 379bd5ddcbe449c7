//! The checks, in order: what is started, what is waited for, what must then be so.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use davy_proto::v1::{HistoryEntry, SensorState, TenantKind, VerdictLevel};

use crate::cpu_truth::{Books, agrees, now_unix_ns};
use crate::guest::{Guest, Plan};
use crate::inventory::{HOST, Inventory, concluded, level, modes};
use crate::report::{Report, State};
use crate::service::Service;
use crate::{Arguments, accounts, exits, hasher};

pub(crate) const DETECTOR: &str = "http://127.0.0.1:7700";

/// A RandomX miner; its light mode alone needs 256 MiB.
const MINER: Plan = Plan {
    name: "droplet-101",
    vcpus: 2,
    memory_mib: 768,
    load: "tune-prefetcher davy-randomx --threads 2",
};
/// Honest, and busy with vector arithmetic.
const BUSY: Plan = Plan {
    name: "droplet-103",
    vcpus: 1,
    memory_mib: 256,
    load: "davy-matrix",
};
/// Idle, and of a name the agent's pattern does not know.
const IDLE: Plan = Plan {
    name: "web-1",
    vcpus: 1,
    memory_mib: 256,
    load: "davy-idle",
};

/// Patience for what the services do by themselves, on an emulated CPU shared with guests.
const SERVICE_PATIENCE: Duration = Duration::from_secs(90);
/// Patience for what needs many samples of a guest.
const EVIDENCE_PATIENCE: Duration = Duration::from_secs(150);
/// Samples of the busy guest, at the least, before its silence counts: as many as `fp_rounding` needs to tell.
const QUIET_SAMPLES_MIN: u64 = davy_evidence::fp_rounding::SAMPLES_TO_TELL;
/// Windows of a quiet guest, at the least, after the miner's test concluded.
const QUIET_WINDOWS_MIN: usize = 5;
/// Span over which CPU time is compared.
const CPU_SPAN_NS: u64 = 20_000_000_000;
/// Share by which the agent's CPU time may differ from the kernel's.
const CPU_TOLERANCE: f64 = 0.02;

/// Runs every check, recording each.
///
/// # Errors
/// If something the checks themselves need could not be started.
pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    accounts::serve().await?;
    let mut detector = start_detector(arguments)?;
    let mut inventory = Inventory::new(DETECTOR);
    detector_serves(&mut detector, &mut inventory, report).await?;
    // One guest before the agent and two after it: both are to be found.
    let mut idle = Guest::boot(IDLE, arguments, report).await?;
    idle.go()?;
    let mut agent = start_agent(arguments)?;
    agent_reports(&mut agent, &mut inventory, report).await?;

    let mut miner = Guest::boot(MINER, arguments, report).await?;
    let mut busy = Guest::boot(BUSY, arguments, report).await?;
    guests_found(&mut inventory, report).await;
    names_mapped(&inventory, report);

    let idle_since = load_ready(&mut idle, &mut inventory, report).await?;
    miner.go()?;
    load_ready(&mut miner, &mut inventory, report).await?;
    busy.go()?;
    let loads_since = load_ready(&mut busy, &mut inventory, report).await?;
    let threads = busy.vcpu_threads()?;
    ensure!(
        threads.len() == 1,
        "the busy guest has vCPU threads {threads:?}"
    );
    let books = Books::read(&threads[0]);
    let exits = exits::Accounts::keep(&busy, &idle, loads_since)?;

    guest_time_seen(&mut inventory, report, loads_since).await;
    miner_found(&mut inventory, report, loads_since).await;
    for (plan, since, samples_min) in [
        (BUSY, loads_since, QUIET_SAMPLES_MIN),
        // An idle guest's registers hardly change, and only samples of changed registers count.
        (IDLE, idle_since, 0),
    ] {
        stays_quiet(plan, since, samples_min, &mut inventory, report).await;
    }
    crate::hotplug::followed(&mut inventory, report).await;
    cpu_time_agrees(&mut inventory, report, loads_since, &books).await;
    drop(books);
    exits
        .check(&miner, &busy, &idle, &mut inventory, report)
        .await;
    sensors_live(&mut inventory, report).await;
    no_window_lost(&mut inventory, report).await;

    if accounts::checked_here()? {
        accounts::while_they_run(&mut inventory, report).await;
        // The emulated CPU is one: other miners must have a quarter of it each to be called so.
        drop((miner, busy));
        accounts::of_other_miners(arguments, &mut inventory, report).await?;
    } else {
        drop((miner, busy));
    }
    hasher::suspected(arguments, &mut inventory, report).await?;
    drop(idle);
    agent.end_cleanly(report).await;
    detector.end_cleanly(report).await;
    exits::missing_named(arguments, report)?;
    lockdown_named(arguments, report)
}

fn start_detector(arguments: &Arguments) -> Result<Service> {
    let program = arguments.programs.join("davy-detector");
    let config = accounts::detector_config()?;
    let args = [
        "serve",
        "--config",
        config,
        "--database",
        "/tmp/davy.sqlite",
    ];
    Service::start("detector", &program, &args, &arguments.logs)
}

fn start_agent(arguments: &Arguments) -> Result<Service> {
    // A guest that has an emulated CPU to itself is seen at wakings alone: five times as often as by default, so that a test
    // concludes in a minute.
    let config = format!(
        "host = \"{HOST}\"\ndetector = \"{DETECTOR}\"\nwindow_ms = 1000\n\
         metrics_listen = \"127.0.0.1:7710\"\n\n[budget]\ncpu_share = 0\n\n[nudge]\nrest_hz = 10\n\n[names]\npattern = '^droplet-(?P<id>[0-9]+)$'\n"
    );
    let path = "/tmp/davy-agent.toml";
    fs::write(path, config).context("writing the agent's configuration")?;
    let program = arguments.programs.join("davy-agent");
    Service::start(
        "agent",
        &program,
        &["run", "--config", path],
        &arguments.logs,
    )
}

async fn detector_serves(
    detector: &mut Service,
    inventory: &mut Inventory,
    report: &mut Report,
) -> Result<()> {
    let result = report
        .until("detector serves", SERVICE_PATIENCE, async || {
            if let Some(status) = detector.ended() {
                return State::Wrong(format!("it ended with {status}"));
            }
            match inventory.ingest().await {
                Ok(_) => State::Reached("its inventory answers".to_owned()),
                Err(error) => State::NotYet(format!("{error:#}")),
            }
        })
        .await;
    ensure!(
        report.record("detector-serves", result),
        "nothing to check without a detector"
    );
    Ok(())
}

async fn agent_reports(
    agent: &mut Service,
    inventory: &mut Inventory,
    report: &mut Report,
) -> Result<()> {
    let result = report
        .until("agent reports", SERVICE_PATIENCE, async || {
            if let Some(status) = agent.ended() {
                return State::Wrong(format!("it ended with {status}"));
            }
            match inventory.host().await {
                Ok(host) if host.connected && host.windows > 0 => State::Reached(format!(
                    "agent {} on kernel {}",
                    host.agent_version, host.kernel_release
                )),
                Ok(host) => State::NotYet(format!("{} windows", host.windows)),
                Err(error) => State::NotYet(format!("{error:#}")),
            }
        })
        .await;
    ensure!(
        report.record("agent-reports", result),
        "nothing to check without an agent"
    );
    Ok(())
}

async fn guests_found(inventory: &mut Inventory, report: &mut Report) {
    for plan in [MINER, BUSY, IDLE] {
        let result = report
            .until("guests are found", SERVICE_PATIENCE, async || {
                if let Err(error) = inventory.look().await {
                    return State::NotYet(format!("{error:#}"));
                }
                let current = inventory
                    .droplet(plan.name)
                    .and_then(|d| d.current.as_ref());
                let Some(current) = current else {
                    return State::NotYet(format!("known: {:?}", inventory.names()));
                };
                let detail = format!(
                    "{} of {}, {} vCPUs",
                    current.key, current.vmm, current.vcpus
                );
                if current.vcpus == plan.vcpus
                    && current.kind() == TenantKind::Droplet
                    && current.vmm == "qemu"
                {
                    State::Reached(detail)
                } else {
                    State::NotYet(detail)
                }
            })
            .await;
        report.record(&format!("found-{}", plan.name), result);
    }
}

fn names_mapped(inventory: &Inventory, report: &mut Report) {
    let expected = [(MINER, "101"), (BUSY, "103"), (IDLE, "")];
    let id = |plan: Plan| {
        let current = inventory.droplet(plan.name)?.current.as_ref()?;
        Some(current.droplet_id.clone())
    };
    let got: Vec<_> = expected
        .iter()
        .map(|(plan, _)| (plan.name, id(*plan)))
        .collect();
    let right = expected
        .iter()
        .all(|(plan, want)| id(*plan).as_deref() == Some(*want));
    let detail = format!("droplet ids {got:?}");
    report.record(
        "names-to-droplet-ids",
        if right { Ok(detail) } else { Err(detail) },
    );
}

/// Waits until a guest's load says that it runs, gathering windows meanwhile; the time at which that was seen.
async fn load_ready(
    guest: &mut Guest,
    inventory: &mut Inventory,
    report: &mut Report,
) -> Result<u64> {
    let name = guest.plan.name;
    let result = report
        .until(
            &format!("load of {name} is ready"),
            EVIDENCE_PATIENCE,
            async || {
                inventory.keep_up().await;
                guest.line_seen(|line| line.starts_with("ready"))
            },
        )
        .await;
    ensure!(
        report.record(&format!("load-runs-in-{name}"), result),
        "nothing to check without the load of {name}"
    );
    Ok(now_unix_ns())
}

async fn guest_time_seen(inventory: &mut Inventory, report: &mut Report, since: u64) {
    for plan in [MINER, BUSY] {
        let result = report
            .until("guest time is seen", SERVICE_PATIENCE, async || {
                if let Err(error) = inventory.look().await {
                    return State::NotYet(format!("{error:#}"));
                }
                let windows = inventory.windows(plan.name, since);
                let cpus = windows
                    .iter()
                    .filter_map(|e| e.window.as_ref()?.cpu.as_ref());
                let (mut on_cpu, mut vcpu, mut guest) = (0, 0, 0);
                for cpu in cpus {
                    on_cpu += cpu.on_cpu_ns;
                    vcpu += cpu.vcpu_on_cpu_ns;
                    guest += cpu.guest_ns;
                }
                let detail = format!(
                    "{} windows: {} ms on CPU, {} ms of it vCPUs, {} ms in the guest",
                    windows.len(),
                    on_cpu / 1_000_000,
                    vcpu / 1_000_000,
                    guest / 1_000_000
                );
                if vcpu > on_cpu {
                    State::Wrong(detail)
                } else if vcpu > 0 && guest > 0 {
                    State::Reached(detail)
                } else {
                    State::NotYet(detail)
                }
            })
            .await;
        report.record(&format!("guest-time-{}", plan.name), result);
    }
}

async fn miner_found(inventory: &mut Inventory, report: &mut Report, since: u64) {
    let result = report
        .until(
            "the miner's rounding modes",
            EVIDENCE_PATIENCE,
            async || {
                if let Err(error) = inventory.look().await {
                    return State::NotYet(format!("{error:#}"));
                }
                let modes = modes(&inventory.windows(MINER.name, since));
                let detail = format!("samples by rounding mode {modes:?}");
                if modes.iter().all(|&count| count > 0) {
                    State::Reached(detail)
                } else {
                    State::NotYet(detail)
                }
            },
        )
        .await;
    report.record("miner-in-all-four-modes", result);

    let result = report
        .until("fp_rounding concludes", EVIDENCE_PATIENCE, async || {
            if let Err(error) = inventory.look().await {
                return State::NotYet(format!("{error:#}"));
            }
            let evidence = inventory.evidence(MINER.name);
            let Some(fp) = evidence.and_then(|e| e.fp_rounding.as_ref()) else {
                return State::NotYet("no evidence".to_owned());
            };
            let detail = format!("llr {:.1?} nats after {} samples", fp.llr, fp.test_samples);
            if fp.concluded {
                State::Reached(detail)
            } else {
                State::NotYet(detail)
            }
        })
        .await;
    report.record("miner-fp-rounding-concluded", result);

    // Each vCPU's own test: the tenant's figures alone would hide a vCPU that is never looked at.
    let result = report
        .until(
            "fp_rounding concludes on every vCPU of the miner",
            EVIDENCE_PATIENCE,
            async || {
                if let Err(error) = inventory.look().await {
                    return State::NotYet(format!("{error:#}"));
                }
                let evidence = inventory.evidence(MINER.name);
                let Some(fp) = evidence.and_then(|e| e.fp_rounding.as_ref()) else {
                    return State::NotYet("no evidence".to_owned());
                };
                let detail = format!(
                    "{} threads concluded, {} vCPUs",
                    fp.concluded_threads, MINER.vcpus
                );
                if fp.concluded_threads == MINER.vcpus {
                    State::Reached(detail)
                } else {
                    State::NotYet(detail)
                }
            },
        )
        .await;
    report.record("miner-fp-rounding-concluded-on-every-vcpu", result);

    let result = report
        .until("the miner's verdict", EVIDENCE_PATIENCE, async || {
            if let Err(error) = inventory.look().await {
                return State::NotYet(format!("{error:#}"));
            }
            match inventory.verdict(MINER.name) {
                Some((VerdictLevel::Mining, reasons)) => State::Reached(reasons),
                Some((level, reasons)) => {
                    State::NotYet(format!("{}: {reasons}", level.as_str_name()))
                }
                None => State::NotYet("no verdict".to_owned()),
            }
        })
        .await;
    report.record("miner-verdict", result);
}

/// All of a guest's windows since its load ran, also those after the miner's test had concluded, must be quiet.
/// Its boot is not judged: a guest's kernel and firmware are none of the load.
async fn stays_quiet(
    plan: Plan,
    ready_unix_ns: u64,
    samples_min: u64,
    inventory: &mut Inventory,
    report: &mut Report,
) {
    let what = format!("samples of {}", plan.name);
    let result = report
        .until(&what, EVIDENCE_PATIENCE, async || {
            if let Err(error) = inventory.look().await {
                return State::NotYet(format!("{error:#}"));
            }
            let miner = inventory.windows(MINER.name, 0);
            let Some(meanwhile) = miner.iter().find(|e| concluded(e)).map(|e| e.end_unix_ns) else {
                return State::NotYet("the miner's test has not concluded".to_owned());
            };
            let mut all = inventory.windows(plan.name, ready_unix_ns);
            all.retain(|entry| entry.start_unix_ns >= ready_unix_ns);
            let samples = modes(&all);
            let mut since = all.clone();
            since.retain(|entry| entry.end_unix_ns > meanwhile);
            let (windows_since, since) = (since.len(), modes(&since));
            let detail = format!(
                "{} windows, samples by rounding mode {samples:?}, of those {since:?} \
                 since the miner's test concluded",
                all.len()
            );
            let loud =
                |entry: &&HistoryEntry| concluded(entry) || level(entry) != VerdictLevel::Quiet;
            if let Some(window) = all.into_iter().find(loud) {
                let at = window.start_unix_ns.saturating_sub(ready_unix_ns) / 1_000_000;
                let said = window.window.as_ref().map(|w| (&w.evidence, &w.verdict));
                State::Wrong(format!("{detail}; {at} ms after its load began: {said:?}"))
            } else if samples[1..].iter().any(|&count| count > 0) {
                State::Wrong(detail)
            } else if since[0] >= samples_min
                && (samples_min == 0 || samples[0] > 0)
                && windows_since >= QUIET_WINDOWS_MIN
            {
                State::Reached(detail)
            } else {
                State::NotYet(detail)
            }
        })
        .await;
    report.record(&format!("quiet-{}", plan.name), result);
}

async fn cpu_time_agrees(
    inventory: &mut Inventory,
    report: &mut Report,
    since: u64,
    books: &Books,
) {
    let result = report
        .until("enough windows to compare CPU time", EVIDENCE_PATIENCE, async || {
            if let Err(error) = inventory.look().await {
                return State::NotYet(format!("{error:#}"));
            }
            let windows = inventory.windows(BUSY.name, since);
            // The first may have begun before the books were read; the last may not be followed by a reading yet.
            let windows = windows.get(2..windows.len().saturating_sub(2)).unwrap_or_default();
            let (Some(first), Some(last)) = (windows.first(), windows.last()) else {
                return State::NotYet(format!("{} windows", windows.len()));
            };
            let (from, to) = (first.start_unix_ns, last.end_unix_ns);
            if to - from < CPU_SPAN_NS {
                return State::NotYet(format!("{} windows", windows.len()));
            }
            let covered: u64 = windows.iter().map(|e| e.end_unix_ns - e.start_unix_ns).sum();
            let agent: u64 = windows
                .iter()
                .filter_map(|e| e.window.as_ref()?.cpu.as_ref())
                .map(|cpu| cpu.vcpu_on_cpu_ns)
                .sum();
            let Some(bounds) = books.growth(from, to) else {
                return State::NotYet("no readings of schedstat around the windows".to_owned());
            };
            let detail = format!(
                "{} windows over {} ms (without gaps: {} ms): agent {} us, schedstat {} to {} us",
                windows.len(),
                (to - from) / 1_000_000,
                covered / 1_000_000,
                agent / 1000,
                bounds.0 / 1000,
                bounds.1 / 1000
            );
            if bounds.0 > 0 && agrees(agent, bounds, CPU_TOLERANCE) {
                State::Reached(detail)
            } else {
                // What the ends of the span add to the error weighs less the longer it is; a wrong count stays wrong.
                State::NotYet(detail)
            }
        })
        .await;
    report.record("cpu-time-agrees-with-schedstat", result);
}

async fn sensors_live(inventory: &mut Inventory, report: &mut Report) {
    let result = report
        .until("sensors are live", SERVICE_PATIENCE, async || {
            let host = match inventory.host().await {
                Ok(host) => host,
                Err(error) => return State::NotYet(format!("{error:#}")),
            };
            let states: Vec<String> = host
                .sensors
                .iter()
                .map(|s| format!("{} {} {}", s.sensor, s.state().as_str_name(), s.reason))
                .collect();
            let live = |name: &str| {
                let mut sensors = host.sensors.iter();
                sensors.any(|s| s.sensor == name && s.state() == SensorState::Live)
            };
            let all = [
                "cpu",
                "fp_rounding",
                "register_randomness",
                "kvm_exits",
                "msr_writes",
            ];
            if host.connected && all.into_iter().all(live) {
                State::Reached(states.join("; "))
            } else {
                State::NotYet(format!(
                    "connected {}: {}",
                    host.connected,
                    states.join("; ")
                ))
            }
        })
        .await;
    report.record("sensors-live", result);
}

async fn no_window_lost(inventory: &mut Inventory, report: &mut Report) {
    let result = report
        .until("every window is in", SERVICE_PATIENCE, async || {
            let status = match inventory.ingest().await {
                Ok(status) => status,
                Err(error) => return State::NotYet(format!("{error:#}")),
            };
            let Some(host) = status.hosts.iter().find(|host| host.host == HOST) else {
                return State::NotYet(format!("the detector does not know {HOST}"));
            };
            let rejected: u64 = status.rejected.values().sum();
            let detail = format!(
                "{} windows up to sequence {}, {} lost, {rejected} rejected, {} duplicates",
                host.windows, host.last_sequence, host.lost_windows, status.duplicates
            );
            if host.lost_windows > 0 || rejected > 0 {
                State::Wrong(format!("{detail}; rejected: {:?}", status.rejected))
            } else if host.windows > 0 && host.windows == host.last_sequence {
                State::Reached(detail)
            } else {
                State::NotYet(detail)
            }
        })
        .await;
    report.record("no-window-lost", result);
}

/// Locks the kernel down, after which BPF may not read its memory; the agent must say so.
fn lockdown_named(arguments: &Arguments, report: &mut Report) -> Result<()> {
    fs::write("/sys/kernel/security/lockdown", "confidentiality")
        .context("locking the kernel down")?;
    let done = Command::new(arguments.programs.join("davy-agent"))
        .arg("check")
        .output()
        .context("starting davy-agent check")?;
    let mut said = String::from_utf8_lossy(&done.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&done.stderr));
    let line = said
        .lines()
        .find(|line| line.to_lowercase().contains("lockdown"));
    let result = match line {
        Some(line) if !done.status.success() => Ok(format!("{}: {}", done.status, line.trim())),
        _ => Err(format!("{}, said: {said}", done.status)),
    };
    report.record("agent-names-lockdown", result);
    Ok(())
}
