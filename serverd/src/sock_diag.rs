//! The kernel's table of TCP sockets, by sock_diag(7): who listens, and how many connections a port carries.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

/// A listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    pub port: u16,
    /// The user that made it.
    pub uid: u32,
    /// Its number in /proc/*/fd.
    pub inode: u32,
    /// Connections that wait to be accepted.
    pub waiting: u32,
}

/// Looks for a listener on exactly this address and port, without walking the table.
///
/// # Errors
/// When the kernel has no sock_diag.
pub fn listener(address: SocketAddr) -> io::Result<Option<Listener>> {
    let mut found = None;
    let id = SocketId {
        source_port: address.port(),
        source_address: address.ip(),
        ..any(address.ip())
    };
    ask(address.ip(), id, StateFlags::LISTEN, 0, |header| {
        // A lookup without a match on the address falls back to the wildcard listener: not the one asked for.
        if header.socket_id.source_address == address.ip() && header.socket_id.source_port == address.port() {
            found = Some(read(header));
        }
    })
    .or_else(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            Ok(())
        } else {
            Err(error)
        }
    })?;
    Ok(found)
}

/// Every listener on an address.
///
/// # Errors
/// When the kernel has no sock_diag.
pub fn listeners(address: IpAddr) -> io::Result<Vec<Listener>> {
    let mut found = Vec::new();
    ask(address, any(address), StateFlags::LISTEN, NLM_F_DUMP, |header| {
        if header.socket_id.source_address == address {
            found.push(read(header));
        }
    })?;
    Ok(found)
}

/// How many established connections each local port of an address carries.
///
/// # Errors
/// When the kernel has no sock_diag.
pub fn connections(address: IpAddr) -> io::Result<HashMap<u16, u32>> {
    let mut counts = HashMap::new();
    ask(address, any(address), StateFlags::ESTABLISHED, NLM_F_DUMP, |header| {
        if header.socket_id.source_address == address {
            *counts.entry(header.socket_id.source_port).or_default() += 1;
        }
    })?;
    Ok(counts)
}

fn read(header: &InetResponseHeader) -> Listener {
    Listener {
        port: header.socket_id.source_port,
        uid: header.uid,
        inode: header.inode,
        waiting: header.recv_queue,
    }
}

/// A socket id that matches every socket of an address family.
fn any(family: IpAddr) -> SocketId {
    let unspecified: IpAddr = match family {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketId {
        source_port: 0,
        destination_port: 0,
        source_address: unspecified,
        destination_address: unspecified,
        interface_id: 0,
        // INET_DIAG_NOCOOKIE: whichever socket has the address.
        cookie: [0xff; 8],
    }
}

fn ask(
    family: IpAddr,
    socket_id: SocketId,
    states: StateFlags,
    flags: u16,
    mut each: impl FnMut(&InetResponseHeader),
) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;

    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let request = InetRequest {
        family: if family.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id,
    };
    let mut packet = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    packet.finalize();
    let mut request = vec![0; packet.buffer_len()];
    packet.serialize(&mut request);
    socket.send(&request, 0)?;

    let malformed = |error| io::Error::new(io::ErrorKind::InvalidData, format!("sock_diag: {error}"));
    // The kernel fills at most 32 KiB at a time (netlink(7)).
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let size = socket.recv(&mut &mut buffer[..], 0)?;
        let mut rest = &buffer[..size];
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(malformed)?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    each(&response.header);
                    if flags & NLM_F_DUMP == 0 {
                        return Ok(());
                    }
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            let length = usize::try_from(message.header.length).unwrap_or(size);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_listener_is_seen_on_its_own_address_only_and_its_connections_are_counted() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let seen = listener(address).unwrap().unwrap();
        assert_eq!((seen.port, seen.uid), (address.port(), nix::unistd::getuid().as_raw()));
        let other: SocketAddr = format!("127.0.0.2:{}", address.port()).parse().unwrap();
        assert_eq!(listener(other).unwrap(), None);
        assert!(
            listeners(address.ip())
                .unwrap()
                .iter()
                .any(|one| one.port == address.port())
        );

        assert_eq!(connections(address.ip()).unwrap().get(&address.port()), None);
        let _client = TcpStream::connect(address).unwrap();
        assert_eq!(listener(address).unwrap().unwrap().waiting, 1);
        let _accepted = socket.accept().unwrap();
        assert_eq!(connections(address.ip()).unwrap().get(&address.port()), Some(&1));
        drop(socket);
        assert_eq!(listener(address).unwrap(), None);
    }
}
