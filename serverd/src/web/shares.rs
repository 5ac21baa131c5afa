//! Places that are shared out: there are so many, and nobody has more than a share of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The places.
#[derive(Debug, Clone)]
pub(super) struct Shares {
    all: usize,
    share: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of: HashMap<String, usize>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    shares: Shares,
    who: String,
}

impl Shares {
    /// So many places, so many of them for one.
    pub(super) fn new(all: usize, share: usize) -> Self {
        Self {
            all,
            share,
            taken: Arc::default(),
        }
    }

    /// Takes a place for somebody, when there is one.
    pub(super) fn take(&self, who: String) -> Option<Place> {
        let mut taken = self.taken();
        let of = taken.of.get(&who).copied().unwrap_or(0);
        if taken.all >= self.all || of >= self.share {
            return None;
        }
        taken.all += 1;
        taken.of.insert(who.clone(), of + 1);
        drop(taken);
        Some(Place {
            shares: self.clone(),
            who,
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        taken.all -= 1;
        match taken.of.get_mut(&self.who) {
            Some(of) if *of > 1 => *of -= 1,
            _ => {
                taken.of.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_more_than_a_share_and_all_together_no_more_than_there_are() {
        let shares = Shares::new(5, 2);
        let take = |who: &str| shares.take(who.to_owned());
        let held = [take("greedy"), take("greedy")];
        assert!(held.iter().all(Option::is_some));
        assert!(take("greedy").is_none());
        let others = [take("a"), take("b"), take("c")];
        assert!(others.iter().all(Option::is_some));
        assert!(take("d").is_none(), "there are no more");
        drop(held);
        assert!(take("d").is_some());
        drop(others);
        assert!(shares.taken().of.is_empty() && shares.taken().all == 0);
    }
}
