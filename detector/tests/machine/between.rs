//! What stands between an engine and the world: its records, the directory, the control plane. Where things happen that nobody awaits.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use davy_decision::{
    account::{AccountId, DropletId, Facts},
    action::Outcome,
    audit::{Actor, Entry},
    case::CaseId,
    dossier::{Dossier, Event},
    fleet::Fleet,
    order::Order,
    policy::Step,
    time::Time,
};
use davy_detector::account::directory::{Directory, DirectoryError};
use davy_detector::action::driver::{Answer, Driver};
use davy_detector::store::ledger::{
    Change, Changed, Decision, FleetChange, GivenReason, Ledger, LedgerError, Reach, StoredCase,
};
use davy_detector::store::{Memory, StoreError};

use crate::step::{Meanwhile, Takes};
use crate::world::{State, World};

/// The records, as the engine and people have them: what was committed is judged at once, and then something else may happen.
pub(crate) struct Records {
    pub(crate) store: Arc<dyn Memory>,
    pub(crate) world: Weak<World>,
}

impl Records {
    async fn committed(&self, account: &AccountId, changed: &Changed) {
        let Some(world) = self.world.upgrade() else {
            return;
        };
        if kept_back(changed) {
            world.kept_back(account);
        }
        for event in &changed.events {
            let Event::Released { parcel } = event else {
                continue;
            };
            let held = self.store.dossier(account.clone()).await.unwrap().unwrap();
            let order = held.order(parcel, &world.settings).unwrap();
            world.released(&order).await;
            let what = world.state().when_released.pop_front();
            world
                .meanwhile(account, what.unwrap_or(Meanwhile::Nothing))
                .await;
        }
    }
}

/// Whether nothing was planned where nothing stands, or what was planned did not leave.
fn kept_back(changed: &Changed) -> bool {
    let idle = |decision: &Decision| {
        let acts = |step: &Step| step.is_customer_facing();
        !decision.plan.steps.iter().any(acts) && !decision.input.taken.contains(&Step::Throttle)
    };
    let withheld = |event: &Event| matches!(event, Event::ActionWithheld { .. });
    changed.decision.as_ref().is_some_and(idle) || changed.events.iter().any(withheld)
}

#[tonic::async_trait]
impl Ledger for Records {
    async fn change(
        &self,
        account: AccountId,
        reach: Reach,
        actor: Actor,
        at: Time,
        change: Change,
    ) -> Result<Changed, LedgerError> {
        let name = account.clone();
        let changed = self.store.change(account, reach, actor, at, change).await?;
        self.committed(&name, &changed).await;
        Ok(changed)
    }

    async fn change_fleet(
        &self,
        actor: Actor,
        at: Time,
        change: FleetChange,
    ) -> Result<(), StoreError> {
        self.store.change_fleet(actor, at, change).await
    }

    async fn dossier(&self, account: AccountId) -> Result<Option<Dossier>, StoreError> {
        self.store.dossier(account).await
    }

    async fn fleet(&self) -> Result<Fleet, StoreError> {
        self.store.fleet().await
    }

    async fn due(&self, at: Time, rows_max: u64) -> Result<Vec<AccountId>, StoreError> {
        self.store.due(at, rows_max).await
    }

    async fn accounts(
        &self,
        after: Option<AccountId>,
        rows_max: u64,
    ) -> Result<Vec<AccountId>, StoreError> {
        self.store.accounts(after, rows_max).await
    }

    async fn owner(&self, droplet: DropletId) -> Result<Option<AccountId>, StoreError> {
        Ledger::owner(&*self.store, droplet).await
    }

    async fn cases(&self, closed: bool, rows_max: u64) -> Result<Vec<StoredCase>, StoreError> {
        self.store.cases(closed, rows_max).await
    }

    async fn case(&self, case: CaseId) -> Result<Option<StoredCase>, StoreError> {
        self.store.case(case).await
    }

    async fn decisions(
        &self,
        account: Option<AccountId>,
        after: Option<(AccountId, u64)>,
        rows_max: u64,
    ) -> Result<Vec<Decision>, StoreError> {
        self.store.decisions(account, after, rows_max).await
    }

    async fn reasons(&self, rows_max: u64) -> Result<Vec<GivenReason>, StoreError> {
        self.store.reasons(rows_max).await
    }

    async fn keep_policies(
        &self,
        digest: String,
        files: BTreeMap<String, String>,
    ) -> Result<(), StoreError> {
        self.store.keep_policies(digest, files).await
    }

    async fn policies(
        &self,
        digest: String,
    ) -> Result<Option<BTreeMap<String, String>>, StoreError> {
        self.store.policies(digest).await
    }

    async fn audit(
        &self,
        account: Option<AccountId>,
        after: u64,
        rows_max: u64,
    ) -> Result<Vec<Entry>, StoreError> {
        self.store.audit(account, after, rows_max).await
    }
}

impl State {
    /// The directory answers: what it says of the account is known from here on.
    pub(crate) fn tells(&mut self, account: &AccountId, now: u64) {
        self.tell_if(|since, of| since <= now && of == account);
    }

    /// All that it says is known.
    pub(crate) fn tells_all(&mut self) {
        self.tell_if(|_, _| true);
    }

    /// What it says for longer than a minute is to be known at a release, by whomever.
    pub(crate) fn tells_late(&mut self, now: u64) {
        self.tell_if(|since, _| now > since + crate::oracle::MINUTE);
    }

    fn tell_if(&mut self, told: impl Fn(u64, &AccountId) -> bool) {
        for (since, account, line) in std::mem::take(&mut self.untold) {
            if told(since, &account) {
                self.oracle.happened(&line);
            } else {
                self.untold.push((since, account, line));
            }
        }
    }
}

/// The provider's side, as the engine sees it.
pub(crate) struct Outside(pub(crate) Weak<World>);

#[tonic::async_trait]
impl Directory for Outside {
    async fn facts(&self, account: &AccountId) -> Result<Facts, DirectoryError> {
        let world = self.0.upgrade().unwrap();
        let at = Time::from_unix_ms(world.now());
        let facts = {
            let mut state = world.state();
            let facts = state.provider.facts(account, at);
            if facts.is_ok() {
                state.tells(account, at.unix_ms());
                state.asked.insert(account.clone(), at.unix_ms());
            }
            facts
        };
        // What happens now, these facts do not tell.
        let what = world.state().while_facts.pop_front();
        world
            .meanwhile(account, what.unwrap_or(Meanwhile::Nothing))
            .await;
        facts.map_err(|why| DirectoryError::Unreachable {
            url: "the machine's".to_owned(),
            why,
        })
    }

    async fn owner(&self, droplet: &DropletId) -> Result<Option<AccountId>, DirectoryError> {
        let world = self.0.upgrade().unwrap();
        let state = world.state();
        Ok(state.provider.owner(droplet).cloned())
    }
}

#[tonic::async_trait]
impl Driver for Outside {
    fn name(&self) -> &'static str {
        "machine"
    }

    async fn perform(&self, order: &Order) -> Answer {
        let world = self.0.upgrade().unwrap();
        let (takes, what) = {
            let mut state = world.state();
            let calm = state.calm;
            let next = state.orders.pop_front().filter(|_| !calm);
            next.unwrap_or((Takes::Does, Meanwhile::Nothing))
        };
        let does = !matches!(takes, Takes::Refuses | Takes::Lost | Takes::DiesBefore);
        world.leaves(order);
        if takes == Takes::DiesBefore {
            world.death.notify_one();
            std::future::pending::<()>().await;
        }
        {
            let mut state = world.state();
            if does {
                state.book.done(order);
                state.oracle.done(&order.key);
            } else if takes == Takes::Refuses {
                state.book.refused(order);
            }
        }
        world.meanwhile(&order.account, what).await;
        if takes == Takes::DiesAfter {
            world.death.notify_one();
            std::future::pending::<()>().await;
        }
        match takes {
            Takes::Refuses => Answer::refused("not this one".to_owned()),
            Takes::Lost | Takes::Silent => Answer::doubtful("nobody answers"),
            _ => Answer {
                outcome: Outcome::Done,
                detail: String::new(),
            },
        }
    }

    async fn query(&self, key: &str) -> Answer {
        let world = self.0.upgrade().unwrap();
        let outcome = world.state().book.became(key);
        Answer {
            outcome,
            detail: String::new(),
        }
    }
}
