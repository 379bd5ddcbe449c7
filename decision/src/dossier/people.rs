//! What people do to an account short of deciding: the customer speaks, a person takes a case up, answers, gives it back.

use super::{Dossier, Event, MESSAGE_KEYS_MAX, Refusal};
use crate::{
    action::{By, Recipient},
    case::{Case, Message, Person, Speaker},
    policy::Step,
    safety::Conversation,
    settings::Settings,
    statement,
    time::{Span, Time},
};

/// Longest message, bytes; of a customer's longer one the beginning is kept, and heard.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Two replicas' clocks differ by less.
const CLOCKS_DIFFER_MAX: Span = Span::minutes(1);

/// Why what people decided does not leave.
pub(super) const WROTE: &str = "the customer wrote before it left";

/// As much of a customer's text as is kept, and a word on it if that is not all.
fn kept(text: &str) -> std::borrow::Cow<'_, str> {
    if text.len() <= MESSAGE_BYTES_MAX {
        return text.into();
    }
    let cut = (0..=MESSAGE_BYTES_MAX)
        .rev()
        .find(|at| text.is_char_boundary(*at));
    let begin = text.get(..cut.unwrap_or(0)).unwrap_or_default();
    format!(
        "{begin}\n[The message has {} bytes; this is its beginning.]",
        text.len()
    )
    .into()
}

/// A name of at most 256 bytes: of a longer one the beginning, and a digest that tells it from others.
fn short(name: &str) -> std::borrow::Cow<'_, str> {
    const BYTES_MAX: usize = 256;
    if name.len() <= BYTES_MAX {
        return name.into();
    }
    let digest = crate::audit::sha256([name]);
    let begin = (0..BYTES_MAX - digest.len())
        .rev()
        .find(|at| name.is_char_boundary(*at));
    let begin = name.get(..begin.unwrap_or(0)).unwrap_or_default();
    format!("{begin}#{digest}").into()
}

impl Dossier {
    /// The case that people work on, or have decided.
    pub(super) fn case_mut(&mut self) -> Result<&mut Case, Refusal> {
        let missing = self.missing("case");
        self.case.as_mut().ok_or(missing)
    }

    /// The customer says something. Told twice under one key it counts once. From here on no automated action leaves until a person
    /// has decided.
    ///
    /// Whoever writes is heard: of a text, a key or a channel that is too long the beginning is kept, and a message without any text (an
    /// attachment alone) is one.
    ///
    /// # Errors
    /// If there is no key: a message told twice could not be known.
    pub fn hear(
        &mut self,
        key: &str,
        channel: &str,
        text: &str,
        at: Time,
    ) -> Result<Vec<Event>, Refusal> {
        if key.trim().is_empty() {
            return Err(Refusal::Message);
        }
        let key = &*short(key);
        if self.message_keys.iter().any(|held| held == key) {
            return Ok(Vec::new());
        }
        let text = match text.trim() {
            "" => "[The message has no text.]".into(),
            _ => kept(text),
        };
        let mut next = self.clone();
        let mut events = Vec::new();
        // What is said to a closed case opens a new one.
        if next.case.as_ref().is_none_or(Case::is_closed) {
            events.extend(next.open_case(at));
        }
        let (withheld, late_lock) = next.withhold_peoples(at);
        events.extend(withheld);
        // A lock that was decided and had not left yet is appealed like one that did.
        let locked = next.is_locked() || late_lock;
        let channel = short(channel).into_owned();
        next.case_mut()?.say(
            Message {
                at,
                from: Speaker::Customer { channel },
                text: text.into_owned(),
            },
            locked,
        );
        next.message_keys.push(key.to_owned());
        if next.message_keys.len() > MESSAGE_KEYS_MAX {
            next.message_keys.remove(0);
        }
        next.conversation.get_or_insert(Conversation { since: at });
        events.push(Event::CustomerSpoke {
            key: key.to_owned(),
        });
        *self = next;
        Ok(events)
    }

    /// What people decided and has not left yet does not leave once the customer has spoken: people decide again. Says whether a lock or
    /// power-down was among it.
    fn withhold_peoples(&mut self, at: Time) -> (Vec<Event>, bool) {
        let (mut events, mut locks) = (Vec::new(), false);
        for action in &mut self.actions {
            let key = &action.key;
            if key.undo || !matches!(action.by, By::Person { .. }) {
                continue;
            }
            if action.state.withhold(key, at, WROTE.to_owned()).is_ok() {
                locks |= key.step > Step::Throttle;
                let (key, why) = (key.clone(), WROTE.to_owned());
                events.push(Event::ActionWithheld { key, why });
            }
        }
        (events, locks)
    }

    /// Whether the customer has spoken at `at` or later, by the clock of whichever replica heard them.
    pub(super) fn has_spoken_since(&self, at: Time) -> bool {
        let messages = self.case.iter().flat_map(|case| &case.messages);
        let mut customers = messages.filter(|held| matches!(held.from, Speaker::Customer { .. }));
        self.conversation.is_some() && customers.any(|held| held.at.after(CLOCKS_DIFFER_MAX) >= at)
    }

    /// A person takes the case up.
    ///
    /// # Errors
    /// If there is none, or another person has it and `take_over` is not said.
    pub fn claim(&mut self, by: &Person, take_over: bool, at: Time) -> Result<Vec<Event>, Refusal> {
        let case = self.case_mut()?;
        let before = case.state.clone();
        case.claim(by, take_over, at)?;
        let changed = case.state != before;
        let (case, by) = (case.id.clone(), by.clone());
        Ok(changed
            .then_some(Event::CaseClaimed { case, by })
            .into_iter()
            .collect())
    }

    /// A person gives the case back to the queue.
    ///
    /// # Errors
    /// If they do not have it.
    pub fn give_back(&mut self, by: &Person) -> Result<Vec<Event>, Refusal> {
        let case = self.case_mut()?;
        case.give_back(by)?;
        let (case, by) = (case.id.clone(), by.clone());
        Ok(vec![Event::CaseGivenBack { case, by }])
    }

    /// A person answers the customer: their clock stops. The conversation stays open until a person decides.
    ///
    /// # Errors
    /// If there is no case, or it is full, or the text is empty or too long.
    pub fn answer(&mut self, by: &Person, text: &str, at: Time) -> Result<Vec<Event>, Refusal> {
        if text.trim().is_empty() || text.len() > MESSAGE_BYTES_MAX {
            return Err(Refusal::Answer);
        }
        let locked = self.is_locked();
        let case = self.case_mut()?;
        case.say(
            Message {
                at,
                from: Speaker::Person { person: by.clone() },
                text: text.to_owned(),
            },
            locked,
        );
        let case = case.id.clone();
        let text = statement::of_answer(text, &self.seen(), &case);
        let mut events = vec![Event::Answered {
            case,
            by: by.clone(),
        }];
        let by = Some(by.to_string());
        events.extend(self.write(Recipient::Customer, text, by, at));
        Ok(events)
    }

    /// What was seen, for the customer: now, or when something was done.
    pub(super) fn seen(&self) -> String {
        let now = statement::seen(self.episode.as_ref());
        let before =
            "nothing since; what was seen before stands in what we wrote to you when we acted";
        let acted = self
            .actions
            .iter()
            .any(|action| !action.key.undo && action.may_be_felt());
        now.unwrap_or_else(|| match acted {
            false => "nothing on droplets that are known to be yours".to_owned(),
            true => before.to_owned(),
        })
    }

    /// A person closes a decided case.
    ///
    /// # Errors
    /// If it is not decided, the customer waits, or an appeal's second review is wanted.
    pub fn close(&mut self, at: Time) -> Result<Vec<Event>, Refusal> {
        if self.conversation.is_some() {
            return Err(Refusal::Waits {
                account: self.account.clone(),
            });
        }
        let case = self.case_mut()?;
        case.close(at)?;
        let case = case.id.clone();
        Ok(vec![Event::CaseClosed { case }])
    }

    /// Until when a person is to have answered the customer; none if the customer does not wait.
    #[must_use]
    pub fn first_answer_due(&self, settings: &Settings) -> Option<Time> {
        let since = self.case.as_ref()?.waiting_since?;
        Some(since.after(settings.first_answer_ms))
    }
}
