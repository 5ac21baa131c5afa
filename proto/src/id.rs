//! Identifiers, validated where they enter.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind}: {text}; use {grammar}")]
pub struct IdError {
    kind: &'static str,
    text: String,
    grammar: &'static str,
}

impl IdError {
    fn new(kind: &'static str, text: &str, grammar: &'static str) -> Self {
        Self {
            kind,
            text: crate::text::quoted(text, 40),
            grammar,
        }
    }
}

/// Defines a text id: a newtype over `String` that only `FromStr` can make.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $grammar:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError::new($kind, text, $grammar))
                }
            }
        }

        as_text!($name);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

fn lower_or_digit(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Whether `text` is `[a-z0-9][a-z0-9-]{0,62}`, the shape of device and user ids.
fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len()) && lower_or_digit(bytes[0]) && bytes.iter().all(|&b| lower_or_digit(b) || b == b'-')
}

/// Whether `text` is `[a-z][a-z0-9]{0,11}`: short and without a hyphen, so that a signed name fits one DNS label.
fn is_short_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=12).contains(&bytes.len()) && bytes[0].is_ascii_lowercase() && bytes.iter().all(|&b| lower_or_digit(b))
}

text_id!(
    /// A device: the CN of its client certificate.
    DeviceId, "device id", "a-z, 0-9 and -, at most 63 characters, not starting with -", is_label
);
text_id!(
    /// A user: the CN of the user's client certificate.
    UserId, "user id", "a-z, 0-9 and -, at most 63 characters, not starting with -", is_label
);
text_id!(
    /// A group of users.
    GroupId, "group", "a-z, 0-9 and -, at most 63 characters, not starting with -", is_label
);
text_id!(
    /// A login account on a device: nothing that ssh, or a list of principals, could take for more.
    Account, "account", "letters, digits, _, . and -, at most 32, not starting with . or -",
    |text| (1..=32).contains(&text.len())
        && !text.starts_with(['-', '.'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
);
text_id!(
    /// A server: short enough for a signed name to fit one DNS label.
    ServerId, "server id", "a letter, then at most 11 of a-z and 0-9", is_short_label
);
text_id!(
    /// A router: one routerd with its HAProxy.
    RouterId, "router id", "a letter, then at most 11 of a-z and 0-9", is_short_label
);
text_id!(
    /// One run of a user's program: the last level of its reply topic.
    SessionId, "session id", "8 to 32 of a-z and 0-9",
    |text| (8..=32).contains(&text.len()) && text.bytes().all(lower_or_digit)
);
text_id!(
    /// One run of an agent or server, drawn at its start; tells two holders of one identity apart.
    InstanceId, "instance id", "8 to 32 of a-z and 0-9",
    |text| (8..=32).contains(&text.len()) && text.bytes().all(lower_or_digit)
);

/// A tunnel, and the request that made it: the asker's UUIDv7, so that a repeated request finds its first outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TunnelId(uuid::Uuid);

impl TunnelId {
    /// Draws a new id; its leading bits are the time, so that rows made together lie together.
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7())
    }

    /// The id as a UUID, for the database.
    pub fn uuid(self) -> uuid::Uuid {
        self.0
    }
}

impl From<uuid::Uuid> for TunnelId {
    fn from(id: uuid::Uuid) -> Self {
        Self(id)
    }
}

impl FromStr for TunnelId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let invalid = || IdError::new("tunnel id", text, "a UUID such as rssh ls prints");
        // The hyphenated form only: the parser would also take braces and URNs.
        if text.len() != 36 {
            return Err(invalid());
        }
        uuid::Uuid::try_parse(text).map(Self).map_err(|_| invalid())
    }
}

as_text!(TunnelId);

impl fmt::Display for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// A tunnel's claim counter, the fencing token: a claim with a higher epoch ends every session with a lower one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch that the next claim gets.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A device's or server's start and connect counter, which orders presence: a lower one never overwrites a higher.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation that follows.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Draws `N` random bytes as lower-case hexadecimal, for session and instance ids and MQTT client ids.
pub fn random_hex<const N: usize>() -> String {
    use ring::rand::SecureRandom as _;

    let mut bytes = [0_u8; N];
    // The system's generator cannot fail once it has been seeded at boot; without it no key could be made either.
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .expect("the system's random generator answers");
    crate::text::hex(&bytes)
}

impl SessionId {
    /// Draws a new id of 128 random bits.
    pub fn generate() -> Self {
        Self(random_hex::<16>())
    }
}

impl InstanceId {
    /// Draws a new id of 64 random bits.
    pub fn generate() -> Self {
        Self(random_hex::<8>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_take_their_grammar_and_nothing_else() {
        for good in ["a", "0", "device-42", &"x".repeat(63)] {
            assert!(good.parse::<DeviceId>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "A",
            "a_b",
            "a.b",
            "a b",
            "a\n",
            "a;b",
            "$(id)",
            "`id`",
            "-oProxyCommand=x",
            "%h",
            "../x",
            "a\0",
            "\u{202e}a",
            "\x1b[31m",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad:?}");
            assert!(bad.parse::<UserId>().is_err(), "{bad:?}");
            assert!(bad.parse::<ServerId>().is_err(), "{bad:?}");
        }
        assert!("s1".parse::<ServerId>().is_ok());
        assert!("1s".parse::<ServerId>().is_err());
        assert!("a".repeat(13).parse::<ServerId>().is_err());
    }

    #[test]
    fn an_account_is_one_principal_and_never_an_option() {
        for good in ["root", "pi", "svc_1", "a.b-c", "_apt"] {
            assert!(good.parse::<Account>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-l",
            ".x",
            "a,root",
            "a b",
            "a@b",
            "a\n",
            "%u",
            "*",
            &"a".repeat(33),
        ] {
            assert!(bad.parse::<Account>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_error_shows_the_text_without_its_control_characters() {
        let message = "a\x1b[31m\n".parse::<DeviceId>().unwrap_err().to_string();
        assert!(!message.contains(['\x1b', '\n']), "{message:?}");
        assert!(message.contains("device id"), "{message}");
    }

    #[test]
    fn a_tunnel_id_takes_only_the_hyphenated_form() {
        let id = TunnelId::generate();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(format!("{{{id}}}").parse::<TunnelId>().is_err());
        assert!(id.uuid().simple().to_string().parse::<TunnelId>().is_err());
    }
}
