//! Authorities and certificates for one test.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rssh_mqtt::{Identity, IdentityFiles};

/// An authority, with its certificate in a file.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub(crate) file: PathBuf,
    directory: PathBuf,
    name: String,
}

impl Authority {
    pub(crate) fn new(directory: &Path, name: &str) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        parameters
            .distinguished_name
            .push(DnType::CommonName, format!("{name} CA"));
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        let file = directory.join(format!("{name}-ca.pem"));
        fs::write(&file, issuer.pem()).unwrap();
        Self {
            issuer,
            file,
            directory: directory.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Issues a certificate to `cn` for these names, with `ca` as what its holder trusts.
    pub(crate) fn issue(&self, cn: &str, names: &[&str], ca: &Path) -> IdentityFiles {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, cn);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let file = |kind| self.directory.join(format!("{}-{cn}.{kind}", self.name));
        fs::write(file("pem"), certificate.pem()).unwrap();
        fs::write(file("key"), key.serialize_pem()).unwrap();
        fs::set_permissions(file("key"), fs::Permissions::from_mode(0o600)).unwrap();
        IdentityFiles {
            ca: ca.to_owned(),
            cert: file("pem"),
            key: file("key"),
        }
    }
}

/// Reads files that were just written.
pub(crate) fn identity(files: &IdentityFiles) -> Identity {
    Identity::load(files).unwrap()
}
