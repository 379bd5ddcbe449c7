//! A provider to show and test Davy against: its `AccountDirectory`, served over gRPC from the accounts of a scenario.
//!
//! The accounts are lines of a scenario (`docs/scenario.md`): its `account` and `droplet_created` events, nothing else. All of it has
//! happened when the server starts: every time is moved by as much as puts the last line there, so that a new account stays a new one.
//! Every answer's facts are as of the time of the question.
//!
//! [`ACCOUNTS`] are four: a new one that pays nothing, one of ten years, one with a burst of new droplets on credit (as in the incident that
//! Davy exists for), and one that may use all the CPU it likes.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use davy_decision::{
    account::{AccountId, DropletId, Facts},
    time::{Span, Time},
};
use davy_detector::replay;
use davy_detector::replay::event::Event;
use davy_detector::replay::provider::Provider;
use davy_proto::accounts::on_wire;
use davy_proto::v1;
use davy_proto::v1::account_directory_server::{AccountDirectory, AccountDirectoryServer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// The accounts of the demo, and of the tests in virtual machines.
pub const ACCOUNTS: &str = include_str!("../accounts.jsonl");

/// The policy they are judged by: that which ships, with a duration shortened.
pub const POLICY: &str = include_str!("../policy/demo.cedar");

/// Its settings.
pub const SETTINGS: &str = include_str!("../policy/settings.toml");

/// The accounts, and how they are asked for.
#[derive(Clone)]
pub struct Accounts {
    provider: Arc<Provider>,
    later: Span,
}

impl Accounts {
    /// Reads a scenario's accounts; `name` is for errors.
    ///
    /// # Errors
    /// If a line cannot be, with its number, or is of another event.
    pub fn read(name: &str, text: &str) -> Result<Self> {
        let mut provider = Provider::default();
        let mut last = Time::default();
        for (number, timed) in replay::parse(name, text.as_bytes())? {
            last = timed.at;
            let taken = match &timed.event {
                Event::Account { account, facts } => provider.learn(account, facts, timed.at),
                Event::DropletCreated {
                    account,
                    droplets,
                    vcpus,
                } => provider.create(account, droplets, *vcpus, timed.at),
                _ => bail!("{name}: line {number}: only `account` and `droplet_created` are taken"),
            };
            if let Err(why) = taken {
                bail!("{name}: line {number}: {why}");
            }
        }
        Ok(Self {
            provider: Arc::new(provider),
            later: now() - last,
        })
    }

    /// All facts about an account, as of now; none if there is no such account.
    fn facts(&self, account: &AccountId) -> Option<Facts> {
        let now = now();
        let mut facts = self.provider.facts(account, now).ok()?;
        let moved = |time: &mut Time| *time = time.after(self.later);
        let Facts {
            created_at,
            first_payment_at,
            first_droplet_at,
            payments,
            run_rate: _,
            credit: _,
            high_cpu_allowed: _,
            vouched: _,
            links: _,
            droplets,
        } = &mut facts;
        created_at
            .iter_mut()
            .for_each(|known| moved(&mut known.value));
        for known in [first_payment_at, first_droplet_at] {
            let time = known.as_mut().and_then(|known| known.value.as_mut());
            time.into_iter().for_each(moved);
        }
        let invoice = payments
            .as_mut()
            .and_then(|known| known.value.last_invoice.as_mut());
        invoice
            .into_iter()
            .for_each(|invoice| moved(&mut invoice.due));
        let droplets = droplets
            .iter_mut()
            .flat_map(|known| known.value.values_mut());
        droplets.for_each(|droplet| moved(&mut droplet.created_at));
        Some(facts)
    }

    /// Answers until the program ends.
    ///
    /// # Errors
    /// If the server fails.
    pub async fn serve(self, listener: TcpListener) -> Result<()> {
        tonic::transport::Server::builder()
            .add_service(AccountDirectoryServer::new(self))
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
            .context("the account directory's server failed")
    }
}

fn now() -> Time {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Time::from_unix_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[tonic::async_trait]
impl AccountDirectory for Accounts {
    async fn look_up_account(
        &self,
        request: Request<v1::LookUpAccountRequest>,
    ) -> Result<Response<v1::LookUpAccountResponse>, Status> {
        let account = AccountId::try_from(request.into_inner().account)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let facts = self.facts(&account);
        let facts = facts.ok_or_else(|| Status::not_found(format!("no account {account}")))?;
        Ok(Response::new(v1::LookUpAccountResponse {
            account: account.to_string(),
            facts: Some(on_wire(&facts)),
        }))
    }

    async fn find_droplet(
        &self,
        request: Request<v1::FindDropletRequest>,
    ) -> Result<Response<v1::FindDropletResponse>, Status> {
        let droplet = DropletId::try_from(request.into_inner().droplet)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        match self.provider.owner(&droplet) {
            Some(account) => Ok(Response::new(v1::FindDropletResponse {
                account: account.to_string(),
            })),
            None => Err(Status::not_found(format!("no account has {droplet}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"at":"2026-03-01T08:00:00Z","event":"account","account":"a","created_at":"2026-03-01T08:00:00Z","run_rate":500}
{"at":"2026-03-01T09:00:00Z","event":"droplet_created","account":"a","droplets":["1"]}
"#;

    #[tokio::test]
    async fn an_account_is_answered_as_of_now_and_another_is_not_found() {
        let accounts = Accounts::read("accounts", TEXT).unwrap();
        let ask = |account: &str| {
            accounts.look_up_account(Request::new(v1::LookUpAccountRequest {
                account: account.to_owned(),
            }))
        };
        let before = now().unix_ms();
        let facts = ask("a").await.unwrap().into_inner().facts.unwrap();
        let inventory = facts.droplets.unwrap();
        assert!(inventory.as_of_unix_ms >= before);
        assert_eq!(inventory.droplets.len(), 1);
        assert!(facts.vouched.is_some(), "known: nobody vouches");
        // The last line is of now, and the account an hour older.
        let made = inventory.droplets[0].created_unix_ms.unwrap();
        assert!(made <= before && before - made < 60_000, "{made} {before}");
        let created = facts.created_at.unwrap().unix_ms.unwrap();
        assert_eq!(made - created, 3_600_000);
        let error = ask("b").await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::NotFound);
    }

    #[test]
    fn the_four_accounts_can_be_read() {
        let accounts = Accounts::read("accounts.jsonl", ACCOUNTS).unwrap();
        for (droplet, owner) in [("101", "newcomer"), ("119", "pipeline")] {
            let owner = AccountId::try_from(owner).unwrap();
            let droplet = DropletId::try_from(droplet).unwrap();
            assert_eq!(accounts.provider.owner(&droplet), Some(&owner));
            let facts = accounts.facts(&owner).unwrap();
            assert!(facts.check(now()).is_ok());
        }
    }

    #[test]
    fn the_policy_is_that_which_ships_but_for_one_duration() {
        let rules = |text: &'static str| text.split_once('\n').unwrap().1;
        let shipped = rules(davy_decision::policy::DEFAULT);
        let long = "mining_seconds >= 600";
        assert!(shipped.contains(long));
        assert_eq!(shipped.replace(long, "mining_seconds >= 10"), rules(POLICY));
    }

    #[test]
    fn another_event_is_refused_with_its_line() {
        let text = format!(
            "{TEXT}{}\n",
            r#"{"at":"2026-03-01T09:00:00Z","event":"clock"}"#
        );
        let error = Accounts::read("accounts", &text).err().unwrap();
        assert!(error.to_string().contains("line 3"), "{error}");
    }
}
