//! Bytes through a tunnel: how many in a second, and how long one takes there and back.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::byhand::{Client, FORWARD};
use super::results::{Figure, Reach};
use super::rig::{BUSY, Rig, STREAM_PORT, USER};
use super::route::{self, PLAIN};
use super::stats::{Pairs, median};
use crate::Lab;
use crate::place::{DOMAIN, LB, Place, device_name, socket};

/// How many single bytes are sent in one round.
const ECHOES: usize = 500;
/// How much is written at once.
const CHUNK: usize = 128 * 1024;

/// A connection to the service on the device, one way or the other.
pub enum Connection {
    Ours(Child, ChildStdin, ChildStdout),
    /// A TLS client that does nothing else.
    Bare(Child, ChildStdin, ChildStdout),
    ByHand(TcpStream),
}

impl Connection {
    /// The user's own: `rssh proxy`, which opens a tunnel or uses the one that is there.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn ours(lab: &Lab) -> Result<Self> {
        let place = lab.place(Some(USER))?;
        let port = STREAM_PORT.to_string();
        let (child, stdin, stdout) = piped(lab, &place, &["rssh", "proxy", &device_name(BUSY), &port])?;
        Ok(Self::Ours(child, stdin, stdout))
    }

    /// `openssl s_client` to the door that checks no name.
    fn bare(lab: &Lab) -> Result<Self> {
        let place = lab.place(Some(USER))?;
        let dir = lab.dir().inside(format_args!("users/{USER}/home/.config/rssh"));
        let [cert, key] = ["pem", "key"].map(|ext| format!("{dir}/user.{ext}"));
        let (at, name, ca) = (
            socket(LB, PLAIN),
            format!("any.{DOMAIN}"),
            format!("{dir}/servers-ca.pem"),
        );
        let argv = [
            "openssl",
            "s_client",
            "-quiet",
            "-verify_quiet",
            "-CAfile",
            &ca,
            "-connect",
            &at,
            "-servername",
            &name,
            "-cert",
            &cert,
            "-key",
            &key,
        ];
        let (child, stdin, stdout) = piped(lab, &place, &argv)?;
        Ok(Self::Bare(child, stdin, stdout))
    }

    /// A tunnel's own port.
    ///
    /// # Errors
    /// When nothing listens there.
    pub fn tcp(lab: &Lab, at: (Ipv4Addr, u16)) -> Result<Self> {
        let stream = lab.networks().inside(&Place::Core, || TcpStream::connect(at))??;
        stream.set_nodelay(true)?;
        Ok(Self::ByHand(stream))
    }

    /// Sends a length and as many bytes; returns once the device has them all.
    fn send(&mut self, bytes: u64) -> io::Result<()> {
        match self {
            Self::Ours(_, stdin, stdout) | Self::Bare(_, stdin, stdout) => send(stdin, stdout, bytes),
            Self::ByHand(stream) => send(&*stream, &*stream, bytes),
        }
    }

    fn close(self) -> io::Result<()> {
        match self {
            Self::Ours(mut child, stdin, stdout) => {
                drop((stdin, stdout));
                child.wait()?;
            }
            // It does not end with its input.
            Self::Bare(mut child, ..) => {
                child.kill()?;
                child.wait()?;
            }
            Self::ByHand(_) => {}
        }
        Ok(())
    }
}

/// A program at a place, with pipes to speak to it.
fn piped(lab: &Lab, place: &Place, argv: &[&str]) -> Result<(Child, ChildStdin, ChildStdout)> {
    let mut child = lab
        .command(place, argv)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let stdin = child
        .stdin
        .take()
        .with_context(|| format!("{} has no input", argv[0]))?;
    let stdout = child
        .stdout
        .take()
        .with_context(|| format!("{} has no output", argv[0]))?;
    Ok((child, stdin, stdout))
}

fn send(mut to: impl Write, mut from: impl Read, bytes: u64) -> io::Result<()> {
    to.write_all(&bytes.to_be_bytes())?;
    let chunk = vec![0x5a; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let length = left.min(CHUNK as u64);
        to.write_all(&chunk[..length as usize])?;
        left -= length;
    }
    to.flush()?;
    from.read_exact(&mut [0])
}

/// Serves on the device: takes as many bytes as the first eight say, then answers with one; again and again.
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
    let take = |mut stream: TcpStream| -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let mut length = [0; 8];
            stream.read_exact(&mut length)?;
            let mut left = u64::from_be_bytes(length);
            while left > 0 {
                let part = left.min(CHUNK as u64) as usize;
                match stream.read(&mut buffer[..part])? {
                    0 => return Ok(()),
                    read => left -= read as u64,
                }
            }
            stream.write_all(&[1])?;
        }
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A peer that goes away ends its own connection only.
            thread::spawn(move || take(stream));
        }
    });
    Ok(())
}

/// What one way gave in one round.
struct Round {
    mib_per_s: f64,
    echo_us: f64,
}

fn round(mut connection: Connection, bytes: u64) -> Result<Round> {
    // The way is open once something has come back.
    connection.send(1)?;
    let mut echoes = Vec::with_capacity(ECHOES);
    for _ in 0..ECHOES {
        let begin = Instant::now();
        connection.send(0)?;
        echoes.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    let begin = Instant::now();
    connection.send(bytes)?;
    let took: Duration = begin.elapsed();
    connection.close()?;
    Ok(Round {
        mib_per_s: bytes as f64 / f64::from(1 << 20) / took.as_secs_f64(),
        echo_us: median(&echoes),
    })
}

/// Carries a stream through a connection; returns how fast, in MiB/s.
///
/// # Errors
/// When the connection fails.
pub fn carry(connection: Connection, bytes: u64) -> Result<f64> {
    round(connection, bytes).map(|round| round.mib_per_s)
}

/// Measures the whole path against `ssh -R` without a load balancer or TLS.
///
/// # Errors
/// When a connection fails.
pub fn measure(rig: &mut Rig, rounds: usize, bytes: u64) -> Result<Vec<Figure>> {
    serve(&rig.lab)?;
    // The way of the hand-run ssh, with HAProxy and TLS before it.
    route::open_doors(&rig.lab, FORWARD.into())?;
    let rounds = all_rounds(rig, rounds, bytes);
    route::close_doors(&rig.lab)?;
    let results = rounds?;
    let between = |ours: usize, theirs: usize, value: fn(&Round) -> f64| Pairs {
        ours: results[ours].iter().map(value).collect(),
        theirs: results[theirs].iter().map(value).collect(),
    };
    let pairs = |theirs, value| between(0, theirs, value);
    let rate = |round: &Round| round.mib_per_s;
    let echo = |round: &Round| round.echo_us;
    let how = format!(
        "{} MiB from the user to the device by rssh proxy, TLS, HAProxy and ssh, against ssh -R alone",
        bytes >> 20
    );
    Ok(vec![
        Figure::ratio("throughput_vs_ssh", Reach::AtLeast(1.0), &pairs(1, rate), "MiB/s", &how),
        Figure::ratio(
            "throughput_vs_ssh_equal",
            Reach::AtLeast(0.8),
            &pairs(2, rate),
            "MiB/s",
            "the same, the hand-run ssh with our cipher",
        ),
        Figure::ratio(
            "echo_vs_ssh",
            Reach::AtMost(1.5),
            &pairs(1, echo),
            "us",
            "eight bytes there and one back, the median of a round's 500, against default ssh -R alone",
        ),
        Figure::ratio(
            "echo_vs_ssh_equal",
            Reach::None,
            &pairs(2, echo),
            "us",
            "the same, the hand-run ssh with our cipher",
        ),
        Figure::ratio(
            "throughput_floor",
            Reach::None,
            &between(3, 2, rate),
            "MiB/s",
            "the hand-run ssh with our cipher, reached through HAProxy with TLS by openssl s_client, against the same reached \
             without: what is left to any program of ours is the way to here",
        ),
        Figure::ratio(
            "echo_floor",
            Reach::None,
            &between(3, 2, echo),
            "us",
            "the same for echoes",
        ),
    ])
}

/// Takes every way in each round: ours, the hand-run ssh with its settings and with ours, and that behind HAProxy and TLS.
fn all_rounds(rig: &mut Rig, rounds: usize, bytes: u64) -> Result<[Vec<Round>; 4]> {
    let to = format!("localhost:{STREAM_PORT}");
    let mut results: [Vec<Round>; 4] = Default::default();
    for at in 0..rounds {
        for step in 0..4 {
            let way = (at + step) % 4;
            rig.settle()?;
            let result = if way == 0 {
                // The tunnel opens with the first bytes.
                let result = round(Connection::ours(&rig.lab)?, bytes)?;
                rig.close()?;
                result
            } else {
                let client = if way == 1 { Client::Default } else { Client::Equal };
                rig.open_by_hand(client, &to)?;
                let connection = match way {
                    3 => Connection::bare(&rig.lab)?,
                    _ => Connection::tcp(&rig.lab, FORWARD)?,
                };
                let result = round(connection, bytes)?;
                rig.close_by_hand()?;
                result
            };
            results[way].push(result);
        }
    }
    Ok(results)
}
