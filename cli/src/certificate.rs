//! The user's SSH certificates: short-lived, one for each device, for a key that rssh makes itself.
//!
//! One that lives costs nothing but a look at its file; before it ends there is another. Users who have keys of their
//! own on a device lose nothing: whatever fails here, ssh goes on with those.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rssh_mqtt::Identity;
use rssh_mqtt::https::Client;
use rssh_proto::enrolment::{CertifySsh, SshCertified};
use rssh_proto::{DeviceId, FailureKind, HttpsUrl, UserId};
use serde::{Deserialize, Serialize};

use crate::args::HOSTS;
use crate::error::Error;
use crate::files;
use crate::host_keys::HostKeys;
use crate::profile::{self, Profile};

/// For how long a refusal is believed before the server is asked again.
const REFUSED: Duration = Duration::from_secs(30);
/// How long the server may take: a login waits for it.
const PATIENCE: Duration = Duration::from_secs(8);
/// The names of the keys that ssh tries by itself; it no longer does once one is named (ssh_config(5), IdentityFile).
const DEFAULTS: [&str; 5] = ["id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk"];

/// What is known of a device's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Whose it is, and from where: another profile has no use for it.
    user: UserId,
    url: HttpsUrl,
    /// This machine's clock when it came, in Unix seconds; it may be wrong, so only its distance counts.
    stored_at: u64,
    /// For how long it is used from then on, in seconds.
    for_s: u64,
    /// Why there is none, if so.
    refused: Option<String>,
}

impl Record {
    fn counts_at(&self, now: SystemTime) -> bool {
        let stored = UNIX_EPOCH + Duration::from_secs(self.stored_at);
        now.duration_since(stored)
            .is_ok_and(|age| age < Duration::from_secs(self.for_s))
    }
}

/// The certificates of one user.
pub struct Certificates<'a> {
    profile: &'a Profile,
    url: &'a HttpsUrl,
    directory: PathBuf,
}

impl<'a> Certificates<'a> {
    /// Those of a profile; none where it does not say who would certify, or there is no place to keep them.
    pub fn of(profile: &'a Profile) -> Option<Self> {
        Some(Self {
            profile,
            url: profile.url.as_ref()?,
            directory: directory()?,
        })
    }

    /// Sees to it that there is a certificate for a device that still lives for a while.
    ///
    /// # Errors
    /// When the server refuses, or cannot be asked.
    pub async fn ensure(&self, device: &DeviceId) -> Result<(), Error> {
        if let Some(record) = self.record(device) {
            return match record.refused {
                None => Ok(()),
                Some(reason) => Err(Error::new(FailureKind::Denied, reason)),
            };
        }
        match tokio::time::timeout(PATIENCE, self.renew(device)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::new(
                FailureKind::NobodyServing,
                format!("{} does not answer", self.url),
            )),
        }
    }

    /// The arguments that make ssh use the certificate for a device, besides the keys that it would use anyway.
    pub fn arguments(&self, device: &DeviceId) -> Vec<OsString> {
        let option = |name: &str, path: &Path| {
            let mut option = OsString::from(format!("{name}=\""));
            option.push(path);
            option.push("\"");
            ["-o".into(), option]
        };
        let mut arguments: Vec<OsString> = option("CertificateFile", &self.certificate(device)).into();
        for identity in identities(&self.directory) {
            arguments.extend(option("IdentityFile", &identity));
        }
        arguments
    }

    fn record(&self, device: &DeviceId) -> Option<Record> {
        let record: Record = serde_json::from_slice(&fs::read(self.record_file(device)).ok()?).ok()?;
        let ours = record.user == self.profile.user && record.url == *self.url;
        let there = record.refused.is_some() || self.certificate(device).exists();
        (ours && there && record.counts_at(SystemTime::now())).then_some(record)
    }

    async fn renew(&self, device: &DeviceId) -> Result<(), Error> {
        let local = |what: &dyn std::fmt::Display| Error::configuration(what.to_string());
        let asked = CertifySsh {
            device: device.clone(),
            public_key: self.public_key()?,
        };
        let identity = Identity::load(&self.profile.identity()).map_err(|error| local(&error))?;
        let client = Client::new(self.url.clone(), &identity)
            .map_err(|error| local(&error))?
            .by(self.profile.proxies.clone());
        let certified = match client.post::<SshCertified>("/v1/ssh-certificate", &asked).await {
            Ok(certified) => certified,
            Err(failure) => {
                if failure.kind == FailureKind::Denied {
                    self.keep(device, REFUSED.as_secs(), Some(failure.message().to_owned()))?;
                }
                return Err(failure.into());
            }
        };
        self.write(&self.certificate(device), certified.certificate.as_bytes())?;
        // By both names that ssh may be given.
        let other = self.directory.join(format!("{device}{HOSTS}-cert.pub"));
        self.write(&other, certified.certificate.as_bytes())?;
        // ssh asks for them next.
        HostKeys::of(self.profile).put(device, &certified.host_keys);
        self.keep(device, u64::from(certified.valid_s) / 3 * 2, None)
    }

    fn keep(&self, device: &DeviceId, for_s: u64, refused: Option<String>) -> Result<(), Error> {
        let record = Record {
            user: self.profile.user.clone(),
            url: self.url.clone(),
            stored_at: UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()),
            for_s,
            refused,
        };
        let text = serde_json::to_vec(&record).map_err(|error| Error::internal(error.to_string()))?;
        self.write(&self.record_file(device), &text)
    }

    fn write(&self, path: &Path, text: &[u8]) -> Result<(), Error> {
        files::replace(path, text, 0o600)
            .map_err(|error| Error::configuration(format!("cannot write {}: {error}", path.display())))
    }

    /// No device's id has a dot or an underscore.
    fn record_file(&self, device: &DeviceId) -> PathBuf {
        self.directory.join(format!("{device}.json"))
    }

    fn certificate(&self, device: &DeviceId) -> PathBuf {
        self.directory.join(format!("{device}-cert.pub"))
    }

    /// The public half of the key, which is made on the first call.
    fn public_key(&self) -> Result<String, Error> {
        let key = key(&self.directory);
        let public = key.with_extension("pub");
        if !public.exists() {
            self.make(&key)
                .map_err(|error| Error::configuration(format!("cannot make {}: {error}", key.display())))?;
        }
        let text = fs::read_to_string(&public)
            .map_err(|error| Error::configuration(format!("cannot read {}: {error}", public.display())))?;
        let words: Vec<&str> = text.split_whitespace().take(2).collect();
        Ok(words.join(" "))
    }

    /// Makes the key elsewhere first: of two at the same moment, the first stays.
    fn make(&self, key: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let new = self.directory.join(format!("new-{}", std::process::id()));
        let status = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "rssh", "-f"])
            .arg(&new)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()?;
        if !status.success() {
            return Err(io::Error::other("ssh-keygen failed"));
        }
        for (from, to) in [
            (new.clone(), key.to_owned()),
            (new.with_extension("pub"), key.with_extension("pub")),
        ] {
            match fs::hard_link(&from, &to) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => fs::remove_file(&from)?,
            }
        }
        Ok(())
    }
}

/// Where the key and its certificates are.
pub fn directory() -> Option<PathBuf> {
    let directories = profile::directories()?;
    let state = directories.state_dir().unwrap_or(directories.data_local_dir());
    Some(state.join("ssh"))
}

fn key(directory: &Path) -> PathBuf {
    directory.join("id_rssh")
}

/// The keys to offer: ours, and those that ssh would have tried without being told of any.
pub fn identities(directory: &Path) -> Vec<PathBuf> {
    let own = home().map(|home| home.join(".ssh")).unwrap_or_default();
    let defaults = DEFAULTS.iter().map(|name| own.join(name)).filter(|path| path.exists());
    std::iter::once(key(directory)).chain(defaults).collect()
}

/// The user's home as ssh sees it: by the account, whatever HOME says.
pub fn home() -> Option<PathBuf> {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::current()).ok().flatten();
    user.map(|user| user.dir)
}

/// The arguments with which ssh logs in to a device by a certificate; none where there is none to be had.
pub async fn arguments(profile: &Profile, device: &DeviceId) -> Vec<OsString> {
    let Some(certificates) = Certificates::of(profile) else {
        return Vec::new();
    };
    match certificates.ensure(device).await {
        Ok(()) => certificates.arguments(device),
        Err(error) => {
            tracing::debug!(%error, %device, "no certificate; ssh goes on with the user's own keys");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_for_its_time_even_by_a_wrong_clock() {
        let record = Record {
            user: "alice".parse().unwrap(),
            url: "https://127.0.0.1".parse().unwrap(),
            stored_at: 100,
            for_s: 60,
            refused: None,
        };
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(record.counts_at(at(100)) && record.counts_at(at(159)));
        assert!(!record.counts_at(at(160)), "its time is over");
        assert!(!record.counts_at(at(99)), "the clock was set back");
    }
}
