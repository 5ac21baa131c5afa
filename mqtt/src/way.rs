//! The way that a connection takes through this machine's network, and whether it is still the one.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use serde::{Deserialize, Serialize};

/// Where a connection comes from and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    pub local: IpAddr,
    pub peer: SocketAddr,
}

/// What became of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Now {
    /// A new connection would take it too.
    Same,
    /// A new connection would come from elsewhere: packets of the old one no longer find back.
    Moved,
    /// Nothing leads there at the moment.
    None,
}

impl Way {
    /// The way that a connection to `peer` would take now, if there is one. Nothing is sent.
    pub fn to(peer: SocketAddr) -> Option<Self> {
        let any: IpAddr = if peer.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        // Connecting a datagram socket only has the kernel choose the source address: connect(2).
        socket.connect(peer).ok()?;
        let local = socket.local_addr().ok()?.ip();
        Some(Self { local, peer })
    }

    /// Compares it with the way that a connection would take now.
    pub fn now(&self) -> Now {
        match Self::to(self.peer) {
            None => Now::None,
            Some(way) if way.local == self.local => Now::Same,
            // Temporary addresses (RFC 8981) take turns, and the older ones serve on.
            Some(way) if share_interface(&inet6(), self.local, way.local) => Now::Same,
            Some(_) => Now::Moved,
        }
    }
}

/// This machine's IPv6 addresses: `/proc/net/if_inet6`, see proc_net(5).
fn inet6() -> String {
    fs::read_to_string("/proc/net/if_inet6").unwrap_or_default()
}

/// Whether two IPv6 addresses are on one interface, by the text of `if_inet6`.
fn share_interface(inet6: &str, one: IpAddr, other: IpAddr) -> bool {
    let interface = |address| {
        let IpAddr::V6(address) = address else {
            return None;
        };
        let digits = format!("{:032x}", u128::from(address));
        let line = inet6.lines().find(|line| line.starts_with(&digits))?;
        line.split_ascii_whitespace().nth(1).map(str::to_owned)
    };
    interface(one).is_some_and(|one| interface(other) == Some(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_on_this_machine_stays_and_one_from_an_address_that_is_gone_has_moved() {
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let way = Way::to(peer).unwrap();
        assert_eq!(way.local, IpAddr::from(Ipv4Addr::LOCALHOST));
        assert_eq!(way.now(), Now::Same);
        // RFC 5737: no machine has it.
        let local = Ipv4Addr::new(192, 0, 2, 1).into();
        assert_eq!(Way { local, peer }.now(), Now::Moved);
    }

    #[test]
    fn addresses_of_one_interface_take_turns() {
        let text = "20010db8000000000000000000000001 02 40 00 00     eth0\n\
                    20010db8000000000000000000000002 02 40 00 01     eth0\n\
                    20010db8000000010000000000000003 03 40 00 00    wlan0\n";
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let share = |one, other| share_interface(text, address(one), address(other));
        assert!(share("2001:db8::1", "2001:db8::2"));
        assert!(!share("2001:db8::1", "2001:db8:0:1::3"));
        assert!(!share("2001:db8::9", "2001:db8::2"), "one that is gone serves nobody");
        assert!(!share("127.0.0.1", "127.0.0.1"));
    }
}
