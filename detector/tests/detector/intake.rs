//! `AccountIntake` over real gRPC: what customers say keeps automation back, and facts are taken or refused one by one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use davy_decision::account::{AccountId, DropletId, Facts, ID_BYTES_MAX};
use davy_decision::action::{Action, State};
use davy_decision::audit::Actor;
use davy_decision::dossier::Dossier;
use davy_decision::episode::{Classes, Sighting};
use davy_decision::fleet::Fleet;
use davy_decision::settings::Settings;
use davy_decision::time::{Span, Time};
use davy_detector::account::directory::{Directory, DirectoryError};
use davy_detector::action::dry_run::DryRun;
use davy_detector::server::Provider;
use davy_detector::{Server, store};
use davy_evidence::Level;
use davy_proto::v1::{self, account_intake_client::AccountIntakeClient};
use tokio::sync::watch;
use tonic::Code;
use tonic::transport::Channel;

use crate::people::{World, by, facts, stanzas};
use crate::support::*;

pub(crate) fn id(account: &str) -> AccountId {
    account.try_into().unwrap()
}

fn now() -> Time {
    Time::from_unix_ns(now_ns())
}

pub(crate) async fn intake(detector: &Detector) -> AccountIntakeClient<Channel> {
    AccountIntakeClient::new(detector.channel().await)
}

fn message(key: &str, account: &str, text: &str) -> v1::RecordCustomerMessageRequest {
    v1::RecordCustomerMessageRequest {
        key: key.to_owned(),
        account: account.to_owned(),
        channel: "ticket".to_owned(),
        text: text.to_owned(),
    }
}

/// A directory that is asked a second time when a step is about to leave; it answers then when it may.
struct Slow {
    asked: AtomicBool,
    may_answer: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl Directory for Slow {
    async fn facts(&self, _: &AccountId) -> Result<Facts, DirectoryError> {
        if self.asked.swap(true, Ordering::Relaxed) {
            let mut may_answer = self.may_answer.clone();
            may_answer.wait_for(|may| *may).await.unwrap();
        }
        Ok(facts(Span::days(1)))
    }

    async fn owner(&self, _: &DropletId) -> Result<Option<AccountId>, DirectoryError> {
        Ok(None)
    }
}

/// A detector that has just looked how many droplets the fleet has, and is not to do so again in this test.
async fn with_a_fleet(provider: Provider) -> Detector {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.tokens = stanzas();
    let size = |droplets| {
        let size = move |fleet: &mut Fleet| {
            fleet.droplets = droplets;
            Vec::new()
        };
        Arc::new(size)
    };
    // Another number than it finds: so it is seen when it has counted.
    let memory = store::open(&config.database, config.store_limits().unwrap()).await;
    let memory = memory.unwrap();
    let changed = memory.change_fleet(Actor::Automation, now(), size(1));
    changed.await.unwrap();
    drop(memory);
    let server = Server::start_with(config, provider).await.unwrap();
    let detector = Detector { server, dir };
    let desk = &detector.server.desk;
    eventually("the fleet is counted", || async {
        desk.ledger.fleet().await.unwrap().droplets == 0
    })
    .await;
    let sized = desk.change_fleet(Actor::Automation, size(100_000));
    sized.await.unwrap();
    detector
}

async fn dossier_of(detector: &Detector, account: &str) -> Dossier {
    let held = detector.server.desk.ledger.dossier(id(account)).await;
    held.unwrap().unwrap()
}

/// Twenty minutes of mining until now.
fn mined() -> Sighting {
    Sighting {
        droplet: "d1".try_into().unwrap(),
        host: "h1".to_owned(),
        from: now().before(Span::minutes(20)),
        to: now(),
        level: Level::Mining,
        classes: Classes {
            fp_rounding: true,
            register_randomness: true,
            pmu: false,
        },
        cpu_percent: 400,
        neighbours_wait_percent: None,
        reasons: vec!["computes in all four rounding modes".to_owned()],
    }
}

#[tokio::test]
async fn a_customers_message_keeps_back_what_was_about_to_leave() {
    let (answer, may_answer) = watch::channel(false);
    let orders = Arc::new(DryRun::default());
    let detector = with_a_fleet(Provider {
        directory: Arc::new(Slow {
            asked: AtomicBool::new(false),
            may_answer,
        }),
        driver: Arc::clone(&orders) as _,
    })
    .await;
    let observe =
        |dossier: &mut Dossier, settings: &Settings, _| Ok(dossier.observe(mined(), settings));
    let observed = (detector.server.desk).act(id("new"), Actor::Automation, observe);
    observed.await.unwrap();
    eventually("notice and throttle are planned", || async {
        let planned = |action: &&Action| action.state == State::Planned;
        dossier_of(&detector, "new")
            .await
            .actions
            .iter()
            .filter(planned)
            .count()
            == 2
    })
    .await;

    let mut intake = intake(&detector).await;
    let mut told = async |key: &str, text: &str| {
        let answer = intake.record_customer_message(by("billing", message(key, "new", text)));
        answer.await.unwrap().into_inner()
    };
    let first = told("k1", "This is our own prover!").await;
    assert_eq!((first.is_new, first.case.as_str()), (true, "new/1"));
    let again = told("k1", "This is our own prover!").await;
    assert_eq!((again.is_new, again.case.as_str()), (false, "new/1"));
    let more = told("k2", "Is anybody there?").await;
    assert!(more.is_new);
    answer.send(true).unwrap();

    eventually("neither leaves", || async {
        let withheld = |action: &&Action| match &action.state {
            State::Withheld { why, .. } => why.contains("open_conversation"),
            _ => false,
        };
        let record = dossier_of(&detector, "new").await;
        record.actions.iter().filter(withheld).count() == 2
    })
    .await;
    assert!(orders.orders().is_empty(), "{:?}", orders.orders());
    let record = dossier_of(&detector, "new").await;
    let said = record.case.unwrap().messages;
    assert_eq!(said.len(), 2, "told twice it counts once: {said:?}");
    assert!(record.conversation.is_some());
    detector.server.shutdown().await;
}

#[tokio::test]
async fn what_is_no_message_is_refused() {
    let world = World::start().await;
    let mut intake = intake(&world.detector).await;
    for (token, said, code, words) in [
        (
            "billing",
            message("", "new", "Hello?"),
            Code::InvalidArgument,
            "a message has a key",
        ),
        (
            "billing",
            message("k", "n ew", "Hello?"),
            Code::InvalidArgument,
            "is no id",
        ),
        (
            "billing",
            message("k", "nobody", "Hello?"),
            Code::NotFound,
            "no account nobody is known",
        ),
        (
            "eve",
            message("k", "new", "Hello?"),
            Code::Unauthenticated,
            "not known here",
        ),
    ] {
        let status = intake.record_customer_message(by(token, said)).await;
        let status = status.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(words), "{status}");
    }
    let record = world.dossier().await;
    assert_eq!(record.conversation, None);
    assert_eq!(record.case.unwrap().messages, []);
}

#[tokio::test]
async fn a_message_without_a_text_or_with_a_long_key_is_heard() {
    let world = World::start().await;
    let mut intake = intake(&world.detector).await;
    let long = "x".repeat(257);
    for said in [message("k", "new", " "), message(&long, "new", "Hello?")] {
        let heard = intake.record_customer_message(by("billing", said)).await;
        assert!(heard.unwrap().into_inner().is_new);
    }
    let record = world.dossier().await;
    assert!(record.conversation.is_some());
    assert_eq!(record.case.unwrap().messages.len(), 2);
}

pub(crate) fn record(account: &str, facts: v1::AccountFacts) -> v1::AccountRecord {
    v1::AccountRecord {
        account: account.to_owned(),
        facts: Some(facts),
    }
}

pub(crate) fn paid(settled: i64, disputed: i64) -> v1::AccountFacts {
    v1::AccountFacts {
        payments: Some(v1::Payments {
            as_of_unix_ms: now().unix_ms(),
            settled_cents: Some(settled),
            disputed_cents: disputed,
            last_invoice: None,
        }),
        ..v1::AccountFacts::default()
    }
}

fn made(as_of: Time, at: Time) -> v1::AccountFacts {
    v1::AccountFacts {
        created_at: Some(v1::CreatedAt {
            as_of_unix_ms: as_of.unix_ms(),
            unix_ms: Some(at.unix_ms()),
        }),
        ..v1::AccountFacts::default()
    }
}

fn owns(droplets: &[&str]) -> v1::AccountFacts {
    let droplet = |droplet: &&str| v1::InventoryDroplet {
        droplet: (*droplet).to_owned(),
        created_unix_ms: Some(1),
        vcpus: 1,
    };
    v1::AccountFacts {
        droplets: Some(v1::DropletInventory {
            as_of_unix_ms: now().unix_ms(),
            droplets: droplets.iter().map(droplet).collect(),
        }),
        ..v1::AccountFacts::default()
    }
}

#[tokio::test]
async fn facts_that_cannot_be_are_refused_one_by_one_and_the_others_are_taken() {
    let world = World::start().await;
    let (before, ahead) = (now().before(Span::days(1)), now().after(Span::hours(1)));
    let empty = v1::AccountFacts {
        run_rate: Some(v1::RunRate::default()),
        ..v1::AccountFacts::default()
    };
    let nobody_knows = v1::AccountFacts {
        vouched: Some(v1::Vouched::default()),
        ..v1::AccountFacts::default()
    };
    let long = "x".repeat(ID_BYTES_MAX + 1);
    let bad = [
        (
            record("b1", paid(-5, 0)),
            "payments.settled_cents is -5: no amount is negative",
        ),
        (
            record("b2", paid(5, -1)),
            "payments.disputed_cents is -1: no amount is negative",
        ),
        (
            record("b3", paid(100, 101)),
            "no more can be disputed than was settled",
        ),
        (record("b4", made(now(), ahead)), "created_at says"),
        (record("b5", made(ahead, before)), "created_at.as_of says"),
        (record("b6", empty), "run_rate.cents is not there"),
        (record("b7", nobody_knows), "vouched.by is not there"),
        (
            record("b8", owns(&["d7", "d7"])),
            "droplet d7 is in the inventory twice",
        ),
        (record("b9", owns(&["d 7"])), "\"d 7\" is no id"),
        (record("", paid(5, 0)), "\"\" is no id"),
        (record("a b", paid(5, 0)), "\"a b\" is no id"),
        (record(&long, paid(5, 0)), "1 to 128 printable characters"),
    ];
    let mut request = v1::PushFactsRequest {
        records: vec![record("g1", paid(700, 30))],
    };
    request
        .records
        .extend(bad.iter().map(|(record, _)| record.clone()));
    request.records.push(record("g2", owns(&["d8"])));
    let mut intake = intake(&world.detector).await;
    let answer = intake.push_facts(by("billing", request.clone())).await;
    let answer = answer.unwrap().into_inner();
    assert_eq!(answer.taken, 2);
    assert_eq!(answer.refused.len(), bad.len(), "{:?}", answer.refused);
    let ledger = &world.detector.server.desk.ledger;
    for (number, ((sent, words), refused)) in (1..).zip(bad.iter().zip(&answer.refused)) {
        assert_eq!((refused.index, &refused.account), (number, &sent.account));
        assert!(refused.reason.contains(words), "{refused:?}");
        if let Ok(account) = AccountId::try_from(sent.account.as_str()) {
            assert_eq!(ledger.dossier(account).await.unwrap(), None);
        }
    }
    let held = dossier_of(&world.detector, "g1").await.facts;
    let payments = held.payments.unwrap().value;
    assert_eq!((payments.settled.0, payments.disputed.0), (700, 30));
    let owner = ledger.owner("d8".try_into().unwrap()).await.unwrap();
    assert_eq!(owner, Some(id("g2")));

    let status = intake.push_facts(by("eve", request)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    let many = v1::PushFactsRequest {
        records: vec![v1::AccountRecord::default(); 10_001],
    };
    let status = intake.push_facts(by("billing", many)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("send them in parts"), "{status}");
}
