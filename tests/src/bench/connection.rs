//! Connections to the service on the device, one way or another.

use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context as _, Result};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::rig::{BUSY, STREAM_PORT, USER};
use super::route::{self, PLAIN};
use crate::Lab;
use crate::place::{DOMAIN, LB, Place, device_name};

/// How much is read from a socket at once.
const BUFFER: usize = 64 * 1024;

/// What can be written to and read from.
pub trait Duplex: Read + Write {}

impl<T: Read + Write> Duplex for T {}

/// A connection; dropped, it ends.
pub type Connection = Box<dyn Duplex>;

/// The user's own: `rssh proxy`, which opens a tunnel or uses the one that is there.
///
/// # Errors
/// When it cannot be started.
pub fn ours(lab: &Lab) -> Result<Connection> {
    let port = STREAM_PORT.to_string();
    let mut child = lab
        .command(&lab.place(Some(USER))?, &["rssh", "proxy", &device_name(BUSY), &port])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let pipes = child.stdin.take().zip(child.stdout.take());
    let (stdin, stdout) = pipes.context("rssh has no input or output")?;
    Ok(Box::new(Piped {
        child,
        pipes: Some((stdin, stdout)),
    }))
}

/// TLS and nothing else, spoken by this process, to the door that checks no name.
///
/// # Errors
/// When the door is closed.
pub fn tls(lab: &Lab) -> Result<Connection> {
    let config = route::tls(&lab.dir().join(format!("users/{USER}/home/.config/rssh")))?;
    let name = ServerName::try_from(format!("any.{DOMAIN}"))?;
    let socket = Buffered(BufReader::with_capacity(BUFFER, connect(lab, (LB, PLAIN))?));
    Ok(Box::new(StreamOwned::new(ClientConnection::new(config, name)?, socket)))
}

/// A tunnel's own port.
///
/// # Errors
/// When nothing listens there.
pub fn tcp(lab: &Lab, at: (Ipv4Addr, u16)) -> Result<Connection> {
    Ok(Box::new(connect(lab, at)?))
}

fn connect(lab: &Lab, at: (Ipv4Addr, u16)) -> Result<TcpStream> {
    let stream = lab.networks().inside(&Place::Core, || TcpStream::connect(at))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A program, spoken to by pipes.
struct Piped {
    child: Child,
    pipes: Option<(ChildStdin, ChildStdout)>,
}

impl Drop for Piped {
    fn drop(&mut self) {
        // It ends with its input.
        self.pipes = None;
        let _ = self.child.wait();
    }
}

impl Piped {
    fn pipes(&mut self) -> io::Result<&mut (ChildStdin, ChildStdout)> {
        self.pipes.as_mut().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl Read for Piped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.pipes()?.1.read(buffer)
    }
}

impl Write for Piped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pipes()?.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pipes()?.0.flush()
    }
}

/// A socket that is read in large parts: rustls asks for 4 KiB at a time.
struct Buffered(BufReader<TcpStream>);

impl Read for Buffered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Buffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.get_mut().write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.get_mut().flush()
    }
}
