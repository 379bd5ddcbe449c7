//! Decisions per second of the whole path, on the stores that there are: a droplet is seen, its account's record changed, facts
//! fetched, decided, the decision, its reasons, the case and the audit log stored, and, where it comes to that, the customer told and
//! the droplet throttled, each released in a transaction of its own. Facts and the control plane answer at once: both are the
//! provider's, and not measured here.
//!
//! Each account is decided on once, sixteen at a time, as the engine does. SQLite syncs each transaction to the disk, and so does
//! PostgreSQL, on a server of the benchmark's own (none where Debian's package is missing: then that half is skipped, and says so).

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use davy_decision::{
    account::{AccountId, DropletId, Facts},
    audit::Actor,
    episode::{Classes, Sighting},
    fleet::Fleet,
    settings::Settings,
    time::{Span, Time},
};
use davy_detector::{
    account::{
        attribute::Attribution,
        directory::{Directory, DirectoryError},
    },
    action::dry_run::DryRun,
    desk::Desk,
    engine::Engine,
    metrics::Metrics,
    policy::Held,
    store::{self, Limits, ledger::Ledger},
};
use davy_evidence::Level;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::decisions::facts;

const T0: Time = Time::from_unix_ms(1_559_148_180_000);
/// How long the droplets have mined when they are decided on.
const MINED: Span = Span::minutes(20);
/// Accounts attended to at once, as in [`davy_detector::engine`].
const AT_ONCE: usize = 16;
/// Accounts of one round.
const ROUND: usize = 200;

/// A kind of account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Engaged for years: a case is opened.
    Spared,
    /// New: it is told and throttled, too.
    Throttled,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Spared => "a case is opened",
            Self::Throttled => "told and throttled, with a case",
        }
    }

    const fn days(self) -> u64 {
        match self {
            Self::Spared => 1_500,
            Self::Throttled => 1,
        }
    }

    /// Orders that each account's decision leads to.
    const fn orders(self) -> usize {
        match self {
            Self::Spared => 0,
            Self::Throttled => 2,
        }
    }
}

/// Of one store and kind.
#[derive(Debug, Serialize)]
pub struct Rate {
    /// "SQLite" or "PostgreSQL".
    pub store: &'static str,
    /// What becomes of each account.
    pub outcome: &'static str,
    /// Accounts decided on in a second, each round's, sorted.
    pub per_s: Vec<f64>,
}

/// All of them.
#[derive(Debug, Serialize)]
pub struct Rates(Vec<Rate>);

/// A directory that knows every account: `ACCOUNT` has the droplet `d-ACCOUNT`.
struct Known(u64);

#[tonic::async_trait]
impl Directory for Known {
    async fn facts(&self, account: &AccountId) -> Result<Facts, DirectoryError> {
        let name = format!("d-{account}");
        facts(self.0, &[&name], T0.after(MINED)).map_err(|error| DirectoryError::Rubbish {
            url: "the benchmark's".to_owned(),
            why: error.to_string(),
        })
    }

    async fn owner(&self, droplet: &DropletId) -> Result<Option<AccountId>, DirectoryError> {
        let account = droplet.as_str().strip_prefix("d-");
        Ok(account.and_then(|account| AccountId::try_from(account).ok()))
    }
}

/// Measures for about `span`.
///
/// # Errors
/// If a store cannot be used, or not every account is decided on.
pub fn measure(span: Duration) -> Result<Rates> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    let dir = tempfile::tempdir().context("no temporary directory")?;
    let server = davy_test_postgres::Server::start()?;
    if server.is_none() {
        davy_test_postgres::skipped(davy_test_postgres::ABSENT);
    }
    let mut stores = vec![("SQLite", dir.path().join("davy.db").display().to_string())];
    if let Some(server) = &server {
        stores.push(("PostgreSQL", server.url(&server.database()?)));
    }
    let mut rates = Vec::new();
    let parts = u32::try_from(stores.len() * 2)?;
    for kind in [Kind::Spared, Kind::Throttled] {
        for (store, name) in &stores {
            let deadline = Instant::now() + span / parts;
            let per_s = runtime.block_on(rounds(name, kind, deadline))?;
            rates.push(Rate {
                store,
                outcome: kind.name(),
                per_s,
            });
        }
    }
    Ok(Rates(rates))
}

/// Rounds until the deadline, three at least.
async fn rounds(name: &str, kind: Kind, deadline: Instant) -> Result<Vec<f64>> {
    const LIMITS: Limits = Limits {
        hosts_max: 1,
        tenants_per_host_max: 1,
        history_per_tenant_max: 1,
        history_total_max: 1,
        retention_ns: u64::MAX,
    };
    let ledger = store::open(name, LIMITS).await?;
    let driver = Arc::new(DryRun::default());
    let engine = Arc::new(Engine {
        desk: Desk {
            ledger: Arc::clone(&ledger) as Arc<dyn Ledger>,
            // Room for all: the budget is not what is measured.
            settings: Arc::new(Settings {
                budget_per_hour: 10_000,
                ..Settings::default()
            }),
            clock: Arc::new(|| T0.after(MINED)),
        },
        directory: Arc::new(Known(kind.days())),
        driver: Arc::clone(&driver) as _,
        policies: Arc::new(Held::open(None)?),
        metrics: Arc::new(Metrics::new()),
    });
    let fleet = Arc::new(|fleet: &mut Fleet| {
        fleet.droplets = 10_000_000;
        Vec::new()
    });
    engine.desk.change_fleet(Actor::Automation, fleet).await?;
    let (mut per_s, mut decided) = (Vec::new(), 0);
    while per_s.len() < 3 || Instant::now() < deadline {
        let round = per_s.len();
        let begin = Instant::now();
        one_round(&engine, kind, round).await?;
        per_s.push(ROUND as f64 / begin.elapsed().as_secs_f64());
        decided += ROUND;
    }
    let orders = driver.orders().len();
    ensure!(
        orders == (decided * kind.orders()).min(davy_detector::action::dry_run::ORDERS_MAX),
        "{decided} accounts were decided on, but {orders} orders left"
    );
    per_s.sort_unstable_by(f64::total_cmp);
    Ok(per_s)
}

async fn one_round(engine: &Arc<Engine>, kind: Kind, round: usize) -> Result<()> {
    let attribution = Attribution::new(engine.desk.clone(), Arc::clone(&engine.directory));
    let mut tasks = JoinSet::new();
    for number in 0..ROUND {
        if tasks.len() >= AT_ONCE
            && let Some(done) = tasks.join_next().await
        {
            done??;
        }
        let (engine, attribution) = (Arc::clone(engine), attribution.clone());
        let account = AccountId::try_from(format!("{kind:?}-{round}-{number}"))?;
        tasks.spawn(async move {
            let nobodys = attribution.take(vec![sighting(&account)?]).await?;
            ensure!(nobodys == 0, "{account} has no droplet");
            engine.attend(&account).await?;
            let decisions = engine
                .desk
                .ledger
                .decisions(Some(account.clone()), None, 10);
            ensure!(!decisions.await?.is_empty(), "{account} was not decided on");
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

fn sighting(account: &AccountId) -> Result<Sighting> {
    Ok(Sighting {
        droplet: DropletId::try_from(format!("d-{account}"))?,
        host: "host-1".to_owned(),
        from: T0,
        to: T0.after(MINED),
        level: Level::Mining,
        classes: Classes {
            fp_rounding: true,
            register_randomness: true,
            pmu: false,
        },
        cpu_percent: 400,
        neighbours_wait_percent: None,
        reasons: vec!["computes in all four rounding modes".to_owned()],
    })
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::ASCII_MARKDOWN);
        table.set_header([
            "store",
            "what becomes of an account",
            "accounts/s",
            "rounds",
        ]);
        for Rate {
            store,
            outcome,
            per_s,
        } in &self.0
        {
            table.add_row([
                (*store).to_owned(),
                (*outcome).to_owned(),
                crate::decisions::middle(per_s),
                per_s.len().to_string(),
            ]);
        }
        write!(f, "{table}")
    }
}
