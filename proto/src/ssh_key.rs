//! SSH public keys: one line of two words, and nothing else of what came in.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::text::quoted;

/// Why a text is not an SSH public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an SSH public key: {0}")]
pub struct NotAKey(String);

/// An SSH public key as one `type base64` pair, checked and encoded anew: nothing else of the input survives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PublicKey(String);

impl PublicKey {
    /// The key as `type base64`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The fingerprint as ssh-keygen(1) prints it.
    pub fn fingerprint(&self) -> String {
        let blob = self.0.split(' ').nth(1).and_then(|key| BASE64.decode(key).ok());
        let sum = ring::digest::digest(&ring::digest::SHA256, &blob.unwrap_or_default());
        format!("SHA256:{}", BASE64.encode(sum).trim_end_matches('='))
    }

    /// Whether it is a key of a type that logs in by itself: no certificate, and nothing unheard of.
    pub fn is_plain(&self) -> bool {
        let kind = self.0.split(' ').next().unwrap_or_default();
        [
            "ssh-ed25519",
            "ssh-rsa",
            "ecdsa-sha2-nistp256",
            "ecdsa-sha2-nistp384",
            "ecdsa-sha2-nistp521",
            "sk-ssh-ed25519@openssh.com",
            "sk-ecdsa-sha2-nistp256@openssh.com",
        ]
        .contains(&kind)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PublicKey {
    type Err = NotAKey;

    /// Reads `type base64 [comment]`. The type must stand in the key itself too (RFC 4253, 6.6).
    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let error = || NotAKey(quoted(text, 60));
        if text.contains(['\n', '\r', '\0']) {
            return Err(error());
        }
        let mut words = text.split(' ');
        let (kind, key) = (words.next().ok_or_else(error)?, words.next().ok_or_else(error)?);
        let blob = BASE64.decode(key).map_err(|_| error())?;
        let length: [u8; 4] = blob
            .get(..4)
            .and_then(|length| length.try_into().ok())
            .ok_or_else(error)?;
        let named = blob.get(4..4 + u32::from_be_bytes(length) as usize);
        if kind.is_empty() || named != Some(kind.as_bytes()) {
            return Err(error());
        }
        Ok(Self(format!("{kind} {}", BASE64.encode(blob))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF3b4OqFP4OqF3b4OqFP4OqF3b4OqFP4OqF3b4OqFP4O";

    #[test]
    fn a_key_loses_its_comment_and_keeps_its_type() {
        let key: PublicKey = format!("{KEY} someone@somewhere").parse().unwrap();
        assert_eq!(key.as_str(), KEY);
    }

    #[test]
    fn a_comment_cannot_carry_a_second_line_and_a_type_cannot_lie() {
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 !!!!",
            "ssh-ed25519 AAAA",
            &KEY.replace("ssh-ed25519 ", "ssh-rsa "),
            &format!("{KEY} x\nssh-rsa AAAA"),
            &format!("command=\"sh\" {KEY}"),
        ] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad:?}");
        }
    }
}
