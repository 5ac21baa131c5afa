//! What changes between two lists of tunnels or devices, and when the next is asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use rssh_proto::payload::{DeviceInfo, TunnelInfo};
use rssh_proto::{DeviceId, TunnelId};
use serde::Serialize;

/// The longest pause after lists that failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What lists are of.
pub trait Watched: Clone {
    type Key: Ord;

    /// What tells it from the others.
    fn key(&self) -> Self::Key;

    /// Whether it has changed since.
    fn differs(&self, before: &Self) -> bool;
}

impl Watched for TunnelInfo {
    type Key = TunnelId;

    fn key(&self) -> TunnelId {
        self.tunnel
    }

    fn differs(&self, before: &Self) -> bool {
        self != before
    }
}

impl Watched for DeviceInfo {
    type Key = DeviceId;

    fn key(&self) -> DeviceId {
        self.device.clone()
    }

    /// Time goes by for each; one that came again since has been there for less long.
    fn differs(&self, before: &Self) -> bool {
        (self.presence, &self.tags) != (before.presence, &before.tags) || self.since_s < before.since_s
    }
}

/// What happened to one of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    Added,
    Changed,
    Removed,
}

/// A list as it was last seen.
#[derive(Debug)]
pub struct Watch<T: Watched> {
    every: Duration,
    pause: Duration,
    seen: BTreeMap<T::Key, T>,
}

impl<T: Watched> Watch<T> {
    /// Nothing seen yet; a list is due after each span.
    pub fn new(every: Duration) -> Self {
        Self {
            every,
            pause: every,
            seen: BTreeMap::new(),
        }
    }

    /// A list came: what has happened since the last one, in the list's order, and then what is gone.
    pub fn handle_list(&mut self, list: &[T]) -> Vec<(Event, T)> {
        self.pause = self.every;
        let mut gone = std::mem::take(&mut self.seen);
        let mut events = Vec::new();
        for item in list {
            match gone.remove(&item.key()) {
                None => events.push((Event::Added, item.clone())),
                Some(before) if item.differs(&before) => events.push((Event::Changed, item.clone())),
                Some(_) => {}
            }
            self.seen.insert(item.key(), item.clone());
        }
        events.extend(gone.into_values().map(|item| (Event::Removed, item)));
        events
    }

    /// No list came.
    pub fn handle_failure(&mut self) {
        self.pause = (self.pause * 2).min(LONGEST_PAUSE.max(self.every));
    }

    /// How long to wait for the next list.
    pub fn pause(&self) -> Duration {
        self.pause
    }
}

#[cfg(test)]
mod tests {
    use rssh_proto::payload::{Presence, TunnelState};

    use super::*;
    use crate::testing::info;

    #[test]
    fn each_event_is_told_once() {
        let mut watch = Watch::new(Duration::from_secs(2));
        let one = info("device-1", TunnelState::Claimed);
        let two = info("device-2", TunnelState::Active);
        let added = [(Event::Added, one.clone()), (Event::Added, two.clone())];
        assert_eq!(watch.handle_list(&[one.clone(), two.clone()]), added);
        assert_eq!(watch.handle_list(&[two.clone(), one.clone()]), [], "order is no event");
        let up = TunnelInfo {
            state: TunnelState::Active,
            ..one
        };
        let events = [(Event::Changed, up.clone()), (Event::Removed, two)];
        assert_eq!(watch.handle_list(std::slice::from_ref(&up)), events);
        assert_eq!(watch.handle_list(&[up]), []);
    }

    #[test]
    fn a_device_changes_when_it_comes_or_goes_and_not_by_the_clock() {
        let device = |presence, since_s| DeviceInfo {
            device: "device-1".parse().unwrap(),
            presence,
            since_s,
            tags: Default::default(),
        };
        let mut watch = Watch::new(Duration::from_secs(2));
        let events = [
            (Presence::Online, Some(1), 1),
            (Presence::Online, Some(3), 0),
            (Presence::Offline, Some(0), 1),
            (Presence::Offline, Some(2), 0),
            // It was there in between.
            (Presence::Offline, Some(1), 1),
        ];
        for (presence, since_s, count) in events {
            assert_eq!(
                watch.handle_list(&[device(presence, since_s)]).len(),
                count,
                "{presence:?} {since_s:?}"
            );
        }
    }

    #[test]
    fn failures_lengthen_the_pause_until_a_list_comes() {
        let mut watch = Watch::<TunnelInfo>::new(Duration::from_secs(2));
        let pauses: Vec<u64> = (0..6)
            .map(|_| {
                watch.handle_failure();
                watch.pause().as_secs()
            })
            .collect();
        assert_eq!(pauses, [4, 8, 16, 30, 30, 30]);
        watch.handle_list(&[]);
        assert_eq!(watch.pause(), Duration::from_secs(2));
    }
}
