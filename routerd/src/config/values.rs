//! Values that can stand in HAProxy's configuration as they are.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

use serde::Deserialize;

/// A path that can stand in HAProxy's configuration and in a runtime command as it is: absolute, and of letters,
/// digits, `.`, `_`, `-` and `/` only.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PlainPath(String);

impl FromStr for PlainPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
        if text.starts_with('/') && text.len() < 256 && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "not a path that HAProxy can take: {}; use an absolute one of letters, digits, . _ - and /",
                rssh_proto::text::quoted(text, 80)
            ))
        }
    }
}

impl TryFrom<String> for PlainPath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl PlainPath {
    /// The path as the standard library has it.
    pub fn path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// A path below this one; `name` is one of our own file names.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        Self(format!("{}/{name}", self.0.trim_end_matches('/')))
    }
}

impl fmt::Display for PlainPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Where HAProxy writes its log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum LogTarget {
    Stdout,
    /// A unix datagram socket, such as `/dev/log`.
    Socket(PlainPath),
    /// A syslog server, by UDP.
    Udp(SocketAddr),
}

impl TryFrom<String> for LogTarget {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "stdout" => Ok(Self::Stdout),
            path if path.starts_with('/') => path.parse().map(Self::Socket),
            other => other
                .parse()
                .map(Self::Udp)
                .map_err(|_| "not a log target; use stdout, the path of a unix socket or IP:PORT".to_owned()),
        }
    }
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::Socket(path) => path.fmt(f),
            Self::Udp(address) => address.fmt(f),
        }
    }
}

/// The name of a unix account or group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AccountName(String);

impl TryFrom<String> for AccountName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        if (1..=32).contains(&text.len()) && !text.starts_with('-') && text.bytes().all(valid) {
            Ok(Self(text))
        } else {
            Err("not the name of a group".to_owned())
        }
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
