//! The load balancer: TLS by a signed name, and the proof that a tunnel works.
//!
//! A refused name ends the connection without a word, at times after the handshake: with TLS 1.3 our side is done with
//! it before the load balancer has looked at our certificate.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rssh_mqtt::dial::dial;
use rssh_mqtt::proxy::Proxies;
use rssh_proto::text::{quoted, sanitize};
use rssh_proto::{FailureKind, HostPort, Target};
use rustls::AlertDescription;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::Error;
use crate::profile::Balancers;

/// rustls reads 4 KiB at a time; the buffer turns that into few system calls.
const SOCKET_BUFFER: usize = 64 * 1024;
/// How long a connection through a working tunnel stays open at least, besides a round trip.
const STAYS_OPEN: Duration = Duration::from_millis(100);
/// How long one of several load balancers may take to accept a connection.
const ANOTHER: Duration = Duration::from_secs(1);
/// The most that a server may say before its SSH version (RFC 4253, 4.2, allows other lines first).
const GREETING_LIMIT: usize = 8 * 1024;

/// A connection through the load balancer.
pub type Stream = TlsStream<BufReader<TcpStream>>;

/// Why a name led nowhere.
#[derive(Debug, thiserror::Error)]
pub enum LbError {
    #[error("cannot reach the load balancer: {0}; check the network, and lb in the profile")]
    Unreachable(String),
    #[error(
        "the load balancer {address} and this program do not accept each other's certificates: {reason}; check ca, \
         cert and key in the profile, or ask for a new certificate"
    )]
    Certificate { address: HostPort, reason: String },
    #[error("the load balancer {address} does not speak TLS as expected: {reason}; check lb in the profile")]
    Tls { address: HostPort, reason: String },
    #[error("the server sent {0} as host name, which is none; tell your administrator")]
    Name(String),
    #[error("the load balancer closed the connection: the name is not valid, or no longer")]
    Closed,
    #[error("the target answered {0}, which is not SSH; name its port with --port, or another target with --to")]
    NotSsh(String),
    #[error("the connection is open, but the target says nothing")]
    Silent,
}

impl LbError {
    /// Whether another try may do: routers learn of a new server a moment after its tunnel is up.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Closed | Self::Silent)
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Unreachable(_) | Self::Tls { .. } => FailureKind::NobodyServing,
            Self::Certificate { .. } => FailureKind::WrongCertificate,
            Self::Name(_) => FailureKind::Internal,
            Self::Closed => FailureKind::NameRefused,
            Self::NotSsh(_) | Self::Silent => FailureKind::SshFailed,
        }
    }
}

impl From<LbError> for Error {
    fn from(error: LbError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

/// What showed that a tunnel works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// The device's sshd said its version; fit for a terminal.
    Banner(String),
    /// The connection stayed open, or the target spoke.
    Open,
}

/// Whether a target is the device's ssh: it speaks first, and says so.
pub fn is_ssh(target: &Target) -> bool {
    *target == Target::ssh()
}

/// The load balancer of a profile: the first of its list that leads somewhere. Clones go to the same one.
#[derive(Clone)]
pub struct Balancer {
    addresses: Balancers,
    /// How many times the next one has been turned to.
    turns: Arc<AtomicUsize>,
    connector: TlsConnector,
    proxies: Proxies,
}

impl Balancer {
    /// The load balancer at these addresses, by way of its proxy if it has one.
    pub fn new(addresses: Balancers, tls: Arc<rustls::ClientConfig>, proxies: Proxies) -> Self {
        Self {
            addresses,
            turns: Arc::default(),
            connector: TlsConnector::from(tls),
            proxies,
        }
    }

    /// Where it is now.
    pub fn address(&self) -> &HostPort {
        let all = self.addresses.all();
        &all[self.turns.load(Ordering::Relaxed) % all.len()]
    }

    /// Goes to the next address from now on: this one leads nowhere.
    pub fn turn(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// Connects, without a name yet, to the first address that answers.
    ///
    /// # Errors
    /// When none can be reached.
    pub async fn dial(&self) -> Result<TcpStream, LbError> {
        let mut left = self.addresses.all().len();
        loop {
            let address = self.address().clone();
            let connect = dial(&address, &self.proxies);
            left -= 1;
            let connected = match left {
                0 => connect.await.map_err(|error| error.to_string()),
                // There is another to try.
                _ => match timeout(ANOTHER, connect).await {
                    Ok(connected) => connected.map_err(|error| error.to_string()),
                    Err(_) => Err(format!("{address} does not answer")),
                },
            };
            match connected {
                Ok(socket) => return Ok(socket),
                Err(reason) if left == 0 => return Err(LbError::Unreachable(reason)),
                Err(_) => self.turn(),
            }
        }
    }

    /// Does the TLS handshake by a signed name; also tells how long that took, which is at least a round trip.
    ///
    /// # Errors
    /// When the name or a certificate is refused.
    pub async fn greet(&self, socket: TcpStream, host: &str) -> Result<(Stream, Duration), LbError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| LbError::Name(quoted(host, 80)))?;
        let start = Instant::now();
        let socket = BufReader::with_capacity(SOCKET_BUFFER, socket);
        match self.connector.connect(name, socket).await {
            Ok(stream) => Ok((stream, start.elapsed())),
            Err(error) => Err(self.refusal(&error)),
        }
    }

    /// What an error of a connection through it means.
    pub fn refusal(&self, error: &io::Error) -> LbError {
        use AlertDescription as Alert;
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let address = self.address().clone();
        match tls {
            // strict-sni: no certificate for this name.
            Some(rustls::Error::AlertReceived(Alert::UnrecognisedName)) => LbError::Closed,
            Some(
                reason @ (rustls::Error::InvalidCertificate(_)
                | rustls::Error::NoCertificatesPresented
                | rustls::Error::AlertReceived(
                    Alert::NoCertificate
                    | Alert::BadCertificate
                    | Alert::UnsupportedCertificate
                    | Alert::CertificateRevoked
                    | Alert::CertificateExpired
                    | Alert::CertificateUnknown
                    | Alert::CertificateRequired
                    | Alert::UnknownCA
                    | Alert::AccessDenied
                    | Alert::DecryptError,
                )),
            ) => LbError::Certificate {
                address,
                reason: reason.to_string(),
            },
            Some(other) => LbError::Tls {
                address,
                reason: other.to_string(),
            },
            None => LbError::Closed,
        }
    }

    /// Proves that a tunnel leads to its target: by the banner of an ssh, else by a connection that is not closed.
    /// `routed` is called once the name is taken.
    ///
    /// # Errors
    /// When it does not, or not within `patience`.
    pub async fn prove(
        &self,
        socket: TcpStream,
        host: &str,
        target: &Target,
        patience: Duration,
        routed: impl FnOnce(),
    ) -> Result<Proof, LbError> {
        let prove = async {
            let (mut stream, round_trip) = self.greet(socket, host).await?;
            routed();
            if is_ssh(target) {
                self.banner(&mut stream).await.map(Proof::Banner)
            } else {
                self.stays_open(&mut stream, round_trip).await.map(|_| Proof::Open)
            }
        };
        timeout(patience, prove).await.unwrap_or_else(|_| {
            self.turn();
            Err(LbError::Silent)
        })
    }

    /// Reads the version line of an SSH server (RFC 4253, 4.2).
    async fn banner(&self, stream: &mut Stream) -> Result<String, LbError> {
        let mut said = Vec::with_capacity(256);
        loop {
            match version_line(&said) {
                Version::Line(line) => return Ok(line),
                Version::NotSsh => return Err(LbError::NotSsh(quoted(&String::from_utf8_lossy(&said), 40))),
                Version::Unfinished => {}
            }
            match stream.read_buf(&mut said).await {
                Ok(0) if said.is_empty() => return Err(LbError::Closed),
                Ok(0) => return Err(LbError::NotSsh(quoted(&String::from_utf8_lossy(&said), 40))),
                Ok(_) => {}
                Err(error) => return Err(self.refusal(&error)),
            }
        }
    }

    /// Waits until the target speaks or the connection has lasted; returns what it said.
    ///
    /// # Errors
    /// When the connection is closed instead.
    pub async fn stays_open(&self, stream: &mut Stream, round_trip: Duration) -> Result<Vec<u8>, LbError> {
        let mut said = Vec::with_capacity(4096);
        match timeout(STAYS_OPEN + round_trip, stream.read_buf(&mut said)).await {
            Ok(Ok(0)) => Err(LbError::Closed),
            Ok(Ok(_)) => Ok(said),
            Ok(Err(error)) => Err(self.refusal(&error)),
            Err(_) => Ok(said),
        }
    }
}

/// What a server's first bytes are.
#[derive(Debug, PartialEq, Eq)]
enum Version {
    Line(String),
    NotSsh,
    Unfinished,
}

fn version_line(said: &[u8]) -> Version {
    let mut rest = said;
    loop {
        let end = rest.iter().position(|&byte| byte == b'\n');
        let line = &rest[..end.unwrap_or(rest.len())];
        if end.is_some() && (line.starts_with(b"SSH-2.0-") || line.starts_with(b"SSH-1.99-")) {
            let line = String::from_utf8_lossy(line);
            return Version::Line(sanitize(line.trim_end(), 255));
        }
        match end {
            Some(end) => rest = &rest[end + 1..],
            None if said.len() > GREETING_LIMIT => return Version::NotSsh,
            None => return Version::Unfinished,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_after_other_lines_and_not_before_it_ends() {
        let line = |text: &str| Version::Line(text.to_owned());
        for (said, expected) in [
            ("SSH-2.0-OpenSSH_9.2 device-1\r\n", line("SSH-2.0-OpenSSH_9.2 device-1")),
            ("SSH-1.99-x\n\0\0", line("SSH-1.99-x")),
            ("hello\r\nSSH-2.0-x\r\n", line("SSH-2.0-x")),
            ("SSH-2.0-\x1b[2J\n", line("SSH-2.0-?[2J")),
            ("SSH-2.0-x", Version::Unfinished),
            ("", Version::Unfinished),
            ("HTTP/1.1 400\r\n", Version::Unfinished),
        ] {
            assert_eq!(version_line(said.as_bytes()), expected, "{said:?}");
        }
        assert_eq!(version_line(&[b'x'; GREETING_LIMIT + 1]), Version::NotSsh);
    }

    #[test]
    fn alerts_on_certificates_are_told_from_refused_names() {
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let address: HostPort = "127.0.0.1:1".parse().unwrap();
        let balancer = Balancer::new(address.into(), Arc::new(config), Proxies::default());
        let alert = |alert| io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(alert));
        for (error, kind) in [
            (alert(AlertDescription::UnknownCA), FailureKind::WrongCertificate),
            (
                alert(AlertDescription::CertificateRevoked),
                FailureKind::WrongCertificate,
            ),
            (alert(AlertDescription::UnrecognisedName), FailureKind::NameRefused),
            (alert(AlertDescription::ProtocolVersion), FailureKind::NobodyServing),
            (io::ErrorKind::UnexpectedEof.into(), FailureKind::NameRefused),
            (io::ErrorKind::ConnectionReset.into(), FailureKind::NameRefused),
        ] {
            assert_eq!(balancer.refusal(&error).kind(), kind, "{error}");
        }
    }
}
