//! All that is held of one account, and every way it changes. Pure: a transaction reads a dossier and the fleet, calls one of
//! these, and writes both back with the events.
//!
//! That is why a release and everything that sets a safety exclude each other: they change the same record. What a
//! method refuses leaves the dossier as it was.

mod event;
mod people;

use serde::{Deserialize, Serialize};

pub use event::{Event, Refusal};

use crate::{
    account::{AccountId, Facts},
    action::{Action, By, Key, Outcome, State},
    case::{Case, CaseId},
    decide::{Input, Plan, in_force},
    episode::{Episode, Sighting},
    fleet::Fleet,
    policy::Step,
    safety::{self, Allowed, Conversation, Ground, Hold},
    settings::Settings,
    time::Time,
};

/// Most actions that are kept of an account; settled ones of earlier episodes go first.
const ACTIONS_MAX: usize = 200;
/// Keys of customers' messages that are kept, so that a message told twice counts once.
const MESSAGE_KEYS_MAX: usize = 1_000;
/// Holds that are kept, ended ones included.
const HOLDS_MAX: usize = 100;

/// The record of one account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dossier {
    /// Whose.
    pub account: AccountId,
    /// What is known.
    pub facts: Facts,
    /// Why facts could not be fetched the last time, if so.
    pub fetch_failed: Option<String>,
    /// Episodes so far.
    pub episodes: u64,
    /// The present one.
    pub episode: Option<Episode>,
    /// A person's word that high CPU is allowed.
    pub allowed: Option<Allowed>,
    /// Holds, ended ones included.
    pub holds: Vec<Hold>,
    /// The customer waits for a person.
    pub conversation: Option<Conversation>,
    /// How far automation may go again, by what people decided.
    pub ruling: Option<Step>,
    /// Decisions so far.
    pub decisions: u64,
    /// Cases so far.
    pub cases: u64,
    /// The case that is not closed.
    pub case: Option<Case>,
    /// Actions.
    pub actions: Vec<Action>,
    /// Keys of customers' messages, the latest last.
    pub message_keys: Vec<String>,
}

impl Dossier {
    /// Of an account of which nothing is known.
    #[must_use]
    pub fn new(account: AccountId) -> Self {
        Self {
            account,
            facts: Facts::default(),
            fetch_failed: None,
            episodes: 0,
            episode: None,
            allowed: None,
            holds: Vec::new(),
            conversation: None,
            ruling: None,
            decisions: 0,
            cases: 0,
            case: None,
            actions: Vec::new(),
            message_keys: Vec::new(),
        }
    }

    fn missing(&self, what: impl Into<String>) -> Refusal {
        Refusal::Missing {
            account: self.account.clone(),
            what: what.into(),
        }
    }

    /// Takes newer facts.
    ///
    /// # Errors
    /// If they cannot be.
    pub fn inform(&mut self, newer: Facts, at: Time) -> Result<Vec<Event>, Refusal> {
        newer.check(at)?;
        self.fetch_failed = None;
        let changed = self.facts.update(newer);
        Ok(changed.then_some(Event::FactsChanged).into_iter().collect())
    }

    /// Facts could not be fetched: what is held grows stale, and nothing acts until they can.
    pub fn fetch_failed(&mut self, why: String) -> Vec<Event> {
        self.fetch_failed = Some(why.clone());
        vec![Event::FactsFailed { why }]
    }

    /// Takes what a window said of one of its droplets.
    pub fn observe(&mut self, sighting: Sighting, settings: &Settings) -> Vec<Event> {
        let mut events = self.end_episode(sighting.from, settings);
        match &mut self.episode {
            Some(episode) => episode.add(sighting),
            None if sighting.level > davy_evidence::Level::Quiet => {
                self.episodes += 1;
                self.episode = Some(Episode::begin(self.episodes, sighting));
                events.push(Event::EpisodeBegan {
                    episode: self.episodes,
                });
            }
            None => {}
        }
        events
    }

    fn end_episode(&mut self, at: Time, settings: &Settings) -> Vec<Event> {
        let over = |episode: &mut Episode| episode.is_over(at, settings);
        match self.episode.take_if(over) {
            Some(episode) => vec![Event::EpisodeEnded {
                episode: episode.number,
            }],
            None => Vec::new(),
        }
    }

    /// What a decision rests on now; none without an episode.
    #[must_use]
    pub fn input(
        &self,
        fleet: &Fleet,
        policy: &str,
        settings: &Settings,
        at: Time,
    ) -> Option<Input> {
        let episode = self.episode.clone()?;
        let taken = self.taken(episode.number);
        Some(Input {
            at,
            account: self.account.clone(),
            policy: policy.to_owned(),
            settings: settings.clone(),
            facts: self.facts.clone(),
            fetch_failed: self.fetch_failed.clone(),
            allowed: self.allowed.clone(),
            holds: self.holds.clone(),
            conversation: self.conversation.clone(),
            fleet: fleet.clone(),
            throttled: self.in_effect(Step::Throttle).is_some(),
            ruling: self.ruling,
            taken,
            episode,
        })
    }

    /// Steps of an episode that automation took, or is about to take. What was withheld was not taken.
    fn taken(&self, episode: u64) -> Vec<Step> {
        let mut taken: Vec<_> = (self.actions.iter())
            .filter(|action| {
                action.key.episode == episode && !action.key.undo && action.key.turn == 0
            })
            .filter(|action| !matches!(action.state, State::Withheld { .. }))
            .map(|action| action.key.step)
            .collect();
        if self
            .case
            .as_ref()
            .is_some_and(|case| case.episode == episode)
        {
            taken.push(Step::OpenCase);
        }
        taken.sort_unstable();
        taken
    }

    /// The action that holds the account at this step now: it may be felt, and is not being undone.
    #[must_use]
    pub fn in_effect(&self, step: Step) -> Option<&Action> {
        (self.actions.iter())
            .filter(|action| action.key.step == step && !action.key.undo && action.may_be_felt())
            .find(|action| !self.is_undone(&action.key))
    }

    fn is_undone(&self, key: &Key) -> bool {
        self.actions.iter().any(|action| {
            action.key.undo
                && Key {
                    undo: false,
                    ..action.key.clone()
                } == *key
        })
    }

    /// Whether the customer may feel an action still: its undoing is not known to be done.
    fn is_felt(&self, action: &Action) -> bool {
        let undone = |held: &Action| {
            matches!(held.state, State::Done { .. })
                && held.key.undo
                && Key {
                    undo: false,
                    ..held.key.clone()
                } == action.key
        };
        action.may_be_felt() && !action.key.undo && !self.actions.iter().any(undone)
    }

    /// Whether a lock or power-down is in effect.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.in_effect(Step::PowerDown).is_some() || self.in_effect(Step::Lock).is_some()
    }

    /// Carries a decision into the record: its case, and its actions into the outbox. Nothing is released.
    pub fn apply(&mut self, plan: &Plan, settings: &Settings, at: Time) -> Vec<Event> {
        self.decisions += 1;
        let mut events = Vec::new();
        let Some(episode) = self.episode.as_ref().map(|episode| episode.number) else {
            return events;
        };
        for &step in &plan.steps {
            match step {
                Step::Observe => {}
                Step::CloserLook => events.push(Event::CloserLook),
                Step::OpenCase => events.extend(self.open_case(at)),
                Step::Notify | Step::Throttle | Step::PowerDown | Step::Lock => {
                    let action = Action {
                        key: Key {
                            account: self.account.clone(),
                            episode,
                            step,
                            turn: 0,
                            undo: false,
                        },
                        targets: plan.targets.clone(),
                        by: By::Automation {
                            decision: self.decisions,
                        },
                        planned_at: at,
                        ends_at: (step == Step::Throttle).then(|| at.after(settings.throttle_ms)),
                        state: State::Planned,
                    };
                    events.extend(self.put(action));
                }
            }
        }
        events
    }

    /// Puts an action into the outbox, in the place of one that was withheld. One that is there stays.
    fn put(&mut self, action: Action) -> Option<Event> {
        let key = action.key.clone();
        match self.actions.iter_mut().find(|held| held.key == key) {
            Some(held) if matches!(held.state, State::Withheld { .. }) => *held = action,
            Some(_) => return None,
            None => self.actions.push(action),
        }
        let current = self.episodes;
        while self.actions.len() > ACTIONS_MAX {
            let old = |action: &Action| action.key.episode < current && !action.is_under_way();
            let Some(at) = self.actions.iter().position(old) else {
                break;
            };
            self.actions.remove(at);
        }
        Some(Event::ActionPlanned { key })
    }

    fn open_case(&mut self, at: Time) -> Option<Event> {
        if self.case.as_ref().is_some_and(Case::is_open) {
            return None;
        }
        self.cases += 1;
        let id = CaseId {
            account: self.account.clone(),
            number: self.cases,
        };
        self.case = Some(Case::open(id.clone(), self.episodes, at));
        Some(Event::CaseOpened { case: id })
    }

    fn action(&mut self, key: &Key) -> Result<&mut Action, Refusal> {
        let account = self.account.clone();
        (self.actions.iter_mut().find(|action| action.key == *key)).ok_or_else(|| {
            Refusal::Missing {
                account,
                what: format!("action {key}"),
            }
        })
    }

    /// Releases an action, or withholds it: everything that may speak for the customer is looked at once more. `fresh`: the facts as
    /// fetched just now, or why they could not be.
    ///
    /// What undoes, and what a person asked for, is released as it is.
    ///
    /// # Errors
    /// If there is no such action, or it is not planned.
    pub fn release(
        &mut self,
        key: &Key,
        fresh: Result<Facts, String>,
        fleet: &mut Fleet,
        settings: &Settings,
        at: Time,
    ) -> Result<Vec<Event>, Refusal> {
        let action = self.action(key)?.clone();
        let mut events = Vec::new();
        let automated = matches!(action.by, By::Automation { .. }) && !key.undo;
        if automated {
            match fresh {
                Ok(facts) => match self.inform(facts, at) {
                    Ok(changed) => events.extend(changed),
                    Err(refusal) => events.extend(self.fetch_failed(refusal.to_string())),
                },
                Err(why) => events.extend(self.fetch_failed(why)),
            }
            if let Some(why) = self.speaks_against(&action, fleet, settings, at) {
                self.action(key)?.withhold(at, why.clone())?;
                let key = key.clone();
                events.push(Event::ActionWithheld { key, why });
                return Ok(events);
            }
        }
        self.action(key)?.release(at)?;
        if automated {
            let targets = u64::try_from(action.targets.len()).unwrap_or(u64::MAX);
            fleet.spend(at, &self.account, targets);
        }
        events.push(Event::ActionReleased { key: key.clone() });
        Ok(events)
    }

    /// Why an automated action must not leave now.
    fn speaks_against(
        &self,
        action: &Action,
        fleet: &Fleet,
        settings: &Settings,
        at: Time,
    ) -> Option<String> {
        if at - action.planned_at > settings.plan_fresh_ms {
            return Some(format!("the plan is {} old", at - action.planned_at));
        }
        let looked = safety::look(&Ground {
            at,
            settings,
            facts_fresh: settings.release_facts_fresh_ms,
            facts: &self.facts,
            fetch_failed: self.fetch_failed.as_deref(),
            allowed: self.allowed.as_ref(),
            holds: &self.holds,
            conversation: self.conversation.as_ref(),
            fleet,
            targets: u64::try_from(action.targets.len()).unwrap_or(u64::MAX),
        });
        let names: Vec<_> = in_force(&looked)
            .iter()
            .map(|safety| safety.name())
            .collect();
        if !names.is_empty() {
            return Some(format!("in force: {}", names.join(", ")));
        }
        if self.case.is_none() {
            return Some("there is no case".to_owned());
        }
        let episode = self
            .episode
            .as_ref()
            .filter(|episode| episode.number == action.key.episode);
        let Some(evidence) = episode.map(|episode| episode.summary(at, settings)) else {
            return Some("the episode has ended".to_owned());
        };
        let mines = evidence.level == davy_evidence::Level::Mining && evidence.classes.count() >= 2;
        (!mines).then(|| format!("the evidence is {} now", evidence.level))
    }

    /// Takes what became of an action. If it was done and something speaks for the customer by now, it is undone.
    ///
    /// # Errors
    /// If there is no such action, or it was never released.
    pub fn learn(&mut self, key: &Key, outcome: Outcome, at: Time) -> Result<Vec<Event>, Refusal> {
        let action = self.action(key)?;
        let before = action.state.clone();
        action.learn(at, outcome)?;
        let state = action.state.clone();
        if state == before {
            return Ok(Vec::new());
        }
        let mut events = vec![Event::ActionLearned {
            key: key.clone(),
            state: state.clone(),
        }];
        let done = matches!(state, State::Done { .. });
        if done && !key.undo && key.turn == 0 && self.is_protected(at) {
            events.extend(self.undo(key, at));
        }
        Ok(events)
    }

    /// Whether a person, or the customer, spoke for the account since.
    fn is_protected(&self, at: Time) -> bool {
        self.allowed.is_some()
            || self.conversation.is_some()
            || self.holds.iter().any(|hold| hold.until > at)
    }

    /// Puts the undoing of an action into the outbox, if it may be felt and is not being undone.
    fn undo(&mut self, key: &Key, at: Time) -> Option<Event> {
        let action = self.actions.iter().find(|action| action.key == *key)?;
        // What was said cannot be unsaid.
        if !action.may_be_felt() || self.is_undone(key) || key.undo || key.step == Step::Notify {
            return None;
        }
        let undo = Action {
            key: Key {
                undo: true,
                ..key.clone()
            },
            planned_at: at,
            ends_at: None,
            state: State::Planned,
            ..action.clone()
        };
        self.put(undo)
    }

    /// Undoes all that Davy did and withholds all that it was about to do.
    fn undo_all(&mut self, why: &str, at: Time) -> Vec<Event> {
        let mut events = Vec::new();
        let keys: Vec<_> = self
            .actions
            .iter()
            .map(|action| action.key.clone())
            .collect();
        for key in keys.into_iter().filter(|key| !key.undo) {
            if let Ok(action) = self.action(&key)
                && action.withhold(at, why.to_owned()).is_ok()
            {
                let why = why.to_owned();
                events.push(Event::ActionWithheld { key, why });
            } else {
                events.extend(self.undo(&key, at));
            }
        }
        events
    }

    /// What time alone brings: a throttle ends, an unanswered lock steps back, somebody is paged, an episode ends.
    pub fn tick(&mut self, fleet: &mut Fleet, settings: &Settings, at: Time) -> Vec<Event> {
        let mut events = Vec::new();
        let ended: Vec<_> = (self.actions.iter())
            .filter(|action| action.ends_at.is_some_and(|end| end <= at) && action.may_be_felt())
            .map(|action| action.key.clone())
            .collect();
        for key in ended {
            events.extend(self.undo(&key, at));
        }
        let overdue = (self.conversation.as_ref())
            .is_some_and(|conversation| at - conversation.since >= settings.step_back_ms);
        if overdue && self.is_locked() {
            events.extend(self.step_back(at));
        }
        if let Some(case) = &mut self.case
            && case.page_due(at, settings.first_answer_ms)
        {
            case.paged = true;
            let case = case.id.clone();
            events.push(Event::Paged { case });
        }
        if !self.actions.iter().any(|action| self.is_felt(action)) {
            fleet.release(&self.account);
        }
        events.extend(self.end_episode(at, settings));
        events
    }

    /// Back to a throttle: what locks is undone, the throttle stays.
    fn step_back(&mut self, at: Time) -> Vec<Event> {
        let mut events: Vec<_> = (self.case.as_ref())
            .map(|case| Event::SteppedBack {
                case: case.id.clone(),
            })
            .into_iter()
            .collect();
        for step in [Step::PowerDown, Step::Lock] {
            if let Some(key) = self.in_effect(step).map(|action| action.key.clone()) {
                events.extend(self.undo(&key, at));
            }
        }
        events
    }
}

#[cfg(test)]
#[path = "dossier_tests.rs"]
mod tests;
