//! Named failures: what went wrong, in one line for a person and one number for a script.

use serde::{Deserialize, Serialize};

use crate::text::sanitize;

/// The longest failure message on the wire, in characters.
pub const MESSAGE_LIMIT: usize = 300;

/// Defines the kinds with their exit codes in one table, so that neither can be forgotten.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $code:literal,)*) => {
        /// What kind of failure ended a request; each has its own exit code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum FailureKind {
            $($(#[$doc])* $kind,)*
        }

        impl FailureKind {
            /// Every kind, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The exit code of a program that ends with this failure (sysexits.h where one fits).
            pub const fn exit_code(self) -> u8 {
                match self {
                    $(Self::$kind => $code,)*
                }
            }
        }
    };
}

kinds! {
    /// The command line or request is malformed (EX_USAGE).
    BadRequest = 64,
    /// No device of that name is registered (EX_NOHOST).
    UnknownDevice = 68,
    /// No server took the request, or the broker or load balancer cannot be reached (EX_UNAVAILABLE).
    NobodyServing = 69,
    /// A fault of rssh itself (EX_SOFTWARE).
    Internal = 70,
    /// A limit is reached or a store is away; the same request may succeed later (EX_TEMPFAIL).
    Busy = 75,
    /// The user may not do this (EX_NOPERM).
    Denied = 77,
    /// The profile or configuration is missing or wrong (EX_CONFIG).
    Configuration = 78,
    /// The device is not connected.
    Offline = 80,
    /// The device is connected, but does not answer.
    NotAnswering = 81,
    /// The device's own list of targets does not have this one.
    TargetNotAllowed = 82,
    /// The device may go there, but nothing answers at the target.
    TargetRefused = 83,
    /// The deadline passed.
    Deadline = 84,
    /// The signed name was refused at the load balancer: expired, forged or another user's.
    NameRefused = 85,
    /// The broker or load balancer refused the client certificate, or has a wrong one itself.
    WrongCertificate = 86,
    /// The device holds as many tunnels as it may.
    DeviceLimit = 87,
    /// The device's ssh could not connect, log in or forward.
    SshFailed = 88,
    /// There is no such tunnel, or it is closed.
    UnknownTunnel = 89,
    /// Two agents use the identity of one device.
    Quarantined = 90,
}

/// A failure as it travels: its kind, and a sentence that names the object and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    #[serde(deserialize_with = "known")]
    pub kind: FailureKind,
    #[serde(deserialize_with = "sanitized")]
    message: String,
    /// After how many seconds the same request may succeed, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
}

impl Failure {
    /// A failure; the message is made safe for a terminal and cut to [`MESSAGE_LIMIT`].
    pub fn new(kind: FailureKind, message: impl AsRef<str>) -> Self {
        Self {
            kind,
            message: sanitize(message.as_ref(), MESSAGE_LIMIT),
            retry_after_s: None,
        }
    }

    /// The failure that a limit is reached: the same request may succeed after `seconds`.
    pub fn busy(message: impl AsRef<str>, seconds: u32) -> Self {
        Self {
            retry_after_s: Some(seconds),
            ..Self::new(FailureKind::Busy, message)
        }
    }

    /// The message, safe for a terminal.
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// A kind that a later version has added is a fault like any other here: its message tells what it is.
fn known<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<FailureKind, D::Error> {
    use serde::de::IntoDeserializer as _;
    use serde::de::value::Error;
    let name = String::deserialize(deserializer)?;
    let kind: Result<_, Error> = FailureKind::deserialize(name.as_str().into_deserializer());
    Ok(kind.unwrap_or(FailureKind::Internal))
}

fn sanitized<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|text| sanitize(&text, MESSAGE_LIMIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_kinds_share_an_exit_code_and_none_looks_like_success_or_a_signal() {
        let mut codes: Vec<u8> = FailureKind::ALL.iter().map(|kind| kind.exit_code()).collect();
        assert!(codes.iter().all(|code| (64..128).contains(code)));
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), FailureKind::ALL.len());
    }

    #[test]
    fn a_message_from_a_device_cannot_steer_a_terminal() {
        let failure: Failure = serde_json::from_str(r#"{"kind":"offline","message":"a\u001b[2Jb"}"#).unwrap();
        assert_eq!(failure.message(), "a?[2Jb");
    }
}
