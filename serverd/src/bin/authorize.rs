//! `AuthorizedKeysCommand` of the dedicated sshd: asks serverd whether a key may log in now, and to what.
//!
//! It runs for every login, and twice where the device's ssh asks whether its key would do, so it is small: one connect,
//! one line out, one line in. When serverd is away it says no within two seconds; it never hangs.

use std::process::ExitCode;
use std::time::Duration;

/// A login is refused within two seconds when serverd is away or frozen; the key exchange before it takes its part.
const PATIENCE: Duration = Duration::from_millis(1300);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, kind, key] = &arguments[..] else {
        eprintln!("usage: rssh-authorize SOCKET KEYTYPE KEY (sshd runs it: %t %k)");
        return ExitCode::from(64);
    };
    helper::relay(socket, &format!("{kind} {key}"), PATIENCE)
}

#[path = "../helper.rs"]
mod helper;
