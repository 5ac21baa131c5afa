//! What users ask for, over MQTT.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rssh_mqtt::{Delivery, Publish};
use rssh_proto::audit::Event;
use rssh_proto::payload::{
    self, ClosedTunnel, DeviceInfo, OpenOrder, OpenRequest, Operation, Rank, ReplyBody, Request, ServerOperation,
    ServerRequest, SharedName, TunnelState, TunnelTrace, V1,
};
use rssh_proto::topic::Topic;
use rssh_proto::{Failure, FailureKind, ServerId, TunnelId, UserId};

use crate::server::Server;
use crate::sessions;
use crate::store::{Asker, Bounds, Opening, StoreError, Times, Tunnel};

/// The longest wait that a request may ask for: for a device that answers, and for one that is offline.
const LONGEST_WAIT_MS: u32 = 300_000;
const LONGEST_QUEUE_MS: u32 = 7 * 24 * 3_600_000;
/// How long an order is given to be acknowledged, and how often it is sent, before the device counts as not answering.
/// An acknowledgement goes to any server: to one that is frozen, as likely as not where there are two.
const ORDER_EVERY: Duration = Duration::from_millis(500);
const ORDERS: usize = 6;
/// How many tunnels go into one message: each is under 300 bytes.
const TUNNELS_PER_MESSAGE: usize = 8;
/// How much of a message devices may fill, in bytes: the rest is for what stands around them.
const DEVICES_BYTES: usize = payload::LIMIT - 256;

/// The request with what is left of its time after it waited for so long; `None` for an open whose time is over, which
/// must not open anything any more. A close does good whenever it comes.
pub fn in_time(mut request: Request, waited: Duration) -> Option<Request> {
    let waited_ms = u32::try_from(waited.as_millis()).unwrap_or(u32::MAX);
    if let (Operation::Open(_), 1..) = (&request.op, waited_ms) {
        request.deadline_ms = request.deadline_ms.checked_sub(waited_ms).filter(|left| *left > 0)?;
    }
    Some(request)
}

/// Answers a user who asks too often.
pub fn too_many(server: &Server, user: UserId, request: Request, retry_after_s: u32) {
    let asker = Asker {
        user,
        session: request.session,
        request: request.id,
    };
    let message = format!(
        "{} sends more requests than {} takes; retry after {retry_after_s} s",
        asker.user, server.id
    );
    server.fail(&asker, None, Failure::busy(message, retry_after_s));
}

/// Carries a request out, when it is its user's turn.
pub async fn handle(server: Arc<Server>, user: UserId, request: Request) {
    let began = Instant::now();
    let Some(_turn) = server.turns.take(&user).await else {
        return too_many(&server, user, request, 1);
    };
    let Ok(_place) = server.places.acquire().await else {
        return;
    };
    // Nobody waits any more for what comes too late.
    let Some(request) = in_time(request, began.elapsed()) else {
        return;
    };
    let asker = Asker {
        user,
        session: request.session,
        request: request.id,
    };
    match request.op {
        Operation::Open(open) => self::open(&server, &asker, &open, request.deadline_ms).await,
        Operation::Close(close) => match server.store.close(&asker, &close).await {
            Ok(outcomes) => self::close(&server, &asker, outcomes).await,
            Err(error) => server.store_failed(&asker, &error),
        },
        Operation::List => match server.store.tunnels_of(&asker.user).await {
            Ok(tunnels) => list(&server, &asker, &tunnels),
            Err(error) => server.store_failed(&asker, &error),
        },
        Operation::Devices => match server.store.devices_of(&asker.user).await {
            Ok(devices) => list_devices(&server, &asker, devices),
            Err(error) => server.store_failed(&asker, &error),
        },
        Operation::Trace { tunnel } => {
            let found = server.store.trace_of(&asker.user, tunnel).await;
            tell_trace(&server, &asker, found, || unknown(tunnel));
        }
        Operation::Latest { device, target } => {
            let found = server.store.latest_of(&asker.user, &device, target.as_ref()).await;
            tell_trace(&server, &asker, found, || {
                let to = target
                    .as_ref()
                    .map_or_else(String::new, |target| format!("{target} of "));
                let message = format!("you have not opened a tunnel to {to}{device} yet; try: rssh open {device}");
                Failure::new(FailureKind::UnknownTunnel, message)
            });
        }
        Operation::Share { tunnel, valid_s } => match server.store.tunnel_of(&asker.user, tunnel).await {
            Ok(Some(tunnel)) => share(&server, &asker, &tunnel, valid_s).await,
            Ok(None) => server.fail(&asker, None, unknown(tunnel)),
            Err(error) => server.store_failed(&asker, &error),
        },
        Operation::HostKeys { device } => match server.store.host_keys(&asker.user, &device).await {
            Ok(Some(keys)) => {
                let body = ReplyBody::HostKeys { device, keys };
                server.reply(&asker, None, Rank::Final, body);
            }
            Ok(None) => {
                let message =
                    format!("{device} is not a device that you may open something on; rssh devices lists them");
                server.fail(&asker, None, Failure::new(FailureKind::UnknownDevice, message));
            }
            Err(error) => server.store_failed(&asker, &error),
        },
        Operation::Name { tunnel } => match server.store.tunnel_of(&asker.user, tunnel).await {
            Ok(Some(tunnel)) => match &tunnel.failure {
                Some(failure) => server.fail(&asker, Some(&tunnel), failure.clone()),
                None => name(&server, &asker, &tunnel).await,
            },
            Ok(None) => server.fail(&asker, None, unknown(tunnel)),
            Err(error) => server.store_failed(&asker, &error),
        },
    }
}

fn unknown(tunnel: TunnelId) -> Failure {
    Failure::new(
        FailureKind::UnknownTunnel,
        format!("there is no open tunnel {tunnel}; rssh ls lists them"),
    )
}

async fn open(server: &Arc<Server>, asker: &Asker, request: &OpenRequest, deadline_ms: u32) {
    let limits = &server.config.tunnels;
    let seconds = |span: rssh_proto::duration::Span| u32::try_from(span.duration().as_secs()).unwrap_or(u32::MAX);
    let ttl_s = request
        .ttl_s
        .unwrap_or_else(|| seconds(limits.default_ttl))
        .clamp(1, seconds(limits.max_ttl));
    let longest = if request.wait {
        LONGEST_QUEUE_MS
    } else {
        LONGEST_WAIT_MS
    };
    let deadline_ms = deadline_ms.clamp(1, longest);
    let bounds = Bounds {
        ttl_s,
        deadline_ms,
        quotas: server.config.limits.quotas(),
    };
    match server.store.open(asker, request, &bounds).await {
        Err(error) => server.store_failed(asker, &error),
        Ok(Opening::Refused(failure)) => {
            tracing::info!(user = %asker.user, device = %request.device, target = %request.target, %failure, "refused");
            let event = Event::now("request-refused").user(&asker.user).device(&request.device);
            let target = request.target.to_string();
            server
                .audit
                .record(event.with("target", target).with("why", kind(&failure)));
            if failure.kind == FailureKind::Busy {
                server.in_vain(asker.user.as_str());
            }
            server.fail(asker, None, failure);
        }
        Ok(Opening::New(tunnel)) => {
            let event = Event::now("request")
                .user(&asker.user)
                .device(&tunnel.device)
                .tunnel(tunnel.id);
            server.audit.record(event.with("target", tunnel.target.to_string()));
            tracing::info!(tunnel = %tunnel.id, user = %asker.user, device = %tunnel.device, target = %tunnel.target, "requested");
            server.progress(asker, &tunnel, Rank::Accepted);
            order(server, asker, tunnel, request.wait).await;
        }
        Ok(Opening::Existing(tunnel)) => match tunnel.state {
            TunnelState::Active => name(server, asker, &tunnel).await,
            TunnelState::Claimed => server.progress(asker, &tunnel, Rank::Claimed),
            TunnelState::Requested | TunnelState::Reconnecting => {
                server.progress(asker, &tunnel, Rank::Accepted);
                order(server, asker, tunnel, request.wait).await;
            }
            TunnelState::Closed => server.fail(asker, Some(&tunnel), unknown(tunnel.id)),
            TunnelState::Failed => {
                let failure = tunnel.failure.clone().unwrap_or_else(|| unknown(tunnel.id));
                server.fail(asker, Some(&tunnel), failure);
            }
        },
    }
}

/// An event of the life of a tunnel.
pub fn of_tunnel(what: &str, tunnel: &Tunnel) -> Event {
    Event::now(what)
        .user(&tunnel.user)
        .device(&tunnel.device)
        .tunnel(tunnel.id)
}

/// The kind of a failure, as the audit trail has it: its message may name someone.
pub fn kind(failure: &Failure) -> serde_json::Value {
    serde_json::to_value(failure.kind).unwrap_or_default()
}

/// The order that a device gets for a tunnel; `None` when it could not arrive in time.
pub fn open_order(server: &Server, tunnel: &Tunnel, jitter_ms: u32) -> Option<OpenOrder> {
    let mut balancers = server.config.public.ssh.clone();
    let draw = usize::from_str_radix(&rssh_proto::id::random_hex::<4>(), 16).unwrap_or(0);
    let first = draw % balancers.len();
    balancers.rotate_left(first);
    let lb = balancers.remove(0);
    // A tunnel that has landed before may come back for as long as it lives.
    let within_ms = match tunnel.state {
        TunnelState::Requested => tunnel.within_ms,
        _ => tunnel.ttl_s.saturating_mul(1000),
    };
    (within_ms > 0 && tunnel.ttl_s > 0).then(|| OpenOrder {
        v: V1,
        tunnel: tunnel.id,
        epoch: tunnel.epoch.next(),
        target: tunnel.target.clone(),
        lb,
        other_lbs: balancers,
        ssh_user: server.config.sshd.user.clone(),
        within_ms,
        ttl_s: tunnel.ttl_s,
        jitter_ms,
    })
}

/// Tells the device, and whoever asked when the device cannot be told. With `wait` the request stays in the database:
/// the device gets its order when it connects.
async fn order(server: &Arc<Server>, asker: &Asker, tunnel: Tunnel, wait: bool) {
    match send_order(server, &tunnel).await {
        Sent::Yes if wait => return,
        Sent::Yes => {}
        Sent::TooLate => return,
        Sent::NoSubscriber if wait => {
            tracing::info!(tunnel = %tunnel.id, device = %tunnel.device, "queued until the device connects");
            return;
        }
        Sent::NoSubscriber => {
            let (_, seen) = server.store.last_seen(&tunnel.device).await.unwrap_or((false, None));
            let message = match seen {
                Some(seconds) => format!(
                    "{} is offline (last seen {} ago); use --wait to queue the request",
                    tunnel.device,
                    rough(seconds)
                ),
                None => format!("{} has never been online; start rssh-agentd on it", tunnel.device),
            };
            return give_up(server, &tunnel, Failure::new(FailureKind::Offline, message), false).await;
        }
        Sent::Away(error) => {
            tracing::warn!(tunnel = %tunnel.id, %error, "cannot tell the device");
            let message = format!("{} cannot reach the broker; try again in a moment", server.id);
            return server.fail(asker, Some(&tunnel), Failure::new(FailureKind::Busy, message));
        }
    }
    // Zero proves nothing: the link may be half open, or only a monitor may be subscribed.
    let server = server.clone();
    tokio::spawn(async move {
        for _ in 1..ORDERS {
            tokio::time::sleep(ORDER_EVERY).await;
            match server.store.unanswered(tunnel.id).await {
                Ok(Some(now)) => drop(send_order(&server, &now).await),
                Ok(None) => return,
                Err(error) => tracing::debug!(tunnel = %tunnel.id, %error, "cannot see whether the device answered"),
            }
        }
        tokio::time::sleep(ORDER_EVERY).await;
        let message = format!(
            "{} is connected, but does not answer; check its load and its link",
            tunnel.device
        );
        give_up(&server, &tunnel, Failure::new(FailureKind::NotAnswering, message), true).await;
    });
}

/// What became of an order.
enum Sent {
    Yes,
    NoSubscriber,
    TooLate,
    Away(rssh_mqtt::PublishError),
}

async fn send_order(server: &Arc<Server>, tunnel: &Tunnel) -> Sent {
    let Some(order) = open_order(server, tunnel, 0) else {
        return Sent::TooLate;
    };
    let expiry = Duration::from_millis(order.within_ms.into());
    let publish = Publish::new(Topic::DeviceOpen(tunnel.device.clone()), payload::encode(&order)).expiring(expiry);
    match server.session.publish(publish).await {
        Ok(Delivery::Accepted) => Sent::Yes,
        Ok(Delivery::NoSubscriber) => Sent::NoSubscriber,
        Err(error) => Sent::Away(error),
    }
}

/// Ends a tunnel that the device does not open, and tells everyone who asked for it.
async fn give_up(server: &Arc<Server>, tunnel: &Tunnel, failure: Failure, unanswered: bool) {
    match server.store.fail(tunnel.id, &tunnel.device, &failure, unanswered).await {
        Ok(Some((tunnel, askers))) => {
            tracing::info!(tunnel = %tunnel.id, device = %tunnel.device, %failure, "failed");
            server
                .audit
                .record(of_tunnel("failed", &tunnel).with("why", kind(&failure)));
            for asker in &askers {
                server.fail(asker, Some(&tunnel), failure.clone());
            }
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(tunnel = %tunnel.id, %error, "cannot note a failure"),
    }
}

/// A span in its largest unit, for people.
fn rough(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{} s", seconds.max(0)),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Signs a name for an active tunnel, or has the server sign it that holds the tunnel: each has its own key.
async fn name(server: &Arc<Server>, asker: &Asker, tunnel: &Tunnel) {
    match &tunnel.place {
        Some((place, _)) if tunnel.state == TunnelState::Active => {
            if *place == server.id {
                let body = ReplyBody::Opened(server.info(tunnel));
                server.reply(asker, Some(tunnel), Rank::Final, body);
            } else {
                sign_elsewhere(server, asker, tunnel, place.clone(), None).await;
            }
        }
        _ => server.fail(asker, Some(tunnel), unknown(tunnel.id)),
    }
}

/// Lets others in to an active tunnel, where its user may do that.
async fn share(server: &Arc<Server>, asker: &Asker, tunnel: &Tunnel, valid_s: u32) {
    match server
        .store
        .may_share(&asker.user, &tunnel.device, &tunnel.target)
        .await
    {
        Ok(true) => sign_bearer(server, asker, tunnel, valid_s).await,
        Ok(false) => {
            let message = format!(
                "{} may not share {} of {}; ask an administrator for a grant",
                asker.user, tunnel.target, tunnel.device
            );
            server.fail(asker, Some(tunnel), Failure::new(FailureKind::Denied, message));
        }
        Err(error) => server.store_failed(asker, &error),
    }
}

/// A bearer name that stays with this server, which proves the user's tunnel by it.
pub async fn sign_for_proof(server: &Arc<Server>, asker: &Asker, tunnel: TunnelId, valid_s: u32) {
    match server.store.tunnel_of(&asker.user, tunnel).await {
        Ok(Some(tunnel)) => sign_bearer(server, asker, &tunnel, valid_s).await,
        Ok(None) => server.fail(asker, None, unknown(tunnel)),
        Err(error) => server.store_failed(asker, &error),
    }
}

/// Signs a bearer name for an active tunnel, or has it signed where the tunnel is.
pub async fn sign_bearer(server: &Arc<Server>, asker: &Asker, tunnel: &Tunnel, valid_s: u32) {
    let Some(bearer_port) = server.config.public.bearer_port else {
        let message = "nothing is shared here; your operator would set public.bearer-port";
        return server.fail(asker, Some(tunnel), Failure::new(FailureKind::Denied, message));
    };
    let Some((place, port)) = tunnel.place.as_ref().filter(|_| tunnel.state == TunnelState::Active) else {
        return server.fail(asker, Some(tunnel), unknown(tunnel.id));
    };
    if *place != server.id {
        return sign_elsewhere(server, asker, tunnel, place.clone(), Some(valid_s)).await;
    }
    let valid_s = valid_s.clamp(1, SharedName::LONGEST_S).min(tunnel.ttl_s);
    let skew = server.config.tunnels.clock_skew.duration();
    let rests_s = valid_s.saturating_add(u32::try_from(skew.as_secs()).unwrap_or(u32::MAX));
    // The port is to rest for as long as the name may be used, whatever happens once it is given away.
    let until = Instant::now() + Duration::from_secs(rests_s.into());
    server.leases().handle_named(tunnel.id, until);
    let noted = server
        .store
        .note_name(&server.id, *port, tunnel.id, tunnel.epoch, rests_s);
    match noted.await {
        Ok(true) => {}
        Ok(false) => return server.fail(asker, Some(tunnel), unknown(tunnel.id)),
        Err(error) => return server.store_failed(asker, &error),
    }
    tracing::info!(tunnel = %tunnel.id, user = %asker.user, device = %tunnel.device, target = %tunnel.target, valid_s, "shared");
    let (host, expires_at) = server.bearer_name(*port, valid_s);
    let shared = SharedName {
        tunnel: tunnel.id,
        device: tunnel.device.clone(),
        target: tunnel.target.clone(),
        host,
        port: bearer_port,
        expires_at,
        valid_s,
    };
    server.reply(asker, Some(tunnel), Rank::Final, ReplyBody::Shared(shared));
}

async fn sign_elsewhere(server: &Arc<Server>, asker: &Asker, tunnel: &Tunnel, place: ServerId, bearer_s: Option<u32>) {
    let request = ServerRequest {
        v: V1,
        op: ServerOperation::Sign {
            tunnel: tunnel.id,
            user: asker.user.clone(),
            session: asker.session.clone(),
            request: asker.request,
            bearer_s,
        },
    };
    match server.publish(Topic::ServerRequest(place.clone()), &request).await {
        Ok(Delivery::Accepted) => {}
        // The asker repeats its request; the tunnel moves, or its server comes back.
        other => tracing::warn!(tunnel = %tunnel.id, %place, ?other, "cannot have a name signed"),
    }
}

async fn close(server: &Arc<Server>, asker: &Asker, outcomes: Vec<crate::store::CloseOutcome>) {
    for outcome in outcomes.iter().filter(|outcome| outcome.holders_left == 0) {
        let tunnel = &outcome.tunnel;
        tracing::info!(tunnel = %tunnel.id, user = %asker.user, device = %tunnel.device, "closed");
        server.audit.record(of_tunnel("closed", tunnel).with("by", "user"));
        sessions::end_here(server, tunnel.id);
        if let Some((place, _)) = tunnel.place.clone().filter(|(place, _)| *place != server.id) {
            let request = ServerRequest {
                v: V1,
                op: ServerOperation::End { tunnel: tunnel.id },
            };
            // Only to be quick: that server finds the eviction in the database too.
            let _ = server.publish(Topic::ServerRequest(place), &request).await;
        }
        sessions::order_close(server, tunnel).await;
    }
    let items = outcomes
        .into_iter()
        .map(|outcome| ClosedTunnel {
            tunnel: outcome.tunnel.id,
            device: outcome.tunnel.device,
            target: outcome.tunnel.target,
            holders_left: outcome.holders_left,
        })
        .take(TUNNELS_PER_MESSAGE * 2)
        .collect();
    server.reply(asker, None, Rank::Final, ReplyBody::Closed { items });
}

fn list(server: &Server, asker: &Asker, tunnels: &[Tunnel]) {
    // An empty list is one message too.
    let pages: Vec<&[Tunnel]> = match tunnels {
        [] => vec![&[]],
        _ => tunnels.chunks(TUNNELS_PER_MESSAGE).collect(),
    };
    for (number, page) in pages.iter().enumerate() {
        let body = ReplyBody::Tunnels {
            items: page.iter().map(|tunnel| server.info(tunnel)).collect(),
            last: number + 1 == pages.len(),
        };
        server.reply(asker, None, Rank::Final, body);
    }
}

fn list_devices(server: &Server, asker: &Asker, devices: Vec<DeviceInfo>) {
    let pages = device_pages(devices);
    let count = pages.len();
    for (number, items) in pages.into_iter().enumerate() {
        let last = number + 1 == count;
        server.reply(asker, None, Rank::Final, ReplyBody::Devices { items, last });
    }
}

/// Devices in portions that fit a message each; at least one, which may be empty.
fn device_pages(devices: Vec<DeviceInfo>) -> Vec<Vec<DeviceInfo>> {
    let mut pages = Vec::new();
    let (mut page, mut filled) = (Vec::new(), 0);
    for device in devices {
        // With its comma.
        let bytes = payload::encode(&device).len() + 1;
        if filled + bytes > DEVICES_BYTES && !page.is_empty() {
            pages.push(std::mem::take(&mut page));
            filled = 0;
        }
        filled += bytes;
        page.push(device);
    }
    pages.push(page);
    pages
}

fn tell_trace(
    server: &Server,
    asker: &Asker,
    found: Result<Option<(Tunnel, Times)>, StoreError>,
    none: impl FnOnce() -> Failure,
) {
    match found {
        Ok(Some((tunnel, times))) => {
            let body = ReplyBody::Trace(trace(server, &tunnel, times));
            server.reply(asker, Some(&tunnel), Rank::Final, body);
        }
        Ok(None) => server.fail(asker, None, none()),
        Err(error) => server.store_failed(asker, &error),
    }
}

/// A tunnel with its stages, as its user sees it.
pub fn trace(server: &Server, tunnel: &Tunnel, times: Times) -> TunnelTrace {
    TunnelTrace {
        info: server.info(tunnel),
        requested_at: times.requested_at,
        answered_ms: times.answered_ms,
        landed_ms: times.landed_ms,
        claimed_ms: times.claimed_ms,
        active_ms: times.active_ms,
        ended_ms: times.ended_ms,
        claims: tunnel.epoch.0,
        failure: tunnel.failure.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_told_in_their_largest_unit() {
        for (seconds, text) in [
            (-3, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (7199, "1 h"),
            (172_800, "2 days"),
        ] {
            assert_eq!(rough(seconds), text);
        }
    }

    #[test]
    fn an_open_that_waited_past_its_deadline_is_dropped_and_a_close_is_not() {
        let request = |op| Request {
            v: V1,
            id: TunnelId::generate(),
            session: rssh_proto::SessionId::generate(),
            deadline_ms: 4_000,
            op,
        };
        let open = request(Operation::Open(OpenRequest::new(
            "device-1".parse().unwrap(),
            "localhost:22".parse().unwrap(),
        )));
        let left = |waited| in_time(open.clone(), Duration::from_millis(waited)).map(|request| request.deadline_ms);
        assert_eq!(left(0), Some(4_000));
        assert_eq!(left(3_000), Some(1_000));
        assert_eq!(left(4_000), None);
        assert_eq!(left(12_000), None);
        assert!(in_time(request(Operation::List), Duration::from_secs(12)).is_some());
    }

    #[test]
    fn devices_fill_messages_and_never_more() {
        let device = |n: usize| DeviceInfo {
            device: format!("{}{n}", "d".repeat(58)).parse().unwrap(),
            presence: rssh_proto::payload::Presence::Offline,
            since_s: Some(u64::MAX),
            tags: (0..n % 9).map(|key| (format!("key-{key}"), "v".repeat(63))).collect(),
        };
        assert_eq!(device_pages(vec![]), [vec![]]);
        let devices: Vec<DeviceInfo> = (0..200).map(device).collect();
        let pages = device_pages(devices.clone());
        assert!(pages.len() < 40, "{}", pages.len());
        for page in &pages {
            let items = page.clone();
            let body = ReplyBody::Devices { items, last: true };
            let reply = payload::Reply {
                v: V1,
                request: TunnelId::generate(),
                epoch: Default::default(),
                rank: Rank::Final,
                body,
            };
            assert!(payload::encode(&reply).len() <= payload::LIMIT);
        }
        assert_eq!(pages.concat(), devices);
    }
}
