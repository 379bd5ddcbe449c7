//! The design's invariants as properties of the model, and what must be reachable so that they say something.

use davy_decision::{
    action::{Action, Recipient, State},
    case::Person,
    dossier::Dossier,
    policy::Step,
    text::Reason,
    time::{Span, Time},
};
use stateright::Property;

use crate::{
    Protocol,
    books::{Broken, Seen, Word},
    world::{Name, Replica, World},
};

/// Every property; `always` ones are named after the invariant.
#[must_use]
pub fn all() -> Vec<Property<Protocol>> {
    let mut all = never_broken();
    all.extend([
        Property::always("6: every automated action is undone in one step", undoable),
        Property::always("7: one effect per step, account and episode", one_effect),
        Property::always("7: no effect is forgotten", no_effect_is_forgotten),
        Property::always(
            "7: what a safety speaks against is undone in the end",
            undone_in_the_end,
        ),
        Property::always("5: nothing harsher than a ruling stands", nothing_harsher),
        Property::always("5: what two people rule is carried out", ruling_holds),
        Property::always("6: an undoing that is refused pages", refused_undoing_pages),
        Property::always("8: no more droplets than the budget", within_share),
    ]);
    all.extend(reachable());
    all
}

fn never_broken() -> Vec<Property<Protocol>> {
    fn kept(world: &World, broken: Broken) -> bool {
        !world.books.broken.contains(&broken)
    }
    vec![
        Property::always("1: no release with a safety in force", |_, w| {
            kept(w, Broken::Safety)
        }),
        Property::always("2: no release on unknown or old facts", |_, w| {
            kept(w, Broken::Unknown)
        }),
        Property::always("3: no release without two fresh classes", |_, w| {
            kept(w, Broken::Evidence)
        }),
        Property::always("4: no release before a hold ends", |_, w| {
            kept(w, Broken::Hold)
        }),
        Property::always("5: two people deny", |_, w| kept(w, Broken::Denial)),
        Property::always("5: no step of people's over an unanswered word", |_, w| {
            kept(w, Broken::Unheard)
        }),
        Property::always("5: no copied text denies", |_, w| kept(w, Broken::Copied)),
        Property::always("6: an open case and a statement", |_, w| {
            kept(w, Broken::Case)
        }),
        Property::always("6: a decision that is kept", |_, w| {
            kept(w, Broken::Undecided)
        }),
        Property::always("7: no release twice", |_, w| kept(w, Broken::Twice)),
        Property::always("a stale plan never runs", |_, w| kept(w, Broken::StalePlan)),
        Property::always("8: no more releases than the budget", |_, w| {
            kept(w, Broken::Budget)
        }),
        Property::always("8: no more releases after the stop", |_, w| {
            kept(w, Broken::ReleasedStopped)
        }),
        Property::always("8: nothing leaves a second after the stop", |_, w| {
            kept(w, Broken::SentStopped)
        }),
    ]
}

/// What must be reachable in some configuration.
fn reachable() -> Vec<Property<Protocol>> {
    macro_rules! seen {
        ($($name:literal: $seen:ident,)*) => {
            [$(Property::sometimes($name, |_: &Protocol, w: &World| {
                w.books.seen.contains(&Seen::$seen)
            }),)*]
        };
    }
    let mut all = vec![
        Property::sometimes("noticed", |_, w: &World| {
            w.felt.keys().any(|name| name.step == Step::Notify)
        }),
        Property::sometimes("throttled", |_, w: &World| {
            w.felt.keys().any(|name| name.step == Step::Throttle)
        }),
        Property::sometimes("powered down", |_, w: &World| {
            w.felt.keys().any(|name| name.step == Step::PowerDown)
        }),
        Property::sometimes("locked", |_, w: &World| {
            w.felt.keys().any(|name| name.step == Step::Lock)
        }),
        Property::sometimes("undone", |_, w: &World| {
            w.plane.iter().any(|(name, fate)| name.undo && fate.done)
        }),
        Property::sometimes(
            "done in doubt, and undone in the end",
            |protocol: &Protocol, w: &World| {
                let done = |name: &Name| w.plane.get(name).is_some_and(|fate| fate.done);
                w.books.spoken_against.iter().any(done) && rests(protocol, w)
            },
        ),
        Property::sometimes("ruled, and at rest", |protocol, w: &World| {
            let mut books = w.books.accounts.iter();
            books.any(|book| book.ruled.is_some()) && rests(protocol, w)
        }),
    ];
    all.extend(seen! {
        "a doubt resolved as done": DoubtResolvedAsDone,
        "released again": ReleasedAgain,
        "refused for lateness": TooLate,
        "stepped back": SteppedBack,
        "denied by two people": DeniedByTwo,
        "a copied text refused": CopyRefused,
        "withheld for another's budget": WithheldForBudget,
        "withheld for the kill switch": WithheldForStop,
        "withheld for the evidence": WithheldForEvidence,
        "a throttle refused": ThrottleRefused,
        "an undoing refused": UndoingRefused,
        "a refused undoing asked for again": UndoingAskedAgain,
    });
    all
}

/// Whether nothing is under way any more and nothing is left to do, but for what people and letters may bring.
fn rests(protocol: &Protocol, world: &World) -> bool {
    let last = usize::from(world.now) + 1 == protocol.config.times.len();
    let idle = world.replicas.iter().all(|held| *held == Replica::Idle);
    last && idle
        && (0_u8..).zip(&world.accounts).all(|(n, record)| {
            let settled = |action: &Action| {
                matches!(
                    action.state,
                    State::Done { .. } | State::Refused { .. } | State::Withheld { .. }
                )
            };
            record.dossier.actions.iter().all(settled)
                && (protocol.turn(world, n)).is_some_and(|turned| turned.print == record.print)
        })
}

/// After this an undoing that was refused is asked for again, ms.
const UNDO_AGAIN_MS: u64 = 900_000;

/// Whether the control plane has refused to undo it, for good or a moment ago: people were paged, and it stands until it is asked
/// for again.
fn is_stuck(protocol: &Protocol, world: &World, name: Name) -> bool {
    let undo = Name { undo: true, ..name };
    let for_good = world.plane.get(&undo).is_some_and(|fate| !fate.done);
    let now_ms = protocol.time(world.now).unix_ms();
    let just_now = match protocol.state(world, undo) {
        Some(State::Refused { at, .. }) => now_ms - at.unix_ms() < UNDO_AGAIN_MS,
        _ => false,
    };
    for_good || just_now
}

/// At rest, nothing of automation's is felt that a safety of the customer's own speaks against: one that appeared while it was
/// in doubt, or one that is in force. That the customer wrote when it was done already lifts nothing by itself.
fn undone_in_the_end(protocol: &Protocol, world: &World) -> bool {
    let at_ms = protocol.time(world.now).unix_ms();
    let wrong = |(name, automated): (&Name, &bool)| {
        let account = world.books.accounts.get(usize::from(name.account));
        let speaks = account.is_some_and(|account| account.speaks(at_ms));
        // What people ruled since is theirs, whoever did it.
        let theirs = account.is_some_and(|account| account.ruled == Some(name.step));
        let stands =
            *automated && !theirs && name.step != Step::Notify && !is_stuck(protocol, world, *name);
        stands && (speaks || world.books.spoken_against.contains(name))
    };
    !world.felt.iter().any(wrong) || !rests(protocol, world)
}

/// At rest, nothing is felt that is harsher than what two people ruled.
fn nothing_harsher(protocol: &Protocol, world: &World) -> bool {
    let harsher = |name: &Name| {
        let account = world.books.accounts.get(usize::from(name.account));
        let ruled = account.and_then(|account| account.ruled);
        ruled.is_some_and(|ruled| name.step > ruled) && !is_stuck(protocol, world, *name)
    };
    !world.felt.keys().any(harsher) || !rests(protocol, world)
}

/// A throttle lasts for a day, ms.
const THROTTLE_MS: u64 = 86_400_000;

/// At rest, what two people ruled is felt, until their case is taken up again, or the control plane refused it.
fn ruling_holds(protocol: &Protocol, world: &World) -> bool {
    // A throttle ends by itself: when it was ruled is not in the books.
    let short = protocol.time(world.now) - protocol.time(0) < Span::ms(THROTTLE_MS);
    let holds = |n: u8, step: Step| {
        let of = |name: &&Name| (name.account, name.step, name.undo) == (n, step, false);
        let theirs = |name: &&Name| {
            let dossier = &world.accounts[usize::from(n)].dossier;
            let held = crate::shell::action_of(dossier, &name.parcel(&dossier.account));
            held.is_some_and(|held| held.by.is_person())
        };
        let mut theirs = (world.books.releases.keys()).filter(|name| of(name) && theirs(name));
        let refused =
            theirs.any(|name| matches!(protocol.state(world, *name), Some(State::Refused { .. })));
        let felt = |name: &Name| (name.account, name.step) == (n, step);
        refused || world.felt.keys().any(felt) || (step == Step::Throttle && !short)
    };
    let all = (0_u8..).zip(&world.books.accounts).all(|(n, account)| {
        let decided = account.case.and_then(|case| case.decided);
        let ruled = account.ruled.filter(|_| decided == Some(Word::Denied));
        ruled.is_none_or(|step| holds(n, step))
    });
    all || !rests(protocol, world)
}

/// Whoever is on call is told of every undoing that the record knows to be refused.
fn refused_undoing_pages(_: &Protocol, world: &World) -> bool {
    world.accounts.iter().all(|record| {
        let refused = |held: &&Action| held.key.undo && matches!(held.state, State::Refused { .. });
        let paged = (record.dossier.letters.iter()).filter(|letter| letter.to == Recipient::OnCall);
        record.dossier.actions.iter().filter(refused).count() <= paged.count()
    })
}

/// No two keys did the same automated step, and none undid it twice.
fn one_effect(_: &Protocol, world: &World) -> bool {
    let mut done: Vec<_> = (world.plane.iter())
        .filter(|(_, fate)| fate.done && fate.automated)
        .map(|(name, _)| (name.account, name.episode, name.step, name.undo))
        .collect();
    let all = done.len();
    done.sort_unstable();
    done.dedup();
    done.len() == all
}

/// What a customer feels is held by the record as something that may be felt, until its undoing is done.
fn no_effect_is_forgotten(protocol: &Protocol, world: &World) -> bool {
    world.felt.keys().all(|name| {
        let held = protocol.state(world, *name);
        let undo = protocol.state(
            world,
            Name {
                undo: true,
                ..*name
            },
        );
        let known = matches!(
            held,
            Some(State::Released { .. } | State::Doubtful { .. } | State::Done { .. })
        );
        known && !matches!(undo, Some(State::Done { .. }))
    })
}

/// Some one act of a person's, or time, undoes what automation did.
fn undoable(protocol: &Protocol, world: &World) -> bool {
    let felt = |name: &&Name| name.step != Step::Notify && world.felt.get(name) == Some(&true);
    world.felt.keys().filter(felt).all(|name| {
        let undo = Name {
            undo: true,
            ..*name
        };
        let under_way = |state: Option<State>| match state {
            Some(State::Refused { .. } | State::Withheld { .. }) | None => false,
            Some(_) => true,
        };
        under_way(protocol.state(world, undo)) || {
            let dossier = &world.accounts[usize::from(name.account)].dossier;
            let after = one_step(dossier, protocol, protocol.time(world.now));
            after.into_iter().flatten().any(|dossier| {
                let parcel = undo.parcel(&dossier.account);
                crate::shell::action_of(&dossier, &parcel)
                    .is_some_and(|held| held.state == State::Planned)
            })
        }
    })
}

/// The record after time alone (it repeats what the control plane refused to undo), and after each act that a person has for it.
fn one_step(dossier: &Dossier, protocol: &Protocol, at: Time) -> [Option<Dossier>; 3] {
    let (by, settings) = (Person("zoe".to_owned()), &protocol.config.settings);
    let reason = Reason::try_from("the load is a nightly build and nothing else at all".to_owned());
    let review = (dossier.case.as_ref()).is_some_and(|case| case.appealed_at.is_some());
    let mut unlocked = dossier.clone();
    let reason = reason.ok().filter(|_| review);
    let unlock = unlocked.unlock(&by, false, reason, [], settings, at);
    let mut taken = dossier.clone();
    let take = taken.take_back(&by, settings, at);
    let mut ticked = dossier.clone();
    ticked.tick(settings, at);
    [
        Some(ticked),
        unlock.is_ok().then_some(unlocked),
        take.is_ok().then_some(taken),
    ]
}

/// Droplets under automated actions, at the control plane.
fn within_share(protocol: &Protocol, world: &World) -> bool {
    let mut accounts: Vec<_> = (world.felt.iter())
        .filter(|(name, automated)| **automated && name.step != Step::Notify)
        .map(|(name, _)| name.account)
        .collect();
    accounts.sort_unstable();
    accounts.dedup();
    let config = &protocol.config;
    let held = accounts.len() as u64 * u64::from(config.droplets);
    held * 1_000 <= config.fleet * config.settings.budget_fleet_per_mille
}
