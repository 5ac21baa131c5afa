//! Bytes through a tunnel: how many in a second, either way, and how long one takes there and back.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use anyhow::Result;

use super::byhand::{Client, FORWARD};
use super::connection::{self, Connection};
use super::results::{Figure, Reach};
use super::rig::{BUSY, Rig, STREAM_PORT};
use super::route;
use super::stats::{Pairs, median};
use crate::Lab;
use crate::place::Place;

/// How many single bytes are sent in one round.
const ECHOES: usize = 500;
/// How much is written at once.
const CHUNK: usize = 128 * 1024;
/// Set in a length: as many bytes are to be sent, and not taken.
const SEND: u64 = 1 << 63;

/// Sends a length and as many bytes; returns once the device has them all.
fn send(connection: &mut Connection, bytes: u64) -> io::Result<()> {
    connection.write_all(&bytes.to_be_bytes())?;
    let chunk = vec![0x5a; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let length = left.min(CHUNK as u64);
        connection.write_all(&chunk[..length as usize])?;
        left -= length;
    }
    connection.flush()?;
    connection.read_exact(&mut [0])
}

/// Asks for as many bytes and takes them.
fn fetch(connection: &mut Connection, bytes: u64) -> io::Result<()> {
    connection.write_all(&(bytes | SEND).to_be_bytes())?;
    connection.flush()?;
    take(connection, bytes)
}

/// Takes as many bytes.
fn take(from: &mut impl io::Read, bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let part = left.min(CHUNK as u64) as usize;
        match from.read(&mut buffer[..part])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => left -= read as u64,
        }
    }
    Ok(())
}

/// Serves on the device: takes as many bytes as the first eight say, then answers with one; or sends as many. Again and
/// again.
///
/// # Errors
/// When the port cannot be had; that it is served already is none.
pub fn serve(lab: &Lab) -> Result<()> {
    let bound = lab.networks().inside(&Place::Device(BUSY), || {
        TcpListener::bind((Ipv4Addr::LOCALHOST, STREAM_PORT))
    })?;
    let listener = match bound {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(()),
        bound => bound?,
    };
    let answer = |mut stream: TcpStream| -> io::Result<()> {
        stream.set_nodelay(true)?;
        loop {
            let mut length = [0; 8];
            stream.read_exact(&mut length)?;
            let length = u64::from_be_bytes(length);
            if length & SEND == 0 {
                take(&mut stream, length)?;
                stream.write_all(&[1])?;
            } else {
                io::copy(&mut io::repeat(0x5a).take(length & !SEND), &mut stream)?;
            }
        }
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A peer that goes away ends its own connection only.
            thread::spawn(move || answer(stream));
        }
    });
    Ok(())
}

/// What one way gave in one round.
struct Round {
    up_mib_per_s: f64,
    down_mib_per_s: f64,
    echo_us: f64,
}

fn round(mut connection: Connection, bytes: u64) -> Result<Round> {
    // The way is open once something has come back.
    send(&mut connection, 1)?;
    let mut echoes = Vec::with_capacity(ECHOES);
    for _ in 0..ECHOES {
        let begin = Instant::now();
        send(&mut connection, 0)?;
        echoes.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Round {
        up_mib_per_s: rate(bytes, || send(&mut connection, bytes))?,
        down_mib_per_s: rate(bytes, || fetch(&mut connection, bytes))?,
        echo_us: median(&echoes),
    })
}

/// How fast bytes were carried, in MiB/s.
fn rate(bytes: u64, carry: impl FnOnce() -> io::Result<()>) -> io::Result<f64> {
    let begin = Instant::now();
    carry()?;
    Ok(bytes as f64 / f64::from(1 << 20) / begin.elapsed().as_secs_f64())
}

/// Carries a stream to the device through a connection; returns how fast, in MiB/s.
///
/// # Errors
/// When the connection fails.
pub fn carry(mut connection: Connection, bytes: u64) -> Result<f64> {
    send(&mut connection, 1)?;
    Ok(rate(bytes, || send(&mut connection, bytes))?)
}

/// The ways that are taken in each round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Ours,
    ByHand(Client),
    /// The hand-run ssh with our cipher, both legs through HAProxy as ours are, and TLS spoken by this process.
    Bare,
}

const WAYS: [Way; 4] = [
    Way::Ours,
    Way::ByHand(Client::Default),
    Way::ByHand(Client::Equal),
    Way::Bare,
];

const FLOOR: &str = "no program of ours: the hand-run ssh with our cipher, which reaches its sshd through HAProxy, and is \
                     reached through HAProxy with TLS that the bench speaks itself; against the same ssh without HAProxy";

/// Measures the whole path against `ssh -R` without a load balancer or TLS.
///
/// # Errors
/// When a connection fails.
pub fn measure(rig: &mut Rig, rounds: usize, bytes: u64) -> Result<Vec<Figure>> {
    serve(&rig.lab)?;
    route::open_doors(&rig.lab, FORWARD.into())?;
    let rounds = all_rounds(rig, rounds, bytes);
    route::close_doors(&rig.lab)?;
    let [ours, default, equal, bare] = rounds?;
    let pairs = |ours: &[Round], theirs: &[Round], value: fn(&Round) -> f64| Pairs {
        ours: ours.iter().map(value).collect(),
        theirs: theirs.iter().map(value).collect(),
    };
    let up = |round: &Round| round.up_mib_per_s;
    let down = |round: &Round| round.down_mib_per_s;
    let echo = |round: &Round| round.echo_us;
    let faster = |key, reach, pairs, note: &str| Figure::ratio(key, reach, pairs, "MiB/s", note);
    let sooner = |key, reach, pairs, note: &str| Figure::ratio(key, reach, pairs, "us", note);
    let mib = bytes >> 20;
    let to_device =
        format!("{mib} MiB from the user to the device by rssh proxy, TLS, HAProxy and ssh, against ssh -R alone");
    let equally = "the same, the hand-run ssh with our cipher";
    let added = "the same with rssh proxy and our agent's ssh, against the one without any program of ours";
    Ok(vec![
        faster(
            "throughput_vs_ssh",
            Reach::AtLeast(1.0),
            &pairs(&ours, &default, up),
            &to_device,
        ),
        faster(
            "throughput_vs_ssh_equal",
            Reach::AtLeast(0.8),
            &pairs(&ours, &equal, up),
            equally,
        ),
        faster("throughput_floor", Reach::None, &pairs(&bare, &equal, up), FLOOR),
        faster("throughput_vs_floor", Reach::None, &pairs(&ours, &bare, up), added),
        faster(
            "throughput_down_vs_ssh",
            Reach::None,
            &pairs(&ours, &default, down),
            &format!("{mib} MiB from the device to the user, against ssh -R alone"),
        ),
        faster(
            "throughput_down_vs_ssh_equal",
            Reach::None,
            &pairs(&ours, &equal, down),
            equally,
        ),
        faster("throughput_down_floor", Reach::None, &pairs(&bare, &equal, down), FLOOR),
        faster(
            "throughput_down_vs_floor",
            Reach::None,
            &pairs(&ours, &bare, down),
            added,
        ),
        sooner(
            "echo_vs_ssh",
            Reach::AtMost(1.5),
            &pairs(&ours, &default, echo),
            "eight bytes there and one back, the median of a round's 500, against default ssh -R alone",
        ),
        sooner("echo_vs_ssh_equal", Reach::None, &pairs(&ours, &equal, echo), equally),
        sooner("echo_floor", Reach::None, &pairs(&bare, &equal, echo), FLOOR),
        sooner("echo_vs_floor", Reach::None, &pairs(&ours, &bare, echo), added),
    ])
}

/// Takes every way in each round.
fn all_rounds(rig: &mut Rig, rounds: usize, bytes: u64) -> Result<[Vec<Round>; 4]> {
    let to = format!("localhost:{STREAM_PORT}");
    let mut results: [Vec<Round>; 4] = Default::default();
    for at in 0..rounds {
        for step in 0..WAYS.len() {
            let way = (at + step) % WAYS.len();
            rig.settle()?;
            let result = match WAYS[way] {
                Way::Ours => {
                    // The tunnel opens with the first bytes.
                    let result = round(connection::ours(&rig.lab)?, bytes)?;
                    rig.close()?;
                    result
                }
                Way::ByHand(client) => {
                    rig.open_by_hand(client, &to)?;
                    let result = round(connection::tcp(&rig.lab, FORWARD)?, bytes)?;
                    rig.close_by_hand()?;
                    result
                }
                Way::Bare => {
                    rig.open_by_hand(Client::Balanced, &to)?;
                    let result = round(connection::tls(&rig.lab)?, bytes)?;
                    rig.close_by_hand()?;
                    result
                }
            };
            results[way].push(result);
        }
    }
    Ok(results)
}
