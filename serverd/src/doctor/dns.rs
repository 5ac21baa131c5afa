//! Whether a zone is signed: one question by DNS, with the bits of DNSSEC (RFC 4035, RFC 6891).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use rssh_proto::id::random_hex;

/// How long the resolver may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// A signature of records.
const RRSIG: u16 = 46;

/// The first resolver of resolv.conf(5).
pub(super) fn resolver() -> SocketAddr {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    SocketAddr::new(nameserver(&text).unwrap_or(Ipv4Addr::LOCALHOST.into()), 53)
}

fn nameserver(text: &str) -> Option<IpAddr> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("nameserver"));
    lines.find_map(|address| address.trim().parse().ok())
}

/// Whether the answer for a name comes with signatures, or was found good by the resolver.
///
/// # Errors
/// When the resolver does not answer.
pub(super) fn signed(name: &str, resolver: SocketAddr) -> io::Result<bool> {
    let any: IpAddr = if resolver.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(resolver)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let id = u16::from_str_radix(&random_hex::<2>(), 16).unwrap_or(1);
    socket.send(&question(id, name))?;
    let mut answer = [0; 1500];
    let length = socket.recv(&mut answer)?;
    let answer = &answer[..length];
    if answer.get(..2) != Some(&id.to_be_bytes()[..]) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    is_signed(answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Asks for the address of a name: with recursion, and with signatures.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    // RD and AD; one question, one additional record.
    message.extend([0x01, 0x20, 0, 1, 0, 0, 0, 0, 0, 1]);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len()).unwrap_or(63));
        message.extend(label.bytes().take(63));
    }
    // The root; type A, class IN. Then OPT: the root, type 41, 1232 bytes, the bit DO, no data.
    message.extend([0, 0, 1, 0, 1]);
    message.extend([0, 0, 41, 0x04, 0xd0, 0, 0, 0x80, 0, 0, 0]);
    message
}

/// Reads an answer; nothing where it is none.
fn is_signed(answer: &[u8]) -> Option<bool> {
    let number = |at: usize| Some(u16::from_be_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let authentic = answer.get(3)? & 0x20 != 0;
    let mut at = 12;
    for _ in 0..number(4)? {
        at = after_name(answer, at)? + 4;
    }
    for _ in 0..number(6)? {
        at = after_name(answer, at)?;
        if number(at)? == RRSIG {
            return Some(true);
        }
        at += 10 + usize::from(number(at + 8)?);
    }
    Some(authentic)
}

/// Where a name ends: at the root, or at a pointer to the rest of it.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 != 0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Answers one question with an address, and with more behind it.
    fn answering(flags: u8, count: u8, more: &'static [u8]) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        thread::spawn(move || {
            let mut question = [0; 512];
            let (length, from) = socket.recv_from(&mut question).unwrap();
            let mut answer = question[..length - 11].to_vec();
            answer[2..12].copy_from_slice(&[0x81, flags, 0, 1, 0, count, 0, 0, 0, 0]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
            answer.extend(more);
            socket.send_to(&answer, from).unwrap();
        });
        address
    }

    #[test]
    fn a_signed_zone_is_told_from_one_that_is_not() {
        let signature = &[0xc0, 12, 0, 46, 0, 1, 0, 0, 0, 60, 0, 2, 1, 2];
        assert!(!signed("proxy.example.com", answering(0x80, 1, &[])).unwrap());
        assert!(signed("proxy.example.com", answering(0x80, 2, signature)).unwrap());
        assert!(signed("proxy.example.com", answering(0xa0, 1, &[])).unwrap());
        assert!(signed("proxy.example.com", answering(0x80, 9, &[])).is_err());
    }

    #[test]
    fn the_resolver_is_the_first_in_its_file() {
        let text = "# x\nsearch example.com\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n";
        assert_eq!(nameserver(text), Some([192, 0, 2, 53].into()));
        assert_eq!(nameserver(""), None);
    }
}
