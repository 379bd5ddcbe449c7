//! The simulated detector: records in memory, the deciding code as it is, and a clock that stops where something is due. Pure.

use std::collections::BTreeMap;

use davy_decision::{
    account::{AccountId, DropletId},
    action::{Outcome, Parcel},
    case::CaseId,
    dossier::{Dossier, Errand, Event as Happened},
    episode::{Classes, Sighting},
    fleet::{Fleet, Stop},
    order::Order,
    policy::Policies,
    settings::Settings,
    text::Reason,
    time::{Span, Time},
    words,
};
use davy_evidence::Level;

use super::event::{Dependency, Event, Timed};
use super::provider::Provider;
use super::timeline::{Entry, Kind, decided, list, ordered};
use crate::store::ledger::Decision;

/// Errands of one account at one moment; more would be a loop.
const ERRANDS_MAX: usize = 1_000;

/// Windows that go on coming.
#[derive(Clone, Debug)]
struct Feed {
    template: Sighting,
    window: Span,
    until: Option<Time>,
    account: Option<AccountId>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct World {
    /// The time now.
    pub at: Time,
    /// The rules' figures.
    pub settings: Settings,
    /// The policies.
    pub policies: Policies,
    /// The fleet's record.
    pub fleet: Fleet,
    /// The accounts' records.
    pub dossiers: BTreeMap<AccountId, Dossier>,
    /// The provider.
    pub provider: Provider,
    /// Orders that were released, in order, whether or not they arrived.
    pub released: Vec<Order>,
    /// Decisions stored, in order.
    pub decisions: Vec<Decision>,
    /// What happened.
    pub timeline: Vec<Entry>,
    feeds: BTreeMap<DropletId, Feed>,
    stirring: BTreeMap<DropletId, Level>,
    pub(super) due: BTreeMap<AccountId, Time>,
    executor_free: Time,
    pub(super) reasons: Vec<(CaseId, Reason)>,
}

impl World {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(at: Time, policies: Policies, settings: Settings) -> Self {
        Self {
            at,
            settings,
            policies,
            fleet: Fleet::default(),
            dossiers: BTreeMap::new(),
            provider: Provider::default(),
            released: Vec::new(),
            decisions: Vec::new(),
            timeline: Vec::new(),
            feeds: BTreeMap::new(),
            stirring: BTreeMap::new(),
            due: BTreeMap::new(),
            executor_free: at,
            reasons: Vec::new(),
        }
    }

    /// Lets time pass up to `to`, stopping wherever something is due.
    pub fn advance(&mut self, to: Time) {
        self.settle();
        loop {
            let feeds = self.feeds.values().map(|feed| feed.template.to);
            let next = feeds
                .chain(self.next_due())
                .min()
                .filter(|next| *next <= to);
            let Some(next) = next else {
                break;
            };
            self.at = self.at.max(next);
            self.windows();
            self.settle();
        }
        self.at = self.at.max(to);
    }

    /// When accounts are due next, not before what holds the detector up ends. What is due already and could not be done waits for
    /// the executor.
    fn next_due(&self) -> Option<Time> {
        let ahead = self.due.values().copied().filter(|due| *due > self.at);
        let held_up = self.due.values().any(|due| *due <= self.at);
        let held_up = held_up.then(|| self.executor_ready()).flatten();
        let next = ahead.chain(held_up).min()?;
        let detector = self.provider.down(Dependency::Detector, next);
        Some(detector.map_or(next, |until| next.max(until)))
    }

    fn executor_ready(&self) -> Option<Time> {
        let down = self.provider.down(Dependency::Executor, self.at);
        let detector = self.provider.down(Dependency::Detector, self.at);
        [down, detector, Some(self.executor_free)]
            .into_iter()
            .flatten()
            .filter(|ready| *ready > self.at)
            .max()
    }

    /// Windows that end now reach their accounts.
    fn windows(&mut self) {
        let ended: Vec<_> = (self.feeds.iter())
            .filter(|(_, feed)| feed.template.to <= self.at)
            .map(|(droplet, _)| droplet.clone())
            .collect();
        for droplet in ended {
            let Some(feed) = self.feeds.get_mut(&droplet) else {
                continue;
            };
            let sighting = feed.template.clone();
            let account = feed.account.clone();
            (feed.template.from, feed.template.to) = (sighting.to, sighting.to.after(feed.window));
            if feed.until.is_some_and(|until| sighting.to >= until) {
                self.feeds.remove(&droplet);
            }
            self.see(account, sighting);
        }
    }

    fn see(&mut self, account: Option<AccountId>, sighting: Sighting) {
        let before = self
            .stirring
            .insert(sighting.droplet.clone(), sighting.level);
        if sighting.level == Level::Quiet && before.unwrap_or_default() == Level::Quiet {
            return;
        }
        let Some(account) = account.or_else(|| self.provider.owner(&sighting.droplet).cloned())
        else {
            return;
        };
        let settings = self.settings.clone();
        let dossier = self.dossier(&account);
        let events = dossier.observe(sighting, &settings);
        self.happened(&account, &events);
        self.due.insert(account, self.at);
    }

    pub(super) fn dossier(&mut self, account: &AccountId) -> &mut Dossier {
        (self.dossiers.entry(account.clone())).or_insert_with(|| Dossier::new(account.clone()))
    }

    /// Attends to every account that is due now, as often as it is.
    pub fn settle(&mut self) {
        for _ in 0..ERRANDS_MAX {
            if self.provider.down(Dependency::Detector, self.at).is_some() {
                return;
            }
            let due: Vec<_> = (self.due.iter())
                .filter(|(_, due)| **due <= self.at)
                .map(|(account, _)| account.clone())
                .collect();
            let mut moved = false;
            for account in due {
                moved |= self.attend(&account);
            }
            if !moved {
                return;
            }
        }
    }

    /// Facts, a turn, errands: as the engine does. Whether anything moved.
    fn attend(&mut self, account: &AccountId) -> bool {
        let (at, settings) = (self.at, self.settings.clone());
        let before = self.dossier(account).clone();
        if before.wants_facts(&settings, at) {
            let fresh = self.provider.facts(account, at);
            let dossier = self.dossier(account);
            let events = match fresh {
                Ok(facts) => match dossier.inform(facts, at) {
                    Ok(events) => events,
                    Err(refusal) => dossier.fetch_failed(refusal.to_string(), at),
                },
                Err(why) => dossier.fetch_failed(why, at),
            };
            self.happened(account, &events);
        }
        self.turn(account);
        while self.errand(account) {}
        let dossier = self.dossier(account).clone();
        let due = dossier.due(&self.fleet, &settings, at);
        match due {
            Some(due) => self.due.insert(account.clone(), due),
            None => self.due.remove(account),
        };
        dossier != before
    }

    fn turn(&mut self, account: &AccountId) {
        let (at, fleet, settings) = (self.at, self.fleet.clone(), self.settings.clone());
        let policies = self.policies.clone();
        let dossier = self.dossier(account);
        let turn = dossier.turn(&fleet, &policies, &settings, at);
        let number = dossier.decisions;
        if let Some((input, plan)) = turn.decision {
            self.timeline.push(decided(at, account, number, &plan));
            self.decisions.push(Decision {
                number,
                input,
                plan,
            });
        }
        let told =
            |event: &&Happened| !matches!(event, Happened::Decided { .. } | Happened::CloserLook);
        let events: Vec<_> = turn.events.iter().filter(told).cloned().collect();
        self.happened(account, &events);
    }

    /// Runs the first errand that can be run now.
    fn errand(&mut self, account: &AccountId) -> bool {
        let (at, settings) = (self.at, self.settings.clone());
        let fleet = self.fleet.clone();
        let held_up =
            self.provider.down(Dependency::Executor, at).is_some() || self.executor_free > at;
        let errands = self.dossier(account).errands(&fleet, at);
        let Some(errand) = errands.into_iter().next().filter(|_| !held_up) else {
            return false;
        };
        match errand {
            Errand::FreeBudget => self.fleet.release(account),
            Errand::Query {
                parcel,
                released_at,
            } => {
                let outcome = self.provider.query(&parcel.to_string(), at);
                self.learn(account, &parcel, released_at, outcome);
            }
            Errand::Release { parcel, with_facts } => {
                let fresh = with_facts.then(|| self.provider.facts(account, at));
                let (mut fleet, policies) = (self.fleet.clone(), self.policies.clone());
                let known = (&mut fleet, &policies);
                let released =
                    (self.dossier(account)).release(&parcel, fresh, known, &settings, at);
                self.fleet = fleet;
                // What is an errand can be released.
                let events = released.unwrap_or_default();
                self.happened(account, &events);
                if let Some(order) = self.dossier(account).order(&parcel, &settings) {
                    self.executor_free = at.after(self.provider.release_takes);
                    let before = self.provider.orders.len();
                    let outcomes = self.provider.perform(&order, at);
                    self.released.push(order.clone());
                    for order in self.provider.orders.iter().skip(before) {
                        self.timeline.push(ordered(at, order));
                    }
                    for outcome in outcomes {
                        self.learn(account, &parcel, order.released_at, outcome);
                    }
                }
            }
        }
        true
    }

    fn learn(&mut self, account: &AccountId, parcel: &Parcel, released_at: Time, outcome: Outcome) {
        let (at, settings, fleet) = (self.at, self.settings.clone(), self.fleet.clone());
        let done = outcome == Outcome::Done;
        let learnt =
            self.dossier(account)
                .learn(parcel, released_at, outcome, (&fleet, &settings), at);
        // That what was asked is done goes without saying; the order stands in the timeline.
        let mut events = learnt.unwrap_or_default();
        if done {
            events.retain(|event| !matches!(event, Happened::Learned { .. }));
        }
        self.happened(account, &events);
    }

    pub(super) fn happened(&mut self, account: &AccountId, events: &[Happened]) {
        for event in events {
            if matches!(
                event,
                Happened::FactsChanged | Happened::Released { .. } | Happened::ActionPlanned { .. }
            ) {
                continue;
            }
            self.timeline.push(Entry {
                at: self.at,
                account: Some(account.clone()),
                kind: Kind::Event,
                text: words::of(event),
                data: serde_json::to_value(event).unwrap_or_default(),
            });
        }
    }

    fn say(&mut self, account: Option<&AccountId>, text: String) {
        self.timeline.push(Entry {
            at: self.at,
            account: account.cloned(),
            kind: Kind::Scenario,
            text,
            data: serde_json::Value::Null,
        });
    }

    /// Something happens, now.
    ///
    /// # Errors
    /// If it cannot be, in words.
    pub fn happen(&mut self, timed: &Timed) -> Result<(), String> {
        self.at = self.at.max(timed.at);
        match &timed.event {
            Event::Note { text } => self.say(None, text.clone()),
            Event::Clock {} => {}
            Event::Fleet { droplets } => {
                self.fleet.droplets = *droplets;
                self.say(None, format!("the fleet has {droplets} droplets"));
            }
            Event::Account { account, facts } => {
                self.provider.learn(account, facts, self.at)?;
                self.say(
                    Some(account),
                    "the provider's directory was told facts".to_owned(),
                );
            }
            Event::DropletCreated {
                account,
                droplets,
                vcpus,
            } => {
                self.provider.create(account, droplets, *vcpus, self.at)?;
                self.say(Some(account), format!("creates {}", list(droplets)));
            }
            Event::Evidence { .. } => self.evidence(&timed.event)?,
            Event::Load {
                droplets,
                cpu_percent,
            } => {
                if let Some(droplet) =
                    (droplets.iter()).find(|droplet| self.provider.owner(droplet).is_none())
                {
                    return Err(nobodys(droplet));
                }
                for droplet in droplets {
                    let mut feed = self.feed(droplet, Level::Quiet, Classes::default(), minute());
                    feed.template.cpu_percent = *cpu_percent;
                    self.feeds.insert(droplet.clone(), feed);
                }
                self.say(
                    None,
                    format!(
                        "{}: CPU {cpu_percent} %, sensors find nothing",
                        list(droplets)
                    ),
                );
            }
            Event::Customer {
                account,
                channel,
                text,
                key,
            } => self.customer(account, channel, text, key.as_deref())?,
            Event::Stop { by, why } => {
                self.fleet.stop = Some(Stop {
                    since: self.at,
                    by: by.clone(),
                    why: why.clone(),
                });
                self.say(None, format!("{by} stops automation: {why}"));
            }
            Event::Resume { by } => {
                self.fleet.stop = None;
                self.say(None, format!("{by} lets automation go on"));
            }
            Event::Outage { of, for_s } => {
                let until = self.at.after(Span::seconds(*for_s));
                self.provider.outage(*of, until);
                self.say(None, format!("{of:?} is down until {until}"));
            }
            Event::ControlPlane {
                answers,
                seconds_per_release,
            } => {
                self.provider
                    .answer(*answers, Span::seconds(*seconds_per_release));
                self.say(None, format!("the control plane: {answers:?}"));
            }
            Event::Settings { change } => self.change_settings(change)?,
            act => self.person(act)?,
        }
        self.settle();
        Ok(())
    }

    fn feed(&self, droplet: &DropletId, level: Level, classes: Classes, window: Span) -> Feed {
        Feed {
            template: Sighting {
                droplet: droplet.clone(),
                host: String::new(),
                from: self.at,
                to: self.at.after(window),
                level,
                classes,
                cpu_percent: 0,
                neighbours_wait_percent: None,
                reasons: Vec::new(),
            },
            window,
            until: None,
            account: None,
        }
    }

    fn evidence(&mut self, event: &Event) -> Result<(), String> {
        let Event::Evidence {
            droplets,
            level,
            classes,
            for_s,
            window_s,
            cpu_percent,
            host,
            neighbours_wait_percent,
            reasons,
            account,
        } = event
        else {
            return Ok(());
        };
        if *window_s == 0 || droplets.is_empty() {
            return Err(
                "evidence is of at least one droplet, in windows of at least 1 s".to_owned(),
            );
        }
        let needs = Classes {
            fp_rounding: *level == Level::Mining,
            register_randomness: *level >= Level::Suspect,
            pmu: false,
        };
        for droplet in droplets {
            if account.is_none() && self.provider.owner(droplet).is_none() {
                return Err(nobodys(droplet));
            }
            let mut feed = self.feed(
                droplet,
                *level,
                classes.unwrap_or(needs),
                Span::seconds(*window_s),
            );
            feed.template.host.clone_from(host);
            feed.template.cpu_percent = *cpu_percent;
            feed.template.neighbours_wait_percent = *neighbours_wait_percent;
            feed.template.reasons.clone_from(reasons);
            feed.until = for_s.map(|seconds| self.at.after(Span::seconds(seconds)));
            feed.account.clone_from(account);
            self.feeds.insert(droplet.clone(), feed);
        }
        let said = format!(
            "{}: sensors say {level}, CPU {cpu_percent} %",
            list(droplets)
        );
        self.say(None, said);
        Ok(())
    }

    fn customer(
        &mut self,
        account: &AccountId,
        channel: &str,
        text: &str,
        key: Option<&str>,
    ) -> Result<(), String> {
        let at = self.at;
        self.say(Some(account), format!("the customer writes: {text}"));
        let key = key.map_or_else(|| at.to_string(), str::to_owned);
        let heard = self.dossier(account).hear(&key, channel, text, at);
        let mut events = heard.map_err(|refusal| refusal.to_string())?;
        events.retain(|event| !matches!(event, Happened::CustomerSpoke { .. }));
        self.happened(account, &events);
        self.due.insert(account.clone(), at);
        Ok(())
    }

    fn change_settings(
        &mut self,
        change: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<(), String> {
        let words = |error: serde_json::Error| error.to_string();
        let mut all = serde_json::to_value(&self.settings).map_err(words)?;
        if let Some(fields) = all.as_object_mut() {
            fields.extend(change.clone());
        }
        let settings: Settings = serde_json::from_value(all).map_err(words)?;
        settings.check().map_err(|error| error.to_string())?;
        self.settings = settings;
        let names: Vec<_> = change.keys().map(String::as_str).collect();
        self.say(None, format!("settings change: {}", names.join(", ")));
        Ok(())
    }
}

fn nobodys(droplet: &DropletId) -> String {
    format!("no account has droplet {droplet}; create it before")
}

const fn minute() -> Span {
    Span::minutes(1)
}
