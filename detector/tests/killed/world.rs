//! A store, a provider, and a detector that is started on them again and again; and what has to hold when all is over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use davy_decision::account::AccountId;
use davy_decision::action::{Action, By, Letter, State};
use davy_decision::audit::{Actor, Chain, Entry};
use davy_decision::case::Person;
use davy_decision::dossier::{Dossier, Event};
use davy_decision::fleet::{Fleet, Stop};
use davy_decision::policy::{DEFAULT, Step};
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
use crate::provider::{ACCOUNT, Book, Came, Provider};

/// The steps that automation takes, in order, and what takes them back.
pub(crate) const NOTIFY: &str = "new/1/notify/0";
pub(crate) const THROTTLE: &str = "new/1/throttle/0";
pub(crate) const UNDO_NOTIFY: &str = "new/1/notify/0/undo";
pub(crate) const UNDO_THROTTLE: &str = "new/1/throttle/0/undo";
/// The points that an order passes on its way.
pub(crate) const POINTS: [&str; 4] = ["before_release", "released", "delivered", "learnt"];

/// How often something is tried that a slow moment can spoil.
pub(crate) const TRIES_MAX: usize = 5;

/// People's tokens, after whom they are named.
const ANN: &str = "ann";
const BEN: &str = "ben";
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
            match fleet {
                Ok(fleet) => fleet.into_inner().droplets >= Some(QUIET),
                // One that is to die may have met its fault point already.
                Err(_) => fault.is_some(),
            }
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

    /// Leaves it dead with the notice done and the throttle planned.
    pub(crate) async fn before_throttle(&self) {
        for _ in 0..TRIES_MAX {
            self.run(Some("before_release:2")).await.dies().await;
            let records = self.records().await;
            let state = |key| state_of(&records.dossier, key);
            if (state(NOTIFY), state(THROTTLE)) == ("done", "planned") {
                return;
            }
        }
        panic!("the notice is not done before the throttle is to be released");
    }

    /// Leaves it dead at that point of the throttle's way.
    pub(crate) async fn dies_on_throttle(&self, point: &str) {
        self.before_throttle().await;
        if point != "before_release" {
            self.run(Some(&format!("{point}:1"))).await.dies().await;
        }
    }

    /// The first of two people denies.
    pub(crate) async fn proposes_denial(&self, program: &Program, measure: &str) {
        let request = v1::ProposeDenialRequest {
            case: case(),
            reason: "four rounding modes and random registers for hours, and nobody answers us"
                .into(),
            measure: measure.to_owned(),
        };
        let mut cases = CasesClient::new(program.channel.clone());
        cases.propose_denial(by(ANN, request)).await.unwrap();
    }

    /// The second one does. The detector may die of it before it has answered.
    pub(crate) async fn agrees(&self, program: &Program, measure: &str) {
        let request = v1::SecondOpinionRequest {
            case: case(),
            finding: v1::Finding::Deny.into(),
            reason: "the same card paid for three accounts that we closed for mining last week"
                .into(),
            measure: measure.to_owned(),
        };
        let mut cases = CasesClient::new(program.channel.clone());
        let _ = cases.second_opinion(by(BEN, request)).await;
    }

    /// A person answers the customer. The detector may die of it before it has answered.
    pub(crate) async fn answers(&self, program: &Program) {
        let request = v1::AnswerRequest {
            case: case(),
            text: "what does the droplet compute?".into(),
        };
        let mut cases = CasesClient::new(program.channel.clone());
        let _ = cases.answer(by(ANN, request)).await;
    }

    /// The records, as another replica changes them.
    async fn desk(&self) -> Desk {
        let memory = self.place.open().await;
        Desk {
            ledger: memory as _,
            settings: Arc::new(Settings::default()),
            clock: system_clock(),
        }
    }

    /// Turns the kill switch, as another replica would.
    pub(crate) async fn stop_automation(&self) {
        let desk = self.desk().await;
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

    /// Others' actions use the hour's budget up.
    pub(crate) async fn use_up_the_budget(&self) {
        let desk = self.desk().await;
        let (now, most) = (desk.now(), desk.settings.budget_per_hour);
        let change = move |fleet: &mut Fleet| {
            for n in 0..most {
                let other = AccountId::try_from(format!("other-{n}")).unwrap();
                fleet.spend(now, &other, Step::Throttle, 1);
            }
            Vec::new()
        };
        let change = Arc::new(change);
        desk.change_fleet(Actor::Automation, change).await.unwrap();
    }

    /// The customer writes to another replica.
    pub(crate) async fn customer_writes(&self) {
        let hear = |dossier: &mut Dossier, _: &Settings, at| {
            dossier.hear("m1", "ticket", "it is my render farm", at)
        };
        let account = ACCOUNT.try_into().unwrap();
        let desk = self.desk().await;
        desk.act(account, Actor::Customer, hear).await.unwrap();
    }

    /// A person unlocks with another replica.
    pub(crate) async fn unlocked_elsewhere(&self) {
        let unlock = |dossier: &mut Dossier, settings: &Settings, at| {
            dossier.unlock(&Person("ann".to_owned()), false, None, [], settings, at)
        };
        let (account, ann) = (ACCOUNT.try_into().unwrap(), Actor::Person("ann".to_owned()));
        let desk = self.desk().await;
        desk.act(account, ann, unlock).await.unwrap();
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
    pub(crate) async fn end(&self, mut program: Program) -> Records {
        program.hear(4).await;
        for _ in 0..TRIES_MAX {
            self.await_record(&program, "nothing is under way", is_at_rest)
                .await;
            program.kill().await;
            let records = self.records().await;
            if is_at_rest(&records.dossier) {
                self.check(&records);
                return records;
            }
            // A page of the very moment it was killed in: it goes on with that.
            program = self.run(None).await;
        }
        panic!("something is under way whenever it is killed");
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
            stands_on_a_decision(action, decisions, log);
        }
        let actions = dossier
            .actions
            .iter()
            .map(|held| (held.key.to_string(), &held.state));
        let letters = dossier
            .letters
            .iter()
            .map(|held| (letter_key(held), &held.state));
        let parcels: BTreeMap<_, _> = actions.chain(letters).collect();
        for (key, state) in &parcels {
            let effects = usize::from(matches!(state, State::Done { .. }));
            assert!(!state.is_under_way(), "{key}: {state:?}");
            assert_eq!(book.took_effect(key), effects, "{key}: {:?}", book.came);
        }
        let held: BTreeSet<_> = parcels.into_keys().collect();
        counted_once(dossier, fleet, log);
        let numbers: Vec<_> = (1..=dossier.decisions).collect();
        assert_eq!(*decisions, numbers, "each decision is kept once");
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
            ends_as_it_is_known(&book, key);
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

/// Nothing has left that its end is not known of, and nothing is about to leave.
fn is_at_rest(dossier: &Dossier) -> bool {
    let actions = dossier.actions.iter().map(|held| &held.state);
    let letters = dossier.letters.iter().map(|held| &held.state);
    !actions.chain(letters).any(State::is_under_way)
}

/// An automated action has a case, a statement, and a decision that is kept; people's measure has two who said so, and what a person
/// undid that person unlocked.
fn stands_on_a_decision(action: &Action, decisions: &[u64], log: &[Entry]) {
    assert!(!action.statement.is_empty());
    let logged = |is_it: &dyn Fn(Event) -> bool| {
        let event = |entry: &Entry| serde_json::from_value(entry.note.event.clone());
        log.iter().any(|entry| event(entry).is_ok_and(is_it))
    };
    match &action.by {
        By::Automation { decision } => assert!(decisions.contains(decision), "{action:?}"),
        By::Person { person } if action.key.undo => {
            let unlocked = logged(&|event| match event {
                Event::HoldSet { by, .. } => by.0 == *person,
                _ => false,
            });
            assert!(unlocked, "{person} unlocked nothing: {action:?}");
        }
        By::Person { person } => {
            for name in [ANN, BEN] {
                assert!(person.contains(name), "{action:?}");
                let gave = logged(&|event| match event {
                    Event::OpinionGiven { by, .. } => by.0 == name,
                    _ => false,
                });
                assert!(gave, "{name} gave no opinion");
            }
        }
    }
}

/// What took effect: after the order that did it nothing was asked but what had become of it, and the last answer says that it is
/// done.
fn ends_as_it_is_known(book: &Book, key: &str) {
    let about = book.about(key);
    let last = about
        .iter()
        .rposition(|came| matches!(came, Came::Order { .. }));
    let Some(last) = last.filter(|_| book.took_effect(key) > 0) else {
        return;
    };
    let done = Some(v1::ActionOutcome::Done);
    let ends = match about.last() {
        Some(Came::Query { answer, .. }) if about.len() > last + 1 => *answer == done,
        _ => true,
    };
    assert!(ends, "{key}: {about:?}");
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

/// However often an action of automation's was released, it is one against the budget; a notice is one until something follows it.
fn counted_once(dossier: &Dossier, fleet: &Fleet, log: &[Entry]) {
    let counts = |action: &&Action| {
        let automated = matches!(action.by, By::Automation { .. }) && !action.key.undo;
        automated && releases(log, &action.key.to_string()) > 0
    };
    let own = fleet
        .spent
        .iter()
        .filter(|spent| spent.account == dossier.account);
    let steps: Vec<_> = (dossier.actions.iter().filter(counts))
        .map(|action| action.key.step)
        .collect();
    let notice = |step: &&Step| **step == Step::Notify;
    let others = steps.len() - steps.iter().filter(notice).count();
    assert_eq!(
        own.count(),
        others.max(usize::from(!steps.is_empty())),
        "counted against the budget: {:?}",
        fleet.spent
    );
}

/// How often the log says that `key` was released.
fn releases(log: &[Entry], key: &str) -> usize {
    let released = |entry: &&Entry| match serde_json::from_value(entry.note.event.clone()) {
        Ok(Event::Released { parcel }) => parcel.to_string() == key,
        _ => false,
    };
    log.iter().filter(released).count()
}

/// How far an action or a letter is, in a word.
pub(crate) fn state_of(dossier: &Dossier, key: &str) -> &'static str {
    let action = (dossier.actions.iter()).find(|action| action.key.to_string() == key);
    let letter = (dossier.letters.iter()).find(|letter| letter_key(letter) == key);
    let state = action
        .map(|held| &held.state)
        .or(letter.map(|held| &held.state));
    state.map_or("absent", State::name)
}

fn letter_key(letter: &Letter) -> String {
    format!("{ACCOUNT}/letter/{}", letter.number)
}

/// As [`crate::provider::Book::sorted`] tells them.
pub(crate) fn sorted<const N: usize>(keys: [&str; N]) -> Vec<String> {
    let mut keys: Vec<_> = keys.map(str::to_owned).into();
    keys.sort();
    keys
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
    by(ANN, message)
}

fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().unwrap();
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
    let settings = "budget_fleet_per_mille = 500\ndelivery_ms = 2000\nfacts_refresh_ms = 1000\nfirst_answer_ms = 1000\n";
    std::fs::write(policy.join("settings.toml"), settings).unwrap();
    let token = |name: &str| -> String {
        let hash = Sha256::digest(name);
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let (ann, ben) = (token(ANN), token(BEN));
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
identity = "{ANN}"
kind = "person"
sha256 = "{ann}"
[[tokens]]
identity = "{BEN}"
kind = "person"
sha256 = "{ben}"
"#
    );
    std::fs::write(dir.join("davy.toml"), config).unwrap();
}
