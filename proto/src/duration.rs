//! Spans of time as people write them: `500ms`, `30s`, `15m`, `1h`, `7d`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::text::quoted;

/// Why a text is not a span of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a span of time: {0}; use a whole number with ms, s, m, h or d, such as 30s")]
pub struct SpanError(String);

/// A span of time with its unit: a number without one is an error, never a guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(Duration);

/// Milliseconds of each unit, the largest first.
const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

impl Span {
    /// A span of whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The span as the standard library has it.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let error = || SpanError(quoted(text, 20));
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| error())?;
        let scale = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(error)?.1;
        number
            .checked_mul(scale)
            .map(|millis| Self(Duration::from_millis(millis)))
            .ok_or_else(error)
    }
}

as_text!(Span);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (unit, scale) = UNITS
            .into_iter()
            .find(|(_, scale)| millis > 0 && millis % scale == 0)
            .unwrap_or(("s", 1000));
        write!(f, "{}{unit}", millis / scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written_with_their_unit() {
        for text in ["500ms", "30s", "15m", "1h", "7d", "90s", "0s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        assert_eq!("60s".parse::<Span>().unwrap().to_string(), "1m");
    }

    #[test]
    fn a_span_without_a_unit_is_an_error() {
        for bad in [
            "",
            "5",
            "s",
            "-5s",
            "+5s",
            "5 s",
            "5S",
            "1.5h",
            "5w",
            "99999999999999999999s",
            "300000000000d",
        ] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
