//! People and services over real gRPC: who may do what, two who deny, reviews that do not see each other, and the safeties for others.

use std::collections::BTreeMap;
use std::sync::Arc;

use davy_decision::account::{AccountId, Cents, Droplet, DropletId, Facts, Known, Link, Payments};
use davy_decision::action::Action;
use davy_decision::audit::{Actor, Chain, Entry};
use davy_decision::dossier::Dossier;
use davy_decision::episode::{Classes, Sighting};
use davy_decision::time::{Span, Time};
use davy_detector::Server;
use davy_detector::account::directory::{Directory, DirectoryError};
use davy_detector::people::{Kind, TokenConfig};
use davy_detector::server::Provider;
use davy_evidence::Level;
use davy_proto::v1::{
    self, automation_client::AutomationClient, cases_client::CasesClient,
    safety_service_client::SafetyServiceClient,
};
use sha2::{Digest, Sha256};
use tonic::{Code, Request, Response, Status};

use crate::support::*;

const DROPLET: &str = "d1";
/// Each person's token is their name; ann has another one.
const TOKENS: [(&str, &str, Kind); 6] = [
    ("ann", "ann", Kind::Person),
    ("ann's other one", "ann", Kind::Person),
    ("bob", "bob", Kind::Person),
    ("cid", "cid", Kind::Person),
    ("dan", "dan", Kind::Person),
    ("billing", "billing", Kind::Service),
];
const ANNS: &str = "All four vCPUs computed RandomX for nine hours, and the customer answered neither of my two letters about it.";
const BOBS: &str = "The wallet address stands in the pool's list under the name of this droplet, and the card was reported stolen.";
pub(crate) const CIDS: &str = "I looked at the registers' figures again: they fit no workload that the customer describes in the appeal.";
pub(crate) const DANS: &str = "The customer showed me the source of their zero-knowledge prover, and its figures are the ones that we saw.";

struct Accounts;

fn known<T>(value: T, as_of: Time) -> Option<Known<T>> {
    Some(Known { value, as_of })
}

pub(crate) fn facts(engaged: Span) -> Facts {
    let now = Time::from_unix_ns(now_ns());
    let since = now.before(engaged);
    let droplet = Droplet {
        created_at: since,
        vcpus: 4,
    };
    Facts {
        created_at: known(since, now),
        first_payment_at: known(None, now),
        first_droplet_at: known(Some(since), now),
        payments: known(Payments::default(), now),
        run_rate: known(Cents(5_000), now),
        credit: known(None, now),
        high_cpu_allowed: known(false, now),
        vouched: known(None, now),
        links: known(
            vec![Link {
                account: "older".try_into().unwrap(),
                by: "ssh_key".to_owned(),
                note: String::new(),
            }],
            now,
        ),
        droplets: known(
            BTreeMap::from([(DropletId::try_from(DROPLET).unwrap(), droplet)]),
            now,
        ),
    }
}

#[tonic::async_trait]
impl Directory for Accounts {
    async fn facts(&self, account: &AccountId) -> Result<Facts, DirectoryError> {
        match account.as_str() {
            "new" => Ok(facts(Span::days(1))),
            "old" => Ok(facts(Span::days(3_650))),
            "far" => Err(DirectoryError::Unreachable {
                url: "http://directory".to_owned(),
                why: "it is far away".to_owned(),
            }),
            _ => Err(DirectoryError::Unknown {
                account: account.clone(),
            }),
        }
    }

    async fn owner(&self, _: &DropletId) -> Result<Option<AccountId>, DirectoryError> {
        Ok(None)
    }
}

pub(crate) fn stanzas() -> Vec<TokenConfig> {
    let stanza = |(token, identity, kind): (&str, &str, Kind)| TokenConfig {
        identity: identity.to_owned(),
        kind,
        sha256: (Sha256::digest(token).iter())
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    };
    TOKENS.into_iter().map(stanza).collect()
}

/// A request with a token.
pub(crate) fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

pub(crate) fn case() -> Option<v1::CaseName> {
    Some(v1::CaseName {
        account: "new".to_owned(),
        number: 0,
    })
}

pub(crate) type Changed = Result<Response<v1::ChangeResponse>, Status>;

/// A detector with a miner's account, whose case is open.
pub(crate) struct World {
    pub(crate) detector: Detector,
}

impl World {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.tokens = stanzas();
        let provider = Provider {
            directory: Arc::new(Accounts),
            ..Provider::default()
        };
        let server = Server::start_with(config, provider).await.unwrap();
        let world = Self {
            detector: Detector { server, dir },
        };
        world.mine().await;
        world
    }

    /// Twenty minutes of mining until now; the fleet is not known, so that automation does nothing by itself.
    async fn mine(&self) {
        let now = Time::from_unix_ns(now_ns());
        let sighting = Sighting {
            droplet: DROPLET.try_into().unwrap(),
            host: "h1".to_owned(),
            from: now.before(Span::minutes(20)),
            to: now,
            level: Level::Mining,
            classes: Classes {
                fp_rounding: true,
                register_randomness: true,
                pmu: false,
            },
            cpu_percent: 400,
            neighbours_wait_percent: Some(40),
            reasons: vec!["computes in all four rounding modes".to_owned()],
        };
        self.act(move |dossier, settings, _| Ok(dossier.observe(sighting.clone(), settings)))
            .await;
        eventually("a case is open", || async {
            self.dossier().await.case.is_some()
        })
        .await;
    }

    pub(crate) async fn act(
        &self,
        change: impl Fn(
            &mut Dossier,
            &davy_decision::settings::Settings,
            Time,
        )
            -> Result<Vec<davy_decision::dossier::Event>, davy_decision::dossier::Refusal>
        + Send
        + Sync
        + 'static,
    ) {
        let desk = &self.detector.server.desk;
        desk.act("new".try_into().unwrap(), Actor::Automation, change)
            .await
            .unwrap();
    }

    pub(crate) async fn dossier(&self) -> Dossier {
        let ledger = &self.detector.server.desk.ledger;
        ledger
            .dossier("new".try_into().unwrap())
            .await
            .unwrap()
            .unwrap()
    }

    pub(crate) async fn cases(&self) -> CasesClient<tonic::transport::Channel> {
        CasesClient::new(self.detector.channel().await)
    }

    pub(crate) async fn automation(&self) -> AutomationClient<tonic::transport::Channel> {
        AutomationClient::new(self.detector.channel().await)
    }

    async fn propose(&self, token: &str, reason: &str) -> Changed {
        let request = v1::ProposeDenialRequest {
            case: case(),
            reason: reason.to_owned(),
            measure: "lock".to_owned(),
        };
        self.cases().await.propose_denial(by(token, request)).await
    }

    pub(crate) async fn second(&self, token: &str, reason: &str) -> Changed {
        let request = v1::SecondOpinionRequest {
            case: case(),
            finding: v1::Finding::Deny.into(),
            reason: reason.to_owned(),
            measure: "lock".to_owned(),
        };
        self.cases().await.second_opinion(by(token, request)).await
    }

    pub(crate) async fn unlock(&self, token: &str, reason: &str) -> Changed {
        let request = v1::UnlockRequest {
            case: case(),
            outcome: v1::UnlockOutcome::Legitimate.into(),
            reason: reason.to_owned(),
        };
        self.cases().await.unlock(by(token, request)).await
    }

    async fn shown(&self, token: &str) -> v1::GetCaseResponse {
        let request = by(token, v1::GetCaseRequest { case: case() });
        self.cases()
            .await
            .get_case(request)
            .await
            .unwrap()
            .into_inner()
    }

    /// Locked by ann and bob, and appealed by the customer.
    pub(crate) async fn appealed() -> Self {
        Self::appealed_after(false).await
    }

    /// The same; `closed`: in a second case, since theirs was closed.
    pub(crate) async fn appealed_after(closed: bool) -> Self {
        let world = Self::start().await;
        world.propose("ann", ANNS).await.unwrap();
        world.second("bob", BOBS).await.unwrap();
        eventually("it is locked", || async {
            let dossier = world.dossier().await;
            let under_way = dossier.actions.iter().any(Action::is_under_way);
            dossier.is_locked() && !under_way
        })
        .await;
        if closed {
            world.act(|dossier, _, at| dossier.close(at)).await;
        }
        world
            .act(|dossier, _, at| dossier.hear("k1", "ticket", "This is our own prover!", at))
            .await;
        world
    }
}

#[track_caller]
pub(crate) fn refused(changed: Changed, code: Code, said: &str) {
    let status = changed.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(said), "{status}");
}

#[tokio::test]
async fn two_people_deny_and_one_person_with_two_tokens_is_one() {
    let world = World::start().await;
    refused(
        world.second("bob", BOBS).await,
        Code::FailedPrecondition,
        "nor appealed",
    );
    world.propose("ann", ANNS).await.unwrap();
    refused(
        world.propose("bob", BOBS).await,
        Code::FailedPrecondition,
        "second one",
    );
    let again = world.second("ann's other one", CIDS).await;
    refused(again, Code::FailedPrecondition, "another person's");
    assert!(!world.dossier().await.is_locked());

    let changed = world.second("bob", BOBS).await.unwrap().into_inner();
    let case = changed.case.unwrap();
    assert_eq!(
        (case.state.as_str(), case.ruling.as_deref()),
        ("decided", Some("denied"))
    );
    eventually("it is locked", || async {
        world.dossier().await.is_locked()
    })
    .await;
}

#[tokio::test]
async fn a_near_copy_of_an_earlier_reason_is_refused() {
    let world = World::start().await;
    world.propose("ann", ANNS).await.unwrap();
    let near = ANNS.to_uppercase().replace(',', " -");
    refused(
        world.second("bob", &near).await,
        Code::FailedPrecondition,
        "your own words",
    );

    // In another account's case, too.
    let other = AccountId::try_from("old").unwrap();
    let desk = &world.detector.server.desk;
    let hear = |dossier: &mut Dossier, _: &_, at| dossier.hear("k", "ticket", "What is this?", at);
    desk.act(other, Actor::Customer, hear).await.unwrap();
    let request = v1::ProposeDenialRequest {
        case: Some(v1::CaseName {
            account: "old".to_owned(),
            number: 1,
        }),
        reason: near,
        measure: "throttle".to_owned(),
    };
    let copied = world.cases().await.propose_denial(by("cid", request)).await;
    refused(copied, Code::FailedPrecondition, "case new/1");
}

#[tokio::test]
async fn reviewers_of_an_appeal_do_not_see_each_other() {
    let world = World::appealed().await;
    refused(
        world.second("ann", CIDS).await,
        Code::FailedPrecondition,
        "another person reviews",
    );
    world.second("cid", CIDS).await.unwrap();
    for reader in ["dan", "billing"] {
        let shown = world.shown(reader).await;
        assert!(shown.review_wanted);
        assert_eq!(shown.case.as_ref().map(|case| case.opinions), Some(0));
        assert!(
            shown
                .opinions
                .iter()
                .all(|opinion| opinion.past && opinion.by != "cid")
        );
        let all = format!("{shown:?}");
        assert!(!all.contains("fit no workload"), "{all}");
        let (entries, end) = world.audit_from(reader, None, 0).await;
        let end = end.unwrap();
        assert_eq!(end.code(), Code::FailedPrecondition, "{end}");
        let until = "from a person who is to review it until theirs is in";
        assert!(end.message().contains(until), "{end}");
        assert!(
            !format!("{entries:?}").contains("\\\"by\\\":\\\"cid\\\""),
            "{entries:?}"
        );
    }
    let own = world.shown("cid").await;
    assert_eq!((own.review_wanted, own.opinions.len()), (false, 3));
    let entries = world.audit("cid").await;
    assert!(format!("{entries:?}").contains("\\\"by\\\":\\\"cid\\\""));

    // They differ: the account is unlocked, and everybody may read both.
    let changed = world.unlock("dan", DANS).await.unwrap().into_inner();
    assert_eq!(changed.case.unwrap().ruling.as_deref(), Some("legitimate"));
    let shown = world.shown("ann").await;
    assert_eq!((shown.review_wanted, shown.opinions.len()), (false, 4));
    let entries = world.audit("ann").await;
    let mut chain = Chain::default();
    for entry in entries {
        let note = serde_json::from_str(&entry.note_json).unwrap();
        let (number, hash) = (entry.number, entry.hash);
        chain.follow(&Entry { number, note, hash }).unwrap();
    }
}

#[tokio::test]
async fn an_unlock_sets_hold_and_flag_in_one_transaction() {
    let world = World::start().await;
    let before = world.audit("ann").await.len();
    world.unlock("ann", "").await.unwrap();
    let dossier = world.dossier().await;
    assert_eq!(dossier.holds.len(), 1);
    assert_eq!(dossier.allowed.unwrap().by, "ann");
    let entries = world.audit("ann").await;
    let notes: Vec<serde_json::Value> = (entries[before..].iter())
        .filter_map(|entry| serde_json::from_str(&entry.note_json).ok())
        .filter(|note: &serde_json::Value| note["actor"]["person"] == "ann")
        .collect();
    let names: Vec<_> = (notes.iter())
        .flat_map(|note| note["event"].as_object().unwrap().keys().cloned())
        .collect();
    assert_eq!(names, ["case_decided", "hold_set", "high_cpu_allowed"]);
    // One transaction has one time.
    assert!(
        notes.iter().all(|note| note["at"] == notes[0]["at"]),
        "{notes:?}"
    );
}

#[tokio::test]
async fn a_service_decides_nothing_and_nobody_does_without_a_token() {
    let world = World::start().await;
    refused(
        world.unlock("billing", "").await,
        Code::PermissionDenied,
        "only a person",
    );
    refused(
        world.unlock("eve", "").await,
        Code::Unauthenticated,
        "not known here",
    );
    let request = v1::ListCasesRequest::default();
    let status = world.cases().await.list_cases(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(world.dossier().await.holds.is_empty());
    let request = by("billing", v1::ListCasesRequest::default());
    let listed = world
        .cases()
        .await
        .list_cases(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.cases.len(), 1, "a service reads");
}

#[tokio::test]
async fn without_configured_tokens_the_answer_says_how_to_make_one() {
    let detector = Detector::start().await;
    let mut cases = CasesClient::new(detector.channel().await);
    let request = by("ann", v1::ListCasesRequest::default());
    let status = cases.list_cases(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("davyctl token new"), "{status}");
}

#[tokio::test]
async fn only_an_accounts_last_case_is_worked_on_and_what_is_not_known_is_said() {
    let world = World::start().await;
    let claim = |account: &str, number| v1::ClaimRequest {
        case: Some(v1::CaseName {
            account: account.to_owned(),
            number,
        }),
        take_over: false,
    };
    let mut cases = world.cases().await;
    let nobody = cases.claim(by("ann", claim("nobody", 0))).await;
    refused(nobody, Code::NotFound, "check its id");
    let later = cases.claim(by("ann", claim("new", 7))).await;
    refused(later, Code::FailedPrecondition, "has no case 7");
    cases.claim(by("ann", claim("new", 1))).await.unwrap();
    let taken = cases.claim(by("bob", claim("new", 1))).await;
    refused(taken, Code::FailedPrecondition, "claimed by ann");
    world.unlock("ann", "").await.unwrap();
    let close = v1::CloseRequest { case: case() };
    cases.close(by("ann", close)).await.unwrap();
    world
        .act(|dossier, _, at| dossier.hear("k2", "ticket", "Once more?", at))
        .await;
    let earlier = cases.claim(by("ann", claim("new", 1))).await;
    refused(earlier, Code::FailedPrecondition, "only the last one");
}

#[tokio::test]
async fn a_reviewer_sees_what_speaks_for_and_against() {
    let world = World::start().await;
    let shown = world.shown("ann").await;
    assert_eq!(shown.level.as_deref(), Some("mining"));
    assert_eq!(
        shown.droplets[0].classes,
        ["fp_rounding", "register_randomness"]
    );
    assert!(shown.droplets[0].harm.starts_with("much"), "{shown:?}");
    assert_eq!(shown.links[0].by, "ssh_key");
    assert!(shown.facts.iter().all(|fact| fact.as_of_unix_ms.is_some()));
    let in_force: Vec<_> = (shown.safeties.iter())
        .filter(|safety| safety.in_force)
        .map(|safety| safety.name.as_str())
        .collect();
    assert_eq!(in_force, ["blast_radius"]);
    assert_eq!(shown.safeties.len(), 8);
    let policies = &shown.decisions[0].policies;
    assert!(
        policies.iter().any(|id| id == "mining:case"),
        "{policies:?}"
    );
    assert_eq!(shown.guideline, "docs/review-guideline.md");
}

async fn check(world: &World, account: &str, action: &str) -> Result<v1::CheckResponse, Status> {
    let request = v1::CheckRequest {
        account: account.to_owned(),
        action: action.to_owned(),
        droplets: Vec::new(),
    };
    let mut safeties = SafetyServiceClient::new(world.detector.channel().await);
    let answer = safeties.check(by("billing", request)).await;
    answer.map(Response::into_inner)
}

fn in_force(answer: &v1::CheckResponse) -> Vec<&str> {
    let held = answer.safeties.iter().filter(|safety| safety.in_force);
    held.map(|safety| safety.name.as_str()).collect()
}

#[tokio::test]
async fn the_safety_service_says_no_whenever_it_does_not_know() {
    let world = World::start().await;
    // The detector counts its fleet by itself when it starts.
    eventually("a new account without a safety may be acted on", || async {
        let size = |fleet: &mut davy_decision::fleet::Fleet| {
            fleet.droplets = 10_000;
            Vec::new()
        };
        let desk = &world.detector.server.desk;
        desk.change_fleet(Actor::Automation, Arc::new(size))
            .await
            .unwrap();
        check(&world, "new", "throttle").await.unwrap().allowed
    })
    .await;
    let old = check(&world, "old", "throttle").await.unwrap();
    assert_eq!(
        (old.allowed, in_force(&old)),
        (false, vec!["long_standing"])
    );
    assert!(old.facts_as_of_unix_ms.is_some());
    let far = check(&world, "far", "lock").await.unwrap();
    assert!(
        !far.allowed && in_force(&far).contains(&"unknown_standing"),
        "{far:?}"
    );
    let nobody = check(&world, "nobody", "lock").await.unwrap_err();
    assert_eq!(nobody.code(), Code::NotFound);
    for action in ["suspend", "observe", ""] {
        let status = check(&world, "new", action).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{action}");
    }
}

#[tokio::test]
async fn whoever_has_a_token_may_stop_automation_and_only_a_person_lets_it_go_on() {
    let world = World::start().await;
    let mut automation = world.automation().await;
    let stop = |why: &str| v1::StopRequest {
        why: why.to_owned(),
    };
    let silent = automation.stop(by("billing", stop(" "))).await.unwrap_err();
    assert_eq!(silent.code(), Code::InvalidArgument);
    let first = automation
        .stop(by("billing", stop("odd figures")))
        .await
        .unwrap();
    assert!(first.into_inner().changed);
    let second = automation
        .stop(by("ann", stop("me too")))
        .await
        .unwrap()
        .into_inner();
    assert!(second.stopped && !second.changed);
    assert_eq!(
        second.stopped_why.as_deref(),
        Some("odd figures"),
        "the first one stands"
    );
    let checked = check(&world, "old", "notify").await.unwrap();
    assert!(in_force(&checked).contains(&"kill_switch"));
    let resume = automation.resume(by("billing", v1::ResumeRequest {})).await;
    assert_eq!(resume.unwrap_err().code(), Code::PermissionDenied);
    let resumed = automation
        .resume(by("ann", v1::ResumeRequest {}))
        .await
        .unwrap();
    assert!(!resumed.into_inner().stopped);
}
