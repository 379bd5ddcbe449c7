//! A store, a provider, and a detector that is started on them again and again; and what has to hold when all is over.

use std::collections::BTreeSet;
use std::sync::Arc;

use davy_decision::account::AccountId;
use davy_decision::action::{Action, By, State};
use davy_decision::audit::{Actor, Chain, Entry};
use davy_decision::dossier::{Dossier, Event};
use davy_decision::fleet::{Fleet, Stop};
use davy_decision::policy::DEFAULT;
use davy_decision::settings::Settings;
use davy_detector::desk::{Desk, system_clock};
use davy_detector::store::Memory;
use davy_proto::v1::{self, automation_client::AutomationClient, cases_client::CasesClient};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::Request;

use crate::place::Place;
use crate::program::{Program, QUIET, comes_true, until};
use crate::provider::{ACCOUNT, Came, Provider};

/// The steps that automation takes, in order, and what takes them back.
pub(crate) const NOTIFY: &str = "new/1/notify/0";
pub(crate) const THROTTLE: &str = "new/1/throttle/0";
pub(crate) const UNDO_NOTIFY: &str = "new/1/notify/0/undo";
pub(crate) const UNDO_THROTTLE: &str = "new/1/throttle/0/undo";
/// The points that an order passes on its way.
pub(crate) const POINTS: [&str; 4] = ["before_release", "released", "delivered", "learnt"];

/// The person's token.
const ANN: &str = "ann's token";
/// What is waited for most is the rules' own time: many at once cost little.
static AT_ONCE: Semaphore = Semaphore::const_new(10);

/// Where the records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    Sqlite,
    Postgres,
}

pub(crate) struct World {
    pub(crate) place: Place,
    pub(crate) provider: Provider,
    dir: TempDir,
    database: String,
    _room: SemaphorePermit<'static>,
}

/// What the records hold when no detector runs.
pub(crate) struct Records {
    pub(crate) dossier: Dossier,
    fleet: Fleet,
    log: Vec<Entry>,
    decisions: Vec<u64>,
}

impl World {
    /// A fleet that has been counted, and a provider; none where the store cannot be had.
    pub(crate) async fn new(store: Store) -> Option<Self> {
        let place = match store {
            Store::Sqlite => Place::sqlite(),
            Store::Postgres => tokio::task::spawn_blocking(Place::postgres)
                .await
                .unwrap()?,
        };
        let database = place.name();
        Some(Self::at(place, database).await)
    }

    /// With the records behind `database`, which leads to `place`.
    pub(crate) async fn at(place: Place, database: String) -> Self {
        let room = AT_ONCE.acquire().await.unwrap();
        let (dir, provider) = (tempfile::tempdir().unwrap(), Provider::start().await);
        configure(dir.path(), &provider.url);
        let world = Self {
            place,
            provider,
            dir,
            database,
            _room: room,
        };
        // The fleet is counted when a detector starts.
        let first = world.start(None).await;
        first.report_quiet().await;
        first.kill().await;
        world
    }

    async fn start(&self, fault: Option<&str>) -> Program {
        Program::start(self.dir.path(), &self.database, fault).await
    }

    /// A detector that knows how large its fleet is.
    pub(crate) async fn counted(&self, fault: Option<&str>) -> Program {
        let program = self.start(fault).await;
        until("the fleet is counted", || async {
            let mut automation = AutomationClient::new(program.channel.clone());
            let fleet = automation.get_fleet(by_ann(v1::GetFleetRequest {})).await;
            fleet.unwrap().into_inner().droplets >= Some(QUIET)
        })
        .await;
        program
    }

    /// A detector that hears of the miner.
    pub(crate) async fn run(&self, fault: Option<&str>) -> Program {
        let mut program = self.counted(fault).await;
        program.report_miner();
        program
    }

    /// Waits until the account's record holds, as the running detector tells it.
    pub(crate) async fn await_record(
        &self,
        program: &Program,
        what: &str,
        holds: impl Fn(&Dossier) -> bool,
    ) {
        let waited =
            comes_true(|| async { record(program).await.is_some_and(|dossier| holds(&dossier)) });
        if !waited.await {
            let came = &self.provider.book().came;
            panic!("{what}: not so in time: {came:#?}\n{}", program.log());
        }
    }

    pub(crate) async fn await_state(&self, program: &Program, key: &str, state: &str) {
        let what = format!("{key} is {state}");
        self.await_record(program, &what, |dossier| state_of(dossier, key) == state)
            .await;
    }

    /// A person unlocks the account. The detector may die of it before it has answered.
    pub(crate) async fn unlock(&self, program: &Program) {
        let request = v1::UnlockRequest {
            case: case(),
            ..v1::UnlockRequest::default()
        };
        let mut cases = CasesClient::new(program.channel.clone());
        let _ = cases.unlock(by_ann(request)).await;
    }

    /// Turns the kill switch, as another replica would.
    pub(crate) async fn stop_automation(&self) {
        let memory = self.place.open().await;
        let desk = Desk {
            ledger: memory as _,
            settings: Arc::new(Settings::default()),
            clock: system_clock(),
        };
        let stop = Stop {
            since: desk.now(),
            by: "ann".to_owned(),
            why: "something is wrong".to_owned(),
        };
        let change = move |fleet: &mut Fleet| {
            fleet.stop = Some(stop.clone());
            let why = "something is wrong".to_owned();
            vec![Event::Stopped { why }]
        };
        let ann = Actor::Person("ann".to_owned());
        desk.change_fleet(ann, Arc::new(change)).await.unwrap();
    }

    /// What the records hold; no detector may run.
    pub(crate) async fn records(&self) -> Records {
        let memory: Arc<dyn Memory> = self.place.open().await;
        let account: AccountId = ACCOUNT.try_into().unwrap();
        let decisions = memory.decisions(Some(account.clone()), None, 10_000).await;
        Records {
            dossier: memory.dossier(account).await.unwrap().unwrap(),
            fleet: memory.fleet().await.unwrap(),
            log: memory.audit(None, 0, 100_000).await.unwrap(),
            decisions: (decisions.unwrap().iter())
                .map(|decision| decision.number)
                .collect(),
        }
    }

    /// Ends the detector, once it had the time to do something wrong, and looks at everything.
    pub(crate) async fn end(&self, program: Program) -> Records {
        program.hear(4).await;
        program.kill().await;
        let records = self.records().await;
        self.check(&records);
        records
    }

    /// Nothing lost, nothing doubled, nothing that waits for ever.
    fn check(&self, records: &Records) {
        let Records {
            dossier,
            fleet,
            log,
            decisions,
        } = records;
        let book = self.provider.book();
        let now = (system_clock())();
        let errands = dossier.errands(fleet, now);
        assert!(errands.is_empty(), "nothing is left to do: {errands:?}");
        for action in &dossier.actions {
            let key = action.key.to_string();
            let effects = usize::from(matches!(action.state, State::Done { .. }));
            assert!(!action.is_under_way(), "{key}: {:?}", action.state);
            assert_eq!(book.took_effect(&key), effects, "{key}: {:?}", book.came);
            stands_on_a_decision(action, decisions);
        }
        let held: BTreeSet<_> = (dossier.actions.iter())
            .map(|action| action.key.to_string())
            .collect();
        for key in &book.effects {
            assert!(held.contains(key), "nobody asked for {key}");
            if let Some(undone) = key.strip_suffix("/undo") {
                let order = book
                    .effects
                    .iter()
                    .filter(|held| *held == key || *held == undone);
                assert!(order.eq([undone, key.as_str()]), "{:?}", book.effects);
            }
        }
        let steps: BTreeSet<_> = (dossier.actions.iter())
            .map(|action| (action.key.episode, action.key.step, action.key.undo))
            .collect();
        assert_eq!(steps.len(), dossier.actions.len(), "one a step and episode");
        assert_eq!((dossier.episodes, dossier.cases), (1, 1));
        for key in &held {
            sent_again_only_if_never_seen(&book.came, key);
            let orders = book.orders(key);
            let same = orders.iter().all(|order| *order == orders[0]);
            assert!(same, "one key, two orders: {orders:?}");
            // Written down before it left.
            assert!(orders.len() <= releases(log, key), "{key}");
        }
        let mut chain = Chain::default();
        for entry in log {
            chain.follow(entry).unwrap();
        }
        assert!(chain.entries > 5);
    }
}

/// An automated action has a case, a statement, and a decision that is kept.
fn stands_on_a_decision(action: &Action, decisions: &[u64]) {
    assert!(!action.statement.is_empty());
    match &action.by {
        By::Automation { decision } => assert!(decisions.contains(decision), "{action:?}"),
        By::Person { person } => panic!("{person} asked for nothing: {action:?}"),
    }
}

/// In doubt it is asked about, and an order that comes twice came after "never seen".
fn sent_again_only_if_never_seen(came: &[Came], key: &str) {
    let mut may_be_sent = true;
    for came in came {
        match came {
            Came::Order { key: held, .. } if held == key => {
                assert!(may_be_sent, "{key} was sent again blindly");
                may_be_sent = false;
            }
            Came::Query { key: held, answer } if held == key => {
                may_be_sent = *answer == Some(v1::ActionOutcome::NeverSeen);
            }
            _ => {}
        }
    }
}

/// How often the log says that `key` was released.
fn releases(log: &[Entry], key: &str) -> usize {
    let released = |entry: &&Entry| match serde_json::from_value(entry.note.event.clone()) {
        Ok(Event::Released { parcel }) => parcel.to_string() == key,
        _ => false,
    };
    log.iter().filter(released).count()
}

/// How far an action is, in a word.
pub(crate) fn state_of(dossier: &Dossier, key: &str) -> &'static str {
    let action = (dossier.actions.iter()).find(|action| action.key.to_string() == key);
    action.map_or("absent", |action| action.state.name())
}

async fn record(program: &Program) -> Option<Dossier> {
    let mut cases = CasesClient::new(program.channel.clone());
    let request = by_ann(v1::GetCaseRequest { case: case() });
    // Without a case there is no record to be shown yet.
    let answer = cases.get_case(request).await.ok()?.into_inner();
    Some(serde_json::from_str(&answer.dossier_json).unwrap())
}

fn case() -> Option<v1::CaseName> {
    Some(v1::CaseName {
        account: ACCOUNT.to_owned(),
        number: 0,
    })
}

fn by_ann<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {ANN}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

/// The policy that ships, with the rules' own times as short as they may be.
fn configure(dir: &std::path::Path, provider: &str) {
    let policy = dir.join("policy");
    std::fs::create_dir(&policy).unwrap();
    let text = DEFAULT.replace("mining_seconds >= 600", "mining_seconds >= 1");
    assert_ne!(text, DEFAULT);
    std::fs::write(policy.join("ours.cedar"), text).unwrap();
    let settings = "budget_fleet_per_mille = 500\ndelivery_ms = 2000\nfacts_refresh_ms = 1000\n";
    std::fs::write(policy.join("settings.toml"), settings).unwrap();
    let token: String = (Sha256::digest(ANN).iter())
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let config = format!(
        r#"
policy_dir = "policy"
[directory]
url = "{provider}"
[actions]
driver = "power_control"
[actions.power_control]
url = "{provider}"
timeout_ms = 5000
[[tokens]]
identity = "ann"
kind = "person"
sha256 = "{token}"
"#
    );
    std::fs::write(dir.join("davy.toml"), config).unwrap();
}
