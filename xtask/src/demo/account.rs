//! What the detector decided about the demo's accounts, and whether it is what must come out. Pure.
//!
//! Input are the documents of `davyctl safety check --json` and, where there is a case, of `davyctl cases show --json`.

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::seen::{self, Tenant};

/// What must come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Mines and nothing speaks for it: told, throttled, and a case.
    Throttled,
    /// Mines, but this safety speaks for it: a case, and nothing else.
    Spared(&'static str),
    /// Is honest: no case at all.
    LeftAlone,
}

/// One account, as decided on so far.
#[derive(Debug, Clone, Serialize)]
pub struct Account {
    /// Its name.
    pub name: &'static str,
    /// Who that is, for people.
    pub story: &'static str,
    /// What must come out.
    pub fate: Fate,
    /// Its droplets' tenants here.
    pub tenants: &'static [&'static str],
    /// The first one's droplet.
    pub droplet: &'static str,
    /// Safeties that are in force should that droplet be acted on, by name.
    pub safeties: Vec<String>,
    /// The highest step that was decided, and the policies that permitted it; none if nothing was to be decided.
    pub plan: Option<Plan>,
    /// Its case: name and state.
    pub case: Option<String>,
    /// What the control plane was asked for, in order: step, droplets, and what came of it.
    pub asked: Vec<Asked>,
    /// What the customer was told about the last of it.
    pub statement: Option<String>,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// A step of the ladder.
    pub step: String,
    /// Ids of policies.
    pub policies: Vec<String>,
}

/// The ladder, upwards.
const LADDER: [&str; 7] = [
    "observe",
    "closer_look",
    "open_case",
    "notify",
    "throttle",
    "power_down",
    "lock",
];

/// Something the control plane was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// `notify`, `throttle`, …
    pub step: String,
    /// Of which droplets.
    pub droplets: Vec<String>,
    /// `done`, `refused`, …
    pub state: String,
}

impl Account {
    const fn new(
        name: &'static str,
        story: &'static str,
        fate: Fate,
        tenants: &'static [&'static str],
        droplet: &'static str,
    ) -> Self {
        Self {
            name,
            story,
            fate,
            tenants,
            droplet,
            safeties: Vec::new(),
            plan: None,
            case: None,
            asked: Vec::new(),
            statement: None,
        }
    }

    /// Those of `tests/provider/accounts.jsonl`.
    pub fn all() -> Vec<Self> {
        vec![
            Self::new(
                "newcomer",
                "5 days old, has paid nothing",
                Fate::Throttled,
                &["miner-101", "idle-102"],
                "101",
            ),
            Self::new(
                "veteran",
                "customer for ten years, pays",
                Fate::Spared("long_standing"),
                &["miner-104"],
                "104",
            ),
            Self::new(
                "pipeline",
                "10 new droplets in 27 minutes, on credit, has paid nothing",
                Fate::LeftAlone,
                &["batch-111", "batch-112", "batch-113"],
                "111",
            ),
            Self::new(
                "permitted",
                "carries Allow High CPU, has paid nothing",
                Fate::Spared("high_cpu_allowed"),
                &["miner-105"],
                "105",
            ),
        ]
    }

    /// Takes what davyctl says of the safeties, and of the case if there is one.
    ///
    /// # Errors
    /// If it is not what davyctl promises.
    pub fn update(&mut self, safeties: &Value, case: Option<&Value>) -> Result<()> {
        self.safeties = list(safeties, "safeties")?
            .iter()
            .filter(|safety| safety.get("in_force").and_then(Value::as_bool) == Some(true))
            .map(|safety| text(safety, "name"))
            .collect::<Result<_>>()?;
        let Some(case) = case else {
            return Ok(());
        };
        let summary = case.get("case").context("davyctl's case has no summary")?;
        let number = summary.get("number").and_then(Value::as_u64);
        let number = number.context("davyctl's case has no number")?;
        self.case = Some(format!(
            "{}/{number}, {}",
            self.name,
            text(summary, "state")?
        ));
        self.plan = highest(list(case, "decisions")?)?;
        let actions = list(case, "actions")?;
        self.asked = actions.iter().map(asked).collect::<Result<_>>()?;
        self.statement = match actions.last() {
            Some(action) => Some(text(action, "statement")?),
            None => None,
        };
        Ok(())
    }

    /// What is not as it must be.
    fn problems(&self) -> Vec<String> {
        let name = self.name;
        let mut problems = Vec::new();
        let done = |step: &str| {
            let of = |asked: &&Asked| asked.step == step && asked.state == "done";
            self.asked.iter().filter(of).count()
        };
        match self.fate {
            Fate::Throttled => {
                if self.case.is_none() {
                    problems.push(format!("{name} mines, and has no case"));
                }
                for step in ["notify", "throttle"] {
                    if done(step) != 1 {
                        problems.push(format!(
                            "{name} is to be asked to {step} once: {}; in force: {:?}",
                            self.asked_in_words(),
                            self.safeties
                        ));
                    }
                }
                if self.asked.iter().any(|asked| asked.droplets != ["101"]) {
                    problems.push(format!(
                        "of {name} only 101 mines: {}",
                        self.asked_in_words()
                    ));
                }
                if self.asked.len() > 2 {
                    problems.push(format!("{name}: too much: {}", self.asked_in_words()));
                }
            }
            Fate::Spared(safety) => {
                if self.case.is_none() {
                    problems.push(format!("{name} mines, and no person was asked to look"));
                }
                if !self.safeties.iter().any(|held| held == safety) {
                    problems.push(format!("{safety} is not in force for {name}"));
                }
                if !self.asked.is_empty() {
                    problems.push(format!("{name} is spared: {}", self.asked_in_words()));
                }
            }
            Fate::LeftAlone => {
                if let Some(case) = &self.case {
                    problems.push(format!("{name} is honest, and has the case {case}"));
                }
            }
        }
        problems
    }

    /// Whether it has what no more time takes back.
    fn is_wrong_for_good(&self) -> bool {
        match self.fate {
            Fate::Throttled => self.asked.len() > 2,
            Fate::Spared(_) => !self.asked.is_empty(),
            Fate::LeftAlone => self.case.is_some(),
        }
    }

    fn asked_in_words(&self) -> String {
        let words = |asked: &Asked| {
            let Asked {
                step,
                droplets,
                state,
            } = asked;
            format!("{step} {} ({state})", droplets.join(", "))
        };
        if self.asked.is_empty() {
            return "nothing".to_owned();
        }
        self.asked.iter().map(words).collect::<Vec<_>>().join("; ")
    }

    fn evidence(&self, tenants: &[Tenant]) -> String {
        let own = tenants
            .iter()
            .filter(|tenant| self.tenants.contains(&tenant.name.as_str()));
        let words = |tenant: &Tenant| {
            format!(
                "{}: {}, CPU {:.0} %",
                tenant.name,
                tenant.verdict,
                100.0 * tenant.cpu_mean
            )
        };
        own.map(words).collect::<Vec<_>>().join("\n")
    }
}

/// The highest step of decisions, the last of those that took it.
fn highest(decisions: &[Value]) -> Result<Option<Plan>> {
    let mut highest: Option<(usize, Plan)> = None;
    for decision in decisions {
        let steps = texts(decision, "steps")?;
        let place = |step: &String| LADDER.iter().position(|name| name == step);
        let Some(top) = steps.iter().filter_map(place).max() else {
            continue;
        };
        if highest.as_ref().is_none_or(|(held, _)| top > *held) {
            let plan = Plan {
                step: LADDER[top].to_owned(),
                policies: texts(decision, "policies")?,
            };
            highest = Some((top, plan));
        }
    }
    Ok(highest.map(|(_, plan)| plan))
}

/// Whether the document of `davyctl cases list --json` has one of the account's.
///
/// # Errors
/// If it is not what davyctl promises.
pub fn has_case(account: &str, cases: &Value) -> Result<bool> {
    let of = |case: &Value| case.get("account").and_then(Value::as_str) == Some(account);
    Ok(list(cases, "cases")?.iter().any(of))
}

fn asked(action: &Value) -> Result<Asked> {
    let step = text(action, "step")?;
    let undo = action.get("undo").and_then(Value::as_bool) == Some(true);
    Ok(Asked {
        step: if undo { format!("undo {step}") } else { step },
        droplets: texts(action, "droplets")?,
        state: text(action, "state")?,
    })
}

/// What is not as it must be, one sentence each.
pub fn problems(accounts: &[Account]) -> Vec<String> {
    accounts.iter().flat_map(Account::problems).collect()
}

/// Whether more time may still mend what is not as it must be.
pub fn may_come_right(accounts: &[Account]) -> bool {
    !accounts.iter().any(Account::is_wrong_for_good)
}

/// The closing table.
pub fn table(accounts: &[Account], tenants: &[Tenant]) -> String {
    let mut table = seen::empty_table();
    table.set_header([
        "account",
        "evidence",
        "safeties in force",
        "plan",
        "case",
        "the control plane was asked (dry run)",
    ]);
    for account in accounts {
        let safeties = match account.safeties.is_empty() {
            true => "none".to_owned(),
            false => account.safeties.join("\n"),
        };
        let plan = match &account.plan {
            Some(plan) => plan.step.replace('_', " "),
            None => "observe".to_owned(),
        };
        table.add_row([
            format!("{}\n{}", account.name, account.story),
            account.evidence(tenants),
            safeties,
            plan,
            account.case.clone().unwrap_or_else(|| "none".to_owned()),
            account.asked_in_words(),
        ]);
    }
    table.to_string()
}

fn list<'a>(value: &'a Value, field: &str) -> Result<&'a Vec<Value>> {
    let list = value.get(field).and_then(Value::as_array);
    list.with_context(|| format!("davyctl told no list {field}"))
}

fn text(value: &Value, field: &str) -> Result<String> {
    let text = value.get(field).and_then(Value::as_str);
    text.map(str::to_owned)
        .with_context(|| format!("davyctl told no text {field}"))
}

fn texts(value: &Value, field: &str) -> Result<Vec<String>> {
    let words = |item: &Value| item.as_str().map(str::to_owned);
    Ok(list(value, field)?.iter().filter_map(words).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn safeties(in_force: &[&str]) -> Value {
        let one = |name: &&str| json!({ "name": name, "in_force": in_force.contains(name) });
        let all: Vec<Value> = ["long_standing", "high_cpu_allowed"]
            .iter()
            .map(one)
            .collect();
        json!({ "safeties": all })
    }

    fn case(steps: &[&str], asked: &[(&str, &str, &str)]) -> Value {
        let action = |(step, droplet, state): &(&str, &str, &str)| json!({ "step": step, "undo": false, "droplets": [droplet], "state": state, "statement": "why" });
        json!({
            "case": { "number": 1, "state": "open" },
            "decisions": [
                { "steps": ["observe"], "policies": ["observe"] },
                { "steps": steps, "policies": ["some"] },
            ],
            "actions": asked.iter().map(action).collect::<Vec<_>>(),
        })
    }

    /// All as it must be.
    fn good() -> Vec<Account> {
        let mut accounts = Account::all();
        let acted = case(
            &["observe", "open_case", "notify", "throttle"],
            &[("notify", "101", "done"), ("throttle", "101", "done")],
        );
        let opened = case(&["observe", "open_case"], &[]);
        accounts[0].update(&safeties(&[]), Some(&acted)).unwrap();
        accounts[1]
            .update(&safeties(&["long_standing"]), Some(&opened))
            .unwrap();
        accounts[2].update(&safeties(&[]), None).unwrap();
        accounts[3]
            .update(&safeties(&["high_cpu_allowed"]), Some(&opened))
            .unwrap();
        accounts
    }

    #[test]
    fn the_expected_outcome_has_no_problem() {
        let accounts = good();
        assert_eq!(problems(&accounts), Vec::<String>::new());
        let plan = accounts[0].plan.clone().unwrap();
        assert_eq!(
            (plan.step.as_str(), plan.policies),
            ("throttle", vec!["some".to_owned()])
        );
        let table = table(&accounts, &[]);
        for words in [
            "newcomer/1, open",
            "throttle 101 (done)",
            "high_cpu_allowed",
            "nothing",
        ] {
            assert!(table.contains(words), "{words}: {table}");
        }
    }

    #[test]
    fn before_anything_was_decided_only_the_honest_one_is_as_it_must_be() {
        let accounts = Account::all();
        let told = problems(&accounts);
        assert!(
            !told.iter().any(|problem| problem.contains("pipeline")),
            "{told:?}"
        );
        for name in ["newcomer", "veteran", "permitted"] {
            assert!(
                told.iter().any(|problem| problem.contains(name)),
                "{told:?}"
            );
        }
        assert!(may_come_right(&accounts));
    }

    #[test]
    fn each_wrong_outcome_is_named() {
        let throttled = [("notify", "101", "done"), ("throttle", "101", "done")];
        let more = [throttled[0], throttled[1], ("power_down", "101", "done")];
        let other = [("notify", "102", "done"), ("throttle", "102", "done")];
        let undone = [throttled[0], ("throttle", "101", "in doubt")];
        let held = safeties(&["long_standing", "high_cpu_allowed"]);
        for (index, case, word, for_good) in [
            (0, case(&[], &more), "too much", true),
            (0, case(&[], &other), "only 101 mines", false),
            (0, case(&[], &undone), "throttle once", false),
            (1, case(&[], &throttled), "is spared", true),
            (2, case(&["open_case"], &[]), "is honest", true),
            (3, case(&[], &throttled), "is spared", true),
        ] {
            let mut accounts = good();
            accounts[index].update(&held, Some(&case)).unwrap();
            let told = problems(&accounts);
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].contains(word), "{told:?}");
            assert_eq!(may_come_right(&accounts), !for_good, "{told:?}");
        }
        let mut accounts = good();
        accounts[1].update(&safeties(&[]), None).unwrap();
        assert!(problems(&accounts)[0].contains("long_standing is not in force"));
    }

    #[test]
    fn a_case_is_found_by_its_account() {
        let cases = json!({ "cases": [{ "account": "veteran" }] });
        assert!(has_case("veteran", &cases).unwrap());
        assert!(!has_case("pipeline", &cases).unwrap());
        assert!(has_case("pipeline", &json!({})).is_err());
    }
}
