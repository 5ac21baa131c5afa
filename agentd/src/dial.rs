//! The connection that an ssh is started with.
//!
//! A socket that ssh opens itself waits twice for 40 ms, Nagle's algorithm against the peer's delayed acknowledgement,
//! and notices a dead peer late. This one is set up first and becomes ssh's standard input and output, which
//! `ProxyCommand -` has it use (sshconnect.c, since OpenSSH 6.6; ssh_config(5) does not mention it). No process stands
//! in between: one that hands its socket over (`ProxyUseFdpass`) and the shell that ssh starts it with take a fifth
//! of the processor time of the whole login.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rssh_proto::HostPort;
use rustix::net::sockopt;

/// How long one address may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// How long sent bytes may stay unacknowledged before the kernel ends the connection.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// Silence before the first keepalive probe, and between probes.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot resolve {host}: {source}")]
    Resolve { host: String, source: io::Error },
    #[error("cannot connect to {to}: {source}")]
    Connect { to: HostPort, source: io::Error },
}

/// Connects to the first address of a host that answers.
///
/// # Errors
/// When the host has no address, or none answers.
pub async fn dial(to: &HostPort) -> Result<TcpStream, DialError> {
    let host = to.host();
    let addresses = tokio::net::lookup_host((host.as_str(), to.port()))
        .await
        .map_err(|source| DialError::Resolve {
            host: host.clone(),
            source,
        })?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(DialError::Connect {
        to: to.clone(),
        source: last,
    })
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::TcpStream::connect(address)).await??;
    let stream = stream.into_std()?;
    tune(&stream);
    Ok(stream)
}

/// Sets what makes the connection quick and its loss soon noticed; a kernel that refuses some of it still connects.
fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_tcp_user_timeout(stream, u32::try_from(USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX));
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, KEEPALIVE);
    let _ = sockopt::set_tcp_keepintvl(stream, KEEPALIVE);
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_socket_is_connected_and_tuned() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stream = dial(&address.to_string().parse().unwrap()).await.unwrap();
        assert!(stream.nodelay().unwrap());
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 30_000);
        assert_eq!(stream.peer_addr().unwrap(), address);
    }

    #[tokio::test]
    async fn a_closed_port_is_named() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = dial(&address.to_string().parse().unwrap())
            .await
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(&format!("cannot connect to {address}: ")), "{error}");
    }
}
