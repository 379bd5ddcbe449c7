//! What must always be so, stated without the code it judges: the invariants of the design by their numbers, and the safeties by the
//! oracle of the scenarios.

use std::collections::{BTreeMap, BTreeSet};

use davy_decision::{
    account::{AccountId, DropletId},
    action::{By, Outcome, State},
    decide::decide,
    dossier::Dossier,
    fleet::Fleet,
    order::{Order, Verb},
    time::{Span, Time},
};
use serde_json::Value;

use crate::oracle::Oracle;
use crate::place::Place;
use crate::step::ACCOUNTS;
use crate::world::{World, account};

/// Safeties that undo what automation did.
const LASTING: [&str; 4] = [
    "high_cpu_allowed",
    "unlock_hold",
    "long_standing",
    "good_standing",
];
const HOUR: u64 = 60 * crate::oracle::MINUTE;
const DAY: u64 = 24 * HOUR;
/// An undoing that was refused is asked for again within this, and done while everything answers.
const SLACK: u64 = 30 * crate::oracle::MINUTE;

/// How often what was seen: a run in which nothing happened shows nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) steps: u64,
    pub(crate) automated: u64,
    pub(crate) undone: u64,
    pub(crate) by_people: u64,
    pub(crate) unlocks: u64,
    pub(crate) denials: u64,
    pub(crate) refusals: u64,
    /// Copies and near-copies among them.
    pub(crate) copies: u64,
    pub(crate) deaths: u64,
    pub(crate) queries: u64,
    /// Decisions made again.
    pub(crate) decisions: u64,
    /// How often a safety alone kept an action back: nothing was planned, or what was planned did not leave.
    pub(crate) alone: BTreeMap<&'static str, u64>,
}

impl Seen {
    pub(crate) fn add(&mut self, other: &Self) {
        let Self {
            steps,
            automated,
            undone,
            by_people,
            unlocks,
            denials,
            refusals,
            copies,
            deaths,
            queries,
            decisions,
            alone,
        } = other;
        self.steps += steps;
        self.automated += automated;
        self.undone += undone;
        self.by_people += by_people;
        self.unlocks += unlocks;
        self.denials += denials;
        self.refusals += refusals;
        self.copies += copies;
        self.deaths += deaths;
        self.queries += queries;
        self.decisions += decisions;
        for (safety, count) in alone {
            *self.alone.entry(safety).or_default() += count;
        }
    }
}

/// What is done to an account's droplets and was not undone.
#[derive(Clone, Debug)]
pub(crate) struct Stands {
    pub(crate) account: String,
    pub(crate) verb: Verb,
    pub(crate) automated: bool,
    /// Its release, ms; a throttle's last renewal.
    pub(crate) since: u64,
}

/// What arrived at the control plane, and what people said.
#[derive(Default)]
pub(crate) struct Book {
    pub(crate) seen: Seen,
    /// Content of each key.
    content: BTreeMap<String, String>,
    done: BTreeSet<String>,
    refused: BTreeMap<String, String>,
    /// Keys that were found never to have arrived since they were last sent, and all that were sent.
    never_seen: BTreeSet<String>,
    sent: BTreeSet<String>,
    /// The last release of each key.
    released: BTreeMap<String, Order>,
    /// Keys of what was taken back.
    withdrawn: BTreeSet<String>,
    /// Automated steps that were done: account, episode and step, whatever their keys.
    steps: BTreeSet<(String, String, String)>,
    pub(crate) stands: BTreeMap<String, Stands>,
    /// When people asked for a measure last, by account, ms.
    pub(crate) measured: BTreeMap<String, u64>,
    /// Reasons that people gave, the last one last.
    pub(crate) given: Vec<String>,
    pub(crate) wrong: Vec<String>,
    /// Texts that people wrote.
    pub(crate) texts: u64,
}

impl Book {
    pub(crate) fn done(&mut self, order: &Order) {
        if !self.done.insert(order.key.clone()) {
            self.wrong
                .push(format!("invariant 7: {} was done twice", order.key));
        }
        if let Some(undone) = order.key.strip_suffix("/undo") {
            self.seen.undone += 1;
            self.stands.remove(undone);
            self.withdrawn.insert(undone.to_owned());
            return;
        }
        if order.is_automated_step() {
            self.seen.automated += 1;
            let mut parts = order.key.split('/').map(str::to_owned);
            let mut part = || parts.next().unwrap();
            if !self.steps.insert((part(), part(), part())) {
                let wrong = format!("invariant 7: {} is the step's second time", order.key);
                self.wrong.push(wrong);
            }
        }
        if matches!(order.verb, Verb::Throttle | Verb::PowerDown | Verb::Lock) {
            let stands = Stands {
                account: order.account.to_string(),
                verb: order.verb,
                automated: order.automated,
                since: order.released_at.unix_ms(),
            };
            self.stands.insert(order.key.clone(), stands);
        }
    }

    /// Whether the notice of an order's episode was done, and not taken back.
    fn was_told(&self, order: &Order) -> bool {
        let mut parts = order.key.split('/').map(str::to_owned);
        let mut part = || parts.next().unwrap();
        let (account, episode) = (part(), part());
        let withdrawn = self
            .withdrawn
            .contains(&format!("{account}/{episode}/notify/0"));
        self.steps
            .contains(&(account, episode, "notify".to_owned()))
            && !withdrawn
    }

    /// What is wrong with a person's measure that leaves after the customer spoke of it.
    fn overheard(&self, order: &Order, oracle: &Oracle) -> Option<String> {
        let measures = matches!(order.verb, Verb::Throttle | Verb::PowerDown | Verb::Lock);
        let name = order.account.as_str();
        let measured = *self.measured.get(name)?;
        let talks = oracle.said(name).talks_since?;
        let wrong = measures && !order.automated && talks > measured;
        wrong.then(|| {
            format!(
                "{} leaves, and the customer spoke after it was decided",
                order.key
            )
        })
    }

    pub(crate) fn refused(&mut self, order: &Order) {
        let why = "not this one".to_owned();
        self.refused.insert(order.key.clone(), why);
    }

    pub(crate) fn became(&mut self, key: &str) -> Outcome {
        self.seen.queries += 1;
        if self.done.contains(key) {
            Outcome::Done
        } else if let Some(why) = self.refused.get(key) {
            Outcome::Refused { why: why.clone() }
        } else {
            self.never_seen.insert(key.to_owned());
            Outcome::NeverSeen
        }
    }

    /// What leaves is what was released, and what undoes is of the droplets of what is undone.
    fn sent(&mut self, order: &Order) {
        if self.released.get(&order.key) != Some(order) {
            let wrong = format!("invariant 1: {} left, and was not released so", order.key);
            self.wrong.push(wrong);
        }
        let undone = order.key.strip_suffix("/undo");
        let undone = undone.map(|undone| self.released.get(undone));
        if undone.is_some_and(|undone| undone.is_none_or(|held| held.droplets != order.droplets)) {
            let wrong = format!(
                "invariant 6: {} is not of the droplets of what it undoes",
                order.key
            );
            self.wrong.push(wrong);
        }
        let Order {
            key,
            account,
            verb,
            droplets,
            case,
            text,
            automated,
            released_at: _,
            not_after: _,
        } = order;
        let content = format!("{account} {verb} {droplets:?} {case} {automated} {text}");
        let held = (self.content.entry(key.clone())).or_insert_with(|| content.clone());
        if *held != content {
            let wrong = format!("invariant 7: {key} was {held:?} and is {content:?}");
            self.wrong.push(wrong);
        }
        let again = !self.sent.insert(key.clone());
        let looked = self.never_seen.remove(key) || self.refused.contains_key(key);
        if again && !looked {
            let wrong = format!("invariant 7: {key} was sent again and not asked about");
            self.wrong.push(wrong);
        }
    }
}

/// Whether two texts are near-copies: of their runs of five words at least four fifths are the same.
pub(crate) fn alike(one: &str, other: &str) -> bool {
    let runs = |text: &str| -> BTreeSet<String> {
        let words: Vec<_> = text.split_whitespace().collect();
        words.windows(5).map(|run| run.join(" ")).collect()
    };
    let (one, other) = (runs(one), runs(other));
    let (both, any) = (one.intersection(&other).count(), one.union(&other).count());
    both * 100 >= any * 80
}

impl World {
    /// A release was committed at this moment.
    pub(crate) async fn released(&self, order: &Order) {
        let now = self.now();
        let json = serde_json::to_value(order).unwrap();
        let name = order.account.as_str();
        {
            let mut guard = self.state();
            let state = &mut *guard;
            state.tells_late(now);
            (state.book.released).insert(order.key.clone(), order.clone());
            if let Some(wrong) = state.oracle.judge(&json) {
                let wrong = format!("invariants 1 to 4 and 8: {wrong}");
                state.book.wrong.push(wrong);
            }
            if let Some(wrong) = state.book.overheard(order, &state.oracle) {
                state.book.wrong.push(wrong);
            }
            if !order.is_automated_step() {
                return;
            }
            if order.verb != Verb::Notify && !state.book.was_told(order) {
                let wrong = format!(
                    "invariant 6: {} leaves, and its notice is not there",
                    order.key
                );
                state.book.wrong.push(wrong);
            }
            let asked = state.asked.get(&order.account).copied();
            if asked.is_none_or(|asked| now - asked > crate::oracle::MINUTE) {
                let wrong = format!("invariant 1: {} on facts of {asked:?}, at {now}", order.key);
                state.book.wrong.push(wrong);
            }
            if !state.oracle.said(name).is_open(&order.case) {
                let wrong = format!(
                    "invariant 6: {}: case {} is not open",
                    order.key, order.case
                );
                state.book.wrong.push(wrong);
            }
        }
        if let Some(wrong) = self.has_its_papers(order).await {
            let wrong = format!("invariant 6: {}: {wrong}", order.key);
            self.state().book.wrong.push(wrong);
        }
    }

    /// An order reaches the control plane, or gets lost on the way.
    pub(crate) fn leaves(&self, order: &Order) {
        let now = self.now();
        let mut state = self.state();
        let late = now - order.released_at.unix_ms();
        let stopped = state.stopped.map_or(0, |since| now - since);
        if order.is_automated_step() && late.max(stopped) > 1_000 {
            let wrong = format!(
                "invariant 8: {} left {late} ms after its release, {stopped} ms after a stop",
                order.key
            );
            state.book.wrong.push(wrong);
        }
        state.book.sent(order);
    }

    /// A decision planned nothing new, or an action did not leave: counts the safety that alone stands between, by the oracle's word.
    pub(crate) fn kept_back(&self, account: &AccountId) {
        let now = self.now();
        let mut state = self.state();
        let name = account.as_str();
        let evidence = state.oracle.evidence(name, now);
        let covers = state.oracle.covers(name, &evidence.mining_now, now);
        if let Some(one) = covers.first().filter(|_| covers.len() == 1)
            && evidence.suffices()
        {
            *state.book.seen.alone.entry(one).or_default() += 1;
        }
    }

    /// An automated action's case, statement and stored decision.
    async fn has_its_papers(&self, order: &Order) -> Option<String> {
        let ledger = self.desk().ledger;
        let held = self.dossier(&order.account).await?;
        let action = held
            .actions
            .iter()
            .find(|action| action.key.to_string() == order.key);
        let Some(action) = action else {
            return Some("the record has no such action".to_owned());
        };
        let By::Automation { decision } = action.by else {
            return Some("a person's, and said to be automated".to_owned());
        };
        let cases = ledger.cases(true, 1_000).await.unwrap();
        let case = (cases.iter()).find(|held| held.case.id.to_string() == order.case);
        if !case.is_some_and(|held| held.case.is_open()) {
            return Some(format!("no case {} is open", order.case));
        }
        for word in ["automatically", "answer this message", order.case.as_str()] {
            if !order.text.contains(word) {
                return Some(format!("its statement does not say {word:?}"));
            }
        }
        let all = ledger
            .decisions(Some(order.account.clone()), None, 10_000)
            .await;
        let all = all.unwrap();
        let Some(stored) = all.iter().find(|held| held.number == decision) else {
            return Some(format!("decision {decision} was not stored"));
        };
        let again = decide(&self.replica(0).policies.now(), &stored.input);
        let text = |plan: &_| serde_json::to_string(plan).unwrap();
        (text(&again) != text(&stored.plan)).then(|| format!("decision {decision} is another one"))
    }

    /// After every step.
    pub(crate) async fn check(&self) -> Value {
        let (records, dossiers, fleet) = self.records().await;
        for held in &dossiers {
            let mut keys: Vec<_> = (held.actions.iter()).map(|a| a.key.to_string()).collect();
            keys.sort();
            let before = keys.len();
            keys.dedup();
            assert_eq!(before, keys.len(), "invariant 7: {keys:?}");
            for case in held.recent_cases() {
                let json = serde_json::to_value(case).unwrap();
                let case = case.id.to_string();
                let denied = json["state"].to_string().contains("denied");
                let state = self.state();
                let right = !denied || state.oracle.said(held.account.as_str()).was_denied(&case);
                assert!(right, "invariant 5: {case} is denied, and not by two");
            }
            self.remembers(held, &fleet);
        }
        let wrong = std::mem::take(&mut self.state().book.wrong);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        records
    }

    /// What people and the customer said, the stop and the budget are in the record, and looked at: whatever else happened since.
    fn remembers(&self, held: &Dossier, fleet: &Fleet) {
        let (now, name) = (self.now(), held.account.as_str());
        let state = self.state();
        let targets = state.oracle.evidence(name, now).mining_now;
        let mut covers = state.oracle.covers(name, &targets, now);
        if !state.oracle.said(name).allowed {
            covers.remove("high_cpu_allowed");
        }
        // These are the directory's to say, which is asked when something is to leave.
        for told in ["long_standing", "good_standing", "unknown_standing"] {
            covers.remove(told);
        }
        let targets: Vec<_> = (targets.into_iter())
            .map(|target| DropletId::try_from(target).unwrap())
            .collect();
        let (at, long) = (Time::from_unix_ms(now), Span::days(36_500));
        let looked = held.safeties(fleet, &self.settings, long, &targets, at);
        for looked in looked.iter().filter(|looked| !looked.in_force) {
            let safety = looked.safety.name();
            let forgotten = covers.contains(safety);
            assert!(
                !forgotten,
                "{safety} of {name} is forgotten: {}",
                looked.why
            );
        }
    }

    /// When everything answers again for hours: nothing is left waiting, nothing that was done is forgotten.
    /// Gives all decisions.
    pub(crate) async fn settle(&self) -> Vec<String> {
        {
            let mut state = self.state();
            state.calm = true;
            state.while_facts.clear();
            state.when_released.clear();
            state.orders.clear();
        }
        for _ in 0..15 {
            self.pass(20 * crate::oracle::MINUTE);
            self.attend().await;
            self.check().await;
        }
        let state = |held: &State| match held {
            State::Planned | State::Released { .. } | State::Doubtful { .. } => "waits",
            State::Done { .. } => "done",
            State::Refused { .. } | State::Withheld { .. } => "not done",
        };
        for number in 0..ACCOUNTS.len() {
            let Some(held) = self.dossier(&account(number)).await else {
                continue;
            };
            let letters = held.letters.iter().map(|letter| {
                let key = format!("{}/letter/{}", held.account, letter.number);
                (key, &letter.state)
            });
            let actions =
                (held.actions.iter()).map(|action| (action.key.to_string(), &action.state));
            let guard = self.state();
            for (key, held) in actions.chain(letters) {
                let now = state(held);
                assert_ne!(now, "waits", "invariant 7: {key} is lost: {held:?}");
                let arrived = guard.book.done.contains(&key);
                assert_eq!(now == "done", arrived, "invariant 7: {key}: {held:?}");
            }
        }
        self.nothing_stands_too_long();
        self.decided_again().await
    }

    /// No effect outlasts what speaks for the customer, its own end, or two hours in which nobody dealt with the customer's word.
    fn nothing_stands_too_long(&self) {
        let now = self.now();
        let mut state = self.state();
        state.tells_all();
        for (key, stands) in &state.book.stands {
            let Stands {
                account,
                verb,
                automated,
                since,
            } = stands;
            let mut covers = state.oracle.covers(account, &[], now);
            covers.retain(|safety| LASTING.contains(safety));
            let spoken = *automated && !covers.is_empty();
            assert!(!spoken, "{key} stands, though {covers:?} cover the account");
            let over = *verb == Verb::Throttle && now > since + DAY + SLACK;
            assert!(!over, "{key} stands since {since}, for longer than a day");
            let talks = state.oracle.said(account).talks_since;
            let waits = *verb > Verb::Throttle && talks.is_some_and(|t| now > t + 2 * HOUR + SLACK);
            assert!(
                !waits,
                "{key} stands, though the customer waits since {talks:?}"
            );
        }
    }

    /// Every stored decision, made again; all of them, as text, which is what the store's own columns hold, to the byte.
    async fn decided_again(&self) -> Vec<String> {
        let ledger = self.desk().ledger;
        let policies = self.replica(0).policies.now();
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = ledger.decisions(None, after, 100).await.unwrap();
            let Some(last) = page.last() else {
                break;
            };
            after = Some((last.input.account.clone(), last.number));
            for stored in page {
                let text = |plan: &_| serde_json::to_string(plan).unwrap();
                let (plan, again) = (text(&stored.plan), text(&decide(&policies, &stored.input)));
                let name = format!("decision {} of {}", stored.number, stored.input.account);
                assert_eq!(again, plan, "invariant 6: {name}");
                let input = serde_json::to_string(&stored.input).unwrap();
                all.push(format!("{name}: {input} {plan}"));
            }
        }
        let kept = self.place.sql(match self.place {
            Place::Sqlite { .. } => {
                "SELECT group_concat('decision ' || number || ' of ' || account || ': ' || input || ' ' || plan, char(10))
                 FROM (SELECT * FROM decisions ORDER BY account, number)"
            }
            Place::Postgres { .. } => {
                r#"SELECT string_agg('decision ' || number || ' of ' || account || ': ' || input || ' ' || plan, chr(10)
                 ORDER BY account COLLATE "C", number) FROM decisions"#
            }
        });
        let (kept, again) = (kept.unwrap(), all.join("\n"));
        assert!(
            kept.trim_end() == again,
            "invariant 6: what is kept is not what was decided:\n{kept}\n{again}"
        );
        self.state().book.seen.decisions += all.len() as u64;
        all
    }
}
