//! Decisions per second of the pure core, on one core: policies, safeties, reasons; no storage.
//!
//! Inputs as they come: a quiet account, a new one whose droplet mines, ten droplets made at once that all mine (as in the
//! incident that Davy is for), and one engaged for years. Each is decided for a fifth of a second, in rounds that take turns.
//! Run it on an optimised build: `cargo xtask bench decisions` makes one.

use std::{
    fmt,
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::Result;
use davy_decision::{
    account::{AccountId, Cents, Credit, Droplet, DropletId, Facts, Known, Payments},
    decide::{Input, decide},
    episode::{Classes, Episode, Sighting},
    fleet::Fleet,
    policy::{Policies, Step},
    settings::Settings,
    time::{Span, Time},
};
use davy_evidence::Level;
use serde::Serialize;

/// What is aimed at, decisions a second.
const GOAL_PER_S: f64 = 10_000.0;
/// How long one case is decided in one round.
const ROUND: Duration = Duration::from_millis(200);
const T0: Time = Time::from_unix_ms(1_559_148_180_000);

/// Of one kind of input.
#[derive(Debug, Serialize)]
pub struct Rate {
    /// Which.
    pub input: &'static str,
    /// What is decided: its highest step.
    pub step: String,
    /// Decisions a second, each round's, sorted.
    pub per_s: Vec<f64>,
}

/// All of them.
#[derive(Debug, Serialize)]
pub struct Rates(Vec<Rate>);

/// Measures until `deadline`, three rounds at least.
///
/// # Errors
/// If the policies that ship are none, or an input is decided otherwise than it is there for.
pub fn measure(deadline: Instant) -> Result<Rates> {
    let policies = Policies::shipped()?;
    let digest = policies.digest();
    let cases = [
        (
            "a quiet account",
            input(digest, Level::Quiet, 1, 1)?,
            Step::Observe,
        ),
        (
            "a new miner",
            input(digest, Level::Mining, 1, 1)?,
            Step::Throttle,
        ),
        (
            "ten droplets mine",
            input(digest, Level::Mining, 1, 10)?,
            Step::Throttle,
        ),
        (
            "engaged for years",
            input(digest, Level::Mining, 1_500, 1)?,
            Step::OpenCase,
        ),
    ];
    let mut rates = Vec::new();
    for (name, input, step) in &cases {
        let plan = decide(&policies, input);
        anyhow::ensure!(
            plan.step == *step,
            "{name}: decided {}, not {step}",
            plan.step
        );
        rates.push(Rate {
            input: name,
            step: plan.step.to_string(),
            per_s: Vec::new(),
        });
    }
    for round in 0.. {
        if round >= 3 && Instant::now() >= deadline {
            break;
        }
        for ((_, input, _), rate) in cases.iter().zip(&mut rates) {
            rate.per_s.push(decided_per_s(&policies, input));
        }
    }
    for rate in &mut rates {
        rate.per_s.sort_unstable_by(f64::total_cmp);
    }
    Ok(Rates(rates))
}

fn decided_per_s(policies: &Policies, input: &Input) -> f64 {
    let (begin, mut decided) = (Instant::now(), 0_u32);
    while begin.elapsed() < ROUND {
        for _ in 0..10 {
            black_box(decide(policies, black_box(input)));
        }
        decided += 10;
    }
    f64::from(decided) / begin.elapsed().as_secs_f64()
}

/// An account engaged `days` ago, with `droplets` that have been at `level` for 20 minutes.
fn input(policy: &str, level: Level, days: u64, droplets: usize) -> Result<Input> {
    let at = T0.after(Span::minutes(20));
    let names: Vec<_> = (0..droplets).map(|n| format!("droplet-{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut sightings = names.iter().map(|name| -> Result<Sighting> {
        Ok(Sighting {
            droplet: DropletId::try_from(*name)?,
            host: "host-1".to_owned(),
            from: T0,
            to: at,
            level,
            classes: Classes {
                fp_rounding: level == Level::Mining,
                register_randomness: level == Level::Mining,
                pmu: false,
            },
            cpu_percent: 400,
            neighbours_wait_percent: None,
            reasons: vec!["computes in all four rounding modes".to_owned()],
        })
    });
    let first = sightings.next().transpose()?;
    let mut episode = Episode::begin(1, first.ok_or_else(|| anyhow::anyhow!("no droplet"))?);
    for sighting in sightings {
        episode.add(sighting?);
    }
    Ok(Input {
        at,
        account: AccountId::try_from("account-1")?,
        policy: policy.to_owned(),
        settings: Settings::default(),
        episode,
        facts: facts(days, &names, at)?,
        fetch_failed: None,
        allowed: None,
        holds: Vec::new(),
        conversation: None,
        fleet: Fleet {
            droplets: 100_000,
            ..Fleet::default()
        },
        taken: Vec::new(),
        throttled: false,
        ruling: None,
    })
}

/// Facts of an account engaged `days` before `at`, that pays nothing, with these droplets.
pub fn facts(days: u64, droplets: &[&str], at: Time) -> Result<Facts> {
    fn known<T>(value: T, as_of: Time) -> Option<Known<T>> {
        Some(Known { value, as_of })
    }
    let since = at.before(Span::days(days));
    let inventory = droplets.iter().map(|name| -> Result<_> {
        let droplet = Droplet {
            created_at: T0.before(Span::minutes(5)),
            vcpus: 4,
        };
        Ok((DropletId::try_from(*name)?, droplet))
    });
    Ok(Facts {
        created_at: known(since, at),
        first_payment_at: known(None, at),
        first_droplet_at: known(Some(since), at),
        payments: known(Payments::default(), at),
        run_rate: known(Cents(50_000), at),
        credit: known(Some(Credit::default()), at),
        high_cpu_allowed: known(false, at),
        vouched: known(None, at),
        links: known(Vec::new(), at),
        droplets: known(inventory.collect::<Result<_>>()?, at),
    })
}

/// The figure below which `part` quarters of them are.
fn quarter(sorted: &[f64], part: usize) -> f64 {
    sorted
        .get(sorted.len() * part / 4)
        .copied()
        .unwrap_or_default()
}

/// The median, and in brackets the middle half.
pub fn middle(sorted: &[f64]) -> String {
    let [low, median, high] = [1, 2, 3].map(|part| quarter(sorted, part));
    format!("{median:.0} ({low:.0} to {high:.0})")
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::ASCII_MARKDOWN);
        table.set_header(["input", "decided", "decisions/s", "goal", "rounds"]);
        for Rate { input, step, per_s } in &self.0 {
            let median = quarter(per_s, 2);
            let goal = if median >= GOAL_PER_S {
                "met"
            } else {
                "missed"
            };
            table.add_row([
                (*input).to_owned(),
                step.clone(),
                middle(per_s),
                format!("≥ {GOAL_PER_S:.0}: {goal}"),
                per_s.len().to_string(),
            ]);
        }
        write!(f, "{table}")
    }
}
