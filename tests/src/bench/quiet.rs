//! Waiting until nobody else is at work on the machine.

use std::time::Duration;
use std::{fs, thread};

use crate::process;

/// How long to wait at most: a machine that others use is never quiet.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the processors are watched.
const WATCHED: Duration = Duration::from_secs(2);
/// What share of their time they have to be idle for.
const IDLE: f64 = 0.9;

/// Waits until the processors have next to nothing to do; says whether that came to pass.
pub fn wait() -> bool {
    process::wait(PATIENCE, || {
        let before = spent();
        thread::sleep(WATCHED);
        before
            .zip(spent())
            .is_some_and(|(before, after)| idle(before, after) >= IDLE)
    })
}

/// The processors' time so far, in ticks: idle, and all of it (proc(5), /proc/stat).
fn spent() -> Option<[f64; 2]> {
    parse(&fs::read_to_string("/proc/stat").ok()?)
}

fn parse(text: &str) -> Option<[f64; 2]> {
    let ticks = text.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    // User, nice, system, idle, waiting for disks, interrupts of both kinds, stolen: what comes then is in the first two.
    let ticks: Vec<f64> = ticks.take(8).map_while(|ticks| ticks.parse().ok()).collect();
    Some([ticks.get(3)? + ticks.get(4)?, ticks.iter().sum()])
}

/// The share of the time between two looks in which they were idle.
fn idle(before: [f64; 2], after: [f64; 2]) -> f64 {
    (after[0] - before[0]) / (after[1] - before[1]).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_processors_are_idle_is_read() {
        let before = parse("cpu  100 0 50 800 50 0 0 0 7 0\ncpu0 1 2 3 4\n").unwrap();
        let after = parse("cpu  110 0 50 880 60 0 0 0 7 0\ncpu0 1 2 3 4\n").unwrap();
        assert_eq!((before, idle(before, after)), ([850.0, 1000.0], 0.9));
        assert_eq!(idle(after, after), 0.0);
        assert!(parse("intr 1\n").is_none());
    }
}
