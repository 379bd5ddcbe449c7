//! A detector's engine without its services, on a store of the tests', and the provider that it talks to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use davy_decision::{
    account::{AccountId, DropletId, Facts},
    action::Outcome,
    audit::Actor,
    dossier::Dossier,
    episode::Sighting,
    order::Order,
    settings::Settings,
    time::Span,
};
use davy_detector::account::directory::{Directory, DirectoryError};
use davy_detector::action::driver::{Answer, Driver};
use davy_detector::desk::{Desk, system_clock};
use davy_detector::engine::Engine;
use davy_detector::metrics::Metrics;
use davy_detector::policy::Held;
use davy_detector::store::Memory;
use tokio::sync::watch;

use crate::place::{LIMITS, Place};
use crate::releases::new_account;
use crate::support::*;

/// One detector's line to a provider that says of every account that it is a new one, and writes down every order that arrives.
#[derive(Default)]
pub(crate) struct Line {
    /// Keys of the orders that have arrived at the provider, over all lines.
    arrived: Arc<watch::Sender<Vec<String>>>,
    /// How much of it over this one.
    own: AtomicUsize,
}

impl Line {
    /// The keys of all orders that have arrived, over whichever line.
    pub(crate) fn arrived(&self) -> Vec<String> {
        self.arrived.borrow().clone()
    }

    /// Until so many have arrived.
    pub(crate) async fn has_taken(&self, orders: usize) {
        let mut arrived = self.arrived.subscribe();
        let enough = arrived.wait_for(|arrived| arrived.len() >= orders);
        let enough = tokio::time::timeout(Duration::from_secs(60), enough).await;
        enough.expect("in time").unwrap();
    }
}

#[tonic::async_trait]
impl Directory for Line {
    async fn facts(&self, name: &AccountId) -> Result<Facts, DirectoryError> {
        Ok(new_account(&[&format!("d-{name}")], system_clock()()))
    }

    async fn owner(&self, _: &DropletId) -> Result<Option<AccountId>, DirectoryError> {
        Ok(None)
    }
}

#[tonic::async_trait]
impl Driver for Line {
    fn name(&self) -> &'static str {
        "recording"
    }

    async fn perform(&self, order: &Order) -> Answer {
        // As is asked of every control plane.
        if system_clock()() > order.not_after {
            return Answer::doubtful("it came too late");
        }
        self.arrived
            .send_modify(|arrived| arrived.push(order.key.clone()));
        self.own.fetch_add(1, Ordering::Relaxed);
        Answer {
            outcome: Outcome::Done,
            detail: String::new(),
        }
    }

    async fn query(&self, key: &str) -> Answer {
        let arrived = self.arrived.borrow();
        let outcome = match arrived.iter().any(|held| held == key) {
            true => Outcome::Done,
            false => Outcome::NeverSeen,
        };
        Answer {
            outcome,
            detail: String::new(),
        }
    }
}

/// A detector without its services, and its line to the provider.
pub(crate) struct Replica {
    pub(crate) engine: Arc<Engine>,
    pub(crate) line: Arc<Line>,
}

impl Replica {
    /// Two of them on the same records. SQLite has one detector at a time: its store is asked by both.
    pub(crate) async fn two(place: &Place, settings: &Settings) -> [Self; 2] {
        let arrived = Arc::default();
        (place.two(LIMITS).await).map(|ledger| Self::new(ledger, &arrived, settings))
    }

    fn new(
        ledger: Arc<dyn Memory>,
        arrived: &Arc<watch::Sender<Vec<String>>>,
        settings: &Settings,
    ) -> Self {
        let line = Arc::new(Line {
            arrived: Arc::clone(arrived),
            own: AtomicUsize::new(0),
        });
        let engine = Arc::new(Engine {
            desk: Desk {
                ledger,
                settings: Arc::new(settings.clone()),
                clock: system_clock(),
            },
            directory: Arc::clone(&line) as _,
            driver: Arc::clone(&line) as _,
            policies: Arc::new(Held::open(None).unwrap()),
            metrics: Arc::new(Metrics::new()),
        });
        Self { engine, line }
    }

    /// Decisions that it stored, and orders that it sent.
    pub(crate) fn did(&self) -> (usize, usize) {
        let metrics = self.engine.metrics.render(0, None);
        let decided = (metrics.lines())
            .filter(|line| line.starts_with("davy_detector_decisions_total{"))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap())
            .sum();
        (decided, self.line.own.load(Ordering::Relaxed))
    }
}

/// An account whose droplet has mined for 20 minutes, now.
pub(crate) async fn mines(desk: &Desk, name: &str) {
    let now = desk.now();
    let sighting = Sighting {
        from: now.before(Span::minutes(20)),
        to: now,
        ..mining(&format!("d-{name}"))
    };
    let observe = move |dossier: &mut Dossier, settings: &Settings, _| {
        Ok(dossier.observe(sighting.clone(), settings))
    };
    let seen = desk.act(account(name), Actor::Automation, observe);
    seen.await.unwrap();
}
