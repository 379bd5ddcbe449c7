//! What people decide: unlock, allow, throttle, deny, and taking it back.
//!
//! Every release by hand sets the hold in the same change: it cannot be forgotten. What a person decides is theirs: no safety
//! stands against it. Two people deny; one unlocks.

use super::{Dossier, Event, HOLDS_MAX, Refusal};
use crate::{
    account::DropletId,
    action::{Action, By, Key, Parcel, Recipient, State},
    case::{self, Case, Finding, Opinion, Person, Ruling},
    episode::DropletEvidence,
    policy::Step,
    safety::{Allowed, Hold},
    settings::Settings,
    statement,
    text::Reason,
    time::{Span, Time},
};

impl Dossier {
    /// A person unlocks: what Davy and people did is undone, what was about to leave is withheld, the hold is set, and if the customer
    /// is in the right (`legitimate`) the flag as well; all at once. Of an appealed case it is a review and needs a `reason`; of any
    /// other, one that people have denied among them, a reason is kept if there is one.
    ///
    /// # Errors
    /// If there is no case, it is unlocked already, or the reason of a review is missing.
    pub fn unlock<'a>(
        &mut self,
        by: &Person,
        legitimate: bool,
        reason: Option<Reason>,
        earlier: impl IntoIterator<Item = (&'a str, &'a Reason)>,
        settings: &Settings,
        at: Time,
    ) -> Result<Vec<Event>, Refusal> {
        let ruling = if legitimate {
            Ruling::Legitimate
        } else {
            Ruling::Unsure
        };
        let case = self.case_mut()?;
        let reviews = case.takes_reviews();
        let opinion = reason.map(|reason| Opinion {
            by: by.clone(),
            at,
            finding: Finding::Unlock,
            measure: None,
            reason,
        });
        match opinion {
            Some(opinion) if reviews => {
                let decides = self.reviewed(at, |case| {
                    let decides = case.opine(opinion, earlier)?.is_some();
                    if decides {
                        case.state = case::State::Decided { ruling, at };
                    }
                    Ok(decides)
                })?;
                if !decides {
                    return Ok(self.unlocked_before(by, legitimate, settings, at));
                }
            }
            // One word is enough: its reason is kept with the case, and not held against the unlock.
            reason => {
                case.unlock(by, ruling, at)?;
                case.opinions.extend(reason);
            }
        }
        Ok(self.unlocked(by, ruling, settings, at))
    }

    /// The first review has unlocked it. The second one may still find more for the customer.
    fn unlocked_before(
        &mut self,
        by: &Person,
        legitimate: bool,
        settings: &Settings,
        at: Time,
    ) -> Vec<Event> {
        let case = self.case.as_ref().map(|case| case.id.clone());
        let given = case.map(|case| Event::OpinionGiven {
            case,
            by: by.clone(),
            finding: Finding::Unlock,
        });
        let mut events: Vec<_> = given.into_iter().collect();
        events.push(self.hold(by, settings, at));
        if legitimate {
            events.extend(self.allow(by, at));
        }
        events
    }

    fn unlocked(
        &mut self,
        by: &Person,
        ruling: Ruling,
        settings: &Settings,
        at: Time,
    ) -> Vec<Event> {
        let mut events: Vec<_> = (self.case.as_ref())
            .map(|case| Event::CaseDecided {
                case: case.id.clone(),
                ruling,
                by: by.clone(),
            })
            .into_iter()
            .collect();
        events.push(self.hold(by, settings, at));
        if ruling == Ruling::Legitimate {
            events.extend(self.allow(by, at));
        }
        let waited = self.conversation.is_some();
        (self.conversation, self.ruling) = (None, None);
        let undone = self.undo_all("a person looked at it and released your account", &by.0, at);
        let told = |event: &Event| matches!(event, Event::ActionPlanned { .. });
        // Whoever wrote hears of it, though there is nothing to undo.
        let felt = self.actions.iter().any(|action| self.is_felt(action));
        let quiet = waited && !felt && !undone.iter().any(told);
        let untold = self.case.as_ref().filter(|_| quiet);
        let letter = untold.map(|case| {
            let legitimate = ruling == Ruling::Legitimate;
            statement::of_unlock(legitimate, &self.seen(), &case.id, settings.hold_ms)
        });
        events.extend(undone);
        events.extend(
            letter.and_then(|text| self.write(Recipient::Customer, text, Some(by.to_string()), at)),
        );
        events
    }

    fn hold(&mut self, by: &Person, settings: &Settings, at: Time) -> Event {
        let until = at.after(settings.hold_ms);
        self.holds.push(Hold {
            since: at,
            until,
            by: by.to_string(),
        });
        if self.holds.len() > HOLDS_MAX {
            self.holds.remove(0);
        }
        Event::HoldSet {
            until,
            by: by.clone(),
        }
    }

    /// Another person's word that stands is theirs to take back, and stays.
    fn allow(&mut self, by: &Person, at: Time) -> Option<Event> {
        if self.allowed.is_some() {
            return None;
        }
        self.allowed = Some(Allowed {
            since: at,
            by: by.to_string(),
        });
        Some(Event::HighCpuAllowed { by: by.clone() })
    }

    /// A person allows the account all the CPU it likes, with or without a case. What automation did is undone.
    pub fn allow_high_cpu(&mut self, by: &Person, at: Time) -> Vec<Event> {
        let mut events: Vec<_> = self.allow(by, at).into_iter().collect();
        let keys: Vec<_> = (self.actions.iter())
            .filter(|action| action.is_automated() && !self.is_upheld(action, at))
            .map(|action| action.key.clone())
            .collect();
        events.extend(self.undo_each(keys, "a person allowed your account high CPU", &by.0, at));
        events
    }

    /// A person takes that word back; the provider's own flag stays as it is.
    ///
    /// # Errors
    /// If no person gave it.
    pub fn disallow_high_cpu(&mut self, by: &Person) -> Result<Vec<Event>, Refusal> {
        let missing = self.missing("Allow High CPU of a person's");
        self.allowed.take().ok_or(missing)?;
        Ok(vec![Event::HighCpuWithdrawn { by: by.clone() }])
    }

    /// A person proposes a denial, gives the second opinion on one, or reviews an appeal. The second of two that deny carries out
    /// the milder of their measures; one that differs unlocks.
    ///
    /// # Errors
    /// If there is nothing to decide, the person has given an opinion, the reason of a denial is not their own, or its measure would act
    /// on no droplet.
    pub fn opine<'a>(
        &mut self,
        opinion: Opinion,
        earlier: impl IntoIterator<Item = (&'a str, &'a Reason)>,
        settings: &Settings,
    ) -> Result<Vec<Event>, Refusal> {
        let (by, finding, at) = (opinion.by.clone(), opinion.finding, opinion.at);
        // The milder of two denials' measures is carried out.
        // A review that is kept from this reviewer tells nothing by this either.
        let open = self.case.iter().filter(|case| !case.is_kept_from(&by));
        let given = open.flat_map(|case| &case.opinions);
        let measures = given.filter_map(|held| held.measure).chain(opinion.measure);
        let denies = opinion.measure.is_some();
        let acts_on_droplets = denies && measures.min().is_some_and(|step| step != Step::Lock);
        if acts_on_droplets && self.suspects().is_empty() {
            return Err(
                self.missing("droplet that mined, or may have: a throttle or power-down would act on nothing; a lock acts on the account")
            );
        }
        let case = self.case_mut()?.id.clone();
        let ruling = self.reviewed(at, |case| case.opine(opinion, earlier))?;
        let mut events = vec![Event::OpinionGiven {
            case,
            by: by.clone(),
            finding,
        }];
        match ruling {
            None => {}
            Some(Ruling::Denied) => events.extend(self.denied(&by, settings, at)),
            Some(ruling) => events.extend(self.unlocked(&by, ruling, settings, at)),
        }
        Ok(events)
    }

    fn denied(&mut self, by: &Person, settings: &Settings, at: Time) -> Vec<Event> {
        self.conversation = None;
        let Some(case) = &self.case else {
            return Vec::new();
        };
        let id = case.id.clone();
        let mut events = vec![Event::CaseDecided {
            case: id.clone(),
            ruling: Ruling::Denied,
            by: by.clone(),
        }];
        (self.ruling, self.ruled_at) = (case.measure(), at);
        let people: Vec<_> = (case.opinions.iter())
            .map(|held| held.by.to_string())
            .collect();
        let reasons: Vec<_> = (case.opinions.iter())
            .map(|held| held.reason.as_str().to_owned())
            .collect();
        let reasons: Vec<_> = reasons.iter().map(String::as_str).collect();
        let Some(step) = self.ruling else {
            return events;
        };
        let by = people.join(", ");
        events.extend(self.undo_above(step, &by, at));
        let suspects = self.suspects();
        if suspects.is_empty() && step != Step::Lock {
            return events;
        }
        let tell =
            |droplets: &[DropletId]| statement::of_people(step, droplets, &reasons, &id, settings);
        let held = self.adopt(step, &suspects, &by, at.after(settings.throttle_ms));
        if let Some(held) = held {
            // That people decided so, and why, the customer is told all the same.
            events.extend(self.write(Recipient::Customer, tell(&held), Some(by), at));
        } else {
            let text = tell(&suspects);
            events.extend(self.withhold_for_anew(step, at));
            events.extend(self.act(step, by, text, settings, at));
        }
        events
    }

    /// What is known to stand on all of `droplets` already is the people's own from now on: no safety lifts it, and it lasts from now.
    /// Gives the droplets that it stands on. What is still in doubt may never have arrived, and is no substitute.
    fn adopt(
        &mut self,
        step: Step,
        droplets: &[DropletId],
        people: &str,
        until: Time,
    ) -> Option<Vec<DropletId>> {
        let stands = |action: &&Action| {
            let same = (action.key.step, action.key.undo) == (step, false);
            let done = matches!(action.state, State::Done { .. });
            same && done && !self.is_undone(&action.key) && action.holds(droplets)
        };
        let key = self.actions.iter().find(stands)?.key.clone();
        let action = self.action(&key).ok()?;
        let person = people.to_owned();
        action.by = By::Person { person };
        action.ends_at = action.ends_at.map(|end| end.max(until));
        Some(action.targets.clone())
    }

    /// What one person decided, and has not left yet, makes way for what two decide.
    fn withhold_for_anew(&mut self, step: Step, at: Time) -> Vec<Event> {
        let why = "two people decided on it";
        let mut events = Vec::new();
        for action in &mut self.actions {
            let key = action.key.clone();
            let same = (key.step, key.undo) == (step, false);
            if same && action.state.withhold(&key, at, why.to_owned()).is_ok() {
                let why = why.to_owned();
                events.push(Event::ActionWithheld { key, why });
            }
        }
        events
    }

    /// What is harsher than people decided ends, whoever did it.
    fn undo_above(&mut self, step: Step, by: &str, at: Time) -> Vec<Event> {
        let why = format!("people looked at it, and decided on no more than to {step}");
        let harsher: Vec<_> = (self.actions.iter())
            .filter(|action| action.key.step > step && !action.key.undo)
            .map(|action| action.key.clone())
            .collect();
        self.undo_each(harsher, &why, by, at)
    }

    /// An action that people decided, on the droplets in question; none without any, or without a case.
    fn act(
        &mut self,
        step: Step,
        person: String,
        statement: String,
        settings: &Settings,
        at: Time,
    ) -> Option<Event> {
        let targets = self.suspects();
        let nobody = targets.is_empty() && step != Step::Lock;
        if nobody {
            return None;
        }
        let case = self.case.as_ref()?.id.clone();
        let same = |action: &&Action| {
            action.key.episode == self.episodes && action.key.step == step && !action.key.undo
        };
        let turns = self
            .actions
            .iter()
            .filter(same)
            .map(|action| action.key.turn);
        let key = Key {
            account: self.account.clone(),
            episode: self.episodes,
            step,
            turn: turns.max().unwrap_or(0) + 1,
            undo: false,
        };
        self.put(Action {
            key,
            targets,
            by: By::Person { person },
            planned_at: at,
            ends_at: (step == Step::Throttle).then(|| at.after(settings.throttle_ms)),
            statement,
            state: State::Planned,
            paged: false,
            case: Some(case),
            sent: false,
        })
    }

    /// Droplets that mined in this episode, or were acted on before, and are the account's as far as is known; if nothing mined,
    /// those that may have.
    fn suspects(&self) -> Vec<DropletId> {
        let mut droplets = self
            .episode
            .iter()
            .flat_map(|episode| episode.droplets.values());
        // Another account's miner is no reason to act on what this one's droplets may be.
        if droplets.any(|droplet| droplet.mining.total_ms > Span::ZERO) {
            return self.those_that(|droplet| droplet.mining.total_ms);
        }
        self.those_that(|droplet| droplet.suspect.total_ms)
    }

    fn those_that(&self, show: fn(&DropletEvidence) -> Span) -> Vec<DropletId> {
        let shown = self.episode.iter().flat_map(|episode| {
            (episode.droplets.iter())
                .filter(|(_, droplet)| show(droplet) > Span::ZERO)
                .map(|(id, _)| id.clone())
        });
        let acted = (self.actions.iter())
            .filter(|action| action.key.episode == self.episodes)
            .flat_map(|action| action.targets.iter().cloned());
        let own = |droplet: &DropletId| {
            let inventory = self.facts.droplets.as_ref();
            inventory.is_none_or(|known| known.value.contains_key(droplet))
        };
        let all: std::collections::BTreeSet<_> = shown.chain(acted).filter(own).collect();
        all.into_iter().collect()
    }

    /// A person caps the CPU of the droplets in question, for a day.
    ///
    /// # Errors
    /// If there is no case, no droplet to throttle, or they are throttled.
    pub fn throttle(
        &mut self,
        by: &Person,
        reason: &Reason,
        settings: &Settings,
        at: Time,
    ) -> Result<Vec<Event>, Refusal> {
        let case = self.case_mut()?.id.clone();
        let suspects = self.suspects();
        if suspects.is_empty() {
            return Err(
                self.missing("droplet that mined, or may have: there is nothing to throttle")
            );
        }
        let stands = |action: &Action| {
            let peoples = matches!(action.by, By::Person { .. }) && action.is_under_way();
            let stands = peoples || matches!(action.state, State::Done { .. });
            stands && (action.key.step, action.key.undo) == (Step::Throttle, false)
        };
        let mut held = self.actions.iter().filter(|action| stands(action));
        if held.any(|action| !self.is_undone(&action.key) && action.holds(&suspects)) {
            return Err(self.missing("droplet that is not throttled; renew the throttle instead"));
        }
        let reasons = [reason.as_str()];
        let text = statement::of_people(Step::Throttle, &suspects, &reasons, &case, settings);
        let event = self.act(Step::Throttle, by.to_string(), text, settings, at);
        Ok(event.into_iter().collect())
    }

    /// A person lets the throttle in effect go on, for as long as one lasts from now.
    ///
    /// # Errors
    /// If none is in effect.
    pub fn renew(
        &mut self,
        by: &Person,
        settings: &Settings,
        at: Time,
    ) -> Result<Vec<Event>, Refusal> {
        let missing = self.missing("throttle in effect");
        self.in_effect(Step::Throttle).ok_or(missing)?;
        let until = at.after(settings.throttle_ms);
        let held: Vec<_> = (self.actions.iter())
            .filter(|action| (action.key.step, action.key.undo) == (Step::Throttle, false))
            .filter(|action| action.may_be_felt() && !self.is_undone(&action.key))
            .map(|action| action.key.clone())
            .collect();
        for action in (self.actions.iter_mut()).filter(|action| held.contains(&action.key)) {
            action.ends_at = Some(until);
        }
        let by = by.clone();
        Ok(vec![Event::ThrottleRenewed { until, by }])
    }

    /// A person lifts the throttle, and withholds one that is about to leave. As every release by hand it sets the hold.
    ///
    /// # Errors
    /// If there is none.
    pub fn unthrottle(
        &mut self,
        by: &Person,
        settings: &Settings,
        at: Time,
    ) -> Result<Vec<Event>, Refusal> {
        let keys: Vec<_> = (self.actions.iter())
            .filter(|action| action.key.step == Step::Throttle && !action.key.undo)
            .filter(|action| action.is_under_way() || action.may_be_felt())
            .filter(|action| !self.is_undone(&action.key))
            .map(|action| action.key.clone())
            .collect();
        if keys.is_empty() {
            return Err(self.missing("throttle in effect"));
        }
        let mut events = vec![self.hold(by, settings, at)];
        events.extend(self.undo_each(keys, "a person lifted it", &by.0, at));
        Ok(events)
    }

    /// Takes the last thing back, in one step: one's own denial while it waits for a second one, a decision of people's if there is
    /// one, else what automation did. What an unlock did not undo yet comes first.
    ///
    /// A denial's actions are undone, with a hold. Of an unlock the flag that it set goes; its hold stays, since nothing automated may
    /// happen before it ends. The case is the person's to decide anew, and denials given so far count for nothing: who lifts what was
    /// done does not leave half a denial standing.
    ///
    /// # Errors
    /// If there is nothing to take back.
    pub fn take_back(
        &mut self,
        by: &Person,
        settings: &Settings,
        at: Time,
    ) -> Result<Vec<Event>, Refusal> {
        let case = self.case_mut()?;
        let id = case.id.clone();
        if case.withdraw(by) {
            let by = by.clone();
            if case.sealed.as_ref().is_some_and(|seal| seal.withdrawn) {
                self.sealed = None;
            }
            return Ok(vec![Event::OpinionWithdrawn { case: id, by }]);
        }
        let decided = matches!(case.state, case::State::Decided { .. });
        if !decided {
            let felt = self.actions.iter().any(|action| self.is_felt(action));
            if !felt && self.ruling.is_none() {
                return Err(self.missing("decision or action to take back"));
            }
            // Of a case that is closed, or taken up again: what was decided does not go on working by itself.
            self.ruling = None;
            self.case_mut()?.void_denials();
            let mut events = vec![self.hold(by, settings, at)];
            events.extend(self.undo_all("a person took it back", &by.0, at));
            return Ok(events);
        }
        // What an unlock was to undo, and the control plane refused, is asked for again; the unlock stands.
        let unlocked = !matches!(
            case.state,
            case::State::Decided {
                ruling: Ruling::Denied,
                ..
            }
        );
        if unlocked && self.actions.iter().any(|action| self.is_felt(action)) {
            let mut events = self.undo_all("a person took it back", &by.0, at);
            if !events.is_empty() {
                events.push(self.hold(by, settings, at));
                return Ok(events);
            }
        }
        let decided_at = self.case.as_ref().and_then(Case::decided_at);
        let ruling = self.case_mut()?.reopen(by, at)?;
        let mut events = vec![Event::TakenBack {
            case: id,
            ruling,
            by: by.clone(),
        }];
        match ruling {
            // A word that was given apart from the unlock stays.
            Ruling::Legitimate => {
                self.allowed.take_if(|held| Some(held.since) == decided_at);
            }
            Ruling::Unsure => {}
            Ruling::Denied => {
                self.ruling = None;
                events.push(self.hold(by, settings, at));
                events.extend(self.undo_all("a person took the decision back", &by.0, at));
            }
        }
        Ok(events)
    }

    /// Everything in the outbox, settled or not.
    pub(super) fn parcels(&self) -> Vec<Parcel> {
        let actions = (self.actions.iter()).map(|action| Parcel::Action(action.key.clone()));
        let letters = (self.letters.iter()).map(|letter| Parcel::Letter {
            account: self.account.clone(),
            number: letter.number,
        });
        actions.chain(letters).collect()
    }

    pub(super) fn state_mut(&mut self, parcel: &Parcel) -> Option<&mut State> {
        match parcel {
            Parcel::Action(key) => (self.actions.iter_mut())
                .find(|action| action.key == *key)
                .map(|action| &mut action.state),
            Parcel::Letter { number, .. } => (self.letters.iter_mut())
                .find(|letter| letter.number == *number)
                .map(|letter| &mut letter.state),
        }
    }
}
