//! What a droplet did before its episode, from the telemetry kept: for reviewers, beside what it does now. Bounded: of the droplets
//! that mined longest, their last windows.

use davy_decision::{account::DropletId, episode::Episode, review::Past, time::Time};
use davy_evidence::Level;
use davy_proto::v1;

use crate::store::{Store, StoreError};

/// Most droplets whose past is looked up.
const DROPLETS_MAX: usize = 20;
/// Most windows of one, the last ones: a day at the agent's default of 10 s, before and in the episode.
const WINDOWS_MAX: u64 = 8_640;
/// Most places (host and key) of one droplet.
const PLACES_MAX: u64 = 8;

/// The past of an episode's droplets.
///
/// # Errors
/// A failure of the storage.
pub async fn of_episode(store: &dyn Store, episode: &Episode) -> Result<Vec<Past>, StoreError> {
    let mut droplets: Vec<_> = episode.droplets.values().collect();
    droplets.sort_by_key(|held| std::cmp::Reverse((held.mining.total_ms, held.suspect.total_ms)));
    let mut all = Vec::new();
    for held in droplets.into_iter().take(DROPLETS_MAX) {
        let id = &held.last.droplet;
        let places = store
            .find(String::new(), id.to_string(), PLACES_MAX)
            .await?;
        let mut windows = Vec::new();
        for place in places {
            // A key or a name may read like the id, too.
            if place.current.droplet_id == id.as_str() {
                windows.extend(
                    store
                        .history(place.host, place.current.key, WINDOWS_MAX)
                        .await?,
                );
            }
        }
        all.extend(before(id, &windows, episode.since));
    }
    Ok(all)
}

/// What windows that ended by `until` amount to; none if there is none.
fn before(droplet: &DropletId, windows: &[v1::HistoryEntry], until: Time) -> Option<Past> {
    let ended = |entry: &&v1::HistoryEntry| Time::from_unix_ns(entry.end_unix_ns) <= until;
    let (mut count, mut not_quiet) = (0_u64, 0_u64);
    let (mut cpu_ns, mut span_ns) = (0_u128, 0_u128);
    let (mut from, mut to) = (None::<u64>, 0);
    for entry in windows.iter().filter(ended) {
        count += 1;
        from = Some(from.map_or(entry.start_unix_ns, |from| from.min(entry.start_unix_ns)));
        to = to.max(entry.end_unix_ns);
        let Some(window) = &entry.window else {
            continue;
        };
        if level(window) > Level::Quiet {
            not_quiet += 1;
        }
        if let Some(cpu) = &window.cpu {
            cpu_ns += u128::from(cpu.on_cpu_ns);
            span_ns += u128::from(entry.end_unix_ns.saturating_sub(entry.start_unix_ns));
        }
    }
    Some(Past {
        droplet: droplet.clone(),
        windows: count,
        from: Time::from_unix_ns(from?),
        to: Time::from_unix_ns(to),
        mean_cpu_percent: (cpu_ns * 100)
            .checked_div(span_ns)
            .map(|percent| u64::try_from(percent).unwrap_or(u64::MAX)),
        not_quiet,
    })
}

fn level(window: &v1::TenantWindow) -> Level {
    let verdict = window.verdict.as_ref();
    let level = verdict.and_then(|verdict| v1::VerdictLevel::try_from(verdict.level).ok());
    level
        .and_then(|level| Level::try_from(level).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn window(from_s: u64, cpu: Option<u64>, level: v1::VerdictLevel) -> v1::HistoryEntry {
        v1::HistoryEntry {
            start_unix_ns: from_s * SECOND_NS,
            end_unix_ns: (from_s + 10) * SECOND_NS,
            window: Some(v1::TenantWindow {
                cpu: cpu.map(|percent| v1::Cpu {
                    on_cpu_ns: percent * SECOND_NS / 10,
                    ..v1::Cpu::default()
                }),
                verdict: Some(v1::Verdict {
                    level: level.into(),
                    ..v1::Verdict::default()
                }),
                ..v1::TenantWindow::default()
            }),
        }
    }

    #[test]
    fn only_what_ended_before_the_episode_counts() {
        let id = DropletId::try_from("d1").unwrap();
        let windows = [
            window(100, Some(400), v1::VerdictLevel::Mining),
            window(90, Some(30), v1::VerdictLevel::Suspect),
            window(80, None, v1::VerdictLevel::Quiet),
            window(70, Some(10), v1::VerdictLevel::Quiet),
        ];
        let past = before(&id, &windows, Time::from_unix_ms(100_000)).unwrap();
        assert_eq!((past.windows, past.not_quiet), (3, 1));
        assert_eq!(
            past.mean_cpu_percent,
            Some(20),
            "what is not known is no zero"
        );
        assert_eq!((past.from.unix_ms(), past.to.unix_ms()), (70_000, 100_000));
        assert_eq!(before(&id, &windows, Time::from_unix_ms(1_000)), None);
    }
}
