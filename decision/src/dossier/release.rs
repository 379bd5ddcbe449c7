//! Releasing what stands in the outbox, or withholding it: the last look at everything that may speak for the customer.

use super::{Dossier, Event, Refusal, outbox::undone_by};
use crate::{
    account::{DropletId, Facts},
    action::{Action, Key, Letter, Parcel, Recipient, State},
    case::{Case, Ruling, Speaker, State as Stage},
    decide::{decide, in_force},
    fleet::Fleet,
    policy::{Policies, Step},
    safety::{Safety, doubtful},
    settings::Settings,
    statement,
    time::Time,
};

impl Dossier {
    /// Releases a parcel, or withholds it. Before an automated action leaves, everything that may speak for the customer is looked
    /// at once more, and the policies in force are asked again; `fresh`: the facts as fetched just now, or why they could not be.
    ///
    /// What undoes, what a person asked for, and letters are released as they are.
    ///
    /// # Errors
    /// If there is no such parcel, or it is not planned.
    pub fn release(
        &mut self,
        parcel: &Parcel,
        fresh: Option<Result<Facts, String>>,
        (fleet, policies): (&mut Fleet, &Policies),
        settings: &Settings,
        at: Time,
    ) -> Result<Vec<Event>, Refusal> {
        let key = match parcel {
            Parcel::Letter { number, .. } => {
                let letter = self.letter(*number)?.clone();
                let stale = self.is_stale(letter);
                let letter = self.letter(*number)?;
                if stale {
                    let why = "what it tells is not so any more".to_owned();
                    letter.state.withhold(parcel, at, why.clone())?;
                    let number = *number;
                    return Ok(vec![Event::LetterWithheld { number, why }]);
                }
                letter.state.release(parcel, at)?;
                let parcel = parcel.clone();
                return Ok(vec![Event::Released { parcel }]);
            }
            Parcel::Action(key) => key,
        };
        let action = self.action(key)?.clone();
        let mut events = Vec::new();
        let mut lacking = None;
        if action.is_automated() {
            match fresh {
                Some(Ok(facts)) => {
                    // What the answer lacks is not known now, whatever was known a moment ago.
                    let told = facts.clone().as_of_at_most(at);
                    let doubts = doubtful(&told, at, settings.release_facts_fresh_ms);
                    lacking = doubts.into_iter().next();
                    match self.inform(facts, at) {
                        Ok(changed) => events.extend(changed),
                        Err(refusal) => events.extend(self.fetch_failed(refusal.to_string(), at)),
                    }
                }
                Some(Err(why)) => events.extend(self.fetch_failed(why, at)),
                None => events.extend(self.fetch_failed("they were not asked for".to_owned(), at)),
            }
        }
        let over = action.ends_at.is_some_and(|end| end <= at);
        let over = (over && !key.undo).then(|| "its time was over before it left".to_owned());
        let against = if over.is_some() {
            over
        } else if action.is_automated() {
            let unknown = |why| format!("in force: {} ({why})", Safety::UnknownStanding);
            (self.speaks_against(&action, fleet, policies, settings, at)).or(lacking.map(unknown))
        } else {
            let anew = !key.undo && self.is_upheld(&action, at);
            (anew.then(|| "people decided on it anew".to_owned()))
                .or_else(|| self.nothing_to_undo(key))
        };
        let state = &mut self.action(key)?.state;
        if let Some(why) = against {
            state.withhold(key, at, why.clone())?;
            let key = key.clone();
            let unlocks = key.undo;
            events.push(Event::ActionWithheld { key, why });
            if unlocks {
                events.extend(self.tell_of_unlock(settings, at));
            }
            return Ok(events);
        }
        state.release(key, at)?;
        self.action(key)?.sent = true;
        if action.is_automated() {
            let targets = match key.step {
                Step::Notify => 0,
                _ => u64::try_from(action.targets.len()).unwrap_or(u64::MAX),
            };
            fleet.spend(at, &self.account, key.step, targets);
        }
        let parcel = parcel.clone();
        events.push(Event::Released { parcel });
        Ok(events)
    }

    /// Whether what a letter tells of an action is not so any more.
    fn is_stale(&self, letter: Letter) -> bool {
        let Some(key) = letter.about else {
            return false;
        };
        let action = self.actions.iter().find(|action| action.key == key);
        match letter.to {
            Recipient::Customer => {
                action.is_none_or(|held| !held.may_be_felt()) || self.is_undone(&key)
            }
            Recipient::OnCall => {
                action.is_some_and(|held| matches!(held.state, State::Done { .. }))
            }
        }
    }

    /// What never took effect needs no undoing.
    fn nothing_to_undo(&self, key: &Key) -> Option<String> {
        let undone = undone_by(key);
        let held = (self.actions.iter()).find(|action| key.undo && action.key == undone)?;
        (!held.may_be_felt())
            .then(|| format!("there is nothing to undo: it is {}", held.state.name()))
    }

    /// A customer who wrote hears that a person released the account, though nothing that was to be undone had arrived.
    fn tell_of_unlock(&mut self, settings: &Settings, at: Time) -> Option<Event> {
        let case = self.case.as_ref()?;
        let Stage::Decided {
            ruling,
            at: decided,
        } = &case.state
        else {
            return None;
        };
        let (legitimate, since) = (*ruling == Ruling::Legitimate, *decided);
        let wrote =
            (case.messages.iter()).any(|held| matches!(held.from, Speaker::Customer { .. }));
        let undoings = (self.actions.iter())
            .filter(|held| held.key.undo && held.planned_at >= since)
            .any(|held| !matches!(held.state, State::Withheld { .. }));
        let letters = (self.letters.iter())
            .any(|held| held.to == Recipient::Customer && held.written_at >= since);
        if *ruling == Ruling::Denied || !wrote || undoings || letters {
            return None;
        }
        let text = statement::of_unlock(legitimate, &self.seen(), &case.id, settings.hold_ms);
        let by = (self.holds.iter().rev())
            .find(|hold| hold.since == since)
            .map(|hold| hold.by.clone());
        self.write(Recipient::Customer, text, by, at)
    }

    /// Why an automated action must not leave now.
    fn speaks_against(
        &self,
        action: &Action,
        fleet: &Fleet,
        policies: &Policies,
        settings: &Settings,
        at: Time,
    ) -> Option<String> {
        if at - action.planned_at > settings.plan_fresh_ms {
            return Some(format!("the plan is {} old", at - action.planned_at));
        }
        if self.is_undone(&action.key) {
            return Some("it was undone before it left".to_owned());
        }
        if self.by_person(action.key.step).is_some() {
            return Some("a person has decided the same".to_owned());
        }
        let fresh = settings.release_facts_fresh_ms;
        let looked = self.safeties(fleet, settings, fresh, &action.targets, at);
        let names: Vec<_> = in_force(&looked)
            .iter()
            .map(|safety| safety.name())
            .collect();
        if !names.is_empty() {
            return Some(format!("in force: {}", names.join(", ")));
        }
        // The statement names the case of its plan.
        let seen =
            |case: &Case| case.is_open() && action.case.as_ref().is_none_or(|id| *id == case.id);
        if !self.case.as_ref().is_some_and(seen) {
            return Some("the case in which people would see it is not open".to_owned());
        }
        let told = |notice: &Action| {
            matches!(notice.state, State::Done { .. }) && !self.is_undone(&notice.key)
        };
        if action.key.step > Step::Notify && !self.notice_of(action).is_some_and(told) {
            return Some("the customer was not told".to_owned());
        }
        self.is_not_permitted(action, fleet, policies, settings, at)
    }

    /// Why what is known now would not lead to the action, as if nothing had been done yet.
    fn is_not_permitted(
        &self,
        action: &Action,
        fleet: &Fleet,
        policies: &Policies,
        settings: &Settings,
        at: Time,
    ) -> Option<String> {
        let input = (self.input(fleet, policies.digest(), settings, at))
            .filter(|input| input.episode.number == action.key.episode);
        let Some(mut input) = input else {
            return Some("the episode has ended".to_owned());
        };
        input.taken.clear();
        let plan = decide(policies, &input);
        let (evidence, step) = (&plan.evidence, action.key.step);
        if evidence.level != davy_evidence::Level::Mining || evidence.classes.count() < 2 {
            return Some(format!("the evidence is {} now", evidence.level));
        }
        let stopped = |droplet: &&DropletId| !evidence.targets.contains(droplet);
        if let Some(droplet) = action.targets.iter().find(stopped) {
            return Some(format!("droplet {droplet} does not mine now"));
        }
        (!plan.steps.contains(&step)).then(|| format!("no rule permits to {step} now"))
    }
}
