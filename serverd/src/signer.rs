//! Where the authorities' private keys are: in files, or behind a program that alone can reach them.
//!
//! The program is started with the authority's name as its argument, `servers`, `devices` or `users`; it reads the bytes
//! to be signed from its standard input until the end, and writes the signature: ECDSA P-256 with SHA-256, in DER.
//! `openssl dgst -sha256 -sign KEY` does just that; so do the clients of a Vault or an HSM.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey};
use rssh_proto::text::sanitize;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::AsyncWriteExt as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How long the program may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the program did not sign.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SignerError {
    #[error("the certificate of the authority for {0} cannot be read")]
    Authority(&'static str),
    #[error("cannot run the signer {program}: {reason}")]
    Start { program: PathBuf, reason: String },
    #[error("the signer {program} did not sign for {authority}: {reason}")]
    Failed {
        program: PathBuf,
        authority: &'static str,
        reason: String,
    },
}

/// An authority's key behind a program.
pub struct Signer<'a> {
    pub program: &'a Path,
    pub authority: &'static str,
    /// The public key as the authority's certificate has it: a point.
    pub public: Vec<u8>,
}

impl<'a> Signer<'a> {
    /// The key of an authority with this certificate, in PEM form.
    ///
    /// # Errors
    /// When it is no certificate.
    pub fn new(program: &'a Path, authority: &'static str, certificate: &str) -> Result<Self, SignerError> {
        let read = || {
            let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
            let (_, parsed) = X509Certificate::from_der(&der).ok()?;
            Some(parsed.public_key().subject_public_key.data.to_vec())
        };
        let public = read().ok_or(SignerError::Authority(authority))?;
        Ok(Self {
            program,
            authority,
            public,
        })
    }

    /// Has a text signed, and checks the signature.
    ///
    /// # Errors
    /// When the program does not run, or does not answer with a signature by the authority's key.
    pub fn ask(&self, text: &[u8]) -> Result<Vec<u8>, SignerError> {
        let failed = |reason: String| SignerError::Failed {
            program: self.program.to_owned(),
            authority: self.authority,
            reason,
        };
        let signature = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                tokio::time::timeout(PATIENCE, self.run(text))
                    .await
                    .unwrap_or_else(|_| Err(failed("it takes too long".to_owned())))
            })
        })?;
        let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_ASN1, &self.public);
        match key.verify(text, &signature) {
            Ok(()) => Ok(signature),
            Err(_) => Err(failed(
                "what it wrote is no signature by the authority's key".to_owned(),
            )),
        }
    }

    async fn run(&self, text: &[u8]) -> Result<Vec<u8>, SignerError> {
        let start = |error: std::io::Error| SignerError::Start {
            program: self.program.to_owned(),
            reason: error.to_string(),
        };
        let mut child = tokio::process::Command::new(self.program)
            .arg(self.authority)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(start)?;
        if let Some(mut input) = child.stdin.take() {
            // One that has ended already says why by its exit code.
            let _ = input.write_all(text).await;
        }
        let output = child.wait_with_output().await.map_err(start)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = sanitize(String::from_utf8_lossy(&output.stderr).trim(), 200);
        Err(SignerError::Failed {
            program: self.program.to_owned(),
            authority: self.authority,
            reason: format!("{}: {said}", output.status),
        })
    }
}

/// An authority's key, wherever it is.
pub enum Key<'a> {
    File(Box<rcgen::KeyPair>),
    Signer(Signer<'a>),
}

impl PublicKeyData for Key<'_> {
    fn der_bytes(&self) -> &[u8] {
        match self {
            Self::File(key) => key.der_bytes(),
            Self::Signer(signer) => &signer.public,
        }
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for Key<'_> {
    fn sign(&self, text: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signer = match self {
            Self::File(key) => return key.sign(text),
            Self::Signer(signer) => signer,
        };
        signer.ask(text).map_err(|error| {
            tracing::error!(%error, "signer");
            rcgen::Error::RemoteKeyError
        })
    }
}
