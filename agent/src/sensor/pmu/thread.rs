//! One thread's counters: the slice that is counted, the turn it belongs to, and the window's figures.

use davy_evidence::pmu::Mix;

use super::{
    budget::{Plan, Shedding},
    counters::{Counters, Group, OpenError},
    family::{Event, PAIR, WHATS, What},
};
use crate::kernel::perf::{Counts, Scope};

/// With fewer instructions than this a slice tells nothing of the mix, and its turn is given up: the thread hardly ran.
const SLICE_INSTRUCTIONS_MIN: u64 = 1_000_000;
/// With fewer operations of any kind in a slice than this the mix is none of `RandomX`'s: one hash has 65,536 divisions.
const OPS_MIN: u64 = 1_000;

/// Estimates of a thread's window: what was counted in part of the time, scaled to all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// How long the thread ran with counters wanted, ns.
    pub enabled_ns: u64,
    /// How long cycles and instructions were counted of that, ns.
    pub running_ns: u64,
    counts: [u64; WHATS],
    running: [u64; WHATS],
}

impl Figures {
    /// The estimate; `None` if it was not counted.
    #[must_use]
    pub fn of(&self, what: What) -> Option<u64> {
        let index = what as usize;
        let running = u128::from(self.running[index]);
        if running == 0 {
            return None;
        }
        let scaled = u128::from(self.counts[index]) * u128::from(self.enabled_ns) / running;
        Some(u64::try_from(scaled).unwrap_or(u64::MAX))
    }
}

/// What a slice's end gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The turn goes on, or was given up.
    Nothing,
    /// A turn is complete: whether its mix was `RandomX`'s.
    Turn(bool),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Thread {
    tid: u32,
    scope: Scope,
    group: Option<Box<dyn Group>>,
    slice: usize,
    slice_began_ns: u64,
    shedding: Shedding,
    /// Counts when the slice began, and when they were last read.
    began: Counts,
    last: Counts,
    window: Figures,
    /// Operations per instruction in this turn.
    rates: [Option<f64>; WHATS],
    too_few: bool,
}

impl Thread {
    /// Opens the first slice of a thread.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        counters: &mut dyn Counters,
        tid: u32,
        scope: Scope,
        plans: &[Plan],
        now_ns: u64,
    ) -> Result<Self, OpenError> {
        let mut thread = Self {
            tid,
            scope,
            group: None,
            slice: 0,
            slice_began_ns: now_ns,
            shedding: Shedding::default(),
            began: Counts::default(),
            last: Counts::default(),
            window: Figures::default(),
            rates: [None; WHATS],
            too_few: false,
        };
        thread.start(counters, plans, now_ns)?;
        Ok(thread)
    }

    /// What is counted of it.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Whether the slice has lasted `slice_ns`.
    #[must_use]
    pub fn is_due(&self, now_ns: u64, slice_ns: u64) -> bool {
        now_ns.saturating_sub(self.slice_began_ns) >= slice_ns
    }

    /// Reads the counters into the window's figures. A group that cannot be read counts as nothing new.
    pub fn collect(&mut self, plans: &[Plan]) {
        let Some(group) = &self.group else {
            return;
        };
        let Ok(now) = group.read() else {
            return;
        };
        let since = difference(&now, &self.last);
        self.window.enabled_ns += since.time_enabled_ns;
        self.window.running_ns += since.time_running_ns;
        for (event, count) in events(self.plan(plans), self.slice).zip(&since.values) {
            let index = event.what as usize;
            self.window.counts[index] = self.window.counts[index].saturating_add(*count);
            self.window.running[index] += since.time_running_ns;
        }
        self.last = now;
    }

    /// Ends the slice and begins the next one.
    ///
    /// # Errors
    /// If the next one cannot be opened; nothing is counted then.
    pub fn next_slice(
        &mut self,
        counters: &mut dyn Counters,
        plans: &[Plan],
        now_ns: u64,
    ) -> Result<Outcome, OpenError> {
        self.collect(plans);
        let slice = difference(&self.last, &self.began);
        let plan = self.plan(plans);
        let slices = plan.slices.len();
        let is_last = self.slice + 1 >= slices;
        self.take_rates(plan, &slice);
        let outcome = if is_last {
            self.end_turn(plan)
        } else {
            Outcome::Nothing
        };
        let changed = self.shedding.slice(
            slice.time_enabled_ns,
            slice.time_running_ns,
            given_up_max(plans),
        );
        if changed {
            (self.slice, self.rates, self.too_few) = (0, [None; WHATS], false);
        } else {
            self.slice = (self.slice + 1) % slices;
        }
        if slices > 1 || changed || self.group.is_none() {
            self.start(counters, plans, now_ns)?;
        } else {
            (self.began, self.slice_began_ns) = (self.last.clone(), now_ns);
        }
        Ok(outcome)
    }

    /// The window's figures so far.
    #[must_use]
    pub fn window(&self) -> &Figures {
        &self.window
    }

    /// The window's figures; a new window begins.
    pub fn close_window(&mut self) -> Figures {
        std::mem::take(&mut self.window)
    }

    fn plan<'a>(&self, plans: &'a [Plan]) -> &'a Plan {
        let given_up = usize::try_from(self.shedding.given_up()).unwrap_or(usize::MAX);
        &plans[given_up.min(plans.len() - 1)]
    }

    fn start(
        &mut self,
        counters: &mut dyn Counters,
        plans: &[Plan],
        now_ns: u64,
    ) -> Result<(), OpenError> {
        // The old group first: its counters are needed for the new one.
        self.group = None;
        self.slice_began_ns = now_ns;
        loop {
            let events: Vec<_> = events(self.plan(plans), self.slice).copied().collect();
            match counters.open(self.tid, &events, self.scope) {
                Ok(group) => {
                    self.group = Some(group);
                    break;
                }
                // What the kernel does not take beside the pair is given up, as if counters were short.
                Err(OpenError::Unsupported(_)) if self.shedding.give_up(given_up_max(plans)) => {
                    (self.slice, self.rates, self.too_few) = (0, [None; WHATS], false);
                }
                Err(error) => return Err(error),
            }
        }
        (self.began, self.last) = (Counts::default(), Counts::default());
        Ok(())
    }

    fn take_rates(&mut self, plan: &Plan, slice: &Counts) {
        let instructions = slice.values.get(1).copied().unwrap_or(0);
        if instructions < SLICE_INSTRUCTIONS_MIN {
            self.too_few = true;
            return;
        }
        for (event, &count) in events(plan, self.slice).zip(&slice.values).skip(PAIR.len()) {
            let enough = if count < OPS_MIN { 0.0 } else { count as f64 };
            self.rates[event.what as usize] = Some(enough / instructions as f64);
        }
    }

    /// The turn's mix, if the plan has one and every slice told enough.
    fn end_turn(&mut self, plan: &Plan) -> Outcome {
        let rates = std::mem::replace(&mut self.rates, [None; WHATS]);
        if std::mem::take(&mut self.too_few) || !has_mix(plan) {
            return Outcome::Nothing;
        }
        mix(|what| rates[what as usize])
            .map_or(Outcome::Nothing, |mix| Outcome::Turn(mix.matches_randomx()))
    }
}

/// Whether the plan counts every kind of operation the mix is made of.
#[must_use]
pub fn has_mix(plan: &Plan) -> bool {
    mix(|what| plan.has(what).then_some(1.0)).is_some()
}

/// The mix of what was counted: by five kinds, or by three.
fn mix(of: impl Fn(What) -> Option<f64>) -> Option<Mix> {
    let split = || {
        Some(Mix::Split {
            add: of(What::FpAdd)?,
            sub: of(What::FpSub)?,
            mul: of(What::FpMul)?,
            div: of(What::FpDiv)?,
            sqrt: of(What::FpSqrt)?,
        })
    };
    let merged = || {
        Some(Mix::Merged {
            add_sub: of(What::FpAddSub)?,
            mul: of(What::FpMul)?,
            div_sqrt: of(What::FpDivSqrt)?,
        })
    };
    split().or_else(merged)
}

/// How often a thread can give something up: the last plan is the pair alone.
fn given_up_max(plans: &[Plan]) -> u32 {
    u32::try_from(plans.len().saturating_sub(1)).unwrap_or(u32::MAX)
}

/// The events of a slice in their order in its group.
fn events(plan: &Plan, slice: usize) -> impl Iterator<Item = &Event> {
    PAIR.iter()
        .chain(plan.slices.get(slice).into_iter().flatten())
}

fn difference(now: &Counts, before: &Counts) -> Counts {
    let before_of = |index: usize| before.values.get(index).copied().unwrap_or(0);
    let time_enabled_ns = now.time_enabled_ns.saturating_sub(before.time_enabled_ns);
    Counts {
        time_enabled_ns,
        time_running_ns: now
            .time_running_ns
            .saturating_sub(before.time_running_ns)
            .min(time_enabled_ns),
        values: now
            .values
            .iter()
            .enumerate()
            .map(|(index, value)| value.saturating_sub(before_of(index)))
            .collect(),
    }
}
