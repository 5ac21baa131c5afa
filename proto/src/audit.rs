//! What is written down of what happens, as its writers hand it to the database.
//!
//! The database keeps one chain of hashes per writer (`audit_append` in the migrations). User and source address are
//! kept apart from the detail, since they can be forgotten: no detail may name either.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::id::{DeviceId, TunnelId, UserId};
use crate::text::sanitize;

/// The longest text in a detail, in characters.
const TEXT_LIMIT: usize = 200;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Microseconds since 1970.
    pub at_us: i64,
    /// What it is, in one word: `request`, `claim`, `connection`, `request-refused`.
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<TunnelId>,
    /// The address that it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    pub detail: Value,
}

impl Event {
    /// An event of this moment.
    pub fn now(kind: &str) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            at_us: i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            kind: kind.to_owned(),
            user: None,
            device: None,
            tunnel: None,
            source: None,
            detail: Value::Object(serde_json::Map::new()),
        }
    }

    /// The user it tells of.
    #[must_use]
    pub fn user(mut self, user: &UserId) -> Self {
        self.user = Some(user.clone());
        self
    }

    /// The device it tells of.
    #[must_use]
    pub fn device(mut self, device: &DeviceId) -> Self {
        self.device = Some(device.clone());
        self
    }

    /// The tunnel it tells of.
    #[must_use]
    pub fn tunnel(mut self, tunnel: TunnelId) -> Self {
        self.tunnel = Some(tunnel);
        self
    }

    /// The address it came from.
    #[must_use]
    pub fn source(mut self, source: &str) -> Self {
        self.source = Some(sanitize(source, TEXT_LIMIT));
        self
    }

    /// One more thing about it; texts are made safe for a terminal and a line.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        let value = match value.into() {
            Value::String(text) => Value::String(sanitize(&text, TEXT_LIMIT)),
            other => other,
        };
        if let Value::Object(detail) = &mut self.detail {
            detail.insert(key.to_owned(), value);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_carries_no_control_characters_and_no_more_than_it_says() {
        let event = Event::now("x")
            .with("text", "a\u{1b}[2J\n\0\u{202e}")
            .with("bytes", 7)
            .source("1.2.3.4\n");
        let text = serde_json::to_string(&event).unwrap();
        assert!(
            !text.contains(['\u{1b}', '\n', '\u{202e}']) && !text.contains("\\u"),
            "{text}"
        );
        assert!(!text.contains("\"user\""), "{text}");
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }
}
