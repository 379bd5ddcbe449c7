//! One store, two replicas of the engine on it, and a provider with a clock that the test moves.
//!
//! The provider's directory and control plane are in the test, and what they are asked is where other things happen: while facts are
//! fetched, and while an order is under way. A death drops the engine wherever it stands, and opens the store anew.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use davy_decision::{
    account::AccountId,
    audit::{Actor, Chain},
    case::Person,
    dossier::Dossier,
    fleet::Fleet,
    settings::Settings,
    time::Time,
};
use davy_detector::desk::Desk;
use davy_detector::engine::Engine;
use davy_detector::metrics::Metrics;
use davy_detector::policy::Held;
use davy_detector::replay::event::Event;
use davy_detector::replay::{self, provider::Provider};
use davy_detector::store::Memory;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::between::{Outside, Records};
use crate::judge::Book;
use crate::oracle::{MINUTE, Oracle};
use crate::place::{LIMITS, Place};
use crate::step::{ACCOUNTS, Meanwhile, Takes};

/// 2019-05-29T16:00:00Z.
pub(crate) const START: u64 = 1_559_145_600_000;

/// What the provider has, and what is judged.
pub(crate) struct State {
    pub(crate) provider: Provider,
    pub(crate) oracle: Oracle,
    pub(crate) book: Book,
    pub(crate) while_facts: VecDeque<Meanwhile>,
    pub(crate) orders: VecDeque<(Takes, Meanwhile)>,
    /// Between the commit of a release and the order's leaving.
    pub(crate) when_released: VecDeque<Meanwhile>,
    /// What the directory says since so long, ms, and no answer of it has told yet.
    pub(crate) untold: Vec<(u64, AccountId, Value)>,
    /// When the directory was asked last, and answered, ms.
    pub(crate) asked: BTreeMap<AccountId, u64>,
    /// Since when automation is stopped.
    pub(crate) stopped: Option<u64>,
    pub(crate) messages: u64,
    /// Droplets of each account so far.
    pub(crate) created: [u64; ACCOUNTS.len()],
    /// Nothing goes wrong any more.
    pub(crate) calm: bool,
    /// Something happens between two steps of an engine just now.
    inside: bool,
    /// The replica whose turn it is.
    turn: usize,
    chain: Chain,
}

/// See the module.
pub(crate) struct World {
    pub(crate) clock: Arc<AtomicU64>,
    pub(crate) place: Place,
    engines: Mutex<Option<[Arc<Engine>; 2]>>,
    state: Mutex<State>,
    pub(crate) death: Notify,
    this: Weak<World>,
    pub(crate) settings: Settings,
}

pub(crate) fn account(number: usize) -> AccountId {
    AccountId::try_from(ACCOUNTS[number]).unwrap()
}

impl World {
    pub(crate) async fn new(place: Place, settings: Settings, fleet: u64) -> Arc<Self> {
        let world = Arc::new_cyclic(|this| Self {
            clock: Arc::new(AtomicU64::new(START)),
            place,
            engines: Mutex::new(None),
            state: Mutex::new(State {
                provider: Provider::default(),
                oracle: Oracle::new(),
                book: Book::default(),
                while_facts: VecDeque::new(),
                orders: VecDeque::new(),
                when_released: VecDeque::new(),
                untold: Vec::new(),
                asked: BTreeMap::new(),
                stopped: None,
                messages: 0,
                created: [0; ACCOUNTS.len()],
                calm: false,
                inside: false,
                turn: 0,
                chain: Chain::default(),
            }),
            death: Notify::new(),
            this: Weak::clone(this),
            settings,
        });
        world.open().await;
        world.tell("fleet", json!({ "droplets": fleet }));
        let budget = world.settings.budget_per_hour;
        world.tell("settings", json!({"change": {"budget_per_hour": budget}}));
        let change = Arc::new(move |held: &mut Fleet| {
            held.droplets = fleet;
            Vec::new()
        });
        (world.desk().change_fleet(Actor::Automation, change).await).unwrap();
        world
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn now(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    /// The clock goes on by so many ms, or to that moment if it is later.
    pub(crate) fn pass(&self, ms: u64) {
        self.clock.fetch_add(ms, Ordering::SeqCst);
    }

    pub(crate) fn pass_to(&self, at: u64) {
        self.clock.fetch_max(at, Ordering::SeqCst);
    }

    fn written(&self) -> String {
        Time::from_unix_ms(self.now()).to_string()
    }

    /// Opens the store, once for each replica, and makes the replicas anew.
    async fn open(&self) {
        let stores = self.place.two(LIMITS).await;
        let engines = stores.map(|store| Arc::new(self.engine(store)));
        *self.engines.lock().unwrap() = Some(engines);
    }

    fn engine(&self, store: Arc<dyn Memory>) -> Engine {
        let clock = Arc::clone(&self.clock);
        let this = Weak::clone(&self.this);
        Engine {
            desk: Desk {
                ledger: Arc::new(Records {
                    store,
                    world: Weak::clone(&this),
                }),
                settings: Arc::new(self.settings.clone()),
                clock: Arc::new(move || Time::from_unix_ms(clock.load(Ordering::SeqCst))),
            },
            directory: Arc::new(Outside(Weak::clone(&this))),
            driver: Arc::new(Outside(this)),
            policies: Arc::new(Held::open(None).unwrap()),
            metrics: Arc::new(Metrics::new()),
        }
    }

    pub(crate) fn replica(&self, number: usize) -> Arc<Engine> {
        let engines = self.engines.lock().unwrap();
        Arc::clone(&engines.as_ref().unwrap()[number])
    }

    pub(crate) fn desk(&self) -> Desk {
        self.replica(0).desk.clone()
    }

    /// Something happened: a line of a scenario, for the provider and for the oracle.
    pub(crate) fn tell(&self, event: &str, line: Value) {
        let line = self.happens(event, line);
        let mut state = self.state();
        if event == "account" {
            // In the order in which it came to be.
            state.tells_all();
        }
        state.oracle.happened(&line);
    }

    /// Something happened, and nobody but the provider knows.
    fn happens(&self, event: &str, mut line: Value) -> Value {
        line["at"] = self.written().into();
        line["event"] = event.into();
        let mut state = self.state();
        if matches!(event, "account" | "droplet_created" | "outage") {
            let text = line.to_string();
            let events = replay::parse("machine", text.as_bytes()).unwrap();
            let at = events[0].1.at;
            match &events[0].1.event {
                Event::Account { account, facts } => {
                    state.provider.learn(account, facts, at).unwrap();
                }
                Event::DropletCreated {
                    account,
                    droplets,
                    vcpus,
                } => state
                    .provider
                    .create(account, droplets, *vcpus, at)
                    .unwrap(),
                Event::Outage { of, for_s } => {
                    let until = at.after(davy_decision::time::Span::seconds(*for_s));
                    state.provider.outage(*of, until);
                }
                other => panic!("{other:?}"),
            }
        }
        line
    }

    pub(crate) async fn dossier(&self, account: &AccountId) -> Option<Dossier> {
        let ledger = self.desk().ledger;
        ledger.dossier(account.clone()).await.unwrap()
    }

    /// The customer says something.
    pub(crate) async fn speak(&self, account: &AccountId, twice: bool) {
        let key = {
            let mut state = self.state();
            state.messages += u64::from(!twice || state.messages == 0);
            format!("{account}-{}", state.messages)
        };
        let words = key.clone();
        let hear = move |dossier: &mut Dossier, _: &_, at| {
            dossier.hear(
                &words,
                "ticket",
                "What is this about? It is our pipeline.",
                at,
            )
        };
        let actor = Actor::Automation;
        (self.desk().act(account.clone(), actor, hear).await).unwrap();
        let held = self.dossier(account).await.unwrap();
        let case = held.case.as_ref().map(|case| case.id.to_string());
        let line = json!({"account": account, "key": key, "case": case});
        self.tell("customer", line);
    }

    pub(crate) async fn stop(&self, stopped: bool) {
        let at = Time::from_unix_ms(self.now());
        let change = Arc::new(move |fleet: &mut Fleet| {
            fleet.stop = stopped.then(|| davy_decision::fleet::Stop {
                since: at,
                by: "carol".to_owned(),
                why: "a drill".to_owned(),
            });
            Vec::new()
        });
        (self.desk().change_fleet(Actor::Automation, change).await).unwrap();
        self.state().stopped = stopped.then(|| at.unix_ms());
        self.tell(if stopped { "stop" } else { "resume" }, json!({}));
    }

    /// Accounts that are due are attended to, by the replicas in turn, until none is.
    pub(crate) async fn attend(&self) {
        for _ in 0..8 {
            let at = Time::from_unix_ms(self.now());
            let due = self.desk().ledger.due(at, 100).await.unwrap();
            if due.is_empty() {
                return;
            }
            for account in due {
                let turn = {
                    let mut state = self.state();
                    state.turn ^= 1;
                    state.turn
                };
                self.attend_to(&account, turn).await;
            }
        }
    }

    async fn attend_to(&self, account: &AccountId, turn: usize) {
        let engine = self.replica(turn);
        let died = tokio::select! {
            biased;
            done = engine.attend(account) => {
                done.unwrap();
                false
            }
            () = self.death.notified() => true,
        };
        if died {
            drop(engine);
            {
                let mut state = self.state();
                state.inside = false;
                state.book.seen.deaths += 1;
            }
            *self.engines.lock().unwrap() = None;
            self.open().await;
        }
    }

    /// What happens between two steps of an engine that attends to `account`.
    pub(crate) async fn meanwhile(&self, account: &AccountId, what: Meanwhile) {
        {
            let mut state = self.state();
            if state.inside || state.calm {
                return;
            }
            state.inside = true;
        }
        match what {
            Meanwhile::Nothing => {}
            Meanwhile::CustomerSpeaks => self.speak(account, false).await,
            Meanwhile::Stopped => self.stop(true).await,
            Meanwhile::Unlocked => {
                let by = Person("bob".to_owned());
                self.person(account, &by, crate::step::Act::UnlockUnsure)
                    .await;
            }
            Meanwhile::HighCpuAllowed => {
                let by = Person("bob".to_owned());
                self.person(account, &by, crate::step::Act::AllowHighCpu)
                    .await;
            }
            Meanwhile::ProviderAllows => {
                let line = json!({"account": account, "high_cpu_allowed": true});
                let line = self.happens("account", line);
                let untold = (self.now(), account.clone(), line);
                self.state().untold.push(untold);
            }
            Meanwhile::OtherReplica => {
                let other = 1 - self.state().turn;
                let engine = self.replica(other);
                let attended: std::pin::Pin<Box<dyn Future<Output = _> + Send + '_>> =
                    Box::pin(engine.attend(account));
                attended.await.unwrap();
            }
            Meanwhile::Time(ms) => self.pass(ms),
        }
        self.state().inside = false;
    }

    /// All that is held: as JSON, which both stores are to have alike, and the records themselves.
    pub(crate) async fn records(&self) -> (Value, Vec<Dossier>, Fleet) {
        let ledger = self.desk().ledger;
        let mut all = BTreeMap::new();
        for number in 0..ACCOUNTS.len() {
            let account = account(number);
            let held = ledger.dossier(account.clone()).await.unwrap();
            let other = self.replica(1).desk.ledger.dossier(account.clone()).await;
            assert_eq!(held, other.unwrap(), "two handles on one store");
            all.insert(account.to_string(), held);
        }
        let fleet = ledger.fleet().await.unwrap();
        let (head, entries) = {
            let after = self.state().chain.entries;
            let entries = ledger.audit(None, after, 100_000).await.unwrap();
            let mut state = self.state();
            for entry in &entries {
                state.chain.follow(entry).unwrap();
            }
            (state.chain.head.clone(), state.chain.entries)
        };
        let json =
            json!({ "accounts": all, "fleet": fleet, "audit": [head, entries], "now": self.now() });
        (json, all.into_values().flatten().collect(), fleet)
    }
}

/// How long a window is, ms.
pub(crate) const WINDOW: u64 = MINUTE;
