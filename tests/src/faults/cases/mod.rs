//! The table of cases, by what they hit.

mod agent;
mod server;

use super::case::Case;

/// Every case, the most telling first.
pub fn all() -> impl Iterator<Item = &'static Case> {
    [agent::CASES, server::CASES].into_iter().flatten()
}
