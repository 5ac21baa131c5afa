//! Noticing that this process itself stood still: frozen, starved, or behind with its work.
//!
//! A message that was sent meanwhile waited in a socket or a queue, and nothing in it tells for how long: its spans are
//! relative. So what is heard just after a pause counts as sent when the pause began. Where that is too strict, the
//! sender's repetition makes up for it.

use std::time::{Duration, Instant};

/// How far apart beats are.
pub const BEAT: Duration = Duration::from_millis(100);
/// Beats further apart than this are a pause.
const LONG: Duration = Duration::from_millis(500);
/// How long what waited may take to be read.
const BACKLOG: Duration = Duration::from_secs(1);

/// The beat of the loop that hears messages.
#[derive(Debug)]
pub struct Pulse {
    last: Instant,
    /// When the latest pause ended, and how long it was.
    pause: Option<(Instant, Duration)>,
}

impl Pulse {
    /// A loop that begins now.
    pub fn new(now: Instant) -> Self {
        Self { last: now, pause: None }
    }

    /// The loop has come round.
    pub fn handle_beat(&mut self, now: Instant) {
        let gap = now.duration_since(self.last);
        if gap > LONG {
            self.pause = Some((now, gap));
        }
        self.last = now;
    }

    /// A message was heard. Returns how long it may have waited.
    pub fn handle_message(&mut self, now: Instant) -> Duration {
        self.handle_beat(now);
        match self.pause {
            Some((end, length)) if now.duration_since(end) < BACKLOG => length,
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(12);

    #[test]
    fn a_message_heard_after_a_pause_may_have_waited_for_all_of_it() {
        let start = Instant::now();
        // Whichever of the two comes first.
        for beat_first in [false, true] {
            let mut pulse = Pulse::new(start);
            pulse.handle_beat(start + BEAT);
            let woke = start + BEAT + PAUSE;
            if beat_first {
                pulse.handle_beat(woke);
            }
            assert_eq!(pulse.handle_message(woke), PAUSE);
            assert_eq!(pulse.handle_message(woke + BACKLOG / 2), PAUSE);
        }
    }

    #[test]
    fn a_loop_that_comes_round_in_time_delays_nothing() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        for n in 1..100 {
            pulse.handle_beat(start + BEAT * n);
            assert_eq!(pulse.handle_message(start + BEAT * n + BEAT / 2), Duration::ZERO);
        }
    }

    #[test]
    fn a_pause_is_forgotten_once_its_backlog_is_read() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        pulse.handle_beat(start + PAUSE);
        let mut now = start + PAUSE;
        while now < start + PAUSE + BACKLOG {
            pulse.handle_beat(now);
            now += BEAT;
        }
        assert_eq!(pulse.handle_message(now), Duration::ZERO);
    }
}
