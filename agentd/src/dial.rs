//! `dial HOST PORT`: opens the connection for ssh and hands the socket over (ssh_config(5), ProxyUseFdpass).
//!
//! A socket that ssh opens itself waits twice for 40 ms, Nagle's algorithm against the peer's delayed acknowledgement,
//! and notices a dead peer late. This one is set up first; no byte is copied afterwards.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use rustix::net::sockopt;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use rssh_proto::FailureKind;

/// How long one address may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// How long sent bytes may stay unacknowledged before the kernel ends the connection.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// Silence before the first keepalive probe, and between probes.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What starts each error that dialling prints to ssh's standard error.
pub const ERROR_PREFIX: &str = "rssh-agentd: ";

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot resolve {host}: {source}")]
    Resolve { host: String, source: io::Error },
    #[error("cannot connect to {host} port {port}: {source}")]
    Connect { host: String, port: u16, source: io::Error },
    #[error("cannot hand the connection to ssh: {0}; dial is run by ssh, not by hand")]
    HandOver(io::Error),
}

/// Runs the command when these arguments (without the program's name) are exactly `dial HOST PORT`.
pub fn main(arguments: &[OsString]) -> Option<ExitCode> {
    let [command, host, port] = arguments else {
        return None;
    };
    let (host, port) = (host.to_str()?, port.to_str()?.parse().ok()?);
    if command != "dial" {
        return None;
    }
    Some(match dial(host, port) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{ERROR_PREFIX}{error}");
            ExitCode::from(FailureKind::NobodyServing.exit_code())
        }
    })
}

/// Connects and passes the socket over standard output.
///
/// # Errors
/// When no address of the host answers, or standard output is not the socket that ssh waits on.
pub fn dial(host: &str, port: u16) -> Result<(), DialError> {
    let stream = connect(host, port)?;
    hand_over(io::stdout(), &stream).map_err(DialError::HandOver)
}

fn connect(host: &str, port: u16) -> Result<TcpStream, DialError> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let addresses = (host, port).to_socket_addrs().map_err(|source| DialError::Resolve {
        host: host.to_owned(),
        source,
    })?;
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                tune(&stream);
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(DialError::Connect {
        host: host.to_owned(),
        port,
        source: last,
    })
}

/// Sets what makes the connection quick and its loss soon noticed; a kernel that refuses some of it still connects.
fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_tcp_user_timeout(stream, u32::try_from(USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX));
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, KEEPALIVE);
    let _ = sockopt::set_tcp_keepintvl(stream, KEEPALIVE);
}

/// Sends a descriptor with one byte, as ssh's mm_receive_fd expects it.
fn hand_over(socket: impl AsFd, stream: &TcpStream) -> io::Result<()> {
    let descriptors = [stream.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::empty())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    use super::*;

    #[test]
    fn the_socket_arrives_connected_and_tuned() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (ours, theirs) = UnixStream::pair().unwrap();
        hand_over(&ours, &connect("127.0.0.1", port).unwrap()).unwrap();

        let mut byte = [7];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut byte)];
        let received = recvmsg(&theirs, &mut slices, &mut control, RecvFlags::empty()).unwrap();
        assert_eq!(received.bytes, 1);
        let Some(RecvAncillaryMessage::ScmRights(mut descriptors)) = control.drain().next() else {
            panic!("no descriptor came");
        };
        let stream = TcpStream::from(descriptors.next().unwrap());
        assert!(stream.nodelay().unwrap());
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 30_000);
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
    }

    #[test]
    fn a_closed_port_is_named() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = connect("127.0.0.1", port).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("cannot connect to 127.0.0.1 port {port}: ")),
            "{error}"
        );
    }

    #[test]
    fn only_a_dial_is_taken_before_the_parser() {
        for other in [
            &["run"][..],
            &["dial"],
            &["dial", "h", "p"],
            &["dial", "h", "22", "x"],
            &["x", "h", "22"],
        ] {
            let arguments: Vec<OsString> = other.iter().map(Into::into).collect();
            assert!(main(&arguments).is_none(), "{other:?}");
        }
    }
}
