//! Tags: what a device is for, or where it stands, in words of its operator: `site=berlin`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::text::quoted;

/// The longest key and value, in bytes.
const LIMIT: usize = 63;

/// The tags of one device: each key has one value.
pub type Tags = BTreeMap<String, String>;

/// Why a text is not a tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a tag: {0}; use KEY=VALUE of letters, digits, ., - and _, at most {LIMIT} each, as in site=berlin")]
pub struct TagError(String);

/// One tag; also the wish that a device has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag {
    key: String,
    value: String,
}

impl Tag {
    /// What it says something about, such as `site`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What it says, such as `berlin`.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Whether it is one of these.
    pub fn is_in(&self, tags: &Tags) -> bool {
        tags.get(&self.key) == Some(&self.value)
    }
}

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, TagError> {
        let valid = |word: &str| {
            (1..=LIMIT).contains(&word.len())
                && word.as_bytes()[0].is_ascii_alphanumeric()
                && word
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
        match text.split_once('=') {
            Some((key, value)) if valid(key) && valid(value) => Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err(TagError(quoted(text, 80))),
        }
    }
}

as_text!(Tag);

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}={}", self.key, self.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_a_key_and_a_value_and_nothing_else() {
        let tag: Tag = "site=berlin".parse().unwrap();
        assert_eq!(
            (tag.key(), tag.value(), tag.to_string().as_str()),
            ("site", "berlin", "site=berlin")
        );
        let tags = Tags::from([("site".into(), "berlin".into())]);
        assert!(tag.is_in(&tags));
        assert!(!"site=paris".parse::<Tag>().unwrap().is_in(&tags));
        assert!(!"rack=berlin".parse::<Tag>().unwrap().is_in(&tags));
        let long = format!("a={}", "b".repeat(64));
        for bad in [
            "",
            "=",
            "a",
            "a=",
            "=b",
            "a=b=c",
            "a=b c",
            "-a=b",
            "a=\u{1b}",
            "a=$(x)",
            "a=b;c",
            "ä=b",
            long.as_str(),
        ] {
            assert!(bad.parse::<Tag>().is_err(), "{bad:?}");
        }
    }
}
