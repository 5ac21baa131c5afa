//! Figures, the table of them, and the file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::stats::{Pairs, median, spread};
use crate::files;

/// What a figure has to be, to be reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reach {
    AtMost(f64),
    AtLeast(f64),
    /// It stands beside another figure, or nobody has set a mark.
    None,
}

/// One measured figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    #[serde(skip)]
    pub key: &'static str,
    #[serde(skip)]
    pub reach: Reach,
    /// The ratio, or the amount in the unit that the note names; none when it could not be measured.
    pub value: Option<f64>,
    /// The median of what it is measured against, in the unit that the note names.
    pub baseline: Option<f64>,
    /// How often it was measured.
    pub n: usize,
    /// The distance between the quartiles of the value.
    pub spread: Option<f64>,
    pub note: String,
}

impl Figure {
    /// A ratio of ours to theirs; `unit` is that of both.
    pub fn ratio(key: &'static str, reach: Reach, pairs: &Pairs, unit: &str, note: &str) -> Self {
        Self {
            key,
            reach,
            value: Some(pairs.ratio()),
            baseline: Some(median(&pairs.theirs)),
            n: pairs.ours.len(),
            spread: Some(pairs.spread()),
            note: format!(
                "{} {unit} / {} {unit}; {note}",
                number(median(&pairs.ours)),
                number(median(&pairs.theirs))
            ),
        }
    }

    /// The median of an amount.
    pub fn amount(key: &'static str, reach: Reach, values: &[f64], note: impl Into<String>) -> Self {
        Self {
            key,
            reach,
            value: Some(median(values)),
            baseline: None,
            n: values.len(),
            spread: Some(spread(values)),
            note: note.into(),
        }
    }

    /// A figure that this run could not measure.
    pub fn missing(key: &'static str, reach: Reach, why: impl Into<String>) -> Self {
        Self {
            key,
            reach,
            value: None,
            baseline: None,
            n: 0,
            spread: None,
            note: why.into(),
        }
    }

    /// With what it is measured against.
    #[must_use]
    pub fn against(mut self, baseline: f64) -> Self {
        self.baseline = Some(baseline);
        self
    }

    fn verdict(&self) -> &'static str {
        match (self.value, self.reach) {
            (None, _) => "missing",
            (Some(value), Reach::AtMost(limit)) if value <= limit => "reached",
            (Some(value), Reach::AtLeast(limit)) if value >= limit => "reached",
            (Some(_), Reach::None) => "",
            _ => "NOT",
        }
    }
}

/// A number with about three digits that mean something.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        ..0.1 => format!("{value:.4}"),
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// The table, as Markdown.
pub fn table(figures: &[Figure]) -> String {
    let mut rows = vec![["key", "value", "reach", "", "baseline", "n", "spread", "what"].map(str::to_owned)];
    for figure in figures {
        let some = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), number);
        rows.push([
            figure.key.to_owned(),
            some(figure.value),
            match figure.reach {
                Reach::AtMost(limit) => format!("<= {limit}"),
                Reach::AtLeast(limit) => format!(">= {limit}"),
                Reach::None => String::new(),
            },
            figure.verdict().to_owned(),
            some(figure.baseline),
            figure.n.to_string(),
            some(figure.spread),
            figure.note.clone(),
        ]);
    }
    crate::table::markdown(&rows)
}

/// Writes the file; figures of an earlier run that this one did not measure stay.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, figures: &[Figure]) -> Result<()> {
    let mut all: BTreeMap<String, serde_json::Value> = files::read(path)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    for figure in figures {
        all.insert(figure.key.to_owned(), serde_json::to_value(figure)?);
    }
    if let Some(dir) = path.parent() {
        files::make_dir(dir)?;
    }
    files::write(path, serde_json::to_string_pretty(&all)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_five_fields_for_each_key_and_keeps_other_runs_figures() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bench/results.json");
        let pairs = Pairs {
            ours: vec![1.0, 2.0, 3.0],
            theirs: vec![4.0, 4.0, 4.0],
        };
        write(&path, &[Figure::missing("b", Reach::None, "no time")]).unwrap();
        write(&path, &[Figure::ratio("a", Reach::AtMost(0.6), &pairs, "ms", "x")]).unwrap();
        let read: serde_json::Value = serde_json::from_str(&files::read(&path).unwrap()).unwrap();
        assert_eq!(read["b"]["value"], serde_json::Value::Null);
        assert_eq!(
            read["a"],
            serde_json::json!({"value": 0.5, "baseline": 4.0, "n": 3, "spread": 0.25, "note": "2.00 ms / 4.00 ms; x"})
        );
    }

    #[test]
    fn a_table_says_what_was_reached_and_what_was_not() {
        let text = table(&[
            Figure::amount("low", Reach::AtMost(1.0), &[0.5], ""),
            Figure::amount("high", Reach::AtMost(1.0), &[1.5], ""),
            Figure::missing("gone", Reach::AtLeast(1.0), "not installed"),
        ]);
        let row = |key: &str| text.lines().find(|line| line.contains(key)).unwrap().to_owned();
        assert!(row("low").contains("reached"));
        assert!(row("high").contains("NOT"));
        assert!(row("gone").contains("missing") && row("gone").contains("not installed"));
    }
}
