//! How many messages of one sender this server takes: more than that are answered with when to come back, and more than
//! that again are dropped, so that one who floods delays nobody else. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How many senders are remembered; beyond it those that are quiet are forgotten.
const REMEMBERED: usize = 50_000;
/// How much of its rate a sender may save up.
const BURST: Duration = Duration::from_secs(2);
/// How many messages one counts for that was worked on in vain: whoever is at a limit and goes on asking is soon refused
/// without the database being asked.
const IN_VAIN: f64 = 10.0;

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Take,
    /// Too many: told to come back after some seconds.
    Refuse {
        retry_after_s: u32,
    },
    /// Far too many.
    Drop,
}

/// What a sender has left.
#[derive(Debug, Clone, Copy)]
struct Purse {
    messages: f64,
    refusals: f64,
    at: Instant,
}

/// The senders of the last seconds.
#[derive(Debug)]
pub struct Floods {
    per_second: f64,
    purses: HashMap<String, Purse>,
}

impl Floods {
    /// Takes how many messages of one sender are worked on per second.
    pub fn new(per_second: u32) -> Self {
        Self {
            per_second: f64::from(per_second.max(1)),
            purses: HashMap::new(),
        }
    }

    /// Takes that a message that was worked on came to nothing, by its sender's own limit.
    pub fn handle_in_vain(&mut self, sender: &str) {
        if let Some(purse) = self.purses.get_mut(sender) {
            purse.messages = (purse.messages - (IN_VAIN - 1.0)).max(0.0);
        }
    }

    /// Takes one message.
    pub fn handle_message(&mut self, sender: &str, now: Instant) -> Flow {
        let most = self.per_second * BURST.as_secs_f64();
        if self.purses.len() >= REMEMBERED {
            self.purses
                .retain(|_, purse| now.saturating_duration_since(purse.at) < BURST);
        }
        let purse = match self.purses.get_mut(sender) {
            Some(purse) => purse,
            None => self.purses.entry(sender.to_owned()).or_insert(Purse {
                messages: most,
                refusals: most,
                at: now,
            }),
        };
        let earned = now.saturating_duration_since(purse.at).as_secs_f64() * self.per_second;
        *purse = Purse {
            messages: (purse.messages + earned).min(most),
            refusals: (purse.refusals + earned).min(most),
            at: now,
        };
        if purse.messages >= 1.0 {
            purse.messages -= 1.0;
            Flow::Take
        } else if purse.refusals >= 1.0 {
            purse.refusals -= 1.0;
            Flow::Refuse { retry_after_s: 1 }
        } else {
            Flow::Drop
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_answered_and_then_dropped_and_delays_nobody_else() {
        let mut floods = Floods::new(10);
        let start = Instant::now();
        let flows: Vec<Flow> = (0..60).map(|_| floods.handle_message("mallory", start)).collect();
        let count = |wanted: fn(&Flow) -> bool| flows.iter().filter(|flow| wanted(flow)).count();
        assert_eq!(count(|flow| *flow == Flow::Take), 20);
        assert_eq!(count(|flow| matches!(flow, Flow::Refuse { .. })), 20);
        assert_eq!(count(|flow| *flow == Flow::Drop), 20);
        assert_eq!(floods.handle_message("alice", start), Flow::Take);
        let later = start + Duration::from_millis(1500);
        let taken = (0..60)
            .filter(|_| floods.handle_message("mallory", later) == Flow::Take)
            .count();
        assert_eq!(taken, 15, "what was earned meanwhile");
    }

    #[test]
    fn one_at_its_limit_is_soon_refused_without_work_and_heard_again_when_it_pauses() {
        let mut floods = Floods::new(10);
        let start = Instant::now();
        let worked = |floods: &mut Floods, now| {
            (0..20)
                .filter(|_| {
                    let taken = floods.handle_message("greedy", now) == Flow::Take;
                    if taken {
                        floods.handle_in_vain("greedy");
                    }
                    taken
                })
                .count()
        };
        assert_eq!(worked(&mut floods, start), 2, "of twenty that it had");
        assert_eq!(
            worked(&mut floods, start + Duration::from_secs(1)),
            1,
            "of ten that it earned"
        );
        assert_eq!(floods.handle_message("greedy", start + BURST * 2), Flow::Take);
        floods.handle_in_vain("nobody");
    }

    #[test]
    fn senders_that_are_quiet_are_forgotten() {
        let mut floods = Floods::new(1);
        let start = Instant::now();
        for sender in 0..REMEMBERED {
            floods.handle_message(&sender.to_string(), start);
        }
        floods.handle_message("alice", start + BURST);
        assert_eq!(floods.purses.len(), 1);
    }
}
