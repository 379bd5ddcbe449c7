//! Keeps what the agent costs within its budget. Pure: clock and costs are arguments.
//!
//! The cost is the BPF programs' run time and the agent's own CPU time, the nudging threads included, as a share of one
//! CPU over [`INTERVAL_NS`]. Above the budget for [`OVER`] intervals in a row it sheds one [`Step`] more, the
//! least missed first. It comes back one step at a time, after some intervals at [`LOW`] of the budget or less; each
//! time coming back was too early the next try waits twice as long, up to [`CALM_MAX`] intervals.
//!
//! What it cannot shed: the program at each switch itself (only ending the agent ends that), and looking for tenants.
//! Where the kernel keeps no time of BPF programs that part is unknown and not counted; [`Governor::blind`] says so.

use serde::Deserialize;

/// How long one reading lasts at least, ns.
pub const INTERVAL_NS: u64 = 5_000_000_000;
/// Intervals above the budget before another step is shed.
pub const OVER: u32 = 2;
/// Share of the budget below which things may come back.
pub const LOW: f64 = 0.7;
/// Intervals that low before a step comes back, at first and at most.
pub const CALM: u32 = 6;
/// See [`CALM`].
pub const CALM_MAX: u32 = 120;
/// Time between two looks at one thread's registers at [`Step::FewLooks`], ns; far beyond the 5 ms of default.
pub const FEW_LOOKS_NS: u64 = 100_000_000;

/// What the agent may cost: BPF run time, its own CPU time and nudging together. Above it, it measures less, and says so
/// (see the module's documentation).
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Share of one CPU, over some seconds; 0.001 to 8192, or 0 for no limit. Default: one hundredth of the CPUs that
    /// are online at the start, but at least 0.1.
    pub cpu_share: Option<f64>,
}

impl Budget {
    /// The budget in CPUs on a host with `cpus` of them; `None`: no limit.
    #[must_use]
    pub fn cpus(&self, cpus: usize) -> Option<f64> {
        match self.cpu_share {
            Some(share) => (share > 0.0).then_some(share),
            None => Some((cpus as f64 / 100.0).max(0.1)),
        }
    }

    pub(crate) fn check(self) -> Result<(), (String, String)> {
        match self.cpu_share {
            Some(share) if share != 0.0 && !(0.001..=8192.0).contains(&share) => Err((
                "budget.cpu_share".to_owned(),
                format!("is {share}: it must be 0, or between 0.001 and 8192"),
            )),
            Some(_) | None => Ok(()),
        }
    }
}

/// What is shed, in this order; each step includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Nothing.
    #[default]
    Nothing,
    /// Closer looks: CPUs are nudged as at rest at most.
    CloserLooks,
    /// All nudging.
    Nudges,
    /// Most looks at registers: one thread's at most every [`FEW_LOOKS_NS`].
    FewLooks,
    /// All looks at registers.
    Looks,
}

const STEPS: [Step; 5] = [
    Step::Nothing,
    Step::CloserLooks,
    Step::Nudges,
    Step::FewLooks,
    Step::Looks,
];

impl Step {
    /// 0 to 4, by how much is shed.
    #[must_use]
    pub fn number(self) -> u64 {
        self as u64
    }

    /// What is shed, in words; empty for nothing.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::CloserLooks => "no closer looks",
            Self::Nudges => "CPUs are not nudged",
            Self::FewLooks => {
                "CPUs are not nudged, and a thread's registers are looked at ten times a second at most"
            }
            Self::Looks => "CPUs are not nudged, and registers are not looked at",
        }
    }

    fn more(self) -> Self {
        STEPS[(self as usize + 1).min(STEPS.len() - 1)]
    }

    fn less(self) -> Self {
        STEPS[(self as usize).saturating_sub(1)]
    }
}

/// What was used since some begin, ns; each only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    /// Run time of the BPF programs; `None` if the kernel keeps none.
    pub bpf_ns: Option<u64>,
    /// CPU time of the agent, all threads.
    pub agent_ns: u64,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Governor {
    /// In CPUs; `None`: no limit.
    budget: Option<f64>,
    step: Step,
    /// When this interval began, ns, and the costs then.
    began: Option<(u64, Costs)>,
    /// Of the last whole interval.
    share: Option<f64>,
    blind: bool,
    over: u32,
    calm: u32,
    /// Intervals of calm that are wanted now.
    wanted: u32,
    /// Intervals since something came back last.
    since_back: u32,
}

impl Governor {
    /// Whether the next costs decide about a step: they should be fresh.
    #[must_use]
    pub fn is_deciding(&self) -> bool {
        self.over > 0 || self.step != Step::Nothing
    }

    /// One that has seen nothing yet; `budget` in CPUs, `None` for no limit.
    #[must_use]
    pub fn new(budget: Option<f64>) -> Self {
        Self {
            budget,
            step: Step::Nothing,
            began: None,
            share: None,
            blind: false,
            over: 0,
            calm: 0,
            wanted: CALM,
            since_back: u32::MAX,
        }
    }

    /// Takes the costs as of `now_ns`. Gives the new step if it is another one.
    pub fn observe(&mut self, now_ns: u64, costs: Costs) -> Option<Step> {
        let Some((began_ns, before)) = self.began else {
            self.began = Some((now_ns, costs));
            return None;
        };
        let elapsed_ns = now_ns.saturating_sub(began_ns);
        if elapsed_ns < INTERVAL_NS {
            return None;
        }
        self.began = Some((now_ns, costs));
        let bpf_ns = costs
            .bpf_ns
            .zip(before.bpf_ns.or(Some(0)))
            .map(|(now, before)| now.saturating_sub(before));
        self.blind = bpf_ns.is_none();
        let used_ns = costs
            .agent_ns
            .saturating_sub(before.agent_ns)
            .saturating_add(bpf_ns.unwrap_or(0));
        let share = seconds(used_ns) / seconds(elapsed_ns);
        self.share = Some(share);
        let step = self.judge(share);
        let changed = step != self.step;
        self.step = step;
        changed.then_some(step)
    }

    fn judge(&mut self, share: f64) -> Step {
        let Some(budget) = self.budget else {
            return Step::Nothing;
        };
        self.since_back = self.since_back.saturating_add(1);
        if share > budget {
            self.calm = 0;
            self.over += 1;
            if self.over < OVER {
                return self.step;
            }
            self.over = 0;
            // It came back too early: what was shed is what keeps the cost low.
            if self.since_back <= CALM {
                self.wanted = (self.wanted * 2).min(CALM_MAX);
            }
            return self.step.more();
        }
        self.over = 0;
        self.calm = if share <= budget * LOW {
            self.calm + 1
        } else {
            0
        };
        if self.step == Step::Nothing {
            if self.calm >= CALM_MAX {
                self.wanted = CALM;
            }
            return Step::Nothing;
        }
        if self.calm < self.wanted {
            return self.step;
        }
        self.calm = 0;
        self.since_back = 0;
        self.step.less()
    }

    /// What is shed now.
    #[must_use]
    pub fn step(&self) -> Step {
        self.step
    }

    /// The cost over the last whole interval, as a share of one CPU; `None` before its end.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        self.share
    }

    /// The budget, as a share of one CPU; `None`: no limit.
    #[must_use]
    pub fn budget(&self) -> Option<f64> {
        self.budget
    }

    /// Whether the BPF programs' run time is not known, and so not counted.
    #[must_use]
    pub fn blind(&self) -> bool {
        self.blind
    }

    /// Why less is measured than could be, for the sensors' states; empty if nothing is shed.
    #[must_use]
    pub fn reason(&self) -> String {
        match (self.step, self.budget) {
            (Step::Nothing, _) | (_, None) => String::new(),
            (step, Some(budget)) => format!(
                "the agent came above its budget of {:.1} % of one CPU: {}",
                budget * 100.0,
                step.words()
            ),
        }
    }
}

fn seconds(ns: u64) -> f64 {
    std::time::Duration::from_nanos(ns).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A governor of 10 % of one CPU, and what it has been told.
    struct Course {
        governor: Governor,
        now_ns: u64,
        costs: Costs,
    }

    impl Course {
        fn begin(budget: Option<f64>) -> Self {
            let mut course = Self {
                governor: Governor::new(budget),
                now_ns: 77,
                costs: Costs {
                    bpf_ns: Some(1_000),
                    agent_ns: 9_000_000_000,
                },
            };
            assert_eq!(course.governor.observe(course.now_ns, course.costs), None);
            course
        }

        /// So many intervals at `percent` of one CPU, half of it by BPF programs; the steps that were taken.
        fn run(&mut self, intervals: u32, percent: u64) -> Vec<Step> {
            let mut steps = Vec::new();
            for _ in 0..intervals {
                self.now_ns += INTERVAL_NS;
                let half_ns = INTERVAL_NS / 200 * percent;
                self.costs.bpf_ns = self.costs.bpf_ns.map(|ns| ns + half_ns);
                self.costs.agent_ns += half_ns;
                steps.extend(self.governor.observe(self.now_ns, self.costs));
            }
            steps
        }
    }

    #[test]
    fn what_was_used_before_the_begin_is_not_counted() {
        let mut course = Course::begin(Some(0.10));
        assert_eq!(course.run(1, 6), []);
        let share = course.governor.share().unwrap();
        assert!((share - 0.06).abs() < 1e-9, "{share}");
    }

    #[test]
    fn a_burst_sheds_nothing() {
        let mut course = Course::begin(Some(0.10));
        for _ in 0..5 {
            assert_eq!(course.run(1, 50), []);
            assert_eq!(course.run(1, 5), []);
        }
    }

    #[test]
    fn above_the_budget_one_step_after_the_other_is_shed_and_no_further() {
        let mut course = Course::begin(Some(0.10));
        let steps = course.run(OVER * 6, 11);
        assert_eq!(
            steps,
            [Step::CloserLooks, Step::Nudges, Step::FewLooks, Step::Looks]
        );
        assert_eq!(course.governor.step(), Step::Looks);
    }

    #[test]
    fn it_comes_back_only_well_below_the_budget() {
        let mut course = Course::begin(Some(0.10));
        course.run(OVER, 11);
        assert_eq!(course.run(200, 9), [], "between low and the budget");
        assert_eq!(course.run(CALM - 1, 6), []);
        assert_eq!(course.run(1, 6), [Step::Nothing]);
    }

    #[test]
    fn who_comes_back_too_early_waits_longer_the_next_time() {
        let mut course = Course::begin(Some(0.10));
        course.run(OVER, 11);
        assert_eq!(course.run(CALM, 6), [Step::Nothing]);
        assert_eq!(course.run(OVER, 11), [Step::CloserLooks]);
        assert_eq!(course.run(CALM * 2 - 1, 6), []);
        assert_eq!(course.run(1, 6), [Step::Nothing]);
        for _ in 0..10 {
            course.run(OVER, 11);
            course.run(CALM_MAX, 6);
        }
        assert_eq!(course.run(OVER, 11), [Step::CloserLooks]);
        assert_eq!(course.run(CALM_MAX, 6), [Step::Nothing], "never longer");
        course.run(CALM_MAX, 6);
        course.run(OVER, 11);
        assert_eq!(course.run(CALM, 6), [Step::Nothing], "calm for long");
    }

    #[test]
    fn without_a_budget_nothing_is_shed() {
        let mut course = Course::begin(None);
        assert_eq!(course.run(20, 300), []);
        assert_eq!(course.governor.reason(), "");
    }

    #[test]
    fn run_time_that_is_not_known_is_said_and_not_counted() {
        let mut course = Course::begin(Some(0.10));
        course.costs.bpf_ns = None;
        course.run(1, 8);
        assert!(course.governor.blind());
        let share = course.governor.share().unwrap();
        assert!((share - 0.04).abs() < 1e-9, "{share}");
    }

    #[test]
    fn the_budget_grows_with_the_host_unless_it_is_set() {
        let budget = |cpu_share| Budget { cpu_share };
        assert_eq!(budget(None).cpus(2), Some(0.1));
        assert_eq!(budget(None).cpus(128), Some(1.28));
        assert_eq!(budget(Some(0.02)).cpus(128), Some(0.02));
        assert_eq!(budget(Some(0.0)).cpus(128), None);
    }

    #[test]
    fn the_reason_says_what_is_shed() {
        let mut course = Course::begin(Some(0.10));
        course.run(OVER * 2, 11);
        assert_eq!(
            course.governor.reason(),
            "the agent came above its budget of 10.0 % of one CPU: CPUs are not nudged"
        );
    }
}
