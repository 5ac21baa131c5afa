//! What both helper programs do: send one line to serverd's socket and print the line that comes back.
//!
//! Included by path rather than by crate: the helpers start for every login and link nothing but the standard library.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

/// The longest line either way: `rssh_proto::claim::LINE_LIMIT`.
const LIMIT: u64 = 8192;

/// Sends a line and prints the answer, which may take as long as `patience`.
pub(crate) fn relay(socket: &str, line: &str, patience: Duration) -> ExitCode {
    if line.len() as u64 >= LIMIT || line.contains(['\n', '\r', '\0']) {
        eprintln!("rssh: the request is too long or holds a control character");
        return ExitCode::from(65);
    }
    match ask(socket, line, patience) {
        Ok(answer) => match io::stdout().write_all(&answer) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(74),
        },
        Err(error) => {
            eprintln!("rssh: serverd does not answer on {socket}: {error}");
            ExitCode::from(75)
        }
    }
}

fn ask(socket: &str, line: &str, patience: Duration) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(line.as_bytes())?;
    stream.write_all(b"\n")?;
    let mut answer = Vec::new();
    stream.take(LIMIT).read_to_end(&mut answer)?;
    Ok(answer)
}
