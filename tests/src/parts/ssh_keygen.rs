//! ssh-keygen: key pairs of users and of devices' own sshd.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::{files, run};

/// Makes an ed25519 key pair without passphrase or comment at `path` and `path.pub`; returns the public half.
///
/// # Errors
/// When ssh-keygen fails.
pub fn key_pair(path: &Path) -> Result<String> {
    run::checked(
        Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"])
            .arg(path),
    )?;
    Ok(files::read(&path.with_extension("pub"))?.trim().to_owned())
}
