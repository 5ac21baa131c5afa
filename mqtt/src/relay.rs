//! Connections that rumqttc cannot make: it dials TCP itself or a unix socket, and knows no proxy that suits.
//!
//! ```text
//! rumqttc -- unix socket -- relay -- TLS -- proxy -- broker
//! ```

use std::future::Future;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Arc;
use std::time::Duration;

use rssh_proto::HostPort;
use rssh_proto::id::random_hex;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use crate::dial::{DialError, dial};
use crate::proxy::Proxies;

/// How long the TLS handshake may take.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// MQTT packets here are small, and the relay lives as long as the session.
const BUFFER: usize = 2048;

/// Why there is no connection to the broker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Tls(#[from] io::Error),
}

/// Connects to a broker. Whoever connects to the path, once and from this process, has the connection while the future
/// is polled; that resolves when it ends.
pub(crate) async fn open(
    broker: &HostPort,
    tls: Arc<rustls::ClientConfig>,
    proxies: &Proxies,
) -> Result<(String, impl Future<Output = io::Result<()>> + Send + use<>), RelayError> {
    let socket = dial(broker, proxies).await?;
    let name = ServerName::try_from(broker.host()).map_err(io::Error::other)?;
    let handshake = TlsConnector::from(tls).connect(name, socket);
    let mut stream = tokio::time::timeout(TLS_TIMEOUT, handshake)
        .await
        .map_err(io::Error::from)??;
    // Abstract, see unix(7): no file is left. Others who could connect first neither know the name nor are let in.
    let name = format!("rssh-mqtt-{}", random_hex::<16>());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let carry = async move {
        let own = i32::try_from(std::process::id()).ok();
        let mut client = loop {
            let (client, _) = listener.accept().await?;
            if client.peer_cred()?.pid() == own {
                break client;
            }
        };
        drop(listener);
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut stream, BUFFER, BUFFER)
            .await
            .map(drop)
    };
    Ok((format!("\0{name}"), carry))
}
