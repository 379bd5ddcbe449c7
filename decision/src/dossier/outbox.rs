//! The outbox: actions and letters, from planned to done.

use super::{Dossier, Event, PARCELS_MAX, Refusal};
use crate::{
    account::DropletId,
    action::{Action, By, Key, Letter, Parcel, Recipient, State},
    decide::in_force,
    fleet::Fleet,
    order::{Order, Verb},
    policy::Step,
    safety::{self, Ground, Safety},
    settings::Settings,
    statement,
    time::{Span, Time},
};

/// What whoever talks to the control plane has to do for an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Release a parcel; automated actions with facts fetched just now.
    Release {
        /// Which.
        parcel: Parcel,
        /// Whether facts are to be fetched for it.
        with_facts: bool,
    },
    /// Ask what became of a parcel.
    Query {
        /// Which.
        parcel: Parcel,
        /// The release that is asked about.
        released_at: Time,
    },
    /// Give the account's part of the budget back: nothing holds it any more.
    FreeBudget,
}

/// The key of what `key` undoes.
pub(super) fn undone_by(key: &Key) -> Key {
    Key {
        undo: false,
        ..key.clone()
    }
}

impl Dossier {
    /// What is to be done with the control plane at `at`, in order.
    #[must_use]
    pub fn errands(&self, fleet: &Fleet, at: Time) -> Vec<Errand> {
        let actions = (self.actions.iter()).map(|action| {
            let with_facts = action.is_automated();
            let ready = match action.key.undo {
                true => self.is_settled(&undone_by(&action.key)),
                // An undoing that is under way could lift this one as well; and the customer is told first.
                false => !self.is_being_undone(action.key.step) && !self.is_being_told(action),
            };
            (
                Parcel::Action(action.key.clone()),
                &action.state,
                with_facts,
                ready,
            )
        });
        let letters = (self.letters.iter()).map(|letter| {
            let (account, number) = (self.account.clone(), letter.number);
            (
                Parcel::Letter { account, number },
                &letter.state,
                false,
                true,
            )
        });
        let mut errands = Vec::new();
        for (parcel, state, with_facts, ready) in actions.chain(letters) {
            match state {
                State::Planned if ready => errands.push(Errand::Release { parcel, with_facts }),
                State::Doubtful {
                    released_at,
                    query_at,
                    ..
                } if *query_at <= at => errands.push(Errand::Query {
                    parcel,
                    released_at: *released_at,
                }),
                _ => {}
            }
        }
        // Budget that is free again would tell a reviewer what another's review did.
        let sealed = self.sealed.is_some();
        if fleet.holds(&self.account)
            && !sealed
            && !(self.actions.iter()).any(|held| held.is_automated() && self.is_felt(held))
        {
            errands.push(Errand::FreeBudget);
        }
        errands
    }

    /// Whether what became of an action is known: until then its undoing could overtake it.
    fn is_settled(&self, key: &Key) -> bool {
        let action = self.actions.iter().find(|action| action.key == *key);
        action.is_none_or(|action| !action.is_under_way())
    }

    /// The last notice of an automated step's episode.
    pub(super) fn notice_of(&self, action: &Action) -> Option<&Action> {
        self.last_automated(action.key.episode, Step::Notify)
    }

    /// What automation planned last of a step in an episode, whoever holds it now.
    pub(super) fn last_automated(&self, episode: u64, step: Step) -> Option<&Action> {
        let of = |held: &&Action| {
            let by_davy = held.key.turn == 0 || !held.by.is_person();
            by_davy && (held.key.episode, held.key.step, held.key.undo) == (episode, step, false)
        };
        (self.actions.iter())
            .filter(of)
            .max_by_key(|held| held.key.turn)
    }

    /// The turn of an automated step's next plan. A key that was sent names what it said then: if it is known never to have arrived,
    /// and was given up, what is planned now has a key of its own.
    pub(super) fn automated_turn(&self, episode: u64, step: Step) -> u32 {
        match self.last_automated(episode, step) {
            None => 0,
            Some(held) if held.sent && matches!(held.state, State::Withheld { .. }) => {
                let same =
                    |action: &&Action| (action.key.episode, action.key.step) == (episode, step);
                let turns = (self.actions.iter().filter(same)).map(|action| action.key.turn);
                turns.max().unwrap_or(0).saturating_add(1)
            }
            Some(held) => held.key.turn,
        }
    }

    fn is_being_told(&self, action: &Action) -> bool {
        action.is_automated()
            && action.key.step > Step::Notify
            && self.notice_of(action).is_some_and(Action::is_under_way)
    }

    fn is_being_undone(&self, step: Step) -> bool {
        (self.actions.iter())
            .any(|held| held.key.undo && held.key.step == step && held.is_under_way())
    }

    /// What a person decided at this step, if it is in effect or about to be.
    pub(super) fn by_person(&self, step: Step) -> Option<&Action> {
        (self.actions.iter())
            .filter(|action| action.key.step == step && !action.key.undo)
            .filter(|action| matches!(action.by, By::Person { .. }))
            .filter(|action| action.is_under_way() || action.may_be_felt())
            .find(|action| !self.is_undone(&action.key))
    }

    /// The action that holds the account at this step now: it may be felt, and is not being undone.
    #[must_use]
    pub fn in_effect(&self, step: Step) -> Option<&Action> {
        (self.actions.iter())
            .filter(|action| action.key.step == step && !action.key.undo && action.may_be_felt())
            .find(|action| !self.is_undone(&action.key))
    }

    /// Whether a later decision of people's holds the same droplets at the same step: to lift this one would lift theirs.
    pub(super) fn is_upheld(&self, action: &Action, at: Time) -> bool {
        let key = &action.key;
        let mut later = self.actions.iter().filter(|held| {
            (held.key.episode, held.key.turn) > (key.episode, key.turn)
                && (held.key.step, held.key.undo) == (key.step, false)
                && matches!(held.by, By::Person { .. })
        });
        later.any(|held| {
            let stands = held.is_under_way() || held.may_be_felt();
            let lasts = held.ends_at.is_none_or(|end| end > at);
            stands && lasts && held.holds(&action.targets) && !self.is_undone(&held.key)
        })
    }

    pub(super) fn is_undone(&self, key: &Key) -> bool {
        (self.actions.iter()).any(|action| {
            action.key.undo
                && undone_by(&action.key) == *key
                && !matches!(action.state, State::Refused { .. } | State::Withheld { .. })
        })
    }

    /// Whether the customer may feel an action still: its undoing is not known to be done.
    pub(super) fn is_felt(&self, action: &Action) -> bool {
        let undone = |held: &Action| {
            matches!(held.state, State::Done { .. })
                && held.key.undo
                && undone_by(&held.key) == action.key
        };
        action.may_be_felt()
            && !action.key.undo
            && action.key.step != Step::Notify
            && !self.actions.iter().any(undone)
    }

    /// Whether a lock or power-down is in effect.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.in_effect(Step::PowerDown).is_some() || self.in_effect(Step::Lock).is_some()
    }

    /// Puts an action into the outbox, in the place of one that was withheld. One that is there stays.
    pub(super) fn put(&mut self, action: Action) -> Option<Event> {
        let key = action.key.clone();
        match self.actions.iter_mut().find(|held| held.key == key) {
            // What was sent before, or the control plane refused to undo, is tried again as it was: a key names one content.
            Some(held)
                if key.undo
                    && (matches!(held.state, State::Refused { .. })
                        || (held.sent && matches!(held.state, State::Withheld { .. }))) =>
            {
                (held.state, held.planned_at) = (State::Planned, action.planned_at);
            }
            Some(held) if matches!(held.state, State::Withheld { .. }) && !held.sent => {
                *held = action;
            }
            Some(_) => return None,
            None => self.actions.push(action),
        }
        let current = self.episodes;
        while self.actions.len() > PARCELS_MAX {
            let old = |action: &Action| {
                action.key.episode < current && !action.is_under_way() && !self.is_felt(action)
            };
            let Some(at) = self.actions.iter().position(old) else {
                break;
            };
            self.actions.remove(at);
        }
        Some(Event::ActionPlanned { key })
    }

    /// Writes a letter about the last case. Without a case there is none to write about.
    pub(super) fn write(
        &mut self,
        to: Recipient,
        text: String,
        by: Option<String>,
        at: Time,
    ) -> Option<Event> {
        self.write_about(None, to, text, by, at)
    }

    /// The same, of an action: it is worth sending for as long as what it says is so, see [`Letter::about`].
    pub(super) fn write_about(
        &mut self,
        about: Option<Key>,
        to: Recipient,
        text: String,
        by: Option<String>,
        at: Time,
    ) -> Option<Event> {
        let case = self.case.as_ref()?.id.clone();
        self.letters_written += 1;
        let number = self.letters_written;
        self.letters.push(Letter {
            number,
            case,
            to,
            text,
            by,
            written_at: at,
            state: State::Planned,
            paged: false,
            about,
        });
        if self.letters.len() > PARCELS_MAX {
            let settled = |letter: &Letter| !letter.state.is_under_way();
            if let Some(at) = self.letters.iter().position(settled) {
                self.letters.remove(at);
            }
        }
        Some(Event::LetterWritten { number, to })
    }

    pub(super) fn action(&mut self, key: &Key) -> Result<&mut Action, Refusal> {
        let missing = self.missing(format!("action {key}"));
        (self.actions.iter_mut())
            .find(|action| action.key == *key)
            .ok_or(missing)
    }

    pub(super) fn letter(&mut self, number: u64) -> Result<&mut Letter, Refusal> {
        let missing = self.missing(format!("letter {number}"));
        (self.letters.iter_mut())
            .find(|letter| letter.number == number)
            .ok_or(missing)
    }

    /// What is given to the driver for a parcel that was released; none for any other.
    #[must_use]
    pub fn order(&self, parcel: &Parcel, settings: &Settings) -> Option<Order> {
        let order = |state: &State, verb, droplets, case: &str, text: &str, automated| match state {
            State::Released { at } => Some(Order {
                key: parcel.to_string(),
                account: self.account.clone(),
                verb,
                droplets,
                case: case.to_owned(),
                text: text.to_owned(),
                automated,
                released_at: *at,
                not_after: at.after(settings.delivery_ms),
            }),
            _ => None,
        };
        match parcel {
            Parcel::Action(key) => {
                let action = self.actions.iter().find(|action| action.key == *key)?;
                let verb = Verb::of(key.step, key.undo)?;
                let case = action
                    .case
                    .as_ref()
                    .or(self.case.as_ref().map(|case| &case.id));
                let case = case.map_or_else(String::new, ToString::to_string);
                let automated = matches!(action.by, By::Automation { .. });
                order(
                    &action.state,
                    verb,
                    action.targets.clone(),
                    &case,
                    &action.statement,
                    automated,
                )
            }
            Parcel::Letter { number, .. } => {
                let letter = self
                    .letters
                    .iter()
                    .find(|letter| letter.number == *number)?;
                let verb = match letter.to {
                    Recipient::Customer => Verb::Message,
                    Recipient::OnCall => Verb::Page,
                };
                let case = letter.case.to_string();
                order(
                    &letter.state,
                    verb,
                    Vec::new(),
                    &case,
                    &letter.text,
                    letter.by.is_none(),
                )
            }
        }
    }

    pub(super) fn page_undo(&mut self, key: &Key, why: &str, at: Time) -> Option<Event> {
        let case = self.case.as_ref()?.id.clone();
        let text = statement::page_undo(&key.to_string(), why, &case);
        self.write_about(Some(key.clone()), Recipient::OnCall, text, None, at)
    }

    /// The safeties that speak for the customer themselves: not those that come from not knowing, nor the fleet's.
    pub(super) fn speaks_for(&self, settings: &Settings, at: Time) -> Vec<Safety> {
        let looked = safety::look(&Ground {
            at,
            settings,
            facts_fresh: Span::days(36_500),
            facts: &self.facts,
            fetch_failed: None,
            allowed: self.allowed.as_ref(),
            holds: &self.holds,
            conversation: self.conversation.as_ref(),
            fleet: &Fleet::default(),
            targets: &[],
            episode: None,
        });
        let mut spoken = in_force(&looked);
        spoken.retain(|safety| match safety {
            Safety::HighCpuAllowed
            | Safety::UnlockHold
            | Safety::LongStanding
            | Safety::GoodStanding
            | Safety::OpenConversation => true,
            Safety::UnknownStanding | Safety::BlastRadius | Safety::KillSwitch => false,
        });
        spoken
    }

    /// That Davy itself undoes an action: by the decision that led to it, if one did.
    fn itself(&self, action: &Action) -> By {
        match action.by {
            By::Automation { decision } => By::Automation { decision },
            By::Person { .. } => By::Automation {
                decision: self.decisions,
            },
        }
    }

    /// Puts the undoing of an action into the outbox, if it may be felt and is not being undone; `by`: the person who asked for it, if
    /// one did.
    pub(super) fn undo(
        &mut self,
        key: &Key,
        why: &str,
        by: Option<&str>,
        at: Time,
    ) -> Option<Event> {
        let action = self.actions.iter().find(|action| action.key == *key)?;
        // A notice of an episode long past is not worth taking back.
        let stale = key.step == Step::Notify && key.episode != self.episodes;
        if !action.may_be_felt() || self.is_undone(key) || key.undo || stale {
            return None;
        }
        let case = self.case.as_ref()?.id.clone();
        let by = by.map_or_else(
            || self.itself(action),
            |person| By::Person {
                person: person.to_owned(),
            },
        );
        let undo = Action {
            key: Key {
                undo: true,
                ..key.clone()
            },
            planned_at: at,
            ends_at: None,
            statement: statement::of_undo(key.step, why, &by, &case, &action.statement),
            by,
            state: State::Planned,
            paged: false,
            case: Some(case),
            sent: false,
            ..action.clone()
        };
        self.put(undo)
    }

    /// Undoes all that is in effect and withholds all that was about to leave, as a person asked for.
    pub(super) fn undo_all(&mut self, why: &str, by: &str, at: Time) -> Vec<Event> {
        let keys: Vec<_> = (self.actions.iter())
            .map(|action| action.key.clone())
            .filter(|key| !key.undo)
            .collect();
        self.undo_each(keys, why, by, at)
    }

    /// Undoes what of these is in effect, and withholds what was about to leave.
    pub(super) fn undo_each(
        &mut self,
        keys: Vec<Key>,
        why: &str,
        by: &str,
        at: Time,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        for key in keys {
            if let Ok(action) = self.action(&key)
                && action.state.withhold(&key, at, why.to_owned()).is_ok()
            {
                let why = why.to_owned();
                events.push(Event::ActionWithheld { key, why });
            } else {
                events.extend(self.undo(&key, why, Some(by), at));
            }
        }
        events
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

impl Action {
    /// Whether it holds all of `droplets`, once it is done; a lock holds the account.
    #[must_use]
    pub fn holds(&self, droplets: &[DropletId]) -> bool {
        let held = |droplet| self.targets.contains(droplet);
        self.key.step == Step::Lock || droplets.iter().all(held)
    }

    /// Whether automation takes a step with it: what undoes is none, whoever asks for it.
    #[must_use]
    pub const fn is_automated(&self) -> bool {
        matches!(self.by, By::Automation { .. }) && !self.key.undo
    }
}
