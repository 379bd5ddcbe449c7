//! From an agent's windows to what the control plane is asked, over the real interfaces, with the rules' durations shortened.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use davy_decision::account::{AccountId, Cents, Droplet, DropletId, Facts, Known, Payments};
use davy_decision::action::Outcome;
use davy_decision::audit::Chain;
use davy_decision::order::{Order, Verb};
use davy_decision::policy::{DEFAULT, Step};
use davy_decision::time::{Span, Time};
use davy_detector::Server;
use davy_detector::account::directory::{Directory, DirectoryError};
use davy_detector::action::driver::{Answer, Driver};
use davy_detector::server::Provider;

use super::support::{
    Agent, Detector, INSTANCE, concluded, config, eventually, hello, now_ns, tenant, window,
};

/// A provider with two accounts: a new one, and one of many years.
#[derive(Default)]
struct Accounts {
    asked: Mutex<Vec<AccountId>>,
}

fn facts(droplet: &str, engaged: Span) -> Facts {
    let now = Time::from_unix_ns(now_ns());
    let since = now.before(engaged);
    fn known<T>(value: T, as_of: Time) -> Option<Known<T>> {
        Some(Known { value, as_of })
    }
    let droplets = BTreeMap::from([(
        DropletId::try_from(droplet).unwrap(),
        Droplet {
            created_at: since,
            vcpus: 1,
        },
    )]);
    Facts {
        created_at: known(since, now),
        first_payment_at: known(None, now),
        first_droplet_at: known(Some(since), now),
        payments: known(Payments::default(), now),
        run_rate: known(Cents(5_000), now),
        credit: known(None, now),
        high_cpu_allowed: known(false, now),
        vouched: known(None, now),
        links: known(Vec::new(), now),
        droplets: known(droplets, now),
    }
}

#[tonic::async_trait]
impl Directory for Accounts {
    async fn facts(&self, account: &AccountId) -> Result<Facts, DirectoryError> {
        self.asked.lock().unwrap().push(account.clone());
        match account.as_str() {
            "new" => Ok(facts("d-new", Span::days(1))),
            "old" => Ok(facts("d-old", Span::days(3_650))),
            _ => Err(DirectoryError::Unknown {
                account: account.clone(),
            }),
        }
    }

    async fn owner(&self, droplet: &DropletId) -> Result<Option<AccountId>, DirectoryError> {
        Ok(match droplet.as_str() {
            "d-new" => Some("new".try_into().unwrap()),
            "d-old" => Some("old".try_into().unwrap()),
            _ => None,
        })
    }
}

/// A control plane that does what it is asked, and remembers it.
#[derive(Default)]
struct Recorder {
    orders: Mutex<Vec<Order>>,
}

#[tonic::async_trait]
impl Driver for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }

    async fn perform(&self, order: &Order) -> Answer {
        self.orders.lock().unwrap().push(order.clone());
        Answer {
            outcome: Outcome::Done,
            detail: String::new(),
        }
    }

    async fn query(&self, _: &str) -> Answer {
        Answer::doubtful("not asked in this test")
    }
}

/// The policy that ships, with 600 s of mining shortened to 1 s.
fn shorten(dir: &std::path::Path) {
    let text = DEFAULT.replace("mining_seconds >= 600", "mining_seconds >= 1");
    assert_ne!(text, DEFAULT);
    std::fs::write(dir.join("ours.cedar"), text).unwrap();
    // A fleet of three droplets, of which one may be acted on.
    std::fs::write(dir.join("settings.toml"), "budget_fleet_per_mille = 500\n").unwrap();
}

/// A miner by both classes of evidence.
fn mining() -> davy_evidence::TenantEvidence {
    let mut evidence = concluded();
    let found = &mut evidence.register_randomness;
    found.state = davy_evidence::SensorState::Live;
    (found.samples, found.random) = (100, 99);
    (found.directed_samples, found.directed_random) = (70, 70);
    (found.any_llr, found.any_test_samples, found.any_concluded) = (40.0, 100, true);
    (found.directed_llr, found.directed_test_samples) = (40.0, 70);
    found.directed_concluded = true;
    evidence
}

#[tokio::test]
async fn a_new_miner_is_throttled_with_a_case_and_an_old_one_gets_a_person() {
    let (accounts, recorder) = (Arc::new(Accounts::default()), Arc::new(Recorder::default()));
    let (dir, policy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    shorten(policy.path());
    let mut config = config(dir.path());
    config.policy_dir = Some(policy.path().to_owned());
    let provider = Provider {
        directory: Arc::clone(&accounts) as _,
        driver: Arc::clone(&recorder) as _,
    };
    let server = Server::start_with(config, provider).await.unwrap();
    let detector = Detector { server, dir };
    let ledger = Arc::clone(&detector.server.desk.ledger);
    let (mut agent, _) = Agent::connect(&detector, hello(INSTANCE, now_ns())).await;
    let droplet = |key: &str, id: &str| {
        let mut tenant = tenant(key, &mining());
        tenant.droplet_id = id.to_owned();
        tenant
    };
    // The fleet is counted every half minute: seen before it is counted, so that there is a share to act on.
    for sequence in 1..=4 {
        let mut sent = window(sequence, 40 - 10 * sequence);
        sent.tenants.push(droplet("qemu:new", "d-new"));
        sent.tenants.push(droplet("qemu:old", "d-old"));
        sent.tenants.push(droplet("qemu:nobody", "d-nobody"));
        agent.acknowledged(sent).await;
        // Counted once the first window is stored.
        if sequence == 1 {
            let change = |fleet: &mut davy_decision::fleet::Fleet| {
                fleet.droplets = 4;
                Vec::new()
            };
            let actor = davy_decision::audit::Actor::Automation;
            (detector.server.desk)
                .change_fleet(actor, Arc::new(change))
                .await
                .unwrap();
        }
    }
    let verbs = || {
        let orders = recorder.orders.lock().unwrap();
        orders.iter().map(|order| order.verb).collect::<Vec<_>>()
    };
    eventually("the new account is throttled", || async {
        verbs().contains(&Verb::Throttle)
    })
    .await;
    assert_eq!(verbs(), [Verb::Notify, Verb::Throttle]);
    let orders = recorder.orders.lock().unwrap().clone();
    let throttle = &orders[1];
    assert_eq!(throttle.account.as_str(), "new");
    assert_eq!(throttle.key, "new/1/throttle/0");
    assert_eq!(throttle.droplets, ["d-new".try_into().unwrap()]);
    assert_eq!(throttle.case, "new/1");
    for word in [
        "mining:throttle-the-new",
        "automatically",
        "answer this message",
    ] {
        assert!(throttle.text.contains(word), "{word}: {}", throttle.text);
    }
    eventually("the old account has a case", || async {
        let cases = ledger.cases(false, 10).await.unwrap();
        cases
            .iter()
            .any(|held| held.case.id.account.as_str() == "old")
    })
    .await;
    let decisions = ledger
        .decisions(Some("old".try_into().unwrap()), None, 100)
        .await
        .unwrap();
    let last = &decisions.last().unwrap().plan;
    assert!(last.step <= Step::OpenCase, "{last:?}");
    assert!(
        last.safeties
            .iter()
            .any(|looked| looked.in_force && looked.safety.name() == "long_standing")
    );
    assert_eq!(
        detector.metric("davy_detector_unattributed_total").await,
        "4"
    );
    // What was written holds together.
    let mut chain = Chain::default();
    for entry in ledger.audit(None, 0, 10_000).await.unwrap() {
        chain.follow(&entry).unwrap();
    }
    assert!(chain.entries > 5);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(verbs().len(), 2, "nothing is asked twice");
    detector.server.shutdown().await;
}
