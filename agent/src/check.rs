//! `davy-agent check`: every requirement and every sensor's state on this host, with the remedy.
//!
//! The kernel half is loaded for a moment: only the kernel itself can say whether it takes it.

use std::{fmt::Write as _, io::Write as _, process::ExitCode};

use anyhow::Context as _;
use davy_evidence::SensorState;
use serde::Serialize;

use crate::{
    config::Config,
    error::chain,
    kernel::{Kernel, KernelOptions, Requirement, requirements},
    nudge,
    sensor::pmu::{self, Pmu},
    source::ThreadSource,
    tenant::discover::{ProcFs, Processes as _},
};

/// Why no VM can be found on a host without KVM, and what to do.
pub const NO_KVM: &str = "no /dev/kvm: this host cannot run VMs now; load kvm_intel or kvm_amd (and enable \
     virtualization in the firmware), or configure tenants by cgroup or pid";

/// All sensors, as far as they are named where the kernel half cannot say it itself.
const SENSORS: [&str; 6] = [
    "cpu",
    "fp_rounding",
    "register_randomness",
    "kvm_exits",
    "msr_writes",
    pmu::NAME,
];

/// What was found. Its JSON form is `--json`'s output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Version of this form.
    pub version: u32,
    /// Whether the agent can run here.
    pub usable: bool,
    /// What the host must have.
    pub capabilities: Vec<Capability>,
    /// What each sensor can do.
    pub sensors: Vec<Sensor>,
}

/// One thing that the host must have, or may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// Its name.
    pub name: String,
    /// Whether it is there.
    pub present: bool,
    /// What was found, or what to do.
    pub detail: String,
}

/// One sensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sensor {
    /// Its name.
    pub name: String,
    /// Whether it can measure here.
    pub supported: bool,
    /// Why not and what to do; what is measured, where that differs between hosts; else empty.
    pub reason: String,
}

/// What loading the kernel half gave.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Why it could not be loaded.
    pub error: Option<String>,
    /// Why vCPUs are not found by themselves, if they are not.
    pub vcpus_unsupported: Option<String>,
    /// Sensor, state, reason.
    pub sensors: Vec<(&'static str, SensorState, String)>,
}

/// Puts the report together. Pure.
#[must_use]
pub fn report(
    requirements: &[Requirement],
    loaded: &Loaded,
    nudging: Result<String, String>,
) -> Report {
    let mut capabilities: Vec<_> = requirements
        .iter()
        .map(|requirement| {
            let (present, detail) = match &requirement.found {
                Ok(found) => (true, found.clone()),
                Err(remedy) => (false, remedy.clone()),
            };
            Capability {
                name: requirement.name.to_owned(),
                present,
                detail,
            }
        })
        .collect();
    let usable = loaded.error.is_none();
    capabilities.push(Capability {
        name: "kernel half".to_owned(),
        present: usable,
        detail: loaded
            .error
            .clone()
            .unwrap_or_else(|| "loads and attaches".to_owned()),
    });
    if usable {
        capabilities.push(Capability {
            name: "VMs found by themselves".to_owned(),
            present: loaded.vcpus_unsupported.is_none(),
            detail: loaded
                .vcpus_unsupported
                .clone()
                .unwrap_or_else(|| "by fpstate.is_guest, whatever VMM runs them".to_owned()),
        });
    }
    capabilities.push(Capability {
        name: "nudging".to_owned(),
        present: nudging.is_ok(),
        detail: nudging.unwrap_or_else(|why| why),
    });
    let sensors = if usable {
        loaded
            .sensors
            .iter()
            .map(|(name, state, reason)| Sensor {
                name: (*name).to_owned(),
                supported: *state != SensorState::Unsupported,
                reason: reason.clone(),
            })
            .collect()
    } else {
        SENSORS
            .map(|name| Sensor {
                name: name.to_owned(),
                supported: false,
                reason: "the kernel half cannot be loaded".to_owned(),
            })
            .to_vec()
    };
    Report {
        version: 1,
        usable,
        capabilities,
        sensors,
    }
}

/// The report for people.
#[must_use]
pub fn table(report: &Report) -> String {
    let mut text = String::from("This host\n");
    for Capability {
        name,
        present,
        detail,
    } in &report.capabilities
    {
        let mark = if *present { "ok  " } else { "MISSING" };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {mark:<8} {name:<24} {detail}");
    }
    text.push_str("Sensors\n");
    for Sensor {
        name,
        supported,
        reason,
    } in &report.sensors
    {
        let mark = if *supported { "ok" } else { "UNSUPPORTED" };
        let _ = writeln!(text, "  {mark:<12} {name:<20} {reason}");
    }
    text.push_str(if report.usable {
        "The agent can run here.\n"
    } else {
        "The agent cannot run here: see what is missing above.\n"
    });
    text
}

/// What the performance counters can do here.
fn counters(options: &pmu::Options) -> (&'static str, SensorState, String) {
    match Pmu::of_this_host(options).capability() {
        Ok(counted) => (pmu::NAME, SensorState::Live, counted),
        Err(reason) => (pmu::NAME, SensorState::Unsupported, reason),
    }
}

/// Looks, prints, and gives the exit status.
///
/// # Errors
/// If standard output cannot be written.
pub fn print(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let options = KernelOptions {
        slots_max: 64,
        ..KernelOptions::default()
    };
    let loaded = match Kernel::load(&options) {
        Ok(mut kernel) => {
            // As if there were guests: only then is it known whether the tracepoints can be attached.
            kernel.follow_guests(true);
            let mut sensors = kernel.sensors();
            sensors.push(counters(&config.pmu));
            Loaded {
                error: None,
                vcpus_unsupported: ThreadSource::vcpus_unsupported(&kernel)
                    .or_else(|| (!ProcFs.kvm_present()).then(|| NO_KVM.to_owned())),
                sensors,
            }
        }
        Err(error) => Loaded {
            error: Some(chain(&error)),
            ..Loaded::default()
        },
    };
    let report = report(&requirements(), &loaded, nudge::reach(&config.nudge));
    let mut text = if json {
        serde_json::to_string_pretty(&report).context("cannot write the report as JSON")?
    } else {
        table(&report)
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write to standard output")?;
    Ok(if report.usable {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirement(found: Result<&str, &str>) -> Requirement {
        Requirement {
            name: "privileges",
            found: found.map(str::to_owned).map_err(str::to_owned),
        }
    }

    #[test]
    fn what_is_missing_comes_with_its_remedy() {
        let loaded = Loaded {
            error: Some("needs root: run it with sudo".to_owned()),
            ..Loaded::default()
        };
        let report = report(
            &[requirement(Err("run it with sudo"))],
            &loaded,
            Ok("2 of 2 CPUs".to_owned()),
        );
        assert!(!report.usable);
        assert!(report.sensors.iter().all(|sensor| !sensor.supported));
        let text = table(&report);
        assert!(text.contains("MISSING") && text.contains("run it with sudo"));
        assert!(text.contains("cannot run here"));
    }

    #[test]
    fn an_unsupported_sensor_leaves_the_agent_usable() {
        let loaded = Loaded {
            sensors: vec![
                ("cpu", SensorState::Live, String::new()),
                (
                    "fp_rounding",
                    SensorState::Unsupported,
                    "no field".to_owned(),
                ),
            ],
            vcpus_unsupported: Some("kernel before 5.16".to_owned()),
            error: None,
        };
        let report = report(
            &[requirement(Ok("root"))],
            &loaded,
            Err("none of 2 CPUs".to_owned()),
        );
        assert!(report.usable);
        let text = table(&report);
        assert!(text.contains("UNSUPPORTED") && text.contains("no field"));
        assert!(text.contains("kernel before 5.16"));
        assert!(text.contains("none of 2 CPUs"));
        assert!(text.contains("can run here"));
    }
}
