//! The ports of one server: free, taken or resting. Taking and returning one costs the same whether the range is empty
//! or nearly full.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::{Duration, Instant};

use crate::config::PortRange;

/// The ports of one server.
#[derive(Debug)]
pub struct Ports {
    free: Vec<u16>,
    /// Where each free port stands in `free`.
    place: HashMap<u16, usize>,
    resting: BinaryHeap<Reverse<(Instant, u16)>>,
    /// Until when each resting port rests; `resting` may have earlier times too.
    until: HashMap<u16, Instant>,
}

impl Ports {
    /// All ports of a range, free.
    pub fn new(range: PortRange) -> Self {
        let free: Vec<u16> = (range.first..=range.last).collect();
        let place = free.iter().enumerate().map(|(index, port)| (*port, index)).collect();
        Self {
            free,
            place,
            resting: BinaryHeap::new(),
            until: HashMap::new(),
        }
    }

    /// How many ports can be taken now.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// How many ports rest.
    pub fn resting(&self) -> usize {
        self.until.len()
    }

    /// Takes a given port, if it is free.
    pub fn take(&mut self, port: u16) -> bool {
        let Some(index) = self.place.remove(&port) else {
            return false;
        };
        self.free.swap_remove(index);
        if let Some(moved) = self.free.get(index) {
            self.place.insert(*moved, index);
        }
        true
    }

    /// Takes the port that `draw`, a random number, falls on.
    pub fn take_any(&mut self, draw: u64) -> Option<u16> {
        let count = u64::try_from(self.free.len()).ok().filter(|count| *count > 0)?;
        let port = self.free[usize::try_from(draw % count).ok()?];
        self.take(port).then_some(port)
    }

    /// Whether a port rests.
    pub fn is_resting(&self, port: u16) -> bool {
        self.until.contains_key(&port)
    }

    /// Returns a port that becomes free at `until`, or lets one that rests do so until then at least.
    pub fn rest(&mut self, port: u16, until: Instant) {
        let latest = self.until.entry(port).or_insert(until);
        *latest = until.max(*latest);
        self.resting.push(Reverse((until, port)));
    }

    /// Frees the ports that have rested.
    pub fn wake(&mut self, now: Instant) {
        while let Some(Reverse((until, port))) = self.resting.peek().copied() {
            if until > now {
                break;
            }
            self.resting.pop();
            if self.until.get(&port) != Some(&until) {
                continue;
            }
            self.until.remove(&port);
            if !self.place.contains_key(&port) {
                self.place.insert(port, self.free.len());
                self.free.push(port);
            }
        }
    }

    /// When the next port becomes free.
    pub fn next(&self) -> Option<Instant> {
        self.resting.peek().map(|Reverse((until, _))| *until)
    }
}

/// How long a port rests after a lease: as long as the last name signed for it may admit connections.
pub fn rest_after_lease(name_ttl: Duration, clock_skew: Duration) -> Duration {
    name_ttl + clock_skew
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange { first, last }
    }

    #[test]
    fn every_port_is_taken_once_and_comes_back_after_its_rest() {
        let mut ports = Ports::new(range(2000, 2009));
        assert!(ports.take(2005));
        assert!(!ports.take(2005));
        let mut taken: Vec<u16> = (0..9).map(|draw| ports.take_any(draw * 7).unwrap()).collect();
        assert_eq!(ports.take_any(0), None);
        taken.push(2005);
        taken.sort_unstable();
        assert_eq!(taken, (2000..=2009).collect::<Vec<_>>());

        let now = Instant::now();
        ports.rest(2003, now + Duration::from_secs(2));
        ports.rest(2004, now + Duration::from_secs(1));
        assert_eq!(ports.next(), Some(now + Duration::from_secs(1)));
        ports.wake(now + Duration::from_secs(1));
        assert_eq!((ports.free(), ports.resting()), (1, 1));
        assert_eq!(ports.take_any(5), Some(2004));

        // One that has to rest for longer than was known at first.
        ports.rest(2003, now + Duration::from_secs(3));
        ports.wake(now + Duration::from_secs(2));
        assert_eq!((ports.free(), ports.resting()), (0, 1));
        ports.wake(now + Duration::from_secs(3));
        assert_eq!((ports.free(), ports.resting()), (1, 0));
    }
}
