//! Two reviewers of an appeal, over real gRPC: whatever the first one found, the second one is answered the same, by every call.

use davy_decision::action::State;
use davy_proto::v1::{self, safety_service_client::SafetyServiceClient};
use tonic::Status;

use super::people::{CIDS, DANS, World, by, case};
use crate::support::*;

/// Whom the first review is kept from: a person who is to review, and a program, whose answers may reach anybody.
const READERS: [&str; 2] = ["dan", "billing"];

impl World {
    /// The whole log.
    pub(crate) async fn audit(&self, token: &str) -> Vec<v1::AuditEntry> {
        let (entries, end) = self.audit_from(token, None, 0).await;
        assert!(end.is_none(), "{end:?}");
        entries
    }

    /// The log from after `after`, and what ends it, if it is not the end.
    pub(crate) async fn audit_from(
        &self,
        token: &str,
        account: Option<&str>,
        after: u64,
    ) -> (Vec<v1::AuditEntry>, Option<Status>) {
        let account = account.map(str::to_owned);
        let request = by(token, v1::ReadAuditRequest { account, after });
        let mut stream = (self.automation().await.read_audit(request).await)
            .unwrap()
            .into_inner();
        let mut entries = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(entry)) => entries.push(entry),
                Ok(None) => return (entries, None),
                Err(status) => return (entries, Some(status)),
            }
        }
    }
}

/// As text, without what differs between any two runs: times, and how long ago they are.
fn told(answer: &impl std::fmt::Debug) -> String {
    let text = format!("{answer:?}");
    let (mut out, mut rest) = (String::new(), text.as_str());
    while let Some(c) = rest.chars().next() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let is_date = digits == 4 && rest.as_bytes().get(4) == Some(&b'-');
        let after = rest.get(digits..).unwrap_or_default();
        // With its decimals.
        let decimals = after.strip_prefix('.').map_or(0, |more| {
            1 + more.len() - more.trim_start_matches(|c: char| c.is_ascii_digit()).len()
        });
        let skipped = match digits {
            0 => c.len_utf8(),
            _ if is_date => rest.find('Z').map_or(digits, |end| end + 1),
            _ => digits + decimals,
        };
        let seconds = after.starts_with(" s") || decimals > 0;
        match digits {
            0 => out.push(c),
            _ if is_date || digits > 6 || seconds => out.push('~'),
            _ => out.push_str(rest.get(..digits).unwrap_or_default()),
        }
        rest = rest.get(skipped..).unwrap_or_default();
    }
    out
}

/// Fails at the first word that differs.
#[track_caller]
fn assert_same(left: &[(&'static str, String)], right: &[(&'static str, String)]) {
    for ((name, left), (_, right)) in left.iter().zip(right) {
        let same = left.bytes().zip(right.bytes()).take_while(|(a, b)| a == b);
        let from = same.count().saturating_sub(200);
        let around = |text: &str| text.chars().skip(from).take(400).collect::<String>();
        assert!(
            left == right,
            "{name}: {}\n\nagainst {}",
            around(left),
            around(right)
        );
    }
}

/// A refusal, or what was answered.
fn said<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>) -> String {
    match answer {
        Ok(answer) => told(answer.get_ref()),
        Err(status) => format!("{:?} {}", status.code(), told(&status.message())),
    }
}

async fn is_settled(world: &World) -> bool {
    let dossier = world.dossier().await;
    let under_way = (dossier.actions.iter().map(|action| &action.state))
        .chain(dossier.letters.iter().map(|letter| &letter.state))
        .any(State::is_under_way);
    !under_way
}

async fn reads(world: &World, reader: &str) -> Vec<(&'static str, String)> {
    let mut cases = world.cases().await;
    let of = || "new".to_owned();
    let list = cases.list_cases(by(reader, v1::ListCasesRequest { closed_too: true }));
    let mut all = vec![("list", said(list.await))];
    let show = cases.get_case(by(reader, v1::GetCaseRequest { case: case() }));
    all.push(("show", said(show.await)));
    // The first case; it may be the last one.
    let first = case().map(|case| v1::CaseName { number: 1, ..case });
    let show = cases.get_case(by(reader, v1::GetCaseRequest { case: first }));
    all.push(("show the first", said(show.await)));
    let account = cases.get_account(by(reader, v1::GetAccountRequest { account: of() }));
    all.push(("account", said(account.await)));
    let request = v1::ReadDecisionsRequest { account: None };
    let mut decisions = (world
        .automation()
        .await
        .read_decisions(by(reader, request))
        .await)
        .unwrap()
        .into_inner();
    let mut seen = Vec::new();
    while let Some(decision) = decisions.message().await.unwrap() {
        seen.push((decision.account, decision.number));
    }
    all.push(("decisions", told(&seen)));
    // How many there are would tell as well.
    for (name, account, after) in [
        ("audit", None, 0),
        ("audit of the account", Some("new"), 0),
        ("audit from later on", None, 1_000),
        ("audit of another account", Some("other"), 0),
        ("audit of the account from later on", Some("new"), 1_000),
    ] {
        let (entries, end) = world.audit_from(reader, account, after).await;
        let notes: Vec<_> = entries.iter().map(|entry| &entry.note_json).collect();
        all.push((name, told(&(notes, end.map(|end| end.code())))));
    }
    let mut automation = world.automation().await;
    let fleet = automation.get_fleet(by(reader, v1::GetFleetRequest {}));
    all.push(("fleet", said(fleet.await)));
    all
}

/// What `dan` is told when they ask for what a reviewer may, and may not.
async fn tries(world: &World) -> Vec<(&'static str, String)> {
    let mut cases = world.cases().await;
    let mut all = Vec::new();
    let claim = v1::ClaimRequest {
        case: case(),
        take_over: false,
    };
    all.push(("claim", said(cases.claim(by("dan", claim)).await)));
    let request = v1::GiveBackRequest { case: case() };
    all.push(("give back", said(cases.give_back(by("dan", request)).await)));
    let request = v1::CloseRequest { case: case() };
    all.push(("close", said(cases.close(by("dan", request)).await)));
    let request = v1::UndoRequest { case: case() };
    all.push(("undo", said(cases.undo(by("dan", request)).await)));
    let request = v1::UnthrottleRequest { case: case() };
    all.push((
        "unthrottle",
        said(cases.unthrottle(by("dan", request)).await),
    ));
    let request = v1::RenewThrottleRequest {
        case: case(),
        reason: DANS.to_owned(),
    };
    all.push((
        "renew",
        said(cases.renew_throttle(by("dan", request)).await),
    ));
    let request = v1::AllowHighCpuRequest {
        account: "new".to_owned(),
        revoke: true,
    };
    all.push((
        "revoke",
        said(cases.allow_high_cpu(by("dan", request)).await),
    ));
    all.push((
        "unlock without a reason",
        said(world.unlock("dan", "").await),
    ));
    all.push(("copied", said(world.second("dan", CIDS).await)));
    let answer = v1::AnswerRequest {
        case: case(),
        text: "We look at it.".to_owned(),
    };
    all.push(("answer", said(cases.answer(by("dan", answer)).await)));
    let check = v1::CheckRequest {
        account: "new".to_owned(),
        action: "lock".to_owned(),
        droplets: Vec::new(),
    };
    let mut safeties = SafetyServiceClient::new(world.detector.channel().await);
    all.push(("check", said(safeties.check(by("dan", check)).await)));
    all
}

#[tokio::test]
async fn whatever_the_first_review_found_the_second_reviewer_is_answered_the_same() {
    let worlds = (World::appealed().await, World::appealed().await);
    are_answered_the_same(worlds).await;
}

#[tokio::test]
async fn nor_does_a_former_case_tell_them() {
    let denied = World::appealed_after(true).await;
    assert_eq!(denied.dossier().await.case.unwrap().id.number, 2);
    are_answered_the_same((denied, World::appealed_after(true).await)).await;
}

async fn are_answered_the_same((denied, unlocked): (World, World)) {
    for world in [&denied, &unlocked] {
        eventually("all that was to leave has", || async {
            is_settled(world).await
        })
        .await;
    }
    denied.second("cid", CIDS).await.unwrap();
    unlocked.unlock("cid", CIDS).await.unwrap();
    eventually("it is unlocked, and all that is known", || async {
        !unlocked.dossier().await.is_locked() && is_settled(&unlocked).await
    })
    .await;
    assert!(denied.dossier().await.is_locked());

    for reader in READERS {
        let (left, right) = (reads(&denied, reader).await, reads(&unlocked, reader).await);
        assert_same(&left, &right);
    }
    let (left, right) = (tries(&denied).await, tries(&unlocked).await);
    assert_same(&left, &right);
    let after = reads(&denied, "dan").await;
    assert_same(&after, &reads(&unlocked, "dan").await);
    let ended = |what: &str| {
        left.iter()
            .find(|(name, _)| *name == what)
            .unwrap()
            .1
            .clone()
    };
    assert!(
        ended("undo").contains("wants your own review first"),
        "{}",
        ended("undo")
    );
    assert!(ended("check").contains("allowed: false"));
    // What is not kept from them is told.
    assert!(after[1].1.contains("We look at it.") && after[1].1.contains("our own prover"));

    // Theirs is in: they see all, and the one account is free, the other too, since the two differ.
    for world in [&denied, &unlocked] {
        world.unlock("dan", DANS).await.unwrap();
        let all = reads(world, "dan").await;
        assert!(all[1].1.contains("fit no workload"), "{}", all[1].1);
        world.audit("dan").await;
    }
}
