//! Two reviewers of an appeal do not see each other's review, nor what came of it: of a record too, each reads what was there before
//! the first one. The sealed copy is the record as it was; what no review changes is taken from the present one.

use super::{Dossier, Event, Refusal};
use crate::{
    case::{Case, CaseError, Message, Person, Speaker},
    safety::Conversation,
    time::Time,
};

impl Dossier {
    /// Gives `review` to the case, an opinion or an unlock: the first review of an appeal seals the record as it was before it, and the second
    /// opens it again.
    pub(super) fn reviewed<T>(
        &mut self,
        at: Time,
        review: impl FnOnce(&mut Case) -> Result<T, CaseError>,
    ) -> Result<T, Refusal> {
        let (locked, before) = (self.is_locked(), self.clone());
        let case = self.case_mut()?;
        let mut next = case.clone();
        let first = next.seal(locked, at);
        let found = review(&mut next)?;
        *case = next;
        if case.sealed.is_none() {
            self.sealed = None;
        } else if first {
            self.sealed = Some(Box::new(before));
        }
        Ok(found)
    }

    /// Refuses `by` what is not their review, while they are to review an appeal and another's review is in: how it ended would tell.
    ///
    /// # Errors
    /// In that case.
    pub fn may_act(&self, by: &Person) -> Result<(), Refusal> {
        match &self.case {
            Some(case) if case.is_kept_from(by) => Err(Refusal::Case(CaseError::ReviewFirst {
                case: case.id.to_string(),
            })),
            _ => Ok(()),
        }
    }

    /// Events of `by`'s own doing, as they may see them: letters are numbered, and the number would tell how many were written.
    #[must_use]
    pub fn events_seen_by(&self, by: &Person, mut events: Vec<Event>) -> Vec<Event> {
        if self.case.as_ref().is_some_and(|case| case.is_kept_from(by)) {
            events.retain(|event| !matches!(event, Event::LetterWritten { .. }));
        }
        events
    }

    /// The record as `person` may see it: while they are to review an appeal, as it was before another's review, with evidence, facts and
    /// the customer's words as they are now.
    #[must_use]
    pub fn seen_by(&self, person: &Person) -> Self {
        let kept = (self.case.as_ref()).filter(|case| case.is_kept_from(person));
        let since = kept.and_then(|case| case.hidden_since(person));
        let mut seen = match (&self.sealed, since) {
            (Some(sealed), Some(since)) => self.opened(sealed, since),
            _ => self.clone(),
        };
        seen.sealed = None;
        let own = |case: &Option<Case>| case.as_ref().map(|case| case.seen_by(person));
        (seen.case, seen.former) = (own(&self.case), own(&self.former));
        seen
    }

    fn opened(&self, sealed: &Self, since: Time) -> Self {
        let messages = self.case.iter().flat_map(|case| &case.messages);
        let customers =
            |held: &&Message| held.at >= since && matches!(held.from, Speaker::Customer { .. });
        let spoke = messages.filter(customers).map(|held| held.at).min();
        Self {
            facts: self.facts.clone(),
            fetched_at: self.fetched_at,
            fetch_failed: self.fetch_failed.clone(),
            episodes: self.episodes,
            episode: self.episode.clone(),
            conversation: (sealed.conversation.clone())
                .or(spoke.map(|since| Conversation { since })),
            message_keys: self.message_keys.clone(),
            ..sealed.clone()
        }
    }
}
