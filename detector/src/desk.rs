//! Where records are changed: every change of an account goes through here, with the time, the settings, and when to look next.
//!
//! The ledger makes a change atomic and the pure core says what it is; the desk brings both together. Services, the engine
//! and tools use it alike.

use std::sync::Arc;

use davy_decision::{
    account::AccountId,
    audit::Actor,
    dossier::{Dossier, Event, Refusal},
    fleet::Fleet,
    settings::Settings,
    time::Time,
};

use crate::store::ledger::{Changed, Decision, FleetChange, Ledger, LedgerError, Reach};

/// Tells the time. The detector's own asks the system; tests and tools bring theirs.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// The system's clock.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(|| Time::from_unix_ns(crate::unix_now_ns()))
}

/// What a change of the desk brings: events, and a decision to be stored.
pub type Brought = (Vec<Event>, Option<Decision>);

/// See the module.
#[derive(Clone)]
pub struct Desk {
    /// The records.
    pub ledger: Arc<dyn Ledger>,
    /// The rules' figures.
    pub settings: Arc<Settings>,
    /// The time.
    pub clock: Clock,
}

impl Desk {
    /// The time now.
    #[must_use]
    pub fn now(&self) -> Time {
        (self.clock)()
    }

    /// Changes an account's record, asked for by `actor`. `change` gets the time; it may run again.
    ///
    /// # Errors
    /// As the change refuses; or the storage fails, and nothing was kept.
    pub async fn change(
        &self,
        account: AccountId,
        reach: Reach,
        actor: Actor,
        change: impl Fn(&mut Dossier, &mut Fleet, Time) -> Result<Brought, Refusal>
        + Send
        + Sync
        + 'static,
    ) -> Result<Changed, LedgerError> {
        let (at, settings) = (self.now(), Arc::clone(&self.settings));
        let change = move |dossier: &mut Dossier, fleet: &mut Fleet| {
            let (events, decision) = change(dossier, fleet, at)?;
            dossier.clock = dossier.clock.max(at);
            Ok(Changed {
                events,
                decision,
                due: dossier.due(fleet, &settings, at),
            })
        };
        self.ledger
            .change(account, reach, actor, at, Arc::new(change))
            .await
    }

    /// Changes an account's record by events alone: what people and services do.
    ///
    /// # Errors
    /// As [`Desk::change`].
    pub async fn act(
        &self,
        account: AccountId,
        actor: Actor,
        change: impl Fn(&mut Dossier, &Settings, Time) -> Result<Vec<Event>, Refusal>
        + Send
        + Sync
        + 'static,
    ) -> Result<Vec<Event>, LedgerError> {
        let settings = Arc::clone(&self.settings);
        let changed = self
            .change(account, Reach::Account, actor, move |dossier, _, at| {
                Ok((change(dossier, &settings, at)?, None))
            })
            .await?;
        Ok(changed.events)
    }

    /// Changes the fleet's record.
    ///
    /// # Errors
    /// If the storage fails; nothing was kept.
    pub async fn change_fleet(&self, actor: Actor, change: FleetChange) -> Result<(), LedgerError> {
        let at = self.now();
        Ok(self.ledger.change_fleet(actor, at, change).await?)
    }
}
