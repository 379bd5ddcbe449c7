//! `Cases` and `GetPolicies` over real gRPC: what each change does to an account's record, and what it refuses.

use std::collections::BTreeMap;

use davy_decision::action::{Action, By, State};
use davy_decision::case;
use davy_decision::dossier::{Dossier, Event};
use davy_decision::policy::{DEFAULT, Step};
use davy_decision::settings::Settings;
use davy_proto::v1;
use tonic::{Code, Response, Status};

use crate::intake::{id, intake, paid, record};
use crate::people::{Changed, World, by, refused};
use crate::support::*;

const REASON: &str =
    "Two neighbours wait for half of their time, and the customer has not answered.";

/// Calls by which people change an account.
#[derive(Clone, Copy, Debug)]
enum Call {
    Throttle,
    Renew,
    Unthrottle,
    Allow,
    Revoke,
    Claim,
    GiveBack,
}

impl Call {
    async fn on(self, world: &World, token: &str, account: &str) -> Changed {
        let case = Some(v1::CaseName {
            account: account.to_owned(),
            number: 0,
        });
        let mut cases = world.cases().await;
        let allow = |revoke| v1::AllowHighCpuRequest {
            account: account.to_owned(),
            revoke,
        };
        let reason = REASON.to_owned();
        match self {
            Self::Throttle => {
                cases
                    .throttle(by(token, v1::ThrottleRequest { case, reason }))
                    .await
            }
            Self::Renew => {
                cases
                    .renew_throttle(by(token, v1::RenewThrottleRequest { case, reason }))
                    .await
            }
            Self::Unthrottle => {
                cases
                    .unthrottle(by(token, v1::UnthrottleRequest { case }))
                    .await
            }
            Self::Allow => cases.allow_high_cpu(by(token, allow(false))).await,
            Self::Revoke => cases.allow_high_cpu(by(token, allow(true))).await,
            Self::Claim => {
                let take_over = false;
                cases
                    .claim(by(token, v1::ClaimRequest { case, take_over }))
                    .await
            }
            Self::GiveBack => {
                cases
                    .give_back(by(token, v1::GiveBackRequest { case }))
                    .await
            }
        }
    }

    /// Wants it done; gives the events.
    async fn done(self, world: &World, token: &str) -> Vec<Event> {
        let changed = self.on(world, token, "new").await;
        let changed = changed.unwrap_or_else(|status| panic!("{self:?}: {status}"));
        let v1::ChangeResponse {
            happened,
            events_json,
            ..
        } = changed.into_inner();
        assert_eq!(happened.len(), events_json.len(), "a sentence each");
        let event = |json: &String| serde_json::from_str(json).unwrap();
        events_json.iter().map(event).collect()
    }
}

/// What people can change of a record.
fn by_people(record: &Dossier) -> impl PartialEq + std::fmt::Debug + use<> {
    let Dossier {
        holds,
        allowed,
        actions,
        case,
        ..
    } = record.clone();
    (holds, allowed, actions, case)
}

#[tokio::test]
async fn each_change_wants_a_person_a_known_account_and_something_to_change() {
    let world = World::start().await;
    // An account without a case.
    let request = v1::PushFactsRequest {
        records: vec![record("plain", paid(5, 0))],
    };
    let pushed = intake(&world.detector)
        .await
        .push_facts(by("ann", request))
        .await;
    assert_eq!(pushed.unwrap().into_inner().taken, 1);
    let before = by_people(&world.dossier().await);
    for call in [
        Call::Throttle,
        Call::Renew,
        Call::Unthrottle,
        Call::Allow,
        Call::Revoke,
        Call::Claim,
        Call::GiveBack,
    ] {
        for (token, account, code, words) in [
            (
                "billing",
                "new",
                Code::PermissionDenied,
                "only a person decides",
            ),
            ("eve", "new", Code::Unauthenticated, "not known here"),
            ("ann", "nobody", Code::NotFound, "check its id"),
            ("ann", "n ew", Code::InvalidArgument, "is no id"),
        ] {
            refused(call.on(&world, token, account).await, code, words);
        }
    }
    for (call, account, words) in [
        (Call::Throttle, "plain", "account plain has no case"),
        (Call::Renew, "new", "account new has no throttle in effect"),
        (
            Call::Unthrottle,
            "new",
            "account new has no throttle in effect",
        ),
        (Call::Revoke, "new", "has no Allow High CPU of a person's"),
        (
            Call::GiveBack,
            "new",
            "only who has claimed it can give it back",
        ),
    ] {
        let changed = call.on(&world, "ann", account).await;
        refused(changed, Code::FailedPrecondition, words);
    }
    let mut cases = world.cases().await;
    let without = cases.renew_throttle(by(
        "ann",
        v1::RenewThrottleRequest {
            case: None,
            reason: REASON.to_owned(),
        },
    ));
    refused(without.await, Code::InvalidArgument, "say which case");
    let short = v1::ThrottleRequest {
        case: Some(v1::CaseName {
            account: "new".to_owned(),
            number: 1,
        }),
        reason: "it is abuse".to_owned(),
    };
    let short = cases.throttle(by("ann", short)).await;
    refused(short, Code::InvalidArgument, "at least 8 words");
    assert_eq!(by_people(&world.dossier().await), before);
}

/// The one throttle of people's.
async fn throttle(world: &World) -> Action {
    let record = world.dossier().await;
    let throttles =
        |action: &&Action| (action.key.step, action.key.undo) == (Step::Throttle, false);
    let mut throttles = record.actions.iter().filter(throttles);
    let throttle = throttles.next().unwrap().clone();
    assert_eq!(throttles.count(), 0);
    throttle
}

#[tokio::test]
async fn a_throttle_by_a_person_is_renewed_and_lifted_with_a_hold() {
    let world = World::start().await;
    let events = Call::Throttle.done(&world, "ann").await;
    assert!(
        matches!(&events[..], [Event::ActionPlanned { .. }]),
        "{events:?}"
    );
    let planned = throttle(&world).await;
    let person = "ann".to_owned();
    assert_eq!(planned.by, By::Person { person });
    assert_eq!(planned.targets, ["d1".try_into().unwrap()]);
    assert!(planned.statement.contains(REASON), "{}", planned.statement);
    let day = Settings::default().throttle_ms;
    assert_eq!(planned.ends_at, Some(planned.planned_at.after(day)));
    eventually("it is done", || async {
        matches!(throttle(&world).await.state, State::Done { .. })
    })
    .await;
    let again = Call::Throttle.on(&world, "bob", "new").await;
    refused(
        again,
        Code::FailedPrecondition,
        "renew the throttle instead",
    );

    let events = Call::Renew.done(&world, "bob").await;
    let [
        Event::ThrottleRenewed { until, by },
        Event::LetterWritten { .. },
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!(by.0, "bob");
    assert!(Some(*until) > planned.ends_at);
    assert_eq!(throttle(&world).await.ends_at, Some(*until));

    let events = Call::Unthrottle.done(&world, "cid").await;
    let [Event::HoldSet { until, by }, Event::ActionPlanned { key }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(
        (by.0.as_str(), key.step, key.undo),
        ("cid", Step::Throttle, true)
    );
    eventually("it is lifted", || async {
        let record = world.dossier().await;
        let lifted = record.actions.iter().find(|action| action.key.undo);
        lifted.is_some_and(|action| matches!(action.state, State::Done { .. }))
    })
    .await;
    let record = world.dossier().await;
    let [hold] = &record.holds[..] else {
        panic!("{:?}", record.holds);
    };
    assert_eq!((hold.by.as_str(), hold.until), ("cid", *until));
    assert_eq!(hold.until, hold.since.after(Settings::default().hold_ms));
    for call in [Call::Renew, Call::Unthrottle] {
        let changed = call.on(&world, "cid", "new").await;
        refused(changed, Code::FailedPrecondition, "no throttle in effect");
    }
}

#[tokio::test]
async fn allow_high_cpu_is_granted_once_and_taken_back_by_anybody() {
    let world = World::start().await;
    let allowed = async || {
        let allowed = world.dossier().await.allowed;
        allowed.map(|allowed| allowed.by)
    };
    let events = Call::Allow.done(&world, "ann").await;
    assert!(
        matches!(
            &events[..],
            [Event::HighCpuAllowed { .. }, Event::HoldSet { .. }]
        ),
        "{events:?}"
    );
    assert_eq!(allowed().await.as_deref(), Some("ann"));
    assert_eq!(
        Call::Allow.done(&world, "bob").await,
        [],
        "it is so already"
    );
    assert_eq!(allowed().await.as_deref(), Some("ann"));
    let shown = v1::GetAccountRequest {
        account: "new".to_owned(),
    };
    let shown = world.cases().await.get_account(by("billing", shown)).await;
    let safeties = shown.unwrap().into_inner().safeties;
    let flag = safeties
        .iter()
        .find(|safety| safety.name == "high_cpu_allowed");
    assert!(flag.unwrap().in_force, "{safeties:?}");
    let events = Call::Revoke.done(&world, "bob").await;
    assert!(
        matches!(
            &events[..],
            [Event::HighCpuWithdrawn { .. }, Event::LetterWritten { .. }]
        ),
        "{events:?}"
    );
    assert_eq!(allowed().await, None);
    let again = Call::Revoke.on(&world, "bob", "new").await;
    refused(again, Code::FailedPrecondition, "has no Allow High CPU");
}

#[tokio::test]
async fn a_case_is_given_back_by_who_has_it_alone() {
    let world = World::start().await;
    let state = async || world.dossier().await.case.unwrap().state;
    Call::Claim.done(&world, "ann").await;
    let others = Call::GiveBack.on(&world, "bob", "new").await;
    refused(others, Code::FailedPrecondition, "only who has claimed it");
    assert!(matches!(state().await, case::State::Claimed { by, .. } if by.0 == "ann"));
    let events = Call::GiveBack.done(&world, "ann").await;
    assert!(
        matches!(&events[..], [Event::CaseGivenBack { .. }]),
        "{events:?}"
    );
    assert_eq!(state().await, case::State::Open);
    let again = Call::GiveBack.on(&world, "ann", "new").await;
    refused(again, Code::FailedPrecondition, "only who has claimed it");
}

#[tokio::test]
async fn policies_are_read_by_the_digest_that_a_decision_names() {
    let world = World::start().await;
    let decisions = &world.detector.server.desk.ledger;
    let decisions = decisions.decisions(Some(id("new")), None, 1).await.unwrap();
    let digest = decisions[0].plan.policy.clone();
    let mut automation = world.automation().await;
    let mut read = async |token: &str, digest: &str| -> Result<_, Status> {
        let digest = digest.to_owned();
        let request = by(token, v1::GetPoliciesRequest { digest });
        let answer = automation.get_policies(request).await;
        Ok(answer
            .map(Response::into_inner)?
            .files
            .into_iter()
            .collect())
    };
    let files: BTreeMap<String, String> = read("billing", &digest).await.unwrap();
    let shipped = ("default.cedar".to_owned(), DEFAULT.to_owned());
    assert_eq!(files, BTreeMap::from([shipped]));
    for (token, digest, code) in [
        ("ann", &"0".repeat(64), Code::NotFound),
        ("ann", &String::new(), Code::NotFound),
        ("eve", &digest, Code::Unauthenticated),
    ] {
        let status = read(token, digest).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }
}

/// Whoever looks an account up before anything was seen of it is told what the directory knows.
#[tokio::test]
async fn an_account_of_which_nothing_was_seen_is_shown_as_the_directory_has_it() {
    let world = World::start().await;
    let show = async |account: &str| {
        let account = account.to_owned();
        let mut cases = world.cases().await;
        cases
            .get_account(by("billing", v1::GetAccountRequest { account }))
            .await
    };
    let shown = show("old").await.unwrap().into_inner();
    assert!(shown.case.is_none() && shown.facts.iter().all(|fact| fact.value.is_some()));
    let standing = |held: &v1::SafetyLooked| held.name == "long_standing" && held.in_force;
    assert!(shown.safeties.iter().any(standing));
    let nobody = show("nobody").await.unwrap_err();
    assert_eq!(nobody.code(), Code::NotFound);
    assert!(
        nobody
            .message()
            .contains("neither Davy nor the account directory"),
        "{nobody}"
    );
    let far = show("far").await.unwrap_err();
    assert_eq!(far.code(), Code::Unavailable);
    // Looking keeps nothing.
    let ledger = &world.detector.server.desk.ledger;
    assert!(
        ledger
            .dossier("old".try_into().unwrap())
            .await
            .unwrap()
            .is_none()
    );
}
