//! Policies that are changed while the detector runs: what does not hold is counted and never in force, what holds is, for what is
//! decided from then on.
//!
//! They are looked at every few seconds, so each bad one has a detector of its own: all wait at the same time.

use std::collections::BTreeMap;
use std::path::Path;

use davy_decision::audit::Actor;
use davy_decision::dossier::Dossier;
use davy_decision::episode::{Classes, Sighting};
use davy_decision::policy::{DEFAULT, Policies, Step};
use davy_decision::settings::Settings;
use davy_decision::time::{Span, Time};
use davy_detector::store::ledger::Decision;
use davy_evidence::Level;
use tokio::task::JoinSet;

use crate::support::*;

const FAILURES: &str = "davy_detector_policy_reload_failures_total";

/// What does not hold, each beside a policy that does.
const BAD: [(&str, &str); 4] = [
    (
        "syntax",
        r#"@id("ours") permit (principal, action, resource"#,
    ),
    (
        "schema",
        r#"@id("ours") permit (principal, action == Davy::Action::"throttle", resource) when { context.load > 90 };"#,
    ),
    (
        "a safety's id",
        r#"@id("safety:kill_switch") permit (principal, action == Davy::Action::"throttle", resource);"#,
    ),
    (
        "a template",
        r#"@id("ours") permit (principal == ?principal, action == Davy::Action::"throttle", resource);"#,
    ),
];

/// Writes a file in one step: what is read is never half of it.
fn write(dir: &Path, name: &str, text: &str) {
    let hidden = dir.join(format!(".{name}"));
    std::fs::write(&hidden, text).unwrap();
    std::fs::rename(hidden, dir.join(name)).unwrap();
}

fn digest_of(files: &[(&str, &str)]) -> String {
    let files = files.iter();
    let files: BTreeMap<_, _> = files
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
        .collect();
    Policies::new(&files).unwrap().digest().to_owned()
}

/// The first decision on an account that was not known before, whose droplet has mined for 20 minutes.
async fn decision_on(detector: &Detector, name: &str) -> Decision {
    let now = Time::from_unix_ns(now_ns());
    let sighting = Sighting {
        droplet: format!("d-{name}").as_str().try_into().unwrap(),
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
        neighbours_wait_percent: None,
        reasons: vec!["computes in all four rounding modes".to_owned()],
    };
    let desk = &detector.server.desk;
    let observe = move |dossier: &mut Dossier, settings: &Settings, _| {
        Ok(dossier.observe(sighting.clone(), settings))
    };
    desk.act(name.try_into().unwrap(), Actor::Automation, observe)
        .await
        .unwrap();
    let first = async || {
        let decisions = desk
            .ledger
            .decisions(Some(name.try_into().unwrap()), None, 1);
        decisions.await.unwrap().pop()
    };
    eventually("it is decided on", || async { first().await.is_some() }).await;
    first().await.unwrap()
}

/// One detector: a bad policy comes, and then a good one.
async fn takes_the_good_one_alone(what: &str, bad: &str) {
    let policies = tempfile::tempdir().unwrap();
    let shipped = ("default.cedar", DEFAULT);
    write(policies.path(), shipped.0, shipped.1);
    let dir = tempfile::tempdir().unwrap();
    let detector = Detector::start_in(dir, |config| {
        config.policy_dir = Some(policies.path().to_owned());
    })
    .await;
    let before = digest_of(&[shipped]);
    let decision = decision_on(&detector, "at-the-start").await;
    assert_eq!(decision.plan.policy, before);
    assert!(decision.plan.steps.contains(&Step::OpenCase));
    assert_eq!(detector.metric(FAILURES).await, "0", "{what}");

    write(policies.path(), "ours.cedar", bad);
    eventually("it is counted that it does not hold", || async {
        detector.metric(FAILURES).await != "0"
    })
    .await;
    let decision = decision_on(&detector, "while-it-is-bad").await;
    assert_eq!(decision.plan.policy, before, "{what}");
    let kept = detector.server.desk.ledger.policies(before.clone()).await;
    let names: Vec<_> = kept.unwrap().unwrap().into_keys().collect();
    assert_eq!(names, ["default.cedar"], "{what}");

    // No case by the rule of 20 minutes any more.
    let ours = (
        "ours.cedar",
        r#"@id("ours:no-case") forbid (principal, action == Davy::Action::"open_case", resource);"#,
    );
    write(policies.path(), ours.0, ours.1);
    let after = digest_of(&[shipped, ours]);
    let ledger = &detector.server.desk.ledger;
    eventually("the text of the good one is kept", || async {
        ledger.policies(after.clone()).await.unwrap().is_some()
    })
    .await;
    // In force right after it is kept.
    let number = std::sync::atomic::AtomicU64::new(0);
    eventually("the good one is in force", || async {
        let number = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let decision = decision_on(&detector, &format!("after-{number}")).await;
        let cases = decision.plan.steps.contains(&Step::OpenCase);
        assert_eq!(cases, decision.plan.policy == before, "{what}");
        decision.plan.policy == after
    })
    .await;
    detector.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_policy_that_does_not_hold_is_never_in_force_and_one_that_does_is() {
    let mut all = JoinSet::new();
    for (what, bad) in BAD {
        all.spawn(takes_the_good_one_alone(what, bad));
    }
    all.join_all().await;
}
