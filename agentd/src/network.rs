//! Changes of the device's network: rtnetlink(7) tells that something changed, `/proc` what there is now.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// How long the network has to be left alone before it is looked at: changes come in groups, such as an address that
/// goes and one that comes.
const SETTLING: Duration = Duration::from_millis(250);
/// How often in a row it may be found changing before it is looked at nevertheless.
const RESTLESS: u32 = 8;
/// The multicast groups for links, IPv4 and IPv6 addresses and IPv4 and IPv6 routes (linux/rtnetlink.h, RTMGRP_*).
const GROUPS: u32 = 0x1 | 0x10 | 0x100 | 0x40 | 0x400;
/// A message about a link that is new or changed.
const NEW_LINK: u16 = 16;
/// The flag of a link that has a carrier (IFF_LOWER_UP).
const LOWER_UP: u32 = 0x1_0000;

/// Watches the network; each message is a change that has settled.
///
/// # Errors
/// When there is no runtime, or the kernel refuses.
pub fn watch() -> io::Result<mpsc::Receiver<()>> {
    let socket = open()?;
    let (changes, changed) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut carriers = BTreeMap::new();
        let mut seen = view();
        loop {
            let mut link = false;
            let told = async {
                link |= drain(&socket, &mut carriers).await?;
                for _ in 0..RESTLESS {
                    match tokio::time::timeout(SETTLING, drain(&socket, &mut carriers)).await {
                        Ok(more) => link |= more?,
                        Err(_) => break,
                    }
                }
                Ok::<_, io::Error>(())
            };
            if let Err(error) = told.await {
                tracing::warn!(%error, "cannot watch the network any more");
                return;
            }
            let now = view();
            // One that is told twice before it was heard is one.
            if (link || now != seen) && matches!(changes.try_send(()), Err(mpsc::error::TrySendError::Closed(()))) {
                return;
            }
            seen = now;
        }
    });
    Ok(changed)
}

#[expect(
    deprecated,
    reason = "the successor is an unsafe fn, for types whose descriptor may change; an OwnedFd keeps its own"
)]
fn open() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // NETLINK_ROUTE is the protocol with the number 0.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    AsyncFd::with_interest(socket, Interest::READABLE)
}

/// Waits for messages and takes them all; whether a link got its carrier back.
async fn drain(socket: &AsyncFd<OwnedFd>, carriers: &mut BTreeMap<u32, bool>) -> io::Result<bool> {
    let mut ready = socket.readable().await?;
    let mut back = false;
    let mut buffer = [0; 8192];
    loop {
        match rustix::net::recv(socket.get_ref(), &mut buffer[..], RecvFlags::empty()) {
            Ok((read, _)) => back |= carrier_is_back(&buffer[..read], carriers),
            Err(rustix::io::Errno::AGAIN) => break,
            // More than there was room for: what is left is a change all the same.
            Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    ready.clear_ready();
    Ok(back)
}

/// Notes which links have a carrier, and says whether one has it again: maybe in another network, with the address
/// that it had before.
fn carrier_is_back(mut messages: &[u8], carriers: &mut BTreeMap<u32, bool>) -> bool {
    let mut back = false;
    // struct nlmsghdr: length and type; then struct ifinfomsg: the index at 4, flags at 8.
    while let Some(length) = word(messages, 0).map(|length| length as usize) {
        let Some(message) = messages.get(..length).filter(|message| message.len() >= 16) else {
            break;
        };
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        if kind == NEW_LINK
            && let (Some(index), Some(flags)) = (word(message, 16 + 4), word(message, 16 + 8))
        {
            let up = flags & LOWER_UP != 0;
            back |= carriers.insert(index, up) == Some(false) && up;
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    back
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// Stands for what matters of the network: IPv4 routes, IPv4 addresses (in `fib_trie`), and IPv6 addresses without their
/// flags. The kernel tells much else, such as each router advertisement.
fn view() -> u64 {
    let read = |name: &str| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    read("route").hash(&mut hasher);
    read("fib_trie").hash(&mut hasher);
    for line in read("if_inet6").lines() {
        let mut fields = line.split_ascii_whitespace();
        (fields.next(), fields.last()).hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel says of a link.
    fn link(index: u32, flags: u32) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend(36_u32.to_ne_bytes());
        message.extend(NEW_LINK.to_ne_bytes());
        message.extend([0; 14]);
        message.extend(index.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]);
        message
    }

    #[test]
    fn a_carrier_that_comes_back_is_a_change_and_one_that_stays_is_none() {
        let mut carriers = BTreeMap::new();
        let up = LOWER_UP | 1;
        let mut seen = |messages: &[u8]| carrier_is_back(messages, &mut carriers);
        assert!(!seen(&link(2, up)), "a link that is told for the first time");
        assert!(!seen(&link(2, up | 0x1000)));
        assert!(!seen(&link(2, 1)));
        assert!(seen(&[link(3, up), link(2, up)].concat()));
        assert!(!seen(&link(2, up)[..10]), "a message cut short");
        assert!(!seen(&[0; 64]), "a message without a length");
    }

    #[test]
    fn nothing_is_told_of_a_network_that_stays() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut changed = watch().unwrap();
            tokio::task::yield_now().await;
            assert_eq!(changed.try_recv(), Err(mpsc::error::TryRecvError::Empty));
        });
    }
}
