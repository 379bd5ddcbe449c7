//! What the deciding half keeps: accounts' records, the fleet's, cases, decisions, policies and the audit log.
//!
//! There is one way to change any of it: a *change*, a pure function on one account's [`Dossier`] and the [`Fleet`]. The ledger runs
//! it in one transaction and stores everything it brings, or nothing:
//!
//! 1. the fleet's row is locked, if the change reaches it ([`Reach::Fleet`]); without, the change sees a copy that is not written back;
//! 2. the account's row is locked (made, if absent);
//! 3. the change runs on what was read; if it refuses, or gives a reason that was just given in another case, nothing is kept;
//! 4. record, cases, decision, owners of droplets and given reasons are written;
//! 5. the log's head is locked last, and each event appended.
//!
//! The order of locks is the same everywhere, so no two transactions wait for each other. A change may run again after a
//! conflict: it takes no side effects. A release, and whatever sets a safety or the budget, are changes of the same rows.

pub(super) mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;

use davy_decision::{
    account::{AccountId, DropletId},
    audit::{Actor, Entry},
    case::{Case, CaseId},
    decide::{Input, Plan},
    dossier::{Dossier, Event, Refusal},
    fleet::Fleet,
    text::Reason,
    time::Time,
};

use super::StoreError;

/// Whether a change may write the fleet's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The account's record alone.
    Account,
    /// The fleet's too: it is locked, before the account's.
    Fleet,
}

/// A decision, as stored: with it and the policies its digest names, the plan can be made again, bit for bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Its number within the account, from 1.
    pub number: u64,
    /// What it rests on.
    pub input: Input,
    /// What was decided.
    pub plan: Plan,
}

/// What a change brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changed {
    /// What happened, for the log.
    pub events: Vec<Event>,
    /// The decision made, if one is to be stored.
    pub decision: Option<Decision>,
    /// When the account is to be looked at next; absent: when something happens to it.
    pub due: Option<Time>,
}

/// A change: pure, and able to run again.
pub type Change = Arc<dyn Fn(&mut Dossier, &mut Fleet) -> Result<Changed, Refusal> + Send + Sync>;

/// A change of the fleet's record alone.
pub type FleetChange = Arc<dyn Fn(&mut Fleet) -> Vec<Event> + Send + Sync>;

/// Why a change was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerError {
    /// It refused; the sentence is for whoever asked.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The storage failed; nothing was kept, but for [`StoreError::Unknown`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A case, with what its place in the queue rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCase {
    /// The case.
    pub case: Case,
    /// Whether a lock or power-down is in effect for its account (as of the last change).
    pub locked: bool,
}

/// A reason given in a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenReason {
    /// In which case.
    pub case: CaseId,
    /// Its text.
    pub reason: Reason,
}

/// The deciding half's memory. What a call has returned survives a crash.
#[tonic::async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Makes a change at `at`, asked for by `actor`.
    ///
    /// # Errors
    /// [`LedgerError::Refused`] as the change says; a failure of the storage.
    async fn change(
        &self,
        account: AccountId,
        reach: Reach,
        actor: Actor,
        at: Time,
        change: Change,
    ) -> Result<Changed, LedgerError>;

    /// Makes a change of the fleet's record.
    ///
    /// # Errors
    /// A failure of the storage.
    async fn change_fleet(
        &self,
        actor: Actor,
        at: Time,
        change: FleetChange,
    ) -> Result<(), StoreError>;

    /// An account's record; none if nothing is known of it.
    ///
    /// # Errors
    /// A failure of the storage.
    async fn dossier(&self, account: AccountId) -> Result<Option<Dossier>, StoreError>;

    /// The fleet's record.
    ///
    /// # Errors
    /// A failure of the storage.
    async fn fleet(&self) -> Result<Fleet, StoreError>;

    /// Accounts to be looked at by `at`, the longest due first, at most `rows_max`.
    ///
    /// # Errors
    /// A failure of the storage.
    async fn due(&self, at: Time, rows_max: u64) -> Result<Vec<AccountId>, StoreError>;

    /// Accounts known, by id, after `after`, at most `rows_max`.
    ///
    /// # Errors
    /// A failure of the storage.
    async fn accounts(
        &self,
        after: Option<AccountId>,
        rows_max: u64,
    ) -> Result<Vec<AccountId>, StoreError>;

    /// Whose a droplet is, by the inventories that came last.
    ///
    /// # Errors
    /// A failure of the storage.
    async fn owner(&self, droplet: DropletId) -> Result<Option<AccountId>, StoreError>;

    /// Cases that are not closed, or all: `closed`. At most `rows_max`, in the queue's order ([`Case::rank`]).
    ///
    /// # Errors
    /// A failure of the storage.
    async fn cases(&self, closed: bool, rows_max: u64) -> Result<Vec<StoredCase>, StoreError>;

    /// One case.
    ///
    /// # Errors
    /// A failure of the storage.
    async fn case(&self, case: CaseId) -> Result<Option<StoredCase>, StoreError>;

    /// Decisions, of one account (by number) or of all (by account and number), after `after`, at most `rows_max`.
    ///
    /// # Errors
    /// A failure of the storage.
    async fn decisions(
        &self,
        account: Option<AccountId>,
        after: Option<(AccountId, u64)>,
        rows_max: u64,
    ) -> Result<Vec<Decision>, StoreError>;

    /// Reasons given in cases, the latest first, at most `rows_max`.
    ///
    /// # Errors
    /// A failure of the storage.
    async fn reasons(&self, rows_max: u64) -> Result<Vec<GivenReason>, StoreError>;

    /// Keeps the text of policies, by their digest: decisions made under them can be replayed for ever.
    ///
    /// # Errors
    /// A failure of the storage.
    async fn keep_policies(
        &self,
        digest: String,
        files: BTreeMap<String, String>,
    ) -> Result<(), StoreError>;

    /// Policies by their digest.
    ///
    /// # Errors
    /// A failure of the storage.
    async fn policies(
        &self,
        digest: String,
    ) -> Result<Option<BTreeMap<String, String>>, StoreError>;

    /// Entries of the audit log after number `after`, in order, at most `rows_max`; of one account if given.
    ///
    /// # Errors
    /// A failure of the storage.
    async fn audit(
        &self,
        account: Option<AccountId>,
        after: u64,
        rows_max: u64,
    ) -> Result<Vec<Entry>, StoreError>;
}
