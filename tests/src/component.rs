//! Components: the long-running programs of a lab, each recorded so that it can be started again.
//!
//! ```text
//! DIR/components/NAME.json   how to start it        DIR/log/NAME.log   what it says
//! DIR/run/NAME.json          who it is now
//! ```
//! Nothing supervises them: a component is detached from whoever started it, and known by its pid and start time.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::place::Place;
use crate::process::{self, Process};
use crate::ready::Ready;

/// How to start and stop a program, and how to see that it serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    pub name: String,
    #[serde(with = "place_text")]
    pub place: Place,
    /// The program and its arguments, with paths as the programs of the lab see them.
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    /// The account it runs under; root when there is none.
    pub account: Option<String>,
    /// Where it serves: `IP:PORT`, or the path of a unix socket.
    pub address: Option<String>,
    pub ready: Ready,
    /// Whether an interrupt rather than a termination asks it to end soon: PostgreSQL waits for its clients otherwise.
    pub interrupt: bool,
    /// What is run, as root and in the same place, once it serves.
    pub after: Vec<String>,
}

impl Component {
    /// A program that runs as root and serves as soon as it runs.
    pub fn new(name: impl Into<String>, place: Place, argv: &[&str]) -> Self {
        Self {
            name: name.into(),
            place,
            argv: argv.iter().map(|&arg| arg.to_owned()).collect(),
            env: Vec::new(),
            account: None,
            address: None,
            ready: Ready::Running,
            interrupt: false,
            after: Vec::new(),
        }
    }

    /// With the check that shows it serving.
    #[must_use]
    pub fn ready(mut self, ready: Ready) -> Self {
        self.address = self.address.or_else(|| ready.address());
        self.ready = ready;
        self
    }

    /// With the address it serves at.
    #[must_use]
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// With one more variable in its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// With a program to run once it serves.
    #[must_use]
    pub fn after(mut self, argv: &[&str]) -> Self {
        self.after = argv.iter().map(|&arg| arg.to_owned()).collect();
        self
    }

    /// The signal that asks it to end.
    pub fn stop_signal(&self) -> Signal {
        if self.interrupt {
            Signal::SIGINT
        } else {
            Signal::SIGTERM
        }
    }

    /// Records it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, root: &Path) -> Result<()> {
        write_json(&root.join("components").join(format!("{}.json", self.name)), self)
    }

    /// Reads a component's record.
    ///
    /// # Errors
    /// When the lab has no such component.
    pub fn read(root: &Path, name: &str) -> Result<Self> {
        // The name becomes part of a path.
        ensure!(
            name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'),
            "not a component: {name:?}"
        );
        let path = root.join("components").join(format!("{name}.json"));
        let text = fs::read(&path).with_context(|| {
            format!(
                "the lab in {} has no component {name}; rssh-lab status names them",
                root.display()
            )
        })?;
        serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The components of a lab, by name.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn all(root: &Path) -> Result<Vec<Self>> {
        let mut names: Vec<String> = fs::read_dir(root.join("components"))?
            .filter_map(|entry| {
                entry
                    .ok()?
                    .file_name()
                    .to_str()?
                    .strip_suffix(".json")
                    .map(str::to_owned)
            })
            .collect();
        // device-2 comes before device-10.
        names.sort_by_key(|name| {
            let digits = name.rfind('-').and_then(|at| name[at + 1..].parse::<u32>().ok());
            (name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned(), digits)
        });
        names.iter().map(|name| Self::read(root, name)).collect()
    }
}

mod place_text {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::place::Place;

    pub(super) fn serialize<S: Serializer>(place: &Place, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(place)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Place, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Who a component is now, or was last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    #[serde(flatten)]
    pub process: Process,
    /// The inode number of its mount namespace, which whatever it starts has too, however it is detached; 0 once all of
    /// them have ended.
    pub mounts: u64,
}

impl Record {
    fn path(root: &Path, name: &str) -> PathBuf {
        root.join("run").join(format!("{name}.json"))
    }

    /// Writes it for the component `name`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, root: &Path, name: &str) -> Result<()> {
        write_json(&Self::path(root, name), self)
    }

    /// Reads it; `None` when the component was never started.
    pub fn read(root: &Path, name: &str) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::path(root, name)).ok()?).ok()
    }

    /// Every living process of the component: itself, and what it left behind.
    pub fn members(&self, networks: &[u64]) -> Vec<Process> {
        process::in_networks(networks)
            .into_iter()
            .filter(|process| process.namespace("mnt") == Some(self.mounts))
            .collect()
    }
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec_pretty(value)?)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Where a component's output goes.
pub fn log_file(root: &Path, name: &str) -> PathBuf {
    root.join("log").join(format!("{name}.log"))
}

/// The end of a component's log, for a message.
pub fn log_tail(root: &Path, name: &str) -> String {
    let text = fs::read(log_file(root, name)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Starts recorded components as children of nobody: the caller is to end, and init inherits them.
///
/// # Errors
/// When one ends before it has become its program.
pub fn launch(root: &Path, names: &[String]) -> Result<()> {
    let own = std::env::current_exe()?;
    let mut started = Vec::new();
    for name in names {
        let log = log_file(root, name);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        fs::remove_file(Record::path(root, name)).ok();
        let child = Command::new(&own)
            .arg("become")
            .arg("--dir")
            .arg(root)
            .arg(name)
            .stdin(File::open("/dev/null")?)
            .stdout(log.try_clone()?)
            .stderr(Stdio::from(log))
            .spawn()?;
        started.push((name, child));
    }
    for (name, mut child) in started {
        let mut ended = false;
        process::wait(Duration::from_secs(20), || {
            ended = matches!(child.try_wait(), Ok(Some(_)));
            ended || Record::read(root, name).is_some()
        });
        // A program that ended after it had been recorded is for the readiness check to report.
        if Record::read(root, name).is_none() {
            bail!("{name} did not start: {}", log_tail(root, name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_reads_back_and_devices_are_in_the_order_of_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("components")).unwrap();
        let mut written = Vec::new();
        for n in [1, 2, 10] {
            let component = Component::new(format!("agentd-{n}"), Place::Device(n), &["a", "b"]).ready(Ready::Notify);
            component.write(dir.path()).unwrap();
            written.push(component);
        }
        assert_eq!(Component::all(dir.path()).unwrap(), written);
        assert!(Component::read(dir.path(), "agentd-3").is_err());
        assert!(Component::read(dir.path(), "../run/x").is_err());
    }
}
