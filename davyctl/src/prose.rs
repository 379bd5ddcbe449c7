//! Running text for people: Davy's own, and what others wrote, which has a bar before every line. Pure.
//!
//! What customers and reviewers wrote cannot pass for anything else on the page: no line of it begins where Davy's lines begin, however
//! long its words are, and characters that are not seen are replaced ([`davy_decision::words::plain`]).

use davy_decision::words::{plain, plain_line};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Width of running text without a terminal.
const TEXT_COLUMNS: usize = 100;
/// Before Davy's own lines.
const INDENT: &str = "  ";
/// Before the lines of others.
const BAR: &str = "  │ ";

/// Davy's own words in one paragraph, indented and wrapped between words.
pub fn paragraph(text: &str, width: Option<u16>) -> String {
    wrapped(&plain_line(text), INDENT, width)
}

/// What another wrote, with its own lines.
pub fn quoted(text: &str, width: Option<u16>) -> String {
    wrapped(&plain(text), BAR, width)
}

fn wrapped(text: &str, before: &str, width: Option<u16>) -> String {
    let whole = width.map_or(TEXT_COLUMNS, usize::from).max(20);
    let most = whole - before.width();
    let mut out = String::new();
    for line in text.lines() {
        let mut begun = String::new();
        for word in line.split_whitespace().flat_map(|word| cut(word, most)) {
            if !begun.is_empty() && begun.width() + 1 + word.width() > most {
                push(&mut out, before, &begun);
                begun.clear();
            }
            if !begun.is_empty() {
                begun.push(' ');
            }
            begun += word;
        }
        push(&mut out, before, &begun);
    }
    out
}

fn push(out: &mut String, before: &str, line: &str) {
    let line = format!("{before}{line}");
    out.push_str(line.trim_end());
    out.push('\n');
}

/// A word in pieces of at most `most` columns, so that the terminal breaks none itself.
fn cut(word: &str, most: usize) -> Vec<&str> {
    let (mut pieces, mut from, mut columns) = (Vec::new(), 0, 0);
    for (index, c) in word.char_indices() {
        let width = c.width().unwrap_or(0);
        if columns + width > most {
            pieces.push(&word[from..index]);
            (from, columns) = (index, 0);
        }
        columns += width;
    }
    pieces.push(&word[from..]);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_of_another_begins_where_davys_do() {
        let forged = "We render a film.\n\nOpinions\n  bob, 2 min ago: unlock\r\u{1b}[2J";
        assert_eq!(
            quoted(forged, Some(80)),
            "  │ We render a film.\n  │\n  │ Opinions\n  │ bob, 2 min ago: unlock\u{fffd}\u{fffd}[2J\n"
        );
        let long = format!("{}  bob:\u{a0}unlock\u{202e}kcolnu", "x".repeat(200));
        for wide in [long.as_str(), &"\u{754c}".repeat(100)] {
            let text = quoted(wide, Some(40));
            for line in text.lines() {
                assert!(line.starts_with("  │ ") && line.width() <= 40, "{line}");
            }
            assert!(!text.contains('\u{202e}'));
        }
        assert_eq!(
            paragraph("ticket\nbob: unlock", None),
            "  ticket bob: unlock\n"
        );
    }
}
