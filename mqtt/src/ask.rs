//! Secrets that people type or programs hand over: never an argument, never in the environment.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::Path;

use rssh_proto::enrolment::EnrolmentToken;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::files::read_secret;

/// The longest text that is read.
const LIMIT: u64 = 4096;

/// Reads an enrolment token: from a file that only its owner reads, else from a prompt on a terminal, else from standard
/// input.
///
/// # Errors
/// When nothing can be read, or what was read is no token.
pub fn enrolment_token(file: Option<&Path>) -> io::Result<EnrolmentToken> {
    let text = match file {
        Some(path) => {
            let bytes = read_secret(path).map_err(io::Error::other)?;
            String::from_utf8_lossy(&bytes).into_owned()
        }
        None if io::stdin().is_terminal() => prompt("Enrolment token: ")?,
        None => {
            let mut text = String::new();
            io::stdin().lock().take(LIMIT).read_to_string(&mut text)?;
            text
        }
    };
    text.trim()
        .parse()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Asks on the terminal, and does not show what is typed.
fn prompt(question: &str) -> io::Result<String> {
    let stdin = io::stdin();
    let before = tcgetattr(&stdin)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    eprint!("{question}");
    io::stderr().flush()?;
    tcsetattr(&stdin, OptionalActions::Flush, &silent)?;
    let mut line = String::new();
    let read = stdin.lock().take(LIMIT).read_line(&mut line);
    let restored = tcsetattr(&stdin, OptionalActions::Flush, &before);
    eprintln!();
    read?;
    restored?;
    Ok(line)
}
