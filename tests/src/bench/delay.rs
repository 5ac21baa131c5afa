//! A longer way between the devices and the servers: a TCP proxy in the site's router that hands every byte on later.
//!
//! The kernel here has no netem. What a proxy cannot show: acknowledgements travel at once, so Nagle's algorithm waits
//! less for them than on a long link, which favours whoever leaves it on.
//!
//! It is a listener of its own, so a device that speaks with its first packet (TCP Fast Open) does so to it, and by a cookie
//! of the site's router. It takes such packets as the load balancer does, and hands them on half a round trip later.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::Lab;
use crate::network::Networks;
use crate::place::{LB, Place};
use crate::run;

/// The longer way; connections made after it is dropped are direct again.
#[derive(Debug)]
pub struct Delay {
    networks: Networks,
}

impl Delay {
    /// Makes new connections from the devices to these ports of the load balancer's address take `round_trip` longer.
    ///
    /// # Errors
    /// When the site's router cannot be changed.
    pub fn start(lab: &Lab, ports: &[u16], round_trip: Duration) -> Result<Self> {
        let networks = lab.networks();
        let mut rules = String::new();
        // Without a word of the listener's own (tcp_fastopen in the kernel's ip-sysctl.rst: 0x400).
        networks.inside(&Place::Site, || fs::write("/proc/sys/net/ipv4/tcp_fastopen", "1027"))??;
        for &port in ports {
            // The first packet of a connection has at most 60 bytes of headers: a longer one brings the first bytes.
            for (first, arrives) in [("ip length > 60", round_trip / 2), ("", round_trip * 3 / 2)] {
                let own = networks.inside(&Place::Site, || -> Result<u16> {
                    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                    let own = listener.local_addr()?.port();
                    // Threads are in the network of the one that starts them.
                    thread::spawn(move || {
                        for client in listener.incoming().flatten() {
                            thread::spawn(move || carry(client, (LB, port).into(), round_trip, arrives));
                        }
                    });
                    Ok(own)
                })??;
                rules.push_str(&format!(
                    "iifname \"lan\" tcp dport {port} {first} redirect to :{own};\n"
                ));
            }
        }
        let table =
            format!("table ip rssh_bench {{ chain delay {{ type nat hook prerouting priority dstnat;\n{rules}}}\n}}\n");
        networks.inside(&Place::Site, || run::fed(Command::new("nft").args(["-f", "-"]), &table))??;
        Ok(Self { networks })
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        let delete = || run::checked(Command::new("nft").args(["delete", "table", "ip", "rssh_bench"]));
        if let Ok(Err(error)) | Err(error) = self.networks.inside(&Place::Site, delete) {
            eprintln!("the longer way stays: {error:#}");
        }
    }
}

/// Carries one connection as a link would whose far end is half a round trip away, and knows of it when `arrives` is over.
///
/// The client believes to be connected already. On a long link its first byte would arrive one and a half round trips
/// from now, and half a round trip where it came with the first packet.
fn carry(client: TcpStream, to: SocketAddr, round_trip: Duration, arrives: Duration) {
    let established = Instant::now() + arrives;
    let up = read_late(&client, round_trip / 2);
    thread::sleep(established.saturating_duration_since(Instant::now()));
    let Ok(server) = TcpStream::connect(to) else { return };
    let down = read_late(&server, round_trip / 2);
    for stream in [&client, &server] {
        stream.set_nodelay(true).ok();
    }
    let Ok(back) = client.try_clone() else { return };
    thread::spawn(move || write_due(&down, &back));
    write_due(&up, &server);
}

type Due = (Instant, Vec<u8>);

fn read_late(from: &TcpStream, delay: Duration) -> Receiver<Due> {
    let (sender, receiver) = channel();
    if let Ok(mut from) = from.try_clone() {
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                if sender
                    .send((Instant::now() + delay, buffer[..length].to_vec()))
                    .is_err()
                {
                    return;
                }
            }
            // An empty one is the end.
            sender.send((Instant::now() + delay, Vec::new())).ok();
        });
    }
    receiver
}

fn write_due(bytes: &Receiver<Due>, mut to: &TcpStream) {
    for (due, bytes) in bytes {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if bytes.is_empty() {
            break;
        }
        if to.write_all(&bytes).is_err() {
            to.shutdown(Shutdown::Both).ok();
            return;
        }
    }
    to.shutdown(Shutdown::Write).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_takes_two_and_a_half_round_trips_from_the_connect_and_all_bytes_arrive() {
        let far = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpListener::bind("127.0.0.1:0").unwrap();
        let (to, at) = (far.local_addr().unwrap(), near.local_addr().unwrap());
        let round_trip = Duration::from_millis(20);
        thread::spawn(move || carry(near.accept().unwrap().0, to, round_trip, round_trip * 3 / 2));
        thread::spawn(move || {
            let mut stream = far.accept().unwrap().0;
            let mut said = Vec::new();
            stream.read_to_end(&mut said).unwrap();
            stream.write_all(&said).unwrap();
        });
        let begin = Instant::now();
        let mut stream = TcpStream::connect(at).unwrap();
        let sent = vec![7; 300_000];
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        assert_eq!(back, sent);
        assert!(begin.elapsed() >= round_trip * 2);
    }
}
