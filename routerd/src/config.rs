//! `routerd.toml`.

mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rssh_mqtt::toml_file::{self, TomlError};
use rssh_mqtt::{IdentityFiles, files};
use rssh_proto::duration::Span;
use rssh_proto::name::{NameMaster, ProxyDomain};
use rssh_proto::{HostPort, HttpsUrl, RouterId};
use rssh_stores::StoreUrl;
use serde::Deserialize;

pub use values::{AccountName, LogTarget, PlainPath};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Toml(#[from] TomlError),
    #[error("{key} in the configuration is not usable: {reason}")]
    Value { key: &'static str, reason: String },
}

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    pub router: RouterId,
    /// Where the certificate is renewed; without it, nothing is.
    #[serde(default)]
    pub url: Option<HttpsUrl>,
    /// What survives a restart: the last good registry.
    pub state_dir: PathBuf,
    /// The master of the servers' name keys, mode 0600.
    pub name_master: PathBuf,
    /// The master before the last change, while names signed by its keys are still about: the file need not be there.
    /// Beside the master when absent.
    #[serde(default)]
    pub name_master_previous: Option<PathBuf>,
    pub haproxy: HaproxyConfig,
    pub mqtt: MqttConfig,
    pub redis: RedisConfig,
    pub database: DatabaseConfig,
    pub registry: RegistryConfig,
    /// Without it, no metrics are served.
    #[serde(default)]
    pub metrics: Option<MetricsConfig>,
}

/// `[haproxy]`
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct HaproxyConfig {
    /// Where `haproxy.cfg` and `maps/` are written.
    pub dir: PlainPath,
    /// The admin socket.
    pub socket: PlainPath,
    /// The group that may use the admin socket too; only HAProxy's own user when absent.
    #[serde(default)]
    pub socket_group: Option<AccountName>,
    /// Certificate, chain and key of `*.<domain>` in one PEM file.
    pub certificate: PlainPath,
    /// The CA that users' certificates descend from.
    pub users_ca: PlainPath,
    pub domain: ProxyDomain,
    /// Where the doors listen.
    pub devices: Vec<SocketAddr>,
    pub users: Vec<SocketAddr>,
    #[serde(default)]
    pub bearer: Vec<SocketAddr>,
    /// Where HTTPS is passed through to the servers.
    #[serde(default)]
    pub https: Vec<SocketAddr>,
    /// One port for everything, beside the doors of their own.
    #[serde(default)]
    pub public: Option<Public>,
    #[serde(default = "stdout")]
    pub log: LogTarget,
    #[serde(default)]
    pub limits: Limits,
}

/// `[haproxy.public]`: the port at which devices' ssh, signed names and MQTT are told apart by their first bytes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Public {
    pub listen: Vec<SocketAddr>,
    /// Where connections that speak MQTT go (ALPN `mqtt`), with their TLS; their certificates are for the name that
    /// clients know the public port by.
    #[serde(default)]
    pub brokers: Vec<HostPort>,
}

fn stdout() -> LogTarget {
    LogTarget::Stdout
}

/// `[haproxy.limits]`: how much HAProxy takes on.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    /// Connections at once, by door.
    pub devices: u32,
    pub users: u32,
    pub bearer: u32,
    pub https: u32,
    /// At the public port; those that carry names count at their door too.
    pub public: u32,
    /// New connections per second, by door.
    pub devices_rate: u32,
    pub users_rate: u32,
    pub bearer_rate: u32,
    pub https_rate: u32,
    pub public_rate: u32,
    /// Connections of one source address within ten seconds, by door.
    pub devices_source: u32,
    pub users_source: u32,
    pub bearer_source: u32,
    pub https_source: u32,
    pub public_source: u32,
    /// How often a server's health is asked for.
    pub check_interval: Span,
    /// How long a connection may be silent.
    pub silence: Span,
    /// How long the old process lives on after a reload.
    pub hard_stop: Span,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            devices: 50_000,
            users: 20_000,
            bearer: 2000,
            https: 2000,
            public: 50_000,
            devices_rate: 500,
            users_rate: 1000,
            bearer_rate: 100,
            https_rate: 200,
            public_rate: 1000,
            // A whole site may stand behind one address.
            devices_source: 5000,
            users_source: 2000,
            bearer_source: 200,
            https_source: 1000,
            public_source: 5000,
            check_interval: Span::seconds(1),
            silence: Span::seconds(86_400),
            hard_stop: Span::seconds(86_400),
        }
    }
}

/// `[mqtt]`
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MqttConfig {
    pub brokers: Vec<HostPort>,
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    #[serde(default = "keep_alive")]
    pub keep_alive: Span,
}

fn keep_alive() -> Span {
    Span::seconds(30)
}

impl MqttConfig {
    /// The files of our identity.
    pub fn identity(&self) -> IdentityFiles {
        IdentityFiles {
            ca: self.ca.clone(),
            cert: self.cert.clone(),
            key: self.key.clone(),
        }
    }
}

/// `[redis]`
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RedisConfig {
    pub url: StoreUrl,
    /// The password of the URL's user, in a file that its owner alone reads.
    pub password_file: Option<PathBuf>,
    /// The CA of Redis's certificate; that of `[mqtt]`, when absent.
    pub ca: Option<PathBuf>,
    /// What is shown to a Redis that asks for a certificate; this router's own, when absent.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// `[database]`
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DatabaseConfig {
    pub url: StoreUrl,
}

/// `[registry]`
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RegistryConfig {
    /// The CA that servers' certificates descend from.
    pub servers_ca: PathBuf,
    /// How often Redis and PostgreSQL are read as a whole; changes come sooner.
    #[serde(default = "reconcile")]
    pub reconcile: Span,
}

/// `[metrics]`
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MetricsConfig {
    /// Where `GET /metrics` is answered, for Prometheus.
    pub listen: SocketAddr,
}

fn reconcile() -> Span {
    Span::seconds(5)
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// When the file cannot be read, or says something that cannot work.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml_file::load(path)?;
        config.check()?;
        Ok(config)
    }

    /// Redis, and what goes with its URL.
    ///
    /// # Errors
    /// When the URL is wrong.
    pub fn redis(&self) -> Result<rssh_stores::Redis, rssh_stores::UrlError> {
        let (redis, own) = (&self.redis, self.mqtt.identity());
        let files = rssh_stores::RedisFiles {
            identity: IdentityFiles {
                ca: redis.ca.clone().unwrap_or(own.ca),
                cert: redis.cert.clone().unwrap_or(own.cert),
                key: redis.key.clone().unwrap_or(own.key),
            },
            password: redis.password_file.clone(),
        };
        rssh_stores::Redis::parse(redis.url.as_str(), files)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value = |key, reason: &str| ConfigError::Value {
            key,
            reason: reason.to_owned(),
        };
        let haproxy = &self.haproxy;
        for (key, list) in [("haproxy.devices", &haproxy.devices), ("haproxy.users", &haproxy.users)] {
            if list.is_empty() {
                return Err(value(key, "the list is empty; name at least one IP:PORT"));
            }
        }
        if haproxy.public.as_ref().is_some_and(|public| public.listen.is_empty()) {
            return Err(value(
                "haproxy.public.listen",
                "the list is empty; name at least one IP:PORT",
            ));
        }
        if self.mqtt.brokers.is_empty() {
            return Err(value("mqtt.brokers", "the list is empty; name at least one HOST:PORT"));
        }
        // A unix socket's path has at most 107 bytes, and HAProxy adds ".<pid>.tmp" to it while it binds.
        if haproxy.socket.to_string().len() > 90 || haproxy.dir.to_string().len() > 74 {
            return Err(value(
                "haproxy.dir or haproxy.socket",
                "too long for a unix socket; use a shorter one",
            ));
        }
        let limits = &haproxy.limits;
        let counts = [
            ("haproxy.limits.devices", limits.devices),
            ("haproxy.limits.users", limits.users),
            ("haproxy.limits.bearer", limits.bearer),
            ("haproxy.limits.https", limits.https),
            ("haproxy.limits.public", limits.public),
            ("haproxy.limits.devices-rate", limits.devices_rate),
            ("haproxy.limits.users-rate", limits.users_rate),
            ("haproxy.limits.bearer-rate", limits.bearer_rate),
            ("haproxy.limits.https-rate", limits.https_rate),
            ("haproxy.limits.public-rate", limits.public_rate),
            ("haproxy.limits.devices-source", limits.devices_source),
            ("haproxy.limits.users-source", limits.users_source),
            ("haproxy.limits.bearer-source", limits.bearer_source),
            ("haproxy.limits.https-source", limits.https_source),
            ("haproxy.limits.public-source", limits.public_source),
        ];
        for (key, count) in counts {
            if !(1..=2_000_000).contains(&count) {
                return Err(value(key, "must be from 1 to 2000000"));
            }
        }
        let spans = [
            ("haproxy.limits.check-interval", limits.check_interval, 100, 60_000),
            ("haproxy.limits.silence", limits.silence, 60_000, 2_000_000_000),
            ("haproxy.limits.hard-stop", limits.hard_stop, 1000, 2_000_000_000),
            ("registry.reconcile", self.registry.reconcile, 100, 600_000),
            ("mqtt.keep-alive", self.mqtt.keep_alive, 5000, 3_600_000),
        ];
        for (key, span, least, most) in spans {
            if !(least..=most).contains(&span.duration().as_millis()) {
                return Err(value(key, &format!("must be from {least}ms to {most}ms")));
            }
        }
        Ok(())
    }

    /// Reads the current master and, where there is one, the previous.
    ///
    /// # Errors
    /// When a file is missing, exposed or not a master.
    pub fn masters(&self) -> Result<(NameMaster, Option<NameMaster>), ConfigError> {
        let read = |key, path: &Path| -> Result<NameMaster, ConfigError> {
            let value = |reason: String| ConfigError::Value { key, reason };
            let bytes = files::read_secret(path).map_err(|error| value(error.to_string()))?;
            String::from_utf8_lossy(&bytes)
                .parse()
                .map_err(|error| value(format!("{}: {error}", path.display())))
        };
        let previous = self.name_master_previous();
        let previous = previous.exists().then_some(previous);
        Ok((
            read("name-master", &self.name_master)?,
            previous.map(|path| read("name-master-previous", &path)).transpose()?,
        ))
    }

    /// Where the master before lies, while there is one.
    pub fn name_master_previous(&self) -> PathBuf {
        self.name_master_previous.clone().unwrap_or_else(|| {
            let mut name = self.name_master.file_name().unwrap_or_default().to_owned();
            name.push("-previous");
            self.name_master.with_file_name(name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        router = "lb1"
        state-dir = "/s"
        name-master = "/m"
        [haproxy]
        dir = "/d"
        socket = "/d/admin.sock"
        certificate = "/c.pem"
        users-ca = "/u.pem"
        domain = "proxy.test"
        devices = ["127.0.0.1:2222"]
        users = ["127.0.0.1:8443"]
        [mqtt]
        brokers = ["127.0.0.1:8883"]
        ca = "/a"
        cert = "/b"
        key = "/c"
        [redis]
        url = "redis+unix:///r.sock"
        [database]
        url = "postgres://u:secret@localhost/rssh"
        [registry]
        servers-ca = "/s.pem"
    "#;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn a_configuration_reads_with_its_defaults_and_does_not_print_passwords() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.haproxy.log, LogTarget::Stdout);
        assert!(config.haproxy.bearer.is_empty());
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn text_that_haproxy_could_take_for_more_than_a_path_or_a_name_is_refused() {
        for (good, bad) in [
            ("dir = \"/d\"", "dir = \"/d;x\""),
            ("dir = \"/d\"", "dir = \"/d x\""),
            ("dir = \"/d\"", "dir = \"d\""),
            ("dir = \"/d\"", "dir = \"/d\\nglobal\""),
            ("\"/c.pem\"", "\"/c.pem no-tls13\""),
            ("proxy.test", "proxy.test}$' } #"),
            ("router = \"lb1\"", "router = \"lb/1\""),
            ("users = [\"127.0.0.1:8443\"]", "users = []"),
            ("state-dir", "state-dri"),
            ("[mqtt]", "limits = { check-interval = \"1ms\" }\n[mqtt]"),
        ] {
            assert!(GOOD.contains(good), "{good}");
            assert!(parse(&GOOD.replacen(good, bad, 1)).is_err(), "{bad}");
        }
    }
}
