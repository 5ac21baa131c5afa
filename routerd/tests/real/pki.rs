//! Certificates for the tests.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rssh_mqtt::files::{write_public, write_secret};

/// A certificate authority.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A certificate with its key.
pub(crate) struct Leaf {
    pub(crate) certificate: String,
    pub(crate) der: Vec<u8>,
    pub(crate) key: KeyPair,
}

/// Where a [`Leaf`] lies.
#[derive(Clone)]
pub(crate) struct LeafFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

fn named(cn: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, cn);
    params
}

impl Ca {
    pub(crate) fn new(cn: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = named(cn);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    /// A client's certificate.
    pub(crate) fn client(&self, cn: &str) -> Leaf {
        let mut params = named(cn);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// A server's certificate for a DNS name or an address.
    pub(crate) fn server(&self, name: &str) -> Leaf {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Leaf {
            certificate: certificate.pem(),
            der: certificate.der().to_vec(),
            key,
        }
    }
}

impl Leaf {
    /// Writes certificate and key beside each other.
    pub(crate) fn write(&self, dir: &Path, name: &str) -> LeafFiles {
        let files = LeafFiles {
            cert: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        };
        write_public(&files.cert, self.certificate.as_bytes()).unwrap();
        write_secret(&files.key, self.key.serialize_pem().as_bytes()).unwrap();
        files
    }

    /// Writes both into one file, as HAProxy takes them.
    pub(crate) fn write_bundle(&self, path: &Path) {
        write_secret(
            path,
            format!("{}{}", self.certificate, self.key.serialize_pem()).as_bytes(),
        )
        .unwrap();
    }

    /// An ECDSA P-256 signature in ASN.1 form.
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
        let random = ring::rand::SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &self.key.serialize_der(), &random);
        key.unwrap().sign(&random, message).unwrap().as_ref().to_vec()
    }
}
