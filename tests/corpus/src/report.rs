//! The tables of `docs/detection.md`, from the judged recordings. Pure.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use davy_evidence::{
    Level, MINING_DUTY,
    sequential::{SAMPLES_PER_S_MAX, false_conclusions_per_million_vm_days},
};

use crate::{
    catalogue::{Label, Set},
    recording::Recording,
    score::{Detector, Outcome, Scored, interval, judge},
};

/// Before the tables.
pub const BEGIN: &str = "<!-- begin: written by `cargo xtask corpus score` -->";
/// After them.
pub const END: &str = "<!-- end: written by `cargo xtask corpus score` -->";

const LABELS: [Label; 3] = [Label::Mining, Label::Honest, Label::LookAlike];
const SETS: [Set; 2] = [Set::Tune, Set::Score];
/// Threads of a VM, for the error rate: as in `davy_evidence::sequential`.
const VM_THREADS: f64 = 64.0;

/// Judges every recording anew.
///
/// # Errors
/// If one is malformed.
pub fn score(recordings: &[Recording]) -> Result<Vec<Scored>> {
    recordings
        .iter()
        .map(|recording| {
            Ok(Scored {
                entry: recording.entry.clone(),
                outcome: judge(&recording.document()?),
            })
        })
        .collect()
}

/// The page with its tables replaced.
///
/// # Errors
/// If the page has not both marks, in order.
pub fn put(page: &str, tables: &str) -> Result<String> {
    let (before, rest) = page
        .split_once(BEGIN)
        .with_context(|| format!("docs/detection.md has no line `{BEGIN}`"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("docs/detection.md has no line `{END}` after the other"))?;
    Ok(format!(
        "{before}{BEGIN}\n\n{}\n{END}{after}",
        tables.trim_end()
    ))
}

/// All tables.
#[must_use]
pub fn tables(scored: &[Scored]) -> String {
    [
        verdicts(scored),
        detectors(scored),
        times(scored),
        false_rates(scored),
        misses(scored),
        surprises(scored),
        everything(scored),
    ]
    .join("\n")
}

fn table(title: &str, head: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("### {title}\n\n| {} |\n", head.join(" | "));
    text += &format!("|{}\n", "---|".repeat(head.len()));
    for row in rows {
        text += &format!("| {} |\n", row.join(" | "));
    }
    text
}

fn verdicts(scored: &[Scored]) -> String {
    let mut rows = Vec::new();
    for set in SETS {
        for label in LABELS {
            let of: Vec<_> = scored.iter().filter(|s| s.is(Some(set), label)).collect();
            let at_end = |level| {
                of.iter()
                    .filter(|s| s.outcome.at_end.level == level)
                    .count()
            };
            let higher = |s: &&&Scored| s.outcome.highest > s.outcome.at_end.level;
            let mut row = vec![set.to_string(), label.to_string(), of.len().to_string()];
            row.extend(
                [Level::Quiet, Level::Suspect, Level::Mining].map(|l| at_end(l).to_string()),
            );
            row.push(of.iter().filter(higher).count().to_string());
            row.push(
                of.iter()
                    .filter(|s| !s.outcome.enough_samples)
                    .count()
                    .to_string(),
            );
            let as_one = |level| {
                of.iter()
                    .filter(|s| s.outcome.highest_as_one_vcpu == level)
                    .count()
            };
            row.push(
                [Level::Quiet, Level::Suspect, Level::Mining]
                    .map(|l| as_one(l).to_string())
                    .join(" / "),
            );
            row.push(
                of.iter()
                    .filter(|s| !s.outcome.enough_as_one_vcpu)
                    .count()
                    .to_string(),
            );
            rows.push(row);
        }
    }
    table(
        "Verdicts",
        &[
            "set",
            "label",
            "recordings",
            "`quiet`",
            "`suspect`",
            "`mining`",
            "higher on the way",
            "too few samples",
            "as one vCPU, highest: quiet / suspect / mining",
            "as one vCPU: too few",
        ],
        &rows,
    )
}

/// Whether a detector is there to find this one.
fn meant(detector: Detector, scored: &Scored) -> bool {
    let percent = scored.entry.randomx_percent;
    match detector {
        Detector::FpRounding | Detector::RandomDirected => percent.is_some(),
        Detector::RandomAny | Detector::RandomGeneral | Detector::Suspect => {
            scored.entry.label == Label::Mining
        }
        Detector::Mining => {
            percent.is_some_and(|percent| f64::from(percent) >= MINING_DUTY * 100.0)
        }
    }
}

/// Whether a recording says anything of a detector: what it did not find in too few samples may be there.
fn tells(detector: Detector, scored: &Scored) -> bool {
    scored.fired(detector) || scored.outcome.enough_samples
}

fn detectors(scored: &[Scored]) -> String {
    let mut rows = Vec::new();
    for detector in Detector::ALL {
        for set in [Some(SETS[0]), Some(SETS[1]), None] {
            let in_set = |s: &&Scored| set.is_none_or(|set| s.entry.set == set);
            let share = |of: &dyn Fn(&Scored) -> bool| {
                let (mut hits, mut all) = (0, 0);
                for one in scored.iter().filter(in_set).filter(|s| of(s)) {
                    all += 1;
                    hits += usize::from(one.fired(detector));
                }
                let (low, high) = interval(hits, all);
                format!("{hits} of {all} ({:.0}–{:.0} %)", low * 100.0, high * 100.0)
            };
            rows.push(vec![
                detector.name().to_owned(),
                set.map_or("both".to_owned(), |set| set.to_string()),
                share(&|s| meant(detector, s)),
                share(&|s| s.entry.label == Label::Honest && tells(detector, s)),
                share(&|s| s.entry.label == Label::LookAlike && tells(detector, s)),
            ]);
        }
    }
    let head = [
        "test",
        "set",
        "true positives",
        "false positives, honest",
        "look-alikes",
    ];
    let mut text = table("By sensor", &head, &rows);
    text += "\nCounted is what fired **at the end of any window**, not only at the trial's end. In brackets: 95 % confidence intervals \
             (Wilson's; of none or all: one-sided, the rule of three), as if programs were drawn at random from those that customers run, \
             which they are not. True positives: of `fp_rounding` and of random registers outside mode 0 among the RandomX miners; of \
             `mining` among those that were told to use at least 25 % of one CPU; of the others among all miners. Honest ones and look-alikes \
             with too few samples, in which nothing fired, are left out: they say nothing.\n";
    text
}

fn times(scored: &[Scored]) -> String {
    let mut rows = Vec::new();
    let mut row = |what: &str, detector: Detector, of: &dyn Fn(&Scored) -> bool| {
        let of: Vec<_> = scored.iter().filter(|s| of(s)).collect();
        let mut times: Vec<f64> = of
            .iter()
            .filter_map(|s| s.outcome.first_s.get(&detector).copied())
            .collect();
        times.sort_by(f64::total_cmp);
        let at = |index: Option<usize>| {
            index
                .and_then(|index| times.get(index))
                .map_or("–".to_owned(), |s| format!("{s:.0} s"))
        };
        let median = (!times.is_empty()).then(|| (times.len() - 1) / 2);
        rows.push(vec![
            what.to_owned(),
            detector.name().to_owned(),
            format!("{} of {}", times.len(), of.len()),
            at(median),
            at(times.len().checked_sub(1)),
        ]);
    };
    let percent = |s: &Scored| s.entry.randomx_percent;
    for detector in [
        Detector::FpRounding,
        Detector::RandomAny,
        Detector::RandomDirected,
        Detector::RandomGeneral,
        Detector::Suspect,
        Detector::Mining,
    ] {
        row("RandomX, from 25 % of one CPU", detector, &|s| {
            percent(s).is_some_and(|p| p >= 25)
        });
    }
    row("RandomX, below that", Detector::Suspect, &|s| {
        percent(s).is_some_and(|p| p < 25)
    });
    for detector in [
        Detector::RandomAny,
        Detector::RandomGeneral,
        Detector::Suspect,
    ] {
        row("other hashing", detector, &|s| {
            s.entry.label == Label::Mining && percent(s).is_none()
        });
    }
    for (what, label) in [("look-alikes", Label::LookAlike), ("honest", Label::Honest)] {
        row(what, Detector::Suspect, &|s| s.entry.label == label);
    }
    table(
        "Time to the verdict",
        &[
            "what",
            "test or verdict",
            "reached",
            "median of those",
            "longest",
        ],
        &rows,
    ) + "\nFrom the program's start, its set-up included, under 20 nudges a second, in windows of 1 s. \
           The daemon's windows are of 10 s and it nudges less until evidence forms.\n"
}

fn false_rates(scored: &[Scored]) -> String {
    let honest = |s: &&Scored| s.entry.label != Label::Mining;
    let hours: f64 = scored
        .iter()
        .filter(honest)
        .map(|s| s.outcome.seconds / 3600.0)
        .sum();
    let cpu_hours: f64 = scored
        .iter()
        .filter(honest)
        .map(|s| s.outcome.cpu_seconds / 3600.0)
        .sum();
    let count = |level| {
        scored
            .iter()
            .filter(honest)
            .filter(|s| s.outcome.highest >= level)
            .count()
    };
    let of = |label| scored.iter().filter(|s| s.entry.label == label).count();
    let plain_suspect = scored
        .iter()
        .filter(|s| s.entry.label == Label::Honest && s.outcome.highest >= Level::Suspect)
        .count();
    let bound = |events: f64, hours: f64| events / hours * 24.0;
    let mining = count(Level::Mining);
    let corpus = if mining == 0 {
        format!(
            "none was ever `mining`, so by the rule of three, and if these programs stood for what customers run, at most \
             {:.0} million false `mining` per million VM-days, that is, nearly anything",
            bound(3.0, hours)
        )
    } else {
        format!("{mining} were `mining` at some time: the rule is wrong about them")
    };
    format!(
        "### False verdicts per million VM-days\n\n\
         - **By the corpus**: {} honest recordings and {} look-alikes were watched for {hours:.2} h ({cpu_hours:.2} h of CPU time); {corpus}. \
         Honest ones that were `suspect` at some time: {plain_suspect}. That bound is no assurance: {hours:.2} h are too few to say anything about a million days. \
         It is stated so that nobody takes the next figure for a measurement.\n\
         - **By the tests' own arithmetic**: at most {:.2} false conclusions of each test per million VM-days, **if** a VM has {VM_THREADS:.0} threads that each \
         give {SAMPLES_PER_S_MAX:.0} samples a second around the clock, each thread is at the very edge of the null hypothesis (0.1 % of samples in its rarest rounding mode; 40 % \
         of samples random), and samples are **independent**. The first two overstate; independence does not hold for a program that works in phases longer than \
         the time between samples, and such a program may well exceed the bound. `mining` needs two tests to conclude wrongly at once, and is rarer than either.\n",
        of(Label::Honest),
        of(Label::LookAlike),
        false_conclusions_per_million_vm_days(VM_THREADS, SAMPLES_PER_S_MAX),
    )
}

fn percent(share: f64) -> String {
    if share.is_nan() {
        "–".to_owned()
    } else {
        format!("{:.1} %", share * 100.0)
    }
}

fn modes(scored: &Scored) -> String {
    let shares = scored.outcome.mode_shares;
    if shares[0].is_nan() {
        return "–".to_owned();
    }
    shares
        .map(|share| format!("{:.0}", share * 100.0))
        .join("/")
}

fn level(level: Level, enough_samples: bool) -> String {
    let few = if enough_samples || level > Level::Quiet {
        ""
    } else {
        ", too few samples"
    };
    format!("{level}{few}")
}

fn as_one(scored: &Scored) -> String {
    let Outcome {
        highest_as_one_vcpu,
        enough_as_one_vcpu,
        ..
    } = scored.outcome;
    level(highest_as_one_vcpu, enough_as_one_vcpu)
}

fn figures(scored: &Scored) -> Vec<String> {
    vec![
        scored.entry.name.clone(),
        level(scored.outcome.at_end.level, scored.outcome.enough_samples),
        scored.outcome.highest.to_string(),
        as_one(scored),
        percent(scored.outcome.random_share),
        percent(scored.outcome.general_share),
        modes(scored),
    ]
}

const FIGURES: [&str; 7] = [
    "recording",
    "verdict",
    "highest",
    "as one vCPU",
    "random vectors",
    "random general",
    "modes 0/1/2/3, %",
];

fn listed(title: &str, none: &str, of: Vec<&Scored>) -> String {
    if of.is_empty() {
        return format!("### {title}\n\n{none}\n");
    }
    let rows: Vec<_> = of.into_iter().map(figures).collect();
    table(title, &FIGURES, &rows)
}

fn misses(scored: &[Scored]) -> String {
    let missed = |s: &&Scored| {
        let should = if meant(Detector::Mining, s) {
            Level::Mining
        } else {
            Level::Suspect
        };
        s.entry.label == Label::Mining && s.outcome.at_end.level < should
    };
    listed(
        "Misses: miners below the verdict they should get",
        "None.",
        scored.iter().filter(missed).collect(),
    )
}

fn surprises(scored: &[Scored]) -> String {
    let surprising = |s: &&Scored| {
        s.entry.label == Label::Honest
            && s.outcome.highest.max(s.outcome.highest_as_one_vcpu) > Level::Quiet
    };
    listed(
        "Honest programs that were not `quiet` at some time, as they are or as one vCPU",
        "None.",
        scored.iter().filter(surprising).collect(),
    )
}

fn everything(scored: &[Scored]) -> String {
    let rows: Vec<_> = scored
        .iter()
        .map(|s| {
            let mut row = figures(s);
            row.splice(1..1, [s.entry.label.to_string(), s.entry.set.to_string()]);
            let mut cpu = String::new();
            // Writing to a String cannot fail.
            let _ = write!(
                cpu,
                "{:.1} of {:.0} s",
                s.outcome.cpu_seconds, s.outcome.seconds
            );
            row.push(cpu);
            row.extend([Detector::Suspect, Detector::Mining].map(|verdict| {
                let first = s.outcome.first_s.get(&verdict);
                first.map_or("–".to_owned(), |s| format!("{s:.0} s"))
            }));
            row
        })
        .collect();
    let mut head = FIGURES.to_vec();
    head.splice(1..1, ["label", "set"]);
    head.extend(["CPU time", "`suspect` after", "`mining` after"]);
    table("Every recording", &head, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_go_between_the_marks() {
        let page = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let once = put(&page, "new\n").unwrap();
        assert_eq!(once, format!("a\n{BEGIN}\n\nnew\n{END}\nb\n"));
        assert_eq!(put(&once, "new\n").unwrap(), once);
        assert!(put("no marks", "new").is_err());
    }
}
