//! TLS as the server's side of it: our own identity, and whose certificate the client shows.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rssh_mqtt::{FileError, Identity, IdentityError, files};
use rustls::RootCertStore;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::Config;
use crate::domain::{Domain, ca_file};

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the HTTPS certificate cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the authorities in {path} cannot be used: {source}")]
    Verifier {
        path: std::path::PathBuf,
        source: rustls::server::VerifierBuilderError,
    },
}

/// What a client's certificate says: which authority signed it, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pub domain: Domain,
    /// Its CN: not an id yet.
    pub name: String,
    /// Its serial number: lower-case hexadecimal.
    pub serial: String,
    /// The public key, as it stands in the certificate: DER.
    pub key: Vec<u8>,
}

/// What a client showed in the handshake, if anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown(pub Option<Arc<Certificate>>);

/// Takes TLS connections.
pub struct Acceptor(RwLock<Arc<Parts>>);

struct Parts {
    acceptor: TlsAcceptor,
    domains: Vec<(Domain, Arc<dyn ClientCertVerifier>)>,
}

impl Acceptor {
    /// Reads this server's certificate and the authorities.
    ///
    /// # Errors
    /// When a file is missing or cannot be used.
    pub fn load(config: &Config) -> Result<Self, TlsError> {
        Ok(Self(RwLock::new(Arc::new(Parts::load(config)?))))
    }

    /// Reads them again, for the handshakes to come.
    ///
    /// # Errors
    /// When a file cannot be used: then those from before stay.
    pub fn reload(&self, config: &Config) -> Result<(), TlsError> {
        let parts = Arc::new(Parts::load(config)?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = parts;
        Ok(())
    }

    /// Takes a handshake, and says whose certificate the client showed.
    ///
    /// # Errors
    /// When the client speaks another TLS, or shows a certificate that no authority of ours has signed.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Shown)> {
        let parts = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        parts.accept(stream).await
    }
}

impl Parts {
    fn load(config: &Config) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let trust = config.trust();
        let verifier = |roots: RootCertStore| {
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
                .allow_unauthenticated()
                .build()
                .map_err(|source| TlsError::Verifier {
                    path: trust.clone(),
                    source,
                })
        };
        let mut all = RootCertStore::empty();
        let mut domains = Vec::new();
        for domain in Domain::ALL {
            let roots = roots(&ca_file(&trust, domain))?;
            all.roots.extend(roots.roots.iter().cloned());
            domains.push((domain, verifier(roots)? as Arc<dyn ClientCertVerifier>));
        }
        let own = Identity::load(&config.https_identity())?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier(all)?)
            .with_single_cert(own.certificates, own.key)?;
        // Nothing is resumed.
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            domains,
        })
    }

    async fn accept(&self, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Shown)> {
        let stream = self.acceptor.accept(stream).await?;
        let shown = match stream.get_ref().1.peer_certificates() {
            Some([end_entity, intermediates @ ..]) => {
                let certificate = self
                    .certificate(end_entity, intermediates)
                    .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a certificate without a name"))?;
                Some(Arc::new(certificate))
            }
            _ => None,
        };
        Ok((stream, Shown(shown)))
    }

    /// Finds the authority. The handshake has found that there is one.
    fn certificate(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Option<Certificate> {
        let now = UnixTime::now();
        let (domain, _) = self
            .domains
            .iter()
            .find(|(_, verifier)| verifier.verify_client_cert(end_entity, intermediates, now).is_ok())?;
        let (_, parsed) = X509Certificate::from_der(end_entity).ok()?;
        let mut names = parsed.subject().iter_common_name();
        let (Some(name), None) = (names.next(), names.next()) else {
            return None;
        };
        Some(Certificate {
            domain: *domain,
            name: name.as_str().ok()?.to_owned(),
            serial: rssh_proto::text::hex(parsed.raw_serial()),
            key: parsed.public_key().raw.to_vec(),
        })
    }
}

fn roots(path: &Path) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(files::certificates(path)?);
    Ok(roots)
}
