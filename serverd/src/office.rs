//! Where identities are made: the authorities, the database and the broker's administrator together.
//!
//! A command of the administrator works with it, and so does a server that enrols over HTTPS.

use anyhow::{Context as _, Result, bail};
use rssh_mqtt::files;
use rssh_proto::enrolment::{EnrolmentToken, Secret, Trust};

use crate::broker::Administrator;
use crate::config::{Admin, Config};
use crate::domain::Domain;
use crate::pki::{CertificateRequest, Issued, Pki};
use crate::store::{Admission, Kind, Store, StoreError};
use crate::token;
use crate::who::Who;

/// What every enrolment works with.
pub struct Office {
    pub config: Config,
    pub admin: Admin,
    pub pki: Pki,
    pub store: Store,
}

/// What is changed at the brokers.
#[derive(Debug, Clone, Copy)]
enum Change {
    Admit,
    Expel,
}

impl Office {
    /// The office of a host that administrates.
    ///
    /// # Errors
    /// When its configuration names no authorities.
    pub fn open(config: Config) -> Result<Self> {
        let store = Store::new(&config.database)?;
        match Self::of(&config, &store) {
            Some(office) => Ok(office),
            None => bail!(
                "this host does not administrate: its configuration has no [admin] section that names the pki directory"
            ),
        }
    }

    /// The office of a server, if its configuration names the authorities.
    pub fn of(config: &Config, store: &Store) -> Option<Self> {
        let admin = config.admin.clone()?;
        Some(Self {
            pki: Pki::new(&admin),
            store: store.clone(),
            config: config.clone(),
            admin,
        })
    }

    /// Lets an identity in at the broker.
    ///
    /// # Errors
    /// When the broker does not answer or refuses.
    pub async fn admit(&self, client: &Who) -> Result<()> {
        self.at_each_broker(client, Change::Admit).await
    }

    /// Shuts an identity out at the broker.
    ///
    /// # Errors
    /// When the broker does not answer or refuses.
    pub async fn expel(&self, client: &Who) -> Result<()> {
        self.at_each_broker(client, Change::Expel).await
    }

    /// Changes something at every broker, since each knows its clients by itself.
    async fn at_each_broker(&self, client: &Who, change: Change) -> Result<()> {
        for broker in &self.config.mqtt.brokers {
            let changed = async {
                let mut administrator = Administrator::connect(&self.pki, broker).await?;
                match change {
                    Change::Admit => administrator.admit(client).await,
                    Change::Expel => administrator.expel(client).await,
                }
            };
            changed.await.with_context(|| {
                let (is, does) = match change {
                    Change::Admit => ("registered", "let it in"),
                    Change::Expel => ("revoked", "shut it out"),
                };
                let name = client.name();
                format!("{name} is {is}, but the broker {broker} does not {does}; run the command again")
            })?;
        }
        Ok(())
    }

    /// Signs a request for an identity, and notes the certificate.
    ///
    /// # Errors
    /// When the authority does not sign, or the database is away.
    pub async fn issue(&self, domain: Domain, id: &str, request: &CertificateRequest) -> Result<Issued> {
        let issued = self.pki.issue(domain, id, request)?;
        self.store.add_certificate(id, &issued).await?;
        Ok(issued)
    }

    /// Lets whoever has a token in, for the key of a request.
    ///
    /// # Errors
    /// When the token is no good.
    pub async fn redeem(
        &self,
        secret: &Secret,
        kind: Kind,
        wanted: Option<&str>,
        request: &CertificateRequest,
    ) -> Result<Admission, StoreError> {
        let secret = secret.bytes().ok_or(StoreError::Token)?;
        let key = token::hash(request.key());
        self.store
            .use_enrolment(&token::hash(&secret), kind, wanted, &key)
            .await
    }

    /// Draws a token that pins the servers' CA; its hash goes into the database.
    ///
    /// # Errors
    /// When the CA's certificate cannot be read.
    pub fn draw_token(&self) -> Result<(EnrolmentToken, Vec<u8>)> {
        let path = self.pki.ca_cert(Domain::Servers);
        let certificates = files::certificates(&path)?;
        let newest = certificates.last().context("the servers' CA has no certificate")?;
        let authority = token::hash(newest)
            .try_into()
            .map_err(|_| anyhow::anyhow!("SHA-256 has 32 bytes"))?;
        let token = EnrolmentToken {
            secret: token::random(),
            authority,
        };
        let hash = token::hash(&token.secret);
        Ok((token, hash))
    }

    /// The public halves of the authorities.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn trust(&self) -> Result<Trust> {
        Ok(self.pki.trust()?)
    }
}
