//! A guest that hashes, but not with RandomX: `suspect`, of the family "other hashing", and never `mining`.

use std::time::Duration;

use anyhow::Result;
use davy_proto::v1::VerdictLevel;

use crate::Arguments;
use crate::guest::{Guest, Plan};
use crate::inventory::{Inventory, concluded, level};
use crate::report::{Report, State};

/// A vectorised proof of work.
const HASHER: Plan = Plan {
    name: "droplet-106",
    vcpus: 1,
    memory_mib: 256,
    load: "davy-sha256",
};
/// Patience for its load, and for its verdict.
const PATIENCE: Duration = Duration::from_secs(150);
/// Windows after the verdict in which it must not rise.
const WINDOWS_AFTER: usize = 10;

pub(crate) async fn suspected(
    arguments: &Arguments,
    inventory: &mut Inventory,
    report: &mut Report,
) -> Result<()> {
    let name = HASHER.name;
    let mut guest = Guest::boot(HASHER, arguments, report).await?;
    guest.go()?;
    let ready = report
        .until(&format!("load of {name} is ready"), PATIENCE, async || {
            inventory.keep_up().await;
            guest.line_seen(|line| line.starts_with("ready"))
        })
        .await;
    report.record(&format!("load-runs-in-{name}"), ready);
    let result = report
        .until("the hasher's verdict", PATIENCE, async || {
            if let Err(error) = inventory.look().await {
                return State::NotYet(format!("{error:#}"));
            }
            let windows = inventory.windows(name, 0);
            // Whatever it does, it does it in rounding mode 0.
            let wrong = |level| level > VerdictLevel::Suspect;
            if let Some(window) = windows.iter().find(|w| wrong(level(w)) || concluded(w)) {
                return State::Wrong(format!("{:?}", window.window));
            }
            let suspected = |level| level == VerdictLevel::Suspect;
            let since = windows.iter().position(|window| suspected(level(window)));
            let after = since.map_or(0, |at| windows.len() - at);
            let current = inventory.droplet(name).and_then(|d| d.current.as_ref());
            let Some(verdict) = current.and_then(|current| current.verdict.as_ref()) else {
                return State::NotYet("no verdict".to_owned());
            };
            let detail = format!(
                "{} windows, {after} since it was suspected: {:?} {:?}",
                windows.len(),
                verdict.families,
                verdict.reasons
            );
            let named = verdict.families == ["other hashing"];
            if suspected(verdict.level()) && named && after >= WINDOWS_AFTER {
                State::Reached(detail)
            } else {
                State::NotYet(detail)
            }
        })
        .await;
    report.record("hasher-suspected-of-other-hashing", result);
    Ok(())
}
