//! What became of a release: the control plane's answers, and what follows from them.

use super::{Dossier, Event, Refusal, turn::answer_within};
use crate::{
    action::{Action, By, Key, Outcome, Parcel, Recipient, State},
    decide::in_force,
    fleet::Fleet,
    safety::Safety,
    settings::Settings,
    statement,
    time::Time,
};

impl Dossier {
    /// Takes what became of a parcel's release of `released_at` ([`Order::released_at`], [`Errand::Query`]). If an automated action was
    /// done and a safety is in force by now, it is undone; if an undoing, a measure of people's or a letter to the customer was
    /// refused, somebody is paged.
    ///
    /// A release in doubt is queried only once the control plane would refuse it: before, "never seen" could still come to be done.
    ///
    /// # Errors
    /// If there is no such parcel, or it was never released.
    pub fn learn(
        &mut self,
        parcel: &Parcel,
        released_at: Time,
        outcome: Outcome,
        (fleet, settings): (&Fleet, &Settings),
        at: Time,
    ) -> Result<Vec<Event>, Refusal> {
        let state = match parcel {
            Parcel::Action(key) => &mut self.action(key)?.state,
            Parcel::Letter { number, .. } => &mut self.letter(*number)?.state,
        };
        let before = state.clone();
        state.learn(parcel, released_at, at, outcome)?;
        if let State::Doubtful {
            released_at,
            query_at,
            ..
        } = state
        {
            *query_at = (*query_at).max(released_at.after(answer_within(settings)));
        }
        let state = state.clone();
        if state == before {
            return Ok(Vec::new());
        }
        let mut events = vec![Event::Learned {
            parcel: parcel.clone(),
            state: state.clone(),
        }];
        let key = match parcel {
            Parcel::Action(key) => key,
            Parcel::Letter { number, .. } => {
                if let State::Refused { why, .. } = &state {
                    events.extend(self.letter_refused(*number, why, at)?);
                }
                return Ok(events);
            }
        };
        match state {
            // A later one of the same step that stands is not undone with it.
            State::Done { .. } if self.is_unwanted(key, &before)? => {
                let why = "it was stopped before it was known to have arrived";
                events.extend(self.undo(key, why, None, at));
            }
            State::Done { .. } if self.action(key)?.is_automated() => {
                let action = self.action(key)?.clone();
                if !self.is_upheld(&action, at)
                    && let Some(why) = self.appeared(&action, fleet, settings, at)
                {
                    events.extend(self.undo(key, &why, None, at));
                }
            }
            // It never arrived, and is not wanted any more.
            State::Planned if self.is_undone(key) => {
                let why = "it was undone before it left".to_owned();
                self.action(key)?.state.withhold(key, at, why.clone())?;
                let key = key.clone();
                events.push(Event::ActionWithheld { key, why });
            }
            // What people decided before the customer spoke does not leave any more.
            State::Planned if self.spoken_against(key) => {
                let (key, why) = (key.clone(), super::people::WROTE.to_owned());
                self.action(&key)?.state.withhold(&key, at, why.clone())?;
                events.push(Event::ActionWithheld { key, why });
            }
            // Once, however often it is asked for.
            State::Refused { why, .. } if key.undo && !self.action(key)?.paged => {
                self.action(key)?.paged = true;
                events.extend(self.page_undo(key, &why, at));
            }
            // Nothing holds, and nobody but them knows that it was to.
            State::Refused { why, .. } if !key.undo && !self.action(key)?.is_automated() => {
                events.extend(self.page_measure(key, &why, at));
            }
            _ => {}
        }
        Ok(events)
    }

    /// Whether it is done against expectation (it was `before`), and not wanted any more: it was withheld, or a person has released the
    /// account since it was decided.
    fn is_unwanted(&mut self, key: &Key, before: &State) -> Result<bool, Refusal> {
        let planned_at = self.action(key)?.planned_at;
        let released = self.holds.iter().any(|hold| hold.since >= planned_at);
        let stopped = match before {
            State::Withheld { .. } => true,
            State::Refused { .. } => released,
            _ => false,
        };
        Ok(stopped && self.is_last(key))
    }

    /// Whether no later action of its step is in effect; never of an undoing.
    fn is_last(&self, key: &Key) -> bool {
        let later = |held: &Action| {
            (held.key.episode, held.key.turn) > (key.episode, key.turn)
                && (held.key.step, held.key.undo) == (key.step, false)
                && held.may_be_felt()
                && !self.is_undone(&held.key)
        };
        !key.undo && !self.actions.iter().any(later)
    }

    /// Whether it is a measure that people decided before the customer spoke.
    fn spoken_against(&self, key: &Key) -> bool {
        let held = self.actions.iter().find(|action| action.key == *key);
        held.is_some_and(|held| {
            let by_people = matches!(held.by, By::Person { .. });
            by_people && !key.undo && self.has_spoken_since(held.planned_at)
        })
    }

    /// The customer was not answered after all: they wait again. Who is on call is told, and told again later if that is refused.
    fn letter_refused(
        &mut self,
        number: u64,
        why: &str,
        at: Time,
    ) -> Result<Option<Event>, Refusal> {
        let letter = self.letter(number)?.clone();
        if letter.to == Recipient::OnCall {
            return Ok(None);
        }
        if let Some(case) = (self.case.as_mut()).filter(|case| case.id == letter.case) {
            case.wait(at);
        }
        let text = statement::page_letter(number, why, &letter.case);
        Ok(self.write(Recipient::OnCall, text, None, at))
    }

    /// What speaks against an automated action that was done, and did not when it was released: any safety but the budget, which it
    /// uses up itself. In the words the customer reads.
    fn appeared(
        &self,
        action: &Action,
        fleet: &Fleet,
        settings: &Settings,
        at: Time,
    ) -> Option<String> {
        let fresh = settings.facts_fresh_ms;
        let looked = self.safeties(fleet, settings, fresh, &action.targets, at);
        let mut safeties = in_force(&looked).into_iter();
        safeties
            .find(|safety| *safety != Safety::BlastRadius)
            .map(|safety| format!("while it was under way, {}", safety.in_words()))
    }

    fn page_measure(&mut self, key: &Key, why: &str, at: Time) -> Option<Event> {
        let case = self.case.as_ref()?.id.clone();
        let text = statement::page_measure(&key.to_string(), why, &case);
        self.write(Recipient::OnCall, text, None, at)
    }
}
