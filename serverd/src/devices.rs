//! What devices say: presence, acknowledgements, failures.

use std::sync::Arc;

use rssh_proto::audit::Event;
use rssh_proto::payload::{CloseOrder, DeviceEvent, DeviceEventKind, DeviceStatus, Rank, V1};
use rssh_proto::topic::Topic;
use rssh_proto::{DeviceId, Epoch, Failure, FailureKind, InstanceId, TunnelId};

use crate::requests;
use crate::server::Server;
use crate::sessions;
use crate::store::{Acknowledged, StoreError};

/// Notes a device's presence. One that has just connected is told what to open and what to close.
///
/// A retained status is from an earlier moment: the device is there, but what it held then says nothing about now.
pub async fn status(server: Arc<Server>, device: DeviceId, status: DeviceStatus, retained: bool) {
    let reconcile = match server.store.presence(&device, &status).await {
        Ok(Some(_)) if retained => return,
        Ok(Some(reconcile)) => reconcile,
        Ok(None) => {
            tracing::debug!(%device, generation = %status.generation, "a late status changes nothing");
            return;
        }
        Err(error) => {
            tracing::warn!(%device, %error, "cannot note a device's presence");
            return;
        }
    };
    tracing::info!(%device, presence = ?status.presence, generation = %status.generation, "device");
    for tunnel in &reconcile.open {
        if let Some(order) = requests::open_order(&server, tunnel, 0) {
            let sent = server.publish(Topic::DeviceOpen(device.clone()), &order).await;
            tracing::info!(%device, tunnel = %tunnel.id, ?sent, "asked again after a connect");
        }
    }
    for (tunnel, epoch) in reconcile.close {
        let order = CloseOrder { v: V1, tunnel, epoch };
        let sent = server.publish(Topic::DeviceClose(device.clone()), &order).await;
        tracing::info!(%device, %tunnel, ?sent, "told to close after a connect");
    }
}

/// Notes what a device says of a tunnel, and tells whoever asked for it.
pub async fn event(server: Arc<Server>, device: DeviceId, event: DeviceEvent) {
    let tunnel = event.tunnel;
    // An acknowledgement, of which there is one for every open, is noted together with who speaks.
    if event.event != DeviceEventKind::Accepted {
        note_speaker(&server, &device, server.store.note_instance(&device, &event.instance)).await;
    }
    match event.event {
        DeviceEventKind::Accepted => acknowledged(&server, &device, tunnel, &event.instance).await,
        DeviceEventKind::Failed(failure) => failed(&server, &device, tunnel, event.epoch, &failure).await,
        DeviceEventKind::Lost { reason } => {
            tracing::info!(%device, %tunnel, reason = rssh_proto::text::sanitize(&reason, 200), "lost on the device");
        }
        DeviceEventKind::Closed => match server.store.end_on(tunnel, &device).await {
            Ok(ended) => {
                tracing::info!(%device, %tunnel, ended, "closed on the device");
                if ended {
                    let event = Event::now("closed").device(&device).tunnel(tunnel);
                    server.audit.record(event.with("by", "device"));
                    sessions::end_here(&server, tunnel);
                }
            }
            Err(error) => tracing::warn!(%device, %tunnel, %error, "cannot note the end of a tunnel"),
        },
    }
}

/// Notes that a device has its order.
async fn acknowledged(server: &Arc<Server>, device: &DeviceId, tunnel: TunnelId, instance: &InstanceId) {
    match server.store.acknowledged(tunnel, device, instance).await {
        Ok(Acknowledged { by_another, told }) => {
            if by_another {
                note_speaker(server, device, server.store.note_turn(device, instance)).await;
            }
            let Some((tunnel, askers)) = told else { return };
            for asker in &askers {
                server.progress(asker, &tunnel, Rank::Answered);
            }
        }
        Err(error) => tracing::warn!(%device, %tunnel, %error, "cannot note an acknowledgement"),
    }
}

/// Tells of two agents that use the identity of one device, once that is noted.
async fn note_speaker(server: &Server, device: &DeviceId, noted: impl Future<Output = Result<bool, StoreError>>) {
    match noted.await {
        Ok(true) => {
            tracing::error!(%device, "two agents use the identity of one device; it is quarantined");
            server.audit.record(Event::now("quarantined").device(device));
        }
        Ok(false) => {}
        Err(error) => tracing::warn!(%device, %error, "cannot note which agent speaks"),
    }
}

/// A tunnel that has not become active has failed. Of one that is up, or was, a dead target is only a remark: the tunnel
/// stays, and whoever uses it next hears why nothing answered.
async fn failed(server: &Arc<Server>, device: &DeviceId, tunnel: TunnelId, epoch: Epoch, failure: &Failure) {
    let remark = failure.kind == FailureKind::TargetRefused && epoch > Epoch::default();
    let noted = if remark {
        server.store.note_fault(tunnel, device, failure).await.map(|()| None)
    } else {
        server.store.fail(tunnel, device, failure, false).await
    };
    match noted {
        Ok(Some((tunnel, askers))) => {
            tracing::info!(%device, tunnel = %tunnel.id, kind = ?failure.kind, %failure, "failed on the device");
            let event = requests::of_tunnel("failed", &tunnel).with("by", "device");
            server.audit.record(event.with("why", requests::kind(failure)));
            for asker in &askers {
                server.fail(asker, Some(&tunnel), failure.clone());
            }
        }
        Ok(None) => tracing::info!(%device, %tunnel, remark, %failure, "the device reports"),
        Err(error) => tracing::warn!(%device, %tunnel, %error, "cannot note a failure"),
    }
}
