//! The safeties stated a second time. It reads a scenario's JSON and the orders' JSON and shares no function with the code it judges.
//!
//! It says who may not be acted on at a moment ([`Oracle::covers`]), what the sensors had said by then ([`Oracle::evidence`]), and from
//! both whether a release was right ([`Oracle::judge`]). What people said is in `said`. Figures are those of the design: 90 days, 30 days, 60 s, 10 min, 1 h.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

#[path = "said.rs"]
mod said;

use said::Said;

/// A minute, ms.
pub const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Facts that a decision needs.
const NEEDED: [&str; 9] = [
    "created_at",
    "first_payment_at",
    "first_droplet_at",
    "payments",
    "run_rate",
    "credit",
    "high_cpu_allowed",
    "vouched",
    "droplets",
];

/// A moment in RFC 3339 as ms since the epoch, whole seconds or with three digits of parts: what scenarios here use.
pub fn ms(text: &str) -> u64 {
    let number = |from: usize, to: usize| text[from..to].parse::<u64>().unwrap();
    let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
    // Days since 1970 (H. Hinnant, "chrono-compatible low-level date algorithms").
    let y = if month <= 2 { year - 1 } else { year };
    let (era, m) = (y / 400, if month > 2 { month - 3 } else { month + 9 });
    let yoe = y - era * 400;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + (153 * m + 2) / 5 + day - 1;
    let days = era * 146_097 + doe - 719_468;
    let seconds = days * 86_400 + number(11, 13) * 3_600 + number(14, 16) * 60 + number(17, 19);
    let parts = text[19..].trim_end_matches('Z').trim_start_matches('.');
    let parts = if parts.is_empty() {
        0
    } else {
        format!("{parts:0<3}").parse::<u64>().unwrap()
    };
    seconds * 1_000 + parts
}

fn at(value: &Value) -> u64 {
    ms(value.as_str().unwrap())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    (value.as_array().unwrap().iter()).map(text).collect()
}

/// A window that a sensor reported.
#[derive(Clone, Debug)]
struct Window {
    from: u64,
    to: u64,
    level: String,
    classes: u64,
}

#[derive(Clone, Debug)]
struct Feed {
    since: u64,
    window: u64,
    until: Option<u64>,
    level: String,
    classes: u64,
}

impl Feed {
    /// Windows that ended by `to`.
    fn windows(&self, to: u64) -> Vec<Window> {
        let mut all = Vec::new();
        let mut from = self.since;
        if self.level == "quiet" && to >= from + self.window {
            // Of quiet windows the last one says everything.
            let end = self
                .until
                .map_or(to, |until| to.min(until + self.window - 1));
            from += (end - from) / self.window * self.window - self.window;
        }
        while from + self.window <= to && self.until.is_none_or(|until| from < until) {
            let (level, classes) = (self.level.clone(), self.classes);
            all.push(Window {
                from,
                to: from + self.window,
                level,
                classes,
            });
            from += self.window;
        }
        all
    }
}

#[derive(Clone, Debug, Default)]
struct Account {
    /// What the directory says, by name; absent: it does not know.
    facts: BTreeMap<String, Value>,
    as_of: Option<u64>,
    droplets: BTreeMap<String, u64>,
    said: Said,
    /// Windows of feeds that were replaced, by droplet.
    past: BTreeMap<String, Vec<Window>>,
    feeds: BTreeMap<String, Feed>,
    /// Present, by the sensors' word, though not in the inventory.
    strange: BTreeSet<String>,
}

/// What the sensors had said of an account at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Droplets that mine now, on two classes of evidence or more.
    pub mining_now: Vec<String>,
    /// Time mining in this episode, on two classes or more, ms.
    pub mining: u64,
    /// Time mining of each droplet, ms.
    pub of_each: BTreeMap<String, u64>,
}

impl Evidence {
    /// Whether it is what an action may rest on: lasting, and now.
    pub fn suffices(&self) -> bool {
        self.mining >= 10 * MINUTE && !self.mining_now.is_empty()
    }
}

/// An automated order that was released.
#[derive(Clone, Debug)]
struct Acted {
    at: u64,
    account: String,
    verb: String,
    key: String,
    droplets: u64,
    undone: bool,
    arrived: bool,
    /// Two people ruled the same while it stood.
    peoples: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Oracle {
    accounts: BTreeMap<String, Account>,
    fleet: u64,
    stopped: bool,
    per_hour: u64,
    directory_down_until: u64,
    acted: Vec<Acted>,
}

impl Oracle {
    pub fn new() -> Self {
        Self {
            accounts: BTreeMap::new(),
            fleet: 0,
            stopped: false,
            per_hour: 20,
            directory_down_until: 0,
            acted: Vec::new(),
        }
    }

    pub fn accounts(&self) -> Vec<String> {
        self.accounts.keys().cloned().collect()
    }

    /// What people said of an account.
    pub fn said(&self, name: &str) -> &Said {
        &self.accounts[name].said
    }

    fn owner(&self, droplet: &str) -> Option<String> {
        let has = |(name, account): (&String, &Account)| {
            account.droplets.contains_key(droplet).then(|| name.clone())
        };
        self.accounts.iter().find_map(has)
    }

    /// Takes a line of the scenario that happened: an act that was refused did not.
    pub fn happened(&mut self, line: &Value) {
        let (now, name) = (at(&line["at"]), text(&line["account"]));
        match line["event"].as_str().unwrap() {
            "fleet" => self.fleet = line["droplets"].as_u64().unwrap(),
            "account" => self.told(&name, line),
            "droplet_created" => {
                let account = self.accounts.get_mut(&name).unwrap();
                for droplet in texts(&line["droplets"]) {
                    account.droplets.insert(droplet, now);
                }
                let first = account.facts.get_mut("first_droplet_at");
                if let Some(first) = first.filter(|first| first.is_null()) {
                    *first = line["at"].clone();
                }
            }
            "evidence" | "load" => self.sensed(now, line),
            "stop" => self.stopped = true,
            "resume" => self.stopped = false,
            "outage" if line["of"] == "directory" => {
                self.directory_down_until = now + line["for_s"].as_u64().unwrap() * 1_000;
            }
            "settings" => {
                let per_hour = line["change"]["budget_per_hour"].as_u64();
                self.per_hour = per_hour.unwrap_or(self.per_hour);
            }
            // A slow control plane speaks neither for nor against acting.
            "outage" | "control_plane" | "clock" | "note" => {}
            other => {
                let account = self.accounts.get_mut(&name);
                let mut before = None;
                let taken = account.is_some_and(|account| {
                    before = account.said.measure();
                    account.said.takes(now, line)
                });
                assert!(taken, "the oracle does not know {other}");
                let after = self.said(&name).measure();
                if after != before {
                    self.ruled(&name, after);
                }
            }
        }
    }

    /// What stands as two people ruled is theirs from then on, and no automation's.
    fn ruled(&mut self, name: &str, measure: Option<u8>) {
        let all = self.acted.iter_mut();
        all.filter(|acted| acted.arrived && acted.account == name)
            .filter(|acted| Some(said::rank(&acted.verb)) == measure)
            .for_each(|acted| acted.peoples = true);
    }

    fn told(&mut self, name: &str, line: &Value) {
        let fresh = !self.accounts.contains_key(name);
        let account = self.accounts.entry(name.to_owned()).or_default();
        if fresh {
            for fact in ["first_payment_at", "first_droplet_at", "credit", "vouched"] {
                account.facts.insert(fact.to_owned(), Value::Null);
            }
            for (fact, value) in [
                ("payments", serde_json::json!({"settled": 0})),
                ("run_rate", 0.into()),
                ("high_cpu_allowed", false.into()),
                ("droplets", Value::Null),
            ] {
                account.facts.insert(fact.to_owned(), value);
            }
        }
        for fact in NEEDED {
            if let Some(value) = line.get(fact) {
                account.facts.insert(fact.to_owned(), value.clone());
            }
        }
        for fact in line.get("unknown").map(texts).unwrap_or_default() {
            account.facts.remove(&fact);
        }
        if let Some(as_of) = line.get("as_of") {
            account.as_of = Some(at(as_of));
        }
    }

    fn sensed(&mut self, now: u64, line: &Value) {
        let level = line["level"].as_str().unwrap_or("quiet").to_owned();
        let classes = match line.get("classes") {
            Some(classes) => (classes.as_object().unwrap().values())
                .filter(|held| **held == Value::Bool(true))
                .count() as u64,
            None => match level.as_str() {
                "mining" => 2,
                "suspect" => 1,
                _ => 0,
            },
        };
        for droplet in texts(&line["droplets"]) {
            let named = line.get("account").map(text);
            let Some(owner) = named.clone().or_else(|| self.owner(&droplet)) else {
                continue;
            };
            let account = self.accounts.get_mut(&owner).unwrap();
            if named.is_some() && !account.droplets.contains_key(&droplet) {
                account.strange.insert(droplet.clone());
            }
            let feed = Feed {
                since: now,
                window: line["window_s"].as_u64().unwrap_or(60) * 1_000,
                until: (line.get("for_s")).map(|span| now + span.as_u64().unwrap() * 1_000),
                level: level.clone(),
                classes,
            };
            if let Some(before) = account.feeds.insert(droplet.clone(), feed) {
                let windows = before.windows(now);
                account.past.entry(droplet).or_default().extend(windows);
            }
        }
    }

    /// The safeties that cover an account at `now`, should `targets` be acted on.
    pub fn covers(&self, name: &str, targets: &[String], now: u64) -> BTreeSet<&'static str> {
        let account = &self.accounts[name];
        let fact = |fact: &str| account.facts.get(fact);
        let mut found = BTreeSet::new();
        if account.said.allowed || fact("high_cpu_allowed") == Some(&Value::Bool(true)) {
            found.insert("high_cpu_allowed");
        }
        if now < account.said.holds_until {
            found.insert("unlock_hold");
        }
        if (self.engaged(name)).is_some_and(|since| now > since && now - since > 90 * DAY) {
            found.insert("long_standing");
        }
        if good(fact("vouched"), fact("payments"), fact("run_rate")) {
            found.insert("good_standing");
        }
        let stale = (account.as_of).is_some_and(|as_of| now > as_of && now - as_of > MINUTE);
        let strange = |target: &String| !account.droplets.contains_key(target);
        if now < self.directory_down_until
            || stale
            || NEEDED.iter().any(|needed| fact(needed).is_none())
            || targets.iter().any(strange)
        {
            found.insert("unknown_standing");
        }
        if account.said.talks_since.is_some() {
            found.insert("open_conversation");
        }
        if self.used_up(targets.len() as u64, now) {
            found.insert("blast_radius");
        }
        if self.stopped {
            found.insert("kill_switch");
        }
        found
    }

    /// The earliest of what is known of its beginning.
    pub fn engaged(&self, name: &str) -> Option<u64> {
        let account = &self.accounts[name];
        let times = ["created_at", "first_payment_at", "first_droplet_at"];
        let told = (times.iter().filter_map(|fact| account.facts.get(*fact)))
            .filter(|value| value.is_string())
            .map(at);
        let inventory = account.facts.contains_key("droplets");
        let droplets = account
            .droplets
            .values()
            .copied()
            .filter(|_| inventory)
            .min();
        told.chain(droplets).min()
    }

    fn used_up(&self, targets: u64, now: u64) -> bool {
        let hour = self
            .acted
            .iter()
            .filter(|acted| now.saturating_sub(acted.at) < HOUR);
        let held: u64 = (self.acted.iter())
            .filter(|acted| !acted.undone && acted.arrived && !acted.peoples)
            .map(|acted| acted.droplets)
            .sum();
        hour.count() as u64 >= self.per_hour
            || targets == 0
            || targets > self.fleet
            || (held + targets) * 1_000 > self.fleet * 10
    }

    /// What the sensors had said by `now`, in the episode of then: a day of quiet ends one.
    pub fn evidence(&self, name: &str, now: u64) -> Evidence {
        let account = &self.accounts[name];
        let mut said: Vec<(String, Window)> = Vec::new();
        let mut mining_now = Vec::new();
        let droplets: BTreeSet<_> = account.past.keys().chain(account.feeds.keys()).collect();
        for droplet in droplets {
            let mut windows = account.past.get(droplet).cloned().unwrap_or_default();
            windows.extend(
                account
                    .feeds
                    .get(droplet)
                    .map_or(Vec::new(), |feed| feed.windows(now)),
            );
            windows.retain(|window| window.to <= now);
            if let Some(last) = windows.last()
                && (last.level == "mining" && last.classes >= 2 && now - last.to <= 5 * MINUTE)
            {
                mining_now.push(droplet.clone());
            }
            windows.retain(|window| window.level != "quiet");
            said.extend(windows.into_iter().map(|window| (droplet.clone(), window)));
        }
        said.sort_by_key(|(_, window)| (window.to, window.from));
        let (mut episode, mut stirred) = (Vec::new(), 0);
        for (droplet, window) in said {
            if window.from >= stirred + DAY {
                episode.clear();
            }
            stirred = stirred.max(window.to);
            episode.push((droplet, window));
        }
        if now >= stirred + DAY {
            episode.clear();
        }
        // Of a single class is not mining, whatever it is called.
        episode.retain(|(_, window)| window.level == "mining" && window.classes >= 2);
        let mut of_each = BTreeMap::new();
        for (droplet, window) in &episode {
            *of_each.entry(droplet.clone()).or_default() += window.to - window.from;
        }
        let mut spans: Vec<_> = episode.iter().map(|(_, w)| (w.from, w.to)).collect();
        spans.sort_unstable();
        let (mut mining, mut until) = (0, 0);
        for (from, to) in spans {
            mining += to.saturating_sub(from.max(until));
            until = until.max(to);
        }
        Evidence {
            mining_now,
            mining,
            of_each,
        }
    }

    /// A burst whose droplets mine, of a new account whose payment failed: what a power-down by automation takes.
    fn burst(&self, name: &str, evidence: &Evidence, now: u64) -> bool {
        let account = &self.accounts[name];
        let mut made: Vec<_> = account.droplets.iter().map(|(id, at)| (*at, id)).collect();
        made.sort_unstable();
        let found = made.iter().enumerate().any(|(index, (first, _))| {
            let together = made[index..]
                .iter()
                .take_while(|(at, _)| at - first <= 30 * MINUTE);
            let together: Vec<_> = together.collect();
            let long = (together.iter())
                .filter(|(_, id)| evidence.of_each.get(*id).is_some_and(|t| *t >= 30 * MINUTE));
            together.len() >= 5 && long.count() * 100 >= together.len() * 80
        });
        let invoice = &account.facts["payments"]["last_invoice"];
        let trouble = match invoice["state"].as_str() {
            Some("overdue" | "failed") => true,
            Some("open") => at(&invoice["due"]) < now,
            _ => false,
        };
        let young = (self.engaged(name)).is_some_and(|since| now - since <= 7 * DAY);
        found && trouble && young
    }

    /// Judges an order that was released, in the order of their releases.
    ///
    /// Says what is wrong with it, if anything is. That it was done is told afterwards ([`Oracle::done`]).
    pub fn judge(&mut self, order: &Value) -> Option<String> {
        let (key, verb) = (text(&order["key"]), text(&order["verb"]));
        if key.ends_with("/undo") {
            return None;
        }
        let automated = order["automated"] == true;
        if !automated || !["notify", "throttle", "power_down", "lock"].contains(&verb.as_str()) {
            return None;
        }
        let (name, now) = (text(&order["account"]), at(&order["released_at"]));
        let targets = texts(&order["droplets"]);
        let covers = self.covers(&name, &targets, now);
        let evidence = self.evidence(&name, now);
        let idle: Vec<_> = (targets.iter())
            .filter(|target| !evidence.mining_now.contains(target))
            .collect();
        // What two people decided, automation may do again.
        let again = self.accounts[&name].said.rules(&verb);
        let wrong = if !covers.is_empty() {
            Some(format!("{covers:?} cover the account"))
        } else if !evidence.suffices() {
            Some(format!("the evidence is {evidence:?}"))
        } else if !idle.is_empty() {
            Some(format!("{idle:?} do not mine: {evidence:?}"))
        } else if verb == "lock" && !again {
            Some("no automated lock is in the default policy".to_owned())
        } else if verb == "power_down" && !again && !self.burst(&name, &evidence, now) {
            Some("there is no burst of an overdue account".to_owned())
        } else {
            None
        };
        if verb != "notify" {
            self.acted.push(Acted {
                at: now,
                account: name.clone(),
                verb: verb.clone(),
                key: key.clone(),
                droplets: targets.len() as u64,
                undone: false,
                arrived: false,
                peoples: false,
            });
        }
        wrong.map(|wrong| format!("{verb} ({key}) at {}: {wrong}", text(&order["released_at"])))
    }

    /// The order of that key was done: what it does counts against the budget from its release on, until its undoing is done.
    pub fn done(&mut self, key: &str) {
        if let Some(undone) = key.strip_suffix("/undo") {
            let all = self.acted.iter_mut();
            all.filter(|acted| acted.key == undone)
                .for_each(|acted| acted.undone = true);
        } else if let Some(acted) = self.acted.iter_mut().rfind(|acted| acted.key == key) {
            acted.arrived = true;
        }
    }
}

/// Vouched for, or paid the last invoice and runs at a usual rate.
fn good(vouched: Option<&Value>, payments: Option<&Value>, run_rate: Option<&Value>) -> bool {
    if vouched.is_some_and(|vouched| !vouched.is_null()) {
        return true;
    }
    let (Some(payments), Some(run_rate)) = (payments, run_rate.and_then(Value::as_u64)) else {
        return false;
    };
    let Some(amount) = payments["last_invoice"]["amount"].as_u64() else {
        return false;
    };
    let settled = payments["settled"].as_u64().unwrap_or(0);
    let disputed = payments["disputed"].as_u64().unwrap_or(0);
    settled - disputed >= amount && run_rate <= 3 * amount
}

#[test]
fn the_oracle_reads_times_as_the_world_does() {
    for (written, read) in [
        ("1970-01-01T00:00:00Z", 0),
        ("2019-05-29T16:43:00Z", 1_559_148_180_000),
        ("2024-02-29T23:59:59.25Z", 1_709_251_199_250),
        ("2026-03-02T08:00:00.001Z", 1_772_438_400_001),
    ] {
        assert_eq!(ms(written), read, "{written}");
    }
}
