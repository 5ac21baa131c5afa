//! A process that stands in for one of sshd's, so that serverd's checks of who asks hold without an sshd.
//!
//! serverd finds a login from the process that asks: sshd's monitor is the parent of `rssh-authorize` and the
//! grandparent of `rssh-claim`. Stand-ins form chains, each the child of the one before, and stand at three places of
//! three logins at once, which takes one process for each login rather than three:
//!
//! ```text
//!   n       n+1                n+2
//! monitor - authorize, child - claim, listener    of login n
//!           monitor          - authorize, child   of login n+1
//! ```
//! Each ends with its parent.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nix::sys::signal::Signal;
use nix::unistd::{Uid, setfsuid};
use rssh_proto::claim::{ClaimReply, LINE_LIMIT};
use serde::{Deserialize, Serialize};

/// Stands in for a process of sshd's.
#[derive(Debug, Parser)]
pub struct Args {
    /// Where each stand-in has a socket by its number
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    number: u32,
    /// How many are to follow below it
    #[arg(long)]
    below: u32,
    /// The sockets of serverd for sshd's helpers
    #[arg(long)]
    authorize: PathBuf,
    #[arg(long)]
    claim: PathBuf,
    /// The user that sshd's sessions run as
    #[arg(long)]
    session_uid: u32,
}

/// What one is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Ask whether a key may log in.
    Authorize { line: String },
    /// Claim a tunnel, and listen where the claim says.
    Claim { line: String },
}

/// What one says, in a line of JSON, after its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is there.
    Up,
    Authorized,
    /// It listens here for the tunnel that was claimed.
    Listening(SocketAddr),
    /// Somebody else listens on the port that the claim gave.
    Taken(SocketAddr),
    Refused(String),
}

/// Is the stand-in, until its parent ends.
///
/// # Errors
/// When it cannot take its place.
pub fn run(args: &Args) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    let orders = UnixDatagram::bind(address(&args.dir, args.number)).context("cannot bind a stand-in's socket")?;
    let _next = match args.below {
        0 => None,
        below => Some(command(args, args.number + 1, below - 1).spawn()?),
    };
    let mut sessions = Vec::new();
    let mut order = vec![0; LINE_LIMIT];
    let mut answer = Answer::Up;
    loop {
        say(args.number, &answer)?;
        let length = orders.recv(&mut order)?;
        answer = match serde_json::from_slice(&order[..length])? {
            Order::Authorize { line } => authorize(&args.authorize, &line)?,
            Order::Claim { line } => match claim(&args.claim, &line)? {
                ClaimReply::Claimed(claimed) => {
                    let address = SocketAddr::new(claimed.bind, claimed.port);
                    match listen(address, args.session_uid) {
                        Ok(listener) => {
                            sessions.push(listener);
                            Answer::Listening(address)
                        }
                        Err(_) => Answer::Taken(address),
                    }
                }
                ClaimReply::Refused(failure) => Answer::Refused(failure.to_string()),
            },
        };
    }
}

/// The socket of a stand-in.
pub fn address(dir: &Path, number: u32) -> PathBuf {
    dir.join(number.to_string())
}

/// The command of a stand-in with the arguments of another but for these.
fn command(args: &Args, number: u32, below: u32) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .stdin(Stdio::null())
        .arg("--dir")
        .arg(&args.dir)
        .args(["--number", &number.to_string(), "--below", &below.to_string()])
        .arg("--authorize")
        .arg(&args.authorize)
        .arg("--claim")
        .arg(&args.claim)
        .args(["--session-uid", &args.session_uid.to_string()]);
    command
}

/// One line, written at once: all stand-ins of a server share the pipe.
fn say(number: u32, answer: &Answer) -> Result<()> {
    let mut line = serde_json::to_vec(&(number, answer))?;
    line.push(b'\n');
    ensure!(line.len() <= 4096, "an answer is longer than what a pipe takes at once");
    Ok(io::stdout().write_all(&line)?)
}

/// As `rssh-authorize` does, which sshd runs once: a device's ssh offers no key before it signs with it.
fn authorize(socket: &Path, line: &str) -> Result<Answer> {
    Ok(match ask(socket, line)?.is_empty() {
        true => Answer::Refused("not authorized".to_owned()),
        false => Answer::Authorized,
    })
}

/// As `rssh-claim` does.
fn claim(socket: &Path, line: &str) -> Result<ClaimReply> {
    Ok(serde_json::from_slice(&ask(socket, line)?)?)
}

fn ask(socket: &Path, line: &str) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Listens as the session's user: serverd looks at whose socket it is.
fn listen(address: SocketAddr, session_uid: u32) -> io::Result<TcpListener> {
    let own = setfsuid(Uid::from_raw(session_uid));
    let listener = TcpListener::bind(address);
    setfsuid(own);
    listener
}
