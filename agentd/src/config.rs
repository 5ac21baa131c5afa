//! The agent's configuration file.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rssh_mqtt::proxy::{Choice, Proxies, ProxyError};
use rssh_mqtt::toml_file::{self, TomlError};
use rssh_mqtt::{FileError, Identity, IdentityError, IdentityFiles};
use rssh_proto::duration::Span;
use rssh_proto::payload::DeviceStatus;
use rssh_proto::target::TargetName;
use rssh_proto::{Account, DeviceId, HostPort, HttpsUrl, Target};
use serde::Deserialize;

use crate::ssh::version::{self, VersionError};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Toml(#[from] TomlError),
    #[error("[mqtt] brokers is empty; name at least one HOST:PORT")]
    NoBroker,
    #[error("[tunnels] max = {0} is not possible; use 1 to {max}", max = DeviceStatus::MAX_TUNNELS)]
    Tunnels(usize),
    #[error("[targets.named] {0} names another name; use a port or HOST:PORT")]
    Named(String),
    #[error("[authorized-keys] {0} = {1:?} is not possible; name the file by its whole path")]
    AuthorizedKeys(String, PathBuf),
    #[error("[authorized-keys] needs url, where the servers answer")]
    NoUrl,
    #[error(
        "{0} needs a part that this rssh-agentd was built without; take it out, or build with it: docs/small-devices.md"
    )]
    LeftOut(&'static str),
    #[error("[ssh] {what} = {path:?} cannot be used; {reason}")]
    SshPath {
        what: &'static str,
        path: PathBuf,
        reason: String,
    },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error(transparent)]
    Version(#[from] VersionError),
}

/// The file as a whole.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    pub device: DeviceId,
    /// Where the agent keeps its generation and, in `run/`, what belongs to running tunnels.
    pub state_dir: PathBuf,
    /// The HTTP proxy that the device's network lets programs out through, for MQTT and ssh alike; `HTTPS_PROXY` where
    /// it is not given.
    #[serde(default)]
    pub proxy: Option<Choice>,
    /// Holds the password of the proxy's user, mode 0600.
    #[serde(default)]
    pub proxy_password_file: Option<PathBuf>,
    /// Where the certificate is renewed; without it, nothing is.
    pub url: Option<HttpsUrl>,
    /// By account, where users' keys are kept while they are good, for an sshd that knows no certificates.
    #[serde(default)]
    pub authorized_keys: BTreeMap<Account, PathBuf>,
    pub mqtt: Mqtt,
    pub ssh: Ssh,
    #[serde(default)]
    pub tunnels: Tunnels,
    #[serde(default)]
    pub targets: Targets,
}

/// How to reach the broker.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Mqtt {
    pub brokers: Vec<HostPort>,
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    /// How often an idle connection is seen to be alive.
    ///
    /// One ping over TLS 1.3 is three packets, 204 bytes with TCP and IPv4 headers (IPv6: 264): 24 bytes each way in
    /// 52 of headers, and a bare acknowledgement. The default of 120 s makes that 144 KiB a day (IPv6: 186), where 60 s
    /// would take 287. The agent notices a dead link within this time and 20 s, the broker within one and a half times
    /// it; who asks for a tunnel in between is told after a second that the device does not answer. Keep it below the
    /// shortest idle timeout on the way: 5 minutes where nothing is known.
    #[serde(default = "Mqtt::default_keep_alive")]
    pub keep_alive: Span,
}

impl Mqtt {
    fn default_keep_alive() -> Span {
        Span::seconds(120)
    }
}

/// How the system `ssh` logs in.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ssh {
    pub key: PathBuf,
    /// What the servers' host keys are checked against: a `@cert-authority` line for `host-key-alias`.
    pub known_hosts: PathBuf,
    #[serde(default = "Ssh::default_alias")]
    pub host_key_alias: DeviceId,
    #[serde(default)]
    pub kex: Kex,
    /// The load balancer as this device reaches it, where that is not what the servers say: at its one public port, for
    /// instance.
    #[serde(default)]
    pub lb: Option<HostPort>,
    #[serde(default = "Ssh::default_program")]
    pub program: PathBuf,
    /// How often a tunnel's silent connection is seen to be alive, and so how soon it is noticed that a router on the
    /// way has another address; 300 bytes each time, while a tunnel is open only.
    #[serde(default = "Ssh::default_keep_alive")]
    pub keep_alive: Span,
    /// How old the key may become before the agent has another one registered by itself; never, when absent.
    #[serde(default)]
    pub rotate_after: Option<Span>,
}

impl Ssh {
    fn default_alias() -> DeviceId {
        "rssh-sshd".parse().expect("a valid label")
    }

    fn default_program() -> PathBuf {
        "/usr/bin/ssh".into()
    }

    fn default_keep_alive() -> Span {
        Span::seconds(5)
    }
}

/// Which key exchange ssh uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kex {
    /// curve25519: a sixth of the CPU time of the post-quantum default, and open to a later quantum computer.
    #[default]
    Fast,
    /// Whatever the installed ssh prefers.
    System,
}

/// How much the device carries.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Tunnels {
    pub max: usize,
}

impl Default for Tunnels {
    fn default() -> Self {
        Self { max: 16 }
    }
}

/// Where tunnels may lead.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Targets {
    #[serde(default = "Targets::default_allow")]
    pub allow: Vec<Target>,
    #[serde(default)]
    pub named: BTreeMap<TargetName, Target>,
    /// The address that a target's `localhost` means, where the device's services listen on one address only.
    #[serde(default)]
    pub localhost: Option<IpAddr>,
}

impl Targets {
    fn default_allow() -> Vec<Target> {
        vec![Target::ssh()]
    }
}

impl Default for Targets {
    fn default() -> Self {
        Self {
            allow: Self::default_allow(),
            named: BTreeMap::new(),
            localhost: None,
        }
    }
}

impl Config {
    /// Reads a configuration; relative paths are taken from the working directory.
    ///
    /// # Errors
    /// When the file cannot be read, or a value in it cannot be used.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = toml_file::load(path)?;
        config.make_absolute(path)?;
        config.validate()?;
        Ok(config)
    }

    fn make_absolute(&mut self, file: &Path) -> Result<(), ConfigError> {
        let paths = [
            &mut self.state_dir,
            &mut self.mqtt.ca,
            &mut self.mqtt.cert,
            &mut self.mqtt.key,
            &mut self.ssh.key,
            &mut self.ssh.known_hosts,
            &mut self.ssh.program,
        ];
        for path in paths.into_iter().chain(&mut self.proxy_password_file) {
            *path = std::path::absolute(&*path).map_err(|source| TomlError::Read {
                path: file.to_owned(),
                source,
            })?;
        }
        Ok(())
    }

    fn validate(&self) -> Result<(), ConfigError> {
        if self.mqtt.brokers.is_empty() {
            return Err(ConfigError::NoBroker);
        }
        if !(1..=DeviceStatus::MAX_TUNNELS).contains(&self.tunnels.max) {
            return Err(ConfigError::Tunnels(self.tunnels.max));
        }
        if let Some((name, _)) = self
            .targets
            .named
            .iter()
            .find(|(_, target)| matches!(target, Target::Named(_)))
        {
            return Err(ConfigError::Named(name.to_string()));
        }
        let asked_for = [
            ("url", self.url.is_some(), cfg!(feature = "enrolment")),
            (
                "ssh.rotate-after",
                self.ssh.rotate_after.is_some(),
                cfg!(feature = "enrolment"),
            ),
            (
                "authorized-keys",
                !self.authorized_keys.is_empty(),
                cfg!(feature = "enrolment"),
            ),
            (
                "proxy",
                matches!(self.proxy, Some(Choice::Proxy(_))),
                cfg!(feature = "proxies"),
            ),
        ];
        if let Some((key, ..)) = asked_for.iter().find(|(_, asked, built)| *asked && !built) {
            return Err(ConfigError::LeftOut(key));
        }
        if let Some((account, path)) = self.authorized_keys.iter().find(|(_, path)| !path.is_absolute()) {
            return Err(ConfigError::AuthorizedKeys(account.to_string(), path.clone()));
        }
        if !self.authorized_keys.is_empty() && self.url.is_none() {
            return Err(ConfigError::NoUrl);
        }
        for (what, path) in [("key", &self.ssh.key), ("known-hosts", &self.ssh.known_hosts)] {
            if !is_quotable(path) {
                return Err(ConfigError::SshPath {
                    what,
                    path: path.clone(),
                    reason: "ssh's own configuration cannot quote it: use letters, digits, spaces and ./-_+,:@=".into(),
                });
            }
        }
        Ok(())
    }

    /// Looks at everything the configuration names: the identity, ssh and its files.
    ///
    /// # Errors
    /// When one of them is missing or cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        Identity::load(&self.identity())?.client_config()?;
        self.proxies()?;
        self.check_ssh()
    }

    /// Looks at the installed ssh, the key and the known hosts.
    ///
    /// # Errors
    /// When one of them is missing or cannot be used.
    pub fn check_ssh(&self) -> Result<(), ConfigError> {
        version::check(&self.ssh.program)?;
        // ssh itself would refuse an exposed key; here it is named before anybody waits for a tunnel.
        rssh_mqtt::files::read_secret(&self.ssh.key)?;
        fs::metadata(&self.ssh.known_hosts).map_err(|source| ConfigError::SshPath {
            what: "known-hosts",
            path: self.ssh.known_hosts.clone(),
            reason: format!("{source}; copy known_hosts from the fleet's PKI"),
        })?;
        Ok(())
    }

    /// Which hosts are reached through which proxy.
    ///
    /// # Errors
    /// When a proxy or its password cannot be used.
    pub fn proxies(&self) -> Result<Proxies, ConfigError> {
        Ok(Proxies::of_process(
            self.proxy.as_ref(),
            self.proxy_password_file.as_deref(),
        )?)
    }

    /// Where the agent's MQTT identity lies.
    pub fn identity(&self) -> IdentityFiles {
        IdentityFiles {
            ca: self.mqtt.ca.clone(),
            cert: self.mqtt.cert.clone(),
            key: self.mqtt.key.clone(),
        }
    }
}

/// Whether a path means itself between double quotes in an ssh_config: no quote, `%` token, `${}` or `~`.
pub fn is_quotable(path: &Path) -> bool {
    path.to_str().is_some_and(|text| {
        text.chars()
            .all(|c| c.is_alphanumeric() || matches!(c, ' ' | '.' | '/' | '-' | '_' | '+' | ',' | ':' | '@' | '='))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        device = "device-1"
        state-dir = "state"
        [mqtt]
        brokers = ["127.0.0.1:8883"]
        ca = "ca.pem"
        cert = "device.pem"
        key = "device.key"
        [ssh]
        key = "ssh_key"
        known-hosts = "known_hosts"
    "#;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Config::load(file.path())
    }

    #[test]
    fn the_defaults_allow_ssh_to_the_device_itself_and_nothing_else() {
        let config = load(MINIMAL).unwrap();
        assert_eq!(config.targets.allow, [Target::ssh()]);
        assert!(config.targets.named.is_empty());
        assert_eq!(config.tunnels.max, 16);
        assert_eq!(config.ssh.kex, Kex::Fast);
        assert_eq!(config.ssh.host_key_alias.as_str(), "rssh-sshd");
        assert!(config.state_dir.is_absolute());
    }

    #[cfg(all(feature = "enrolment", feature = "proxies"))]
    #[test]
    fn every_key_is_read() {
        let text = MINIMAL.replace(
            "[ssh]",
            "keep-alive = \"30s\"\n[ssh]\nkex = \"system\"\nkeep-alive = \"20s\"\nlb = \"lb.test:443\"\nprogram = \"/opt/ssh\"",
        ) + r#"
            [tunnels]
            max = 4
            [targets]
            allow = ["22", "192.168.1.10:502"]
            localhost = "127.0.0.2"
            [targets.named]
            plc-1 = "192.168.1.10:502"
        "#;
        let text = format!("proxy = \"http://user:secret@proxy.test:3128\"\n{text}");
        let config = load(&text).unwrap();
        assert!(config.proxy.is_some());
        assert!(!format!("{config:?}").contains("secret"));
        assert_eq!(config.ssh.lb.as_ref().map(HostPort::port), Some(443));
        assert_eq!(config.ssh.kex, Kex::System);
        assert_eq!(config.mqtt.keep_alive, Span::seconds(30));
        assert_eq!(config.ssh.keep_alive, Span::seconds(20));
        assert_eq!(config.targets.named.len(), 1);
        assert_eq!(config.targets.allow.len(), 2);
    }

    #[test]
    fn what_cannot_work_is_an_error_that_says_so() {
        for (text, says) in [
            (MINIMAL.replace("device-1", "Device 1"), "device id"),
            (MINIMAL.replace("[\"127.0.0.1:8883\"]", "[]"), "brokers is empty"),
            (MINIMAL.replace("\"ssh_key\"", "\"a\\\"b\""), "cannot quote"),
            (MINIMAL.replace("\"ssh_key\"", "\"%h\""), "cannot quote"),
            (MINIMAL.to_owned() + "colour = 1", "unknown field"),
            (format!("proxy = \"socks5://p:1\"\n{MINIMAL}"), "use http://"),
            (MINIMAL.to_owned() + "[tunnels]\nmax = 65", "use 1 to 64"),
            (MINIMAL.to_owned() + "[tunnels]\nmax = 0", "use 1 to 64"),
            (MINIMAL.to_owned() + "[targets.named]\na = \"b\"", "names another name"),
        ] {
            let error = load(&text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
