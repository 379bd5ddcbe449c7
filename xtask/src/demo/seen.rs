//! What Davy reported about the demo's tenants, and whether it is what must come out. Pure.
//!
//! Input is the document of `davyctl droplets --json`, asked for again and again; sums run over the windows in it,
//! each counted once.

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

/// Least mean CPU use of a tenant that is meant to work all the time, as a share of one CPU: far below what
/// it gets even on a crowded machine, and far above that of a program that failed to start.
const BUSY_SHARE_MIN: f64 = 0.02;

/// The narrowest terminal a table is fitted to, in columns.
pub const COLUMNS_MIN: u16 = 80;

/// A tenant of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Must come out with `fp_rounding` concluded.
    Miner,
    /// Works all the time and must not.
    Honest,
    /// Does nothing and must not.
    Idle,
}

/// One tenant, as reported so far.
#[derive(Debug, Clone, Serialize)]
pub struct Tenant {
    /// Its name, in the agent's configuration and in the reports.
    pub name: String,
    /// What runs there, for people.
    pub workload: String,
    /// What must come out.
    pub role: Role,
    /// Windows in which it was reported.
    pub windows: u64,
    /// CPU use over those windows, as a share of one CPU.
    pub cpu_mean: f64,
    /// CPU use in the last window, as a share of one CPU.
    pub cpu_last: f64,
    /// Samples by rounding mode over those windows.
    pub rounding_modes: [u64; 4],
    /// The state of the `fp_rounding` sensor.
    pub fp_rounding_state: String,
    /// Whether `fp_rounding` has concluded.
    pub fp_rounding_concluded: bool,
    /// Whether it had concluded in any report.
    pub fp_rounding_ever_concluded: bool,
    /// The state of the `register_randomness` sensor; `unknown` where it is not reported.
    pub register_randomness_state: String,
    /// Samples of `register_randomness` over those windows, and those of registers full of random bits.
    pub register_samples: u64,
    /// See [`Self::register_samples`].
    pub register_random: u64,
    /// Whether `register_randomness` has concluded, on whatever hashing.
    pub register_randomness_concluded: bool,
    /// `quiet`, `suspect` or `mining`.
    pub verdict: String,
    /// Why.
    pub reasons: Vec<String>,
    /// What the detector planned.
    pub planned: String,
    #[serde(skip)]
    on_cpu_ns: u64,
    #[serde(skip)]
    span_ns: u64,
    #[serde(skip)]
    last_seen_unix_ns: u64,
}

impl Tenant {
    /// A tenant nothing is known of.
    pub fn new(name: &str, workload: &str, role: Role) -> Self {
        Self {
            name: name.to_owned(),
            workload: workload.to_owned(),
            role,
            windows: 0,
            cpu_mean: 0.0,
            cpu_last: 0.0,
            rounding_modes: [0; 4],
            fp_rounding_state: "never_ran".to_owned(),
            fp_rounding_concluded: false,
            fp_rounding_ever_concluded: false,
            register_randomness_state: "unknown".to_owned(),
            register_samples: 0,
            register_random: 0,
            register_randomness_concluded: false,
            verdict: "unknown".to_owned(),
            reasons: Vec::new(),
            planned: "nothing yet".to_owned(),
            on_cpu_ns: 0,
            span_ns: 0,
            last_seen_unix_ns: 0,
        }
    }

    /// Takes what was reported about it. A window without figures (`null`: not known) is not counted.
    fn update(&mut self, droplet: &Value) -> Result<()> {
        let last_seen = number(droplet, "/last_seen_unix_ns")?;
        let unknown = |name: &str| droplet.get(name).is_some_and(Value::is_null);
        if last_seen <= self.last_seen_unix_ns || unknown("cpu") || unknown("fp_rounding") {
            return Ok(());
        }
        let window = number(droplet, "/window_ns")?;
        let on_cpu = number(droplet, "/cpu/on_cpu_ns")?;
        let modes = droplet
            .pointer("/fp_rounding/modes")
            .and_then(Value::as_array)
            .context("davyctl reported no rounding modes")?;
        for (sum, mode) in self.rounding_modes.iter_mut().zip(modes) {
            *sum += mode
                .as_u64()
                .context("a rounding mode's count is no number")?;
        }
        self.last_seen_unix_ns = last_seen;
        self.windows += 1;
        self.on_cpu_ns += on_cpu;
        self.span_ns += window;
        self.cpu_last = share(on_cpu, window);
        self.cpu_mean = share(self.on_cpu_ns, self.span_ns);
        self.fp_rounding_state = text(droplet, "/fp_rounding/state")?;
        self.fp_rounding_concluded = flag(droplet, "/fp_rounding/concluded")?;
        self.fp_rounding_ever_concluded |= self.fp_rounding_concluded;
        if droplet
            .get("register_randomness")
            .is_some_and(|random| !random.is_null())
        {
            self.register_randomness_state = text(droplet, "/register_randomness/state")?;
            self.register_samples += number(droplet, "/register_randomness/samples")?;
            self.register_random += number(droplet, "/register_randomness/random")?;
            self.register_randomness_concluded =
                flag(droplet, "/register_randomness/any_concluded")?
                    || flag(droplet, "/register_randomness/directed_concluded")?;
        }
        self.verdict = text(droplet, "/verdict/level")?;
        self.reasons = droplet
            .pointer("/verdict/reasons")
            .and_then(Value::as_array)
            .context("davyctl reported no reasons")?
            .iter()
            .filter_map(|reason| reason.as_str().map(str::to_owned))
            .collect();
        self.planned = text(droplet, "/planned")?;
        Ok(())
    }

    /// The evidence in a few words: the rounding modes' shares, how often the registers were full of random bits,
    /// and whether the tests have concluded.
    pub fn evidence(&self) -> String {
        format!("{}; {}", self.fp_rounding(), self.register_randomness())
    }

    /// The same, as short as a row on a terminal.
    fn brief(&self) -> String {
        let samples: u64 = self.rounding_modes.iter().sum();
        if samples == 0 {
            return "no samples".to_owned();
        }
        let shares = percent_each(self.rounding_modes, samples);
        let random = 100.0 * share(self.register_random, self.register_samples);
        let mark = |concluded| if concluded { " (concluded)" } else { "" };
        format!(
            "modes {shares} %{}, random {random:.0} %{}",
            mark(self.fp_rounding_concluded),
            mark(self.register_randomness_concluded)
        )
    }

    fn fp_rounding(&self) -> String {
        let samples: u64 = self.rounding_modes.iter().sum();
        if samples == 0 {
            return format!("fp_rounding {}, no samples", self.fp_rounding_state);
        }
        let shares = percent_each(self.rounding_modes, samples);
        format!(
            "fp_rounding {}: modes {shares} % of {samples} samples",
            conclusion(self.fp_rounding_concluded),
        )
    }

    fn register_randomness(&self) -> String {
        if self.register_samples == 0 {
            return format!(
                "register_randomness {}, no samples",
                self.register_randomness_state
            );
        }
        format!(
            "register_randomness {}: random in {:.0} % of {} samples",
            conclusion(self.register_randomness_concluded),
            100.0 * share(self.register_random, self.register_samples),
            self.register_samples
        )
    }

    /// Whether it showed what no more time takes back.
    pub fn is_wrong_for_good(&self) -> bool {
        self.role != Role::Miner && self.fp_rounding_ever_concluded
    }

    /// What is not as it must be.
    fn problems(&self) -> Vec<String> {
        let name = &self.name;
        if self.windows == 0 {
            return vec![format!("tenant {name} was never reported")];
        }
        let mut problems = Vec::new();
        let evidence = self.evidence();
        match self.role {
            Role::Miner if !self.fp_rounding_concluded => problems.push(format!(
                "{name} mines, but its fp_rounding has not concluded ({evidence}); \
                 give it longer: --seconds"
            )),
            Role::Honest | Role::Idle if self.fp_rounding_ever_concluded => problems.push(format!(
                "{name} does not mine, but its fp_rounding concluded ({evidence})"
            )),
            Role::Miner if self.verdict != "mining" => problems.push(format!(
                "{name} mines, but its verdict is {} ({evidence}); give it longer: --seconds",
                self.verdict
            )),
            Role::Honest | Role::Idle if self.verdict != "quiet" => problems.push(format!(
                "{name} does not mine, but its verdict is {} ({evidence})",
                self.verdict
            )),
            Role::Miner | Role::Honest | Role::Idle => {}
        }
        if self.role != Role::Idle && self.cpu_mean < BUSY_SHARE_MIN {
            problems.push(format!(
                "{name} should be busy, but used {:.1} % of one CPU",
                100.0 * self.cpu_mean
            ));
        }
        if self.role == Role::Honest && self.rounding_modes[0] == 0 {
            problems.push(format!(
                "{name} is busy, but its registers were never seen ({evidence})"
            ));
        }
        problems
    }
}

/// Takes one document of `davyctl droplets --json`.
///
/// # Errors
/// If it is not what davyctl promises.
pub fn update(tenants: &mut [Tenant], document: &str) -> Result<()> {
    let document: Value = serde_json::from_str(document).context("davyctl's answer is not JSON")?;
    let droplets = document
        .pointer("/droplets")
        .unwrap_or(&document)
        .as_array()
        .context("davyctl's answer has no list of droplets")?;
    for droplet in droplets {
        // A tenant without a name is none of the demo's.
        let name = droplet
            .get("name")
            .context("davyctl's answer has a droplet without `name`")?;
        if let Some(tenant) = tenants.iter_mut().find(|tenant| *name == *tenant.name) {
            tenant.update(droplet)?;
        }
    }
    Ok(())
}

/// What is not as it must be, one sentence each; nothing if the demo shows what it should.
pub fn problems(tenants: &[Tenant]) -> Vec<String> {
    tenants.iter().flat_map(Tenant::problems).collect()
}

/// A table in the demo's style, fitted to the terminal.
pub fn empty_table() -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    if table.width().is_some_and(|columns| columns >= COLUMNS_MIN) {
        table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    }
    table
}

/// The table of the tenants; `live`: with the CPU of the last window instead of the mean, and short enough to be drawn again and again.
pub fn table(tenants: &[Tenant], live: bool) -> String {
    let mut table = empty_table();
    if live {
        table.load_style(comfy_table::presets::NOTHING);
    }
    table.set_header([
        "tenant", "workload", "CPU", "evidence", "verdict", "planned",
    ]);
    for tenant in tenants {
        let cpu = if live {
            tenant.cpu_last
        } else {
            tenant.cpu_mean
        };
        table.add_row([
            tenant.name.clone(),
            tenant.workload.clone(),
            format!("{:.0} %", 100.0 * cpu),
            if live {
                tenant.brief()
            } else {
                tenant.evidence()
            },
            tenant.verdict.clone(),
            tenant.planned.clone(),
        ]);
    }
    table.to_string()
}

/// All tenants in one line.
pub fn line(tenants: &[Tenant]) -> String {
    let words: Vec<String> = tenants
        .iter()
        .map(|tenant| {
            format!(
                "{}: CPU {:.0} %, {}, {}",
                tenant.name,
                100.0 * tenant.cpu_last,
                tenant.brief(),
                tenant.verdict
            )
        })
        .collect();
    words.join(" | ")
}

fn conclusion(concluded: bool) -> &'static str {
    if concluded {
        "CONCLUDED"
    } else {
        "not concluded"
    }
}

fn percent_each(modes: [u64; 4], samples: u64) -> String {
    let shares = modes.map(|mode| format!("{:.0}", 100.0 * share(mode, samples)));
    shares.join("/")
}

/// A ratio of counts; 0 if there is nothing to count.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

fn number(droplet: &Value, pointer: &str) -> Result<u64> {
    droplet
        .pointer(pointer)
        .and_then(Value::as_u64)
        .with_context(|| format!("davyctl reported no number at {pointer}"))
}

fn flag(droplet: &Value, pointer: &str) -> Result<bool> {
    droplet
        .pointer(pointer)
        .and_then(Value::as_bool)
        .with_context(|| format!("davyctl reported no yes or no at {pointer}"))
}

fn text(droplet: &Value, pointer: &str) -> Result<String> {
    droplet
        .pointer(pointer)
        .and_then(Value::as_str)
        .map(str::to_owned)
        .with_context(|| format!("davyctl reported no text at {pointer}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// One tenant as davyctl reports it after its `at`-th window of a second.
    fn droplet(name: &str, at: u64, on_cpu_ns: u64, modes: [u64; 4], concluded: bool) -> Value {
        json!({
            "name": name,
            "last_seen_unix_ns": at * 1_000_000_000,
            "window_ns": 1_000_000_000,
            "cpu": { "on_cpu_ns": on_cpu_ns },
            "fp_rounding": { "state": "live", "modes": modes, "concluded": concluded },
            "register_randomness": {
                "state": "live",
                "samples": modes.iter().sum::<u64>(),
                "random": if concluded { modes.iter().sum::<u64>() } else { 0 },
                "any_concluded": concluded,
                "directed_concluded": concluded,
            },
            "verdict": { "level": if concluded { "mining" } else { "quiet" }, "reasons": ["because"] },
            "planned": "observe",
        })
    }

    fn document(droplets: &[Value]) -> String {
        json!({ "droplets": droplets }).to_string()
    }

    fn tenants() -> [Tenant; 3] {
        [
            Tenant::new("miner", "RandomX", Role::Miner),
            Tenant::new("honest", "x264", Role::Honest),
            Tenant::new("idle", "sleeps", Role::Idle),
        ]
    }

    fn good(at: u64) -> [Value; 3] {
        [
            droplet("miner", at, 900_000_000, [30, 20, 25, 25], true),
            droplet("honest", at, 1_000_000_000, [80, 0, 0, 0], false),
            droplet("idle", at, 0, [0; 4], false),
        ]
    }

    #[test]
    fn the_expected_outcome_has_no_problem() {
        let mut tenants = tenants();
        update(&mut tenants, &document(&good(1))).unwrap();
        assert_eq!(problems(&tenants), Vec::<String>::new());
        assert!(table(&tenants, false).contains("mining"));
        assert!(
            line(&tenants).contains("miner: CPU 90 %"),
            "{}",
            line(&tenants)
        );
    }

    #[test]
    fn a_window_counts_once_and_sums_run_over_windows() {
        let mut tenants = tenants();
        for at in [1, 1, 2] {
            update(&mut tenants, &document(&good(at))).unwrap();
        }
        let later = droplet("miner", 3, 300_000_000, [0, 0, 0, 10], true);
        update(&mut tenants, &document(&[later])).unwrap();
        let miner = &tenants[0];
        assert_eq!(miner.windows, 3);
        assert_eq!(miner.rounding_modes, [60, 40, 50, 60]);
        assert!((miner.cpu_mean - 0.7).abs() < 1e-9, "{}", miner.cpu_mean);
        assert!((miner.cpu_last - 0.3).abs() < 1e-9, "{}", miner.cpu_last);
    }

    #[test]
    fn each_wrong_outcome_is_named() {
        let quiet_miner = droplet("miner", 1, 900_000_000, [9, 0, 0, 0], false);
        let caught_honest = droplet("honest", 1, 900_000_000, [9, 9, 9, 9], true);
        let lazy_honest = droplet("honest", 1, 1_000, [9, 0, 0, 0], false);
        let unseen_honest = droplet("honest", 1, 900_000_000, [0; 4], false);
        let caught_idle = droplet("idle", 1, 0, [9; 4], true);
        let mut suspected_miner = droplet("miner", 1, 900_000_000, [9; 4], true);
        suspected_miner["verdict"]["level"] = json!("suspect");
        let mut suspected_honest = droplet("honest", 1, 900_000_000, [9, 0, 0, 0], false);
        suspected_honest["verdict"]["level"] = json!("suspect");
        for (wrong, word) in [
            (quiet_miner, "has not concluded"),
            (caught_honest, "does not mine"),
            (lazy_honest, "should be busy"),
            (unseen_honest, "never seen"),
            (caught_idle, "does not mine"),
            (suspected_miner, "its verdict is suspect"),
            (suspected_honest, "its verdict is suspect"),
        ] {
            let mut tenants = tenants();
            let mut all: Vec<Value> = good(1).to_vec();
            all.retain(|droplet| droplet["name"] != wrong["name"]);
            all.push(wrong);
            update(&mut tenants, &document(&all)).unwrap();
            let problems = problems(&tenants);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(word), "{problems:?}");
        }
    }

    #[test]
    fn the_evidence_says_how_random_the_registers_were() {
        let mut tenants = tenants();
        update(&mut tenants, &document(&good(1))).unwrap();
        let said = tenants.each_ref().map(Tenant::evidence);
        let ends = [
            "register_randomness CONCLUDED: random in 100 % of 100 samples",
            "register_randomness not concluded: random in 0 % of 80 samples",
            "register_randomness live, no samples",
        ];
        for (said, end) in said.iter().zip(ends) {
            assert!(said.ends_with(end), "{said}");
        }
        let mut without = droplet("miner", 2, 900_000_000, [1; 4], true);
        without["register_randomness"] = Value::Null;
        update(&mut tenants, &document(&[without])).unwrap();
        assert_eq!((tenants[0].windows, tenants[0].register_samples), (2, 100));
    }

    #[test]
    fn a_false_conclusion_stays_a_problem() {
        let mut tenants = tenants();
        let mut first = good(1);
        first[1] = droplet("honest", 1, 900_000_000, [9, 9, 9, 9], true);
        update(&mut tenants, &document(&first)).unwrap();
        update(&mut tenants, &document(&good(2))).unwrap();
        assert_eq!(problems(&tenants).len(), 1);
        let for_good = tenants.each_ref().map(Tenant::is_wrong_for_good);
        assert_eq!(for_good, [false, true, false]);
    }

    #[test]
    fn a_tenant_never_reported_is_a_problem() {
        let mut tenants = tenants();
        update(&mut tenants, &document(&good(1)[..2])).unwrap();
        assert_eq!(problems(&tenants), ["tenant idle was never reported"]);
    }

    #[test]
    fn a_window_without_figures_and_other_tenants_are_passed_over() {
        let mut tenants = tenants();
        let mut unknown = droplet("miner", 1, 0, [0; 4], false);
        unknown["cpu"] = Value::Null;
        let nameless = json!({ "name": null });
        update(&mut tenants, &document(&[unknown, nameless])).unwrap();
        assert!(tenants.iter().all(|tenant| tenant.windows == 0));
    }

    #[test]
    fn a_document_of_another_kind_is_refused() {
        let mut tenants = tenants();
        for document in [
            "",
            "{}",
            "{\"droplets\": [{}]}",
            "{\"droplets\": [{\"name\": \"miner\"}]}",
        ] {
            assert!(update(&mut tenants, document).is_err(), "{document}");
        }
    }
}
