//! The design's invariants as properties of the model, and what must be reachable so that they say something.

use davy_decision::{
    action::State, case::Person, dossier::Dossier, policy::Step, text::Reason, time::Time,
};
use stateright::Property;

use crate::{
    Protocol,
    books::{Broken, Seen},
    world::{Name, World},
};

/// Every property; `always` ones are named after the invariant.
#[must_use]
pub fn all() -> Vec<Property<Protocol>> {
    let mut all = never_broken();
    all.extend([
        Property::always("6: every automated action is undone in one step", undoable),
        Property::always("7: one effect per step, account and episode", one_effect),
        Property::always("7: no effect is forgotten", no_effect_is_forgotten),
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
        Property::always("6: an open case and a statement", |_, w| {
            kept(w, Broken::Case)
        }),
        Property::always("7: no release twice", |_, w| kept(w, Broken::Twice)),
        Property::always("a stale plan never runs", |_, w| kept(w, Broken::StalePlan)),
        Property::always("8: no more releases than the budget", |_, w| {
            kept(w, Broken::Budget)
        }),
        Property::always("8: the kill switch stops", |_, w| kept(w, Broken::Stopped)),
    ]
}

/// What must be reachable in some configuration.
fn reachable() -> Vec<Property<Protocol>> {
    fn seen(world: &World, seen: Seen) -> bool {
        world.books.seen.contains(&seen)
    }
    vec![
        Property::sometimes("throttled", |_, w: &World| {
            w.felt.keys().any(|name| name.step == Step::Throttle)
        }),
        Property::sometimes("powered down", |_, w: &World| {
            w.felt.keys().any(|name| name.step == Step::PowerDown)
        }),
        Property::sometimes("undone", |_, w: &World| {
            w.plane.iter().any(|(name, fate)| name.undo && fate.done)
        }),
        Property::sometimes("a doubt resolved as done", |_, w: &World| {
            seen(w, Seen::DoubtResolvedAsDone)
        }),
        Property::sometimes("released again", |_, w: &World| {
            seen(w, Seen::ReleasedAgain)
        }),
        Property::sometimes("refused for lateness", |_, w: &World| {
            seen(w, Seen::TooLate)
        }),
        Property::sometimes("stepped back", |_, w: &World| seen(w, Seen::SteppedBack)),
        Property::sometimes("locked by two people", |_, w: &World| {
            seen(w, Seen::LockedByTwo)
        }),
        Property::sometimes("withheld for another's budget", |_, w: &World| {
            seen(w, Seen::WithheldForBudget)
        }),
        Property::sometimes("withheld for the kill switch", |_, w: &World| {
            seen(w, Seen::WithheldForStop)
        }),
    ]
}

/// No two keys did the same automated step.
fn one_effect(_: &Protocol, world: &World) -> bool {
    let mut done: Vec<_> = (world.plane.iter())
        .filter(|(name, fate)| fate.done && fate.automated && !name.undo)
        .map(|(name, _)| (name.account, name.episode, name.step))
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
