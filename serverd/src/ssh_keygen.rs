//! The system's ssh-keygen.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rssh_proto::ssh_key::NotAKey;
pub use rssh_proto::ssh_key::PublicKey;
use rssh_proto::text::sanitize;

/// Why ssh-keygen did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum KeygenError {
    #[error("cannot run ssh-keygen: {0}; install openssh-client")]
    Missing(std::io::Error),
    #[error("ssh-keygen failed: {0}")]
    Failed(String),
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot use a temporary directory: {0}")]
    Directory(std::io::Error),
    #[error(transparent)]
    NotAKey(#[from] NotAKey),
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

/// Where an SSH authority's private key is.
#[derive(Debug, Clone)]
pub enum Authority {
    File(PathBuf),
    /// In the agent at this socket, which may keep it in hardware.
    Agent {
        public: PathBuf,
        socket: PathBuf,
    },
}

/// What is certified, and for whom.
#[derive(Debug, Clone)]
pub enum Certify<'a> {
    /// A host, under this name.
    Host { id: &'a str, name: &'a str },
    /// A user, for these principals and for a while.
    User {
        id: &'a str,
        principals: &'a [String],
        lives: Duration,
    },
}

/// Certifies a public key; returns the certificate in OpenSSH's form.
///
/// A user's has no beginning: the clocks of devices may be far behind.
///
/// # Errors
/// When the authority's key cannot be used.
pub fn certify(authority: &Authority, key: &PublicKey, what: &Certify<'_>) -> Result<String, KeygenError> {
    let dir = tempfile::tempdir().map_err(KeygenError::Directory)?;
    let path = dir.path().join("key.pub");
    std::fs::write(&path, format!("{key}\n")).map_err(KeygenError::Directory)?;
    let mut command = Command::new("ssh-keygen");
    command.arg("-q");
    match authority {
        Authority::File(ca) => command.arg("-s").arg(ca),
        Authority::Agent { public, socket } => command.env("SSH_AUTH_SOCK", socket).args(["-U", "-s"]).arg(public),
    };
    match what {
        Certify::Host { id, name } => command.args(["-h", "-I", id, "-n", name]),
        Certify::User { id, principals, lives } => command
            .args(["-I", id, "-n", &principals.join(","), "-V"])
            .arg(format!("always:+{}s", lives.as_secs())),
    };
    finish(command.arg(&path))?;
    let path = dir.path().join("key-cert.pub");
    std::fs::read_to_string(&path).map_err(|source| KeygenError::Read { path, source })
}

/// Whether a text was signed with one of these keys in a namespace (ssh-keygen(1), `-Y verify`).
///
/// # Errors
/// When ssh-keygen cannot be run.
pub fn verify(
    keys: &[PublicKey],
    id: &str,
    namespace: &str,
    text: &[u8],
    signature: &str,
) -> Result<bool, KeygenError> {
    let dir = tempfile::tempdir().map_err(KeygenError::Directory)?;
    let [signers, signed] = ["signers", "signature"].map(|name| dir.path().join(name));
    let lines: String = keys.iter().map(|key| format!("{id} {key}\n")).collect();
    std::fs::write(&signers, lines).map_err(KeygenError::Directory)?;
    std::fs::write(&signed, signature).map_err(KeygenError::Directory)?;
    let mut child = Command::new("ssh-keygen")
        .args(["-Y", "verify", "-I", id, "-n", namespace, "-f"])
        .arg(&signers)
        .arg("-s")
        .arg(&signed)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(KeygenError::Missing)?;
    if let Some(mut input) = child.stdin.take() {
        // One that has ended already has refused.
        let _ = input.write_all(text);
    }
    Ok(child.wait().map_err(KeygenError::Missing)?.success())
}

fn run<'a>(arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<(), KeygenError> {
    finish(Command::new("ssh-keygen").args(arguments))
}

fn finish(command: &mut Command) -> Result<(), KeygenError> {
    let output = command.stdin(Stdio::null()).output().map_err(KeygenError::Missing)?;
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
    Ok(text.trim().parse()?)
}
