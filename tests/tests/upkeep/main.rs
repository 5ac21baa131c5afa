//! What an operator does to an installation, each on a lab of its own.

#![expect(clippy::unwrap_used, reason = "a story fails where it stands")]

mod restore;
mod skew;
