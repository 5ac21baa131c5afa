//! The system's ssh-keygen.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rssh_proto::text::{quoted, sanitize};

/// Why ssh-keygen did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum KeygenError {
    #[error("cannot run ssh-keygen: {0}; install openssh-client")]
    Missing(std::io::Error),
    #[error("ssh-keygen failed: {0}")]
    Failed(String),
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("not an SSH public key: {0}")]
    NotAKey(String),
}

/// Makes an ed25519 key pair without a passphrase.
///
/// # Errors
/// When a file is there already or cannot be written.
pub fn generate(path: &Path, comment: &str) -> Result<(), KeygenError> {
    run([
        OsStr::new("-q"),
        OsStr::new("-t"),
        OsStr::new("ed25519"),
        OsStr::new("-N"),
        OsStr::new(""),
        OsStr::new("-C"),
        OsStr::new(comment),
        OsStr::new("-f"),
        path.as_os_str(),
    ])
}

/// Signs a host key: `<key>-cert.pub` appears beside it.
///
/// # Errors
/// When the CA's key or the host's public key cannot be read.
pub fn sign_host_key(ca: &Path, id: &str, principal: &str, public_key: &Path) -> Result<(), KeygenError> {
    run([
        OsStr::new("-q"),
        OsStr::new("-h"),
        OsStr::new("-s"),
        ca.as_os_str(),
        OsStr::new("-I"),
        OsStr::new(id),
        OsStr::new("-n"),
        OsStr::new(principal),
        public_key.as_os_str(),
    ])
}

fn run<'a>(arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<(), KeygenError> {
    let output = Command::new("ssh-keygen")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(KeygenError::Missing)?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stderr, output.stdout].concat();
    Err(KeygenError::Failed(sanitize(
        String::from_utf8_lossy(&said).trim(),
        300,
    )))
}

/// Reads a public key file: its type and key, without the comment.
///
/// # Errors
/// When the file is missing or does not hold one SSH public key.
pub fn public_key(path: &Path) -> Result<PublicKey, KeygenError> {
    let text = std::fs::read_to_string(path).map_err(|source| KeygenError::Read {
        path: path.to_owned(),
        source,
    })?;
    text.trim().parse()
}

/// An SSH public key as one `type base64` pair, checked and encoded anew: nothing else of the input survives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PublicKey(String);

impl PublicKey {
    /// The key as `type base64`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The fingerprint as ssh-keygen(1) prints it.
    pub fn fingerprint(&self) -> String {
        let blob = self.0.split(' ').nth(1).and_then(|key| BASE64.decode(key).ok());
        let sum = ring::digest::digest(&ring::digest::SHA256, &blob.unwrap_or_default());
        format!("SHA256:{}", BASE64.encode(sum).trim_end_matches('='))
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for PublicKey {
    type Err = KeygenError;

    /// Reads `type base64 [comment]`. The type must stand in the key itself too (RFC 4253, 6.6).
    fn from_str(text: &str) -> Result<Self, KeygenError> {
        let error = || KeygenError::NotAKey(quoted(text, 60));
        if text.contains(['\n', '\r', '\0']) {
            return Err(error());
        }
        let mut words = text.split(' ');
        let (kind, key) = (words.next().ok_or_else(error)?, words.next().ok_or_else(error)?);
        let blob = BASE64.decode(key).map_err(|_| error())?;
        let length: [u8; 4] = blob
            .get(..4)
            .and_then(|length| length.try_into().ok())
            .ok_or_else(error)?;
        let named = blob.get(4..4 + u32::from_be_bytes(length) as usize);
        if kind.is_empty() || named != Some(kind.as_bytes()) {
            return Err(error());
        }
        Ok(Self(format!("{kind} {}", BASE64.encode(blob))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF3b4OqFP4OqF3b4OqFP4OqF3b4OqFP4OqF3b4OqFP4O";

    #[test]
    fn a_key_loses_its_comment_and_keeps_its_type() {
        let key: PublicKey = format!("{KEY} someone@somewhere").parse().unwrap();
        assert_eq!(key.as_str(), KEY);
    }

    #[test]
    fn a_comment_cannot_carry_a_second_line_and_a_type_cannot_lie() {
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 !!!!",
            "ssh-ed25519 AAAA",
            &KEY.replace("ssh-ed25519 ", "ssh-rsa "),
            &format!("{KEY} x\nssh-rsa AAAA"),
            &format!("command=\"sh\" {KEY}"),
        ] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad:?}");
        }
    }
}
