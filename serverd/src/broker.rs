//! mosquitto: its configuration, and its dynamic-security plugin, which denies whatever no role allows.
//!
//! The plugin substitutes the user name in subscription patterns but not in publish rules, so each identity gets a role
//! of its own. mosquitto.conf(5), mosquitto-dynamic-security.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rssh_mqtt::files::{self, FileError};
use rssh_mqtt::{Dial, Event, Identity, IdentityError, Publish, PublishError, Session, Settings};
use rssh_proto::HostPort;
use rssh_proto::id::random_hex;
use rssh_proto::topic::{Topic, filter};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;

use crate::pki::{ADMIN, Pki, PkiError};
use crate::who::Who;

/// Why the broker could not be prepared or asked.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("mosquitto's dynamic-security plugin is not installed; install mosquitto 2")]
    NoPlugin,
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the broker's administrator: {0}")]
    Pki(#[from] PkiError),
    #[error("{0}; is the broker running?")]
    Away(String),
    #[error("the broker does not answer on {CONTROL}; is its dynamic-security plugin loaded?")]
    Silent,
    #[error("cannot tell the broker of {who}: {reason}")]
    Refused { who: String, reason: String },
    #[error(transparent)]
    Publish(#[from] PublishError),
}

const CONTROL: &str = "$CONTROL/dynamic-security/v1";
/// The plugin's state in the broker's directory.
const SECURITY: &str = "dynamic-security.json";

/// What a rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Access {
    PublishClientSend,
    PublishClientReceive,
    SubscribePattern,
}

/// One permission of a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Acl {
    acltype: Access,
    topic: String,
    priority: i32,
    allow: bool,
}

fn may_publish(topic: impl ToString) -> Acl {
    allow(Access::PublishClientSend, topic)
}

fn may_subscribe(filter: impl ToString) -> Acl {
    allow(Access::SubscribePattern, filter)
}

fn allow(acltype: Access, topic: impl ToString) -> Acl {
    Acl {
        acltype,
        topic: topic.to_string(),
        priority: 0,
        allow: true,
    }
}

impl Who {
    /// Everything the identity may do; the rest is denied.
    fn permissions(&self) -> Vec<Acl> {
        match self {
            Self::Device(id) => vec![
                may_publish(Topic::DeviceStatus(id.clone())),
                may_publish(Topic::DeviceEvent(id.clone())),
                may_subscribe(Topic::DeviceOpen(id.clone())),
                may_subscribe(Topic::DeviceClose(id.clone())),
            ],
            Self::User(id) => vec![
                may_publish(Topic::UserRequest(id.clone())),
                may_subscribe(format!("rssh/v1/user/{id}/reply/+")),
            ],
            Self::Server(id) => vec![
                may_publish("rssh/v1/user/+/reply/+"),
                may_publish("rssh/v1/device/+/open"),
                may_publish("rssh/v1/device/+/close"),
                may_publish("rssh/v1/server/+/request"),
                may_publish(Topic::ServerStatus(id.clone())),
                may_subscribe(filter::REQUESTS),
                may_subscribe(filter::DEVICE_STATUS),
                may_subscribe(filter::DEVICE_EVENTS),
                may_subscribe(filter::SERVER_STATUS),
                may_subscribe(Topic::ServerRequest(id.clone())),
            ],
            Self::Router(id) => vec![
                may_publish(Topic::RouterStatus(id.clone())),
                may_subscribe(filter::SERVER_STATUS),
            ],
        }
    }
}

/// What a fresh broker needs.
pub struct Render<'a> {
    pub dir: &'a Path,
    pub listen: SocketAddr,
    pub cert: &'a Path,
    pub key: &'a Path,
    /// The account that mosquitto drops to, when it is started as root.
    pub user: &'a str,
}

/// Writes `mosquitto.conf`, and `dynamic-security.json` unless it is there: the broker itself keeps that up to date.
///
/// # Errors
/// When the plugin is missing or the directory cannot be written.
pub fn render(pki: &Pki, to: &Render<'_>) -> Result<(), BrokerError> {
    let plugin = plugin().ok_or(BrokerError::NoPlugin)?;
    let (ip, port) = (to.listen.ip(), to.listen.port());
    // Without an address it listens at every one, of either kind; with [::] at those of IPv6 alone.
    let listen = match ip.is_ipv6() && ip.is_unspecified() {
        true => port.to_string(),
        false => format!("{port} {ip}"),
    };
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let security = absolute(&to.dir.join(SECURITY));
    let text = format!(
        "# Rendered by rssh-serverd broker render.\n\
         listener {listen}\n\
         cafile {ca}\n\
         certfile {cert}\n\
         keyfile {key}\n\
         require_certificate true\n\
         use_identity_as_username true\n\
         tls_version tlsv1.2\n\
         allow_anonymous false\n\
         plugin {plugin}\n\
         plugin_opt_config_file {security}\n\
         # The protocol's own limit; the default would be 256 MiB.\n\
         message_size_limit 4096\n\
         set_tcp_nodelay true\n\
         # Messages to one busy server: under way, and waiting behind those.\n\
         max_inflight_messages 1000\n\
         max_queued_messages 20000\n\
         # Presence is published anew on every connect, and PostgreSQL is the queue.\n\
         persistence false\n\
         log_type error\n\
         log_type warning\n\
         log_type notice\n\
         user {user}\n",
        ca = absolute(&pki.clients_ca()).display(),
        cert = absolute(to.cert).display(),
        key = absolute(to.key).display(),
        plugin = plugin.display(),
        security = security.display(),
        user = to.user,
    );
    give(to.key, to.user);
    files::write_public(&to.dir.join("mosquitto.conf"), text.as_bytes())?;
    if !security.exists() {
        write_security(&security, &[], to.user)?;
    }
    Ok(())
}

/// Writes `dynamic-security.json` anew, for a broker that is stopped: the administrator, and all these.
///
/// # Errors
/// When the file cannot be written.
pub fn rebuild(dir: &Path, clients: &[Who], user: &str) -> Result<(), BrokerError> {
    write_security(&dir.join(SECURITY), clients, user)
}

fn write_security(path: &Path, clients: &[Who], user: &str) -> Result<(), BrokerError> {
    files::write_secret(path, format!("{:#}\n", security(clients)).as_bytes())?;
    give(path, user);
    Ok(())
}

/// The plugin's state: what is denied to all, who there is, and what each of them may do.
fn security(clients: &[Who]) -> serde_json::Value {
    let administrates = [
        may_publish("$CONTROL/dynamic-security/#"),
        may_subscribe("$CONTROL/dynamic-security/#"),
        // What comes from $CONTROL needs leave of its own; the default does not cover it.
        allow(Access::PublishClientReceive, "$CONTROL/dynamic-security/#"),
    ];
    let known = clients.iter().map(|client| (client.name(), client.permissions()));
    let (users, roles): (Vec<_>, Vec<_>) = std::iter::once((ADMIN, administrates.to_vec()))
        .chain(known)
        .map(|(name, acls)| (user(name), role(name, &acls)))
        .unzip();
    json!({
        "defaultACLAccess": {
            "publishClientSend": false,
            "publishClientReceive": true,
            "subscribe": false,
            "unsubscribe": true
        },
        "clients": users,
        "groups": [],
        "roles": roles,
    })
}

/// An identity as the plugin has it; its role has its name.
fn user(name: &str) -> serde_json::Value {
    json!({"username": name, "roles": [{"rolename": name}]})
}

fn role(name: &str, acls: &[Acl]) -> serde_json::Value {
    json!({"rolename": name, "acls": acls})
}

/// Hands a file to mosquitto's account, which reads or rewrites it; where there is no such account mosquitto runs as us.
fn give(path: &Path, user: &str) {
    if let Ok(Some(account)) = nix::unistd::User::from_name(user)
        && let Err(error) = nix::unistd::chown(path, Some(account.uid), Some(account.gid))
    {
        tracing::warn!(%error, path = %path.display(), "cannot hand the file to mosquitto's account");
    }
}

/// The plugin lies in a directory named after the machine's architecture.
fn plugin() -> Option<PathBuf> {
    const NAME: &str = "mosquitto_dynamic_security.so";
    let mut places = vec![PathBuf::from("/usr/lib"), PathBuf::from("/usr/lib64")];
    places.extend(
        std::fs::read_dir("/usr/lib")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path()),
    );
    places.into_iter().map(|dir| dir.join(NAME)).find(|path| path.exists())
}

#[derive(Debug, Deserialize)]
struct Responses {
    responses: Vec<Response>,
}

#[derive(Debug, Deserialize)]
struct Response {
    #[serde(default, rename = "correlationData")]
    correlation_data: Option<String>,
    #[serde(default)]
    error: Option<String>,
}

/// A conversation with the broker's dynamic-security plugin, as its administrator.
pub struct Administrator {
    session: Session,
    events: mpsc::Receiver<Event>,
    driver: tokio::task::JoinHandle<()>,
}

impl Administrator {
    /// Connects as the administrator.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses the administrator's certificate.
    pub async fn connect(pki: &Pki, broker: &HostPort) -> Result<Self, BrokerError> {
        let tls = Identity::load(&pki.admin()?)?.client_config()?;
        let (session, mut events, driver) = Session::new(Settings {
            brokers: vec![broker.clone()],
            tls: std::sync::Arc::new(tls),
            cn: ADMIN.to_owned(),
            keep_alive: Duration::from_secs(30),
            inflight: 16,
            queue: 16,
            subscriptions: vec![format!("{CONTROL}/response")],
            will: None,
            reconnect: (Duration::from_millis(100), Duration::from_secs(1)),
            dial: Dial::default(),
        });
        let driver = tokio::spawn(driver);
        let fault = match tokio::time::timeout(PATIENCE, events.recv()).await {
            Ok(Some(Event::Up)) => {
                return Ok(Self {
                    session,
                    events,
                    driver,
                });
            }
            Ok(Some(Event::Down(down))) => down.to_string(),
            _ => format!("the broker {broker} does not answer"),
        };
        driver.abort();
        Err(BrokerError::Away(fault))
    }

    /// Lets an identity in, with exactly the permissions of its kind.
    ///
    /// # Errors
    /// When the broker does not answer or refuses.
    pub async fn admit(&mut self, client: &Who) -> Result<(), BrokerError> {
        self.put(client, "Role", role(client.name(), &client.permissions()))
            .await?;
        self.put(client, "Client", user(client.name())).await
    }

    /// Shuts an identity out at once: its connections are ended.
    ///
    /// # Errors
    /// When the broker does not answer or refuses.
    pub async fn expel(&mut self, client: &Who) -> Result<(), BrokerError> {
        let name = client.name();
        for command in [
            json!({"command": "deleteClient", "username": name}),
            json!({"command": "deleteRole", "rolename": name}),
        ] {
            match self.command(client, command).await {
                Err(BrokerError::Refused { reason, .. }) if reason.contains("not found") => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Creates a role or client, or changes it when it is there.
    async fn put(&mut self, client: &Who, what: &str, mut value: serde_json::Value) -> Result<(), BrokerError> {
        value["command"] = format!("create{what}").into();
        match self.command(client, value.clone()).await {
            Err(BrokerError::Refused { reason, .. }) if reason.contains("already exists") => {
                value["command"] = format!("modify{what}").into();
                self.command(client, value).await
            }
            other => other,
        }
    }

    async fn command(&mut self, client: &Who, command: serde_json::Value) -> Result<(), BrokerError> {
        // The plugin sends it back: answers to other administrators come here too.
        let ours = random_hex::<8>();
        let mut command = command;
        command["correlationData"] = ours.as_str().into();
        let payload = json!({"commands": [command]}).to_string().into_bytes();
        self.session.publish(Publish::new(CONTROL, payload)).await?;
        loop {
            let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
            let message = match event {
                Ok(Some(Event::Message(message))) => message,
                Ok(Some(Event::Up)) => continue,
                Ok(Some(Event::Down(down))) => return Err(BrokerError::Away(down.to_string())),
                Ok(None) | Err(_) => return Err(BrokerError::Silent),
            };
            let Ok(Responses { responses }) = serde_json::from_slice(&message.payload) else {
                continue;
            };
            let Some(response) = responses
                .into_iter()
                .find(|response| response.correlation_data.as_deref() == Some(&ours))
            else {
                continue;
            };
            return match response.error {
                None => Ok(()),
                Some(reason) => Err(BrokerError::Refused {
                    who: client.name().to_owned(),
                    reason,
                }),
            };
        }
    }
}

impl Drop for Administrator {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// How long an answer of the broker may take.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_may_speak_and_listen_on_its_own_topics_only() {
        let device = Who::Device("device-1".parse().unwrap());
        for acl in device.permissions() {
            assert!(acl.topic.starts_with("rssh/v1/device/device-1/"), "{acl:?}");
        }
    }

    #[test]
    fn a_role_fits_one_message() {
        let longest = "a".repeat(63);
        for client in [
            Who::Device(longest.parse().unwrap()),
            Who::User(longest.parse().unwrap()),
            Who::Server("a".repeat(12).parse().unwrap()),
        ] {
            let text = json!({"commands": [{"command": "createRole", "rolename": client.name(), "acls": client.permissions()}]});
            assert!(text.to_string().len() <= rssh_proto::payload::LIMIT);
        }
    }
}
