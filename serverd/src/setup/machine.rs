//! What setup does to a machine: each change is told, and made only where it is not made yet.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::unistd::{Group, User, chown};
use rssh_proto::text::sanitize;

/// Where programs of the system lie, whatever the caller's PATH says.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A machine that is being set up.
pub(super) struct Machine {
    dry_run: bool,
    changes: usize,
}

impl Machine {
    /// This machine; on a dry run nothing is changed.
    pub(super) const fn new(dry_run: bool) -> Self {
        Self { dry_run, changes: 0 }
    }

    /// Whether changes are only told.
    pub(super) const fn is_dry(&self) -> bool {
        self.dry_run
    }

    /// How many changes were made, or would be.
    pub(super) const fn changes(&self) -> usize {
        self.changes
    }

    /// Tells a change, and whether it is to be made now.
    pub(super) fn change(&mut self, what: &str) -> bool {
        self.changes += 1;
        let would = if self.dry_run { "would " } else { "" };
        eprintln!("{would}{what}");
        !self.dry_run
    }

    /// Makes a file say `text`, for `owner` (user and group of that name), with `mode`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn file(&mut self, path: &Path, text: &str, mode: u32, owner: &str) -> Result<()> {
        if fs::read_to_string(path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        let verb = if path.exists() { "change" } else { "write" };
        if self.change(&format!("{verb} {}", path.display())) {
            return replace(path, text, mode, owner);
        }
        for line in text.lines().filter(|line| !line.is_empty()) {
            eprintln!("    {line}");
        }
        Ok(())
    }

    /// Makes a file say a text that a dry run does not show.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn secret(&mut self, path: &Path, text: &str, mode: u32, owner: &str) -> Result<()> {
        let is_there = fs::read_to_string(path).is_ok_and(|there| there == text);
        if !is_there && self.change(&format!("write {}", path.display())) {
            return replace(path, text, mode, owner);
        }
        Ok(())
    }

    /// Makes a directory with this owner and mode.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn directory(&mut self, path: &Path, mode: u32, owner: &str) -> Result<()> {
        let account = User::from_name(owner).ok().flatten();
        let is_right = |metadata: fs::Metadata| {
            metadata.is_dir()
                && metadata.mode() & 0o7777 == mode
                && account
                    .as_ref()
                    .is_some_and(|account| account.uid.as_raw() == metadata.uid())
        };
        if fs::metadata(path).is_ok_and(is_right) {
            return Ok(());
        }
        if self.change(&format!("make the directory {} for {owner}", path.display())) {
            fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
                .with_context(|| format!("cannot change {}", path.display()))?;
            give(path, owner)?;
        }
        Ok(())
    }

    /// Runs a command that changes something.
    ///
    /// # Errors
    /// When it cannot be run, or fails.
    pub(super) fn run(&mut self, what: &str, words: &[&str]) -> Result<()> {
        if self.change(&format!("{what}: {}", words.join(" "))) {
            output(words)?;
        }
        Ok(())
    }

    /// Makes a unit run now and at each boot.
    ///
    /// # Errors
    /// When systemd refuses.
    pub(super) fn unit(&mut self, unit: &str) -> Result<()> {
        let is = |what| succeeds(&["systemctl", "--quiet", what, unit]);
        if is("is-enabled") && is("is-active") {
            return Ok(());
        }
        self.run("start the unit", &["systemctl", "enable", "--now", unit])
    }
}

/// Writes a file in one step, with its mode and owner from the first byte on.
fn replace(path: &Path, text: &str, mode: u32, owner: &str) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let _ = fs::remove_file(&new);
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(mode)
            .open(&new)?;
        // The mode above is less the umask.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", new.display()))?;
    give(&new, owner)?;
    fs::rename(&new, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Hands a file to the user and group of this name.
fn give(path: &Path, owner: &str) -> Result<()> {
    let user =
        User::from_name(owner)?.with_context(|| format!("the account {owner} does not exist; the packages make it"))?;
    let group = Group::from_name(owner)?.map_or(user.gid, |group| group.gid);
    chown(path, Some(user.uid), Some(group)).with_context(|| format!("cannot give {} to {owner}", path.display()))
}

/// What a command prints.
///
/// # Errors
/// When it cannot be run, or fails; then the error has what it said.
pub(super) fn output(words: &[&str]) -> Result<String> {
    let [program, args @ ..] = words else {
        bail!("no command");
    };
    let output = Command::new(program)
        .args(args)
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let said = sanitize(String::from_utf8_lossy(&output.stderr).trim(), 400);
        bail!("{} failed: {said}", words.join(" "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether a command ends well.
pub(super) fn succeeds(words: &[&str]) -> bool {
    output(words).is_ok()
}

/// Whether a program is installed.
pub(super) fn installed(program: &str) -> bool {
    PATH.split(':').any(|dir| Path::new(dir).join(program).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_once_and_a_dry_run_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        let owner = nix::unistd::User::from_uid(nix::unistd::Uid::effective())
            .unwrap()
            .unwrap()
            .name;
        let mut dry = Machine::new(true);
        dry.file(&path, "a = 1\n", 0o640, &owner).unwrap();
        assert_eq!((dry.changes(), path.exists()), (1, false));
        let mut machine = Machine::new(false);
        machine.file(&path, "a = 1\n", 0o640, &owner).unwrap();
        machine.file(&path, "a = 1\n", 0o640, &owner).unwrap();
        assert_eq!(machine.changes(), 1);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        machine.file(&path, "a = 2\n", 0o640, &owner).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "a = 2\n");
    }

    #[test]
    fn a_command_that_fails_tells_what_it_said() {
        let error = output(&["sh", "-c", "echo broken >&2; exit 3"])
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("failed: broken"), "{error}");
    }
}
