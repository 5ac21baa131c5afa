//! Connections that are quick and whose loss is soon noticed, through a proxy where there is one.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpFastOpenConnect;
use rssh_proto::HostPort;
use rustix::net::sockopt;
use tokio::net::{TcpSocket, TcpStream};

use crate::proxy::{Proxies, Proxy, Refusal};

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
    #[error("no way to {to} through the proxy: {reason}")]
    Unproxied { to: HostPort, reason: String },
    #[error("the proxy {proxy} does not connect to {to}: {refusal}")]
    Refused {
        proxy: Proxy,
        to: HostPort,
        refusal: Refusal,
    },
}

/// Connects to a host, through its proxy if it has one.
///
/// # Errors
/// When the host or the proxy has no address, none answers, or the proxy refuses.
pub async fn dial(to: &HostPort, proxies: &Proxies) -> Result<TcpStream, DialError> {
    reach(to, proxies, Open::Answered).await.map(|(stream, _)| stream)
}

/// When there is a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    /// Once the far end has answered.
    Answered,
    /// At once, if the kernel has a cookie of the far end's (TCP Fast Open, RFC 7413): what is written first goes with the
    /// first packet, and only then it shows whether anybody answers. Without a cookie as above; the far end may give one.
    Spoken,
}

/// Connects to a host, through its proxy if it has one; also tells what the connection leads to.
async fn reach(to: &HostPort, proxies: &Proxies, open: Open) -> Result<(TcpStream, SocketAddr), DialError> {
    let Some(proxy) = proxies.of(to) else {
        return direct(to, open).await;
    };
    let unproxied = |error: DialError| DialError::Unproxied {
        to: to.clone(),
        reason: error.to_string(),
    };
    let (mut stream, peer) = direct(proxy.address(), Open::Answered).await.map_err(unproxied)?;
    match proxy.connect(&mut stream, to).await {
        Ok(()) => Ok((stream, peer)),
        Err(refusal) => Err(DialError::Refused {
            proxy: proxy.clone(),
            to: to.clone(),
            refusal,
        }),
    }
}

/// Connects to a load balancer, or else to the first of some others that answers; also tells what the connection leads
/// to. It is for a program that speaks first: the first load balancer's connection may be made only by what is written,
/// and until then it has no peer for getpeername(2).
///
/// # Errors
/// When none answers: why the first does not.
pub async fn dial_any(
    first: &HostPort,
    others: &[HostPort],
    proxies: &Proxies,
) -> Result<(TcpStream, SocketAddr), DialError> {
    let error = match reach(first, proxies, Open::Spoken).await {
        Ok(reached) => return Ok(reached),
        Err(error) => error,
    };
    for other in others {
        if let Ok(reached) = reach(other, proxies, Open::Answered).await {
            return Ok(reached);
        }
    }
    Err(error)
}

/// Connects to the first address of a host that answers.
async fn direct(to: &HostPort, open: Open) -> Result<(TcpStream, SocketAddr), DialError> {
    let host = to.host();
    let addresses = tokio::net::lookup_host((host.as_str(), to.port()))
        .await
        .map_err(|source| DialError::Resolve {
            host: host.clone(),
            source,
        })?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match connect(address, open).await {
            Ok(stream) => return Ok((stream, address)),
            Err(error) => last = error,
        }
    }
    Err(DialError::Connect {
        to: to.clone(),
        source: last,
    })
}

async fn connect(address: SocketAddr, open: Open) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    if open == Open::Spoken {
        // A kernel that cannot do it connects as ever.
        let _ = setsockopt(&socket, TcpFastOpenConnect, &true);
    }
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(address)).await??;
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
        let to = address.to_string().parse().unwrap();
        let stream = dial(&to, &Proxies::default()).await.unwrap();
        assert!(stream.nodelay().unwrap());
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 30_000);
        assert_eq!(stream.peer_addr().unwrap(), address);
    }

    #[tokio::test]
    async fn another_load_balancer_is_dialled_when_the_first_is_away() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let [closed, open] = [closed, address].map(|address| address.to_string().parse::<HostPort>().unwrap());
        let (stream, peer) = dial_any(&closed, &[closed.clone(), open], &Proxies::default())
            .await
            .unwrap();
        assert_eq!(peer, address);
        assert_eq!(stream.peer_addr().unwrap(), address);
        assert!(
            dial_any(&closed, std::slice::from_ref(&closed), &Proxies::default())
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn a_closed_port_is_named() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = dial(&address.to_string().parse().unwrap(), &Proxies::default())
            .await
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(&format!("cannot connect to {address}: ")), "{error}");
    }
}
