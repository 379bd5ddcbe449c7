//! Tables for people. Pure: the time and the terminal's width are arguments.
//!
//! In a narrow terminal the columns that matter least go first; what is left wraps within its cell, between words: where
//! not even the words fit, more columns go. Only words above [`WORD_CHARS_MAX`] are broken. Without a width (output to a file or a pipe) nothing is left out and nothing wraps.

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};

use crate::model::{Droplet, Droplets, FpRounding, Host, OneDroplet, Status, Window, percent};
use crate::waits;

const SECOND_NS: u64 = 1_000_000_000;
/// A tenant not seen for longer than this is told apart: three windows of the default 10 s, and some.
const STALE_NS: u64 = 60 * SECOND_NS;

/// Longest word (of a name or key, say) for which a column is kept wide enough, characters.
const WORD_CHARS_MAX: usize = 16;

pub(crate) const IF_WORDS_BREAK: u8 = 100;

pub(crate) struct Column {
    head: &'static str,
    /// Order in which columns are left out for want of room; from [`IF_WORDS_BREAK`] on only where otherwise not even
    /// the words would fit; `None`: never.
    drop: Option<u8>,
    right: bool,
}

pub(crate) const fn column(head: &'static str, drop: Option<u8>, right: bool) -> Column {
    Column { head, drop, right }
}

/// A table of at most `width` characters.
pub(crate) fn table(columns: &[Column], rows: &[Vec<String>], width: Option<u16>) -> String {
    let natural = |index: usize| {
        let cells = rows.iter().map(|row| row[index].chars().count());
        // One space on either side.
        cells
            .chain([columns[index].head.chars().count()])
            .max()
            .unwrap_or(0)
            + 2
    };
    let words = |index: usize| {
        let cells = rows.iter().map(|row| longest_word(&row[index]));
        cells
            .chain([longest_word(columns[index].head)])
            .max()
            .unwrap_or(0)
            .min(WORD_CHARS_MAX)
            + 2
    };
    let mut kept: Vec<usize> = (0..columns.len()).collect();
    let is_wider = |kept: &[usize], of: &dyn Fn(usize) -> usize| {
        let sum = kept.iter().map(|index| of(*index)).sum::<usize>();
        width.is_some_and(|width| sum > usize::from(width))
    };
    while let Some((order, least)) = kept
        .iter()
        .filter_map(|i| columns[*i].drop.map(|order| (order, *i)))
        .min()
    {
        let fits = if order < IF_WORDS_BREAK {
            !is_wider(&kept, &natural)
        } else {
            !is_wider(&kept, &words)
        };
        if fits {
            break;
        }
        kept.retain(|index| *index != least);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).force_no_tty();
    if let Some(width) = width {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width);
    } else {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table.set_header(kept.iter().map(|index| columns[*index].head));
    for row in rows {
        table.add_row(kept.iter().map(|index| row[*index].as_str()));
    }
    for (place, index) in kept.iter().enumerate() {
        if columns[*index].right
            && let Some(column) = table.column_mut(place)
        {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    if is_wider(&kept, &natural) {
        keep_words(&mut table);
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

fn longest_word(text: &str) -> usize {
    let words = text.split_whitespace().map(|word| word.chars().count());
    words.max().unwrap_or(0)
}

/// Keeps each column as wide as its longest word, up to [`WORD_CHARS_MAX`].
fn keep_words(table: &mut Table) {
    let mut longest: Vec<usize> = vec![0; table.column_count()];
    for row in table.header().into_iter().chain(table.row_iter()) {
        for (column, cell) in row.cell_iter().enumerate() {
            longest[column] = longest[column].max(longest_word(&cell.content()));
        }
    }
    for (column, chars) in table.column_iter_mut().zip(longest) {
        // With one space on either side.
        let width = u16::try_from(chars.min(WORD_CHARS_MAX) + 2).unwrap_or(u16::MAX);
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width)));
    }
}

/// Labels and values, the values wrapped.
pub(crate) fn list(rows: &[(String, String)], width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).force_no_tty();
    if let Some(width) = width {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width);
    }
    for (label, value) in rows {
        table.add_row([label, value]);
    }
    if width.is_some() {
        keep_words(&mut table);
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// How long ago, in the largest unit that says enough.
fn age(then_unix_ns: u64, now_unix_ns: u64) -> String {
    let seconds = now_unix_ns.saturating_sub(then_unix_ns) / SECOND_NS;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// [`age`] of times in ms.
pub(crate) fn age_ms(then_unix_ms: u64, now_unix_ms: u64) -> String {
    age(
        0,
        now_unix_ms
            .saturating_sub(then_unix_ms)
            .saturating_mul(1_000_000),
    )
}

fn cpu(window: &Window) -> String {
    let percent = window.cpu.as_ref().and_then(|cpu| cpu.percent_of_one_cpu);
    percent.map_or_else(|| "unknown".to_owned(), |percent| format!("{percent:.1} %"))
}

/// Shares of the rounding modes, or why there are none.
fn modes(fp: Option<&FpRounding>) -> String {
    let Some(fp) = fp else {
        return "unknown".to_owned();
    };
    if fp.samples == 0 {
        return match fp.state {
            "never_ran" => "never ran".to_owned(),
            "live" => "no samples".to_owned(),
            state => state.to_owned(),
        };
    }
    let shares: Vec<String> = fp
        .modes
        .iter()
        .map(|samples| match percent(*samples, fp.samples) {
            // Neither hides a few samples, nor claims that there are no others.
            Some(share) if *samples > 0 && share < 0.5 => "<1".to_owned(),
            Some(share) if *samples < fp.samples && share >= 99.5 => ">99".to_owned(),
            share => format!("{:.0}", share.unwrap_or(0.0)),
        })
        .collect();
    format!("{} %", shares.join("/"))
}

fn modes_in_full(fp: Option<&FpRounding>) -> String {
    match fp {
        Some(fp) if fp.samples > 0 => format!("{} of {} samples", modes(Some(fp)), fp.samples),
        fp => modes(fp),
    }
}

fn duty(fp: Option<&FpRounding>) -> String {
    match fp {
        Some(fp) if fp.concluded => format!("{:.0} %", fp.duty * 100.0),
        _ => "-".to_owned(),
    }
}

fn samples(fp: Option<&FpRounding>) -> String {
    fp.map_or_else(|| "unknown".to_owned(), |fp| fp.samples.to_string())
}

fn verdict(window: &Window) -> String {
    if window.verdict.families.is_empty() {
        window.verdict.level.to_owned()
    } else {
        format!(
            "{} ({})",
            window.verdict.level,
            window.verdict.families.join(", ")
        )
    }
}

/// `davyctl droplets`.
pub fn droplets(document: &Droplets, now_unix_ns: u64, width: Option<u16>) -> String {
    let Droplets { droplets, .. } = document;
    if droplets.is_empty() {
        return "No tenant matches. `davyctl status` shows which hosts report.\n".to_owned();
    }
    let stale =
        |droplet: &Droplet| now_unix_ns.saturating_sub(droplet.last_seen_unix_ns) > STALE_NS;
    let any_stale = droplets.iter().any(stale);
    let hosts_differ = droplets
        .iter()
        .any(|droplet| droplet.host != droplets[0].host);
    let columns = [
        column("HOST", Some(if hosts_differ { 7 } else { 3 }), false),
        column("TENANT", None, false),
        column("VCPUS", Some(2), true),
        column("CPU", Some(IF_WORDS_BREAK + 1), true),
        column("MODES 0/1/2/3", None, true),
        column("DUTY", Some(5), true),
        column("SAMPLES", Some(4), true),
        column("VERDICT", None, false),
        column("SINCE", Some(6), true),
        column("PLANNED", Some(IF_WORDS_BREAK), false),
        column("SEEN", Some(if any_stale { 8 } else { 1 }), true),
    ];
    let rows: Vec<Vec<String>> = droplets
        .iter()
        .map(|droplet| {
            let (window, fp) = (&droplet.window, droplet.window.fp_rounding.as_ref());
            vec![
                droplet.host.clone(),
                window.title().to_owned(),
                window.vcpus.to_string(),
                cpu(window),
                modes(fp),
                duty(fp),
                samples(fp),
                verdict(window),
                age(droplet.verdict_since_unix_ns, now_unix_ns),
                droplet.planned.clone(),
                format!("{} ago", age(droplet.last_seen_unix_ns, now_unix_ns)),
            ]
        })
        .collect();
    let count = |level: &str| {
        droplets
            .iter()
            .filter(|droplet| droplet.window.verdict.level == level)
            .count()
    };
    let noun = if droplets.len() == 1 {
        "tenant"
    } else {
        "tenants"
    };
    let mut text = table(&columns, &rows, width);
    text += &format!(
        "\n{} {noun}: {} mining, {} suspect, {} quiet",
        droplets.len(),
        count("mining"),
        count("suspect"),
        count("quiet")
    );
    let stale = droplets.iter().filter(|droplet| stale(droplet)).count();
    if stale > 0 {
        text += &format!("; {stale} not seen for over a minute");
    }
    text.push('\n');
    text
}

/// `davyctl droplet`.
pub fn droplet(document: &OneDroplet, now_unix_ns: u64, width: Option<u16>) -> String {
    let OneDroplet {
        droplet, history, ..
    } = document;
    let (window, fp) = (&droplet.window, droplet.window.fp_rounding.as_ref());
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut rows = vec![
        ("Host", droplet.host.clone()),
        ("Key", window.key.clone()),
        ("Name", or_dash(&window.name)),
        ("Droplet id", or_dash(&window.droplet_id)),
        ("Kind", window.kind.unwrap_or("unknown").to_owned()),
        ("VMM", or_dash(&window.vmm)),
        ("vCPUs", window.vcpus.to_string()),
        (
            "Window",
            format!(
                "{} s, ended {} ago",
                seconds(window.window_ns),
                age(droplet.last_seen_unix_ns, now_unix_ns)
            ),
        ),
        (
            "First seen",
            format!("{} ago", age(droplet.first_seen_unix_ns, now_unix_ns)),
        ),
        ("CPU", cpu_in_full(window)),
        (
            "Waited behind",
            waits::in_words(window.waits.as_ref(), &window.key, window.window_ns),
        ),
        ("Modes 0/1/2/3", modes_in_full(fp)),
        ("Duty", duty(fp)),
        (
            "Verdict",
            format!(
                "{}, for {}",
                verdict(window),
                age(droplet.verdict_since_unix_ns, now_unix_ns)
            ),
        ),
        ("Planned", droplet.planned.clone()),
    ];
    if let Some(pmu) = &window.pmu {
        let after_duty = rows.iter().position(|(label, _)| *label == "Verdict");
        rows.insert(
            after_duty.unwrap_or(rows.len()),
            ("Counters", pmu.in_words()),
        );
    }
    for (number, reason) in window.verdict.reasons.iter().enumerate() {
        rows.push((if number == 0 { "Reasons" } else { "" }, reason.clone()));
    }
    let rows: Vec<(String, String)> = rows
        .into_iter()
        .map(|(label, value)| (label.to_owned(), value))
        .collect();
    let mut text = list(&rows, width);
    if !history.is_empty() {
        text.push('\n');
        text += &history_table(document, now_unix_ns, width);
    }
    text
}

/// A length of time, s, without needless decimals.
fn seconds(ns: u64) -> String {
    if ns.is_multiple_of(SECOND_NS) {
        (ns / SECOND_NS).to_string()
    } else {
        format!(
            "{}.{:01}",
            ns / SECOND_NS,
            ns % SECOND_NS / (SECOND_NS / 10)
        )
    }
}

fn cpu_in_full(window: &Window) -> String {
    let Some(figures) = &window.cpu else {
        return "unknown".to_owned();
    };
    let share = |ns| {
        percent(ns, window.window_ns)
            .map_or_else(|| "unknown".to_owned(), |share| format!("{share:.1} %"))
    };
    let polled = figures
        .halt_poll_ns
        .map_or_else(String::new, |ns| format!(", polled in halts {}", share(ns)));
    format!(
        "{} of one CPU by {} threads (vCPUs {}, in the guest {}{polled}), waited {}; switches: {} voluntary, {} involuntary",
        cpu(window),
        figures.threads,
        share(figures.vcpu_on_cpu_ns),
        share(figures.guest_ns),
        share(figures.run_queue_wait_ns),
        figures.voluntary_switches,
        figures.involuntary_switches
    )
}

fn history_table(document: &OneDroplet, now_unix_ns: u64, width: Option<u16>) -> String {
    let columns = [
        column("ENDED", None, true),
        column("SPAN", Some(1), true),
        column("CPU", Some(IF_WORDS_BREAK + 1), true),
        column("MODES 0/1/2/3", None, true),
        column("SAMPLES", Some(3), true),
        column("DUTY", Some(2), true),
        column("VERDICT", None, false),
    ];
    let rows: Vec<Vec<String>> = document
        .history
        .iter()
        .map(|entry| {
            let (window, fp) = (&entry.window, entry.window.fp_rounding.as_ref());
            vec![
                format!("{} ago", age(entry.end_unix_ns, now_unix_ns)),
                format!("{} s", seconds(window.window_ns)),
                cpu(window),
                modes(fp),
                samples(fp),
                duty(fp),
                verdict(window),
            ]
        })
        .collect();
    table(&columns, &rows, width)
}

/// `davyctl status`.
pub fn status(document: &Status, now_unix_ns: u64, width: Option<u16>) -> String {
    let Status {
        hosts,
        rejected,
        duplicates,
        ..
    } = document;
    let mut text = if hosts.is_empty() {
        "No host has reported yet: start `davy-agent run` on one.\n".to_owned()
    } else {
        host_table(hosts, now_unix_ns, width)
    };
    let silent: Vec<(String, String)> = hosts
        .iter()
        .flat_map(|host| host.sensors.iter().map(move |sensor| (host, sensor)))
        .filter(|(_, sensor)| matches!(sensor.state, "unsupported" | "unknown"))
        .map(|(host, sensor)| {
            let reason = sensor
                .reason
                .as_ref()
                .map_or_else(String::new, |reason| format!(": {reason}"));
            (
                format!("{} {}", host.host, sensor.sensor),
                format!("{}{reason}", sensor.state),
            )
        })
        .collect();
    if !silent.is_empty() {
        text += "\nSensors that cannot measure:\n";
        text += &list(&silent, width);
    }
    let refused: Vec<String> = rejected
        .iter()
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    let refused = if refused.is_empty() {
        "none".to_owned()
    } else {
        refused.join(", ")
    };
    text += &format!("\nSince the detector's start: rejected {refused}; duplicates {duplicates}\n");
    text
}

fn host_table(hosts: &[Host], now_unix_ns: u64, width: Option<u16>) -> String {
    let columns = [
        column("HOST", None, false),
        column("AGENT", None, false),
        column("VERSION", Some(2), false),
        column("KERNEL", Some(1), false),
        column("WINDOWS", Some(IF_WORDS_BREAK), true),
        column("LOST", None, true),
        column("SENSORS LIVE", Some(3), true),
        column("SEEN", Some(IF_WORDS_BREAK + 1), true),
    ];
    let rows: Vec<Vec<String>> = hosts
        .iter()
        .map(|host| {
            let live = host
                .sensors
                .iter()
                .filter(|sensor| sensor.state == "live")
                .count();
            vec![
                host.host.clone(),
                if host.connected { "connected" } else { "gone" }.to_owned(),
                host.agent_version.clone(),
                host.kernel_release.clone(),
                host.windows.to_string(),
                host.lost_windows.to_string(),
                format!("{live} of {}", host.sensors.len()),
                format!("{} ago", age(host.last_seen_unix_ns, now_unix_ns)),
            ]
        })
        .collect();
    table(&columns, &rows, width)
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
