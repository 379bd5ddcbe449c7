//! The files of the repository, and Rust source without its comments and literals.
//!
//! The scanner knows line and nested block comments, strings, raw strings, byte strings, characters and
//! lifetimes: enough to tell code from text. It does not parse.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::shell;

/// One text file of the repository.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// Path below the repository's root, with `/`.
    pub path: String,
    /// Its content.
    pub text: String,
}

impl SourceFile {
    /// Whether it is Rust.
    pub fn is_rust(&self) -> bool {
        Path::new(&self.path)
            .extension()
            .is_some_and(|extension| extension == "rs")
    }
}

/// Every text file that git tracks or would track, in the order of their paths.
///
/// # Errors
/// If git cannot list them, or one cannot be read.
pub fn tracked() -> Result<Vec<SourceFile>> {
    let root = shell::root()?;
    // On build machines a clone may belong to another user: git lists it only when told that it is safe.
    let listed = shell::capture(
        "git",
        &[
            "-c",
            "safe.directory=*",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ],
    )
    .context("git cannot list the repository's files: the source rules need git and a clone")?;
    let mut paths: Vec<&str> = listed.split('\0').filter(|path| !path.is_empty()).collect();
    paths.sort_unstable();
    paths.dedup();
    let mut files = Vec::new();
    for path in paths {
        let whole = root.join(path);
        // Tracked and deleted in the work tree.
        if !whole.is_file() {
            continue;
        }
        let bytes = fs::read(&whole).with_context(|| format!("cannot read {path}"))?;
        // What is not UTF-8 is no text of ours.
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(SourceFile {
                path: path.to_owned(),
                text,
            });
        }
    }
    if files.is_empty() {
        bail!("git lists no file here: the source rules need the repository");
    }
    Ok(files)
}

/// Rust source with comments and the insides of literals replaced by spaces, line for line.
pub fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = text_end(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(
                chars[at..end]
                    .iter()
                    .map(|&c| if c == '\n' { '\n' } else { ' ' }),
            );
            at = end;
        }
    }
    out
}

/// The end of the comment or literal that begins at `at`; `at` itself if none does.
fn text_end(chars: &[char], at: usize) -> usize {
    let next = chars.get(at + 1).copied();
    match chars[at] {
        '/' if next == Some('/') => find(chars, at, |c| c == '\n'),
        '/' if next == Some('*') => block_comment_end(chars, at),
        '"' => string_end(chars, at + 1),
        'r' | 'b' | 'c' if !continues_a_name(chars, at) => prefixed_string_end(chars, at),
        '\'' => character_end(chars, at),
        _ => at,
    }
}

fn find(chars: &[char], from: usize, wanted: impl Fn(char) -> bool) -> usize {
    chars[from..]
        .iter()
        .position(|&c| wanted(c))
        .map_or(chars.len(), |n| from + n)
}

fn continues_a_name(chars: &[char], at: usize) -> bool {
    at > 0 && is_name(chars[at - 1])
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at.min(chars.len())
}

fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// `r"…"`, `r#"…"#`, `b"…"`, `br"…"`, `c"…"`, `cr"…"`; `start` itself for a name such as `raw` or `r#type`.
fn prefixed_string_end(chars: &[char], start: usize) -> usize {
    let letters = find(chars, start, |c| !matches!(c, 'r' | 'b' | 'c'));
    let raw = chars[start..letters].contains(&'r');
    let quote = if raw {
        find(chars, letters, |c| c != '#')
    } else {
        letters
    };
    if letters - start > 2 || chars.get(quote) != Some(&'"') {
        return start;
    }
    if !raw {
        return string_end(chars, quote + 1);
    }
    let hashes = quote - letters;
    let mut at = quote + 1;
    while at < chars.len() {
        let closing = chars[at] == '"'
            && chars[at + 1..]
                .iter()
                .take(hashes)
                .filter(|&&c| c == '#')
                .count()
                == hashes;
        if closing {
            return at + 1 + hashes;
        }
        at += 1;
    }
    chars.len()
}

/// `'x'`, `'\n'`, `'\u{…}'`; `start` itself for a lifetime.
fn character_end(chars: &[char], start: usize) -> usize {
    match (chars.get(start + 1), chars.get(start + 2)) {
        (Some('\\'), Some(_)) => (find(chars, start + 3, |c| c == '\'') + 1).min(chars.len()),
        (Some(_), Some('\'')) => start + 3,
        _ => start,
    }
}

/// Whether `text` contains `word` with no letter, digit or underscore right before or after it.
pub fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_name) && !after.is_some_and(is_name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_vanish_and_code_stays() {
        for (source, gone, kept) in [
            ("a(); // unsafe\nb();", "unsafe", "b();"),
            ("a(); /* x /* unsafe */ unsafe */ b();", "unsafe", "b();"),
            (r#"a("unsafe \" unsafe"); b();"#, "unsafe", "); b();"),
            ("a(r#\"unsafe \" unsafe\"#); b();", "unsafe", "); b();"),
            ("a(b\"unsafe\", c\"unsafe\"); b();", "unsafe", "); b();"),
            (
                "if c == '\"' { unsafe_free() } // \"",
                "//",
                "unsafe_free()",
            ),
            ("if c == '\\'' { d() }", "\\", "d()"),
            ("fn f<'a>(x: &'a str) { g() }", "\"", "'a str) { g() }"),
            ("let r#type = raw; // x", "x", "r#type = raw;"),
        ] {
            let code = code_only(source);
            assert!(!code.contains(gone), "{source} gave {code}");
            assert!(code.contains(kept), "{source} gave {code}");
            assert_eq!(code.lines().count(), source.lines().count());
        }
    }

    #[test]
    fn unended_text_ends_with_the_file() {
        for source in ["\"abc", "/* abc", "r#\"abc", "// abc", "'\\", "\"abc\\"] {
            code_only(source);
        }
        assert_eq!(code_only("\"abc").trim(), "");
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("unsafe {", "unsafe"));
        assert!(has_word("#[unsafe(no_mangle)]", "unsafe"));
        assert!(!has_word("unsafe_op_in_unsafe_fn", "unsafe"));
    }
}
