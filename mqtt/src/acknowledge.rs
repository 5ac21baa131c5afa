//! What becomes of an acknowledged publish, at one broker or at several.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::event::{Delivery, PublishError};

/// Who waits for the acknowledgement of a publish. There is one for each connection that it goes out on; the best
/// outcome is told: at once when a broker knows of a subscriber, else when the last one has answered or is lost.
#[derive(Clone)]
pub(crate) struct Acknowledge(Arc<Waiting>);

type Outcome = Result<Delivery, PublishError>;

struct Waiting(Mutex<(Option<oneshot::Sender<Outcome>>, Outcome)>);

impl Acknowledge {
    pub(crate) fn new() -> (Self, oneshot::Receiver<Outcome>) {
        let (sender, receiver) = oneshot::channel();
        let waiting = Waiting(Mutex::new((Some(sender), Err(PublishError::Lost))));
        (Self(Arc::new(waiting)), receiver)
    }

    /// Takes one broker's answer.
    pub(crate) fn handle(self, outcome: Outcome) {
        let mut waiting = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (sender, best) = &mut *waiting;
        if outcome == Ok(Delivery::Accepted) {
            if let Some(sender) = sender.take() {
                // One that no longer waits is no fault.
                let _ = sender.send(outcome);
            }
        } else if best.is_err() {
            *best = outcome;
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let (sender, best) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = sender.take() {
            let _ = sender.send(best.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_broker_that_knows_a_subscriber_is_enough_and_is_told_at_once() {
        let (one, mut told) = Acknowledge::new();
        let two = one.clone();
        one.handle(Ok(Delivery::NoSubscriber));
        assert!(told.try_recv().is_err());
        let three = two.clone();
        two.handle(Ok(Delivery::Accepted));
        assert_eq!(told.try_recv().unwrap(), Ok(Delivery::Accepted));
        three.handle(Err(PublishError::Full));
    }

    #[test]
    fn nobody_subscribes_only_when_no_broker_knows_anybody() {
        let (one, mut told) = Acknowledge::new();
        let two = one.clone();
        one.handle(Ok(Delivery::NoSubscriber));
        // Its connection is lost.
        drop(two);
        assert_eq!(told.try_recv().unwrap(), Ok(Delivery::NoSubscriber));
        let (one, mut told) = Acknowledge::new();
        drop(one);
        assert_eq!(told.try_recv().unwrap(), Err(PublishError::Lost));
    }
}
