//! An account's record, event by event.

use davy_evidence::Level;

use super::*;
use crate::{
    account::{Cents, Droplet, Known, Payments},
    action::{Outcome, Parcel},
    case::Person,
    decide::decide,
    episode::Classes,
    policy::Policies,
    time::Span,
};

const T0: Time = Time::from_unix_ms(1_559_148_180_000);

pub(super) fn minute(n: u64) -> Time {
    T0.after(Span::minutes(n))
}

pub(super) fn known<T>(value: T, at: Time) -> Option<Known<T>> {
    Some(Known { value, as_of: at })
}

pub(super) fn facts(at: Time) -> Facts {
    let since = T0.before(Span::days(1));
    Facts {
        created_at: known(since, at),
        first_payment_at: known(None, at),
        first_droplet_at: known(Some(since), at),
        payments: known(Payments::default(), at),
        run_rate: known(Cents(5000), at),
        credit: known(None, at),
        high_cpu_allowed: known(false, at),
        vouched: known(None, at),
        links: known(Vec::new(), at),
        droplets: known(
            std::collections::BTreeMap::from([(
                "d1".try_into().unwrap(),
                Droplet {
                    created_at: since,
                    vcpus: 2,
                },
            )]),
            at,
        ),
    }
}

pub(super) fn mining(from: u64, to: u64) -> Sighting {
    Sighting {
        droplet: "d1".try_into().unwrap(),
        host: "h1".to_owned(),
        from: minute(from),
        to: minute(to),
        level: Level::Mining,
        classes: Classes {
            fp_rounding: true,
            register_randomness: true,
            pmu: false,
        },
        cpu_percent: 200,
        neighbours_wait_percent: None,
        reasons: Vec::new(),
    }
}

/// A dossier, the fleet and what is needed beside.
#[derive(Clone)]
pub(super) struct World {
    pub(super) dossier: Dossier,
    pub(super) fleet: Fleet,
    pub(super) settings: Settings,
    pub(super) policies: Policies,
}

impl World {
    pub(super) fn new() -> Self {
        let mut dossier = Dossier::new("acct-1".try_into().unwrap());
        dossier.inform(facts(T0), T0).unwrap();
        Self {
            dossier,
            fleet: Fleet {
                droplets: 10_000,
                ..Fleet::default()
            },
            settings: Settings::default(),
            policies: Policies::shipped().unwrap(),
        }
    }

    /// A new, unpaid account that mined for twenty minutes, with the decision carried into its record.
    pub(super) fn planned() -> Self {
        let mut world = Self::new();
        world.dossier.observe(mining(0, 20), &world.settings);
        world.decide(20);
        world
    }

    /// The same, after it was told.
    pub(super) fn throttling() -> Self {
        let mut world = Self::planned();
        let notice = world.key(Step::Notify, false);
        assert_eq!(
            world.release(&notice, 20),
            State::Released { at: minute(20) }
        );
        world.learn(&notice, Outcome::Done, 20);
        world
    }

    pub(super) fn decide(&mut self, at: u64) -> Vec<Event> {
        let (policy, at) = (self.policies.digest().to_owned(), minute(at));
        let input = self.dossier.input(&self.fleet, &policy, &self.settings, at);
        let plan = decide(&self.policies, &input.unwrap());
        self.dossier.apply(&plan, &self.settings, at)
    }

    pub(super) fn key(&self, step: Step, undo: bool) -> Key {
        Key {
            account: self.dossier.account.clone(),
            episode: 1,
            step,
            turn: 0,
            undo,
        }
    }

    pub(super) fn release(&mut self, key: &Key, at: u64) -> State {
        self.release_with(key, Some(Ok(facts(minute(at)))), at)
    }

    pub(super) fn release_with(
        &mut self,
        key: &Key,
        fresh: Option<Result<Facts, String>>,
        at: u64,
    ) -> State {
        let parcel = Parcel::Action(key.clone());
        self.dossier
            .release(
                &parcel,
                fresh,
                (&mut self.fleet, &self.policies),
                &self.settings,
                minute(at),
            )
            .unwrap();
        self.state(key)
    }

    pub(super) fn learn(&mut self, key: &Key, outcome: Outcome, at: u64) -> Vec<Event> {
        let parcel = Parcel::Action(key.clone());
        let released_at = self.state(key).released_at().unwrap_or_default();
        self.dossier
            .learn(
                &parcel,
                released_at,
                outcome,
                (&self.fleet, &self.settings),
                minute(at),
            )
            .unwrap()
    }

    pub(super) fn unlock(&mut self, legitimate: bool, at: u64) -> Vec<Event> {
        self.dossier
            .unlock(&ann(), legitimate, None, [], &self.settings, minute(at))
            .unwrap()
    }

    pub(super) fn tick(&mut self, at: u64) -> Vec<Event> {
        self.dossier.tick(&self.settings, minute(at))
    }

    pub(super) fn state(&self, key: &Key) -> State {
        let found = self
            .dossier
            .actions
            .iter()
            .find(|action| action.key == *key);
        found.unwrap().state.clone()
    }

    pub(super) fn throttled() -> (Self, Key) {
        let mut world = Self::throttling();
        let key = world.key(Step::Throttle, false);
        assert_eq!(world.release(&key, 21), State::Released { at: minute(21) });
        world.learn(&key, Outcome::Done, 21);
        (world, key)
    }
}

pub(super) fn ann() -> Person {
    Person("ann".to_owned())
}

#[test]
fn a_decision_opens_a_case_and_fills_the_outbox_once() {
    let mut world = World::throttling();
    assert!(world.dossier.case.as_ref().is_some_and(Case::is_open));
    let steps: Vec<_> = world.dossier.actions.iter().map(|a| a.key.step).collect();
    assert_eq!(steps, [Step::Notify, Step::Throttle]);
    let again = world.decide(21);
    assert!(
        !again.iter().any(|event| matches!(
            event,
            Event::ActionPlanned { .. } | Event::CaseOpened { .. }
        )),
        "{again:?}"
    );
    assert_eq!(world.dossier.actions.len(), 2);
}

#[test]
fn a_release_spends_the_budget_and_a_throttle_ends_by_itself() {
    let (mut world, key) = World::throttled();
    assert_eq!(world.fleet.spent.len(), 1);
    let before = world.tick(20 + 1_439);
    assert!(
        !before
            .iter()
            .any(|event| matches!(event, Event::ActionPlanned { .. }))
    );
    world.tick(20 + 1_440);
    assert_eq!(world.state(&Key { undo: true, ..key }), State::Planned);
}

#[test]
fn what_speaks_for_the_customer_between_plan_and_release_withholds() {
    type Change = fn(&mut World);
    let changes: [(&str, Change); 6] = [
        ("open_conversation", |w| {
            w.dossier
                .hear("m1", "ticket", "please", minute(20))
                .unwrap();
        }),
        ("unlock_hold", |w| {
            w.dossier.holds.push(Hold {
                since: T0,
                until: minute(99_999),
                by: "ann".to_owned(),
            });
        }),
        ("kill_switch", |w| {
            w.fleet.stop = Some(crate::fleet::Stop {
                since: T0,
                by: "bob".to_owned(),
                why: "drill".to_owned(),
            });
        }),
        ("blast_radius", |w| w.settings.budget_per_hour = 0),
        ("high_cpu_allowed", |w| {
            w.dossier.allowed = Some(Allowed {
                since: T0,
                by: "ann".to_owned(),
            });
        }),
        ("evidence is quiet", |w| {
            let quiet = Sighting {
                level: Level::Quiet,
                ..mining(20, 21)
            };
            w.dossier.observe(quiet, &Settings::default());
        }),
    ];
    for (word, change) in changes {
        let mut world = World::throttling();
        change(&mut world);
        let key = world.key(Step::Throttle, false);
        match world.release(&key, 21) {
            State::Withheld { why, .. } => assert!(why.contains(word), "{word}: {why}"),
            state => panic!("{word}: {state:?}"),
        }
        assert!(!world.fleet.holds(&world.dossier.account));
    }
}

#[test]
fn facts_that_cannot_be_fetched_or_are_a_minute_old_withhold() {
    let stale = || Ok(facts(minute(19)));
    for fresh in [Some(Err("refused".to_owned())), Some(stale()), None] {
        let mut world = World::throttling();
        let key = world.key(Step::Throttle, false);
        let state = world.release_with(&key, fresh, 22);
        assert!(
            matches!(&state, State::Withheld { why, .. } if why.contains("unknown_standing")),
            "{state:?}"
        );
    }
}

#[test]
fn a_stale_plan_never_runs() {
    let mut world = World::throttling();
    world.dossier.observe(mining(20, 31), &world.settings);
    let key = world.key(Step::Throttle, false);
    let state = world.release(&key, 31);
    assert!(matches!(&state, State::Withheld { why, .. } if why.contains("plan is 11 min old")));
    // It may be planned anew, under the same key.
    world.decide(31);
    assert_eq!(world.state(&key), State::Planned);
}

#[test]
fn an_unlock_undoes_sets_the_hold_and_the_flag_at_once() {
    let (mut world, key) = World::throttled();
    let events = world.unlock(true, 30);
    assert!(events.contains(&Event::HighCpuAllowed { by: ann() }));
    assert!(world.dossier.allowed.is_some() && world.dossier.holds.len() == 1);
    assert_eq!(world.state(&Key { undo: true, ..key }), State::Planned);
    // What was not released yet, is not any more.
    let mut early = World::planned();
    early.unlock(true, 21);
    for step in [Step::Notify, Step::Throttle] {
        let state = early.state(&early.key(step, false));
        assert!(matches!(state, State::Withheld { .. }), "{step}: {state:?}");
    }
    let unsure = {
        let (mut world, _) = World::throttled();
        world.unlock(false, 30);
        world.dossier
    };
    assert!(unsure.allowed.is_none() && unsure.holds.len() == 1);
}

#[test]
fn a_reason_given_with_an_unlock_is_kept() {
    let (mut world, _) = World::throttled();
    let text = "They run a farm of login servers and showed us the code.";
    let reason = Some(text.to_owned().try_into().unwrap());
    let World {
        dossier, settings, ..
    } = &mut world;
    (dossier.unlock(&ann(), true, reason, [], settings, minute(30))).unwrap();
    let case = dossier.case.as_ref().unwrap();
    assert_eq!(case.opinions[0].reason.as_str(), text);
    assert!(!case.is_open() && !case.wants_review());
}

#[test]
fn three_hours_after_an_unlock_the_same_load_leads_to_nothing() {
    let (mut world, _) = World::throttled();
    world.unlock(false, 30);
    let World {
        dossier, settings, ..
    } = &mut world;
    dossier.observe(mining(200, 230), settings);
    dossier.inform(facts(minute(230)), minute(230)).unwrap();
    let events = world.decide(230);
    assert!(
        !events
            .iter()
            .any(|event| matches!(event, Event::ActionPlanned { .. })),
        "{events:?}"
    );
}

#[test]
fn what_was_done_while_the_customer_spoke_is_undone() {
    let mut world = World::throttling();
    let key = world.key(Step::Throttle, false);
    world.release(&key, 21);
    world
        .dossier
        .hear("m1", "ticket", "it is my build farm", minute(21))
        .unwrap();
    world.learn(&key, Outcome::Done, 22);
    assert_eq!(world.state(&Key { undo: true, ..key }), State::Planned);
}

#[test]
fn a_query_waits_until_the_control_plane_would_refuse_the_order() {
    let mut world = World::throttling();
    let key = world.key(Step::Throttle, false);
    world.release(&key, 21);
    world.learn(&key, Outcome::Doubtful, 21);
    let queried = |world: &World, at: Time| {
        let errands = world.dossier.errands(&world.fleet, at);
        errands
            .iter()
            .any(|errand| matches!(errand, Errand::Query { .. }))
    };
    let void = minute(21).after(world.settings.delivery_ms);
    assert!(!queried(&world, void));
    assert!(queried(&world, void.after(world.settings.delivery_ms)));
}

#[test]
fn a_message_told_twice_counts_once() {
    let mut world = World::throttling();
    world
        .dossier
        .hear("m1", "ticket", "hello", minute(21))
        .unwrap();
    let before = world.dossier.clone();
    assert_eq!(
        world.dossier.hear("m1", "ticket", "hello", minute(25)),
        Ok(Vec::new())
    );
    assert_eq!(world.dossier, before);
}

#[test]
fn nobody_decides_within_two_hours_and_a_lock_steps_back_to_a_throttle() {
    let (mut world, throttle) = World::throttled();
    let mut lock = world.dossier.actions[1].clone();
    lock.key.step = Step::PowerDown;
    lock.ends_at = None;
    lock.state = State::Done { at: minute(40) };
    world.dossier.actions.push(lock.clone());
    world
        .dossier
        .hear("m1", "ticket", "why?", minute(41))
        .unwrap();
    assert!(
        world
            .dossier
            .case
            .as_ref()
            .is_some_and(|case| case.appealed_at.is_some())
    );
    let early = world.tick(41 + 119);
    assert!(
        early
            .iter()
            .all(|event| matches!(event, Event::Paged { .. } | Event::LetterWritten { .. })),
        "{early:?}"
    );
    let late = world.tick(41 + 120);
    assert!(
        late.iter()
            .any(|event| matches!(event, Event::SteppedBack { .. })),
        "{late:?}"
    );
    assert_eq!(
        world.state(&Key {
            undo: true,
            ..lock.key
        }),
        State::Planned
    );
    assert!(!world.dossier.is_undone(&throttle));
}

#[test]
fn an_episode_ends_after_a_day_of_quiet_and_the_next_one_may_act_anew() {
    let (mut world, _) = World::throttled();
    let day = 24 * 60 + 20;
    assert!(
        world
            .tick(day)
            .contains(&Event::EpisodeEnded { episode: 1 })
    );
    let World {
        dossier, settings, ..
    } = &mut world;
    dossier.observe(mining(day + 10, day + 30), settings);
    assert_eq!(
        dossier.episode.as_ref().map(|episode| episode.number),
        Some(2)
    );
}

#[test]
fn an_undoing_that_is_refused_pages_once_and_is_tried_again_later() {
    let (mut world, key) = World::throttled();
    let undo = Key {
        undo: true,
        ..key.clone()
    };
    let ended = 20 + 1_440;
    world.tick(ended);
    world.release(&undo, ended);
    let refused = Outcome::Refused {
        why: "out of order".to_owned(),
    };
    let events = world.learn(&undo, refused, ended);
    let letters = |events: &[Event]| {
        let written = |event: &&Event| matches!(event, Event::LetterWritten { .. });
        events.iter().filter(written).count()
    };
    assert_eq!(letters(&events), 1, "on-call is paged");
    for minute in 1..15 {
        world.tick(ended + minute);
        assert!(
            matches!(world.state(&undo), State::Refused { .. }),
            "{minute}"
        );
    }
    world.tick(ended + 15);
    assert_eq!(world.state(&undo), State::Planned);
}

#[test]
fn what_was_refused_to_be_undone_is_asked_for_again_by_a_person_at_any_time() {
    let (mut world, key) = World::throttled();
    world.unlock(true, 30);
    let undo = Key {
        undo: true,
        ..key.clone()
    };
    world.release(&undo, 30);
    let refused = Outcome::Refused {
        why: "out of order".to_owned(),
    };
    world.learn(&undo, refused, 30);
    let said = |world: &World| {
        world
            .dossier
            .clone()
            .action(&undo)
            .unwrap()
            .statement
            .clone()
    };
    let before = said(&world);
    let World {
        dossier, settings, ..
    } = &mut world;
    dossier.take_back(&ann(), settings, minute(31)).unwrap();
    assert_eq!(said(&world), before, "one key names one content");
    assert!(world.dossier.allowed.is_some(), "the unlock stands");
    assert_eq!(world.state(&undo), State::Planned);
}

/// A miner that never pauses is decided on when the rules' time is over, and not only when facts are fetched anew.
#[test]
fn new_evidence_makes_an_account_due_and_is_looked_at_at_most_every_ten_seconds() {
    let mut world = World::new();
    let after = |seconds| T0.after(Span::seconds(seconds));
    let (mut decisions, mut turns) = (Vec::new(), 0);
    let World {
        dossier,
        fleet,
        settings,
        policies,
    } = &mut world;
    for window in 0..122 {
        let (from, to) = (after(window * 5), after((window + 1) * 5));
        let seen = Sighting {
            from,
            to,
            ..mining(0, 0)
        };
        dossier.observe(seen, settings);
        // Facts are never old here, and nothing leaves: evidence alone makes it due.
        dossier.inform(facts(to), to).unwrap();
        if dossier.errands(fleet, to).is_empty()
            && dossier
                .due(fleet, settings, to)
                .is_some_and(|due| due <= to)
        {
            turns += 1;
            let turn = dossier.turn(fleet, policies, settings, to);
            decisions.extend(turn.decision.map(|(input, plan)| (input.at, plan.step)));
        }
    }
    assert!((55..=62).contains(&turns), "every other window: {turns}");
    assert_eq!(decisions[0], (after(5), Step::Observe));
    let (at, step) = decisions[1];
    assert_eq!((decisions.len(), step), (2, Step::Throttle));
    assert!(at >= after(600) && at <= after(610), "{at}");
    // What was looked at is due when it is old.
    for action in &mut dossier.actions {
        action.state = State::Withheld {
            at: after(610),
            why: "it does not leave here".to_owned(),
        };
    }
    dossier.turn(fleet, policies, settings, after(610));
    let quiet = dossier.due(fleet, settings, after(610)).unwrap();
    assert!(quiet > after(620), "{quiet}");
}
