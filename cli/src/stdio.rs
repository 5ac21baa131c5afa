//! stdin and stdout without a thread in between, where the system allows it.
//!
//! ssh gives its ProxyCommand pipes; those, and sockets, are polled. A terminal or file is read by tokio's thread:
//! switching a terminal to non-blocking would outlive this program, and files cannot be polled.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

/// What a file descriptor is, as far as it can be polled.
enum Kind {
    Pipe(OwnedFd),
    Socket(UnixStream),
    Other,
}

fn kind(fd: impl AsFd) -> io::Result<Kind> {
    let file = File::from(fd.as_fd().try_clone_to_owned()?);
    let file_type = file.metadata()?.file_type();
    if file_type.is_fifo() {
        Ok(Kind::Pipe(file.into()))
    } else if file_type.is_socket() {
        let socket = StdUnixStream::from(OwnedFd::from(file));
        socket.set_nonblocking(true)?;
        UnixStream::from_std(socket).map(Kind::Socket)
    } else {
        Ok(Kind::Other)
    }
}

/// The program's input.
///
/// # Errors
/// When it is closed or was opened for writing only.
pub fn input() -> io::Result<Box<dyn AsyncRead + Unpin + Send>> {
    Ok(match kind(io::stdin())? {
        Kind::Pipe(fd) => Box::new(pipe::Receiver::from_owned_fd(fd)?),
        Kind::Socket(socket) => Box::new(socket),
        Kind::Other => Box::new(tokio::io::stdin()),
    })
}

/// The program's output; shutting it down closes it for its reader.
///
/// # Errors
/// When it is closed or was opened for reading only.
pub fn output() -> io::Result<Output> {
    Ok(Output(Some(match kind(io::stdout())? {
        Kind::Pipe(fd) => Box::new(pipe::Sender::from_owned_fd(fd)?),
        Kind::Socket(socket) => Box::new(socket),
        Kind::Other => Box::new(tokio::io::stdout()),
    })))
}

/// The program's output, until it is shut down.
pub struct Output(Option<Box<dyn AsyncWrite + Unpin + Send>>);

impl AsyncWrite for Output {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Some(inner) => Pin::new(inner).poll_write(cx, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Some(inner) => Pin::new(inner).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(inner) = &mut self.0 {
            std::task::ready!(Pin::new(inner).poll_shutdown(cx))?;
            self.0 = None;
            // The reader sees the end only when the last descriptor is closed, and descriptor 1 is another one.
            nix::unistd::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
        }
        Poll::Ready(Ok(()))
    }
}

/// Writes everything and flushes.
///
/// # Errors
/// When the reader is gone.
pub async fn write(output: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    output.write_all(bytes).await?;
    output.flush().await
}
