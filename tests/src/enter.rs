//! Turns the running process into a program of the lab: its network, its own mounts, its account, then exec.
//!
//! Every program gets a private mount namespace, so that the machine's own files stay as they are while the program
//! finds what it expects: accounts in /etc, the lab's directory at a fixed path, an empty /run.

use std::fs::{self, DirBuilder, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;

use crate::accounts;
use crate::component::{Component, Record};
use crate::network::{Networks, TMPFS};
use crate::place::Place;
use crate::process::Process;
use crate::root::Root;

/// The variable that marks every program of a lab, with the lab's directory.
pub const MARK: &str = "RSSH_LAB";

/// Becomes `command` at `place`, under `account` or as root, with the place's environment over the caller's; returns only when that fails.
///
/// # Errors
/// When the place cannot be entered or the program cannot be run.
pub fn exec(root: &Root, programs: &Path, place: &Place, account: Option<&str>, mut command: Command) -> Result<()> {
    enter(root, place)?;
    for (name, _) in std::env::vars_os() {
        // Agents and settings of the caller's own home have no place in the lab.
        if name.to_string_lossy().starts_with("SSH_") || name == "XDG_DATA_DIRS" {
            command.env_remove(name);
        }
    }
    command
        .envs(place.environment(root))
        .env("PATH", search_path(programs))
        .env(MARK, &**root);
    if let Some(account) = account {
        accounts::become_account(account)?;
    }
    Err(command.exec()).with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))
}

/// Becomes a component as it is recorded; returns only when that fails.
///
/// # Errors
/// When its place cannot be entered or its program cannot be run.
pub fn component(root: &Root, programs: &Path, component: &Component) -> Result<()> {
    enter(root, &component.place)?;
    // Ours alone: no terminal's signal reaches it, and its shared memory ends with it.
    nix::unistd::setsid().ok();
    unshare(CloneFlags::CLONE_NEWIPC)?;
    // As many files as units of a service manager would get, not as few as a login shell.
    let (_, files) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, files, files)?;
    let process = Process::with_pid(std::process::id() as i32).context("cannot read /proc")?;
    let mounts = process.namespace("mnt").context("cannot read /proc")?;
    Record { process, mounts }.write(Path::new(root.mounted_at()), &component.name)?;

    let mut command = Command::new(&component.argv[0]);
    command
        .args(&component.argv[1..])
        .env_clear()
        .envs(component.place.environment(root))
        .envs(component.env.iter().map(|(name, value)| (name, value)))
        .env("LANG", "C.UTF-8")
        .env("PATH", search_path(programs))
        .env(MARK, &**root)
        .current_dir(root.mounted_at());
    if let Some(account) = &component.account {
        accounts::become_account(account)?;
    }
    Err(command.exec()).with_context(|| format!("cannot run {}", component.argv[0]))
}

/// Where programs are looked up: those just built come first.
fn search_path(programs: &Path) -> String {
    let mut path = format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        programs.display()
    );
    if let Ok(postgres) = crate::postgres::program_dir() {
        path = format!("{}:{}", path, postgres.display());
    }
    path
}

/// Moves the process into the place's network and a mount namespace of its own.
fn enter(root: &Root, place: &Place) -> Result<()> {
    // A starter may have blocked signals, and a mask outlives exec.
    SigSet::empty().thread_set_mask()?;
    let network = File::open(Networks::of(root).file(place)).with_context(|| format!("the lab has no {place}"))?;
    setns(network, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {place}; the lab needs root"))?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).context("cannot make a mount namespace")?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )?;
    shed_namespaces()?;
    // In this mount namespace, and before anything is mounted over it: the directory may lie under /run itself.
    let dir = File::open(&**root).with_context(|| format!("there is no lab in {}", root.display()))?;
    tmpfs("/run")?;
    for dir in ["sshd", "lock"] {
        DirBuilder::new().mode(0o755).create(Path::new("/run").join(dir))?;
    }
    DirBuilder::new().mode(0o755).create(root.mounted_at())?;
    mount(
        Some(format!("/proc/self/fd/{}", dir.as_raw_fd()).as_str()),
        root.mounted_at(),
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .context("cannot show the lab's directory to its programs")?;
    accounts::bind(root, place)?;
    if let Place::Device(_) | Place::Server(_) = place {
        // Logins are recorded below it (wtmp, lastlog).
        tmpfs("/var/log")?;
        nix::unistd::sethostname(place.to_string())?;
    }
    Ok(())
}

fn tmpfs(path: &str) -> Result<()> {
    mount(
        Some("rssh-lab"),
        path,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=0755,size=16m"),
    )
    .with_context(|| format!("cannot mount a tmpfs at {path}"))
}

/// Lets go of the namespaces of every lab: a copy of their mounts here would keep them alive after those labs.
fn shed_namespaces() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for target in tmpfs_targets(&mounts) {
        match umount2(target, MntFlags::MNT_DETACH) {
            // That lab went down since the list was read.
            Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot unmount {target} here")),
        }
    }
    Ok(())
}

/// The mount points in mountinfo (proc(5)) that hold a lab's namespaces.
fn tmpfs_targets(mountinfo: &str) -> impl Iterator<Item = &str> {
    mountinfo.lines().filter_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        (source.split(' ').nth(1) == Some(TMPFS)).then(|| mount.split(' ').nth(4))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mounts_of_labs_are_told_from_others() {
        let text = "21 1 254:0 / / rw - ext4 /dev/vda rw\n\
                    50 21 0:40 / /tmp/a/ns rw,relatime - tmpfs rssh-lab-ns rw,mode=755\n\
                    51 50 0:4 net:[4026532] /tmp/a/ns/core rw shared:3 - nsfs nsfs rw\n\
                    60 21 0:41 / /run rw - tmpfs tmpfs rw";
        assert_eq!(tmpfs_targets(text).collect::<Vec<_>>(), ["/tmp/a/ns"]);
    }
}
