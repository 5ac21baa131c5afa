//! URLs that name several hosts: `scheme://user@one:1,two:2/path?key=value`.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;

/// A store's URL in a configuration. It may hold a password, and is not printed.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct StoreUrl(String);

impl StoreUrl {
    /// The URL, password and all.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for StoreUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreUrl(..)")
    }
}

/// Why a store's URL cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    #[error("it has no scheme; write postgres://… or redis://…")]
    Scheme,
    #[error("it names no host")]
    NoHost,
    #[error("it names no service; write redis+sentinel://HOST,HOST/SERVICE")]
    NoService,
    #[error("not a port: {0}")]
    Port(String),
    #[error("target_session_attrs={0} is of no use here; use read-write")]
    SessionAttrs(String),
    #[error("#insecure would take any server for Redis; name its CA instead (redis.ca)")]
    Insecure,
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
    #[error(transparent)]
    Redis(#[from] redis::RedisError),
}

/// Where the hosts stand in a URL.
///
/// # Errors
/// When there is no scheme or no host.
pub(crate) fn hosts(url: &str) -> Result<Range<usize>, UrlError> {
    let start = url.find("://").ok_or(UrlError::Scheme)? + 3;
    let end = url[start..].find(['/', '?']).map_or(url.len(), |at| start + at);
    let start = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
    Ok(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_stand_between_the_user_and_the_path() {
        for (url, expected) in [
            ("postgres://rssh@a:1,b:2/rssh?x=y", "a:1,b:2"),
            ("postgres://u:p%40@a", "a"),
            ("postgres://u@/db?host=/run", ""),
            ("redis+sentinel://a,b,[::1]:3/m", "a,b,[::1]:3"),
        ] {
            assert_eq!(&url[hosts(url).unwrap()], expected, "{url}");
        }
        assert!(hosts("nothing").is_err());
    }

    #[test]
    fn a_url_with_a_password_is_not_printed() {
        let url = StoreUrl::from("postgres://rssh:secret@db/rssh".to_owned());
        assert!(!format!("{url:?}").contains("secret"));
    }
}
