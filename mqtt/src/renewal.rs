//! Certificates that renew by themselves, at two thirds of their life, over HTTPS and with the certificate before.
//!
//! The key stays the same; what changes is the certificate in its file, and the one that the next handshake shows.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rssh_proto::enrolment::{Renew, Renewed};
use rssh_proto::{Failure, FailureKind, HttpsUrl};
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};

use crate::files;
use crate::https::Client;
use crate::identity::{self, Identity, IdentityError, IdentityFiles};
use crate::life::Life;
use crate::proxy::Proxies;

/// The longest pause between two looks at a certificate: clocks jump, and files are replaced.
const LOOK: Duration = Duration::from_secs(3600);
/// The shortest.
const SOON: Duration = Duration::from_millis(500);

/// The clock, in Unix seconds.
pub fn now() -> i64 {
    SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// The identity that handshakes show; another certificate can take its place at any time.
#[derive(Debug)]
pub struct Renewable {
    files: IdentityFiles,
    shown: RwLock<Arc<CertifiedKey>>,
}

impl Renewable {
    /// Reads the identity.
    ///
    /// # Errors
    /// When a file is missing or wrong.
    pub fn load(files: &IdentityFiles) -> Result<Arc<Self>, IdentityError> {
        Ok(Arc::new(Self {
            files: files.clone(),
            shown: RwLock::new(certified(files)?),
        }))
    }

    /// Reads it again.
    ///
    /// # Errors
    /// When a file is missing or wrong: then the one before stays.
    pub fn reload(&self) -> Result<(), IdentityError> {
        let certified = certified(&self.files)?;
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }

    /// A TLS client that shows whatever certificate there is at each handshake.
    ///
    /// # Errors
    /// When the authorities cannot be read.
    pub fn client_config(self: &Arc<Self>) -> Result<ClientConfig, IdentityError> {
        let client = Identity::load(&self.files)?.client()?;
        Ok(client.with_client_cert_resolver(self.clone()))
    }

    /// The leaf certificate, in DER form.
    pub fn certificate(&self) -> Vec<u8> {
        let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
        shown
            .cert
            .first()
            .map(|certificate| certificate.to_vec())
            .unwrap_or_default()
    }
}

fn certified(files: &IdentityFiles) -> Result<Arc<CertifiedKey>, IdentityError> {
    let identity = Identity::load(files)?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(identity.certificates, identity.key, &provider)
        .map(Arc::new)
        .map_err(|source| IdentityError::Tls {
            certificate: files.cert.clone(),
            source,
        })
}

impl ResolvesClientCert for Renewable {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.shown.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Renews an identity's certificate, and writes it: for the key that is there.
///
/// `more` is what goes along, and comes back, besides.
///
/// # Errors
/// When no server answers, the certificate is no longer good, or the file cannot be written.
pub async fn renew(
    url: &HttpsUrl,
    proxies: Option<Proxies>,
    files: &IdentityFiles,
    more: Renew,
) -> Result<Renewed, Failure> {
    let identity = Identity::load(files).map_err(local)?;
    let request = Renew {
        csr: identity::certificate_request("rssh", &files.key).map_err(local)?,
        ..more
    };
    let mut client = Client::new(url.clone(), &identity).map_err(local)?;
    if let Some(proxies) = proxies {
        client = client.by(proxies);
    }
    let renewed: Renewed = client.post("/v1/renew", &request).await?;
    replace(files, &renewed.certificate)?;
    Ok(renewed)
}

/// Writes a new certificate in place of an identity's.
///
/// # Errors
/// When it is not for the identity's key, or the file cannot be written.
pub fn replace(files: &IdentityFiles, pem: &str) -> Result<(), Failure> {
    tried_and_written(files, pem).map_err(local)
}

fn tried_and_written(files: &IdentityFiles, pem: &str) -> Result<(), IdentityError> {
    let mut name = files.cert.as_os_str().to_owned();
    name.push(".next");
    let next = PathBuf::from(name);
    files::write_public(&next, pem.as_bytes())?;
    let tried = certified(&IdentityFiles {
        cert: next.clone(),
        ..files.clone()
    });
    let _ = std::fs::remove_file(&next);
    tried?;
    Ok(files::write_public(&files.cert, pem.as_bytes())?)
}

fn local(error: IdentityError) -> Failure {
    Failure::new(FailureKind::Configuration, error.to_string())
}

/// How long to wait before a certificate is to be renewed, and after failures.
pub fn pause(life: Life, now: i64, failures: u32) -> Duration {
    let left = u64::try_from(life.renew_at() - now).unwrap_or(0);
    if failures == 0 {
        return Duration::from_secs(left).clamp(SOON, LOOK);
    }
    // A tenth of what is left, so that there are many tries before the end, but never a storm of them.
    let rest = u64::try_from(life.until - now).unwrap_or(0);
    Duration::from_secs(rest / 10).clamp(Duration::from_secs(2), Duration::from_secs(600))
}

/// Keeps an identity's certificate fresh, for ever: waits, has it renewed, and shows the new one from then on.
pub async fn keep<F>(renewable: Arc<Renewable>, mut attempt: impl FnMut(Life) -> F)
where
    F: Future<Output = Result<(), Failure>>,
{
    let cert = renewable.files.cert.clone();
    let mut failures = 0;
    loop {
        let life = match Life::of(&cert) {
            Ok(life) => life,
            Err(error) => {
                tracing::error!(%error, "cannot renew the certificate");
                tokio::time::sleep(LOOK).await;
                continue;
            }
        };
        tokio::time::sleep(pause(life, now(), failures)).await;
        // A file that someone else has replaced meanwhile is as good.
        if Life::of(&cert).is_ok_and(|there| there != life) {
            failures = 0;
        } else if now() < life.renew_at() {
            continue;
        } else if let Err(failure) = attempt(life).await {
            failures += 1;
            tracing::warn!(%failure, "the certificate {} could not be renewed yet", cert.display());
            continue;
        }
        match renewable.reload() {
            Ok(()) => {
                failures = 0;
                tracing::info!("the certificate {} is renewed", cert.display());
            }
            Err(error) => {
                failures += 1;
                tracing::error!(%error, "the certificate that came cannot be used");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_and_tried_more_often_towards_its_end() {
        let life = Life {
            from: 1000,
            until: 1000 + 90 * 86_400,
        };
        assert_eq!(life.renew_at(), 1000 + 60 * 86_400);
        assert_eq!(pause(life, 1000, 0), LOOK);
        assert_eq!(pause(life, life.renew_at() - 100, 0), Duration::from_secs(100));
        assert_eq!(pause(life, life.renew_at() + 5, 0), SOON);
        assert_eq!(pause(life, life.until - 200, 1), Duration::from_secs(20));
        assert_eq!(pause(life, life.until + 200, 9), Duration::from_secs(2));
        assert!(life.is_over(life.until) && !life.is_over(life.until - 1));
    }
}
