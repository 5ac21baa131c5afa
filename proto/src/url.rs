//! Where an installation answers HTTPS.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::target::HostPort;
use crate::text::quoted;

/// Why a text is not the address of an installation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the address of an installation: {0}; use https://HOST or https://HOST:PORT")]
pub struct UrlError(String);

/// `https://HOST[:PORT]`: a scheme, a host and nothing more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HttpsUrl(HostPort);

impl HttpsUrl {
    /// The host and port.
    pub fn address(&self) -> &HostPort {
        &self.0
    }

    /// The host as certificates name it, without brackets.
    pub fn host(&self) -> String {
        self.0.host()
    }
}

impl FromStr for HttpsUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let error = || UrlError(quoted(text, 80));
        let rest = text.strip_prefix("https://").ok_or_else(error)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        // An IPv6 address has colons of its own, within brackets.
        let has_port = rest
            .rsplit_once(':')
            .is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
        let address = if has_port {
            rest.parse()
        } else {
            format!("{rest}:443").parse()
        };
        address.map(Self).map_err(|_| error())
    }
}

as_text!(HttpsUrl);

impl fmt::Display for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_scheme_a_host_and_a_port() {
        for (text, shown) in [
            ("https://rssh.example.com", "https://rssh.example.com:443"),
            ("https://rssh.example.com:8443/", "https://rssh.example.com:8443"),
            ("https://198.51.100.1:8443", "https://198.51.100.1:8443"),
            ("https://[2001:db8::1]", "https://[2001:db8::1]:443"),
        ] {
            assert_eq!(text.parse::<HttpsUrl>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "http://a",
            "https://",
            "https://a/b",
            "https://u@a",
            "https://a:0",
            "https://a b",
            "https://-a",
        ] {
            assert!(bad.parse::<HttpsUrl>().is_err(), "{bad}");
        }
    }
}
