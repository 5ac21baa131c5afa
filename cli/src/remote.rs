//! One command on one device, by the system's ssh.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use rssh_proto::id::random_hex;
use rssh_proto::{DeviceId, FailureKind};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use crate::error::Error;
use crate::ssh::{Ended, ended, not_started};

/// A line that does not end is passed on in pieces of this size.
const LONGEST_LINE: usize = 64 * 1024;

/// Which of a command's two outputs a line is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Runs a command, whose ssh gets these arguments; each line of its output goes to `line` as it comes.
///
/// # Errors
/// The named failure, when the command did not run to its end.
pub async fn run(
    device: &DeviceId,
    login: &[OsString],
    command: &[OsString],
    line: &(impl Fn(Stream, &[u8]) + Sync),
) -> Result<u8, Error> {
    let log = Log::create().map_err(|error| Error::internal(format!("cannot keep ssh's log: {error}")))?;
    let mut ssh = Command::new("ssh");
    ssh.args(["-T", "-E"])
        .arg(log.file())
        .args([
            "-o",
            "LogLevel=DEBUG1",
            "-o",
            "BatchMode=yes",
            "-o",
            "ServerAliveInterval=15",
        ])
        // Another session's connection has no proxy that could fail, nor a log.
        .args(["-o", "ControlPath=none"])
        .args(login)
        .arg("--")
        .args(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut ssh = ssh.spawn().map_err(|error| not_started(&error))?;
    let (Some(stdout), Some(stderr)) = (ssh.stdout.take(), ssh.stderr.take()) else {
        return Err(Error::internal("ssh has no output"));
    };
    // Without a login, only our own proxy can have said something.
    let last = std::sync::Mutex::new(String::new());
    let keep = |text: &[u8]| {
        if let Some(said) = String::from_utf8_lossy(text).strip_prefix("rssh: ")
            && let Ok(mut last) = last.lock()
        {
            *last = said.trim_end().to_owned();
        }
        line(Stream::Stderr, text);
    };
    let (out, err) = tokio::join!(lines(stdout, |text| line(Stream::Stdout, text)), lines(stderr, keep));
    let status = ssh.wait().await;
    let cut = |error: io::Error| Error::internal(format!("{device}: ssh's output was lost: {error}"));
    out.and(err).and(status.map(drop)).map_err(cut)?;
    let told = last.into_inner().unwrap_or_default();
    let failed = |message: String| Err(Error::new(FailureKind::SshFailed, message));
    match ended(&log.read()) {
        Ended::Exited(code) => Ok(code),
        Ended::NotLoggedIn(_) if !told.is_empty() => failed(told),
        Ended::NotLoggedIn(reason) => failed(format!("{device}: {reason} Try: rssh ssh {device}")),
        Ended::Cut(reason) => failed(format!(
            "{device}: the connection was lost, or a signal ended the command: {reason}"
        )),
    }
}

/// Passes a stream on line by line, each with its line break; the last one gets one.
async fn lines(mut stream: impl AsyncRead + Unpin, line: impl Fn(&[u8])) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let ended = stream.read_buf(&mut buffer).await? == 0;
        let mut rest = &buffer[..];
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            line(&rest[..=end]);
            rest = &rest[end + 1..];
        }
        if !rest.is_empty() && (ended || rest.len() >= LONGEST_LINE) {
            line(&[rest, b"\n"].concat());
            rest = &[];
        }
        let passed = buffer.len() - rest.len();
        buffer.drain(..passed);
        if ended {
            return Ok(());
        }
    }
}

/// A directory with ssh's log in it, for as long as it is read.
struct Log(PathBuf);

impl Log {
    fn create() -> io::Result<Self> {
        let directory = std::env::temp_dir().join(format!("rssh-{}", random_hex::<16>()));
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        Ok(Self(directory))
    }

    fn file(&self) -> PathBuf {
        self.0.join("log")
    }

    fn read(&self) -> String {
        fs::read(self.file()).map_or_else(|_| String::new(), |log| String::from_utf8_lossy(&log).into_owned())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn output_is_passed_on_in_whole_lines() {
        let got = RefCell::new(Vec::new());
        let long = [b'x'; LONGEST_LINE + 1];
        let text = [b"a\n\nb\n".as_slice(), &long, b"\nend"].concat();
        lines(&text[..], |line| got.borrow_mut().push(line.to_vec()))
            .await
            .unwrap();
        let got = got.into_inner();
        assert_eq!(got[..3], [b"a\n".to_vec(), b"\n".to_vec(), b"b\n".to_vec()]);
        assert_eq!(got.last().unwrap(), b"end\n");
        assert!(
            got.iter()
                .all(|line| line.ends_with(b"\n") && line.len() <= 2 * LONGEST_LINE)
        );
    }
}
