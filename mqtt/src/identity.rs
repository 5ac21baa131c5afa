//! A program's TLS identity: its private key, its certificate and the CAs it trusts, as PEM files.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use crate::renewal::Life;
use crate::verify::Clockless;

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{0} is readable by others; run: chmod 600 {0}")]
    Exposed(PathBuf),
    #[error("{path} holds no {what} in PEM form")]
    Pem { path: PathBuf, what: &'static str },
    #[error("the certificate {certificate} cannot be used with its key: {source}; the two have to belong together")]
    Tls {
        certificate: PathBuf,
        source: rustls::Error,
    },
    #[error("cannot make a key: {0}")]
    Key(#[from] rcgen::Error),
}

/// Where an identity lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct IdentityFiles {
    /// The CAs that the peer's certificate must descend from.
    pub ca: PathBuf,
    /// Our certificate, with its chain.
    pub cert: PathBuf,
    /// Our private key, mode 0600.
    pub key: PathBuf,
}

/// An identity, read and checked.
pub struct Identity {
    pub certificates: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub roots: rustls::RootCertStore,
    files: IdentityFiles,
}

impl Identity {
    /// Reads an identity.
    ///
    /// # Errors
    /// When a file is missing, is not PEM, or is a private key that others may read.
    pub fn load(files: &IdentityFiles) -> Result<Self, IdentityError> {
        let key = read_secret(&files.key)?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| IdentityError::Pem {
            path: files.key.clone(),
            what: "private key",
        })?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(certificates(&files.ca)?);
        Ok(Self {
            certificates: certificates(&files.cert)?,
            key,
            roots,
            files: files.clone(),
        })
    }

    /// A TLS client that shows this identity.
    ///
    /// # Errors
    /// When the certificate and the key do not belong together.
    pub fn client_config(&self) -> Result<rustls::ClientConfig, IdentityError> {
        self.client()?
            .with_client_auth_cert(self.certificates.clone(), self.key.clone_key())
            .map_err(|source| self.unusable(source))
    }

    /// A TLS client that believes the identity's authorities, and is yet to be told what to show.
    pub(crate) fn client(&self) -> Result<rustls::ConfigBuilder<rustls::ClientConfig, WantsClientCert>, IdentityError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let begins = self.certificates.first().and_then(|own| Life::read(own));
        let begins = begins.map_or(0, |life| life.from);
        let verifier = Clockless::new(self.roots.clone(), begins, provider.clone());
        let verifier = verifier.map_err(|source| self.unusable(source))?;
        Ok(rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| self.unusable(source))?
            .dangerous()
            .with_custom_certificate_verifier(verifier))
    }

    fn unusable(&self, source: rustls::Error) -> IdentityError {
        IdentityError::Tls {
            certificate: self.files.cert.clone(),
            source,
        }
    }
}

/// Names the protocol in the handshake (ALPN, as registered with IANA), so that a load balancer can tell it from others
/// on the same port; a broker that does not look at it answers without.
pub fn with_alpn(tls: &Arc<rustls::ClientConfig>) -> Arc<rustls::ClientConfig> {
    let mut tls = rustls::ClientConfig::clone(tls);
    tls.alpn_protocols = vec![b"mqtt".to_vec()];
    Arc::new(tls)
}

/// Reads the certificates of a PEM file; there is at least one.
///
/// # Errors
/// When the file cannot be read or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let pem = read(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .unwrap_or_default();
    if certificates.is_empty() {
        return Err(IdentityError::Pem {
            path: path.to_owned(),
            what: "certificate",
        });
    }
    Ok(certificates)
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    fs::read(path).map_err(|source| IdentityError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Reads a secret, refusing one that group or others may read.
///
/// # Errors
/// When the file cannot be read or is exposed.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let bytes = read(path)?;
    let mode = fs::metadata(path).map_or(0, |metadata| metadata.mode());
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed(path.to_owned()));
    }
    Ok(bytes)
}

/// Writes a secret with mode 0600, replacing the file in one step; one that was there keeps its owner, and a new one is
/// its directory's.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    write_file(path, bytes, 0o600)
}

/// Writes a file anyone may read, replacing it in one step.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    write_file(path, bytes, 0o644)
}

fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), IdentityError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = path.with_file_name(name);
    let write = || {
        // Nothing that lies there already is followed or written to, in a directory of another account least of all.
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(bytes)?;
        keep_owner(path, &file)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&new);
        IdentityError::Write {
            path: path.to_owned(),
            source,
        }
    })
}

/// Gives a file the owner of the one whose place it takes, or of the directory it is new in: what root writes, a daemon
/// under its own account still reads.
fn keep_owner(path: &Path, file: &fs::File) -> io::Result<()> {
    let before = fs::metadata(path).or_else(|_| fs::metadata(directory(path)));
    let (Ok(before), ours) = (before, file.metadata()?) else {
        return Ok(());
    };
    if (before.uid(), before.gid()) == (ours.uid(), ours.gid()) {
        return Ok(());
    }
    match fchown(file, Some(before.uid()), Some(before.gid())) {
        // Only root gives files away; to others it is theirs from now on.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// The directory that a file lies in.
fn directory(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Gives what root made in an account's directory, and below, to that account; what links lead to is left alone.
///
/// # Errors
/// When something cannot be handed over.
pub fn hand_over(dir: &Path) -> Result<(), IdentityError> {
    let hand = || {
        let account = fs::metadata(dir)?;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if account.uid() != 0 && entry.metadata()?.uid() == 0 {
                lchown(entry.path(), Some(account.uid()), Some(account.gid()))?;
            }
            if entry.file_type()?.is_dir() {
                hand_over(&entry.path()).map_err(io::Error::other)?;
            }
        }
        Ok(())
    };
    hand().map_err(|source| IdentityError::Write {
        path: dir.to_owned(),
        source,
    })
}

/// Makes a private key at `key` unless one is there, and a request for a certificate with this CN at `request`.
///
/// The key is ECDSA P-256 and never leaves its file.
///
/// # Errors
/// When the files cannot be read or written.
pub fn request_certificate(cn: &str, key: &Path, request: &Path) -> Result<(), IdentityError> {
    write_public(request, certificate_request(cn, key)?.as_bytes())
}

/// Makes a private key at `key` unless one is there, and returns a request for a certificate with this CN in PEM form.
///
/// # Errors
/// When the key cannot be read or written.
pub fn certificate_request(cn: &str, key: &Path) -> Result<String, IdentityError> {
    let pair = if key.exists() {
        let pem = read_secret(key)?;
        rcgen::KeyPair::from_pem(&String::from_utf8_lossy(&pem))?
    } else {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        write_secret(key, pair.serialize_pem().as_bytes())?;
        pair
    };
    let mut parameters = rcgen::CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, cn);
    Ok(parameters.serialize_request(&pair)?.pem()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_root_makes_in_the_directory_of_an_account_is_that_account_s() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        if std::os::unix::fs::chown(&home, Some(12_345), Some(54_321)).is_err() {
            // Not root: then nothing can be given away, and nothing is.
            write_secret(&home.join("key"), b"secret").unwrap();
            hand_over(&home).unwrap();
            return;
        }
        // What the account planted where the new file goes is not written through.
        let victim = dir.path().join("victim");
        fs::write(&victim, "as it was").unwrap();
        let planted = home.join(format!("key.new-{}", std::process::id()));
        std::os::unix::fs::symlink(&victim, &planted).unwrap();
        write_secret(&home.join("key"), b"secret").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "as it was");

        fs::create_dir(home.join("run")).unwrap();
        fs::write(home.join("run/made"), "").unwrap();
        std::os::unix::fs::symlink(&victim, home.join("link")).unwrap();
        hand_over(&home).unwrap();
        for name in ["key", "run", "run/made", "link"] {
            let metadata = fs::symlink_metadata(home.join(name)).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (12_345, 54_321), "{name}");
        }
        assert_eq!(fs::metadata(home.join("key")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&victim).unwrap().uid(), 0);
    }
}
