//! A CPU that comes and goes while the agent runs: the agent goes on, nudges whatever is online, and its figures stay right.
//!
//! The VM is started with one CPU online and one more present (`maxcpus=1`), so that the guests' part is not disturbed.

use std::fs;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::inventory::Inventory;
use crate::report::{Report, State};

const SWITCH: &str = "/sys/devices/system/cpu/cpu1/online";
const METRICS: &str = "127.0.0.1:7710";
const PATIENCE: Duration = Duration::from_secs(60);

/// Puts the second CPU online and offline, and looks what the agent makes of it.
pub(crate) async fn followed(inventory: &mut Inventory, report: &mut Report) {
    for (name, value, nudged) in [("cpu-comes", "1", 2), ("cpu-goes", "0", 1)] {
        if let Err(error) = fs::write(SWITCH, value) {
            report.record(
                name,
                Err(format!("{SWITCH} cannot be set to {value}: {error}")),
            );
            return;
        }
        let windows = inventory.host().await.map_or(0, |host| host.windows);
        let result = report
            .until("the CPU is followed", PATIENCE, async || {
                let cpus = metric("davy_agent_nudged_cpus").await;
                let displaced = metric("davy_agent_nudges_displaced_total").await;
                let now = inventory.host().await.map_or(0, |host| host.windows);
                let seen = format!(
                    "{cpus:?} CPUs nudged, {displaced:?} times on another, {} windows since",
                    now.saturating_sub(windows)
                );
                if cpus == Some(nudged) && now > windows + 2 && displaced.is_some_and(|n| n <= 1) {
                    State::Reached(seen)
                } else {
                    State::NotYet(seen)
                }
            })
            .await;
        report.record(name, result);
    }
}

/// One of the agent's own metrics without labels; `None` if it cannot be had.
async fn metric(name: &str) -> Option<u64> {
    let mut stream = TcpStream::connect(METRICS).await.ok()?;
    let request = "GET /metrics HTTP/1.0\r\nHost: agent\r\n\r\n";
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    value(&answer, name)
}

fn value(metrics: &str, name: &str) -> Option<u64> {
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let text = "davy_x_total 3\ndavy_x 2\n";
        assert_eq!(value(text, "davy_x"), Some(2));
        assert_eq!(value(text, "davy"), None);
    }
}
