//! The report, for people (Markdown tables, as they stand in `docs/performance.md`) and for machines.

use std::fmt;

use comfy_table::{Cell, CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::Serialize;

use crate::{
    daemon, events,
    figures::Spread,
    machine::Machine,
    pipe::{self, Placement, Variant},
};

/// Everything measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// On what.
    pub machine: Machine,
    /// BPF run time per switch.
    pub events: Vec<events::Row>,
    /// `perf bench sched pipe`.
    pub pipe: Vec<pipe::Row>,
    /// The agent.
    pub daemon: Vec<daemon::Row>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine {
            cpu,
            cpus,
            is_virtual,
            kernel,
            clock_source,
        } = &self.machine;
        let kind = if *is_virtual {
            "virtual machine"
        } else {
            "bare metal"
        };
        writeln!(
            f,
            "{cpu}, {cpus} CPUs, {kind}, Linux {kernel}, clock source {clock_source}."
        )?;
        writeln!(
            f,
            "Median of the rounds, and in brackets the middle half of them.\n"
        )?;
        writeln!(f, "BPF run time per `sched_switch`:\n\n{}\n", self.events())?;
        writeln!(f, "`perf bench sched pipe`:\n\n{}\n", self.pipe())?;
        writeln!(f, "The agent:\n\n{}", self.daemon())
    }
}

impl Report {
    fn events(&self) -> Table {
        let mut table = table(&[
            "thread",
            "empty, ns",
            "davy, ns",
            "ratio",
            "goal",
            "rounds",
            "share of runs",
            "looks per switch",
            "random per look",
        ]);
        for row in &self.events {
            table.add_row(cells([
                row.name.to_owned(),
                spread(Some(row.empty_ns), 0),
                spread(row.davy_ns, 0),
                spread(row.ratio, 2),
                goal(row.ratio, row.goal, ""),
                row.empty_ns.rounds.to_string(),
                number(row.share_of_runs, 2),
                number(row.looks_per_switch, 2),
                number(row.random_per_look, 2),
            ]));
        }
        table
    }

    fn pipe(&self) -> Table {
        let mut table = table(&[
            "CPUs",
            "beside it",
            "µs per operation",
            "slower, %",
            "goal",
            "rounds",
        ]);
        for row in &self.pipe {
            let placement = match row.placement {
                Placement::AllCpus => "all",
                Placement::OneCpu => "one",
            };
            let variant = match row.variant {
                Variant::Without => "nothing",
                Variant::Attached => "kernel half, benchmark unwatched",
                Variant::Agent => "the agent, benchmark unwatched",
                Variant::Watched => "kernel half, benchmark watched",
            };
            table.add_row(cells([
                placement.to_owned(),
                variant.to_owned(),
                spread(Some(row.operation_us), 3),
                spread(row.slower_percent, 1),
                goal(row.slower_percent, row.goal_percent, " %"),
                row.operation_us.rounds.to_string(),
            ]));
        }
        table
    }

    fn daemon(&self) -> Table {
        let mut table = table(&[
            "threads",
            "user CPU, %",
            "user and system CPU, %",
            "RSS, MiB",
            "over, s",
        ]);
        for row in &self.daemon {
            table.add_row(cells([
                row.threads.to_string(),
                number(Some(row.user_percent), 2),
                number(Some(row.cpu_percent), 2),
                number(Some(row.resident_bytes / f64::from(1 << 20)), 1),
                number(Some(row.seconds), 0),
            ]));
        }
        table
    }
}

fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(heads.iter().copied());
    table
}

fn cells<const N: usize>(texts: [String; N]) -> Vec<Cell> {
    texts
        .into_iter()
        .map(|text| {
            let is_number = text.starts_with(|c: char| c.is_ascii_digit() || c == '-');
            let alignment = if is_number {
                CellAlignment::Right
            } else {
                CellAlignment::Left
            };
            Cell::new(text).set_alignment(alignment)
        })
        .collect()
}

/// `median (lower to upper quartile)`.
fn spread(spread: Option<Spread>, decimals: usize) -> String {
    spread.map_or_else(String::new, |s| {
        format!(
            "{:.decimals$} ({:.decimals$} to {:.decimals$})",
            s.median, s.lower_quartile, s.upper_quartile
        )
    })
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(String::new, |value| format!("{value:.decimals$}"))
}

fn goal(found: Option<Spread>, goal: Option<f64>, unit: &str) -> String {
    let (Some(found), Some(goal)) = (found, goal) else {
        return String::new();
    };
    let outcome = if found.median <= goal {
        "met"
    } else {
        "missed"
    };
    format!("≤ {goal}{unit}: {outcome}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPREAD: Spread = Spread {
        median: 2.0,
        lower_quartile: 1.25,
        upper_quartile: 3.0,
        rounds: 4,
    };

    #[test]
    fn figures_stand_with_their_spread() {
        assert_eq!(spread(Some(SPREAD), 1), "2.0 (1.2 to 3.0)");
        assert_eq!(spread(None, 1), "");
    }

    #[test]
    fn a_goal_is_met_or_missed() {
        assert_eq!(goal(Some(SPREAD), Some(2.5), ""), "≤ 2.5: met");
        assert_eq!(goal(Some(SPREAD), Some(1.5), " %"), "≤ 1.5 %: missed");
        assert_eq!(goal(None, Some(1.5), ""), "");
        assert_eq!(goal(Some(SPREAD), None, ""), "");
    }
}
