//! Whose droplets are: by the inventories held, else by the provider's directory. A droplet of nobody's is counted and said once in
//! an hour; nothing is decided about it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use davy_decision::{
    account::{AccountId, DropletId},
    audit::Actor,
    episode::Sighting,
    time::{Span, Time},
};

use super::directory::Directory;
use crate::desk::Desk;
use crate::store::ledger::LedgerError;

/// How long an owner that the directory named, or did not know, is remembered.
const REMEMBER: Span = Span::hours(1);
/// Most droplets remembered; beyond, all are forgotten and asked for again.
const REMEMBERED_MAX: usize = 100_000;

/// What the directory said of a droplet, and when.
type Told = (Option<AccountId>, Time);

/// See the module.
#[derive(Clone)]
pub struct Attribution {
    desk: Desk,
    directory: Arc<dyn Directory>,
    /// What the directory said of droplets that no inventory has, and when.
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
            match self.owner(&sighting.droplet).await? {
                Some(account) => by_account.entry(account).or_default().push(sighting),
                None => nobodys += 1,
            }
        }
        for (account, sightings) in by_account {
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

    async fn owner(&self, droplet: &DropletId) -> Result<Option<AccountId>, LedgerError> {
        if let Some(account) = self.desk.ledger.owner(droplet.clone()).await? {
            return Ok(Some(account));
        }
        let now = self.desk.now();
        let held = (self.asked.lock())
            .unwrap_or_else(PoisonError::into_inner)
            .get(droplet)
            .cloned();
        if let Some((owner, at)) = held
            && now - at < REMEMBER
        {
            return Ok(owner);
        }
        let owner = match self.directory.owner(droplet).await {
            Ok(owner) => owner,
            Err(error) => {
                tracing::warn!(%droplet, %error, "whose droplet it is cannot be asked; nothing is decided about it");
                return Ok(None);
            }
        };
        if owner.is_none() {
            tracing::warn!(%droplet, "no account has this droplet; nothing is decided about it");
        }
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.len() >= REMEMBERED_MAX {
            asked.clear();
        }
        asked.insert(droplet.clone(), (owner.clone(), now));
        Ok(owner)
    }
}
