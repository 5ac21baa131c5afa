//! The product's programs, as they were built.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::place::Place;

/// The directory of the built programs, and one for what may be kept from lab to lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    dir: PathBuf,
}

/// What a lab cannot do without.
const NEEDED: [&str; 7] = [
    "rssh",
    "rssh-agentd",
    "rssh-authorize",
    "rssh-claim",
    "rssh-lab",
    "rssh-routerd",
    "rssh-serverd",
];

impl Programs {
    /// The programs that were built together with the running one.
    ///
    /// # Errors
    /// When one is missing.
    pub fn locate() -> Result<Self> {
        let own = std::env::current_exe().context("cannot tell where this program lies")?;
        let mut dir = own.parent().context("this program lies nowhere")?;
        // Cargo puts test programs one level below.
        if dir.file_name().is_some_and(|name| name == "deps") {
            dir = dir.parent().unwrap_or(dir);
        }
        let programs = Self { dir: dir.to_owned() };
        for name in NEEDED {
            ensure!(
                programs.path(name).exists(),
                "{name} is not built: there is none in {}; run: cargo build --workspace --bins",
                dir.display()
            );
        }
        Ok(programs)
    }

    /// Where they lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of one.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where to keep what takes long to make and does not differ from lab to lab.
    pub fn cache(&self) -> PathBuf {
        self.dir.parent().unwrap_or(&self.dir).join("lab-cache")
    }

    /// A command that runs at a place, under another account when one is given; the arguments are to follow.
    pub fn at(&self, root: &Path, place: &Place, account: Option<&str>) -> Command {
        let mut command = Command::new(self.path("rssh-lab"));
        command
            .arg("at")
            .arg("--dir")
            .arg(root)
            .args(["--place", &place.to_string()]);
        if let Some(account) = account {
            command.args(["--account", account]);
        }
        command.arg("--");
        command
    }
}
