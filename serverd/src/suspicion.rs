//! Deciding that another server is lost.
//!
//! A server is lost when this one has itself seen its heartbeat unchanged for the whole of its time to live, on this
//! machine's monotonic clock, with the database answering throughout, *and* its health check fails. Anything less is
//! not enough: after a freeze of the database, for one, every heartbeat is old, and the first server to wake would
//! sweep the whole fleet.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rssh_proto::{Generation, ServerId};

/// A heartbeat as the database has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    pub generation: Generation,
    pub counter: u64,
}

/// A server under watch.
#[derive(Debug, Clone, Copy)]
struct Watched {
    beat: Beat,
    /// When this beat was first seen, or the watch began anew.
    since: Instant,
}

/// The watch over all other servers.
#[derive(Debug)]
pub struct Suspicion {
    ttl: Duration,
    /// How long a health check may take. It begins so long before the time to live is over.
    check: Duration,
    watched: HashMap<ServerId, Watched>,
}

impl Suspicion {
    /// A watch with this time to live for heartbeats, and health checks that take up to `check`.
    pub fn new(ttl: Duration, check: Duration) -> Self {
        Self {
            ttl,
            check,
            watched: HashMap::new(),
        }
    }

    /// The database has answered with these heartbeats. Returns the servers whose health is to be checked now: they
    /// have been silent for long enough, or will have been by the end of the check.
    pub fn handle_beats(&mut self, beats: &[(ServerId, Beat)], now: Instant) -> Vec<ServerId> {
        let beating: HashSet<&ServerId> = beats.iter().map(|(id, _)| id).collect();
        self.watched.retain(|id, _| beating.contains(id));
        let mut silent = Vec::new();
        for (id, beat) in beats {
            let fresh = Watched {
                beat: *beat,
                since: now,
            };
            let watched = self.watched.entry(id.clone()).or_insert(fresh);
            if watched.beat != *beat {
                *watched = fresh;
            }
            if now.duration_since(watched.since) + self.check >= self.ttl {
                silent.push(id.clone());
            }
        }
        silent
    }

    /// The database did not answer: nobody could beat, so every watch begins anew.
    pub fn handle_database_away(&mut self, now: Instant) {
        for watched in self.watched.values_mut() {
            watched.since = now;
        }
    }

    /// How long until the heartbeats are to be read again: until somebody's health is to be checked or their time is
    /// over, and no longer than a quarter of it.
    pub fn poll_timeout(&self, now: Instant) -> Duration {
        let mut rest = self.ttl / 4;
        for watched in self.watched.values() {
            let silent = now.duration_since(watched.since);
            let next = [self.ttl.saturating_sub(self.check), self.ttl];
            if let Some(next) = next.into_iter().find(|next| *next > silent) {
                rest = rest.min(next - silent);
            }
        }
        rest
    }

    /// A health check has ended. Returns the beat at which the server is to be declared lost, if it is: the declaration
    /// holds only as long as the database still has that beat.
    pub fn handle_health(&self, id: &ServerId, healthy: bool, now: Instant) -> Option<Beat> {
        let watched = self.watched.get(id).filter(|_| !healthy)?;
        (now.duration_since(watched.since) >= self.ttl).then_some(watched.beat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);
    const CHECK: Duration = Duration::from_secs(1);

    fn beats(counter: u64) -> Vec<(ServerId, Beat)> {
        let beat = Beat {
            generation: Generation(1),
            counter,
        };
        vec![("s2".parse().unwrap(), beat)]
    }

    #[test]
    fn silence_and_a_failing_check_together_make_a_server_lost() {
        let (mut suspicion, start) = (Suspicion::new(TTL, CHECK), Instant::now());
        let id: ServerId = "s2".parse().unwrap();
        assert!(suspicion.handle_beats(&beats(7), start).is_empty());
        assert!(suspicion.handle_beats(&beats(7), start + TTL / 2).is_empty());
        let early = start + TTL - CHECK;
        assert_eq!(suspicion.handle_beats(&beats(7), early), vec![id.clone()]);
        assert_eq!(
            suspicion.handle_health(&id, false, early),
            None,
            "not silent for long enough"
        );
        assert_eq!(suspicion.handle_beats(&beats(7), start + TTL), vec![id.clone()]);
        assert_eq!(suspicion.handle_health(&id, true, start + TTL), None, "it answers");
        let lost = suspicion.handle_health(&id, false, start + TTL);
        assert_eq!(lost, Some(beats(7)[0].1));
    }

    #[test]
    fn the_next_look_is_when_something_may_be_decided() {
        let (mut suspicion, start) = (Suspicion::new(TTL, CHECK), Instant::now());
        assert_eq!(suspicion.poll_timeout(start), TTL / 4);
        suspicion.handle_beats(&beats(1), start);
        let mut looks = Vec::new();
        let mut now = start;
        while now < start + TTL * 3 / 2 {
            now += suspicion.poll_timeout(now);
            looks.push(now - start);
        }
        assert!(looks.contains(&(TTL - CHECK)) && looks.contains(&TTL), "{looks:?}");
        assert!(looks.len() <= 9, "{looks:?}");
    }

    #[test]
    fn a_beat_or_an_absent_database_begins_the_watch_anew() {
        let (mut suspicion, start) = (Suspicion::new(TTL, CHECK), Instant::now());
        let id: ServerId = "s2".parse().unwrap();
        suspicion.handle_beats(&beats(1), start);
        assert!(suspicion.handle_beats(&beats(2), start + TTL).is_empty());
        suspicion.handle_database_away(start + TTL + TTL / 2);
        let later = start + TTL * 2;
        assert!(suspicion.handle_beats(&beats(2), later).is_empty());
        assert_eq!(suspicion.handle_health(&id, false, later), None);
        assert_eq!(suspicion.handle_beats(&beats(2), later + TTL), vec![id]);
    }

    #[test]
    fn a_server_that_is_gone_from_the_database_is_not_watched() {
        let (mut suspicion, start) = (Suspicion::new(TTL, CHECK), Instant::now());
        suspicion.handle_beats(&beats(1), start);
        assert!(suspicion.handle_beats(&[], start + TTL).is_empty());
        assert!(suspicion.handle_beats(&beats(1), start + TTL).is_empty());
    }
}
