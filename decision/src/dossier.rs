//! All that is held of one account, and every way it changes. Pure: a transaction reads a dossier and the fleet, calls one of
//! these, and writes both back with the events.
//!
//! That is why a release and everything that sets a safety exclude each other: they change the same record. What a
//! method refuses leaves the dossier as it was.
//!
//! | file | what |
//! |---|---|
//! | this | facts, evidence, and carrying a decision into the record |
//! | `outbox` | actions and letters: what is to be done, and undone |
//! | `learn` | what became of it |
//! | `release` | the last look before one leaves |
//! | `turn` | what time alone brings, and when to look next |
//! | `people` | what the customer and the provider's people do |
//! | `ruling` | what people decide against it |
//! | `lifting` | what people lift |
//! | `blind` | what one reviewer of an appeal may see while another's review is kept from them |
//! | `event` | what happened, and why something did not |

mod blind;
mod event;
mod learn;
mod lifting;
mod outbox;
mod people;
mod release;
mod ruling;
mod turn;

use serde::{Deserialize, Serialize};

pub use event::{Event, Refusal};
pub use outbox::Errand;
pub use turn::Turn;

use crate::{
    account::{AccountId, DropletId, Facts},
    action::{Action, By, Key, Letter, State},
    case::{self, Case, CaseId},
    decide::{Input, Plan},
    episode::{Episode, Sighting},
    fleet::Fleet,
    policy::Step,
    safety::{self, Allowed, Conversation, Ground, Hold, Looked, Safety},
    settings::Settings,
    statement,
    time::{Span, Time},
};

/// Most actions, and most letters, that are kept of an account; settled ones go first.
const PARCELS_MAX: usize = 200;
/// Keys of customers' messages that are kept, so that a message told twice counts once.
const MESSAGE_KEYS_MAX: usize = 1_000;
/// Holds that are kept, ended ones included.
const HOLDS_MAX: usize = 100;
/// The clock may go back by this much without a word: two machines' clocks are never the same.
const CLOCK_BACK_MAX: Span = Span::minutes(5);

/// What a decision rests on, in short: a further one that rests on the same and asks for nothing new is not made, under other policies
/// neither (replicas that take up a change one after the other would take turns).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gist {
    /// The evidence's level.
    pub level: davy_evidence::Level,
    /// Safeties in force.
    pub in_force: Vec<Safety>,
}

/// The record of one account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dossier {
    /// Whose.
    pub account: AccountId,
    /// The latest time at which anything was done with it.
    pub clock: Time,
    /// Its last turn.
    #[serde(default)]
    pub looked_at: Time,
    /// What is known.
    pub facts: Facts,
    /// When facts were asked for the last time.
    pub fetched_at: Option<Time>,
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
    /// When they did.
    #[serde(default)]
    pub ruled_at: Time,
    /// Decisions so far.
    pub decisions: u64,
    /// What the last one of this episode came to.
    pub gist: Option<Gist>,
    /// Cases so far.
    pub cases: u64,
    /// The last case.
    pub case: Option<Case>,
    /// The one before it.
    pub former: Option<Case>,
    /// Actions.
    pub actions: Vec<Action>,
    /// Letters so far.
    pub letters_written: u64,
    /// Letters.
    pub letters: Vec<Letter>,
    /// Keys of customers' messages, the latest last.
    pub message_keys: Vec<String>,
    /// The record as it was before the first review of an appeal, until the second is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Box<Self>>,
}

impl Dossier {
    /// Of an account of which nothing is known.
    #[must_use]
    pub fn new(account: AccountId) -> Self {
        Self {
            account,
            clock: Time::default(),
            looked_at: Time::default(),
            facts: Facts::default(),
            fetched_at: None,
            fetch_failed: None,
            episodes: 0,
            episode: None,
            allowed: None,
            holds: Vec::new(),
            conversation: None,
            ruling: None,
            ruled_at: Time::default(),
            decisions: 0,
            gist: None,
            cases: 0,
            case: None,
            former: None,
            actions: Vec::new(),
            letters_written: 0,
            letters: Vec::new(),
            message_keys: Vec::new(),
            sealed: None,
        }
    }

    fn missing(&self, what: impl Into<String>) -> Refusal {
        Refusal::Missing {
            account: self.account.clone(),
            what: what.into(),
        }
    }

    /// Takes newer facts, as they were asked for.
    ///
    /// # Errors
    /// If they cannot be.
    pub fn inform(&mut self, newer: Facts, at: Time) -> Result<Vec<Event>, Refusal> {
        let events = self.told(newer, at)?;
        (self.fetch_failed, self.fetched_at) = (None, Some(at));
        Ok(events)
    }

    /// Takes facts that somebody pushed. They are asked for all the same: a push may say little.
    ///
    /// # Errors
    /// If they cannot be.
    pub fn told(&mut self, newer: Facts, at: Time) -> Result<Vec<Event>, Refusal> {
        newer.check(at)?;
        let changed = self.facts.update(newer.as_of_at_most(at));
        if let (Some(episode), Some(known)) = (&mut self.episode, &self.facts.droplets) {
            episode.recognise(known.value.keys());
        }
        Ok(changed.then_some(Event::FactsChanged).into_iter().collect())
    }

    /// Facts could not be fetched: nothing acts until they can.
    pub fn fetch_failed(&mut self, why: String, at: Time) -> Vec<Event> {
        self.fetched_at = Some(at);
        // Once, until they can be fetched again: the words may differ each time.
        match self.fetch_failed.replace(why.clone()) {
            Some(_) => Vec::new(),
            None => vec![Event::FactsFailed { why }],
        }
    }

    /// Takes what a window said of one of its droplets.
    pub fn observe(&mut self, sighting: Sighting, settings: &Settings) -> Vec<Event> {
        let mut events = self.end_episode(sighting.from, settings);
        let (id, from) = (sighting.droplet.clone(), sighting.from);
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
        if let (Some(episode), Some(known)) = (&mut self.episode, &self.facts.droplets) {
            match known.value.contains_key(&id) {
                true => episode.recognise([&id]),
                // It goes on after it has left the inventory: it was not deleted.
                false if from > known.as_of => episode.estrange(&id),
                false => {}
            }
        }
        events
    }

    fn end_episode(&mut self, at: Time, settings: &Settings) -> Vec<Event> {
        let over = |episode: &mut Episode| episode.is_over(at, settings);
        match self.episode.take_if(over) {
            Some(episode) => {
                self.gist = None;
                vec![Event::EpisodeEnded {
                    episode: episode.number,
                }]
            }
            None => Vec::new(),
        }
    }

    /// Why the time cannot be relied on, if so.
    fn clock_doubt(&self, at: Time) -> Option<String> {
        (self.clock - at > CLOCK_BACK_MAX).then(|| {
            format!(
                "the clock went back, from {} to {at}: set it right",
                self.clock
            )
        })
    }

    /// What a decision rests on now; none without an episode. A notice that the account got already is no reason against what follows
    /// it, so the budget is as it was without.
    #[must_use]
    pub fn input(
        &self,
        fleet: &Fleet,
        policy: &str,
        settings: &Settings,
        at: Time,
    ) -> Option<Input> {
        let episode = self.episode.clone()?;
        let taken = self.taken(episode.number, at);
        Some(Input {
            at,
            account: self.account.clone(),
            policy: policy.to_owned(),
            settings: settings.clone(),
            facts: self.facts.clone(),
            fetch_failed: self.clock_doubt(at).or_else(|| self.fetch_failed.clone()),
            allowed: self.allowed.clone(),
            holds: self.holds.clone(),
            conversation: self.conversation.clone(),
            fleet: fleet.without_notice(&self.account),
            throttled: self.is_throttled(),
            ruling: self.ruling,
            taken,
            episode,
        })
    }

    /// Whether a throttle is known to hold: one that may never have arrived is no milder step that was taken.
    fn is_throttled(&self) -> bool {
        let done = |action: &&Action| matches!(action.state, State::Done { .. });
        let throttles = (self.actions.iter())
            .filter(|action| (action.key.step, action.key.undo) == (Step::Throttle, false));
        (throttles.filter(done)).any(|action| !self.is_undone(&action.key))
    }

    /// Every safety, as of `at`, for acting on `targets`; facts that change count if at most `facts_fresh` old.
    #[must_use]
    pub fn safeties(
        &self,
        fleet: &Fleet,
        settings: &Settings,
        facts_fresh: Span,
        targets: &[DropletId],
        at: Time,
    ) -> Vec<Looked> {
        let doubt = self.clock_doubt(at);
        let fleet = &fleet.without_notice(&self.account);
        safety::look(&Ground {
            at,
            settings,
            facts_fresh,
            facts: &self.facts,
            fetch_failed: doubt.as_deref().or(self.fetch_failed.as_deref()),
            allowed: self.allowed.as_ref(),
            holds: &self.holds,
            conversation: self.conversation.as_ref(),
            fleet,
            targets,
            episode: self.episode.as_ref(),
        })
    }

    /// Steps of an episode that automation took or is about to take, and those in effect or about to be by a person's word. What was
    /// withheld was not taken. A case that people have decided is one for as long as their decision keeps automation away, or stands.
    fn taken(&self, episode: u64, at: Time) -> Vec<Step> {
        let counts = |action: &&Action| {
            let by_davy = action.key.turn == 0 || !action.by.is_person();
            let automated = action.key.episode == episode && by_davy;
            let counts = if automated {
                !matches!(action.state, State::Withheld { .. })
            } else {
                // What was said about an earlier episode says nothing about this one.
                action.key.step != Step::Notify
                    && (action.is_under_way() || self.in_effect(action.key.step).is_some())
            };
            !action.key.undo && counts
        };
        let mut taken: Vec<_> = (self.actions.iter().filter(counts))
            .map(|action| action.key.step)
            .collect();
        let steps = [Step::Throttle, Step::PowerDown, Step::Lock].into_iter();
        taken.extend(
            steps.filter(|step| self.in_effect(*step).is_some() || self.by_person(*step).is_some()),
        );
        let flag = self.facts.high_cpu_allowed.is_some_and(|flag| flag.value);
        let settled = self.holds.iter().any(|hold| hold.until > at)
            || (self.allowed.is_some() || flag)
            || self.ruling.is_some();
        let shows = |case: &Case| {
            case.episode == episode && (settled || case.is_open() || case.wants_review())
        };
        if self.case.as_ref().is_some_and(shows) {
            taken.push(Step::OpenCase);
        }
        taken.sort_unstable();
        taken.dedup();
        taken
    }

    /// Carries a decision into the record: its case, and its actions into the outbox. Nothing is released.
    pub fn apply(&mut self, plan: &Plan, settings: &Settings, at: Time) -> Vec<Event> {
        self.decisions += 1;
        self.gist = Some(Gist::of(plan));
        let mut events = vec![Event::Decided {
            decision: self.decisions,
            step: plan.step,
        }];
        let Some(episode) = self.episode.as_ref().map(|episode| episode.number) else {
            return events;
        };
        for &step in &plan.steps {
            match step {
                Step::Observe => {}
                Step::CloserLook => events.push(Event::CloserLook),
                Step::OpenCase => events.extend(self.open_case(at)),
                Step::Notify | Step::Throttle | Step::PowerDown | Step::Lock => {
                    // A case that people have decided shows nobody what is done now.
                    if !self.case.as_ref().is_some_and(Case::is_open) {
                        events.extend(self.open_case(at));
                    }
                    let Some(case) = self.case.as_ref().map(|case| case.id.clone()) else {
                        continue;
                    };
                    let ends_at = (step == Step::Throttle).then(|| at.after(settings.throttle_ms));
                    let action = Action {
                        key: Key {
                            account: self.account.clone(),
                            episode,
                            step,
                            turn: self.automated_turn(episode, step),
                            undo: false,
                        },
                        targets: plan.targets.clone(),
                        by: By::Automation {
                            decision: self.decisions,
                        },
                        planned_at: at,
                        ends_at,
                        statement: statement::of_plan(
                            plan,
                            step,
                            &case,
                            ends_at,
                            self.ruling.is_some(),
                            settings,
                        ),
                        state: State::Planned,
                        paged: false,
                        case: Some(case),
                        sent: false,
                    };
                    events.extend(self.put(action));
                }
            }
        }
        events
    }

    /// Opens a case for the present episode; one that people still work on, or whose second review is wanted, takes it in (until that
    /// review is in, nothing automated leaves). Who denied the account, and whose word still stands, is known to the new one: they do
    /// not review it.
    fn open_case(&mut self, at: Time) -> Vec<Event> {
        let mut events = Vec::new();
        let mut deniers = Vec::new();
        if let Some(case) = &mut self.case {
            if case.is_open() || case.wants_review() {
                case.episode = self.episodes;
                return events;
            }
            if self.ruling.is_some() {
                deniers = case.deniers();
            }
            if let case::State::Decided { ruling, .. } = case.state {
                case.state = case::State::Closed { ruling, at };
                events.push(Event::CaseClosed {
                    case: case.id.clone(),
                });
            }
            self.former = self.case.take();
        }
        self.cases += 1;
        let id = CaseId {
            account: self.account.clone(),
            number: self.cases,
        };
        let mut case = Case::open(id.clone(), self.episodes, at);
        case.past = deniers;
        self.case = Some(case);
        events.push(Event::CaseOpened { case: id });
        events
    }

    /// The cases that a change may have changed.
    pub fn recent_cases(&self) -> impl Iterator<Item = &Case> {
        self.former.iter().chain(&self.case)
    }
}

impl Gist {
    fn of(plan: &Plan) -> Self {
        Self {
            level: plan.evidence.level,
            in_force: crate::decide::in_force(&plan.safeties),
        }
    }
}

#[cfg(test)]
#[path = "dossier_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "dossier_rulings_tests.rs"]
mod rulings_tests;

#[cfg(test)]
#[path = "dossier_release_tests.rs"]
mod release_tests;

#[cfg(test)]
#[path = "dossier_undoing_tests.rs"]
mod undoing_tests;

#[cfg(test)]
#[path = "dossier_blind_tests.rs"]
mod blind_tests;

#[cfg(test)]
#[path = "dossier_denial_tests.rs"]
mod denial_tests;
