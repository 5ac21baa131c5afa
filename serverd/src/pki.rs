//! The certificate authorities: servers, devices and users, the SSH host CA, and the master of the name keys.
//!
//! Private keys of identities never come here: an identity makes its own and sends a certificate request.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rssh_mqtt::IdentityFiles;
use rssh_mqtt::files::{self, FileError};
use rssh_mqtt::identity::{self, IdentityError};
use rssh_mqtt::life::Life;
use rssh_proto::UserId;
use rssh_proto::enrolment::Trust;
use rssh_proto::id::random_hex;
use rssh_proto::text::quoted;

use crate::clock::{self, UnixTime};
use crate::config::Admin;
use crate::domain::{Domain, ca_file};
use crate::masters::{MasterError, MasterFiles};
use crate::signer::{Key, Signer, SignerError};
use crate::ssh_keygen::{self, Certify, KeygenError, PublicKey};
use crate::sshd::HOST_ALIAS;

/// How long a CA lives, in days.
const CA_DAYS: i64 = 3650;
/// How long the certificate of the broker or of HAProxy lives, in days: nothing renews it by itself.
const TLS_DAYS: i64 = 365;
/// Seconds of a day.
const DAY: i64 = 86_400;
/// How far a certificate's start lies back at most, in seconds: clocks differ.
const BACKDATE: i64 = 3600;

/// Why the authorities cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("{0} exists; authorities are made once, and replaced by rotation only")]
    Exists(PathBuf),
    #[error("cannot make the directory {path}: {source}")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("not a certificate request: {0}")]
    Request(rcgen::Error),
    #[error("the certificate request is for {found}, not for {wanted}")]
    OtherName { found: String, wanted: String },
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error(transparent)]
    Signer(#[from] SignerError),
    #[error(transparent)]
    Keygen(#[from] KeygenError),
    #[error(transparent)]
    Master(#[from] MasterError),
}

/// A certificate that was issued.
pub struct Issued {
    pub pem: String,
    /// The serial number in hexadecimal.
    pub serial: String,
    pub not_after: UnixTime,
}

/// A request for a certificate, signed with the key that it is for.
pub struct CertificateRequest(CertificateSigningRequestParams);

impl CertificateRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// When the file cannot be read or holds none.
    pub fn read(path: &Path) -> Result<Self, PkiError> {
        let pem = std::fs::read_to_string(path).map_err(|source| FileError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_pem(&pem)
    }

    /// Takes a request in PEM form.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        CertificateSigningRequestParams::from_pem(pem)
            .map(Self)
            .map_err(PkiError::Request)
    }

    /// The public key that it is for.
    pub fn key(&self) -> &[u8] {
        use rcgen::PublicKeyData as _;
        self.0.public_key.der_bytes()
    }

    /// Makes sure that it was made for this id.
    ///
    /// # Errors
    /// When its CN is another.
    pub fn check(&self, id: &str) -> Result<(), PkiError> {
        let found = match self.0.params.distinguished_name.get(&DnType::CommonName) {
            Some(rcgen::DnValue::Utf8String(cn)) => cn.clone(),
            Some(rcgen::DnValue::PrintableString(cn)) => cn.as_str().to_owned(),
            _ => String::new(),
        };
        if found == id {
            Ok(())
        } else {
            Err(PkiError::OtherName {
                found: quoted(&found, 70),
                wanted: quoted(id, 70),
            })
        }
    }
}

/// The directory of the authorities.
pub struct Pki {
    dir: PathBuf,
    signer: Option<PathBuf>,
    ssh_agent: Option<PathBuf>,
    /// How long identities' certificates live, in seconds.
    lifetime: i64,
}

impl Pki {
    /// The authorities in this directory, with their keys.
    pub fn at(dir: &Path) -> Self {
        Self::new(&Admin::at(dir))
    }

    /// The authorities of a configuration.
    pub fn new(admin: &Admin) -> Self {
        Self {
            dir: admin.pki.clone(),
            signer: admin.signer.clone(),
            ssh_agent: admin.ssh_agent.clone(),
            lifetime: i64::try_from(admin.lifetime.duration().as_secs()).unwrap_or(i64::MAX / 2),
        }
    }

    /// Makes all authorities, and the certificate of the broker's administrator.
    ///
    /// # Errors
    /// When some are there already or the directory cannot be written.
    pub fn init(&self, ssh_host_name: &str) -> Result<(), PkiError> {
        std::fs::create_dir_all(&self.dir).map_err(|source| PkiError::Directory {
            path: self.dir.clone(),
            source,
        })?;
        let first = self.ca_cert(Domain::Servers);
        if first.exists() {
            return Err(PkiError::Exists(first));
        }
        let mut all = String::new();
        for domain in Domain::ALL {
            let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
            let mut params = named(&format!("rssh {} CA", domain.name()), CA_DAYS * DAY);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let pem = params.self_signed(&key)?.pem();
            files::write_secret(&self.ca_key(domain), key.serialize_pem().as_bytes())?;
            files::write_public(&self.ca_cert(domain), pem.as_bytes())?;
            all.push_str(&pem);
        }
        files::write_public(&self.clients_ca(), all.as_bytes())?;
        self.masters().create()?;
        ssh_keygen::generate(&self.ssh_host_ca(), "rssh host CA")?;
        let host_ca = ssh_keygen::public_key(&self.ssh_host_ca().with_extension("pub"))?;
        files::write_public(
            &self.dir.join("known_hosts"),
            format!("@cert-authority {ssh_host_name} {host_ca}\n").as_bytes(),
        )?;
        ssh_keygen::generate(&self.ssh_user_ca(), "rssh user CA")?;
        self.certify_admin(&self.admin_files())
    }

    /// Makes a certificate for the broker's administrator, and a key if there is none.
    fn certify_admin(&self, files: &IdentityFiles) -> Result<(), PkiError> {
        let request = identity::certificate_request(ADMIN, &files.key)?;
        let admin = self.issue(Domain::Servers, ADMIN, &CertificateRequest::from_pem(&request)?)?;
        Ok(files::write_public(&files.cert, admin.pem.as_bytes())?)
    }

    /// Signs a certificate request: the subject is the id alone, whatever else the request asks for.
    ///
    /// # Errors
    /// When the authority does not sign.
    pub fn issue(&self, domain: Domain, id: &str, request: &CertificateRequest) -> Result<Issued, PkiError> {
        let mut params = named(id, self.lifetime);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(domain, params, |params, issuer| {
            params.signed_by(&request.0.public_key, issuer)
        })
    }

    /// Signs a server's request for the certificate that it answers HTTPS with; the authority's own certificate
    /// follows it, for clients that know no more than its fingerprint.
    ///
    /// # Errors
    /// When the host is none, or the authority does not sign.
    pub fn issue_https(&self, id: &str, host: &str, request: &CertificateRequest) -> Result<Issued, PkiError> {
        let mut params = named(id, self.lifetime);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![match host.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(host.try_into()?),
        }];
        let mut issued = self.sign(Domain::Servers, params, |params, issuer| {
            params.signed_by(&request.0.public_key, issuer)
        })?;
        issued.pem.push_str(&self.read_ca(Domain::Servers)?);
        Ok(issued)
    }

    fn read_ca(&self, domain: Domain) -> Result<String, PkiError> {
        let path = self.ca_cert(domain);
        Ok(std::fs::read_to_string(&path).map_err(|source| FileError::Read { path, source })?)
    }

    /// The public halves of all authorities.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn trust(&self) -> Result<Trust, PkiError> {
        let path = self.dir.join("known_hosts");
        let known_hosts = std::fs::read_to_string(&path).map_err(|source| FileError::Read { path, source })?;
        Ok(Trust {
            servers_ca: self.read_ca(Domain::Servers)?,
            devices_ca: self.read_ca(Domain::Devices)?,
            users_ca: self.read_ca(Domain::Users)?,
            known_hosts,
            user_ca: ssh_keygen::public_key(&self.ssh_user_ca().with_extension("pub"))?.to_string(),
        })
    }

    /// Certifies the host key of a server's sshd, in OpenSSH's form.
    ///
    /// # Errors
    /// When ssh-keygen does not sign.
    pub fn certify_host(&self, id: &str, key: &PublicKey) -> Result<String, PkiError> {
        let authority = self.ssh_authority(self.ssh_host_ca());
        Ok(ssh_keygen::certify(
            &authority,
            key,
            &Certify::Host { id, name: HOST_ALIAS },
        )?)
    }

    /// Certifies a user's key for some principals and for a while, in OpenSSH's form.
    ///
    /// # Errors
    /// When ssh-keygen does not sign.
    pub fn certify_user(
        &self,
        user: &UserId,
        principals: &[String],
        lives: Duration,
        key: &PublicKey,
    ) -> Result<String, PkiError> {
        let authority = self.ssh_authority(self.ssh_user_ca());
        let what = Certify::User {
            id: user.as_str(),
            principals,
            lives,
        };
        Ok(ssh_keygen::certify(&authority, key, &what)?)
    }

    fn ssh_authority(&self, key: PathBuf) -> ssh_keygen::Authority {
        match &self.ssh_agent {
            Some(socket) => ssh_keygen::Authority::Agent {
                public: key.with_extension("pub"),
                socket: socket.clone(),
            },
            None => ssh_keygen::Authority::File(key),
        }
    }

    /// Makes a key and a certificate for a TLS server: the broker, or HAProxy.
    ///
    /// # Errors
    /// When a name is not one or the authority's key cannot be read.
    pub fn issue_tls(&self, names: &[String], addresses: &[IpAddr]) -> Result<(Issued, String), PkiError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let cn = names.first().map_or("rssh", String::as_str);
        let mut params = named(cn, TLS_DAYS * DAY);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            params
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into()?));
        }
        params
            .subject_alt_names
            .extend(addresses.iter().copied().map(SanType::IpAddress));
        let issued = self.sign(Domain::Servers, params, |params, issuer| params.signed_by(&key, issuer))?;
        Ok((issued, key.serialize_pem()))
    }

    fn sign(
        &self,
        domain: Domain,
        params: CertificateParams,
        with: impl FnOnce(CertificateParams, &Issuer<'_, Key>) -> Result<rcgen::Certificate, rcgen::Error>,
    ) -> Result<Issued, PkiError> {
        let ca = self.read_ca(domain)?;
        let key = match &self.signer {
            Some(program) => Key::Signer(Signer::new(program, domain.name(), &ca)?),
            None => {
                let key = files::read_secret(&self.ca_key(domain))?;
                Key::File(Box::new(KeyPair::from_pem(&String::from_utf8_lossy(&key))?))
            }
        };
        let issuer = Issuer::from_ca_cert_pem(&ca, key)?;
        let serial = params
            .serial_number
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let not_after = UnixTime(params.not_after.unix_timestamp());
        Ok(Issued {
            pem: with(params, &issuer)?.pem(),
            serial: serial.replace(':', ""),
            not_after,
        })
    }

    /// The masters of the name keys.
    pub fn masters(&self) -> MasterFiles {
        MasterFiles::new(&self.dir)
    }

    /// The SSH CA that signs sshd's host keys.
    pub fn ssh_host_ca(&self) -> PathBuf {
        self.dir.join("ssh-host-ca")
    }

    /// The SSH CA that signs users' keys, for the sshd of devices that trust it.
    pub fn ssh_user_ca(&self) -> PathBuf {
        self.dir.join("ssh-user-ca")
    }

    /// The certificate of an authority.
    pub fn ca_cert(&self, domain: Domain) -> PathBuf {
        ca_file(&self.dir, domain)
    }

    /// The certificates of all authorities: whose clients the broker lets in.
    pub fn clients_ca(&self) -> PathBuf {
        self.dir.join("clients-ca.pem")
    }

    /// The identity of the broker's administrator. Its certificate is made anew from two thirds of its life on; nobody
    /// else would.
    ///
    /// # Errors
    /// When it has ended, and the authority does not sign another or the file cannot be written.
    pub fn admin(&self) -> Result<IdentityFiles, PkiError> {
        let files = self.admin_files();
        let (life, now) = (Life::of(&files.cert)?, clock::now().0);
        if now < life.renew_at() {
            return Ok(files);
        }
        match self.certify_admin(&files) {
            Err(error) if !life.is_over(now) => {
                tracing::warn!(%error, "the broker's administrator has no new certificate yet");
            }
            done => done?,
        }
        Ok(files)
    }

    fn admin_files(&self) -> IdentityFiles {
        IdentityFiles {
            ca: self.ca_cert(Domain::Servers),
            cert: self.dir.join("admin.pem"),
            key: self.dir.join("admin.key"),
        }
    }

    fn ca_key(&self, domain: Domain) -> PathBuf {
        self.dir.join(format!("{}-ca.key", domain.name()))
    }
}

/// Keeps the public halves of the authorities where a server reads them.
///
/// # Errors
/// When the directory cannot be written.
pub fn keep_trust(dir: &Path, trust: &Trust) -> Result<(), PkiError> {
    std::fs::create_dir_all(dir).map_err(|source| PkiError::Directory {
        path: dir.to_owned(),
        source,
    })?;
    for (domain, pem) in [
        (Domain::Servers, &trust.servers_ca),
        (Domain::Devices, &trust.devices_ca),
        (Domain::Users, &trust.users_ca),
    ] {
        files::write_public(&ca_file(dir, domain), pem.as_bytes())?;
    }
    files::write_public(&dir.join("known_hosts"), trust.known_hosts.as_bytes())?;
    Ok(())
}

/// The CN of the broker's administrator. As an id it is reserved.
pub const ADMIN: &str = "admin";

fn named(cn: &str, lives: i64) -> CertificateParams {
    let now = clock::now().0;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, cn);
    params.serial_number = Some(SerialNumber::from_slice(&positive(&random_hex::<16>())));
    params.not_before = certificate_time(now - BACKDATE.min(lives / 10));
    params.not_after = certificate_time(now.saturating_add(lives));
    params.use_authority_key_identifier_extension = true;
    params
}

/// Sixteen random bytes as a positive ASN.1 integer without leading zeros (RFC 5280, 4.1.2.2).
fn positive(hex: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = hex
        .as_bytes()
        .chunks(2)
        .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    bytes
}

/// Unix seconds as a certificate's time; the epoch itself when out of range.
fn certificate_time(seconds: i64) -> ::time::OffsetDateTime {
    ::time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(::time::OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use rssh_proto::duration::Span;

    use super::*;

    #[test]
    fn the_administrators_certificate_is_made_anew_in_time_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let at = |lifetime| {
            Pki::new(&Admin {
                lifetime: Span::seconds(lifetime),
                ..Admin::at(dir.path())
            })
        };
        at(0).init("rssh").unwrap();
        let life = || Life::of(&dir.path().join("admin.pem")).unwrap();
        assert!(life().is_over(clock::now().0));
        at(86_400).admin().unwrap();
        let renewed = life();
        assert!(!renewed.is_over(clock::now().0 + 86_000), "{renewed:?}");
        at(90 * 86_400).admin().unwrap();
        assert_eq!(life(), renewed, "it is good for long enough");
        let files = at(86_400).admin().unwrap();
        rssh_mqtt::Identity::load(&files).unwrap().client_config().unwrap();
    }
}
