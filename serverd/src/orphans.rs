//! Sessions whose monitor has died: they belong to the system's first process then, among all that has ever gone into the
//! background. Asking the kernel about each of those at every look costs more than all the rest of it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// In how many looks one has to be another account's before it is taken for a stranger: a session that sshd was about to
/// make has put its account on by the next.
const LOOKS: u8 = 2;
/// How long a stranger is one: whatever has become of it meanwhile is seen then.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// The first process's children that are none of ours.
#[derive(Debug, Default)]
pub struct Strangers {
    /// In how many looks each of those that are there now has been another account's.
    looks: HashMap<i32, u8>,
    forget_at: Option<Instant>,
}

impl Strangers {
    /// Takes the children that there are, and returns those that `is_ours` says to be of the session account. Strangers
    /// are not asked about.
    pub fn handle_children(&mut self, children: &[i32], is_ours: impl Fn(i32) -> bool, now: Instant) -> Vec<i32> {
        if self.forget_at.is_none_or(|at| now >= at) {
            self.looks.clear();
            self.forget_at = Some(now + FORGOTTEN_AFTER);
        }
        // One that is gone makes way for another with its number.
        let before = std::mem::take(&mut self.looks);
        let mut ours = Vec::new();
        for &child in children {
            let looks = before.get(&child).copied().unwrap_or(0);
            if looks < LOOKS && is_ours(child) {
                ours.push(child);
            } else {
                self.looks.insert(child, (looks + 1).min(LOOKS));
            }
        }
        ours
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_is_asked_about_twice_and_then_no_more_until_it_is_forgotten() {
        let mut strangers = Strangers::default();
        let start = Instant::now();
        let mut asked = |now: Instant| {
            let count = std::cell::Cell::new(0);
            let stranger = |_| {
                count.set(count.get() + 1);
                false
            };
            assert!(strangers.handle_children(&[7, 8], stranger, now).is_empty());
            count.get()
        };
        assert_eq!(
            [0, 1, 2, 3].map(|n| asked(start + Duration::from_secs(n))),
            [2, 2, 0, 0]
        );
        assert_eq!(asked(start + FORGOTTEN_AFTER), 2);
    }

    #[test]
    fn a_session_is_told_at_every_look_and_one_with_a_strangers_number_is_none() {
        let mut strangers = Strangers::default();
        let now = Instant::now();
        for _ in 0..4 {
            assert_eq!(strangers.handle_children(&[7, 8], |pid| pid == 8, now), [8]);
        }
        // 7 ends, and its number comes again.
        assert_eq!(strangers.handle_children(&[8], |pid| pid == 8, now), [8]);
        assert_eq!(strangers.handle_children(&[7, 8], |_| true, now), [7, 8]);
    }

    #[test]
    fn a_child_that_puts_the_account_on_after_the_first_look_is_seen() {
        let mut strangers = Strangers::default();
        let now = Instant::now();
        assert!(strangers.handle_children(&[7], |_| false, now).is_empty());
        assert_eq!(strangers.handle_children(&[7], |_| true, now), [7]);
    }
}
