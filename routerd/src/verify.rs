//! Who wrote a registry entry: only a server's own signature makes it one.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rssh_proto::registration::{Registration, SignedRegistration};
use rssh_proto::{ServerId, payload};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert, ring};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Why an entry is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("it is not a registration: {0}")]
    Malformed(String),
    #[error("its certificate does not descend from the servers' CA: {0}")]
    Certificate(String),
    #[error("its certificate is that of {0}")]
    OtherServer(String),
    #[error("its signature is not by its certificate's key")]
    Signature,
    #[error("it names an address that no tunnel can be at: {0}")]
    Address(String),
}

/// Why the CA's file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path} holds no CA certificate in PEM form: {reason}")]
pub struct CaError {
    path: PathBuf,
    reason: String,
}

/// An entry whose signature was found good.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    pub registration: Registration,
    pub signed: SignedRegistration,
}

/// How many ssh addresses a server may have.
const MAX_SSH: usize = 16;

/// The servers' CA.
pub struct Verifier {
    anchors: Vec<TrustAnchor<'static>>,
}

impl Verifier {
    /// Reads the CA's certificates.
    ///
    /// # Errors
    /// When the file holds none.
    pub fn load(path: &Path) -> Result<Self, CaError> {
        let error = |reason: String| CaError {
            path: path.to_owned(),
            reason,
        };
        let pem = std::fs::read(path).map_err(|source| error(source.to_string()))?;
        Self::from_pem(&pem).map_err(error)
    }

    /// Takes the CA's certificates from PEM text.
    ///
    /// # Errors
    /// When it holds none, or one that cannot be read.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let anchors: Vec<TrustAnchor<'static>> = CertificateDer::pem_slice_iter(pem)
            .map(|certificate| {
                let certificate = certificate.map_err(|error| error.to_string())?;
                let anchor = anchor_from_trusted_cert(&certificate).map_err(|error| error.to_string())?;
                Ok(anchor.to_owned())
            })
            .collect::<Result<_, String>>()?;
        if anchors.is_empty() {
            return Err("it is empty".to_owned());
        }
        Ok(Self { anchors })
    }

    /// Checks an entry that was found under `server`'s key, or in `server`'s row.
    ///
    /// # Errors
    /// When it is malformed, or not signed by that server.
    pub fn verify(&self, server: &ServerId, text: &str, now: SystemTime) -> Result<Verified, VerifyError> {
        if text.len() > 4 * payload::LIMIT {
            return Err(VerifyError::Malformed("it is too large".to_owned()));
        }
        let malformed = |error: serde_json::Error| VerifyError::Malformed(error.to_string());
        let signed: SignedRegistration = serde_json::from_str(text).map_err(malformed)?;
        let (certificate, signature) = signed
            .proof()
            .ok_or_else(|| VerifyError::Malformed("its proof is not base64".to_owned()))?;
        self.check_proof(server, signed.body.as_bytes(), certificate, &signature, now)?;
        // Read only now: nothing is taken from what nobody has signed.
        let registration: Registration = serde_json::from_str(&signed.body).map_err(malformed)?;
        if registration.server != *server {
            return Err(VerifyError::OtherServer(registration.server.to_string()));
        }
        check_addresses(&registration)?;
        Ok(Verified { registration, signed })
    }

    fn check_proof(
        &self,
        server: &ServerId,
        body: &[u8],
        certificate: Vec<u8>,
        signature: &[u8],
        now: SystemTime,
    ) -> Result<(), VerifyError> {
        let untrusted = |error: webpki::Error| VerifyError::Certificate(error.to_string());
        let certificate = CertificateDer::from(certificate);
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let end_entity = EndEntityCert::try_from(&certificate).map_err(untrusted)?;
        end_entity
            .verify_for_usage(
                &[ring::ECDSA_P256_SHA256, ring::ECDSA_P384_SHA384, ring::ED25519],
                &self.anchors,
                &[],
                UnixTime::since_unix_epoch(now),
                KeyUsage::client_auth(),
                None,
                None,
            )
            .map_err(untrusted)?;
        let name = common_name(&certificate)?;
        if name != server.as_str() {
            return Err(VerifyError::OtherServer(rssh_proto::text::quoted(&name, 64)));
        }
        end_entity
            .verify_signature(ring::ECDSA_P256_SHA256, body, signature)
            .map_err(|_| VerifyError::Signature)
    }
}

/// The one CN of a certificate.
fn common_name(certificate: &[u8]) -> Result<String, VerifyError> {
    let invalid = || VerifyError::Certificate("it has no common name, or several".to_owned());
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| invalid())?;
    let mut names = certificate.subject().iter_common_name();
    match (names.next(), names.next()) {
        (Some(name), None) => name.as_str().map(str::to_owned).map_err(|_| invalid()),
        _ => Err(invalid()),
    }
}

/// Refuses what HAProxy would understand as another place than a server: `0.0.0.0` means "the client's destination".
fn check_addresses(registration: &Registration) -> Result<(), VerifyError> {
    let ssh = registration
        .ssh
        .iter()
        .chain([&registration.health])
        .chain(&registration.https);
    let ips = ssh.clone().map(|address| address.ip()).chain([registration.address]);
    if registration.ssh.is_empty() || registration.ssh.len() > MAX_SSH {
        return Err(VerifyError::Address(format!(
            "{} ssh addresses",
            registration.ssh.len()
        )));
    }
    if let Some(ip) = ips.into_iter().find(|ip| ip.is_unspecified() || ip.is_multicast()) {
        return Err(VerifyError::Address(ip.to_string()));
    }
    if let Some(address) = ssh.into_iter().find(|address| address.port() == 0) {
        return Err(VerifyError::Address(address.to_string()));
    }
    Ok(())
}
