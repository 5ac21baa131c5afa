//! The forced command of every device's login: claims the tunnel that the device names, and prints the port it holds.

use std::process::ExitCode;
use std::time::Duration;

/// A claim may wait for an older session of the tunnel to end.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // The last is for sshd's log, which shows the command and so the one port that the login is permitted.
    let [socket, device, _permitted] = &arguments[..] else {
        eprintln!("usage: rssh-claim SOCKET DEVICE ADDRESS:PORT (sshd runs it as a forced command)");
        return ExitCode::from(64);
    };
    let command = std::env::var("SSH_ORIGINAL_COMMAND").unwrap_or_default();
    helper::relay(socket, &format!("{device} {} {command}", peer()), PATIENCE)
}

/// As whom sshd sees the device: the first two of the four words that it tells every session (ssh(1), SSH_CONNECTION).
fn peer() -> String {
    let connection = std::env::var("SSH_CONNECTION").unwrap_or_default();
    let mut words = connection.split(' ');
    match (words.next(), words.next()) {
        (Some(address), Some(port)) => format!("{address}:{port}"),
        _ => "-".to_owned(),
    }
}

#[path = "../helper.rs"]
mod helper;
