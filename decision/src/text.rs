//! Whether a reason was written for its case: copies and near-copies of earlier texts are refused.
//!
//! Two texts are near-copies if the Jaccard similarity of their shingles, five words in a row, is at least 0.8 (A. Broder, "On the
//! resemblance and containment of documents", 1997). Case, punctuation and spaces do not count. A text of fewer than five words says
//! too little to be a reason at all.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Words in a shingle.
const SHINGLE_WORDS: usize = 5;
/// Texts as similar as this are copies, in hundredths.
const COPY_PERCENT: usize = 80;
/// Least words of a reason.
pub const WORDS_MIN: usize = 8;
/// Longest text, bytes.
pub const TEXT_BYTES_MAX: usize = 16 << 10;

/// A person's reason, in their own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reason(String);

/// Why a text is no reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReasonError {
    /// Too short, or too long.
    #[error(
        "a reason has at least {WORDS_MIN} words and at most {TEXT_BYTES_MAX} bytes; this one has {words} words and {bytes} bytes"
    )]
    Length {
        /// Its words.
        words: usize,
        /// Its bytes.
        bytes: usize,
    },
    /// A copy of another one.
    #[error(
        "{percent} % of this text stands in {of}: write what you saw in this case, in your own words"
    )]
    Copy {
        /// How similar.
        percent: usize,
        /// Which one.
        of: String,
    },
}

impl Reason {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Refuses a text that is a copy or near-copy of one of `earlier`, each with its name.
    ///
    /// # Errors
    /// [`ReasonError::Copy`].
    pub fn is_own<'a>(
        &self,
        earlier: impl IntoIterator<Item = (&'a str, &'a Self)>,
    ) -> Result<(), ReasonError> {
        let own = shingles(&self.0);
        for (name, other) in earlier {
            let percent = similarity_percent(&own, &shingles(&other.0));
            if percent >= COPY_PERCENT {
                return Err(ReasonError::Copy {
                    percent,
                    of: name.to_owned(),
                });
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for Reason {
    type Error = ReasonError;

    fn try_from(text: String) -> Result<Self, ReasonError> {
        let (words, bytes) = (words(&text).len(), text.len());
        if words < WORDS_MIN || bytes > TEXT_BYTES_MAX {
            return Err(ReasonError::Length { words, bytes });
        }
        Ok(Self(text))
    }
}

impl From<Reason> for String {
    fn from(reason: Reason) -> Self {
        reason.0
    }
}

/// Letters and digits in a row, in lower case. Of scripts that put no space between words each sign is one.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for c in text.chars() {
        let alone = is_written_without_spaces(c);
        if alone || !c.is_alphanumeric() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| c.is_alphanumeric()) {
            word.extend(c.to_lowercase());
        }
        if alone {
            words.push(String::new());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Thai to Khmer, kana, and Han, by the blocks of Unicode 16.
const fn is_written_without_spaces(c: char) -> bool {
    matches!(
        c,
        '\u{e00}'..='\u{eff}'
            | '\u{1000}'..='\u{109f}'
            | '\u{1780}'..='\u{17ff}'
            | '\u{3040}'..='\u{30ff}'
            | '\u{3400}'..='\u{4dbf}'
            | '\u{4e00}'..='\u{9fff}'
            | '\u{f900}'..='\u{faff}'
            | '\u{20000}'..='\u{3ffff}'
    )
}

fn shingles(text: &str) -> BTreeSet<Vec<String>> {
    let words = words(text);
    words
        .windows(SHINGLE_WORDS.min(words.len().max(1)))
        .map(<[String]>::to_vec)
        .collect()
}

/// Jaccard similarity in per cent, rounded down; of two empty sets 100.
fn similarity_percent(a: &BTreeSet<Vec<String>>, b: &BTreeSet<Vec<String>>) -> usize {
    let both = a.intersection(b).count();
    let any = a.len() + b.len() - both;
    (both * 100).checked_div(any).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "The guest computed RandomX on all four vCPUs for nine hours and the customer, asked twice, \
                        would not say what for; the card was reported stolen by its bank on the same day.";

    fn reason(text: &str) -> Reason {
        text.to_owned().try_into().unwrap()
    }

    #[test]
    fn a_reason_has_some_words() {
        let short = Reason::try_from("it is abuse".to_owned()).unwrap_err();
        assert!(short.to_string().contains("3 words"), "{short}");
        assert!(Reason::try_from("x ".repeat(TEXT_BYTES_MAX)).is_err());
    }

    #[test]
    fn a_reason_in_a_script_without_spaces_is_one_and_its_copy_is_a_copy() {
        let text = "客户说明这是夜间编译任务，没有发现挖矿的迹象。";
        let other = "三个账户使用同一张被盗的信用卡付款，四种舍入模式持续数小时。";
        let given = reason(text);
        given.is_own([("case a/1", &reason(other))]).unwrap();
        let copy = reason(&text.replace('，', " "));
        assert!(copy.is_own([("case a/1", &given)]).is_err());
        assert!(Reason::try_from("看起来不对".to_owned()).is_err());
    }

    #[test]
    fn copies_are_refused_whatever_their_case_and_punctuation() {
        let earlier = reason(TEXT);
        let shouted = reason(&TEXT.to_uppercase().replace([',', ';'], " -"));
        let error = shouted.is_own([("case acct-1/1", &earlier)]).unwrap_err();
        assert!(error.to_string().contains("case acct-1/1"), "{error}");
    }

    #[test]
    fn a_copy_with_a_word_exchanged_is_one_and_another_text_is_not() {
        let earlier = reason(TEXT);
        assert!(
            reason(&TEXT.replace("nine", "ten"))
                .is_own([("x", &earlier)])
                .is_ok()
        );
        let long = TEXT.repeat(3);
        let near = reason(&long.replacen("nine", "ten", 1));
        assert!(near.is_own([("x", &reason(&long))]).is_err());
        let own = reason(
            "Nobody answered, and the same four droplets came back an hour after each unlock.",
        );
        assert_eq!(own.is_own([("x", &earlier)]), Ok(()));
    }

    /// As many words, each another one.
    fn of_words(count: usize) -> Reason {
        let words: Vec<_> = (0..count).map(|n| format!("w{n}")).collect();
        reason(&words.join(" "))
    }

    /// A text of n different words has n - 4 shingles of five, each once. One that goes on where another one ends has all of the
    /// other's, and one more for each further word:
    ///
    /// | words | shingles | in both | in any | similarity |
    /// |---|---|---|---|---|
    /// | 104 and 129 | 100 and 125 | 100 | 125 | 100 / 125 = 0.8 exactly |
    /// | 103 and 128 | 99 and 124 | 99 | 124 | 99 / 124 = 0.7983… |
    #[test]
    fn four_fifths_are_a_copy_and_a_little_less_is_not() {
        for (earlier, later, copy) in [(104, 129, true), (103, 128, false)] {
            let (earlier, later) = (of_words(earlier), of_words(later));
            // Whichever came first.
            for (one, other) in [(&earlier, &later), (&later, &earlier)] {
                let error = ReasonError::Copy {
                    percent: 80,
                    of: "x".to_owned(),
                };
                let wanted = if copy { Err(error) } else { Ok(()) };
                assert_eq!(one.is_own([("x", other)]), wanted);
            }
        }
    }
}
