//! Taking an address that another server had.
//!
//! A user's name leads to a server's *address*: where that is another server's by now, it would lead to another's
//! device. So a server that takes an address over claims nothing until every living router has let go of the old route.
//!
//! ```text
//! used by another id --it is lost, or has moved--> settled --every living router has looked since--> ours
//! ```
//! A router that was silent for as long as a name lives does not count: no name is left that it could lead astray.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::server::Server;
use crate::store::Standing;

/// How often is looked.
const AGAIN: Duration = Duration::from_millis(200);
/// How often it is told that it takes long.
const TOLD: Duration = Duration::from_secs(10);

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Next {
    Ours,
    /// Wait; routers must have looked after this moment, when there is one.
    Wait(Option<f64>),
}

/// Waits until nobody is led to another server by this one's address.
pub async fn wait(server: &Arc<Server>) {
    let address = server.config.sshd.address;
    let mut since = None;
    let mut told: Option<Instant> = None;
    loop {
        let standing = server.store.standing(&server.id, address, server.rest_s(), since).await;
        let reason = match standing {
            Ok(standing) => match next(&standing, since) {
                Next::Ours => match server.store.take_address(&server.id, address).await {
                    Ok(()) => return,
                    Err(error) => error.to_string(),
                },
                Next::Wait(settled) => {
                    since = settled;
                    match standing.holders.is_empty() {
                        true => format!("waiting for the routers {}", standing.behind.join(", ")),
                        false => format!("it is still {}'s, which is not lost", standing.holders.join(", ")),
                    }
                }
            },
            Err(error) => error.to_string(),
        };
        if told.is_none_or(|told| told.elapsed() >= TOLD) {
            tracing::warn!(%address, "another server had this address: {reason}");
            told = Some(Instant::now());
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Decides, from how the address stands and since when it is nobody else's.
fn next(standing: &Standing, since: Option<f64>) -> Next {
    if !standing.holders.is_empty() {
        return Next::Wait(None);
    }
    match since {
        // Whoever has looked knows that the other is gone; who had looked before need not.
        None if standing.used => Next::Wait(Some(standing.now)),
        _ if standing.behind.is_empty() => Next::Ours,
        settled => Next::Wait(settled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(used: bool, holders: &[&str], behind: &[&str]) -> Standing {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Standing {
            used,
            holders: owned(holders),
            behind: owned(behind),
            now: 7.0,
        }
    }

    #[test]
    fn an_address_that_nobody_had_is_taken_at_once() {
        assert_eq!(next(&standing(false, &[], &[]), None), Next::Ours);
    }

    #[test]
    fn an_address_of_a_server_that_lives_is_not_taken() {
        assert_eq!(next(&standing(true, &["s1"], &[]), Some(3.0)), Next::Wait(None));
    }

    #[test]
    fn a_lost_servers_address_is_taken_once_every_router_has_looked_since() {
        assert_eq!(next(&standing(true, &[], &[]), None), Next::Wait(Some(7.0)));
        assert_eq!(next(&standing(true, &[], &["lb1"]), Some(7.0)), Next::Wait(Some(7.0)));
        assert_eq!(next(&standing(true, &[], &[]), Some(7.0)), Next::Ours);
    }

    #[test]
    fn a_router_that_leads_elsewhere_is_waited_for_though_the_registry_knows_of_nobody() {
        assert_eq!(next(&standing(false, &[], &["lb1"]), None), Next::Wait(None));
    }
}
