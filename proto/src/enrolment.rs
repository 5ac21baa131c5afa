//! Enrolment over HTTPS: what a new device, user, server or router sends, and what it gets.
//!
//! Keys are made where they are used: a request for a certificate is a CSR in PEM form, whose subject means nothing.
//! Who it is for, the token says.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};

use crate::id::{Account, DeviceId, RouterId, ServerId, UserId};
use crate::target::HostPort;
use crate::url::HttpsUrl;

/// What every token begins with, so that a scanner for leaked secrets finds it.
const PREFIX: &str = "rssh_enrol_";
/// 32 bytes in base64 without padding.
const WORD: usize = 43;

/// Why a text is not a token. It does not repeat the text: that may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an enrolment token; it begins with {PREFIX} and has {} characters", PREFIX.len() + 2 * WORD + 1)]
pub struct TokenError;

/// A one-time token: a secret for the server, and the SHA-256 of the servers' CA for the client, by which it knows the
/// server before it knows anything else.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolmentToken {
    pub secret: [u8; 32],
    /// The SHA-256 of the CA's certificate in DER form.
    pub authority: [u8; 32],
}

impl EnrolmentToken {
    /// The token as it is shown, once.
    pub fn reveal(&self) -> String {
        format!(
            "{PREFIX}{}.{}",
            BASE64.encode(self.secret),
            BASE64.encode(self.authority)
        )
    }

    /// The secret alone, as it is sent.
    pub fn secret(&self) -> Secret {
        Secret(BASE64.encode(self.secret))
    }
}

impl fmt::Debug for EnrolmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnrolmentToken(..)")
    }
}

impl FromStr for EnrolmentToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let word = |word: &str| BASE64.decode(word).ok()?.try_into().ok();
        let read = || {
            let (secret, authority) = text.strip_prefix(PREFIX)?.split_once('.')?;
            Some(Self {
                secret: word(secret)?,
                authority: word(authority)?,
            })
        };
        read().ok_or(TokenError)
    }
}

/// The secret of a token on its way to the server.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Its bytes; `None` when it is not the secret of a token.
    pub fn bytes(&self) -> Option<[u8; 32]> {
        BASE64.decode(&self.0).ok()?.try_into().ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// `POST /v1/enrol/device`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolDevice {
    pub token: Secret,
    /// Its name for itself; a token that names the device has the last word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    pub csr: String,
    /// The public key that its ssh logs in with: `TYPE BASE64`.
    pub ssh_key: String,
    /// The public host keys of its own sshd, in the same form.
    #[serde(default)]
    pub host_keys: Vec<String>,
}

/// What a device gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceEnrolled {
    pub device: DeviceId,
    pub certificate: String,
    pub servers_ca: String,
    /// What the servers' host keys are checked against.
    pub known_hosts: String,
    /// The CA of users' SSH certificates: `TYPE BASE64`.
    pub user_ca: String,
    pub brokers: Vec<HostPort>,
    pub url: HttpsUrl,
}

/// `POST /v1/enrol/user`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolUser {
    pub token: Secret,
    pub csr: String,
}

/// What a user gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UserEnrolled {
    pub user: UserId,
    pub certificate: String,
    pub servers_ca: String,
    pub brokers: Vec<HostPort>,
    pub lb: Vec<HostPort>,
    pub url: HttpsUrl,
}

/// `POST /v1/enrol/server`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolServer {
    pub token: Secret,
    pub csr: String,
    /// For the certificate that it answers HTTPS with.
    pub https_csr: String,
    /// The public key of its sshd for devices: `TYPE BASE64`.
    pub host_key: String,
}

/// What a server gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerEnrolled {
    pub server: ServerId,
    pub certificate: String,
    pub https_certificate: String,
    /// OpenSSH's form of a certificate.
    pub host_certificate: String,
    /// The key that it signs names with, in base64.
    pub name_key: String,
    pub trust: Trust,
}

/// The public halves of the authorities.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Trust {
    pub servers_ca: String,
    pub devices_ca: String,
    pub users_ca: String,
    pub known_hosts: String,
    pub user_ca: String,
}

/// `POST /v1/enrol/router`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolRouter {
    pub token: Secret,
    pub csr: String,
}

/// What a router gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RouterEnrolled {
    pub router: RouterId,
    pub certificate: String,
    /// The master of the name keys, in base64.
    pub name_master: String,
    pub trust: Trust,
}

/// `POST /v1/renew`, with the certificate that is to be renewed; `POST /v1/recover` sends one too.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renew {
    pub csr: String,
    /// A server's, for its certificate for HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https_csr: Option<String>,
}

/// What comes back.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Renewed {
    pub certificate: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https_certificate: Option<String>,
    /// The authorities may have changed too.
    pub trust: Trust,
}

/// What `POST /v1/server/name-key` answers to a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NameKeyNow {
    /// The key that it signs names with from now on, in base64.
    pub name_key: String,
}

/// What `POST /v1/router/name-masters` answers to a router.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NameMastersNow {
    /// The master of the name keys, in base64.
    pub current: String,
    /// The one before, while names by its keys are about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
}

/// `POST /v1/recover/challenge`: a device whose certificate has expired still has its SSH key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChallengeRequest {
    pub device: DeviceId,
}

/// What it has to sign, together with its request: [`recovery_text`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Challenge {
    pub challenge: String,
}

/// `POST /v1/recover`, on the connection that the challenge came by.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recover {
    pub device: DeviceId,
    pub csr: String,
    pub challenge: String,
    /// By `ssh-keygen -Y sign -n rssh-recover` over [`recovery_text`].
    pub signature: String,
}

/// The namespace of that signature (ssh-keygen(1), `-n`).
pub const RECOVERY_NAMESPACE: &str = "rssh-recover";

/// What a device signs to have its certificate back.
pub fn recovery_text(device: &DeviceId, challenge: &str, csr: &str) -> String {
    format!("rssh recover\n{device}\n{challenge}\n{csr}")
}

/// `POST /v1/device/ssh-key`: the key that the device's ssh logs in with from now on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSshKey {
    pub ssh_key: String,
    /// The public host keys of its own sshd; empty leaves them as they are.
    #[serde(default)]
    pub host_keys: Vec<String>,
}

/// `POST /v1/ssh-certificate`: a user's, for one device.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertifySsh {
    pub device: DeviceId,
    /// `TYPE BASE64`
    pub public_key: String,
}

/// What the user gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SshCertified {
    /// OpenSSH's form of a certificate.
    pub certificate: String,
    /// The accounts that it logs in to, on that device.
    pub accounts: Vec<Account>,
    /// For how long it is good from now on, in seconds.
    pub valid_s: u32,
    /// The host keys of the device's own sshd, as it told them.
    pub host_keys: Vec<String>,
}

/// `POST /v1/device/authorized-keys`: a device's whose own sshd knows no certificates.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorizedKeysRequest {
    /// The accounts that users may log in to by the keys that they are told.
    pub accounts: Vec<Account>,
}

/// What the device gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuthorizedKeys {
    pub keys: Vec<AuthorizedKey>,
}

/// A key that logs in to one account of the device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuthorizedKey {
    pub account: Account,
    pub user: UserId,
    /// `TYPE BASE64`
    pub public_key: String,
    /// For how long it is good from now on, in seconds.
    pub valid_s: u32,
}

/// The principal of a user's SSH certificate that stands for an account of one device.
pub fn principal(account: impl fmt::Display, device: &DeviceId) -> String {
    format!("{account}@{device}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_never_printed() {
        let token = EnrolmentToken {
            secret: [7; 32],
            authority: [9; 32],
        };
        let text = token.reveal();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(token.secret().bytes(), Some([7; 32]));
        let shown = format!("{token:?} {:?} {}", token.secret(), TokenError);
        assert!(!shown.contains("Bwc"), "{shown}");
        for bad in [
            "",
            &text[1..],
            &text[..text.len() - 1],
            &text.replace('.', "-"),
            &format!("{text}\n"),
        ] {
            assert_eq!(bad.parse::<EnrolmentToken>(), Err(TokenError), "{bad:?}");
        }
    }
}
