//! What can happen, as proptest makes it up.

use proptest::prelude::*;
use serde_json::{Value, json};

/// Accounts of the machine, by number.
pub(crate) const ACCOUNTS: [&str; 5] = ["ash", "birch", "cedar", "dogwood", "elm"];
/// People: two who deny, and two who have not and review the appeal.
pub(crate) const PEOPLE: [&str; 4] = ["ann", "bob", "carol", "dave"];

/// What sensors say for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// RandomX, by two classes.
    Mining,
    /// `mining`, but one class alone stands concluded.
    OneClass,
    /// Hashes.
    Suspect,
    /// All CPUs busy, and no evidence.
    Load,
}

/// What a person does with a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Claim,
    TakeOver,
    GiveBack,
    Answer,
    UnlockLegitimate,
    UnlockUnsure,
    AllowHighCpu,
    RevokeHighCpu,
    Throttle,
    Renew,
    Unthrottle,
    /// An opinion for a denial; its text is a copy of the last reason that was given.
    DenyAgain,
    /// It is one with a word exchanged.
    DenyNearly,
    DenyThrottle,
    DenyPowerDown,
    DenyLock,
    FindUnlock,
    TakeBack,
    Close,
}

/// How the control plane takes the next order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    Does,
    Refuses,
    /// It never arrives.
    Lost,
    /// It is done, and nobody says so.
    Silent,
    /// The detector dies before the order leaves, or after it was done.
    DiesBefore,
    DiesAfter,
}

/// What happens between a step of the engine's and the next: while facts are fetched, between a release's commit and the order's
/// leaving, or while an order is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meanwhile {
    Nothing,
    CustomerSpeaks,
    Stopped,
    Unlocked,
    HighCpuAllowed,
    ProviderAllows,
    OtherReplica,
    /// That many ms.
    Time(u64),
}

/// A step.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Sensors say this of those accounts' droplets (a bit each), for so many minutes: one thing of each other droplet of an
    /// account, and another of the rest.
    Seen {
        accounts: u8,
        says: Says,
        of_the_rest: Says,
        minutes: u64,
    },
    /// The customer speaks, a person does something about it, and the droplets go on mining.
    Talks {
        account: usize,
        who: usize,
        act: Act,
    },
    /// Minutes pass.
    Wait(u64),
    /// The directory says something new: one of [`facts`].
    Told {
        account: usize,
        which: usize,
    },
    /// The directory says something new while the droplets mine: one of [`facts`].
    ToldMeanwhile {
        account: usize,
        which: usize,
    },
    /// Droplets are created, so many.
    Created {
        account: usize,
        droplets: u8,
    },
    /// It does not answer for so many minutes.
    DirectoryDown(u64),
    /// The customer speaks; told twice under one key if so.
    Speaks {
        account: usize,
        twice: bool,
    },
    /// A person acts.
    Acts {
        account: usize,
        who: usize,
        act: Act,
    },
    /// One person proposes a denial, and another, or the same, agrees: in words of their own or in a copy.
    Denied {
        account: usize,
        one: usize,
        other: usize,
        second: Act,
    },
    /// The kill switch.
    Stop,
    Resume,
    /// What comes next between the engine's steps.
    Next {
        order: Takes,
        while_facts: Meanwhile,
        when_released: Meanwhile,
        while_order: Meanwhile,
    },
}

/// What the directory may say of an account later.
pub(crate) fn facts(which: usize, now: &str) -> Value {
    let paid =
        json!({"settled": 20_000, "last_invoice": {"amount": 15_000, "due": now, "state": "paid"}});
    let failed =
        json!({"settled": 0, "last_invoice": {"amount": 2_000, "due": now, "state": "failed"}});
    let all = [
        json!({"high_cpu_allowed": true}),
        json!({"high_cpu_allowed": false, "vouched": null}),
        json!({"vouched": "contract"}),
        json!({"payments": paid, "run_rate": 5_000}),
        json!({"payments": failed}),
        json!({"unknown": ["payments"]}),
        json!({"unknown": ["droplets"]}),
        json!({"payments": {"settled": 0}, "run_rate": 9_000}),
    ];
    all[which % all.len()].clone()
}

fn says() -> impl Strategy<Value = Says> {
    prop_oneof![
        8 => Just(Says::Mining),
        1 => Just(Says::OneClass),
        1 => Just(Says::Suspect),
        1 => Just(Says::Load),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => Just(Act::Claim),
        1 => Just(Act::TakeOver),
        1 => Just(Act::GiveBack),
        1 => Just(Act::Answer),
        1 => Just(Act::UnlockLegitimate),
        2 => Just(Act::UnlockUnsure),
        1 => Just(Act::AllowHighCpu),
        2 => Just(Act::RevokeHighCpu),
        1 => Just(Act::Throttle),
        1 => Just(Act::Renew),
        1 => Just(Act::Unthrottle),
        2 => Just(Act::DenyAgain),
        1 => Just(Act::DenyNearly),
        2 => Just(Act::DenyThrottle),
        3 => Just(Act::DenyPowerDown),
        4 => Just(Act::DenyLock),
        2 => Just(Act::FindUnlock),
        1 => Just(Act::TakeBack),
        2 => Just(Act::Close),
    ]
}

fn takes() -> impl Strategy<Value = Takes> {
    prop_oneof![
        4 => Just(Takes::Does),
        1 => Just(Takes::Refuses),
        2 => Just(Takes::Lost),
        2 => Just(Takes::Silent),
        2 => Just(Takes::DiesBefore),
        2 => Just(Takes::DiesAfter),
    ]
}

fn meanwhile() -> impl Strategy<Value = Meanwhile> {
    prop_oneof![
        10 => Just(Meanwhile::Nothing),
        1 => Just(Meanwhile::CustomerSpeaks),
        1 => Just(Meanwhile::Stopped),
        1 => Just(Meanwhile::Unlocked),
        1 => Just(Meanwhile::HighCpuAllowed),
        1 => Just(Meanwhile::ProviderAllows),
        3 => Just(Meanwhile::OtherReplica),
        3 => prop::sample::select(vec![400, 1_500, 20_000, 61_000]).prop_map(Meanwhile::Time),
    ]
}

/// What may be done about a customer who spoke without deciding anything.
fn aside() -> impl Strategy<Value = Act> {
    prop::sample::select(vec![
        Act::Answer,
        Act::TakeOver,
        Act::GiveBack,
        Act::Renew,
        Act::Close,
        Act::Throttle,
        Act::DenyThrottle,
    ])
}

/// A second opinion: of its own, or a copy.
fn second() -> impl Strategy<Value = Act> {
    prop_oneof![
        5 => Just(Act::DenyLock),
        3 => Just(Act::DenyThrottle),
        1 => Just(Act::DenyAgain),
        1 => Just(Act::DenyNearly),
    ]
}

fn seen() -> impl Strategy<Value = Step> {
    let minutes = prop::sample::select(vec![3_u64, 9, 11, 14, 32]);
    let all = (1_u8..32, says(), says(), any::<bool>(), minutes);
    all.prop_map(|(accounts, says, rest, apart, minutes)| Step::Seen {
        accounts,
        says,
        of_the_rest: if apart { rest } else { says },
        minutes,
    })
}

fn next() -> impl Strategy<Value = Step> {
    let all = (takes(), meanwhile(), meanwhile(), meanwhile());
    all.prop_map(
        |(order, while_facts, when_released, while_order)| Step::Next {
            order,
            while_facts,
            when_released,
            while_order,
        },
    )
}

/// A step.
pub(crate) fn step() -> impl Strategy<Value = Step> {
    let account = || 0..ACCOUNTS.len();
    let who = || 0..PEOPLE.len();
    prop_oneof![
        12 => seen(),
        3 => prop::sample::select(vec![1_u64, 12, 45, 130, 25 * 60, 31 * 24 * 60]).prop_map(Step::Wait),
        3 => (account(), 0_usize..8).prop_map(|(account, which)| Step::Told { account, which }),
        2 => (account(), prop::sample::select(vec![0_usize, 2, 3, 3]))
            .prop_map(|(account, which)| Step::ToldMeanwhile { account, which }),
        1 => (account(), 1_u8..6).prop_map(|(account, droplets)| Step::Created { account, droplets }),
        1 => prop::sample::select(vec![5_u64, 90]).prop_map(Step::DirectoryDown),
        1 => (account(), any::<bool>()).prop_map(|(account, twice)| Step::Speaks { account, twice }),
        1 => (account(), who(), aside()).prop_map(|(account, who, act)| Step::Talks { account, who, act }),
        6 => (account(), who(), act()).prop_map(|(account, who, act)| Step::Acts { account, who, act }),
        4 => (account(), who(), who(), second())
            .prop_map(|(account, one, other, second)| Step::Denied { account, one, other, second }),
        1 => Just(Step::Stop),
        2 => Just(Step::Resume),
        6 => next(),
    ]
}
