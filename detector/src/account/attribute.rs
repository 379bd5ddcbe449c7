//! Whose droplets are: by the inventories held, else by the provider's directory. A droplet of nobody's is counted and said once in
//! an hour; nothing is decided about it. A directory that does not answer is not asked again for every window.
//!
//! What is quiet ends what was seen before, and is else of no interest: it is asked about nowhere, and changes no record.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use davy_decision::{
    account::{AccountId, DropletId},
    audit::Actor,
    episode::Sighting,
    time::{Span, Time},
};

use davy_evidence::Level;

use super::directory::Directory;
use crate::desk::Desk;
use crate::store::ledger::LedgerError;

/// How long an owner that the directory named, or did not know, is remembered.
const REMEMBER: Span = Span::hours(1);
/// How long it is remembered that the directory did not answer.
const REST: Span = Span::seconds(5);
/// Most droplets remembered; beyond, all are forgotten and asked for again.
const REMEMBERED_MAX: usize = 100_000;

/// What the directory said of a droplet, and until when that is remembered.
type Told = (Option<AccountId>, Time);

/// See the module.
#[derive(Clone)]
pub struct Attribution {
    desk: Desk,
    directory: Arc<dyn Directory>,
    /// What the directory said of droplets that no inventory has.
    asked: Arc<Mutex<HashMap<DropletId, Told>>>,
}

impl Attribution {
    /// With nothing remembered.
    #[must_use]
    pub fn new(desk: Desk, directory: Arc<dyn Directory>) -> Self {
        Self {
            desk,
            directory,
            asked: Arc::default(),
        }
    }

    /// Carries sightings into their accounts' records. Gives how many were nobody's.
    ///
    /// # Errors
    /// If the storage fails: what was not kept is to be given again. Giving twice changes nothing.
    pub async fn take(&self, sightings: Vec<Sighting>) -> Result<u64, LedgerError> {
        // In the accounts' order: the audit log of the same windows is the same.
        let mut by_account: BTreeMap<AccountId, Vec<Sighting>> = BTreeMap::new();
        let mut nobodys = 0;
        for sighting in sightings {
            let quiet = sighting.level == Level::Quiet;
            match self.owner(&sighting.droplet, !quiet).await? {
                Some(account) => by_account.entry(account).or_default().push(sighting),
                None if quiet => {}
                None => nobodys += 1,
            }
        }
        for (account, sightings) in by_account {
            if !self.matter(&account, &sightings).await? {
                continue;
            }
            self.desk
                .act(account, Actor::Automation, move |dossier, settings, _| {
                    let mut events = Vec::new();
                    for sighting in &sightings {
                        events.extend(dossier.observe(sighting.clone(), settings));
                    }
                    Ok(events)
                })
                .await?;
        }
        Ok(nobodys)
    }

    /// Whether anything of this is new to the account's record: not if all is quiet, and was.
    async fn matter(
        &self,
        account: &AccountId,
        sightings: &[Sighting],
    ) -> Result<bool, LedgerError> {
        if sightings.iter().any(|seen| seen.level > Level::Quiet) {
            return Ok(true);
        }
        let dossier = self.desk.ledger.dossier(account.clone()).await?;
        let episode = dossier.and_then(|dossier| dossier.episode);
        Ok(episode.is_some_and(|episode| {
            let stirred = |seen: &Sighting| {
                let held = episode.droplets.get(&seen.droplet);
                held.is_some_and(|held| held.last.level > Level::Quiet)
            };
            sightings.iter().any(stirred)
        }))
    }

    /// `ask`: the directory is asked, if nobody knows.
    async fn owner(
        &self,
        droplet: &DropletId,
        ask: bool,
    ) -> Result<Option<AccountId>, LedgerError> {
        if let Some(account) = self.desk.ledger.owner(droplet.clone()).await? {
            return Ok(Some(account));
        }
        let now = self.desk.now();
        let held = (self.asked.lock())
            .unwrap_or_else(PoisonError::into_inner)
            .get(droplet)
            .cloned();
        if let Some((owner, until)) = held
            && now < until
        {
            return Ok(owner);
        }
        if !ask {
            return Ok(None);
        }
        let (owner, until) = match self.directory.owner(droplet).await {
            Ok(Some(owner)) => (Some(owner), now.after(REMEMBER)),
            Ok(None) => {
                tracing::warn!(%droplet, "no account has this droplet; nothing is decided about it");
                (None, now.after(REMEMBER))
            }
            Err(error) => {
                tracing::warn!(%droplet, %error, "whose droplet it is cannot be asked; nothing is decided about it");
                (None, now.after(REST))
            }
        };
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.len() >= REMEMBERED_MAX {
            asked.clear();
        }
        asked.insert(droplet.clone(), (owner.clone(), until));
        Ok(owner)
    }
}
