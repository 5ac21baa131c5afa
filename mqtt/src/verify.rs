//! Which servers are believed, where the rule of the TLS library alone does not do.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Believes a server whose chain descends from known authorities, also while the clock is not set.
///
/// A small device has no clock of its own: until the network tells it, it is 1970, and every certificate lies in the
/// future. A clock that stands before our own certificate was made is surely wrong; then the chain is judged by the day
/// on which it begins. What that gives up: such a device believes a server's certificate that has run out.
#[derive(Debug)]
pub(crate) struct Clockless {
    rule: Arc<WebPkiServerVerifier>,
    /// When our own certificate begins.
    begins: UnixTime,
}

impl Clockless {
    /// Believes what descends from these authorities, for one whose own certificate begins then, in Unix seconds.
    pub(crate) fn new(
        roots: RootCertStore,
        begins: i64,
        provider: Arc<rustls::crypto::CryptoProvider>,
    ) -> Result<Arc<Self>, rustls::Error> {
        let rule = WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let begins = u64::try_from(begins).unwrap_or(0);
        Ok(Arc::new(Self {
            rule,
            begins: UnixTime::since_unix_epoch(std::time::Duration::from_secs(begins)),
        }))
    }
}

impl ServerCertVerifier for Clockless {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut at = now;
        loop {
            let verified = self
                .rule
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, at);
            match verified {
                // Each turn is later by one certificate of the chain.
                Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }))
                    if now < self.begins && at < not_before =>
                {
                    at = not_before;
                }
                verified => return verified,
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.rule.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.rule.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.rule.supported_verify_schemes()
    }
}

/// Believes a server whose chain has a certificate of this fingerprint, and descends from it.
#[derive(Debug)]
pub(crate) struct Pinned {
    /// The SHA-256 of its CA.
    pub authority: [u8; 32],
    pub provider: Arc<rustls::crypto::CryptoProvider>,
}

impl Pinned {
    fn verifier(&self, chain: &[CertificateDer<'_>]) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let authority = chain
            .iter()
            .find(|certificate| ring::digest::digest(&ring::digest::SHA256, certificate).as_ref() == self.authority)
            .ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(|_| unknown())
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier(intermediates)?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

    use super::*;

    /// An authority, and a server's certificate by it that holds in 2026.
    fn chain() -> (RootCertStore, CertificateDer<'static>) {
        let year = |params: &mut CertificateParams| {
            params.not_before = date_time_ymd(2026, 1, 1);
            params.not_after = date_time_ymd(2027, 1, 1);
        };
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        year(&mut authority);
        let mut roots = RootCertStore::empty();
        roots.add(authority.self_signed(&key).unwrap().into()).unwrap();
        let mut server = CertificateParams::new(vec!["lb.example".to_owned()]).unwrap();
        year(&mut server);
        let by = Issuer::new(authority, key);
        let signed = server.signed_by(&KeyPair::generate().unwrap(), &by).unwrap();
        (roots, signed.into())
    }

    /// Whether a client whose own certificate is of so many years after 1970 believes the server so many years after.
    fn believes(own: u64, now: u64) -> bool {
        const YEAR: u64 = 31_556_952;
        let (roots, server) = chain();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let own = i64::try_from(own * YEAR).unwrap();
        let clockless = Clockless::new(roots, own, provider).unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now * YEAR + YEAR / 2));
        let name = ServerName::try_from("lb.example").unwrap();
        clockless.verify_server_cert(&server, &[], &name, &[], now).is_ok()
    }

    #[test]
    fn a_clock_before_our_own_certificate_tells_nothing() {
        assert!(believes(56, 56), "in its year");
        assert!(believes(56, 0), "the clock is at 1970");
        assert!(
            !believes(50, 55),
            "the clock may be right, and the certificate is not good yet"
        );
        assert!(!believes(56, 57), "it has run out");
    }
}
