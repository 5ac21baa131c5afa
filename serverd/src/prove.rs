//! The proof of a tunnel for those who cannot make it themselves: through the load balancer, by a bearer name.

use std::sync::Arc;
use std::time::Duration;

use rssh_mqtt::Identity;
use rssh_proto::payload::{ReplyBody, TunnelInfo};
use rssh_proto::text::sanitize;
use rssh_proto::{Failure, FailureKind, Target, TunnelId, UserId};
use rustls_pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::local::Session;
use crate::requests;
use crate::server::Server;
use crate::store::Asker;

/// How long the device may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// How long a connection to another target than ssh must stay open at least.
const STAYS_OPEN: Duration = Duration::from_millis(300);
/// For how long the name is signed: well below what other names live.
const NAME_S: u32 = 15;
/// The pauses between tries: routers learn of a new server within moments.
const PAUSES_MS: [u64; 5] = [100, 200, 400, 800, 1600];
/// The longest version line of an SSH server (RFC 4253, 4.2).
const LONGEST_LINE: usize = 255;

/// Proves a tunnel; returns what the device's sshd says, where it leads to that.
///
/// # Errors
/// When the device does not answer, or this installation has no door for bearer names.
pub async fn prove(server: &Arc<Server>, user: &UserId, info: &TunnelInfo) -> Result<Option<String>, Failure> {
    let Some(port) = server.config.public.bearer_port else {
        let message = "no server proves tunnels here; leave prove out, or have your operator set public.bearer-port";
        return Err(Failure::new(FailureKind::Denied, message));
    };
    let broken = |error: &dyn std::fmt::Display| Failure::new(FailureKind::Internal, format!("cannot prove: {error}"));
    let host = name(server, user, info.tunnel).await?;
    let identity = Identity::load(&server.config.https_identity()).map_err(|error| broken(&error))?;
    let tls = Arc::new(identity.client_config().map_err(|error| broken(&error))?);
    let balancer = server.config.public.ssh[0].host().to_owned();
    let mut last = String::new();
    for pause in [0].into_iter().chain(PAUSES_MS) {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let tried = answer(&tls, (&balancer, port), &host, &info.target);
        match tokio::time::timeout(ANSWERS_WITHIN, tried).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => last = "nothing came in time".to_owned(),
        }
        tracing::debug!(tunnel = %info.tunnel, error = last, "not proven");
    }
    Err(Failure::new(
        FailureKind::SshFailed,
        format!(
            "the tunnel to {} is up, but {} does not answer through the load balancer ({}); check that the service runs",
            info.device,
            info.target,
            sanitize(&last, 120)
        ),
    ))
}

/// Has a bearer name signed where the tunnel is.
async fn name(server: &Arc<Server>, user: &UserId, tunnel: TunnelId) -> Result<String, Failure> {
    let mut session = Session::begin(server, user);
    let asker = Asker {
        user: user.clone(),
        session: session.id.clone(),
        request: TunnelId::generate(),
    };
    requests::sign_for_proof(server, &asker, tunnel, NAME_S).await;
    let reply = tokio::time::timeout(ANSWERS_WITHIN, session.replies.recv()).await;
    match reply.ok().flatten().map(|reply| reply.body) {
        Some(ReplyBody::Shared(shared)) => Ok(shared.host),
        Some(ReplyBody::Failed(failure)) => Err(failure),
        _ => Err(Failure::new(
            FailureKind::Deadline,
            "the tunnel's server signed no name in time; try again",
        )),
    }
}

async fn answer(
    tls: &Arc<rustls::ClientConfig>,
    balancer: (&str, u16),
    host: &str,
    target: &Target,
) -> std::io::Result<Option<String>> {
    let ended = || std::io::Error::other("the connection was closed");
    let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
    let socket = TcpStream::connect(balancer).await?;
    let mut stream = tokio_rustls::TlsConnector::from(tls.clone())
        .connect(name, socket)
        .await?;
    let mut said = Vec::new();
    if *target != Target::ssh() {
        return match tokio::time::timeout(STAYS_OPEN, stream.read_buf(&mut said)).await {
            Ok(Ok(0)) => Err(ended()),
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Ok(None),
        };
    }
    loop {
        if let Some(end) = said.iter().position(|&byte| byte == b'\n') {
            let line = String::from_utf8_lossy(&said[..end]);
            return match line.trim_end().strip_prefix("SSH-") {
                Some(_) => Ok(Some(sanitize(line.trim_end(), LONGEST_LINE))),
                None => Err(std::io::Error::other("the target is no ssh")),
            };
        }
        if said.len() > LONGEST_LINE {
            return Err(std::io::Error::other("the target is no ssh"));
        }
        if stream.read_buf(&mut said).await? == 0 {
            return Err(ended());
        }
    }
}
