//! `init`: the device's keys, made where they are used.
//!
//! The key of its ssh is ECDSA in PEM, and its public half lies where ssh does not look for it. With the public half at hand,
//! in a `.pub` or in a private key of OpenSSH's own format, ssh asks whether that key would do before it signs: a round
//! trip of each landing, and a call of rssh-authorize (sshconnect2.c, `userauth_pubkey`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use rssh_mqtt::files::{self, hand_over};
use rssh_mqtt::identity::request_certificate;
use rssh_proto::DeviceId;

/// Makes `device.{key,csr}` and `ssh_key{,.public}` in a directory; keys that are there stay.
///
/// # Errors
/// When the directory cannot be written, or ssh-keygen is missing or fails.
pub fn init(device: &DeviceId, dir: &Path) -> anyhow::Result<()> {
    make(dir)?;
    request_certificate(device.as_str(), &dir.join("device.key"), &dir.join("device.csr"))?;
    Ok(hand_over(dir)?)
}

/// Makes the directory, and the key of the device's ssh in it.
///
/// # Errors
/// When the directory cannot be written, or ssh-keygen is missing or fails.
pub fn make(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let key = dir.join("ssh_key");
    if !key.exists() {
        generate(&key)?;
    }
    publish(&key)
}

/// The file with the public half of a private key.
pub fn public_file(key: &Path) -> PathBuf {
    beside(key, ".public")
}

/// A file beside another, with more to its name.
pub fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(end);
    path.with_file_name(name)
}

/// Writes the public key file of a private key, unless it is there.
///
/// # Errors
/// When it cannot be written, or the key cannot be read.
pub fn publish(key: &Path) -> anyhow::Result<()> {
    let public = public_file(key);
    if !public.exists() {
        let text = format!("{}\n", public_half(key)?);
        files::write_public(&public, text.as_bytes())?;
    }
    Ok(())
}

/// Reads a public key file: its type and key, without the comment.
///
/// # Errors
/// When it cannot be read or holds no key.
pub fn public_key(path: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut words = text.split_whitespace();
    match (words.next(), words.next()) {
        (Some(kind), Some(key)) => Ok(format!("{kind} {key}")),
        _ => bail!("{} holds no public key", path.display()),
    }
}

/// The public half of a private key: its type and key (ssh-keygen(1), `-y`).
///
/// # Errors
/// When ssh-keygen is missing, or the file holds no key.
pub fn public_half(key: &Path) -> anyhow::Result<String> {
    let output = Command::new("ssh-keygen")
        .args(["-y", "-P", "", "-f"])
        .arg(key)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .context("cannot run ssh-keygen; install the package openssh-client")?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        [kind, public, ..] if output.status.success() => Ok(format!("{kind} {public}")),
        _ => bail!("{} holds no private key", key.display()),
    }
}

/// Runs `ssh-keygen` for an ECDSA key in PEM, without a passphrase; leaves its private half only.
///
/// # Errors
/// When it is missing or fails.
pub fn generate(key: &Path) -> anyhow::Result<()> {
    let status = Command::new("ssh-keygen")
        .args(["-q", "-t", "ecdsa", "-b", "256", "-m", "PEM", "-N", "", "-f"])
        .arg(key)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("cannot run ssh-keygen; install the package openssh-client")?;
    if !status.success() {
        bail!("ssh-keygen could not make {}", key.display());
    }
    let public = beside(key, ".pub");
    fs::remove_file(&public).with_context(|| format!("cannot remove {}", public.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn keys_are_made_once_and_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let device: DeviceId = "device-1".parse().unwrap();
        init(&device, dir.path()).unwrap();
        let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
        let first = (read("ssh_key"), read("device.key"));
        for secret in ["ssh_key", "device.key"] {
            assert_eq!(
                fs::metadata(dir.path().join(secret)).unwrap().mode() & 0o077,
                0,
                "{secret}"
            );
        }
        assert!(read("device.csr").starts_with(b"-----BEGIN CERTIFICATE REQUEST-----"));
        // In any other form ssh would know the public half, and ask before it signs.
        assert!(read("ssh_key").starts_with(b"-----BEGIN EC PRIVATE KEY-----"));
        assert!(!dir.path().join("ssh_key.pub").exists());
        let public = String::from_utf8(read("ssh_key.public")).unwrap();
        assert_eq!(
            public.split_whitespace().count(),
            2,
            "type and key, no comment: {public}"
        );
        init(&device, dir.path()).unwrap();
        assert_eq!((read("ssh_key"), read("device.key")), first);
    }
}
