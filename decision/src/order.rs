//! What a driver is given: one request to the provider's control plane, complete in itself.
//!
//! An order is named by its key for good. A receiver that honours the key does it once, however often it comes; one that comes
//! after [`Order::not_after`] is to be refused, so that a request that was long under way cannot overtake a safety.

use serde::{Deserialize, Serialize};

use crate::{
    account::{AccountId, DropletId},
    policy::Step,
    time::{Span, Time},
};

/// A step against a customer that no person asked for leaves so long after its release at the latest: what stops automation stops
/// it within a second.
pub const LEAVES_WITHIN: Span = Span::seconds(1);

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Tell the customer what was seen; opens the ticket.
    Notify,
    /// Take that back.
    WithdrawNotice,
    /// Cap the droplets' CPU.
    Throttle,
    /// Lift the cap.
    Unthrottle,
    /// Turn the droplets off.
    PowerDown,
    /// Turn on what [`Verb::PowerDown`] turned off, and nothing else.
    PowerUp,
    /// Lock the account.
    Lock,
    /// Unlock it.
    Unlock,
    /// Send the customer a message in the case's ticket.
    Message,
    /// Page on-call.
    Page,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Notify,
        Self::WithdrawNotice,
        Self::Throttle,
        Self::Unthrottle,
        Self::PowerDown,
        Self::PowerUp,
        Self::Lock,
        Self::Unlock,
        Self::Message,
        Self::Page,
    ];

    /// Its name, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Notify => "notify",
            Self::WithdrawNotice => "withdraw_notice",
            Self::Throttle => "throttle",
            Self::Unthrottle => "unthrottle",
            Self::PowerDown => "power_down",
            Self::PowerUp => "power_up",
            Self::Lock => "lock",
            Self::Unlock => "unlock",
            Self::Message => "message",
            Self::Page => "page",
        }
    }

    /// What takes a step of the ladder, or undoes it; none for the steps that ask nothing of the control plane.
    #[must_use]
    pub const fn of(step: Step, undo: bool) -> Option<Self> {
        Some(match (step, undo) {
            (Step::Observe | Step::CloserLook | Step::OpenCase, _) => return None,
            (Step::Notify, false) => Self::Notify,
            (Step::Notify, true) => Self::WithdrawNotice,
            (Step::Throttle, false) => Self::Throttle,
            (Step::Throttle, true) => Self::Unthrottle,
            (Step::PowerDown, false) => Self::PowerDown,
            (Step::PowerDown, true) => Self::PowerUp,
            (Step::Lock, false) => Self::Lock,
            (Step::Lock, true) => Self::Unlock,
        })
    }
}

impl Order {
    /// Whether it is a step against a customer that no person asked for: any safety would have held it back.
    #[must_use]
    pub const fn is_automated_step(&self) -> bool {
        self.automated
            && matches!(
                self.verb,
                Verb::Notify | Verb::Throttle | Verb::PowerDown | Verb::Lock
            )
    }

    /// After this it is not sent, nor sent again. What was to be sent later is queried, and released anew if nothing speaks against it
    /// by then.
    #[must_use]
    pub fn leaves_by(&self) -> Time {
        if self.is_automated_step() {
            self.not_after.min(self.released_at.after(LEAVES_WITHIN))
        } else {
            self.not_after
        }
    }
}

impl std::fmt::Display for Verb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// One request to the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Names it for good: the idempotency key.
    pub key: String,
    /// Whose.
    pub account: AccountId,
    /// What.
    pub verb: Verb,
    /// On which droplets; empty where the verb is about the account.
    pub droplets: Vec<DropletId>,
    /// The case it belongs to.
    pub case: String,
    /// For the customer (statement of reasons, message) or on-call (page), in words.
    pub text: String,
    /// Whether no person asked for it.
    pub automated: bool,
    /// When it was released.
    pub released_at: Time,
    /// After this it is to be refused.
    pub not_after: Time,
}
