//! Accounts: what programs of the lab read from /etc/passwd, group and shadow in their private mount namespace.

use std::path::Path;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::unistd::{Gid, Uid, User, setgid, setgroups, setuid};

use crate::files;
use crate::place::{Place, TUNNEL_ACCOUNT};
use crate::root::Root;

/// The number of the tunnels' group: past what adduser gives out.
const GROUP: u32 = 64022;

/// The number of the tunnels' account on server `n` of a lab.
///
/// A server takes every process of that account for one of its sshd's sessions, as it is on a machine of its own. So no
/// two servers share it, of one lab or of several: each lab draws a block of a thousand.
pub fn tunnels_uid(lab: u16, n: u32) -> Uid {
    Uid::from_raw(100_000_000 + u32::from(lab) * 1000 + n)
}

/// Writes the files that hold for a place, into the lab's directory; `tunnels` is the number of the tunnels' account.
///
/// # Errors
/// When the machine's own files cannot be read or ours cannot be written.
pub fn write(root: &Root, place: &Place, tunnels: Uid) -> Result<()> {
    let dir = root.join(place.owner_dir());
    for below in [
        "home/.config",
        "home/.cache",
        "home/.local/share",
        "home/.local/state",
        "run",
    ] {
        files::make_dir(&dir.join(below))?;
    }
    files::set_mode(&dir.join("run"), 0o700)?;
    files::set_mode(&dir.join("home"), 0o700)?;
    let machine = files::read(Path::new("/etc/passwd"))?;
    let home = root.inside(format_args!("{}/home", place.owner_dir()));
    files::write(
        &dir.join("passwd"),
        passwd(&machine, &home, &root.inside("empty"), tunnels),
    )
}

/// Writes what all places share.
///
/// # Errors
/// See [`write`].
pub fn write_shared(root: &Root) -> Result<()> {
    let dir = root.join("etc");
    files::make_dir(&dir)?;
    files::make_dir(&root.join("empty"))?;
    let machine = files::read(Path::new("/etc/group"))?;
    files::write(&dir.join("group"), group(&machine))?;
    files::write_secret(
        &dir.join("shadow"),
        format!("root:*:19000:0:99999:7:::\n{TUNNEL_ACCOUNT}:*:19000:0:99999:7:::\n"),
    )
}

/// The machine's accounts, with another home for root and the account of tunnels.
fn passwd(machine: &str, home: &str, nowhere: &str, tunnels: Uid) -> String {
    let tunnel = format!("{TUNNEL_ACCOUNT}:x:{tunnels}:{GROUP}:rssh tunnels:{nowhere}:/bin/sh");
    let root = format!("root:x:0:0:root:{home}:/bin/bash");
    lines_without(machine, &["root", TUNNEL_ACCOUNT], [root, tunnel])
}

fn group(machine: &str) -> String {
    lines_without(machine, &[TUNNEL_ACCOUNT], [format!("{TUNNEL_ACCOUNT}:x:{GROUP}:")])
}

fn lines_without<const N: usize>(machine: &str, names: &[&str], first: [String; N]) -> String {
    let rest = machine
        .lines()
        .filter(|line| !names.contains(&line.split(':').next().unwrap_or_default()))
        .map(str::to_owned);
    first.into_iter().chain(rest).map(|line| line + "\n").collect()
}

/// Puts the place's files over those of the machine, in the calling process's mount namespace.
pub(crate) fn bind(root: &Root, place: &Place) -> Result<()> {
    let passwd = root.inside(format_args!("{}/passwd", place.owner_dir()));
    for (from, to) in [
        (passwd.as_str(), "/etc/passwd"),
        (&root.inside("etc/group"), "/etc/group"),
        (&root.inside("etc/shadow"), "/etc/shadow"),
    ] {
        mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("cannot put {from} over {to}"))?;
    }
    Ok(())
}

/// Gives the process another account, for good.
pub(crate) fn become_account(name: &str) -> Result<()> {
    let (uid, gid) = ids(name)?;
    setgroups(&[gid])?;
    setgid(gid)?;
    setuid(uid).with_context(|| format!("cannot become {name}"))
}

/// The numbers of an account.
///
/// # Errors
/// When the machine has no such account.
pub fn ids(name: &str) -> Result<(Uid, Gid)> {
    let user =
        User::from_name(name)?.with_context(|| format!("there is no account {name}; is its package installed?"))?;
    Ok((user.uid, user.gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_gets_another_home_and_the_tunnels_an_account() {
        let text = passwd(
            "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/usr/sbin/nologin\n",
            "/h",
            "/nowhere",
            Uid::from_raw(9),
        );
        assert_eq!(
            text,
            "root:x:0:0:root:/h:/bin/bash\n\
             rssh-tunnel:x:9:64022:rssh tunnels:/nowhere:/bin/sh\n\
             daemon:x:1:1::/:/usr/sbin/nologin\n"
        );
    }

    #[test]
    fn an_account_of_tunnels_that_the_machine_has_does_not_count() {
        assert_eq!(group("rssh-tunnel:x:999:\nx:x:5:\n"), "rssh-tunnel:x:64022:\nx:x:5:\n");
    }
}
