//! Decisions, on inputs made by hand.

use std::collections::BTreeMap;

use super::*;
use crate::{
    account::{Cents, Credit, Droplet, Invoice, InvoiceState, Known, Payments},
    episode::{Classes, Sighting},
};

const T0: Time = Time::from_unix_ms(1_559_148_180_000);

fn known<T>(value: T, at: Time) -> Option<Known<T>> {
    Some(Known { value, as_of: at })
}

/// An account engaged `days` ago that has not paid, with `droplets` made a moment before `T0`.
fn facts(days: u64, droplets: usize, at: Time) -> Facts {
    let since = T0.before(Span::days(days));
    let droplet = |n: usize| {
        let id: DropletId = format!("d{n}").try_into().unwrap();
        let created_at = T0.before(Span::minutes(5));
        (
            id,
            Droplet {
                created_at,
                vcpus: 4,
            },
        )
    };
    Facts {
        created_at: known(since, at),
        first_payment_at: known(None, at),
        first_droplet_at: known(Some(since), at),
        payments: known(Payments::default(), at),
        run_rate: known(Cents(50000), at),
        credit: known(Some(Credit::default()), at),
        high_cpu_allowed: known(false, at),
        vouched: known(None, at),
        links: known(Vec::new(), at),
        droplets: known((0..droplets).map(droplet).collect(), at),
    }
}

fn seen(droplet: usize, minutes: u64, level: Level) -> Sighting {
    Sighting {
        droplet: format!("d{droplet}").try_into().unwrap(),
        host: "h1".to_owned(),
        from: T0,
        to: T0.after(Span::minutes(minutes)),
        level,
        classes: Classes {
            fp_rounding: level == Level::Mining,
            register_randomness: level >= Level::Suspect,
            pmu: false,
        },
        cpu_percent: 400,
        neighbours_wait_percent: None,
        reasons: vec!["computes in all four rounding modes".to_owned()],
    }
}

/// `droplets` droplets at `level` for `minutes`, on an account engaged a day ago.
fn input(policies: &Policies, level: Level, minutes: u64, droplets: usize) -> Input {
    let at = T0.after(Span::minutes(minutes));
    let mut episode = Episode::begin(1, seen(0, minutes, level));
    for droplet in 1..droplets {
        episode.add(seen(droplet, minutes, level));
    }
    Input {
        at,
        account: "acct-1".try_into().unwrap(),
        policy: policies.digest().to_owned(),
        settings: Settings::default(),
        episode,
        facts: facts(1, droplets, at),
        fetch_failed: None,
        allowed: None,
        holds: Vec::new(),
        conversation: None,
        fleet: Fleet {
            droplets: 100_000,
            ..Fleet::default()
        },
        taken: Vec::new(),
        throttled: false,
        ruling: None,
    }
}

fn shipped() -> Policies {
    Policies::shipped().unwrap()
}

fn with(extra: &str) -> Policies {
    Policies::new(&BTreeMap::from([
        (
            "default.cedar".to_owned(),
            crate::policy::DEFAULT.to_owned(),
        ),
        ("extra.cedar".to_owned(), extra.to_owned()),
    ]))
    .unwrap()
}

fn force(plan: &Plan) -> Vec<Safety> {
    in_force(&plan.safeties)
}

#[test]
fn load_alone_is_observed_whatever_its_level() {
    let policies = shipped();
    let plan = decide(&policies, &input(&policies, Level::Quiet, 600, 10));
    assert_eq!(plan.steps, [Step::Observe]);
}

#[test]
fn a_suspect_gets_a_closer_look_and_after_six_hours_a_person() {
    let policies = shipped();
    let early = decide(&policies, &input(&policies, Level::Suspect, 360, 1));
    assert_eq!(early.steps, [Step::Observe, Step::CloserLook]);
    let late = decide(&policies, &input(&policies, Level::Suspect, 361, 1));
    assert_eq!(late.step, Step::OpenCase);
}

#[test]
fn a_new_unpaid_miner_is_throttled_with_a_case_after_ten_minutes() {
    let policies = shipped();
    let early = decide(&policies, &input(&policies, Level::Mining, 9, 1));
    assert_eq!(early.step, Step::Observe);
    let plan = decide(&policies, &input(&policies, Level::Mining, 10, 1));
    assert_eq!(
        plan.steps,
        [Step::Observe, Step::OpenCase, Step::Notify, Step::Throttle]
    );
    assert_eq!(plan.targets.len(), 1);
    assert!(plan.deciding().contains(&"mining:throttle-the-new"));
    assert!(force(&plan).is_empty(), "{:?}", plan.safeties);
}

#[test]
fn each_safety_alone_leaves_a_case_and_nothing_that_reaches_the_customer() {
    let policies = shipped();
    let mining = || input(&policies, Level::Mining, 20, 1);
    let at = mining().at;
    let long = Span::days(91);
    let cases: Vec<(Safety, Input)> = vec![
        (
            Safety::HighCpuAllowed,
            Input {
                facts: Facts {
                    high_cpu_allowed: known(true, at),
                    ..mining().facts
                },
                ..mining()
            },
        ),
        (
            Safety::UnlockHold,
            Input {
                holds: vec![Hold {
                    since: T0,
                    until: at.after(Span::days(1)),
                    by: "ann".to_owned(),
                }],
                ..mining()
            },
        ),
        (
            Safety::LongStanding,
            Input {
                facts: Facts {
                    created_at: known(T0.before(long), at),
                    ..mining().facts
                },
                ..mining()
            },
        ),
        (
            Safety::GoodStanding,
            Input {
                facts: Facts {
                    vouched: known(Some(crate::account::Vouch::Contract), at),
                    ..mining().facts
                },
                ..mining()
            },
        ),
        (
            Safety::UnknownStanding,
            Input {
                facts: Facts {
                    payments: None,
                    ..mining().facts
                },
                ..mining()
            },
        ),
        (
            Safety::OpenConversation,
            Input {
                conversation: Some(Conversation { since: T0 }),
                ..mining()
            },
        ),
        (
            Safety::BlastRadius,
            Input {
                fleet: Fleet::default(),
                ..mining()
            },
        ),
        (
            Safety::KillSwitch,
            Input {
                fleet: Fleet {
                    stop: Some(crate::fleet::Stop {
                        since: T0,
                        by: "bob".to_owned(),
                        why: "drill".to_owned(),
                    }),
                    ..mining().fleet
                },
                ..mining()
            },
        ),
    ];
    assert_eq!(cases.len(), Safety::ALL.len());
    for (safety, input) in cases {
        let plan = decide(&policies, &input);
        assert_eq!(force(&plan), [safety]);
        assert_eq!(plan.step, Step::OpenCase, "{safety}");
        let asked = plan
            .asked
            .iter()
            .find(|asked| asked.step == Step::Throttle)
            .unwrap();
        assert_eq!(asked.policies, [format!("safety:{safety}")]);
    }
}

#[test]
fn good_standing_by_payments_is_about_the_last_invoice_and_the_run_rate() {
    let policies = shipped();
    let mining = input(&policies, Level::Mining, 20, 1);
    let of = |settled, disputed, run_rate| {
        let at = mining.at;
        let payments = Payments {
            settled: Cents(settled),
            disputed: Cents(disputed),
            last_invoice: Some(Invoice {
                amount: Cents(10000),
                due: T0,
                state: InvoiceState::Paid,
            }),
        };
        let facts = Facts {
            payments: known(payments, at),
            run_rate: known(Cents(run_rate), at),
            ..mining.facts.clone()
        };
        force(&decide(
            &policies,
            &Input {
                facts,
                ..mining.clone()
            },
        ))
    };
    assert_eq!(of(10000, 0, 30000), [Safety::GoodStanding]);
    assert!(of(10000, 0, 30001).is_empty());
    assert!(of(9999, 0, 10000).is_empty());
    assert!(of(15000, 6000, 10000).is_empty());
}

#[test]
fn stale_facts_are_a_safety_and_so_are_those_of_the_future() {
    let policies = shipped();
    let mining = input(&policies, Level::Mining, 20, 1);
    let aged = |as_of| Input {
        facts: facts(1, 1, as_of),
        ..mining.clone()
    };
    assert!(force(&decide(&policies, &aged(mining.at.before(Span::hours(24))))).is_empty());
    let stale = decide(&policies, &aged(mining.at.before(Span::hours(25))));
    assert_eq!(force(&stale), [Safety::UnknownStanding]);
    let ahead = decide(&policies, &aged(mining.at.after(Span::hours(1))));
    assert_eq!(force(&ahead), [Safety::UnknownStanding]);
    let failed = Input {
        fetch_failed: Some("connection refused".to_owned()),
        ..mining.clone()
    };
    assert_eq!(
        force(&decide(&policies, &failed)),
        [Safety::UnknownStanding]
    );
}

#[test]
fn a_burst_that_mines_and_owes_is_powered_down_only_once_throttled() {
    let policies = shipped();
    let mut burst = input(&policies, Level::Mining, 30, 5);
    let invoice = Invoice {
        amount: Cents(1),
        due: T0.before(Span::hours(1)),
        state: InvoiceState::Failed,
    };
    let payments = Payments {
        last_invoice: Some(invoice),
        ..Payments::default()
    };
    burst.facts.payments = known(payments, burst.at);
    let first = decide(&policies, &burst);
    assert_eq!(first.step, Step::Throttle);
    let taken = vec![Step::OpenCase, Step::Notify, Step::Throttle];
    let throttled = Input {
        taken,
        throttled: true,
        ..burst.clone()
    };
    assert_eq!(decide(&policies, &throttled).step, Step::PowerDown);
    // Without trouble over payments, or with one droplet fewer, never.
    let neutral = Input {
        facts: facts(1, 5, burst.at),
        ..throttled.clone()
    };
    assert_eq!(decide(&policies, &neutral).step, Step::Observe);
    // 7 days and half an hour are more than 7 days.
    let older = Input {
        facts: Facts {
            payments: burst.facts.payments,
            ..facts(7, 5, burst.at)
        },
        ..throttled.clone()
    };
    assert_eq!(decide(&policies, &older).step, Step::Observe);
}

#[test]
fn no_step_is_taken_twice_in_an_episode() {
    let policies = shipped();
    let mut again = input(&policies, Level::Mining, 60, 1);
    again.taken = vec![Step::OpenCase, Step::Notify, Step::Throttle];
    let plan = decide(&policies, &again);
    assert_eq!((plan.step, plan.targets.len()), (Step::Observe, 0));
}

#[test]
fn an_erroring_forbid_denies() {
    // On an overflow Cedar skips the policy: without care its forbid would be no forbid.
    let policies = with(
        "@id(\"provider:cautious\") forbid (principal, action == Davy::Action::\"throttle\", resource) \
         when { context.mining_seconds * 9223372036854775807 > 5 };",
    );
    let plan = decide(&policies, &input(&policies, Level::Mining, 20, 1));
    assert_eq!(force(&plan), [Safety::UnknownStanding]);
    assert_eq!(plan.step, Step::OpenCase);
    let why = &plan
        .safeties
        .iter()
        .find(|looked| looked.in_force)
        .unwrap()
        .why;
    assert!(why.contains("provider:cautious"), "{why}");
}

#[test]
fn a_policy_set_without_forbids_has_the_safeties_all_the_same() {
    let open = "@id(\"all\") permit (principal, action, resource);";
    let files = BTreeMap::from([("open.cedar".to_owned(), open.to_owned())]);
    let policies = Policies::new(&files).unwrap();
    let mut held = input(&policies, Level::Mining, 20, 1);
    held.conversation = Some(Conversation { since: T0 });
    assert_eq!(decide(&policies, &held).step, Step::OpenCase);
    held.conversation = None;
    assert_eq!(decide(&policies, &held).step, Step::Lock);
}

#[test]
fn nobody_is_acted_on_who_is_not_to_be_told_or_seen() {
    for needed in ["notify", "open_case"] {
        let forbid = format!(
            "@id(\"quiet\") forbid (principal, action == Davy::Action::\"{needed}\", resource);"
        );
        let policies = with(&forbid);
        let plan = decide(&policies, &input(&policies, Level::Mining, 20, 1));
        assert!(
            plan.steps.iter().all(|step| !step.is_customer_facing()),
            "{needed}: {:?}",
            plan.steps
        );
        let why = plan.overruled.join("; ");
        assert!(why.contains(&format!("{needed} is forbidden by")), "{why}");
    }
}

#[test]
fn a_permit_on_load_alone_or_on_one_class_is_overruled_in_code() {
    let open = "@id(\"all\") permit (principal, action, resource);";
    let files = BTreeMap::from([("open.cedar".to_owned(), open.to_owned())]);
    let policies = Policies::new(&files).unwrap();
    for level in [Level::Quiet, Level::Suspect] {
        let plan = decide(&policies, &input(&policies, level, 6_000, 10));
        assert_eq!(plan.step, Step::OpenCase);
        // There is no droplet to act on.
        assert_eq!(force(&plan), [Safety::BlastRadius]);
    }
    // Not even in a record that says so itself.
    let mut one = input(&policies, Level::Mining, 20, 1);
    for droplet in one.episode.droplets.values_mut() {
        droplet.last.classes.register_randomness = false;
    }
    let plan = decide(&policies, &one);
    assert_eq!(plan.step, Step::OpenCase);
    assert!(plan.overruled[0].contains("class of evidence"));
}

#[test]
fn under_other_policies_than_the_inputs_nothing_reaches_the_customer() {
    let policies = shipped();
    let mut other = input(&policies, Level::Mining, 20, 1);
    other.policy = "0".repeat(64);
    let plan = decide(&policies, &other);
    assert_eq!(force(&plan), [Safety::UnknownStanding]);
    assert_eq!(plan.step, Step::OpenCase);
    assert!(!plan.overruled.is_empty());
}

/// A policy set that lost its forbids permits; code does not.
#[test]
fn every_safety_is_looked_at_again_in_code() {
    type Change = fn(&mut Input);
    let policies = shipped().alone("mining:throttle-the-new").unwrap();
    let changes: [(Safety, Change); 8] = [
        (Safety::HighCpuAllowed, |i| {
            i.facts.high_cpu_allowed = known(true, i.at);
        }),
        (Safety::UnlockHold, |i| {
            i.holds.push(crate::safety::Hold {
                since: i.at,
                until: i.at.after(Span::days(1)),
                by: "ann".to_owned(),
            });
        }),
        (Safety::LongStanding, |i| {
            // The policy asks for 90 days at most, too: the settings are stricter here.
            i.settings.long_standing_ms = Span::hours(1);
        }),
        (Safety::GoodStanding, |i| {
            i.facts.vouched = known(Some(crate::account::Vouch::Contract), i.at);
        }),
        (Safety::UnknownStanding, |i| i.facts.run_rate = None),
        (Safety::OpenConversation, |i| {
            i.conversation = Some(crate::safety::Conversation { since: i.at });
        }),
        (Safety::BlastRadius, |i| i.fleet.droplets = 0),
        (Safety::KillSwitch, |i| {
            i.fleet.stop = Some(crate::fleet::Stop {
                since: i.at,
                by: "ann".to_owned(),
                why: "a drill".to_owned(),
            });
        }),
    ];
    let free = input(&policies, Level::Mining, 20, 1);
    assert_eq!(decide(&policies, &free).step, Step::Throttle);
    for (safety, change) in changes {
        let mut held = free.clone();
        change(&mut held);
        let plan = decide(&policies, &held);
        assert_eq!(force(&plan), [safety]);
        assert!(plan.step < Step::Notify, "{safety}: {}", plan.step);
        assert!(
            plan.overruled.iter().all(|why| why.contains(safety.name())),
            "{safety}"
        );
        assert_eq!(plan.overruled.len(), 2, "{safety}: notify and throttle");
    }
}

#[test]
fn a_stored_decision_is_made_again_bit_for_bit() {
    let policies = shipped();
    let input = input(&policies, Level::Mining, 31, 7);
    let stored = serde_json::to_string(&input).unwrap();
    let plan = serde_json::to_string(&decide(&policies, &input)).unwrap();
    let again: Input = serde_json::from_str(&stored).unwrap();
    assert_eq!(
        serde_json::to_string(&decide(&policies, &again)).unwrap(),
        plan
    );
}

#[test]
fn what_a_person_ruled_goes_as_far_as_it_says() {
    let policies = shipped();
    let mut again = input(&policies, Level::Mining, 20, 1);
    again.facts = facts(30, 1, again.at);
    again.ruling = Some(Step::PowerDown);
    assert_eq!(decide(&policies, &again).step, Step::PowerDown);
    again.ruling = Some(Step::Lock);
    assert_eq!(decide(&policies, &again).step, Step::Lock);
}

#[test]
fn automation_does_not_go_beyond_what_people_decided() {
    let policies = shipped();
    let mut burst = input(&policies, Level::Mining, 40, 6);
    burst.facts.payments = known(
        Payments {
            last_invoice: Some(crate::account::Invoice {
                amount: Cents(5_000),
                due: burst.at.before(Span::days(1)),
                state: crate::account::InvoiceState::Failed,
            }),
            ..Payments::default()
        },
        burst.at,
    );
    burst.throttled = true;
    assert_eq!(decide(&policies, &burst).step, Step::PowerDown);
    burst.ruling = Some(Step::Throttle);
    let plan = decide(&policies, &burst);
    assert_eq!(plan.step, Step::Throttle);
    assert!(
        plan.overruled[0].contains("no more than to throttle"),
        "{:?}",
        plan.overruled
    );
}
