//! Secrets that are shown once and kept as their SHA-256 only: 256 random bits need no slow hash.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::digest::{SHA256, digest};
use ring::rand::SecureRandom as _;
use serde::{Deserialize, Serialize};

/// What a token of the API lets its bearer do in the user's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Look: devices, tunnels, usage.
    Read,
    /// Open and close tunnels.
    Open,
}

impl Scope {
    const ALL: [Self; 2] = [Self::Read, Self::Open];

    /// Its name, as people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Open => "open",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.name() == text)
            .ok_or_else(|| "not a scope; use read or open".to_owned())
    }
}

/// What every token of the API begins with, so that a scanner for leaked secrets finds it.
const PREFIX: &str = "rssh_api_";

/// A bearer token of the API.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiToken([u8; 32]);

impl ApiToken {
    /// Draws a token.
    pub fn generate() -> Self {
        Self(random())
    }

    /// The token as it is shown, once.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", BASE64.encode(self.0))
    }

    /// What the database keeps.
    pub fn hash(&self) -> Vec<u8> {
        hash(&self.0)
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiToken(..)")
    }
}

impl FromStr for ApiToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_prefix(PREFIX)
            .and_then(|text| BASE64.decode(text).ok())
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| "not a token of the API".to_owned())
    }
}

/// The SHA-256 of a secret.
pub fn hash(secret: &[u8]) -> Vec<u8> {
    digest(&SHA256, secret).as_ref().to_vec()
}

/// Draws 256 random bits.
pub fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    // The system's generator cannot fail once it has been seeded at boot; without it no key could be made either.
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .expect("the system's random generator answers");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_never_printed() {
        let token = ApiToken::generate();
        assert_eq!(token.reveal().parse(), Ok(token.clone()));
        assert_eq!(format!("{token:?}"), "ApiToken(..)");
        for bad in ["", "rssh_api_", "rssh_api_AAAA", &token.reveal()[1..], "rssh_api_\u{0}"] {
            assert!(bad.parse::<ApiToken>().is_err(), "{bad:?}");
        }
    }
}
