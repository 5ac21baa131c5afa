//! What a check of `doctor` found, in every program that has one.

use std::fmt;

use serde::Serialize;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    Ok,
    /// It works, but not for long or not as well as it could.
    Warn,
    Fail,
}

/// What a check found; also what `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub status: Status,
    pub detail: String,
    pub remedy: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self::new(check, Status::Ok, detail, None)
    }

    /// It could be better.
    pub fn warn(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Status::Warn, detail, Some(remedy.into()))
    }

    /// It does not work.
    pub fn fail(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Status::Fail, detail, Some(remedy.into()))
    }

    /// It does not work; the message names the remedy after its last semicolon, as our errors do.
    pub fn of_error(check: &'static str, message: &str) -> Self {
        match message.rsplit_once("; ") {
            Some((detail, remedy)) => Self::fail(check, detail, remedy),
            None => Self::new(check, Status::Fail, message, None),
        }
    }

    /// The same, with a remedy for a message that names none.
    pub fn of_error_or(check: &'static str, message: &str, remedy: &str) -> Self {
        let mut finding = Self::of_error(check, message);
        finding.remedy.get_or_insert_with(|| remedy.to_owned());
        finding
    }

    fn new(check: &'static str, status: Status, detail: impl Into<String>, remedy: Option<String>) -> Self {
        Self {
            check,
            status,
            detail: detail.into(),
            remedy,
        }
    }
}

/// For a person: what was found and, on a second line, the remedy.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = match self.status {
            Status::Ok => "ok  ",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        write!(f, "{status}  {:14}  {}", self.check, self.detail)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n{:20}  remedy: {remedy}", ""),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_brings_its_remedy_along() {
        let finding = Finding::of_error("x", "no profile; at all; make one");
        assert_eq!(finding.remedy.as_deref(), Some("make one"));
        assert_eq!(finding.detail, "no profile; at all");
        assert_eq!(Finding::of_error("x", "no remedy").remedy, None);
        let other = |message| Finding::of_error_or("x", message, "wait").remedy.unwrap();
        assert_eq!(
            (other("no remedy"), other("no profile; make one")),
            ("wait".to_owned(), "make one".to_owned())
        );
    }

    #[test]
    fn a_finding_is_told_with_its_remedy_below() {
        let told = Finding::warn("dns", "it is slow", "ask why").to_string();
        assert_eq!(
            told,
            "warn  dns             it is slow\n                      remedy: ask why"
        );
    }
}
