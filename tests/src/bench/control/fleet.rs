//! Simulated users and devices: their identities, made as the administrator makes them, and their MQTT sessions.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rssh_mqtt::{Dial, Event, Identity, IdentityFiles, Session, Settings, files, identity};
use rssh_proto::payload::{self, DeviceStatus, Presence, V1};
use rssh_proto::topic::Topic;
use rssh_proto::{DeviceId, Generation, InstanceId, SessionId, UserId, id};
use rssh_serverd::broker::Administrator;
use rssh_serverd::config::Config;
use rssh_serverd::domain::Domain;
use rssh_serverd::office::Office;
use rssh_serverd::pki::CertificateRequest;
use rssh_serverd::ssh_keygen::PublicKey;
use rssh_serverd::store::{Devices, Grantee, Kind, Terms};
use rssh_serverd::who::Who;
use tokio::sync::mpsc;

/// How long a session may take to come up.
const COMES_UP: Duration = Duration::from_secs(20);

/// A user who asks for tunnels.
pub struct User {
    pub id: UserId,
    pub session: Session,
    /// Where answers go.
    pub place: SessionId,
    pub events: mpsc::Receiver<Event>,
}

/// A device that lands.
pub struct Device {
    pub id: DeviceId,
    pub session: Session,
    pub instance: InstanceId,
    /// What its ssh logs in with. Nothing is signed with it: sshd is not there.
    pub key: PublicKey,
    pub events: mpsc::Receiver<Event>,
}

/// A device that has yet to connect.
pub struct Enrolled {
    id: DeviceId,
    key: PublicKey,
    identity: Identity,
}

/// Makes identities.
pub struct Registrar<'a> {
    office: Office,
    administrator: Administrator,
    dir: &'a Path,
}

impl<'a> Registrar<'a> {
    /// Takes the configuration of a host that administrates, and a directory for keys.
    ///
    /// # Errors
    /// When the broker does not let the administrator in.
    pub async fn open(config: Config, dir: &'a Path) -> Result<Self> {
        let office = Office::open(config)?;
        let broker = office.config.mqtt.brokers.first().context("there is no broker")?;
        Ok(Self {
            administrator: Administrator::connect(&office.pki, broker).await?,
            office,
            dir,
        })
    }

    /// A user who may open everything, connected.
    ///
    /// # Errors
    /// When a step of the enrolment fails, or the session does not come up.
    pub async fn user(&mut self, n: u32) -> Result<User> {
        let id: UserId = format!("asker-{n}").parse()?;
        self.office.store.add_identity(Kind::User, id.as_str()).await?;
        let everything = Grantee::User(id.clone());
        self.office
            .store
            .add_grant(&everything, &Devices::All, &[], &Terms::default())
            .await?;
        let identity = self.identity(Domain::Users, id.as_str()).await?;
        self.administrator.admit(&Who::User(id.clone())).await?;
        let place = SessionId::generate();
        let answers = Topic::UserReply(id.clone(), place.clone());
        let (session, events) = self.connect(&identity, id.as_str(), &[answers]).await?;
        Ok(User {
            id,
            session,
            place,
            events,
        })
    }

    /// A device, connected.
    ///
    /// # Errors
    /// When a step of the enrolment fails, or the session does not come up.
    pub async fn device(&mut self, n: u32) -> Result<Device> {
        let enrolled = self.enrol(&format!("device-{n}")).await?;
        self.connect_device(enrolled).await
    }

    /// A device that the servers and the broker know of.
    ///
    /// # Errors
    /// When a step of the enrolment fails.
    pub async fn enrol(&mut self, name: &str) -> Result<Enrolled> {
        let id: DeviceId = name.parse()?;
        let key = ssh_key()?;
        self.office.store.add_device(&id, &key).await?;
        let identity = self.identity(Domain::Devices, id.as_str()).await?;
        self.administrator.admit(&Who::Device(id.clone())).await?;
        Ok(Enrolled { id, key, identity })
    }

    /// The device, connected.
    ///
    /// # Errors
    /// When the session does not come up.
    pub async fn connect_device(&self, enrolled: Enrolled) -> Result<Device> {
        let Enrolled { id, key, identity } = enrolled;
        let orders = [Topic::DeviceOpen(id.clone()), Topic::DeviceClose(id.clone())];
        let (session, events) = self.connect(&identity, id.as_str(), &orders).await?;
        let instance = InstanceId::generate();
        let status = DeviceStatus {
            v: V1,
            presence: Presence::Online,
            generation: Generation(1),
            instance: instance.clone(),
            tunnels: Vec::new(),
        };
        let publish = rssh_mqtt::Publish::new(Topic::DeviceStatus(id.clone()), payload::encode(&status)).retained();
        session.publish(publish).await?;
        Ok(Device {
            id,
            session,
            instance,
            key,
            events,
        })
    }

    async fn identity(&self, domain: Domain, name: &str) -> Result<Identity> {
        let paths = IdentityFiles {
            ca: self.office.pki.ca_cert(Domain::Servers),
            cert: self.dir.join(format!("{name}.pem")),
            key: self.dir.join(format!("{name}.key")),
        };
        let request = identity::certificate_request(name, &paths.key)?;
        let request = CertificateRequest::from_pem(&request)?;
        let issued = self.office.issue(domain, name, &request).await?;
        files::write_public(&paths.cert, issued.pem.as_bytes())?;
        Ok(Identity::load(&paths)?)
    }

    async fn connect(
        &self,
        identity: &Identity,
        name: &str,
        topics: &[Topic],
    ) -> Result<(Session, mpsc::Receiver<Event>)> {
        let (session, mut events, driver) = Session::new(Settings {
            brokers: self.office.config.mqtt.brokers.clone(),
            tls: Arc::new(identity.client_config()?),
            cn: name.to_owned(),
            keep_alive: Duration::from_secs(120),
            inflight: 64,
            queue: 256,
            subscriptions: topics.iter().map(ToString::to_string).collect(),
            will: None,
            reconnect: (Duration::from_secs(1), Duration::from_secs(5)),
            dial: Dial::default(),
        });
        tokio::spawn(driver);
        let first = tokio::time::timeout(COMES_UP, events.recv()).await;
        match first.with_context(|| format!("{name} does not reach the broker"))? {
            Some(Event::Up) => Ok((session, events)),
            other => anyhow::bail!("{name} does not reach the broker: {other:?}"),
        }
    }
}

/// A public key of its own (RFC 8709): nobody holds the private half.
fn ssh_key() -> Result<PublicKey> {
    let mut blob = Vec::new();
    let kind = "ssh-ed25519";
    let point: Vec<u8> = id::random_hex::<16>().into_bytes();
    for part in [kind.as_bytes(), &point] {
        blob.extend(u32::try_from(part.len())?.to_be_bytes());
        blob.extend(part);
    }
    Ok(format!("{kind} {}", STANDARD.encode(blob)).parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_a_key_of_its_own() {
        assert_ne!(ssh_key().unwrap(), ssh_key().unwrap());
    }
}
