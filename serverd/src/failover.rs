//! Watching the other servers, and bringing the tunnels of a lost one back elsewhere.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rssh_proto::ServerId;
use rssh_proto::audit::Event;
use rssh_proto::topic::Topic;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::requests;
use crate::server::Server;
use crate::store::Tunnel;
use crate::suspicion::{Beat, Suspicion};

/// How long a health check may take.
const HEALTH_WITHIN: Duration = Duration::from_secs(1);
/// The longest answer to one.
const ANSWER: u64 = 16 * 1024;
/// How many landings per second a fleet is asked to spread a loss over; each costs a server some tens of milliseconds
/// of processor time.
const LANDINGS_PER_S: usize = 50;

/// Watches the other servers, for ever.
pub async fn run(server: Arc<Server>) {
    let ttl = server.config.redis.ttl.duration();
    let mut suspicion = Suspicion::new(ttl, HEALTH_WITHIN);
    let mut last = Instant::now();
    loop {
        tokio::time::sleep(suspicion.poll_timeout(Instant::now())).await;
        // A pause of this process itself, frozen or starved, is no silence of the others.
        if last.elapsed() > ttl {
            suspicion.handle_database_away(Instant::now());
        }
        last = Instant::now();
        let others = match server.store.heartbeats(&server.id).await {
            Ok(others) => others,
            Err(error) => {
                tracing::warn!(%error, "cannot watch the other servers");
                suspicion.handle_database_away(Instant::now());
                continue;
            }
        };
        let beats: Vec<(ServerId, Beat)> = others.iter().map(|other| (other.id.clone(), other.beat)).collect();
        // All at once: servers that share a switch are lost together.
        let checks = suspicion
            .handle_beats(&beats, Instant::now())
            .into_iter()
            .map(async |silent| {
                let address = others
                    .iter()
                    .find(|other| other.id == silent)
                    .and_then(|other| other.health);
                let healthy = match address {
                    Some(address) => is_healthy(address, &silent).await,
                    None => false,
                };
                (silent, healthy)
            });
        for (silent, healthy) in join_all(checks).await {
            if let Some(beat) = suspicion.handle_health(&silent, healthy, Instant::now()) {
                declare_lost(&server, &silent, beat).await;
            }
        }
    }
}

/// Whether a server answers its health check at all. Whether it finds itself fit does not matter: it is alive. Another
/// that answers at its address is not.
async fn is_healthy(address: SocketAddr, id: &ServerId) -> bool {
    let check = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(ANSWER).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answered_by(&answer, id))
    };
    matches!(tokio::time::timeout(HEALTH_WITHIN, check).await, Ok(Ok(true)))
}

/// Whether an answer is a server's own.
fn answered_by(answer: &[u8], id: &ServerId) -> bool {
    let answer = String::from_utf8_lossy(answer);
    answer.starts_with("HTTP/") && answer.contains(&format!("\"server\":\"{id}\""))
}

async fn declare_lost(server: &Arc<Server>, lost: &ServerId, beat: Beat) {
    match server.store.declare_lost(lost, beat, server.rest_s()).await {
        Ok(Some(tunnels)) => {
            tracing::warn!(%lost, generation = %beat.generation, tunnels = tunnels.len(), "server lost");
            let event = Event::now("server-lost").with("server", lost.as_str());
            server.audit.record(event.with("tunnels", tunnels.len()));
            bring_back(server, &tunnels).await;
        }
        // It beat meanwhile, or another server was faster.
        Ok(None) => {}
        Err(error) => tracing::warn!(%lost, %error, "cannot declare a server lost"),
    }
}

/// Over how long the landings of so many lost tunnels are spread.
pub fn window(tunnels: usize) -> Duration {
    Duration::from_secs(1) * u32::try_from(tunnels / LANDINGS_PER_S).unwrap_or(u32::MAX)
}

/// Asks the devices of lost tunnels to land again, spread over as long as the landings take.
async fn bring_back(server: &Arc<Server>, tunnels: &[Tunnel]) {
    let jitter_ms = u32::try_from(window(tunnels.len()).as_millis()).unwrap_or(u32::MAX);
    for tunnel in tunnels {
        let Some(order) = requests::open_order(server, tunnel, jitter_ms) else {
            continue;
        };
        // A device that does not hear it notices by itself that its ssh is dead.
        if let Err(error) = server.publish(Topic::DeviceOpen(tunnel.device.clone()), &order).await {
            tracing::debug!(tunnel = %tunnel.id, %error, "cannot ask a device to land again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_server_at_the_same_address_does_not_answer_for_it() {
        let answer = b"HTTP/1.0 503 Service Unavailable\r\n\r\n{\"server\":\"s1\",\"fault\":\"no free port\"}";
        assert!(answered_by(answer, &"s1".parse().unwrap()));
        assert!(!answered_by(answer, &"s2".parse().unwrap()));
        assert!(!answered_by(b"SSH-2.0-x", &"s1".parse().unwrap()));
    }
}
