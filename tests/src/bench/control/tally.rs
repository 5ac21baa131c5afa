//! What came of the opens of a run: how many, how fast, and what went wrong. Pure.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use rssh_proto::TunnelId;
use serde::{Deserialize, Serialize};

/// How many faults are kept word by word.
const TOLD: usize = 5;

/// The opens of a run.
#[derive(Debug, Default)]
pub struct Tally {
    /// Where each tunnel's device listens.
    places: HashMap<TunnelId, SocketAddr>,
    holders: HashMap<SocketAddr, TunnelId>,
    /// Names whose device has not said yet where it listens: serverd sees a listener before its device has told of it.
    early: HashMap<TunnelId, (SocketAddr, Duration)>,
    opened: Vec<Duration>,
    conflicts: u32,
    lost: u32,
    told: Vec<String>,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// How long each open took, in milliseconds.
    pub ms: Vec<f64>,
    pub conflicts: u32,
    pub lost: u32,
    /// The first of what went wrong.
    pub told: Vec<String>,
}

impl Tally {
    /// A tunnel's device listens somewhere: nobody else may.
    pub fn handle_listening(&mut self, tunnel: TunnelId, at: SocketAddr) {
        self.places.insert(tunnel, at);
        if let Some(other) = self.holders.insert(at, tunnel)
            && other != tunnel
        {
            self.conflict(format!("{at} was given to {tunnel} and to {other}"));
        }
        if let Some((named, took)) = self.early.remove(&tunnel) {
            self.handle_opened(tunnel, named, took);
        }
    }

    /// A port that was given to a tunnel was not free.
    pub fn handle_taken(&mut self, tunnel: TunnelId, at: SocketAddr) {
        self.conflict(format!("{at} was given to {tunnel}, but somebody listens there"));
    }

    /// A user was told that a tunnel is open, with a name that leads here.
    pub fn handle_opened(&mut self, tunnel: TunnelId, at: SocketAddr, took: Duration) {
        match self.places.get(&tunnel) {
            Some(place) if *place == at => self.opened.push(took),
            Some(place) => {
                let place = *place;
                self.conflict(format!(
                    "the name of {tunnel} leads to {at}, but its device is at {place}"
                ));
            }
            None => drop(self.early.insert(tunnel, (at, took))),
        }
    }

    /// A user was told that a tunnel failed, or nothing until the deadline.
    pub fn handle_lost(&mut self, tunnel: TunnelId, why: impl std::fmt::Display) {
        self.lost += 1;
        self.tell(format!("{tunnel} is lost: {why}"));
    }

    /// Opens so far.
    pub fn opened(&self) -> usize {
        self.opened.len()
    }

    /// What it came to, without the first so many opens.
    pub fn outcome(mut self, without: usize) -> Outcome {
        for (tunnel, (at, _)) in std::mem::take(&mut self.early) {
            self.conflict(format!("the name of {tunnel} leads to {at}, where its device is not"));
        }
        let counted = self.opened.split_off(without.min(self.opened.len()));
        Outcome {
            ms: counted.iter().map(|took| took.as_secs_f64() * 1000.0).collect(),
            conflicts: self.conflicts,
            lost: self.lost,
            told: self.told,
        }
    }

    fn conflict(&mut self, what: String) {
        self.conflicts += 1;
        self.tell(what);
    }

    fn tell(&mut self, what: String) {
        if self.told.len() < TOLD {
            self.told.push(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::new([127, 0, 1, 1].into(), port)
    }

    #[test]
    fn an_open_counts_when_its_name_leads_to_its_device() {
        let mut tally = Tally::default();
        for port in 1..=3 {
            let tunnel = TunnelId::generate();
            tally.handle_listening(tunnel, at(port));
            tally.handle_opened(tunnel, at(port), Duration::from_millis(port.into()));
        }
        let outcome = tally.outcome(1);
        assert_eq!(outcome.ms, [2.0, 3.0]);
        assert_eq!((outcome.conflicts, outcome.lost), (0, 0));
    }

    #[test]
    fn a_port_that_two_have_a_name_that_leads_astray_and_a_port_in_use_are_conflicts() {
        let (one, two) = (TunnelId::generate(), TunnelId::generate());
        let mut tally = Tally::default();
        tally.handle_listening(one, at(1));
        tally.handle_listening(two, at(1));
        assert_eq!(tally.conflicts, 1);
        tally.handle_opened(one, at(2), Duration::ZERO);
        assert_eq!(tally.conflicts, 2);
        tally.handle_taken(one, at(1));
        assert_eq!(tally.conflicts, 3);
        tally.handle_opened(TunnelId::generate(), at(1), Duration::ZERO);
        let outcome = tally.outcome(0);
        assert_eq!((outcome.conflicts, outcome.ms.len()), (4, 0));
        assert_eq!(outcome.told.len(), 4);
    }

    #[test]
    fn a_name_may_be_heard_of_before_its_device_has_told_where_it_listens() {
        let (one, two) = (TunnelId::generate(), TunnelId::generate());
        let mut tally = Tally::default();
        tally.handle_opened(one, at(1), Duration::ZERO);
        tally.handle_opened(two, at(3), Duration::ZERO);
        tally.handle_listening(one, at(1));
        tally.handle_listening(two, at(2));
        let outcome = tally.outcome(0);
        assert_eq!((outcome.ms.len(), outcome.conflicts), (1, 1));
    }

    #[test]
    fn what_failed_or_was_never_answered_is_lost() {
        let mut tally = Tally::default();
        for _ in 0..9 {
            tally.handle_lost(TunnelId::generate(), "no answer");
        }
        let outcome = tally.outcome(0);
        assert_eq!((outcome.lost, outcome.told.len()), (9, TOLD));
    }
}
