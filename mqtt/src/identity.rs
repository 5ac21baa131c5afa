//! A program's TLS identity: its private key, its certificate and the CAs it trusts, as PEM files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use crate::files::{FileError, certificates, read_secret, write_public, write_secret};
use crate::life::Life;
use crate::verify::Clockless;

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    File(#[from] FileError),
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
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| FileError::Pem {
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

/// Makes a private key at `key` unless one is there, and a request for a certificate with this CN at `request`.
///
/// The key is ECDSA P-256 and never leaves its file.
///
/// # Errors
/// When the files cannot be read or written.
pub fn request_certificate(cn: &str, key: &Path, request: &Path) -> Result<(), IdentityError> {
    Ok(write_public(request, certificate_request(cn, key)?.as_bytes())?)
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
