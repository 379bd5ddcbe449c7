//! What is decided about accounts, on real guests: of a new account that pays nothing, one of ten years and one that may use all the
//! CPU it likes, each with a RandomX miner, and one with a burst of honest droplets on credit (crate `tests/provider`).
//!
//! The first is told and throttled, the two others get a person and nothing else, and nothing at all happens to the fourth. The control
//! plane is a dry run. The rules are those that ship, with durations shortened.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use davy_proto::v1::cases_client::CasesClient;
use davy_proto::v1::safety_service_client::SafetyServiceClient;
use davy_proto::v1::{self, VerdictLevel};
use davy_test_provider::{ACCOUNTS, Accounts, POLICY, SETTINGS};
use tokio::net::TcpListener;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use crate::Arguments;
use crate::checks::DETECTOR;
use crate::guest::{Guest, Plan};
use crate::inventory::Inventory;
use crate::report::{Report, State};

/// Where the account directory is served.
const DIRECTORY: &str = "127.0.0.1:7800";
/// Who asks for cases, and the digest of that token.
const TOKEN: &str = "davy-vm-checks";
const TOKEN_SHA256: &str = "0524dafa036b13be8beb8dc7c7ea1507d8043127eef11fd7824067d70c0f4543";
/// The hypervisor's kernels on which decisions are checked: they do not depend on it, and each guest takes its time.
const KERNELS: &str = "6.12.";
/// Patience for a load, a verdict and a decision each.
const PATIENCE: Duration = Duration::from_secs(150);
/// How often is looked at what becomes of a miner.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A miner of an account of ten years.
const VETERAN: Plan = Plan {
    name: "droplet-104",
    vcpus: 1,
    memory_mib: 512,
    load: "davy-randomx --threads 1",
};
/// A miner of an account that carries Allow High CPU.
const PERMITTED: Plan = Plan {
    name: "droplet-105",
    ..VETERAN
};

/// Whether decisions are checked on this kernel.
pub(crate) fn checked_here() -> Result<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease");
    Ok(release
        .context("reading the kernel's release")?
        .starts_with(KERNELS))
}

/// Serves the account directory until the program ends.
pub(crate) async fn serve() -> Result<()> {
    let accounts = Accounts::read("accounts", ACCOUNTS)?;
    let listener = TcpListener::bind(DIRECTORY)
        .await
        .with_context(|| format!("listening on {DIRECTORY}"))?;
    tokio::spawn(async move {
        if let Err(error) = accounts.serve(listener).await {
            println!("davy-progress: the account directory ended: {error:#}");
        }
    });
    Ok(())
}

/// Writes the detector's configuration and its policy; the configuration's path.
pub(crate) fn detector_config() -> Result<&'static str> {
    let policy = "/tmp/davy-policy";
    fs::create_dir_all(policy).with_context(|| format!("making {policy}"))?;
    for (name, text) in [("demo.cedar", POLICY), ("settings.toml", SETTINGS)] {
        let path = format!("{policy}/{name}");
        fs::write(&path, text).with_context(|| format!("writing {path}"))?;
    }
    let path = "/tmp/davy-detector.toml";
    let text = format!(
        "policy_dir = \"{policy}\"\n\n[directory]\nurl = \"http://{DIRECTORY}\"\n\n\
         [[tokens]]\nidentity = \"checks\"\nkind = \"person\"\nsha256 = \"{TOKEN_SHA256}\"\n"
    );
    fs::write(path, text).with_context(|| format!("writing {path}"))?;
    Ok(path)
}

/// What people and other automation are told.
struct People {
    cases: CasesClient<Channel>,
    safeties: SafetyServiceClient<Channel>,
}

fn with_token<T>(message: T) -> Result<Request<T>> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(format!("Bearer {TOKEN}"))?;
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}

impl People {
    fn new() -> Self {
        let channel = Endpoint::from_static(DETECTOR)
            .timeout(Duration::from_secs(15))
            .connect_lazy();
        Self {
            cases: CasesClient::new(channel.clone()),
            safeties: SafetyServiceClient::new(channel),
        }
    }

    /// An account's last case; none if it has none.
    async fn case(&mut self, account: &str) -> Result<Option<v1::GetCaseResponse>> {
        let case = Some(v1::CaseName {
            account: account.to_owned(),
            number: 0,
        });
        let request = with_token(v1::GetCaseRequest { case })?;
        match self.cases.get_case(request).await {
            Ok(case) => Ok(Some(case.into_inner())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status).with_context(|| format!("GetCase of {account}")),
        }
    }

    /// Safeties in force should a droplet be throttled.
    async fn safeties(&mut self, account: &str, droplet: &str) -> Result<Vec<String>> {
        let request = with_token(v1::CheckRequest {
            account: account.to_owned(),
            action: "throttle".to_owned(),
            droplets: vec![droplet.to_owned()],
        })?;
        let answer = self.safeties.check(request).await;
        let answer = answer.with_context(|| format!("Check of {account}"))?;
        let looked = answer.into_inner().safeties.into_iter();
        let in_force = looked.filter(|safety| safety.in_force);
        Ok(in_force.map(|safety| safety.name).collect())
    }
}

fn asked(case: &v1::GetCaseResponse) -> Vec<String> {
    let words = |action: &v1::ActionShown| {
        let v1::ActionShown {
            step,
            state,
            droplets,
            ..
        } = action;
        format!("{step} {} ({state})", droplets.join(","))
    };
    case.actions.iter().map(words).collect()
}

/// Checks the accounts whose guests run now: the new one's miner, and the honest one of the burst.
pub(crate) async fn while_they_run(inventory: &mut Inventory, report: &mut Report) {
    let mut people = People::new();
    new_one_is_throttled(&mut people, report).await;
    honest_one_is_left_alone(&mut people, inventory, report).await;
}

/// Checks the accounts whose miners a safety covers, and that the control plane was not asked for anything else by then.
pub(crate) async fn of_other_miners(
    arguments: &Arguments,
    inventory: &mut Inventory,
    report: &mut Report,
) -> Result<()> {
    let mut people = People::new();
    let others = [
        (VETERAN, "veteran", "long_standing"),
        (PERMITTED, "permitted", "high_cpu_allowed"),
    ];
    let (veteran, permitted) = tokio::join!(
        Guest::boot(VETERAN, arguments, report),
        Guest::boot(PERMITTED, arguments, report)
    );
    let mut guests = [veteran?, permitted?];
    for guest in &mut guests {
        guest.go()?;
    }
    for (guest, (plan, account, safety)) in guests.iter_mut().zip(others) {
        load_runs(guest, inventory, report).await;
        spared(plan, account, safety, &mut people, inventory, report).await;
    }
    control_plane_was_asked_twice(arguments, report);
    Ok(())
}

async fn load_runs(guest: &mut Guest, inventory: &mut Inventory, report: &mut Report) {
    let name = guest.plan.name;
    let ready = report
        .until(&format!("load of {name} is ready"), PATIENCE, async || {
            inventory.keep_up().await;
            guest.line_seen(|line| line.starts_with("ready"))
        })
        .await;
    report.record(&format!("load-runs-in-{name}"), ready);
}

async fn new_one_is_throttled(people: &mut People, report: &mut Report) {
    let throttled = ["notify 101 (done)", "throttle 101 (done)"];
    let result = report
        .until("the new account is throttled", PATIENCE, async || {
            let case = match people.case("newcomer").await {
                Ok(Some(case)) => case,
                Ok(None) => return State::NotYet("no case".to_owned()),
                Err(error) => return State::NotYet(format!("{error:#}")),
            };
            let asked = asked(&case);
            let detail = format!("level {:?}, asked {asked:?}", case.level);
            let told = (case.actions.iter())
                .all(|action| action.statement.contains("mining:throttle-the-new"));
            if asked.len() > throttled.len() || !told {
                State::Wrong(detail)
            } else if asked == throttled {
                State::Reached(detail)
            } else {
                State::NotYet(detail)
            }
        })
        .await;
    report.record("account-new-and-unpaid-is-told-and-throttled", result);
}

/// A miner whom a safety covers: a case for a person, and nothing is asked of the control plane.
async fn spared(
    plan: Plan,
    account: &str,
    safety: &str,
    people: &mut People,
    inventory: &mut Inventory,
    report: &mut Report,
) {
    let name = plan.name;
    let result = report
        .until(&format!("the verdict on {name}"), PATIENCE, async || {
            // What is asked of the detector, the miners lack: they share the emulated CPU with it.
            tokio::time::sleep(LOOK_EVERY).await;
            if let Err(error) = inventory.look().await {
                return State::NotYet(format!("{error:#}"));
            }
            match inventory.verdict(name) {
                Some((VerdictLevel::Mining, reasons)) => State::Reached(reasons),
                other => State::NotYet(format!("{other:?}")),
            }
        })
        .await;
    report.record(&format!("verdict-on-{name}"), result);

    let droplet = name.trim_start_matches("droplet-");
    let result = report
        .until(
            &format!("what becomes of {account}"),
            PATIENCE,
            async || {
                tokio::time::sleep(LOOK_EVERY).await;
                let found = (
                    people.case(account).await,
                    people.safeties(account, droplet).await,
                );
                let (case, safeties) = match found {
                    (Ok(case), Ok(safeties)) => (case, safeties),
                    (Err(error), _) | (_, Err(error)) => {
                        return State::NotYet(format!("{error:#}"));
                    }
                };
                let asked = case.as_ref().map(asked).unwrap_or_default();
                let detail = format!(
                    "case {:?}, in force {safeties:?}, asked {asked:?}",
                    case.as_ref().map(|case| case.level.as_deref())
                );
                if !asked.is_empty() || !safeties.iter().any(|held| held == safety) {
                    State::Wrong(detail)
                } else if case.is_some() {
                    State::Reached(detail)
                } else {
                    State::NotYet(detail)
                }
            },
        )
        .await;
    report.record(&format!("account-{account}-has-a-person"), result);
}

/// Busy all the time, on credit, with a burst of droplets: no evidence, so no case.
async fn honest_one_is_left_alone(
    people: &mut People,
    inventory: &mut Inventory,
    report: &mut Report,
) {
    let verdict = inventory.verdict("droplet-103");
    let result = match people.case("pipeline").await {
        Ok(None) if matches!(verdict, Some((VerdictLevel::Quiet, _))) => {
            Ok("quiet, and no case".to_owned())
        }
        Ok(case) => Err(format!(
            "{verdict:?}, case {:?}",
            case.map(|case| case.decisions)
        )),
        Err(error) => Err(format!("{error:#}")),
    };
    report.record("account-with-honest-burst-is-left-alone", result);
}

/// What the dry run's log has.
fn control_plane_was_asked_twice(arguments: &Arguments, report: &mut Report) {
    let log = fs::read_to_string(arguments.logs.join("detector.log")).unwrap_or_default();
    let asked: Vec<_> = log
        .lines()
        .filter(|line| line.contains("would have asked the control plane"))
        .collect();
    let keys = ["newcomer/1/notify/0", "newcomer/1/throttle/0"];
    let right =
        asked.len() == keys.len() && asked.iter().zip(keys).all(|(line, key)| line.contains(key));
    report.record(
        "control-plane-was-asked-for-nothing-else",
        if right {
            Ok(keys.join(", "))
        } else {
            Err(format!("{asked:?}"))
        },
    );
}
