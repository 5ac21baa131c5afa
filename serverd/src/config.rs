//! `serverd.toml`.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rssh_mqtt::IdentityFiles;
use rssh_mqtt::toml_file::{self, TomlError};
use rssh_proto::duration::Span;
use rssh_proto::name::ProxyDomain;
use rssh_proto::text::quoted;
use rssh_proto::{Account, HostPort, HttpsUrl};
use rssh_stores::StoreUrl;
use serde::Deserialize;

use crate::store::quotas::Quotas;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Toml(#[from] TomlError),
    #[error("the configuration {path} is wrong: {what}")]
    Value { path: PathBuf, what: String },
}

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// What this server keeps between starts: its id, its keys, its sockets.
    pub state_dir: PathBuf,
    pub public: Public,
    pub database: Database,
    pub redis: Redis,
    pub mqtt: Mqtt,
    pub sshd: Sshd,
    pub http: Http,
    pub https: Option<Https>,
    #[serde(default)]
    pub tunnels: Tunnels,
    #[serde(default)]
    pub limits: Limits,
    pub admin: Option<Admin>,
}

/// What users and devices see of the installation.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Public {
    /// The domain of signed names.
    pub domain: ProxyDomain,
    /// The load balancer's TLS port for signed names.
    #[serde(default = "default_port")]
    pub port: u16,
    /// The load balancer's TLS port for bearer names, which anyone may use who has one. Without it nothing is shared.
    pub bearer_port: Option<u16>,
    /// Where users' connections go, where that is not the domain itself.
    #[serde(default)]
    pub lb: Vec<HostPort>,
    /// The load balancers' addresses for devices' ssh.
    pub ssh: Vec<HostPort>,
}

fn default_port() -> u16 {
    443
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Database {
    /// `postgres://user@host/database`, or `postgres://user@host,host:port/database` where one of several takes writes;
    /// a password belongs into `~/.pgpass`.
    pub url: StoreUrl,
    /// Connections held at most.
    #[serde(default = "default_connections")]
    pub connections: u32,
}

fn default_connections() -> u32 {
    8
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Redis {
    /// `rediss://user@host`, or `rediss+sentinel://user@host,host:port/service` where Sentinels know the master.
    pub url: StoreUrl,
    /// The password of the URL's user, in a file that its owner alone reads.
    pub password_file: Option<PathBuf>,
    /// The CA of Redis's certificate; that of `[mqtt]`, when absent.
    pub ca: Option<PathBuf>,
    /// What is shown to a Redis that asks for a certificate; this server's own, when absent.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// How long this server's registration outlives its last heartbeat.
    #[serde(default = "default_ttl")]
    pub ttl: Span,
}

fn default_ttl() -> Span {
    Span::seconds(5)
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Mqtt {
    /// This server holds a session with each of them: devices and users hold one with any.
    pub brokers: Vec<HostPort>,
    /// The servers' CA; the copy that enrolment brings, when absent.
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// The dedicated sshd of this server.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Sshd {
    /// The address that leased ports are bound to: one that only the load balancers reach.
    pub address: IpAddr,
    /// Where sshd listens for devices, by way of the load balancers.
    pub listen: Vec<SocketAddr>,
    /// The ports to lease.
    pub ports: PortRange,
    /// The account that devices' sessions run under.
    #[serde(default = "default_user")]
    pub user: String,
    /// Where the rendered configuration and the host key lie.
    pub dir: PathBuf,
    /// Where rssh-authorize and rssh-claim are installed; root-owned all the way up.
    #[serde(default = "default_helpers")]
    pub helpers: PathBuf,
    /// How many logins may be under way at once.
    #[serde(default = "default_max_startups")]
    pub max_startups: u16,
}

fn default_user() -> String {
    "rssh-tunnel".to_owned()
}

fn default_helpers() -> PathBuf {
    PathBuf::from("/usr/lib/rssh")
}

fn default_max_startups() -> u16 {
    1000
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Http {
    /// Where `GET /healthz` is answered, for the load balancers, and `GET /metrics`, for Prometheus.
    pub listen: SocketAddr,
}

/// Enrolment, renewal and whatever else users and devices ask for over HTTPS.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Https {
    /// Where this server answers.
    pub listen: SocketAddr,
    /// Where everyone reaches the servers, by way of the load balancers; their certificates name this host.
    pub url: HttpsUrl,
}

/// Limits of tunnels.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Tunnels {
    /// How long a tunnel lives when its request does not say, and at most.
    pub default_ttl: Span,
    pub max_ttl: Span,
    /// How long a signed name admits new connections.
    pub name_ttl: Span,
    /// How far the clocks of servers and load balancers may differ.
    pub clock_skew: Span,
    /// How long a login may hold a port without claiming a tunnel.
    pub claim_within: Span,
    /// How long the database remembers a tunnel that is over; the audit trail is apart from it.
    pub history: Span,
}

impl Default for Tunnels {
    fn default() -> Self {
        Self {
            default_ttl: Span::seconds(8 * 3600),
            max_ttl: Span::seconds(7 * 24 * 3600),
            name_ttl: Span::seconds(120),
            clock_skew: Span::seconds(10),
            claim_within: Span::seconds(10),
            history: Span::seconds(30 * 86_400),
        }
    }
}

/// What each user and device may have that has no limits of its own. `rssh-serverd user limit` and its like give some.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    /// Tunnels at once.
    pub user_tunnels: u32,
    pub device_tunnels: u32,
    /// New tunnels within a minute.
    pub user_opens_per_minute: u32,
    pub device_opens_per_minute: u32,
    /// Requests of one user that one server takes within a second, of whatever kind.
    pub user_requests_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            user_tunnels: 1000,
            // The agent's own limit is lower, and its refusal says more.
            device_tunnels: 128,
            user_opens_per_minute: 3000,
            device_opens_per_minute: 3000,
            user_requests_per_second: 200,
        }
    }
}

impl Limits {
    /// Those that are counted in the database.
    pub fn quotas(&self) -> Quotas {
        Quotas {
            user_tunnels: self.user_tunnels,
            user_opens_per_minute: self.user_opens_per_minute,
            device_tunnels: self.device_tunnels,
            device_opens_per_minute: self.device_opens_per_minute,
        }
    }
}

/// Where administration is done: the directory of the certificate authorities.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Admin {
    pub pki: PathBuf,
    /// The program that signs with the authorities' keys, where those are not in the directory.
    pub signer: Option<PathBuf>,
    /// The socket of an agent that holds the keys of the SSH authorities, where those are not in the directory.
    pub ssh_agent: Option<PathBuf>,
    /// How long an identity's certificate lives.
    #[serde(default = "default_lifetime")]
    pub lifetime: Span,
    /// The accounts on devices that a grant stands for where it names none.
    #[serde(default)]
    pub accounts: Vec<Account>,
    /// How long a user's SSH certificate lives.
    #[serde(default = "default_ssh_lifetime")]
    pub ssh_lifetime: Span,
}

impl Admin {
    /// Authorities with their keys in this directory.
    pub fn at(pki: &Path) -> Self {
        Self {
            pki: pki.to_owned(),
            signer: None,
            ssh_agent: None,
            accounts: Vec::new(),
            lifetime: default_lifetime(),
            ssh_lifetime: default_ssh_lifetime(),
        }
    }
}

fn default_lifetime() -> Span {
    Span::seconds(90 * 86_400)
}

fn default_ssh_lifetime() -> Span {
    Span::seconds(3600)
}

/// An inclusive range of ports, written `20000-29999`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = || {
            let (first, last) = text.split_once('-')?;
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first >= 1024 && first <= last).then_some(Self { first, last })
        };
        range().ok_or_else(|| {
            format!(
                "not a range of ports: {}; use FIRST-LAST, from 1024 up",
                quoted(text, 40)
            )
        })
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl PortRange {
    /// Whether a port lies in the range.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// When the file is missing, is not TOML, has an unknown key or a value that makes no sense.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml_file::load(path)?;
        match config.fault() {
            Some(what) => Err(ConfigError::Value {
                path: path.to_owned(),
                what,
            }),
            None => Ok(config),
        }
    }

    /// What makes no sense, if anything does.
    fn fault(&self) -> Option<String> {
        let quotable = |path: &Path| {
            let text = path.to_string_lossy();
            path.is_absolute()
                && !text.contains(|c: char| c.is_whitespace() || c.is_control() || "\"'\\%$`;&|".contains(c))
        };
        if self.public.ssh.is_empty() {
            return Some("public.ssh names no load balancer".into());
        }
        // An order names them all, and fits one message.
        if self.public.ssh.len() > 8 {
            return Some("public.ssh names more than 8 load balancers; put several behind one name".into());
        }
        if self.mqtt.brokers.is_empty() {
            return Some("mqtt.brokers names no broker".into());
        }
        if self.sshd.listen.is_empty() {
            return Some("sshd.listen names no address".into());
        }
        if let Some(admin) = &self.admin
            && (admin.lifetime < Span::seconds(10) || admin.ssh_lifetime < Span::seconds(10))
        {
            return Some("admin.lifetime and admin.ssh-lifetime must be 10s at least".into());
        }
        // A close that is repeated is answered from what is remembered.
        if self.tunnels.history < Span::seconds(3600) {
            return Some("tunnels.history must be 1h at least".into());
        }
        // These paths become words of sshd's configuration and of a command in it.
        for (name, path) in [
            ("state-dir", &self.state_dir),
            ("sshd.dir", &self.sshd.dir),
            ("sshd.helpers", &self.sshd.helpers),
        ] {
            if !quotable(path) {
                return Some(format!("{name} must be an absolute path without spaces or quotes"));
            }
        }
        if let Err(error) = self.redis() {
            return Some(format!("redis.url is not usable: {error}"));
        }
        let account = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
        if self.sshd.user.is_empty() || self.sshd.user.starts_with('-') || !self.sshd.user.chars().all(account) {
            return Some("sshd.user is not the name of an account".into());
        }
        None
    }

    /// This server's TLS identity.
    pub fn identity(&self) -> IdentityFiles {
        IdentityFiles {
            ca: self.servers_ca(),
            cert: self
                .mqtt
                .cert
                .clone()
                .unwrap_or_else(|| self.state_dir.join("server.pem")),
            key: self
                .mqtt
                .key
                .clone()
                .unwrap_or_else(|| self.state_dir.join("server.key")),
        }
    }

    /// Redis, and what goes with its URL.
    ///
    /// # Errors
    /// When the URL is wrong.
    pub fn redis(&self) -> Result<rssh_stores::Redis, rssh_stores::UrlError> {
        let (redis, own) = (&self.redis, self.identity());
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

    fn servers_ca(&self) -> PathBuf {
        let copy = || crate::domain::ca_file(&self.trust(), crate::domain::Domain::Servers);
        self.mqtt.ca.clone().unwrap_or_else(copy)
    }

    /// The TLS identity with which this server answers HTTPS.
    pub fn https_identity(&self) -> IdentityFiles {
        IdentityFiles {
            ca: self.servers_ca(),
            cert: self.state_dir.join("https.pem"),
            key: self.state_dir.join("https.key"),
        }
    }

    /// Where the public halves of the authorities lie.
    pub fn trust(&self) -> PathBuf {
        self.state_dir.join("trust")
    }

    /// Where the sockets for sshd's helpers lie.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.state_dir.join("run").join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_ports_is_two_numbers_in_order() {
        assert_eq!(
            "20000-29999".parse(),
            Ok(PortRange {
                first: 20_000,
                last: 29_999
            })
        );
        for bad in ["", "20000", "2-1", "80-90", "20000-70000", "a-b", "-1-5"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }
}
