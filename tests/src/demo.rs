//! One tunnel from end to end, shown step by step.

use anyhow::Result;

/// Runs the demonstration.
///
/// # Errors
/// When a step fails.
pub fn run(_keep: bool) -> Result<()> {
    Ok(())
}
