//! What the agent says: its presence, and what happens to tunnels.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rssh_mqtt::{Publish, Session};
use rssh_proto::payload::{self, DeviceEvent, DeviceEventKind, DeviceStatus, Presence, V1};
use rssh_proto::topic::Topic;
use rssh_proto::{DeviceId, Epoch, Generation, InstanceId, TunnelId};

/// How long the broker keeps an event for a server that is not there.
const EVENT_EXPIRY: Duration = Duration::from_secs(60);
/// How many events wait for the broker to come back.
const BACKLOG: usize = 64;

/// Speaks for the device on its session.
pub(super) struct Voice {
    device: DeviceId,
    instance: InstanceId,
    /// Of the connect that is up or was tried last.
    generation: Arc<AtomicU64>,
    session: Session,
    /// Events that could not be sent yet.
    backlog: VecDeque<DeviceEvent>,
}

impl Voice {
    pub(super) fn new(device: DeviceId, instance: InstanceId, generation: Arc<AtomicU64>, session: Session) -> Self {
        Self {
            device,
            instance,
            generation,
            session,
            backlog: VecDeque::new(),
        }
    }

    /// Says who is here and what it holds; servers answer with what to open and to close. Then what had to wait.
    pub(super) fn online(&mut self, tunnels: Vec<(TunnelId, Epoch)>) {
        let generation = self.generation();
        if let Err(error) = self.session.send(self.status(Presence::Online, tunnels)) {
            tracing::warn!(%error, "cannot say that this device is online");
        }
        self.flush();
        tracing::info!(device = %self.device, %generation, "connected to the broker");
    }

    /// Says that the device leaves: at once, where the will would come late, and so that no will is published.
    pub(super) async fn farewell(&self, grace: Duration) {
        let offline = self.status(Presence::Offline, vec![]);
        let _ = tokio::time::timeout(grace, self.session.publish(offline)).await;
        self.session.goodbye();
    }

    /// Has the session see whether it still reaches the broker.
    pub(super) fn network_changed(&self) {
        self.session.network_changed();
    }

    /// Whether anybody can hear it.
    pub(super) fn is_up(&self) -> bool {
        self.session.is_up()
    }

    /// Sends an event, after those that still wait.
    pub(super) fn report(&mut self, tunnel: TunnelId, epoch: Epoch, event: DeviceEventKind) {
        if self.backlog.len() == BACKLOG {
            self.backlog.pop_front();
        }
        self.backlog.push_back(DeviceEvent {
            v: V1,
            tunnel,
            instance: self.instance.clone(),
            epoch,
            event,
        });
        self.flush();
    }

    fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Relaxed))
    }

    fn status(&self, presence: Presence, tunnels: Vec<(TunnelId, Epoch)>) -> Publish {
        let status = status(presence, self.generation(), &self.instance, tunnels);
        Publish::new(Topic::DeviceStatus(self.device.clone()), payload::encode(&status)).retained()
    }

    fn flush(&mut self) {
        while let Some(event) = self.backlog.front() {
            let topic = Topic::DeviceEvent(self.device.clone());
            let publish = Publish::new(topic, payload::encode(event)).expiring(EVENT_EXPIRY);
            if let Err(error) = self.session.send(publish) {
                tracing::debug!(%error, waiting = self.backlog.len(), "events wait for the broker");
                return;
            }
            self.backlog.pop_front();
        }
    }
}

/// A device's presence.
pub(super) fn status(
    presence: Presence,
    generation: Generation,
    instance: &InstanceId,
    tunnels: Vec<(TunnelId, Epoch)>,
) -> DeviceStatus {
    DeviceStatus {
        v: V1,
        presence,
        generation,
        instance: instance.clone(),
        tunnels,
    }
}
