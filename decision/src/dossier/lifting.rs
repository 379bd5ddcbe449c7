//! What people lift: unlock, allow, un-throttle, and taking back.
//!
//! Every release by hand sets the hold in the same change: it cannot be forgotten. One person is enough for each.

use super::{Dossier, Event, HOLDS_MAX, Refusal};
use crate::{
    action::{Action, Recipient, State},
    case::{self, Case, Finding, Opinion, Person, Ruling},
    policy::Step,
    safety::{Allowed, Hold},
    settings::Settings,
    statement,
    text::Reason,
    time::Time,
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

    pub(super) fn unlocked(
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
        // By a clock that went back it is not to end before its time.
        let until = at.max(self.clock).after(settings.hold_ms);
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

    /// A person allows the account all the CPU it likes, with or without a case. What automation did is undone; as every release by
    /// hand it sets the hold, which outlasts the word if that is taken back.
    pub fn allow_high_cpu(&mut self, by: &Person, settings: &Settings, at: Time) -> Vec<Event> {
        let word = self.allow(by, at);
        let keys: Vec<_> = (self.actions.iter())
            .filter(|action| action.is_automated() && !self.is_upheld(action, at))
            .map(|action| action.key.clone())
            .collect();
        let undone = self.undo_each(keys, "a person allowed your account high CPU", &by.0, at);
        if word.is_none() && undone.is_empty() {
            return Vec::new();
        }
        let mut events = Vec::from_iter(word);
        events.push(self.hold(by, settings, at));
        events.extend(undone);
        events
    }

    /// A person takes that word back; the provider's own flag stays as it is.
    ///
    /// # Errors
    /// If no person gave it.
    pub fn disallow_high_cpu(&mut self, by: &Person, at: Time) -> Result<Vec<Event>, Refusal> {
        let missing = self.missing("Allow High CPU of a person's");
        self.allowed.take().ok_or(missing)?;
        let mut events = vec![Event::HighCpuWithdrawn { by: by.clone() }];
        events.extend(self.tell_of_withdrawal(by, at));
        Ok(events)
    }

    /// Whoever was told that they may use as much CPU as they like is told that this is so no more.
    fn tell_of_withdrawal(&mut self, by: &Person, at: Time) -> Option<Event> {
        let case = self.case.as_ref()?.id.clone();
        let held = self.holds.iter().map(|hold| hold.until).max();
        let held = held.filter(|until| *until > at);
        let text = statement::of_withdrawal(&self.seen(), held, &case);
        self.write(Recipient::Customer, text, Some(by.to_string()), at)
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
            let acts = |action: &Action| {
                let planned = !action.key.undo && action.state == State::Planned;
                planned || self.is_felt(action)
            };
            if !self.actions.iter().any(acts) && self.ruling.is_none() {
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
                let own = |held: &mut Allowed| Some(held.since) == decided_at;
                if self.allowed.take_if(own).is_some() {
                    events.extend(self.tell_of_withdrawal(by, at));
                }
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
}
