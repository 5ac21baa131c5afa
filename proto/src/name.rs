//! Signed host names: the right to connect to one port of one server, for one user and a short time.
//!
//! ```text
//! <server>-<port>-<exp>-<mac>.<proxy_domain>
//! mac = first 32 hexadecimal digits of HMAC-SHA256(key of <server>, "<server>:<port>:<exp>:<user>")
//! ```
//! HAProxy checks them with its stock converters; this module signs, and states the rule in code.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;

use crate::id::{ServerId, UserId, random_hex};
use crate::text::{hex, quoted};

/// The longest DNS label, in bytes (RFC 1035, 2.3.4).
const LABEL_LIMIT: usize = 63;
/// Hexadecimal digits of the mac: 128 bits.
const MAC_DIGITS: usize = 32;
/// Bytes of a key and of the master.
const KEY_BYTES: usize = 32;

/// Why a text is not a name or a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("not a signed name: {0}")]
    Malformed(String),
    #[error("not a proxy domain: {0}; use a DNS name of lower-case letters, digits, - and .")]
    Domain(String),
    #[error("not a name key: it must be base64 of at least {KEY_BYTES} bytes")]
    Key,
}

/// The secret that all name keys derive from. Only routers hold it.
#[derive(Clone, PartialEq, Eq)]
pub struct NameMaster(Vec<u8>);

/// The secret with which one server signs names, as HAProxy takes it: base64.
#[derive(Clone, PartialEq, Eq)]
pub struct NameKey(Vec<u8>);

macro_rules! secret {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }

        impl $name {
            /// The secret in base64, for its file (or HAProxy's map) and nowhere else.
            pub fn to_base64(&self) -> String {
                BASE64.encode(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                match BASE64.decode(text.trim()) {
                    Ok(bytes) if bytes.len() >= KEY_BYTES => Ok(Self(bytes)),
                    _ => Err(NameError::Key),
                }
            }
        }
    };
}

secret!(NameMaster);
secret!(NameKey);

impl NameMaster {
    /// Draws a new master.
    pub fn generate() -> Self {
        Self(random_hex::<KEY_BYTES>().into_bytes())
    }

    /// The key of one server.
    pub fn key(&self, server: &ServerId) -> NameKey {
        let master = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        let derived = hmac::sign(&master, format!("rssh name key v1:{server}").as_bytes());
        NameKey(derived.as_ref().to_vec())
    }
}

/// The domain under which signed names live, such as `proxy.example.com`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProxyDomain(String);

impl FromStr for ProxyDomain {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let label = |label: &str| {
            (1..=LABEL_LIMIT).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        // A whole name has at most 253 bytes; our label and its dot come before the domain.
        if text.len() < 253 - LABEL_LIMIT && text.split('.').all(label) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Domain(quoted(text, 80)))
        }
    }
}

as_text!(ProxyDomain);

impl fmt::Display for ProxyDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The first label of a signed name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedName {
    pub server: ServerId,
    pub port: u16,
    /// Until when it admits new connections, in Unix seconds.
    pub expires_at: u64,
    mac: String,
}

impl SignedName {
    /// Signs a name for a user; without one, for whoever bears it.
    pub fn sign(key: &NameKey, server: &ServerId, port: u16, expires_at: u64, user: Option<&UserId>) -> Self {
        Self {
            server: server.clone(),
            port,
            expires_at,
            mac: mac(key, server, port, expires_at, user),
        }
    }

    /// The whole host name.
    pub fn host(&self, domain: &ProxyDomain) -> String {
        format!("{self}.{domain}")
    }

    /// Whether HAProxy would admit it at `now`, in Unix seconds, from a user with this certificate.
    pub fn admits(&self, key: &NameKey, user: Option<&UserId>, now: u64) -> bool {
        // No secret-independent comparison: this states the rule for readers and tests; HAProxy is the gate.
        now < self.expires_at && self.mac == mac(key, &self.server, self.port, self.expires_at, user)
    }
}

fn mac(key: &NameKey, server: &ServerId, port: u16, expires_at: u64, user: Option<&UserId>) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key.0);
    let user = user.map_or("", UserId::as_str);
    let tag = hmac::sign(&key, format!("{server}:{port}:{expires_at}:{user}").as_bytes());
    hex(&tag.as_ref()[..MAC_DIGITS / 2])
}

impl fmt::Display for SignedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}-{}", self.server, self.port, self.expires_at, self.mac)
    }
}

impl FromStr for SignedName {
    type Err = NameError;

    /// Reads the first label of a host name, or a whole one.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let malformed = || NameError::Malformed(quoted(text, 80));
        let label = text.split('.').next().unwrap_or_default();
        if label.len() > LABEL_LIMIT {
            return Err(malformed());
        }
        let fields: Vec<&str> = label.split('-').collect();
        let [server, port, expires_at, mac] = fields[..] else {
            return Err(malformed());
        };
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let hexadecimal = mac.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !digits(port) || !digits(expires_at) || mac.len() != MAC_DIGITS || !hexadecimal {
            return Err(malformed());
        }
        Ok(Self {
            server: server.parse().map_err(|_| malformed())?,
            port: port.parse().map_err(|_| malformed())?,
            expires_at: expires_at.parse().map_err(|_| malformed())?,
            mac: mac.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> ServerId {
        text.parse().unwrap()
    }

    fn user(text: &str) -> UserId {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_name_fits_one_dns_label() {
        let longest = server(&"s".repeat(12));
        let key = NameMaster::generate().key(&longest);
        // Ten digits of Unix seconds last until the year 2286.
        let name = SignedName::sign(&key, &longest, 65_535, 9_999_999_999, Some(&user("alice")));
        assert!(name.to_string().len() <= LABEL_LIMIT, "{name}");
        assert_eq!(name.to_string().parse(), Ok(name.clone()));
        let domain: ProxyDomain = "proxy.example.com".parse().unwrap();
        assert_eq!(name.host(&domain).parse(), Ok(name));
    }

    #[test]
    fn a_name_admits_its_own_user_server_and_time_only() {
        let master = NameMaster::generate();
        let (s1, s2) = (server("s1"), server("s2"));
        let name = SignedName::sign(&master.key(&s1), &s1, 20_000, 1_000, Some(&user("alice")));
        assert!(name.admits(&master.key(&s1), Some(&user("alice")), 999));
        assert!(!name.admits(&master.key(&s1), Some(&user("alice")), 1_000));
        assert!(!name.admits(&master.key(&s1), Some(&user("bob")), 999));
        assert!(!name.admits(&master.key(&s1), None, 999));
        assert!(!name.admits(&master.key(&s2), Some(&user("alice")), 999));
        assert!(!name.admits(&NameMaster::generate().key(&s1), Some(&user("alice")), 999));
        let other_port = SignedName {
            port: 20_001,
            ..name.clone()
        };
        assert!(!other_port.admits(&master.key(&s1), Some(&user("alice")), 999));
    }

    #[test]
    fn malformed_names_are_refused() {
        for bad in [
            "",
            "s1",
            "s1-1-1",
            "s1-1-1-00000000000000000000000000000000-x",
            "s1-+1-1-00000000000000000000000000000000",
            "s1-65536-1-00000000000000000000000000000000",
            "S1-1-1-00000000000000000000000000000000",
            "s1-1-1-0000000000000000000000000000000G",
            "s1-1-1-0000",
        ] {
            assert!(bad.parse::<SignedName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_do_not_print_and_short_ones_are_refused() {
        let master = NameMaster::generate();
        assert_eq!(format!("{master:?}"), "NameMaster(..)");
        assert!("".parse::<NameKey>().is_err());
        assert!(BASE64.encode([1; 31]).parse::<NameKey>().is_err());
        assert!(BASE64.encode([1; 32]).parse::<NameKey>().is_ok());
        assert!("none".parse::<NameKey>().is_err());
    }
}
