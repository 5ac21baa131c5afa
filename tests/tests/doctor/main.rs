//! The doctors of the daemons: a sound lab has no findings, and what is planted in it is named, each with its remedy.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod routerd;
mod serverd;

use std::fs;
use std::num::NonZeroU32;
use std::sync::Arc;

use rssh_lab::parts::redis;
use rssh_lab::place::Place;
use rssh_lab::process::{PATIENTLY, wait};
use rssh_lab::testing::{all_of, shared};
use rssh_lab::{Lab, Options};
use serde::Deserialize;

/// The lab that both doctors examine: what one plants, the other is not to see, so each takes it alone.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn lab() -> Arc<Lab> {
    let options = Options {
        servers: NonZeroU32::new(1).unwrap(),
        devices: 1,
        users: 1,
        ..Options::default()
    };
    shared(options, |_| ())
}

/// One line of `--json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Finding {
    check: String,
    status: String,
    detail: String,
    remedy: Option<String>,
}

/// A daemon, as its doctor is asked.
struct Doctor<'a> {
    lab: &'a Lab,
    place: Place,
    program: &'static str,
    /// Its configuration, relative to the lab's directory.
    config: &'static str,
    /// What comes before the command.
    before: &'a [&'a str],
}

impl Doctor<'_> {
    /// Examines with a configuration in which texts are replaced; returns the findings, sound ones left out.
    #[track_caller]
    fn findings(&self, changes: &[(&str, &str)]) -> Vec<Finding> {
        let mut text = fs::read_to_string(self.lab.dir().join(self.config)).unwrap();
        for (from, to) in changes {
            assert!(text.contains(from), "{from} is not in {text}");
            text = text.replacen(from, to, 1);
        }
        let planted = format!("{}.planted", self.config);
        rssh_lab::files::write_secret(&self.lab.dir().join(&planted), text).unwrap();
        let (program, config) = (self.lab.programs().path(self.program), self.lab.dir().inside(&planted));
        let argv = [
            self.before,
            &[program.to_str().unwrap(), "doctor", "--json", "--config", &config],
        ]
        .concat();
        let output = self.lab.command(&self.place, &argv).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let findings: Vec<Finding> = told.lines().map(read).collect();
        assert!(findings.len() > 5, "{}", all_of(&output));
        let fails = findings.iter().any(|finding| finding.status == "fail");
        assert_eq!(output.status.code(), Some(i32::from(fails)), "{}", all_of(&output));
        findings
            .into_iter()
            .filter(|finding| finding.status != "ok")
            .inspect(|finding| assert!(finding.remedy.is_some(), "{finding:?}"))
            .collect()
    }
}

/// Waits until a doctor finds nothing: what was planted is mended, and the daemons have noticed.
#[track_caller]
fn sound(doctor: &Doctor) {
    let mut found = Vec::new();
    let sound = wait(PATIENTLY, || {
        found = doctor.findings(&[]);
        // What the machine itself has too little of is no fault of the lab's.
        found.retain(|finding| finding.check != "limits");
        found.is_empty()
    });
    assert!(sound, "{found:#?}");
}

/// Asserts that something planted is named: by its check, in these words.
#[track_caller]
fn names(findings: &[Finding], check: &str, words: &str) {
    let named = |finding: &Finding| finding.check == check && finding.detail.contains(words);
    assert!(findings.iter().any(named), "{check}: {words}: {findings:#?}");
}

/// Asserts that a remedy for something has these words.
#[track_caller]
fn mends(findings: &[Finding], check: &str, words: &str) {
    let mended =
        |finding: &Finding| finding.check == check && finding.remedy.iter().any(|remedy| remedy.contains(words));
    assert!(findings.iter().any(mended), "{check}: {words}: {findings:#?}");
}

/// Runs a script of the operator's, which has to succeed.
#[track_caller]
fn script(lab: &Lab, text: &str) {
    let script = format!("cd {} && {text}", lab.dir().inside("."));
    let output = lab.command(&Place::Core, &["sh", "-ec", &script]).output().unwrap();
    assert!(output.status.success(), "{text}: {}", all_of(&output));
}

/// Has Redis's own administrator say something.
fn redis_says(lab: &Lab, words: &[&str]) {
    let argv = redis::cli(lab.dir(), 1, words);
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let output = lab.command(&Place::Core, &argv).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "OK", "{words:?}");
}
