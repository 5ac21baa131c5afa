//! The table of cases, by what they hit.

mod address;
mod agent;
mod broker;
mod device;
mod ha;
mod limits;
mod load;
mod messages;
mod network;
mod router;
mod server;
mod stores;
mod storm;

use super::case::Case;

/// Every case.
pub fn all() -> impl Iterator<Item = &'static Case> {
    [
        agent::CASES,
        server::CASES,
        address::CASES,
        stores::CASES,
        broker::CASES,
        router::CASES,
        network::CASES,
        device::CASES,
        messages::CASES,
        limits::CASES,
        storm::CASES,
        ha::CASES,
    ]
    .into_iter()
    .flatten()
}
