//! Tunnels that are over: a late copy of an order is not to open one again.

use std::collections::VecDeque;

use rssh_proto::payload::DeviceEventKind;
use rssh_proto::{Epoch, TunnelId};

/// How many ended tunnels are remembered.
const REMEMBERED: usize = 64;

/// The tunnels that ended last.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<Over>);

/// A tunnel that is over.
#[derive(Debug)]
pub(super) struct Over {
    id: TunnelId,
    /// The highest epoch that was ordered or claimed.
    pub(super) epoch: Epoch,
    /// What the latest claim got.
    pub(super) claimed: Epoch,
    /// How it ended.
    pub(super) event: DeviceEventKind,
}

impl History {
    pub(super) fn get(&self, id: TunnelId) -> Option<&Over> {
        self.0.iter().find(|over| over.id == id)
    }

    pub(super) fn add(&mut self, id: TunnelId, epoch: Epoch, claimed: Epoch, event: DeviceEventKind) {
        self.0.retain(|over| over.id != id);
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(Over {
            id,
            epoch,
            claimed,
            event,
        });
    }
}
