//! The 2019 incident, varied at random a thousand times and more, from a fixed seed: facts missing, stale or odd, other times and
//! orders, evidence true, false or none, replies, unlocks, outages, one account or two. Each is played by the deciding code and judged
//! by the oracle, release by release.

use std::collections::{BTreeMap, BTreeSet};

use davy_decision::{policy::Policies, settings::Settings, time::Time};
use davy_detector::replay::{
    self,
    event::{Event, Timed},
    world::World,
};
use serde_json::{Value, json};

use crate::oracle::{MINUTE, Oracle};

/// How many are played; more with `MUTANTS=n`.
const MUTANTS: u64 = 1_000;
/// 2019-05-29T16:00:00Z.
const START: u64 = 1_559_145_600_000;
/// If nothing speaks for the customer for so long, what is right was done: facts are fetched anew within an hour, what was
/// withheld rests for ten minutes.
const SURELY: u64 = 80 * MINUTE;

/// SplitMix64 (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", 2014).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `from` up to and without `to`.
    fn of(&mut self, from: u64, to: u64) -> u64 {
        from + self.roll() % (to - from)
    }

    fn percent(&mut self, share: u64) -> bool {
        self.of(0, 100) < share
    }

    fn one<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let index = self.of(0, all.len() as u64);
        &all[usize::try_from(index).unwrap()]
    }
}

fn written(ms: u64) -> String {
    Time::from_unix_ms(ms).to_string()
}

/// A scenario in the making: lines with their times, put in order at the end.
struct Mutant {
    dice: Dice,
    lines: Vec<(u64, Value)>,
}

impl Mutant {
    fn make(seed: u64) -> Vec<Value> {
        let mut mutant = Self {
            dice: Dice(seed),
            lines: Vec::new(),
        };
        let fleet = *mutant.dice.one(&[100_000, 100_000, 100_000, 2_000, 300, 0]);
        mutant.line(START, "fleet", json!({"droplets": fleet}));
        let accounts = if mutant.dice.percent(25) { 2 } else { 1 };
        for number in 0..accounts {
            mutant.account(&format!("acct-{number}"));
        }
        mutant.troubles();
        mutant.lines.sort_by_key(|(at, _)| *at);
        let end = mutant.lines.last().map_or(START, |(at, _)| *at) + 26 * 60 * MINUTE;
        mutant.line(end, "clock", json!({}));
        mutant.lines.into_iter().map(|(_, line)| line).collect()
    }

    fn line(&mut self, at: u64, event: &str, mut fields: Value) {
        fields["at"] = written(at).into();
        fields["event"] = event.into();
        self.lines.push((at, fields));
    }

    fn account(&mut self, name: &str) {
        let mut facts = self.facts();
        facts["account"] = name.into();
        self.line(START, "account", facts);
        let first = START + self.dice.of(0, 60 * MINUTE);
        let apart = *self.dice.one(&[0, MINUTE, 3 * MINUTE, 20 * MINUTE]);
        let count = *self.dice.one(&[1, 1, 2, 5, 6, 10, 10]);
        let droplets: Vec<_> = (0..count).map(|n| format!("{name}-w{n}")).collect();
        for (n, droplet) in droplets.iter().enumerate() {
            let made = json!({"account": name, "droplets": [droplet]});
            self.line(first + n as u64 * apart, "droplet_created", made);
        }
        let ready = first + count * apart + self.dice.of(0, 10 * MINUTE);
        let until = self.phase(name, &droplets, ready);
        if self.dice.percent(45) {
            let pause = [5, 30, 180, 26 * 60, 31 * 24 * 60];
            let pause = *self.dice.one(&pause) * MINUTE + self.dice.of(0, MINUTE);
            self.phase(name, &droplets, until + pause);
        }
        self.people(name, ready, until);
        if self.dice.percent(25) {
            let mut facts = self.change();
            facts["account"] = name.into();
            let at = self.dice.of(ready, until + 30 * MINUTE);
            self.line(at, "account", facts);
        }
    }

    /// What a directory says of an account at first.
    fn facts(&mut self) -> Value {
        let mut facts = json!({});
        let days = *self.dice.one(&[1, 2, 5, 6, 8, 30, 60, 89, 91, 400, 3_650]);
        let created = START - days * 24 * 60 * MINUTE - self.dice.of(0, 12 * 60) * MINUTE;
        facts["created_at"] = written(created).into();
        facts["run_rate"] = (*self.dice.one(&[0, 5_000, 40_000, 400_000])).into();
        if self.dice.percent(30) {
            facts["first_payment_at"] = written(created + MINUTE).into();
        }
        if self.dice.percent(10) {
            // Odd: a droplet before the account.
            facts["first_droplet_at"] = written(created - 200 * 24 * 60 * MINUTE).into();
        }
        facts["payments"] = self.payments();
        if self.dice.percent(30) {
            facts["credit"] = json!({"remaining": 100_000, "programme": ""});
        }
        if self.dice.percent(7) {
            facts["vouched"] = (*self.dice.one(&["contract", "credit_programme"])).into();
        }
        if self.dice.percent(7) {
            facts["high_cpu_allowed"] = true.into();
        }
        if self.dice.percent(10) {
            let all = [
                "created_at",
                "payments",
                "credit",
                "vouched",
                "droplets",
                "links",
            ];
            facts["unknown"] = json!([self.dice.one(&all)]);
        }
        if self.dice.percent(8) {
            facts["as_of"] = written(START - self.dice.of(0, 48 * 60) * MINUTE).into();
            // A pinned time must not be before what the facts say.
            if days < 3 {
                facts["as_of"] = written(START).into();
            }
        }
        facts["links"] = json!([{"account": "older", "by": "ssh_key", "note": "closed"}]);
        facts
    }

    fn payments(&mut self) -> Value {
        let due = written(START - 12 * 60 * MINUTE);
        let invoice =
            |amount: u64, state: &str| json!({"amount": amount, "due": due, "state": state});
        match self.dice.of(0, 8) {
            0 => json!({"settled": 20_000, "last_invoice": invoice(15_000, "paid")}),
            1 => {
                json!({"settled": 20_000, "disputed": 20_000, "last_invoice": invoice(15_000, "failed")})
            }
            2..5 => {
                let state = self.dice.one::<&str>(&["failed", "overdue", "open"]);
                json!({"settled": 0, "last_invoice": invoice(2_000, state)})
            }
            _ => json!({"settled": 0}),
        }
    }

    /// What a directory says later.
    fn change(&mut self) -> Value {
        match self.dice.of(0, 6) {
            0 => json!({"high_cpu_allowed": true}),
            1 => json!({"vouched": "sales_contact"}),
            2 => json!({"unknown": ["run_rate"]}),
            3 => json!({"high_cpu_allowed": false, "vouched": null}),
            _ => json!({"payments": self.payments()}),
        }
    }

    /// What the sensors say, rightly or not, for a while. Gives the end of it.
    fn phase(&mut self, name: &str, droplets: &[String], at: u64) -> u64 {
        let minutes = *self.dice.one(&[5, 9, 11, 25, 40, 60, 120, 150]);
        let window = *self.dice.one(&[60, 60, 120, 300]);
        let mut some: Vec<_> = droplets.to_vec();
        if self.dice.percent(30) {
            some.truncate(1 + droplets.len() / 2);
        }
        let half = some.len() / 2;
        let rest = match half > 0 && self.dice.percent(25) {
            true => some.split_off(half),
            false => Vec::new(),
        };
        let mut said = json!({"droplets": some, "level": "mining", "cpu_percent": 400,
            "for_s": minutes * 60, "window_s": window});
        match self.dice.of(0, 100) {
            0..12 => {
                self.line(
                    at,
                    "load",
                    json!({"droplets": droplets, "cpu_percent": 400}),
                );
                return at + minutes * MINUTE;
            }
            12..20 => said["level"] = "suspect".into(),
            20..28 => said["classes"] = json!({"register_randomness": true}),
            28..31 => {
                said["droplets"] = json!([format!("strange-{name}")]);
                said["account"] = name.into();
            }
            _ => {}
        }
        if !rest.is_empty() {
            // At the same time the sensors say something else of the others.
            let mut other = said.clone();
            other["droplets"] = json!(rest);
            let level = *self.dice.one(&["mining", "mining", "suspect"]);
            other["level"] = level.into();
            other["classes"] =
                json!({"register_randomness": true, "fp_rounding": self.dice.percent(30)});
            self.line(at, "evidence", other);
        }
        self.line(at, "evidence", said);
        at + minutes * MINUTE
    }

    fn people(&mut self, name: &str, from: u64, to: u64) {
        let to = to + 60 * MINUTE;
        if self.dice.percent(30) {
            for _ in 0..self.dice.of(1, 3) {
                let at = self.dice.of(from, to);
                self.line(
                    at,
                    "customer",
                    json!({"account": name, "text": "it is our pipeline"}),
                );
            }
        }
        let reason = format!(
            "Seen by hand on the host of {name} at the time, all four modes and a pool address in the flow records."
        );
        let acts = [
            (
                25,
                "unlock",
                json!({"by": "ann", "outcome": self.dice.one(&["unsure", "legitimate"])}),
            ),
            (10, "claim", json!({"by": self.dice.one(&["ann", "bob"])})),
            (
                10,
                "answer",
                json!({"by": "ann", "text": "I look at it now."}),
            ),
            (8, "allow_high_cpu", json!({"by": "bob"})),
            (4, "allow_high_cpu", json!({"by": "bob", "revoke": true})),
            (8, "unthrottle", json!({"by": "ann"})),
            (6, "undo", json!({"by": "ann"})),
            (
                6,
                "renew",
                json!({"by": "bob", "text": "All five of them still compute in four rounding modes at this hour of the night"}),
            ),
            (4, "give_back", json!({"by": "ann"})),
            (4, "close", json!({"by": "bob"})),
            (
                8,
                "opinion",
                json!({"by": "carol", "finding": "deny", "measure": "lock", "text": reason}),
            ),
        ];
        for (share, event, mut fields) in acts {
            if self.dice.percent(share) {
                fields["account"] = name.into();
                if event == "unlock" && self.dice.percent(50) {
                    fields["text"] = format!(
                        "I spoke with {name} by telephone and they showed me what runs there."
                    )
                    .into();
                }
                let at = self.dice.of(from, to);
                self.line(at, event, fields);
            }
        }
    }

    /// What goes wrong around them, and who stops it.
    fn troubles(&mut self) {
        let span = 6 * 60 * MINUTE;
        let outages = [
            (15, "directory", 7_200),
            (12, "executor", 1_800),
            (6, "detector", 5_400),
            (8, "control_plane", 3_600),
        ];
        for (share, of, most) in outages {
            if self.dice.percent(share) {
                let (at, for_s) = (START + self.dice.of(0, span), self.dice.of(60, most));
                self.line(at, "outage", json!({"of": of, "for_s": for_s}));
            }
        }
        if self.dice.percent(20) {
            let answers = *self
                .dice
                .one(&["refuses", "lost", "silent", "twice", "rubbish", "done"]);
            let slow = *self.dice.one(&[0, 10, 45]);
            let at = START + self.dice.of(0, span);
            self.line(
                at,
                "control_plane",
                json!({"answers": answers, "seconds_per_release": slow}),
            );
        }
        if self.dice.percent(10) {
            let at = START + self.dice.of(0, span);
            self.line(at, "stop", json!({"by": "carol", "why": "a drill"}));
            if self.dice.percent(60) {
                let at = at + self.dice.of(MINUTE, span);
                self.line(at, "resume", json!({"by": "carol"}));
            }
        }
        if self.dice.percent(10) {
            let budget = *self.dice.one(&[0, 1, 2]);
            self.line(
                START,
                "settings",
                json!({"change": {"budget_per_hour": budget}}),
            );
        }
    }
}

/// What came of a mutant.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Automated throttles, and power-downs.
    pub(crate) throttles: u64,
    pub(crate) power_downs: u64,
    /// Safeties that covered an account whose evidence sufficed, and those that alone did.
    saved: BTreeSet<&'static str>,
    alone: BTreeSet<&'static str>,
    /// The sensors never said what an action may rest on.
    never_sufficed: bool,
}

/// A mutant in play.
struct Play {
    world: World,
    oracle: Oracle,
    judged: usize,
    outcome: Outcome,
    clear_since: BTreeMap<String, u64>,
    hampered: bool,
}

impl Play {
    fn judge(&mut self) -> Result<(), String> {
        for order in &self.world.released[self.judged..] {
            let arrived = self
                .world
                .provider
                .orders
                .iter()
                .any(|held| held.key == order.key);
            let order = serde_json::to_value(order).unwrap();
            if let Some(wrong) = self.oracle.judge(&order) {
                return Err(wrong);
            }
            if arrived {
                self.oracle.done(order["key"].as_str().unwrap());
            }
            if order["automated"] == true {
                match order["verb"].as_str() {
                    Some("throttle") => self.outcome.throttles += 1,
                    Some("power_down") => self.outcome.power_downs += 1,
                    _ => {}
                }
            }
        }
        self.judged = self.world.released.len();
        Ok(())
    }

    /// Which safeties stand now between an account and an action; and that nothing stands there for long without one.
    fn sample(&mut self, now: u64) -> Result<(), String> {
        for account in self.oracle.accounts() {
            let evidence = self.oracle.evidence(&account, now);
            if !evidence.suffices() {
                self.clear_since.remove(&account);
                continue;
            }
            self.outcome.never_sufficed = false;
            let covers = self.oracle.covers(&account, &evidence.mining_now, now);
            if let Some(one) = covers.first() {
                self.clear_since.remove(&account);
                if covers.len() == 1 {
                    self.outcome.alone.insert(one);
                }
                self.outcome.saved.extend(covers);
                continue;
            }
            let since = *self.clear_since.entry(account.clone()).or_insert(now);
            let throttle = format!("{account}/");
            let throttled = (self.world.released.iter())
                .any(|order| order.key.starts_with(&throttle) && order.key.contains("/throttle/"));
            if now - since >= SURELY && !throttled && !self.hampered {
                return Err(format!(
                    "nothing has spoken for {account} since {}, its evidence suffices, and it is not throttled",
                    written(since)
                ));
            }
        }
        Ok(())
    }

    /// Up to `to`, looking every five minutes while anything is seen.
    fn advance(&mut self, to: u64) -> Result<(), String> {
        loop {
            let now = self.world.at.unix_ms();
            let seen = |account: &String| {
                let evidence = self.oracle.evidence(account, now);
                !evidence.mining_now.is_empty() || evidence.mining == 0
            };
            let near = now < START + 12 * 60 * MINUTE;
            let step = match near || self.oracle.accounts().iter().any(seen) {
                true => 5 * MINUTE,
                false => 60 * MINUTE,
            };
            let next = (now + step).min(to);
            self.world.advance(Time::from_unix_ms(next));
            self.judge()?;
            self.sample(next)?;
            if next >= to {
                return Ok(());
            }
        }
    }
}

/// Plays a scenario, and says what was wrong with it by the oracle's word.
pub(crate) fn play(lines: &[Value], policies: &Policies) -> Result<Outcome, String> {
    let text: Vec<_> = lines.iter().map(Value::to_string).collect();
    let events: Vec<(usize, Timed)> =
        replay::parse("mutant", text.join("\n").as_bytes()).map_err(|error| error.to_string())?;
    let hampering = |line: &Value| {
        line["event"] == "control_plane" || (line["event"] == "outage" && line["of"] != "directory")
    };
    let mut play = Play {
        world: World::new(events[0].1.at, policies.clone(), Settings::default()),
        oracle: Oracle::new(),
        judged: 0,
        outcome: Outcome {
            never_sufficed: true,
            ..Outcome::default()
        },
        clear_since: BTreeMap::new(),
        hampered: lines.iter().any(hampering),
    };
    for ((number, event), line) in events.iter().zip(lines) {
        play.advance(event.at.unix_ms())?;
        match play.world.happen(event) {
            // Expected to be refused, and it was.
            Ok(()) if line["refused"] == true => {}
            Ok(()) => play.oracle.happened(line),
            // A person's act may be refused: then nothing happened.
            Err(_) if is_act(&event.event) => {}
            Err(why) => return Err(format!("line {number}: {why}")),
        }
        play.judge()?;
    }
    if play.outcome.never_sufficed && play.outcome.throttles + play.outcome.power_downs > 0 {
        return Err("acted, though the evidence never sufficed".to_owned());
    }
    Ok(play.outcome)
}

const fn is_act(event: &Event) -> bool {
    matches!(
        event,
        Event::Claim(_)
            | Event::Answer(_)
            | Event::Unlock(_)
            | Event::AllowHighCpu(_)
            | Event::Unthrottle(_)
            | Event::Opinion(_)
            | Event::GiveBack(_)
            | Event::Throttle(_)
            | Event::Renew(_)
            | Event::Undo(_)
            | Event::Close(_)
    )
}

#[derive(Default)]
struct Tally {
    acted: u64,
    throttles: u64,
    power_downs: u64,
    idle: u64,
    saved: BTreeMap<&'static str, u64>,
    alone: BTreeMap<&'static str, u64>,
    wrong: Vec<String>,
}

impl Tally {
    fn add(&mut self, seed: u64, policies: &Policies) {
        let lines = Mutant::make(seed);
        match play(&lines, policies) {
            Ok(outcome) => {
                self.acted += u64::from(outcome.throttles + outcome.power_downs > 0);
                self.throttles += outcome.throttles;
                self.power_downs += outcome.power_downs;
                self.idle += u64::from(outcome.never_sufficed);
                for safety in outcome.saved {
                    *self.saved.entry(safety).or_default() += 1;
                }
                for safety in outcome.alone {
                    *self.alone.entry(safety).or_default() += 1;
                }
            }
            Err(why) => {
                let text: Vec<_> = lines.iter().map(Value::to_string).collect();
                self.wrong
                    .push(format!("mutant {seed}: {why}\n{}", text.join("\n")));
            }
        }
    }

    fn join(&mut self, other: Self) {
        self.acted += other.acted;
        self.throttles += other.throttles;
        self.power_downs += other.power_downs;
        self.idle += other.idle;
        for (safety, count) in other.saved {
            *self.saved.entry(safety).or_default() += count;
        }
        for (safety, count) in other.alone {
            *self.alone.entry(safety).or_default() += count;
        }
        self.wrong.extend(other.wrong);
    }
}

#[test]
fn no_mutant_of_the_incident_is_acted_on_against_a_safety() {
    let count = std::env::var("MUTANTS").map_or(MUTANTS, |count| count.parse().unwrap());
    let part = |first: u64| {
        let policies = Policies::shipped().unwrap();
        let mut tally = Tally::default();
        (first..count)
            .step_by(2)
            .for_each(|seed| tally.add(seed, &policies));
        tally
    };
    let mut tally = std::thread::scope(|scope| {
        let other = scope.spawn(|| part(1));
        let mut tally = part(0);
        tally.join(other.join().unwrap());
        tally
    });
    println!(
        "{count} mutants: {} acted on ({} throttles, {} power-downs), {} without evidence to act on",
        tally.acted, tally.throttles, tally.power_downs, tally.idle
    );
    for (safety, count) in &tally.saved {
        let alone = tally.alone.get(safety).copied().unwrap_or_default();
        println!("  {safety:<18} covered {count:>4}, alone in {alone:>4}");
    }
    if !tally.wrong.is_empty() {
        tally.wrong.sort_by_key(String::len);
        panic!(
            "{} mutants went wrong; the shortest:\n{}",
            tally.wrong.len(),
            tally.wrong[0]
        );
    }
    assert!(
        tally.acted * 20 >= count,
        "too few were acted on to say anything"
    );
    assert!(
        tally.power_downs > 0,
        "no mutant was a burst of an overdue account"
    );
    assert_eq!(tally.alone.len(), 8, "each safety alone saved somebody");
}
