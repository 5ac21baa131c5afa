//! A session's bytes, both ways between our end (stdin and stdout, or a local connection) and one through the load
//! balancer.
//!
//! A refused name shows as a connection that ends before its first byte. Until then nothing may be lost that was read
//! from our end, so that the next name can be tried: what an ssh client says first is kept and said again; for other
//! targets, where a repetition could do harm, nothing is read before the connection has lasted.

use std::io;
use std::time::{Duration, Instant};

use rssh_proto::Target;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, copy_bidirectional_with_sizes, join};
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use crate::lb::{Balancer, LbError, Stream, is_ssh};
use crate::stdio;

/// One TLS record carries 16 KiB; several per system call pay.
const BUFFER: usize = 64 * 1024;
/// The most of a client's first words that is kept.
const KEPT: usize = 64 * 1024;

/// Why a session did not end as sessions do.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The connection ended before it carried anything: the next name may do.
    #[error(transparent)]
    NotStarted(#[from] LbError),
    #[error("stdin or stdout failed: {0}")]
    Local(io::Error),
    #[error("the connection was cut off: {0}")]
    Cut(io::Error),
}

/// Our end of the session.
pub struct Local {
    input: Box<dyn AsyncRead + Unpin + Send>,
    output: Box<dyn AsyncWrite + Unpin + Send>,
    /// What the client said before the device's first word.
    said: Vec<u8>,
    /// The client has said all.
    ended: bool,
}

impl Local {
    /// stdin and stdout.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn stdio() -> Result<Self, RelayError> {
        let input = stdio::input().map_err(RelayError::Local)?;
        let output = stdio::output().map_err(RelayError::Local)?;
        Ok(Self::of(input, Box::new(output)))
    }

    /// A connection that a local listener took.
    pub fn socket(socket: TcpStream) -> Self {
        let (input, output) = socket.into_split();
        Self::of(Box::new(input), Box::new(output))
    }

    fn of(input: Box<dyn AsyncRead + Unpin + Send>, output: Box<dyn AsyncWrite + Unpin + Send>) -> Self {
        Self {
            input,
            output,
            said: Vec::new(),
            ended: false,
        }
    }

    /// Relays a session over a fresh connection until both sides have ended it. An ssh must begin in time; `begun` is
    /// called when a session has, and told whether the far side has spoken.
    ///
    /// # Errors
    /// [`RelayError::NotStarted`] when the connection carried nothing; the call may be repeated with another one.
    pub async fn relay(
        &mut self,
        mut stream: Stream,
        balancer: &Balancer,
        target: &Target,
        round_trip: Duration,
        begins_by: Instant,
        begun: impl FnOnce(bool),
    ) -> Result<(), RelayError> {
        let first = if is_ssh(target) {
            let first = self.until_first_word(&mut stream, balancer);
            timeout_at(begins_by.into(), first)
                .await
                .unwrap_or(Err(LbError::Silent.into()))?
        } else {
            balancer.stays_open(&mut stream, round_trip).await?
        };
        begun(!first.is_empty());
        self.said = Vec::new();
        if !first.is_empty() && !self.write(&first).await? {
            return Ok(());
        }
        let Self { input, output, .. } = self;
        let mut local = join(input, output);
        match copy_bidirectional_with_sizes(&mut local, &mut stream, BUFFER, BUFFER).await {
            // The reader of our stdout is gone: ssh ends its ProxyCommand like that.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(RelayError::Cut(error)),
            Ok((up, down)) => {
                tracing::debug!(up, down, "session over");
                Ok(())
            }
        }
    }

    /// Passes on and keeps what the client says until the device has said something.
    async fn until_first_word(&mut self, stream: &mut Stream, balancer: &Balancer) -> Result<Vec<u8>, RelayError> {
        let refused = |error: io::Error| RelayError::NotStarted(balancer.refusal(&error));
        stdio::write(stream, &self.said).await.map_err(refused)?;
        let mut first = Vec::with_capacity(4096);
        let mut input = vec![0; 4096];
        loop {
            let listening = !self.ended && self.said.len() < KEPT;
            tokio::select! {
                heard = stream.read_buf(&mut first) => match heard {
                    Ok(0) => return Err(LbError::Closed.into()),
                    Ok(_) => return Ok(first),
                    Err(error) => return Err(refused(error)),
                },
                read = self.input.read(&mut input), if listening => match read.map_err(RelayError::Local)? {
                    // Passed on with the rest of the session, should there be one.
                    0 => self.ended = true,
                    count => {
                        self.said.extend_from_slice(&input[..count]);
                        stdio::write(stream, &input[..count]).await.map_err(refused)?;
                    }
                },
            }
        }
    }

    /// Writes to stdout; `false` when nobody reads it any more.
    async fn write(&mut self, bytes: &[u8]) -> Result<bool, RelayError> {
        match stdio::write(&mut self.output, bytes).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(RelayError::Local(error)),
        }
    }
}
