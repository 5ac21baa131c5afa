//! Virtual time: events in their order, and random numbers from a seed.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// Events that are still to come. Those of one time come in the order in which they were added.
#[derive(Debug)]
pub(super) struct Agenda<E> {
    /// The state machines know nothing but spans between such times, so when it really is does not matter.
    epoch: Instant,
    now: Duration,
    added: u64,
    heap: BinaryHeap<Reverse<(Duration, u64)>>,
    events: std::collections::HashMap<u64, E>,
}

impl<E> Agenda<E> {
    /// Nothing to come.
    pub(super) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            now: Duration::ZERO,
            added: 0,
            heap: BinaryHeap::new(),
            events: std::collections::HashMap::new(),
        }
    }

    /// The time since the beginning.
    pub(super) fn elapsed(&self) -> Duration {
        self.now
    }

    /// The same as state machines take it.
    pub(super) fn now(&self) -> Instant {
        self.epoch + self.now
    }

    /// Adds an event that comes after a while.
    pub(super) fn after(&mut self, pause: Duration, event: E) {
        self.at(self.now + pause, event);
    }

    /// Adds an event that comes at a time, or at once when that is past.
    pub(super) fn at(&mut self, time: Duration, event: E) {
        self.added += 1;
        self.heap.push(Reverse((time.max(self.now), self.added)));
        self.events.insert(self.added, event);
    }

    /// The span from the beginning to what a state machine calls a time.
    pub(super) fn since_beginning(&self, time: Instant) -> Duration {
        time.saturating_duration_since(self.epoch)
    }

    /// The next event, at whose time it is then.
    pub(super) fn next(&mut self) -> Option<E> {
        let Reverse((time, number)) = self.heap.pop()?;
        self.now = time;
        self.events.remove(&number)
    }
}

thread_local! {
    static STATE: Cell<u64> = const { Cell::new(0) };
}

/// Begins the series of random numbers of a seed, for this thread.
pub(super) fn seed(seed: u64) {
    STATE.set(seed);
}

/// The next random number: SplitMix64 (Steele, Lea and Flood, 2014).
pub(super) fn random() -> u64 {
    let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(state);
    let mut z = state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A random span up to the one given, as agents draw it.
pub(super) fn jitter(most: Duration) -> Duration {
    let share = (random() >> 11) as f64 / (1_u64 << 53) as f64;
    most.mul_f64(share)
}
