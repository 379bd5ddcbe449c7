//! What people do to an account: the customer speaks, a person unlocks.

use super::{Dossier, Event, HOLDS_MAX, MESSAGE_KEYS_MAX, Refusal};
use crate::{
    case::{Message, Person, Ruling, Speaker},
    safety::{Allowed, Conversation, Hold},
    settings::Settings,
    time::Time,
};

impl Dossier {
    /// The customer says something. Told twice under one key it counts once.
    ///
    /// # Errors
    /// If the case is full.
    pub fn hear(
        &mut self,
        key: &str,
        channel: &str,
        text: &str,
        at: Time,
    ) -> Result<Vec<Event>, Refusal> {
        if self.message_keys.iter().any(|held| held == key) {
            return Ok(Vec::new());
        }
        let locked = self.is_locked();
        let mut events = Vec::new();
        if self.case.is_none() {
            events.extend(self.open_case(at));
        }
        if let Some(case) = &mut self.case {
            let channel = channel.to_owned();
            let message = Message {
                at,
                from: Speaker::Customer { channel },
                text: text.to_owned(),
            };
            case.say(message, locked)?;
        }
        self.message_keys.push(key.to_owned());
        if self.message_keys.len() > MESSAGE_KEYS_MAX {
            self.message_keys.remove(0);
        }
        self.conversation.get_or_insert(Conversation { since: at });
        events.push(Event::CustomerSpoke {
            key: key.to_owned(),
        });
        Ok(events)
    }

    /// A person unlocks: what Davy did is undone, what it was about to do is withheld, the hold is set, and if the customer is in the
    /// right the flag as well; all at once.
    ///
    /// # Errors
    /// If there is no case to decide, or another person has it.
    pub fn unlock(
        &mut self,
        by: &Person,
        legitimate: bool,
        settings: &Settings,
        at: Time,
    ) -> Result<Vec<Event>, Refusal> {
        let ruling = if legitimate {
            Ruling::Legitimate
        } else {
            Ruling::Unsure
        };
        let Some(case) = &mut self.case else {
            return Err(self.missing("case"));
        };
        case.unlock(by, ruling, at)?;
        let case = case.id.clone();
        let mut events = vec![Event::CaseDecided {
            case,
            ruling,
            by: by.clone(),
        }];
        events.extend(self.protect(by, legitimate, settings, at));
        Ok(events)
    }

    /// What every unlock does to the account.
    fn protect(
        &mut self,
        by: &Person,
        legitimate: bool,
        settings: &Settings,
        at: Time,
    ) -> Vec<Event> {
        let until = at.after(settings.hold_ms);
        self.holds.push(Hold {
            since: at,
            until,
            by: by.to_string(),
        });
        if self.holds.len() > HOLDS_MAX {
            self.holds.remove(0);
        }
        let mut events = vec![Event::HoldSet {
            until,
            by: by.clone(),
        }];
        if legitimate {
            self.allowed = Some(Allowed {
                since: at,
                by: by.to_string(),
            });
            events.push(Event::HighCpuAllowed { by: by.clone() });
        }
        (self.conversation, self.ruling) = (None, None);
        events.extend(self.undo_all("a person unlocked the account", at));
        events
    }
}
