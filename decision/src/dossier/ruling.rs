//! What people decide against an account: throttle, renew, deny. What they decide is theirs: no safety stands against it. Two people
//! deny.

use super::outbox::undone_by;
use super::{Dossier, Event, Refusal};
use crate::{
    account::DropletId,
    action::{Action, By, Key, Recipient, State},
    case::{Opinion, Person, Ruling},
    episode::DropletEvidence,
    policy::Step,
    settings::Settings,
    statement,
    text::Reason,
    time::{Span, Time},
};

impl Dossier {
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
        let measure = measures.min().filter(|_| denies);
        let acts_on_droplets = measure.is_some_and(|step| step != Step::Lock);
        if acts_on_droplets && self.suspects().is_empty() {
            return Err(self.missing(
                "droplet that mined, or may have: a throttle or power-down would act on nothing",
            ));
        }
        // A lock acts on the account, for what its droplets did: it needs that they did.
        if measure.is_some() && !self.has_shown() {
            return Err(
                self.missing("evidence on a droplet of its own: what Davy has not seen is to be dealt with elsewhere")
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
        let until = at.after(settings.throttle_ms);
        let ends_at = (step == Step::Throttle).then_some(until);
        let tell = |droplets: &[DropletId], ends_at| {
            statement::of_people(step, droplets, &reasons, ends_at, &id, settings)
        };
        if let Some(held) = self.adopt(step, &suspects, &by, until) {
            // That people decided so, and why, the customer is told all the same, for as long as it holds.
            let text = tell(&held.targets, held.ends_at);
            events.extend(self.write_about(
                Some(held.key),
                Recipient::Customer,
                text,
                Some(by),
                at,
            ));
        } else {
            let text = tell(&suspects, ends_at);
            events.extend(self.withhold_for_anew(step, at));
            events.extend(self.act(step, by, text, settings, at));
        }
        events
    }

    /// What is known to stand on all of `droplets` already is the people's own from now on: no safety lifts it, and it lasts from now.
    /// Gives what stands. What is still in doubt may never have arrived, and is no substitute.
    fn adopt(
        &mut self,
        step: Step,
        droplets: &[DropletId],
        people: &str,
        until: Time,
    ) -> Option<Action> {
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
        Some(action.clone())
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

    /// Whether a droplet of the account's own, deleted since or not, showed evidence, or was acted on.
    fn has_shown(&self) -> bool {
        let mut droplets = (self.episode.iter()).flat_map(|episode| episode.droplets.values());
        let shown = |held: &DropletEvidence| {
            held.own && held.mining.total_ms.max(held.suspect.total_ms) > Span::ZERO
        };
        let acted = self.actions.iter().any(|action| !action.targets.is_empty());
        droplets.any(shown) || acted || !self.suspects().is_empty()
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
        let until = at.after(settings.throttle_ms);
        let text = statement::of_people(
            Step::Throttle,
            &suspects,
            &reasons,
            Some(until),
            &case,
            settings,
        );
        let event = self.act(Step::Throttle, by.to_string(), text, settings, at);
        Ok(event.into_iter().collect())
    }

    /// A person lets the throttle in effect go on, for as long as one lasts from now. The customer, who was told of another end, is
    /// told of this one and why.
    ///
    /// # Errors
    /// If none is in effect.
    pub fn renew(
        &mut self,
        by: &Person,
        reason: &Reason,
        settings: &Settings,
        at: Time,
    ) -> Result<Vec<Event>, Refusal> {
        let missing = self.missing("throttle in effect");
        let last = self.in_effect(Step::Throttle).ok_or(missing)?;
        let (key, droplets) = (last.key.clone(), last.targets.clone());
        let until = at.after(settings.throttle_ms);
        let held: Vec<_> = (self.actions.iter())
            .filter(|action| (action.key.step, action.key.undo) == (Step::Throttle, false))
            .filter(|action| action.may_be_felt() && !self.is_undone(&action.key))
            .map(|action| action.key.clone())
            .collect();
        for action in (self.actions.iter_mut()).filter(|action| held.contains(&action.key)) {
            action.ends_at = Some(until);
        }
        // That its end could not be asked for a moment ago does not end it now.
        for undoing in &mut self.actions {
            let over = held.contains(&undone_by(&undoing.key)) && !undoing.by.is_person();
            if undoing.key.undo && over && matches!(undoing.state, State::Refused { .. }) {
                let why = "a person renewed the throttle".to_owned();
                undoing.state = State::Withheld { at, why };
            }
        }
        let case = self.case.as_ref().map(|case| case.id.clone());
        let letter = case.and_then(|case| {
            let text = statement::of_renewal(&droplets, until, reason.as_str(), &case, settings);
            self.write_about(
                Some(key),
                Recipient::Customer,
                text,
                Some(by.to_string()),
                at,
            )
        });
        let by = by.clone();
        let mut events = vec![Event::ThrottleRenewed { until, by }];
        events.extend(letter);
        Ok(events)
    }
}
