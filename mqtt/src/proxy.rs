//! The HTTP proxy that a network lets programs out through: CONNECT (RFC 9110, 9.3.6), and which hosts it is for.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rssh_proto::HostPort;
use rssh_proto::text::quoted;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::files::{FileError, read_secret};

/// Where proxies listen that are named without a port, as curl has it.
const PORT: u16 = 1080;
/// How long a proxy may take, its own way to the host included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The most that a proxy may say before the connection is through.
const HEADER_LIMIT: usize = 8 * 1024;

/// Why a proxy cannot be used as it is named.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("HTTPS_PROXY is {0}")]
    Environment(String),
    #[error("proxy-password-file needs a user in proxy: http://USER@HOST:PORT")]
    Nobody,
    #[error(transparent)]
    Password(#[from] FileError),
}

/// Why a proxy did not connect.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("it wants a user and a password (407); put them in proxy: http://USER:PASSWORD@HOST:PORT")]
    Authentication,
    #[error("it answers {0}; ask who runs it to allow this host and port")]
    Status(String),
    #[error("it does not speak HTTP")]
    NotHttp,
    #[error("no answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A proxy; its password is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    address: HostPort,
    user: Option<String>,
    password: String,
}

/// What a configuration says: `http://[USER:PASSWORD@]HOST:PORT`, or `none`, whatever the environment has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Choice {
    None,
    Proxy(Proxy),
}

impl TryFrom<String> for Choice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "none" => Ok(Self::None),
            url => url.parse().map(Self::Proxy),
        }
    }
}

impl FromStr for Proxy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text)
            .map_err(|reason| format!("not a proxy: {reason}; use http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT"))
    }
}

impl Proxy {
    fn parse(text: &str) -> Result<Self, String> {
        let rest = match text.split_once("://") {
            None => text,
            Some(("http", rest)) => rest,
            Some((scheme, _)) => return Err(format!("its scheme is {}, not http", quoted(scheme, 20))),
        };
        let rest = rest.trim_end_matches('/');
        let (credentials, host) = match rest.rsplit_once('@') {
            Some((credentials, host)) => (Some(credentials), host),
            None => (None, rest),
        };
        let address = host
            .parse()
            .or_else(|_| format!("{host}:{PORT}").parse())
            .map_err(|_| format!("{} is no HOST:PORT", quoted(host, 80)))?;
        let (user, password) = match credentials.map(|text| text.split_once(':').unwrap_or((text, ""))) {
            Some((user, password)) => (Some(decoded(user)?), decoded(password)?),
            None => (None, String::new()),
        };
        Ok(Self {
            address,
            user,
            password,
        })
    }
}

/// Undoes percent-encoding (RFC 3986, 2.1).
fn decoded(text: &str) -> Result<String, String> {
    // The text may be a password.
    let wrong = || "its user or password is not percent-encoded UTF-8".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        bytes.push(u8::from_str_radix(digits.ok_or_else(wrong)?, 16).map_err(|_| wrong())?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.address)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({})", self.address)
    }
}

impl Proxy {
    /// Where it listens.
    pub fn address(&self) -> &HostPort {
        &self.address
    }

    /// Asks for a connection; afterwards the stream is the host's, from its first byte.
    ///
    /// # Errors
    /// When the proxy refuses or is silent.
    pub async fn connect(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        to: &HostPort,
    ) -> Result<(), Refusal> {
        let ask = async {
            stream.write_all(self.request(to).as_bytes()).await?;
            stream.flush().await?;
            let header = header(stream).await?;
            judge(&header)
        };
        tokio::time::timeout(ANSWER_TIMEOUT, ask)
            .await
            .unwrap_or(Err(Refusal::Silent))
    }

    fn request(&self, to: &HostPort) -> String {
        let authorization = self.user.as_ref().map_or_else(String::new, |user| {
            let credentials = BASE64_STANDARD.encode(format!("{user}:{}", self.password));
            format!("Proxy-Authorization: Basic {credentials}\r\n")
        });
        format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{authorization}\r\n")
    }
}

/// Reads up to the empty line and not a byte on: what follows is the host's, and an SSH server speaks first.
async fn header(stream: &mut (impl AsyncRead + Unpin)) -> Result<String, Refusal> {
    let mut header = Vec::with_capacity(256);
    while !header.ends_with(b"\r\n\r\n") {
        if header.len() == HEADER_LIMIT {
            return Err(Refusal::NotHttp);
        }
        match stream.read_u8().await {
            Ok(byte) => header.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Refusal::NotHttp),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(String::from_utf8_lossy(&header).into_owned())
}

/// Whether an answer says that the connection is through.
fn judge(header: &str) -> Result<(), Refusal> {
    let status = header.lines().next().unwrap_or_default();
    let code = status
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .ok_or(Refusal::NotHttp)?;
    match code {
        "407" => Err(Refusal::Authentication),
        code if code.len() == 3 && code.starts_with('2') => Ok(()),
        _ => Err(Refusal::Status(quoted(status, 80))),
    }
}

/// Which hosts are reached through which proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    proxy: Option<Proxy>,
    except: Vec<Except>,
}

impl Proxies {
    /// Takes the proxy of a configuration, else `HTTPS_PROXY` of the environment; `none` in the configuration is none.
    /// `NO_PROXY` holds for both.
    ///
    /// # Errors
    /// When what is named is no proxy, or its password file cannot be used.
    pub fn choose(
        configured: Option<&Choice>,
        password_file: Option<&Path>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ProxyError> {
        let variable = |names: [&str; 2]| {
            let set = names.into_iter().filter_map(&environment);
            set.map(|value| value.trim().to_owned()).find(|value| !value.is_empty())
        };
        let mut proxy = match configured {
            Some(Choice::None) => None,
            Some(Choice::Proxy(proxy)) => Some(proxy.clone()),
            None => variable(["https_proxy", "HTTPS_PROXY"])
                .map(|url| url.parse())
                .transpose()
                .map_err(ProxyError::Environment)?,
        };
        if let Some(file) = password_file {
            let proxy = proxy.as_mut().filter(|proxy| proxy.user.is_some());
            let password = read_secret(file)?;
            proxy.ok_or(ProxyError::Nobody)?.password = String::from_utf8_lossy(&password).trim_end().to_owned();
        }
        let except = variable(["no_proxy", "NO_PROXY"]).unwrap_or_default();
        Ok(Self {
            proxy,
            except: except.split(',').filter_map(Except::of).collect(),
        })
    }

    /// The same by this process's environment.
    ///
    /// # Errors
    /// As [`Proxies::choose`] has them.
    pub fn of_process(configured: Option<&Choice>, password_file: Option<&Path>) -> Result<Self, ProxyError> {
        Self::choose(configured, password_file, |name| std::env::var(name).ok())
    }

    /// The proxy for a host; none for this machine itself.
    pub fn of(&self, to: &HostPort) -> Option<&Proxy> {
        if cfg!(not(feature = "proxies")) {
            return None;
        }
        let host = to.host().to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        let own = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        let direct = own
            || self
                .except
                .iter()
                .any(|except| except.matches(&host, address, to.port()));
        self.proxy.as_ref().filter(|_| !direct)
    }
}

/// An entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Except {
    All,
    /// A host and what is below it.
    Domain {
        name: String,
        port: Option<u16>,
    },
    /// The addresses that share so many first bits.
    Network {
        address: IpAddr,
        bits: u32,
    },
}

impl Except {
    fn of(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if text.is_empty() {
            return None;
        }
        if text == "*" {
            return Some(Self::All);
        }
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, bits.parse().ok()),
            None => (text.as_str(), Some(u32::MAX)),
        };
        if let (Ok(address), Some(bits)) = (address.trim_matches(['[', ']']).parse(), bits) {
            return Some(Self::Network { address, bits });
        }
        let (name, port) = match text.rsplit_once(':').map(|(name, port)| (name, port.parse())) {
            Some((name, Ok(port))) => (name, Some(port)),
            _ => (text.as_str(), None),
        };
        let name = name.trim_start_matches("*.").trim_start_matches('.').to_owned();
        Some(Self::Domain { name, port })
    }

    fn matches(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Domain { name, port: only } => {
                let below = host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                (host == name || below) && only.is_none_or(|only| only == port)
            }
            Self::Network { address: own, bits } => address.is_some_and(|address| share(address, *own, *bits)),
        }
    }
}

/// Whether two addresses of one family share their first bits.
fn share(one: IpAddr, other: IpAddr, bits: u32) -> bool {
    let differing = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        _ => return false,
    };
    let width = if one.is_ipv4() { 32 } else { 128 };
    differing >= bits.min(width)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(text: &str) -> Choice {
        text.to_owned().try_into().unwrap()
    }

    fn proxies(configured: Option<&str>, environment: &[(&str, &str)]) -> Result<Proxies, ProxyError> {
        Proxies::choose(configured.map(choice).as_ref(), None, |name| {
            let value = environment.iter().find(|(known, _)| *known == name)?.1;
            Some(value.to_owned())
        })
    }

    fn way(proxies: &Proxies, to: &str) -> Option<String> {
        proxies.of(&to.parse().unwrap()).map(Proxy::to_string)
    }

    #[test]
    fn the_configuration_comes_before_the_environment_and_can_say_none() {
        let environment = [("HTTPS_PROXY", "http://env:3128")];
        let by = |configured| way(&proxies(configured, &environment).unwrap(), "lb.example.com:443");
        assert_eq!(by(None).as_deref(), Some("http://env:3128"));
        assert_eq!(by(Some("http://conf:8080/")).as_deref(), Some("http://conf:8080"));
        assert_eq!(by(Some("none")), None);
        assert_eq!(way(&proxies(None, &[]).unwrap(), "lb.example.com:443"), None);
    }

    #[test]
    fn no_proxy_names_domains_networks_and_ports() {
        let no = "example.com, .internal,*.corp,10.0.0.0/8,192.0.2.7,lb.test:443,fd00::/8";
        let proxies = proxies(Some("p:1"), &[("no_proxy", no)]).unwrap();
        for direct in [
            "example.com:1",
            "LB.example.com:1",
            "a.internal:1",
            "a.corp:1",
            "10.1.2.3:1",
            "192.0.2.7:1",
            "lb.test:443",
            "[fd12::1]:1",
            "localhost:1",
            "127.0.0.9:1",
        ] {
            assert_eq!(way(&proxies, direct), None, "{direct}");
        }
        for proxied in [
            "notexample.com:1",
            "11.1.2.3:1",
            "192.0.2.8:1",
            "lb.test:8883",
            "[fe80::1]:1",
        ] {
            assert_eq!(way(&proxies, proxied).as_deref(), Some("http://p:1"), "{proxied}");
        }
        let all = self::proxies(Some("p:1"), &[("NO_PROXY", "*")]).unwrap();
        assert_eq!(way(&all, "example.com:1"), None);
    }

    #[test]
    fn a_password_is_sent_and_never_shown() {
        let proxy: Proxy = "http://us%40er:p%3Ass@proxy.test:3128".parse().unwrap();
        let credentials = BASE64_STANDARD.encode("us@er:p:ss");
        let request = proxy.request(&"[2001:db8::1]:22".parse().unwrap());
        assert_eq!(
            request,
            format!(
                "CONNECT [2001:db8::1]:22 HTTP/1.1\r\nHost: [2001:db8::1]:22\r\nProxy-Authorization: Basic \
                 {credentials}\r\n\r\n"
            )
        );
        let shown = format!("{proxy} {proxy:?}");
        assert!(!shown.contains("ss") && !shown.contains("us@er"), "{shown}");
        for bad in [
            "https://p:1",
            "socks5://p:1",
            "http://u:secret%zz@p:1",
            "http://u:secret@p p:1",
            "http://",
        ] {
            let error = proxies(None, &[("HTTPS_PROXY", bad)]).unwrap_err().to_string();
            assert!(
                error.starts_with("HTTPS_PROXY is not a proxy: ") && !error.contains("secret"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_password_file_is_for_a_user_and_for_nobody_else_to_read() {
        use std::os::unix::fs::PermissionsExt as _;

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret\n").unwrap();
        let choose = |url| Proxies::choose(Some(&choice(url)), Some(file.path()), |_| None);
        let proxies = choose("http://user@p:1").unwrap();
        assert_eq!(proxies.proxy.unwrap().password, "secret");
        assert!(matches!(choose("http://p:1"), Err(ProxyError::Nobody)));
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(choose("http://user@p:1"), Err(ProxyError::Password(_))));
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_the_hosts() {
        let proxy: Proxy = "p:1".parse().unwrap();
        let to = "lb.test:22".parse().unwrap();
        for (answer, ends) in [
            (
                "HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\nSSH-2.0-x\r\n",
                Ok(()),
            ),
            (
                "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
                Err("it wants a user"),
            ),
            (
                "HTTP/1.1 403 Filtered\r\n\r\n",
                Err("it answers \"HTTP/1.1 403 Filtered\""),
            ),
            ("SSH-2.0-x\r\n\r\n", Err("it does not speak HTTP")),
            ("HTTP/1.1 200", Err("it does not speak HTTP")),
        ] {
            let (mut ours, mut theirs) = tokio::io::duplex(1024);
            theirs.write_all(answer.as_bytes()).await.unwrap();
            theirs.shutdown().await.unwrap();
            let outcome = proxy.connect(&mut ours, &to).await;
            match (outcome, ends) {
                (Ok(()), Ok(())) => {
                    let mut rest = String::new();
                    ours.read_to_string(&mut rest).await.unwrap();
                    assert_eq!(rest, "SSH-2.0-x\r\n");
                }
                (Err(refusal), Err(says)) => assert!(refusal.to_string().starts_with(says), "{refusal}"),
                other => panic!("{answer:?}: {other:?}"),
            }
        }
    }
}
