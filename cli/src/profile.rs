//! The profile: who the user is, where the brokers and the load balancer are, and where the identity lies.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use directories::ProjectDirs;
use rssh_mqtt::proxy::{Choice, Proxies, ProxyError};
use rssh_mqtt::{Identity, IdentityError, IdentityFiles};
use rssh_proto::{HostPort, HttpsUrl, UserId};
use serde::Deserialize;

use crate::error::Error;

/// Why there is no usable profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("there is no home directory to look for a profile in; set HOME, or name one with --profile")]
    Homeless,
    #[error(
        "no profile at {0}; ask your administrator for a token, and make one with: rssh login URL (or, without a token, with rssh init)"
    )]
    Missing(PathBuf),
    #[error("cannot read the profile {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the profile {path} is not valid: {reason}")]
    Invalid { path: PathBuf, reason: String },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
}

impl From<ProfileError> for Error {
    fn from(error: ProfileError) -> Self {
        Self::configuration(error.to_string())
    }
}

/// The program's directories, after the XDG base directory specification.
pub fn directories() -> Option<ProjectDirs> {
    ProjectDirs::from("", "", "rssh")
}

/// Where the profile is: `--profile`, else `RSSH_PROFILE`, else `profile.toml` in the configuration directory.
///
/// # Errors
/// When neither is given and the user has no home directory.
pub fn path(given: Option<&Path>) -> Result<PathBuf, ProfileError> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    if let Some(path) = env::var_os("RSSH_PROFILE").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let directories = directories().ok_or(ProfileError::Homeless)?;
    Ok(directories.config_dir().join("profile.toml"))
}

/// `profile.toml`. Paths in it are relative to its directory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Profile {
    pub user: UserId,
    /// The MQTT brokers, tried in turn.
    pub brokers: Vec<HostPort>,
    /// Where the load balancers take users' connections: one, or several that lead to the same.
    pub lb: Balancers,
    /// Where the installation answers HTTPS.
    #[serde(default)]
    pub url: Option<HttpsUrl>,
    /// Where requests go instead of the brokers.
    #[serde(skip)]
    pub api: Option<HttpsUrl>,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    proxy: Option<Choice>,
    proxy_password_file: Option<PathBuf>,
    /// Which hosts are reached through which HTTP proxy.
    #[serde(skip)]
    pub proxies: Proxies,
}

/// Load balancers that lead to the same servers, tried in turn: `"HOST:PORT"`, or a list of such.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "OneOrMore")]
pub struct Balancers(Vec<HostPort>);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl TryFrom<OneOrMore> for Balancers {
    type Error = String;

    fn try_from(named: OneOrMore) -> Result<Self, String> {
        let list = match named {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(list) => list,
        };
        if list.is_empty() {
            return Err("lb is empty; name at least one HOST:PORT".to_owned());
        }
        let parsed = list.iter().map(|text| text.parse().map_err(|error| format!("{error}")));
        parsed.collect::<Result<_, String>>().map(Self)
    }
}

impl From<HostPort> for Balancers {
    fn from(one: HostPort) -> Self {
        Self(vec![one])
    }
}

impl Balancers {
    /// In the order of the profile.
    pub fn all(&self) -> &[HostPort] {
        &self.0
    }
}

impl fmt::Display for Balancers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, balancer) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{balancer}")?;
        }
        Ok(())
    }
}

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// When it is missing or wrong.
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let text = fs::read_to_string(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ProfileError::Missing(path.to_owned()),
            _ => ProfileError::Read {
                path: path.to_owned(),
                source,
            },
        })?;
        let mut profile = Self::parse(&text).map_err(|reason| ProfileError::Invalid {
            path: path.to_owned(),
            reason,
        })?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let files = [&mut profile.ca, &mut profile.cert, &mut profile.key];
        for file in files.into_iter().chain(&mut profile.proxy_password_file) {
            // Joining an absolute path gives that path.
            *file = directory.join(&file);
        }
        profile.proxies = Proxies::of_process(profile.proxy.as_ref(), profile.proxy_password_file.as_deref())?;
        Ok(profile)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let profile: Self = toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
            format!("line {line}: {}", error.message())
        })?;
        if profile.brokers.is_empty() {
            return Err("brokers is empty; name at least one HOST:PORT".to_owned());
        }
        Ok(profile)
    }

    /// Sends requests by HTTPS from now on.
    ///
    /// # Errors
    /// When the profile has no `url`.
    pub fn go_by_http(&mut self) -> Result<(), Error> {
        if self.url.is_none() {
            return Err(Error::configuration(
                "the profile has no url, such as url = \"https://rssh.example.com\"; add it, or leave --via http out",
            ));
        }
        self.api.clone_from(&self.url);
        Ok(())
    }

    /// The TLS client for the broker and the load balancer alike.
    ///
    /// # Errors
    /// When a file is missing, exposed or wrong.
    pub fn tls(&self) -> Result<Arc<rustls::ClientConfig>, ProfileError> {
        Ok(Arc::new(Identity::load(&self.identity())?.client_config()?))
    }

    /// Where the identity lies.
    pub fn identity(&self) -> IdentityFiles {
        IdentityFiles {
            ca: self.ca.clone(),
            cert: self.cert.clone(),
            key: self.key.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        user = "alice"
        brokers = ["127.0.0.1:8883"]
        lb = "127.0.0.1:8443"
        ca = "ca.pem"
        cert = "user.pem"
        key = "/keys/user.key"
    "#;

    #[test]
    fn relative_paths_are_the_profiles_neighbours() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("profile.toml");
        fs::write(&path, GOOD).unwrap();
        let profile = Profile::load(&path).unwrap();
        assert_eq!(profile.cert, directory.path().join("user.pem"));
        assert_eq!(profile.key, Path::new("/keys/user.key"));
    }

    #[test]
    fn a_profile_names_one_load_balancer_or_several() {
        let lb = |text: &str| Profile::parse(&GOOD.replace("\"127.0.0.1:8443\"", text)).map(|profile| profile.lb);
        assert_eq!(lb("\"a:1\"").unwrap().to_string(), "a:1");
        assert_eq!(lb("[\"a:1\", \"b:2\"]").unwrap().to_string(), "a:1,b:2");
        for bad in ["[]", "\"a\"", "[\"a:1\", \"b\"]"] {
            assert!(lb(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_missing_profile_says_how_to_make_one() {
        let error = Profile::load(Path::new("/nowhere/profile.toml"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nowhere/profile.toml") && error.contains("rssh init"),
            "{error}"
        );
    }

    #[test]
    fn a_wrong_profile_is_named_with_its_line() {
        for (bad, line, what) in [
            (GOOD.replace("user =", "uzer ="), 2, "uzer"),
            (GOOD.replace("alice", "Alice"), 2, "user id"),
            (GOOD.replace("\"127.0.0.1:8883\"", ""), 0, "brokers is empty"),
            (GOOD.replace(":8443", ""), 4, "HOST:PORT"),
            (format!("{GOOD}\nproxy = \"socks5://p:1\""), 9, "not a proxy"),
        ] {
            let reason = Profile::parse(&bad).unwrap_err();
            assert!(reason.contains(what), "{reason}");
            assert!(line == 0 || reason.starts_with(&format!("line {line}:")), "{reason}");
        }
    }
}
