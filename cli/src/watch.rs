//! What changes between two lists of tunnels, and when the next is asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use rssh_proto::TunnelId;
use rssh_proto::payload::TunnelInfo;
use serde::Serialize;

/// The longest pause after lists that failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What happened to a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    Added,
    Changed,
    Removed,
}

/// The tunnels as they were last seen.
#[derive(Debug)]
pub struct Watch {
    every: Duration,
    pause: Duration,
    seen: BTreeMap<TunnelId, TunnelInfo>,
}

impl Watch {
    /// Nothing seen yet; a list is due after each span.
    pub fn new(every: Duration) -> Self {
        Self {
            every,
            pause: every,
            seen: BTreeMap::new(),
        }
    }

    /// A list came: what has happened since the last one, in the list's order, and then what is gone.
    pub fn handle_list(&mut self, tunnels: &[TunnelInfo]) -> Vec<(Event, TunnelInfo)> {
        self.pause = self.every;
        let mut gone = std::mem::take(&mut self.seen);
        let mut events = Vec::new();
        for info in tunnels {
            match gone.remove(&info.tunnel) {
                None => events.push((Event::Added, info.clone())),
                Some(before) if before != *info => events.push((Event::Changed, info.clone())),
                Some(_) => {}
            }
            self.seen.insert(info.tunnel, info.clone());
        }
        events.extend(gone.into_values().map(|info| (Event::Removed, info)));
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
    use rssh_proto::Target;
    use rssh_proto::payload::TunnelState;

    use super::*;

    fn info(device: &str, state: TunnelState) -> TunnelInfo {
        TunnelInfo {
            tunnel: TunnelId::generate(),
            device: device.parse().unwrap(),
            target: Target::ssh(),
            state,
            server: None,
            host: None,
            port: None,
            expires_at: 0,
            host_expires_at: None,
            host_valid_s: None,
        }
    }

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
    fn failures_lengthen_the_pause_until_a_list_comes() {
        let mut watch = Watch::new(Duration::from_secs(2));
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
