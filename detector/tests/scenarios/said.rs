//! What the customer and people said of an account, and what follows from it by the rules: for the oracle, from the acts that were
//! taken and from nothing else.
//!
//! A conversation is dealt with by an unlock, or by the second denial, of another person, that decides. Nothing else ends it.

use std::collections::BTreeSet;

use serde_json::Value;

/// How long an unlock holds automation off, ms.
const HOLD: u64 = 30 * 24 * 60 * 60_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decided {
    Legitimate,
    Unsure,
    Denied,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// A person's word that high CPU is allowed.
    pub allowed: bool,
    /// The end of the last hold; 0: never unlocked.
    pub holds_until: u64,
    /// The customer's first word that nobody has dealt with.
    pub talks_since: Option<u64>,
    /// How far two people let automation go again, as [`rank`] has it.
    ruled: u8,
    /// Cases that stand denied, or were closed so.
    denied: BTreeSet<String>,
    heard: BTreeSet<String>,
    /// The case that is worked on, where a line names it.
    case: String,
    /// Who denied since the customer spoke last, and what was to be done.
    denials: Vec<(String, u8)>,
    decided: Option<Decided>,
    closed: bool,
}

/// Measures by their harshness; 0: none.
pub fn rank(verb: &str) -> u8 {
    match verb {
        "throttle" => 1,
        "power_down" => 2,
        "lock" => 3,
        _ => 0,
    }
}

impl Said {
    /// Whether two people let automation do this again.
    pub fn rules(&self, verb: &str) -> bool {
        rank(verb) <= self.ruled
    }

    /// Whether two people denied a case, each by themselves, after the customer's last word on it.
    pub fn was_denied(&self, case: &str) -> bool {
        self.denied.contains(case)
    }

    /// What two people ruled in the case that is worked on, as [`rank`] has it, while that stands.
    pub fn measure(&self) -> Option<u8> {
        (self.decided == Some(Decided::Denied)).then_some(self.ruled)
    }

    /// Whether a case was decided, and is not worked on again since.
    pub fn is_decided(&self, case: &str) -> bool {
        self.case == case && self.decided.is_some()
    }

    /// Whether a case is worked on.
    pub fn is_open(&self, case: &str) -> bool {
        self.case != case || (self.decided.is_none() && !self.closed)
    }

    /// Takes a line of people's; whether it was one.
    pub fn takes(&mut self, now: u64, line: &Value) -> bool {
        let event = line["event"].as_str().unwrap();
        if let Some(case) = line["case"].as_str()
            && case != self.case
        {
            (self.case, self.decided, self.closed) = (case.to_owned(), None, false);
            self.denials.clear();
        }
        match event {
            "customer" => self.hears(now, line["key"].as_str()),
            "unlock" => {
                let legitimate = line["outcome"] != "unsure";
                self.unlocked(now, legitimate);
            }
            "opinion" if line["finding"] == "unlock" => {
                // A second review of a decided case changes nothing.
                if self.decided.is_none() {
                    self.unlocked(now, false);
                }
            }
            "opinion" => self.denied_by(line),
            "allow_high_cpu" if line["revoke"] == true => self.allowed = false,
            // What is so already changes nothing.
            "allow_high_cpu" if self.allowed => {}
            "allow_high_cpu" => {
                self.allowed = true;
                self.hold(now);
            }
            "unthrottle" => self.hold(now),
            "undo" => self.taken_back(now, line["by"].as_str().unwrap_or_default()),
            "close" => (self.decided, self.closed) = (None, true),
            "claim" | "give_back" | "answer" | "throttle" | "renew" => {}
            _ => return false,
        }
        true
    }

    fn hold(&mut self, now: u64) {
        self.holds_until = now + HOLD;
    }

    fn hears(&mut self, now: u64, key: Option<&str>) {
        if key.is_some_and(|key| !self.heard.insert(key.to_owned())) {
            return;
        }
        self.talks_since.get_or_insert(now);
        self.opens_again();
    }

    /// What was said before counts no more.
    fn opens_again(&mut self) {
        self.denials.clear();
        self.decided = None;
        self.denied.remove(&self.case);
    }

    fn unlocked(&mut self, now: u64, legitimate: bool) {
        self.hold(now);
        self.allowed |= legitimate;
        (self.talks_since, self.ruled) = (None, 0);
        self.decided = Some(match legitimate {
            true => Decided::Legitimate,
            false => Decided::Unsure,
        });
    }

    fn denied_by(&mut self, line: &Value) {
        match self.decided {
            // A second review.
            Some(Decided::Legitimate | Decided::Unsure) => return,
            // Where lines do not name cases: another one.
            Some(Decided::Denied) => self.opens_again(),
            None => {}
        }
        let by = line["by"].as_str().unwrap_or_default().to_owned();
        let measure = rank(line["measure"].as_str().unwrap_or_default());
        let other = self.denials.iter().find(|(who, _)| *who != by);
        if let Some((_, milder)) = other {
            self.ruled = measure.min(*milder);
            self.talks_since = None;
            self.decided = Some(Decided::Denied);
            self.denied.insert(self.case.clone());
        }
        self.denials.push((by, measure));
    }

    fn taken_back(&mut self, now: u64, by: &str) {
        // One's own denial that waits for a second one comes first, and nothing else is touched.
        if self.decided.is_none() && self.denials.iter().any(|(who, _)| who == by) {
            self.denials.retain(|(who, _)| who != by);
            return;
        }
        self.ruled = 0;
        match self.decided {
            Some(Decided::Legitimate) => self.allowed = false,
            Some(Decided::Unsure) => {}
            Some(Decided::Denied) | None => self.hold(now),
        }
        self.opens_again();
    }
}

#[test]
fn a_conversation_ends_by_an_unlock_or_by_the_denials_of_two_and_by_nothing_else() {
    let mut oracle = super::Oracle::new();
    let mut minute = 0;
    let mut happens = |oracle: &mut super::Oracle, line: Value| {
        let mut line = line;
        line["at"] = format!("2026-03-02T08:{minute:02}:00Z").into();
        (line["account"], line["case"]) = ("a".into(), "a/1".into());
        minute += 1;
        oracle.happened(&line);
    };
    let deny = |by: &str, measure: &str| serde_json::json!({"event": "opinion", "by": by, "finding": "deny", "measure": measure});
    happens(&mut oracle, serde_json::json!({"event": "account"}));
    happens(&mut oracle, serde_json::json!({"event": "customer"}));
    for event in ["claim", "answer", "throttle", "renew", "give_back"] {
        happens(&mut oracle, serde_json::json!({"event": event}));
    }
    for by in ["ann", "ann"] {
        happens(&mut oracle, deny(by, "lock"));
    }
    let said = oracle.said("a");
    assert!(said.talks_since.is_some() && said.is_open("a/1"));
    happens(&mut oracle, deny("bob", "throttle"));
    let said = oracle.said("a");
    assert!(said.talks_since.is_none() && said.was_denied("a/1") && said.is_decided("a/1"));
    assert!(said.rules("throttle") && !said.rules("power_down"));
    happens(&mut oracle, serde_json::json!({"event": "customer"}));
    assert!(oracle.said("a").talks_since.is_some());
    happens(&mut oracle, serde_json::json!({"event": "unlock"}));
    let said = oracle.said("a");
    assert!(said.talks_since.is_none() && said.allowed && !said.was_denied("a/1"));
    assert!(!said.rules("throttle"));

    // A denial that is withdrawn is no half of one.
    happens(&mut oracle, serde_json::json!({"event": "customer"}));
    happens(&mut oracle, deny("ann", "lock"));
    happens(
        &mut oracle,
        serde_json::json!({"event": "undo", "by": "ann"}),
    );
    happens(&mut oracle, deny("bob", "lock"));
    assert!(!oracle.said("a").was_denied("a/1"));
    happens(
        &mut oracle,
        serde_json::json!({"event": "undo", "by": "cid"}),
    );
    happens(&mut oracle, deny("ann", "lock"));
    assert!(
        !oracle.said("a").was_denied("a/1"),
        "nor one that others undid"
    );
    happens(&mut oracle, deny("bob", "lock"));
    assert!(oracle.said("a").was_denied("a/1"));
}
