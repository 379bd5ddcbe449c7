//! An account's turn: what time alone brings, then a decision; and when to look next.

use davy_evidence::Level;

use super::{Dossier, Event, Gist, outbox::undone_by};
use crate::{
    action::{Action, Key, Recipient, State},
    case::Case,
    decide::{Input, Plan, decide},
    fleet::Fleet,
    policy::{Policies, Step},
    safety::Safety,
    settings::Settings,
    statement,
    time::{Span, Time},
};

/// When facts could not be fetched, or do not have a droplet that shows evidence, they are asked for again after this.
const FETCH_AGAIN: Span = Span::minutes(1);

/// New evidence makes an account due, at most so often: as often as an agent reports, by default.
const LOOK_EVERY: Span = Span::seconds(10);

/// An undoing that the control plane refused, or a page, is tried again by itself after this; a person may undo at any time.
const UNDO_AGAIN: Span = Span::minutes(15);

/// A page that was refused is tried again for so long after it was written.
const PAGE_AGAIN_FOR: Span = Span::days(1);

/// Somebody is paged when an undoing or a letter to the customer is not done after this.
const LATE: Span = Span::minutes(10);

/// So often a step that never arrived is planned anew in an episode; people have its case all along.
const TURNS_MAX: u32 = 8;

/// A customer whose word nobody has decided on is brought to mind again: the first time after so long, then each time after as long as it
/// has been, and at least so often; that is also how often once they have an answer.
const UNDECIDED_EVERY: (Span, Span) = (Span::minutes(60), Span::days(1));

/// What a turn brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// What happened.
    pub events: Vec<Event>,
    /// The decision that was made and is to be stored, if it is another one than the last.
    pub decision: Option<(Input, Plan)>,
}

impl Dossier {
    /// Takes the account's turn at `at`. The fleet's record is looked at, not changed.
    pub fn turn(
        &mut self,
        fleet: &Fleet,
        policies: &Policies,
        settings: &Settings,
        at: Time,
    ) -> Turn {
        let mut events = self.tick(settings, at);
        let mut decision = None;
        if let Some(input) = self.input(fleet, policies.digest(), settings, at) {
            let plan = decide(policies, &input);
            let same = self.gist.as_ref() == Some(&Gist::of(&plan));
            if !same || self.asks_anew(&plan, settings, at) {
                events.extend(self.apply(&plan, settings, at));
                decision = Some((input, plan));
            }
        }
        self.clock = self.clock.max(at);
        self.looked_at = at;
        Turn { events, decision }
    }

    /// Whether a plan asks for a step that changes something. What was withheld is tried anew, not at once.
    fn asks_anew(&self, plan: &Plan, settings: &Settings, at: Time) -> bool {
        let rests = |action: &Action| match action.state {
            State::Withheld { at: withheld, .. } => {
                let over = action.sent && action.key.turn >= TURNS_MAX;
                at - withheld < settings.plan_fresh_ms || over
            }
            _ => false,
        };
        let resting = |step: Step| {
            let last = self.last_automated(self.episodes, step);
            last.is_some_and(rests)
        };
        // Nobody is acted on who cannot be told, or was told that the notice stands no more: there is no use in planning it again and
        // again.
        let untold = (self.actions.iter()).any(|action| {
            let key = &action.key;
            (key.episode, key.step, key.undo) == (self.episodes, Step::Notify, false)
                && (matches!(action.state, State::Refused { .. }) || self.is_undone(key))
        });
        let mut steps = plan.steps.iter().filter(|step| **step > Step::CloserLook);
        steps.any(|step| !resting(*step) && (!untold || *step <= Step::Notify))
    }

    /// What time alone brings: a release without an answer is in doubt, a throttle ends, an unanswered lock steps back, what speaks
    /// for the customer by now undoes, somebody is paged, an episode ends.
    pub fn tick(&mut self, settings: &Settings, at: Time) -> Vec<Event> {
        self.set_back(settings, at);
        let mut events = self.doubt_late_ones(settings, at);
        events.extend(self.try_again(at));
        events.extend(self.page_late_ones(at));
        events.extend(self.end_throttles(at));
        let overdue = (self.conversation.as_ref())
            .is_some_and(|conversation| at - conversation.since >= settings.step_back_ms);
        if overdue && self.is_locked() {
            events.extend(self.step_back(settings, at));
        }
        events.extend(self.heed_safeties(settings, at));
        events.extend(self.leave_others(at));
        let locked = self.is_locked();
        if let Some(case) = &mut self.case
            && case.page_due(at, settings.first_answer_ms)
            && let Some(since) = case.waiting_since
        {
            case.paged = true;
            let case = case.id.clone();
            let text = statement::page_waiting(&case, since, locked);
            events.push(Event::Paged { case });
            events.extend(self.write(Recipient::OnCall, text, None, at));
        }
        events.extend(self.remind(settings, at));
        events.extend(self.remind_undecided(at));
        events.extend(self.end_episode(at, settings));
        self.clock = self.clock.max(at);
        events
    }

    /// An appeal's second review that does not come is nobody's to forget: until it is in, others do not read what came of the first.
    fn remind(&mut self, settings: &Settings, at: Time) -> Vec<Event> {
        let due = |case: &&mut Case| {
            let due = case.reminder_due(settings.step_back_ms);
            due.is_some_and(|due| due <= at)
        };
        let Some(case) = self.case.as_mut().filter(due) else {
            return Vec::new();
        };
        if let Some(seal) = &mut case.sealed {
            seal.reminded = true;
        }
        let case = case.id.clone();
        let text = statement::page_review(&case, settings.step_back_ms);
        let page = self.write(Recipient::OnCall, text, None, at);
        std::iter::once(Event::Paged { case }).chain(page).collect()
    }

    /// When somebody is to be told again of a customer's word that nobody has decided on: an answer alone ends no wait.
    fn undecided_due(&self) -> Option<Time> {
        let case = self.case.as_ref()?;
        let talks = case.talks_since?;
        let (first, most) = UNDECIDED_EVERY;
        let last = case.reminded_at.unwrap_or(talks).max(talks);
        let unanswered = case.waiting_since.is_some();
        Some(last.after(if unanswered {
            (last - talks).clamp(first, most)
        } else {
            most
        }))
    }

    fn remind_undecided(&mut self, at: Time) -> Option<Event> {
        let due = self.undecided_due().is_some_and(|due| due <= at);
        let case = self.case.as_mut().filter(|_| due)?;
        case.reminded_at = Some(at);
        let (id, since) = (case.id.clone(), case.talks_since?);
        let text = statement::page_undecided(&id, since, case.waiting_since.is_some());
        self.write(Recipient::OnCall, text, None, at)
    }

    /// Whoever released them may be gone.
    fn doubt_late_ones(&mut self, settings: &Settings, at: Time) -> Vec<Event> {
        let mut events = Vec::new();
        for parcel in self.parcels() {
            let Some(state) = self.state_mut(&parcel) else {
                continue;
            };
            if let State::Released { at: released } = *state
                && at - released >= answer_within(settings)
            {
                state.doubt(at);
                let state = state.clone();
                events.push(Event::Learned { parcel, state });
            }
        }
        events
    }

    /// After a clock was set right again, what was noted by the wrong one lies ahead. What the customer waits for is not to take longer
    /// for that: it counts from now.
    fn set_back(&mut self, settings: &Settings, at: Time) {
        if self.clock_doubt(at).is_none() {
            return;
        }
        if let Some(conversation) = &mut self.conversation {
            conversation.since = conversation.since.min(at);
        }
        if let Some(case) = &mut self.case {
            for since in [
                &mut case.waiting_since,
                &mut case.talks_since,
                &mut case.reminded_at,
            ] {
                *since = since.map(|since| since.min(at));
            }
            if let Some(seal) = &mut case.sealed {
                seal.at = seal.at.min(at);
            }
        }
        self.ruled_at = self.ruled_at.min(at);
        let latest = at.after(settings.throttle_ms);
        for action in &mut self.actions {
            action.ends_at = action.ends_at.map(|end| end.min(latest));
            action.planned_at = action.planned_at.min(at);
        }
        for letter in &mut self.letters {
            letter.written_at = letter.written_at.min(at);
        }
        let states = (self.actions.iter_mut().map(|action| &mut action.state))
            .chain(self.letters.iter_mut().map(|letter| &mut letter.state));
        for state in states {
            match state {
                State::Released { at: released } if *released > at => state.doubt(at),
                State::Doubtful {
                    query_at, since, ..
                } => {
                    (*query_at, *since) = ((*query_at).min(at), (*since).min(at));
                }
                State::Refused { at: then, .. } | State::Withheld { at: then, .. } => {
                    *then = (*then).min(at);
                }
                State::Planned | State::Released { .. } | State::Done { .. } => {}
            }
        }
    }

    /// What lifts something, or pages, and was refused, is asked for again: for as long as the customer feels what is to be lifted, and
    /// people have not decided on it anew.
    fn try_again(&mut self, at: Time) -> Vec<Event> {
        let rested = |state: &State| match state {
            State::Refused { at: refused, .. } => at - *refused >= UNDO_AGAIN,
            _ => false,
        };
        let overruled = |held: &Action| {
            let ruled = self.ruling.is_some_and(|ruling| ruling >= held.key.step);
            ruled && held.planned_at < self.ruled_at
        };
        let again: Vec<_> = (self.actions.iter())
            .filter(|held| held.key.undo && rested(&held.state) && !overruled(held))
            .filter(|held| {
                let undone = |action: &&Action| action.key == undone_by(&held.key);
                (self.actions.iter())
                    .find(undone)
                    .is_some_and(|action| self.is_felt(action))
            })
            .map(|held| held.key.clone())
            .collect();
        let mut events = Vec::new();
        for action in (self.actions.iter_mut()).filter(|held| again.contains(&held.key)) {
            (action.state, action.planned_at) = (State::Planned, at);
            let key = action.key.clone();
            events.push(Event::ActionPlanned { key });
        }
        for letter in &mut self.letters {
            let fresh = at - letter.written_at <= PAGE_AGAIN_FOR;
            if letter.to == Recipient::OnCall && fresh && rested(&letter.state) {
                letter.state = State::Planned;
                let (number, to) = (letter.number, letter.to);
                events.push(Event::LetterWritten { number, to });
            }
        }
        events
    }

    /// Somebody is told of what the customer waits for in vain: the control plane does not answer, or not to the point.
    fn page_late_ones(&mut self, at: Time) -> Vec<Event> {
        let late = |state: &State, paged: bool, since: Time| {
            !paged && state.is_under_way() && at - since >= LATE
        };
        let mut texts = Vec::new();
        let Some(case) = self.case.as_ref().map(|case| case.id.clone()) else {
            return Vec::new();
        };
        for action in &mut self.actions {
            if action.key.undo && late(&action.state, action.paged, action.planned_at) {
                action.paged = true;
                let why = format!(
                    "it is {} for {}",
                    action.state.name(),
                    at - action.planned_at
                );
                texts.push(statement::page_undo(&action.key.to_string(), &why, &case));
            }
        }
        for letter in &mut self.letters {
            let to_customer = letter.to == Recipient::Customer;
            if to_customer && late(&letter.state, letter.paged, letter.written_at) {
                letter.paged = true;
                let why = format!(
                    "it is {} for {}",
                    letter.state.name(),
                    at - letter.written_at
                );
                texts.push(statement::page_letter(letter.number, &why, &letter.case));
            }
        }
        (texts.into_iter())
            .filter_map(|text| self.write(Recipient::OnCall, text, None, at))
            .collect()
    }

    /// Whether its undoing was refused a moment ago: on-call was paged, and it is not asked for at every turn.
    fn undo_rests(&self, action: &Action, at: Time) -> bool {
        (self.actions.iter()).any(|held| {
            let same = undone_by(&held.key) == action.key;
            let refused = |state: &State| match state {
                State::Refused { at: refused, .. } => at - *refused < UNDO_AGAIN,
                _ => false,
            };
            held.key.undo && same && refused(&held.state)
        })
    }

    /// What is felt beyond its end, and is to be undone now.
    fn ended(&self, at: Time) -> Vec<Key> {
        (self.actions.iter())
            .filter(|action| action.ends_at.is_some_and(|end| end <= at))
            .filter(|action| self.is_felt(action) && !self.is_undone(&action.key))
            .filter(|action| !self.undo_rests(action, at) && !self.is_upheld(action, at))
            .map(|action| action.key.clone())
            .collect()
    }

    fn end_throttles(&mut self, at: Time) -> Vec<Event> {
        let ended = self.ended(at);
        (ended.iter())
            .filter_map(|key| self.undo(key, "it was meant to end by now", None, at))
            .collect()
    }

    /// Back to a throttle at most: what locks is undone, a throttle stays. None is put in its place: the customer has spoken, and that keeps new
    /// measures away.
    fn step_back(&mut self, settings: &Settings, at: Time) -> Vec<Event> {
        let mut events = Vec::new();
        let capped = self.in_effect(Step::Throttle).map_or("", |_| {
            "; the cap on the CPU of your droplets stays until its own end, or until a person lifts it"
        });
        let why = format!(
            "you wrote to us, and no person decided within {}{capped}",
            settings.step_back_ms
        );
        for step in [Step::PowerDown, Step::Lock] {
            let locking: Vec<_> = (self.actions.iter())
                .filter(|action| action.key.step == step && self.is_felt(action))
                .filter(|action| !self.undo_rests(action, at))
                .map(|action| action.key.clone())
                .collect();
            events.extend(
                locking
                    .iter()
                    .filter_map(|key| self.undo(key, &why, None, at)),
            );
        }
        if let (Some(case), false) = (&self.case, events.is_empty()) {
            let case = case.id.clone();
            events.insert(0, Event::SteppedBack { case });
        }
        events
    }

    /// What automation did does not outlast a safety that is the customer's own. That the customer wrote lifts nothing by itself: it
    /// keeps further actions away, and a lock steps back in time.
    fn heed_safeties(&mut self, settings: &Settings, at: Time) -> Vec<Event> {
        let Some((safety, keys)) = self.outlasting(settings, at) else {
            return Vec::new();
        };
        let why = format!("since then, {}", safety.in_words());
        (keys.iter())
            .filter_map(|key| self.undo(key, &why, None, at))
            .collect()
    }

    /// What of automation's is to be undone now because of a safety of the customer's own, and which.
    fn outlasting(&self, settings: &Settings, at: Time) -> Option<(Safety, Vec<Key>)> {
        let keys: Vec<_> = (self.actions.iter())
            .filter(|action| self.is_automations(action) && !self.undo_rests(action, at))
            .filter(|action| !self.is_upheld(action, at))
            .map(|action| action.key.clone())
            .collect();
        if keys.is_empty() {
            return None;
        }
        let mut spoken = self.speaks_for(settings, at).into_iter();
        let safety = spoken.find(|safety| *safety != Safety::OpenConversation)?;
        Some((safety, keys))
    }

    /// What automation did ends when none of the droplets it was done to is the account's any more: it is another customer's now, or
    /// nobody's.
    fn leave_others(&mut self, at: Time) -> Vec<Event> {
        let why = "none of these droplets is your account's any more";
        (self.others(at).iter())
            .filter_map(|key| self.undo(key, why, None, at))
            .collect()
    }

    fn others(&self, at: Time) -> Vec<Key> {
        let Some(known) = &self.facts.droplets else {
            return Vec::new();
        };
        let gone = |action: &&Action| {
            let own = |droplet| known.value.contains_key(droplet);
            !action.targets.is_empty() && !action.targets.iter().any(own)
        };
        (self.actions.iter())
            .filter(|action| self.is_automations(action) && !self.undo_rests(action, at))
            .filter(gone)
            .map(|action| action.key.clone())
            .collect()
    }

    /// Whether it is automation's, the customer feels it, and nothing ends it yet.
    fn is_automations(&self, action: &Action) -> bool {
        action.is_automated() && self.is_felt(action) && !self.is_undone(&action.key)
    }

    /// Whether facts are to be fetched now: an episode needs them, or what automation did is felt, and they are missing, old, or could
    /// not be fetched a while ago.
    #[must_use]
    pub fn wants_facts(&self, settings: &Settings, at: Time) -> bool {
        self.facts_due(settings).is_some_and(|due| due <= at)
    }

    fn facts_due(&self, settings: &Settings) -> Option<Time> {
        // While a review is kept from others the record is to tell nothing of what came of it, this neither.
        let felt = self.actions.iter().any(|held| self.is_automations(held));
        if self.episode.is_none() && !felt && self.sealed.is_none() {
            return None;
        }
        let Some(fetched) = self.fetched_at else {
            return Some(Time::default());
        };
        // Evidence on a droplet that is not known to be the account's: a newer inventory tells.
        let strange = self.episode.as_ref().is_some_and(|episode| {
            let mut strangers = episode
                .strangers()
                .filter_map(|id| episode.droplets.get(id));
            strangers.any(|droplet| droplet.last.to > fetched)
        });
        let after = match strange || self.fetch_failed.is_some() {
            true => FETCH_AGAIN.min(settings.facts_refresh_ms),
            false => settings.facts_refresh_ms,
        };
        Some(fetched.after(after))
    }

    /// When evidence that no turn has looked at is to be: what adds up reaches a limit without anything else that is new. After a clock
    /// was set back, soon.
    fn evidence_due(&self, at: Time) -> Option<Time> {
        let mut droplets = self
            .episode
            .iter()
            .flat_map(|episode| episode.droplets.values());
        let unseen = droplets.any(|droplet| droplet.last.to > self.looked_at);
        unseen.then(|| self.looked_at.min(at).after(LOOK_EVERY).max(at))
    }

    /// When the account is to be looked at next if nothing happens to it; never before `at`.
    #[must_use]
    pub fn due(&self, fleet: &Fleet, settings: &Settings, at: Time) -> Option<Time> {
        if !self.errands(fleet, at).is_empty() {
            return Some(at);
        }
        let states = (self.actions.iter().map(|action| &action.state))
            .chain(self.letters.iter().map(|letter| &letter.state));
        let late = (self.actions.iter())
            .filter(|action| action.key.undo && action.is_under_way() && !action.paged)
            .map(|action| action.planned_at.after(LATE));
        let late_letters = (self.letters.iter())
            .filter(|letter| letter.to == Recipient::Customer && !letter.paged)
            .filter(|letter| letter.state.is_under_way())
            .map(|letter| letter.written_at.after(LATE));
        let again = (self.letters.iter())
            .filter(|letter| letter.to == Recipient::OnCall)
            .filter(|letter| at - letter.written_at <= PAGE_AGAIN_FOR)
            .filter_map(|letter| match letter.state {
                State::Refused { at, .. } => Some(at.after(UNDO_AGAIN)),
                _ => None,
            });
        let outbox = states.filter_map(|state| match state {
            State::Released { at } => Some(at.after(answer_within(settings))),
            State::Doubtful { query_at, .. } => Some(*query_at),
            _ => None,
        });
        let ends = (self.actions.iter())
            .filter(|action| self.is_felt(action) && !self.is_undone(&action.key))
            .filter_map(|action| action.ends_at);
        let waits = (self.conversation.as_ref())
            .filter(|_| self.is_locked())
            .map(|conversation| conversation.since.after(settings.step_back_ms));
        let page = (self.case.as_ref())
            .filter(|case| !case.paged)
            .and_then(|case| case.waiting_since)
            // One ms later: a page is due when the limit has passed.
            .map(|since| since.after(settings.first_answer_ms.plus(Span::ms(1))));
        let reminder =
            (self.case.as_ref()).and_then(|case| case.reminder_due(settings.step_back_ms));
        let evidence = self.episode.iter().flat_map(|episode| {
            let stale = (episode.droplets.values())
                .filter(|droplet| droplet.last.level > Level::Quiet)
                .map(|droplet| {
                    let fresh = settings.evidence_fresh_ms.plus(Span::ms(1));
                    droplet.last.to.after(fresh)
                });
            stale.chain([episode.stirred.after(settings.episode_quiet_ms)])
        });
        let held = (self.holds.iter().map(|hold| hold.until)).filter(|_| self.episode.is_some());
        let withheld = (self.actions.iter()).filter_map(|action| match action.state {
            State::Refused { at, .. } if action.key.undo => Some(at.after(UNDO_AGAIN)),
            State::Withheld { at, .. } if self.episode.is_some() && !action.key.undo => {
                Some(at.after(settings.plan_fresh_ms))
            }
            _ => None,
        });
        outbox
            .chain(late)
            .chain(late_letters)
            .chain(again)
            .chain(ends)
            .chain(waits)
            .chain(page)
            .chain(reminder)
            .chain(self.undecided_due())
            .chain(evidence)
            .chain(held)
            .chain(withheld)
            .filter(|due| *due > at)
            .chain(self.evidence_due(at))
            .chain(self.outlasting(settings, at).map(|_| at))
            .chain((!self.ended(at).is_empty()).then_some(at))
            .chain((!self.others(at).is_empty()).then_some(at))
            .chain(self.facts_due(settings).map(|due| due.max(at)))
            .min()
    }
}

/// A release without an answer is in doubt after this: twice as long as the control plane may take it.
pub(super) fn answer_within(settings: &Settings) -> Span {
    settings.delivery_ms.plus(settings.delivery_ms)
}
