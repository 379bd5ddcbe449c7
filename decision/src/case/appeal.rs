//! The reviews of an appealed lock: two, by people who have not denied it, neither seeing the other's before both are in. Pure.
//!
//! The first that unlocks does so at once: whatever the second one finds, the two differ or agree on it. The second is wanted all the
//! same, and must not know. So the case as it stood before the first review is sealed into it, and whoever is to review it still reads
//! that ([`Case::seen_by`]), whatever the first one found and whatever came of it: with evidence, facts and what the customer says since
//! as they are. Nothing of it shows but that a review is in.
//!
//! A denial from before the customer's last word counts for nothing; who gave it may give their review anew.

use serde::{Deserialize, Serialize};

use super::{Case, CaseError, Finding, Message, Opinion, Person, Ruling, Speaker, State};
use crate::{
    policy::Step,
    text::Reason,
    time::{Span, Time},
};

/// How a case stood before the first review of its appeal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// When that review came in.
    pub at: Time,
    /// Since when the log has something to hide: an earlier review that was withdrawn, or this one.
    pub since: Time,
    /// Where the case stood.
    pub state: State,
    /// Since when the customer waited.
    pub waiting_since: Option<Time>,
    /// Whether somebody was paged for it.
    pub paged: bool,
    /// Since when their word waited for a decision.
    #[serde(default)]
    pub talks_since: Option<Time>,
    /// Whether a lock or power-down was in effect.
    pub locked: bool,
    /// How many opinions stood for nothing any more.
    pub past: usize,
    /// Whether that review was withdrawn: there is nothing to keep back but that, in the log.
    #[serde(default)]
    pub withdrawn: bool,
    /// Whether somebody was paged because the second one does not come.
    #[serde(default)]
    pub reminded: bool,
}

impl Case {
    /// Whether an unlock or a denial of it is a review: it is appealed, and the reviews are not all in.
    #[must_use]
    pub const fn takes_reviews(&self) -> bool {
        self.appealed_at.is_some() && (self.is_open() || self.wants_review())
    }

    /// Seals the case as it stands into it, before the first review goes in at `at`; `locked`: a lock or power-down is in effect. Says
    /// whether it did.
    pub(crate) fn seal(&mut self, locked: bool, at: Time) -> bool {
        let withdrawn = self.sealed.as_ref().filter(|seal| seal.withdrawn);
        let since = withdrawn.map_or(at, |seal| seal.since);
        let first = self.takes_reviews() && (self.sealed.is_none() || withdrawn.is_some());
        if first {
            self.sealed = Some(Seal {
                withdrawn: false,
                reminded: false,
                at,
                since,
                state: self.state.clone(),
                waiting_since: self.waiting_since,
                paged: self.paged,
                talks_since: self.talks_since,
                locked,
                past: self.past.len(),
            });
        }
        first
    }

    /// When somebody is to be reminded of the second review, `limit` after the first.
    #[must_use]
    pub fn reminder_due(&self, limit: Span) -> Option<Time> {
        let wanted = |seal: &&Seal| !seal.withdrawn && !seal.reminded;
        let seal = self.sealed.as_ref().filter(wanted)?;
        Some(seal.at.after(limit))
    }

    /// Opinions from before the reviews under way.
    fn before_reviews(&self) -> &[Opinion] {
        let count = (self.sealed.as_ref()).map_or(self.past.len(), |seal| seal.past);
        self.past.get(..count).unwrap_or(&self.past)
    }

    /// Whether an appeal still wants its second review, though the first one has unlocked already.
    #[must_use]
    pub const fn wants_review(&self) -> bool {
        self.appealed_at.is_some()
            && self.opinions.len() == 1
            && matches!(self.state, State::Decided { .. })
    }

    /// A person gives an opinion: proposes a denial, gives the second opinion on one, or reviews an appeal. `earlier`: reasons
    /// written in other cases, by name. Gives the ruling if this opinion brought one.
    ///
    /// A single unlock unlocks, also of an appealed lock: whatever a second review says, the two would differ or agree on it. The
    /// second review is wanted all the same. [`Case::seal`] comes first.
    ///
    /// # Errors
    /// If there is nothing left to decide, the person has given an opinion before, or the reason of a denial is not their own.
    pub(crate) fn opine<'a>(
        &mut self,
        opinion: Opinion,
        earlier: impl IntoIterator<Item = (&'a str, &'a Reason)>,
    ) -> Result<Option<Ruling>, CaseError> {
        if !self.is_open() && !self.wants_review() {
            return Err(self.wrong("there is nothing left to decide"));
        }
        self.may_opine(&opinion)?;
        // Nothing keeps an unlock back, a copied reason neither.
        if opinion.finding == Finding::Deny {
            let held = self.past.iter().chain(&self.opinions);
            let in_case = held.map(|held| ("another reason", &held.reason));
            opinion.reason.is_own(in_case)?;
            opinion.reason.is_own(earlier)?;
        }
        let (at, was_open) = (opinion.at, self.is_open());
        self.opinions.push(opinion);
        if self.opinions.len() > 1 {
            self.sealed = None;
        }
        let Some(ruling) = self.ruling().filter(|_| was_open) else {
            return Ok(None);
        };
        self.decided(ruling, at);
        Ok(Some(ruling))
    }

    fn may_opine(&self, opinion: &Opinion) -> Result<(), CaseError> {
        let (case, by) = (self.id.to_string(), opinion.by.clone());
        if self.opinions.iter().any(|held| held.by == by) {
            return Err(CaseError::SamePerson { case, by });
        }
        let denies = opinion.finding == Finding::Deny;
        let denied = |held: &Opinion| held.by == by && held.finding == Finding::Deny;
        if denies && self.appealed_at.is_some() && self.before_reviews().iter().any(denied) {
            return Err(CaseError::NotIndependent { case, by });
        }
        let measured = opinion.measure.is_some_and(Step::is_measure);
        if denies != measured {
            return Err(CaseError::Measure);
        }
        Ok(())
    }

    /// What the opinions amount to: one unlock unlocks, two denials of two people deny.
    fn ruling(&self) -> Option<Ruling> {
        let unlock = |held: &Opinion| held.finding == Finding::Unlock;
        match self.opinions.len() {
            _ if self.opinions.iter().any(unlock) => Some(Ruling::Unsure),
            0 | 1 => None,
            _ => Some(Ruling::Denied),
        }
    }

    /// What two people who denied agree on: the milder of what each said.
    #[must_use]
    pub fn measure(&self) -> Option<Step> {
        let measures = self.opinions.iter().filter_map(|held| held.measure);
        measures.min()
    }

    /// Whether `person` is to review the appeal still, and so sees nothing of what another reviewer found.
    #[must_use]
    pub fn wants_review_of(&self, person: &Person) -> bool {
        self.takes_reviews() && !self.opinions.iter().any(|held| held.by == *person)
    }

    /// Since when the log may have something of it that `person` may not see.
    #[must_use]
    pub fn hidden_since(&self, person: &Person) -> Option<Time> {
        let seal = self.sealed.as_ref()?;
        self.wants_review_of(person).then_some(seal.since)
    }

    /// Whether there is something in it that `person` may not see.
    #[must_use]
    pub fn is_kept_from(&self, person: &Person) -> bool {
        let stands = self.sealed.as_ref().is_some_and(|seal| !seal.withdrawn);
        stands && self.wants_review_of(person)
    }

    /// As of when `person` sees it, if that is not now: before a review that is kept from them.
    #[must_use]
    pub fn shown_as_of(&self, person: &Person) -> Option<Time> {
        let seal = self.sealed.as_ref()?;
        self.is_kept_from(person).then_some(seal.at)
    }

    /// Whether a lock or power-down is in effect as far as `person` may see; `locked`: whether one is.
    #[must_use]
    pub fn seems_locked(&self, person: &Person, locked: bool) -> bool {
        match &self.sealed {
            Some(seal) if self.is_kept_from(person) => seal.locked,
            _ => locked,
        }
    }

    /// The case as `person` may see it: while they are to review an appeal, as it was before another reviewer's opinion, with what the
    /// customer and they themselves said since.
    #[must_use]
    pub fn seen_by(&self, person: &Person) -> Self {
        let mut seen = self.clone();
        let Some(seal) = seen.sealed.take().filter(|_| self.is_kept_from(person)) else {
            return seen;
        };
        let Seal {
            at: since,
            since: _,
            state,
            waiting_since,
            paged,
            talks_since,
            locked: _,
            past,
            withdrawn: _,
            reminded: _,
        } = seal;
        (seen.state, seen.waiting_since, seen.paged) = (state, waiting_since, paged);
        (seen.talks_since, seen.reminded_at) = (talks_since, None);
        let reviews = seen.past.split_off(past.min(seen.past.len()));
        let own = |held: &Opinion| held.by == *person;
        seen.past.extend(reviews.into_iter().filter(own));
        seen.opinions.retain(own);
        let said = |from: &Speaker| matches!(from, Speaker::Person { person: by } if by == person);
        seen.messages.retain(|message| {
            message.at < since
                || matches!(message.from, Speaker::Customer { .. })
                || said(&message.from)
        });
        for Message { at, from, .. } in seen.messages.iter().filter(|held| held.at >= since) {
            seen.waiting_since = match from {
                Speaker::Customer { .. } => {
                    seen.talks_since = seen.talks_since.or(Some(*at));
                    seen.waiting_since.or(Some(*at))
                }
                Speaker::Person { .. } | Speaker::Automation => None,
            };
        }
        seen
    }
}
