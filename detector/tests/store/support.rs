//! What the promises are made of: accounts, changes, windows.

use std::collections::BTreeMap;
use std::sync::Arc;

use davy_decision::{
    account::{AccountId, Droplet, DropletId, Facts, Known},
    audit::{Actor, Chain, Entry},
    case::{Finding, Opinion, Person},
    decide::decide,
    dossier::{Dossier, Errand, Event, Refusal},
    episode::{Classes, Sighting},
    fleet::Fleet,
    policy::{Policies, Step},
    settings::Settings,
    text::Reason,
    time::{Span, Time},
};
use davy_detector::evidence::{Judged, Planned};
use davy_detector::store::ledger::{Change, Changed, Decision, LedgerError, Reach};
use davy_detector::store::{Memory, Record};
use davy_evidence::Level;
use davy_proto::v1;

pub(crate) const T0: Time = Time::from_unix_ms(1_559_148_180_000);
pub(crate) const SECOND_NS: u64 = 1_000_000_000;
/// The hosts' clock, ns since the Unix epoch.
pub(crate) const NOW_NS: u64 = T0.unix_ms() * 1_000_000;
pub(crate) const INSTANCE: &str = "11111111-1111-4111-8111-111111111111";

pub(crate) fn account(name: &str) -> AccountId {
    name.try_into().unwrap()
}

pub(crate) fn droplet(name: &str) -> DropletId {
    name.try_into().unwrap()
}

pub(crate) fn person(name: &str) -> Actor {
    Actor::Person(name.to_owned())
}

pub(crate) fn minute(n: u64) -> Time {
    T0.after(Span::minutes(n))
}

/// A change that brings nothing but what it does to the records.
pub(crate) fn change(change: impl Fn(&mut Dossier, &mut Fleet) + Send + Sync + 'static) -> Change {
    Arc::new(move |dossier, fleet| {
        change(dossier, fleet);
        Ok(Changed::default())
    })
}

/// A change that brings events.
pub(crate) fn events(
    change: impl Fn(&mut Dossier) -> Result<Vec<Event>, Refusal> + Send + Sync + 'static,
) -> Change {
    Arc::new(move |dossier, _| {
        Ok(Changed {
            events: change(dossier)?,
            ..Changed::default()
        })
    })
}

/// One more letter, and one more entry of the log.
pub(crate) fn count_one() -> Change {
    events(|dossier| {
        dossier.letters_written += 1;
        Ok(vec![Event::FactsChanged])
    })
}

/// The customer says something: that opens a case.
pub(crate) fn speak(key: &str, at: Time) -> Change {
    let key = key.to_owned();
    events(move |dossier| dossier.hear(&key, "mail", "this is our render farm", at))
}

pub(crate) fn refused() -> Refusal {
    Refusal::Message
}

pub(crate) async fn make(
    memory: &Arc<dyn Memory>,
    name: &str,
    reach: Reach,
    change: Change,
) -> Result<Changed, LedgerError> {
    let actor = person("ann");
    memory.change(account(name), reach, actor, T0, change).await
}

pub(crate) async fn record_of(memory: &Arc<dyn Memory>, name: &str) -> Option<Dossier> {
    memory.dossier(account(name)).await.unwrap()
}

/// An account's inventory.
pub(crate) fn inventory(names: &[&str]) -> Facts {
    let value: BTreeMap<_, _> = (names.iter())
        .map(|name| {
            let created_at = T0.before(Span::days(1));
            (
                droplet(name),
                Droplet {
                    created_at,
                    vcpus: 2,
                },
            )
        })
        .collect();
    Facts {
        droplets: Some(Known { value, as_of: T0 }),
        ..Facts::default()
    }
}

/// Takes an inventory, whatever was known before.
pub(crate) fn owns(names: &[&str]) -> Change {
    let facts = inventory(names);
    change(move |dossier, _| dossier.facts.droplets = facts.droplets.clone())
}

pub(crate) fn mining(droplet_name: &str) -> Sighting {
    Sighting {
        droplet: droplet(droplet_name),
        host: "host-1".to_owned(),
        from: T0,
        to: minute(20),
        level: Level::Mining,
        classes: Classes {
            fp_rounding: true,
            register_randomness: true,
            pmu: false,
        },
        cpu_percent: 200,
        neighbours_wait_percent: None,
        reasons: vec!["four modes: 32/23/22/23 %".to_owned()],
    }
}

/// A decision by the shipped policies, on a droplet that mined.
pub(crate) fn decided() -> Change {
    let (policies, settings) = (Policies::shipped().unwrap(), Settings::default());
    Arc::new(move |dossier, fleet| {
        let mut events = dossier.observe(mining("d1"), &settings);
        let at = minute(20);
        let Some(input) = dossier.input(fleet, policies.digest(), &settings, at) else {
            return Err(refused());
        };
        let plan = decide(&policies, &input);
        events.extend(dossier.apply(&plan, &settings, at));
        let number = dossier.decisions;
        Ok(Changed {
            events,
            decision: Some(Decision {
                number,
                input,
                plan,
            }),
            due: Some(minute(30)),
        })
    })
}

/// A denial, by one of two people.
pub(crate) fn denies(by: &str, reason: &str) -> Change {
    let opinion = Opinion {
        by: Person(by.to_owned()),
        at: minute(30),
        finding: Finding::Deny,
        measure: Some(Step::Lock),
        reason: Reason::try_from(reason.to_owned()).unwrap(),
    };
    events(move |dossier| dossier.opine(opinion.clone(), [], &Settings::default()))
}

/// Lets everything leave that is about to.
pub(crate) fn released() -> Change {
    Arc::new(|dossier, fleet| {
        let mut events = Vec::new();
        for errand in dossier.errands(fleet, minute(31)) {
            if let Errand::Release { parcel, .. } = errand {
                let (settings, policies) = (Settings::default(), Policies::shipped().unwrap());
                let known = (&mut *fleet, &policies);
                events.extend(dossier.release(&parcel, None, known, &settings, minute(31))?);
            }
        }
        Ok(Changed {
            events,
            ..Changed::default()
        })
    })
}

/// The whole log.
pub(crate) async fn log(memory: &Arc<dyn Memory>) -> Vec<Entry> {
    memory.audit(None, 0, 1_000_000).await.unwrap()
}

/// How many entries the log has, all of them as they were written.
pub(crate) async fn followed(memory: &Arc<dyn Memory>) -> u64 {
    let mut chain = Chain::default();
    for entry in log(memory).await {
        chain.follow(&entry).unwrap();
    }
    chain.entries
}

pub(crate) fn hello(host: &str, instance: &str) -> v1::Hello {
    v1::Hello {
        host: host.to_owned(),
        instance: instance.to_owned(),
        agent_version: "0.1.0".to_owned(),
        kernel_release: "6.12.0".to_owned(),
        started_unix_ns: 1,
    }
}

pub(crate) fn tenant(key: &str, level: Level) -> Judged {
    Judged {
        window: v1::TenantWindow {
            key: key.to_owned(),
            kind: v1::TenantKind::Droplet.into(),
            name: format!("name of {key}"),
            droplet_id: format!("id of {key}"),
            vcpus: 2,
            evidence: Some((&davy_evidence::TenantEvidence::default()).into()),
            ..v1::TenantWindow::default()
        },
        level,
        planned: Planned::CloserLook,
        agent_agrees: true,
    }
}

/// A window of `host`, 10 s long, that ended `end_s` after [`NOW_NS`], with quiet tenants.
pub(crate) fn window(host: &str, sequence: u64, end_s: u64, keys: &[&str]) -> Record {
    let end_unix_ns = NOW_NS + end_s * SECOND_NS;
    Record {
        host: host.to_owned(),
        instance: INSTANCE.to_owned(),
        sequence,
        start_unix_ns: end_unix_ns - 10 * SECOND_NS,
        end_unix_ns,
        lost_windows: 0,
        received_unix_ns: end_unix_ns + 5,
        sensors: vec![v1::SensorStatus {
            sensor: "fp_rounding".to_owned(),
            state: v1::SensorState::Live.into(),
            reason: String::new(),
        }],
        tenants: keys.iter().map(|key| tenant(key, Level::Quiet)).collect(),
    }
}
