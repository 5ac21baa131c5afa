//! The table that people read, and the file.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::case::{Outcome, Verdict};
use crate::files;

/// The word for a verdict in the table.
fn word(outcome: &Outcome) -> &'static str {
    match (outcome.without, outcome.verdict) {
        (false, Verdict::Holds) => "holds",
        (false, Verdict::Exceeds) => "EXCEEDS",
        (false, Verdict::Violates) => "VIOLATES",
        (false, Verdict::NoEffect) => "NO EFFECT",
        (false, Verdict::Fails) => "FAILS",
        // With its defence switched off, a case has to fail.
        (true, Verdict::Holds) => "HOLDS WITHOUT",
        (true, Verdict::NoEffect) => "NO EFFECT",
        (true, _) if outcome.effects.is_empty() => "NOT INJECTED",
        (true, _) => "fails without",
    }
}

/// Whether an outcome is as it should be.
pub fn is_good(outcome: &Outcome) -> bool {
    match outcome.verdict {
        Verdict::Holds => !outcome.without,
        Verdict::NoEffect => false,
        // A lab that does not come up shows nothing.
        _ => outcome.without && !outcome.effects.is_empty(),
    }
}

/// What a line says beyond its figures.
fn remark(outcome: &Outcome) -> String {
    let mut parts = Vec::new();
    if let Some(error) = &outcome.error {
        parts.push(error.replace('\n', " "));
    }
    for violation in outcome.violations.iter().take(3) {
        parts.push(format!(
            "{:?} at {} ms: {}",
            violation.invariant, violation.at, violation.what
        ));
    }
    if outcome.violations.len() > 3 {
        parts.push(format!("and {} more", outcome.violations.len() - 3));
    }
    if let Some(not) = outcome.effects.iter().find(|effect| effect.starts_with("NOT")) {
        parts.push(not.clone());
    }
    if let Some(measured) = outcome.measured.as_ref().filter(|measured| !measured.note.is_empty()) {
        parts.push(measured.note.clone());
    }
    parts.join("; ")
}

/// The table, as Markdown.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut rows = vec![["case", "bound", "measured", "verdict", "remark"].map(str::to_owned)];
    for outcome in outcomes {
        let bound = outcome.bound;
        rows.push([
            outcome.name.to_owned(),
            format!("{} <= {} {}", bound.what, bound.limit, bound.unit)
                .trim_end()
                .to_owned(),
            outcome.measured.as_ref().map_or_else(
                || "-".to_owned(),
                |measured| match bound.unit {
                    "" => format!("{}", measured.value),
                    unit => format!("{:.2} {unit}", measured.value),
                },
            ),
            word(outcome).to_owned(),
            remark(outcome),
        ]);
    }
    crate::table::markdown(&rows)
}

/// Writes the file.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, outcomes: &[Outcome]) -> Result<()> {
    let good = outcomes.iter().filter(|outcome| is_good(outcome)).count();
    let all = json!({ "cases": outcomes.len(), "good": good, "outcomes": outcomes });
    if let Some(dir) = path.parent() {
        files::make_dir(dir)?;
    }
    files::write(path, serde_json::to_string_pretty(&all)? + "\n")
}
