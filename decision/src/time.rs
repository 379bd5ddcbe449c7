//! Points in time and spans, in milliseconds. The clock is always an argument: nothing here asks for the time.

use std::{fmt, ops::Sub, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point in time: ms since the Unix epoch. In JSON and in words RFC 3339, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

/// A span, ms. In JSON a number.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Span(u64);

/// A text that is no point in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no time: write it as 2019-05-29T16:43:00Z (RFC 3339), from 1970 to 9999")]
pub struct TimeError {
    text: String,
}

/// The end of the year 9999: later ones cannot be written as RFC 3339.
const LAST_MS: u64 = 253_402_300_799_999;

impl Time {
    /// So many ms after the Unix epoch; at most the end of the year 9999.
    #[must_use]
    pub const fn from_unix_ms(ms: u64) -> Self {
        Self(if ms > LAST_MS { LAST_MS } else { ms })
    }

    /// Ms since the Unix epoch.
    #[must_use]
    pub const fn unix_ms(self) -> u64 {
        self.0
    }

    /// From ns since the Unix epoch, rounded down.
    #[must_use]
    pub const fn from_unix_ns(ns: u64) -> Self {
        Self::from_unix_ms(ns / 1_000_000)
    }

    /// `span` later.
    #[must_use]
    pub const fn after(self, span: Span) -> Self {
        Self::from_unix_ms(self.0.saturating_add(span.0))
    }

    /// `span` earlier, at most the epoch.
    #[must_use]
    pub const fn before(self, span: Span) -> Self {
        Self(self.0.saturating_sub(span.0))
    }

    /// How long after `earlier` it is; nothing if it is not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl Sub for Time {
    type Output = Span;

    fn sub(self, earlier: Self) -> Span {
        self.since(earlier)
    }
}

impl Span {
    /// No time.
    pub const ZERO: Self = Self(0);

    /// Milliseconds.
    #[must_use]
    pub const fn ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Seconds.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000))
    }

    /// Minutes.
    #[must_use]
    pub const fn minutes(minutes: u64) -> Self {
        Self::seconds(minutes.saturating_mul(60))
    }

    /// Hours.
    #[must_use]
    pub const fn hours(hours: u64) -> Self {
        Self::minutes(hours.saturating_mul(60))
    }

    /// Days of 24 hours.
    #[must_use]
    pub const fn days(days: u64) -> Self {
        Self::hours(days.saturating_mul(24))
    }

    /// In ms.
    #[must_use]
    pub const fn as_ms(self) -> u64 {
        self.0
    }

    /// Whole seconds in it.
    #[must_use]
    pub const fn as_seconds(self) -> u64 {
        self.0 / 1_000
    }

    /// Whole minutes in it.
    #[must_use]
    pub const fn as_minutes(self) -> u64 {
        self.0 / 60_000
    }

    /// Whole days in it.
    #[must_use]
    pub const fn as_days(self) -> u64 {
        self.0 / 86_400_000
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Time {
    /// RFC 3339, UTC, without parts of a second if there are none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = i64::try_from(self.0).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_millisecond(ms) {
            Ok(timestamp) => f.pad(&timestamp.to_string()),
            Err(_) => write!(f, "{ms} ms"),
        }
    }
}

impl fmt::Display for Span {
    /// The two greatest units: `2 d 3 h`, `14 min`, `2.5 s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = self.as_minutes();
        let text = match (minutes / 1440, minutes / 60 % 24, minutes % 60) {
            (0, 0, 0) if self.0.is_multiple_of(1_000) => format!("{} s", self.0 / 1_000),
            (0, 0, 0) => format!("{}.{} s", self.0 / 1_000, self.0 % 1_000 / 100),
            (0, 0, minutes) => format!("{minutes} min"),
            (0, hours, 0) => format!("{hours} h"),
            (0, hours, minutes) => format!("{hours} h {minutes} min"),
            (days, 0, _) => format!("{days} d"),
            (days, hours, _) => format!("{days} d {hours} h"),
        };
        f.pad(&text)
    }
}

impl FromStr for Time {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        let error = || TimeError {
            text: text.chars().take(80).collect(),
        };
        let timestamp: jiff::Timestamp = text.parse().map_err(|_| error())?;
        let ms = u64::try_from(timestamp.as_millisecond()).map_err(|_| error())?;
        (ms <= LAST_MS).then_some(Self(ms)).ok_or_else(error)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_and_read_as_rfc_3339() {
        let time: Time = "2019-05-29T16:43:00Z".parse().unwrap();
        assert_eq!(time.unix_ms(), 1_559_148_180_000);
        assert_eq!(time.to_string(), "2019-05-29T16:43:00Z");
        let elsewhere: Time = "2019-05-29T18:43:00+02:00".parse().unwrap();
        assert_eq!(elsewhere, time);
        let json = serde_json::to_string(&time.after(Span::ms(250))).unwrap();
        assert_eq!(json, "\"2019-05-29T16:43:00.25Z\"");
        assert_eq!(
            serde_json::from_str::<Time>(&json).unwrap() - time,
            Span::ms(250)
        );
    }

    #[test]
    fn what_is_no_time_is_refused_in_words() {
        for text in ["", "yesterday", "1559148180", "1969-12-31T23:59:59Z"] {
            let error = text.parse::<Time>().unwrap_err().to_string();
            assert!(error.contains("RFC 3339"), "{error}");
        }
    }

    #[test]
    fn spans_are_said_in_two_units() {
        for (span, said) in [
            (Span::ms(2_500), "2.5 s"),
            (Span::seconds(40), "40 s"),
            (Span::minutes(14), "14 min"),
            (Span::minutes(125), "2 h 5 min"),
            (Span::hours(51), "2 d 3 h"),
            (Span::days(90), "90 d"),
        ] {
            assert_eq!(span.to_string(), said);
        }
    }
}
