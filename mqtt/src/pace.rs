//! When to try the broker again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often a broker may end sessions within [`WINDOW`] before two programs are taken to use one identity.
const OFTEN: usize = 3;
const WINDOW: Duration = Duration::from_secs(60);
/// How much longer than the longest ordinary pause such a program stays away.
const CONTESTED: u32 = 4;

/// How a connection ended, as far as it matters for the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Was {
    /// It never came up.
    Down,
    Up,
    /// It was up, and the broker ended it soon: another program took it over, or an administrator did.
    EndedByBroker,
}

/// The pauses between connections: doubling while none comes up, long while the broker ends one after the other.
#[derive(Debug)]
pub(crate) struct Pace {
    spread: (Duration, Duration),
    next: Duration,
    /// When the broker ended sessions, within the window.
    ended: VecDeque<Instant>,
}

/// What to do before the next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pause {
    /// Wait for this and for a random part of the spread.
    pub(crate) least: Duration,
    pub(crate) spread: Duration,
    /// How often the broker has ended the session within a minute, when that is too often.
    pub(crate) contested: Option<usize>,
}

impl Pace {
    /// Starts with a pause of up to the first, and doubles it up to the second.
    pub(crate) fn new(spread: (Duration, Duration)) -> Self {
        Self {
            spread,
            next: spread.0,
            ended: VecDeque::new(),
        }
    }

    /// Notes the end of a connection.
    pub(crate) fn handle_end(&mut self, was: Was, now: Instant) -> Pause {
        self.ended.retain(|at| now.saturating_duration_since(*at) < WINDOW);
        if was == Was::EndedByBroker {
            self.ended.push_back(now);
            if self.ended.len() > OFTEN {
                let long = self.spread.1 * CONTESTED;
                return Pause {
                    least: long / 2,
                    spread: long / 2,
                    contested: Some(self.ended.len()),
                };
            }
        }
        if was != Was::Down {
            self.next = self.spread.0;
        }
        let spread = self.next;
        self.next = (self.next * 2).min(self.spread.1);
        Pause {
            least: Duration::ZERO,
            spread,
            contested: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pace() -> Pace {
        Pace::new((SECOND, SECOND * 5))
    }

    #[test]
    fn pauses_double_until_a_connection_comes_up() {
        let (mut pace, now) = (pace(), Instant::now());
        let spreads: Vec<u64> = [Was::Down, Was::Down, Was::Down, Was::Down, Was::Up, Was::Down]
            .map(|was| pace.handle_end(was, now).spread.as_secs())
            .into();
        assert_eq!(spreads, [1, 2, 4, 5, 1, 2]);
    }

    #[test]
    fn a_program_whose_session_is_ended_again_and_again_stays_away() {
        let (mut pace, now) = (pace(), Instant::now());
        for n in 0..3 {
            assert_eq!(pace.handle_end(Was::EndedByBroker, now + SECOND * n).contested, None);
        }
        let pause = pace.handle_end(Was::EndedByBroker, now + SECOND * 3);
        assert_eq!(pause.contested, Some(4));
        assert_eq!(pause.least + pause.spread, SECOND * 20);
        let later = now + SECOND * 3 + WINDOW;
        assert_eq!(pace.handle_end(Was::EndedByBroker, later).contested, None);
    }

    #[test]
    fn a_link_that_comes_and_goes_is_tried_again_at_once() {
        let (mut pace, now) = (pace(), Instant::now());
        for _ in 0..9 {
            assert_eq!(pace.handle_end(Was::Up, now).spread, SECOND);
        }
    }
}
