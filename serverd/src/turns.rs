//! Whose request is next: each user has a few in work at a time at this server, and with the rest waits for itself.
//!
//! In the database a user's requests wait for one another anyway, each with a connection in its hands. Without turns one
//! who asks for more than that would take all connections, and everyone else would wait in the same line.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rssh_proto::UserId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many requests of one user are worked on at once.
const IN_WORK: usize = 2;
/// How many more may wait: what a user may send in a second by default.
const WAITING: usize = 200;

/// One user's requests.
#[derive(Debug)]
struct Lane {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// The users with requests.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<UserId, Arc<Lane>>>);

/// A request's turn, until it is dropped.
pub struct Turn<'a> {
    turns: &'a Turns,
    user: UserId,
    lane: Arc<Lane>,
    place: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// Waits for a turn of the user's; `None` when too many wait already.
    pub async fn take(&self, user: &UserId) -> Option<Turn<'_>> {
        let lane = {
            let mut lanes = self.lanes();
            let lane = lanes.entry(user.clone()).or_insert_with(|| {
                Arc::new(Lane {
                    places: Arc::new(Semaphore::new(IN_WORK)),
                    waiting: AtomicUsize::new(0),
                })
            });
            if lane.waiting.load(Ordering::Relaxed) >= WAITING {
                return None;
            }
            lane.waiting.fetch_add(1, Ordering::Relaxed);
            lane.clone()
        };
        // From here on it leaves nothing behind when it is given up.
        let mut turn = Turn {
            turns: self,
            user: user.clone(),
            lane,
            place: None,
        };
        let waiting = Waiting(&turn.lane);
        let place = turn.lane.places.clone().acquire_owned().await.ok()?;
        drop(waiting);
        turn.place = Some(place);
        Some(turn)
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<UserId, Arc<Lane>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One that waits.
struct Waiting<'a>(&'a Lane);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.place = None;
        let mut lanes = self.turns.lanes();
        // The table's and this one's: nobody else has business there.
        if Arc::strong_count(&self.lane) == 2 {
            lanes.remove(&self.user);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn user(name: &str) -> UserId {
        name.parse().unwrap()
    }

    #[tokio::test]
    async fn one_who_asks_for_much_waits_for_itself_and_for_nobody_else() {
        let turns = Arc::new(Turns::default());
        let (greedy, quiet) = (user("greedy"), user("quiet"));
        let held = [turns.take(&greedy).await.unwrap(), turns.take(&greedy).await.unwrap()];
        let waiting: Vec<_> = (0..WAITING)
            .map(|_| {
                let (turns, greedy) = (turns.clone(), greedy.clone());
                tokio::spawn(async move { turns.take(&greedy).await.is_some() })
            })
            .collect();
        while turns.lanes()[&greedy].waiting.load(Ordering::Relaxed) < WAITING {
            tokio::task::yield_now().await;
        }
        assert!(turns.take(&greedy).await.is_none(), "too many wait");
        let soon = tokio::time::timeout(Duration::from_secs(20), turns.take(&quiet)).await;
        assert!(soon.unwrap().is_some());
        drop(held);
        for taken in waiting {
            assert!(taken.await.unwrap(), "each has its turn in the end");
        }
        assert!(turns.lanes().is_empty(), "and nothing is left of them");
    }

    #[tokio::test]
    async fn one_that_is_given_up_leaves_nothing_behind() {
        let turns = Turns::default();
        let greedy = user("greedy");
        let held = [turns.take(&greedy).await.unwrap(), turns.take(&greedy).await.unwrap()];
        let third = tokio::time::timeout(Duration::from_millis(10), turns.take(&greedy)).await;
        assert!(third.is_err());
        assert_eq!(turns.lanes()[&greedy].waiting.load(Ordering::Relaxed), 0);
        drop(held);
        assert!(turns.lanes().is_empty());
    }
}
