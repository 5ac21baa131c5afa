//! A block of an account's authorized_keys that is ours: the keys of users, for a device whose own sshd (dropbear) knows
//! no certificates.
//!
//! No line outside the block is ever touched. The file is replaced in one step, by one of its owner's with mode 0600; no
//! link is followed, neither of the file nor of its directory, since both are the account's and the agent may be root.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use rssh_proto::UserId;
use rssh_proto::id::random_hex;
use rssh_proto::ssh_key::PublicKey;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, fchown, fstat, fsync, openat, renameat, unlinkat};
use rustix::io::Errno;

const BEGIN: &str = "# BEGIN rssh: rssh-agentd replaces what stands between these lines";
const END: &str = "# END rssh";
/// No such file is larger, in bytes.
const LIMIT: u64 = 1 << 20;

/// Why a block cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    #[error("{path}: {source}; the agent has to run as the account itself, or as root")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{0} is no plain file of a plain directory; name the file itself")]
    NotPlain(PathBuf),
    #[error("{0} has lines of rssh's in another order than rssh writes; remove its lines \"{BEGIN}\" and \"{END}\"")]
    Damaged(PathBuf),
}

/// One who may log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub user: UserId,
    pub key: PublicKey,
}

/// Makes the block of a file hold these logins and no others; says whether that changed anything.
///
/// # Errors
/// When the file cannot be read or replaced, or it is not clear which lines are ours.
pub fn write(path: &Path, logins: &[Login]) -> Result<bool, BlockError> {
    let fault = |error: Errno| match error {
        Errno::LOOP | Errno::NOTDIR => BlockError::NotPlain(path.to_owned()),
        error => BlockError::File {
            path: path.to_owned(),
            source: error.into(),
        },
    };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(BlockError::NotPlain(path.to_owned()));
    };
    let plain = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match openat(rustix::fs::CWD, parent, plain | OFlags::DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) if logins.is_empty() => return Ok(false),
        outcome => outcome.map_err(fault)?,
    };
    // A pipe would be waited for.
    let (text, owner) = match openat(&dir, name, plain | OFlags::NONBLOCK, Mode::empty()) {
        Err(Errno::NOENT) => (Vec::new(), fstat(&dir).map_err(fault)?),
        outcome => {
            let file = File::from(outcome.map_err(fault)?);
            let stat = fstat(&file).map_err(fault)?;
            let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || size > LIMIT {
                return Err(BlockError::NotPlain(path.to_owned()));
            }
            let mut text = Vec::new();
            file.take(LIMIT)
                .read_to_end(&mut text)
                .map_err(|source| BlockError::File {
                    path: path.to_owned(),
                    source,
                })?;
            (text, stat)
        }
    };
    let Some(new) = with_block(&text, logins) else {
        return Err(BlockError::Damaged(path.to_owned()));
    };
    if new == text {
        return Ok(false);
    }
    let other = format!(".rssh-{}", random_hex::<8>());
    let create = plain | OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    let mut file = File::from(openat(&dir, &other, create, Mode::RUSR | Mode::WUSR).map_err(fault)?);
    let replaced = (|| {
        let (uid, gid) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
        let ours = fstat(&file)?;
        if (ours.st_uid, ours.st_gid) != (owner.st_uid, owner.st_gid) {
            fchown(&file, Some(uid), Some(gid))?;
        }
        file.write_all(&new)?;
        fsync(&file)?;
        renameat(&dir, &other, &dir, name)?;
        fsync(&dir)?;
        Ok::<_, std::io::Error>(())
    })();
    if let Err(source) = replaced {
        // What is left of it would do nothing, and lie about.
        unlinkat(&dir, &other, AtFlags::empty()).ok();
        return Err(BlockError::File {
            path: path.to_owned(),
            source,
        });
    }
    Ok(true)
}

/// The text with these logins in the block, which comes last where there was none; `None` when it is not clear which
/// lines are ours.
fn with_block(text: &[u8], logins: &[Login]) -> Option<Vec<u8>> {
    let mut block = String::new();
    if !logins.is_empty() {
        block += BEGIN;
        block.push('\n');
        for Login { user, key } in logins {
            // A fixed form: no option, and a comment that is an id.
            let _ = writeln!(block, "{key} rssh:{user}");
        }
        block += END;
        block.push('\n');
    }
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let (mut begun, mut ended) = (false, false);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        match line.trim_ascii() {
            word if word == BEGIN.as_bytes() && !begun => begun = true,
            word if word == END.as_bytes() && begun && !ended => ended = true,
            word if word == BEGIN.as_bytes() || word == END.as_bytes() => return None,
            _ if !begun => before.extend_from_slice(line),
            _ if ended => after.extend_from_slice(line),
            _ => {}
        }
    }
    if begun != ended {
        return None;
    }
    if !block.is_empty() && before.last().is_some_and(|last| *last != b'\n') {
        before.push(b'\n');
    }
    before.extend_from_slice(block.as_bytes());
    before.extend(after);
    Some(before)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF3b4OqFP4OqF3b4OqFP4OqF3b4OqFP4OqF3b4OqFP4O";

    fn logins(users: &[&str]) -> Vec<Login> {
        users
            .iter()
            .map(|user| Login {
                user: user.parse().unwrap(),
                key: KEY.parse().unwrap(),
            })
            .collect()
    }

    #[test]
    fn the_block_comes_and_goes_and_every_other_line_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authorized_keys");
        let own = b"# mine\nfrom=\"192.0.2.1\" ssh-rsa AAAA me\n\xff no text\nlast".as_slice();
        fs::write(&path, own).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(write(&path, &logins(&["alice", "bob"])).unwrap());
        let text = fs::read(&path).unwrap();
        let expected = format!("\n{BEGIN}\n{KEY} rssh:alice\n{KEY} rssh:bob\n{END}\n");
        assert_eq!(text, [own, expected.as_bytes()].concat());
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert!(!write(&path, &logins(&["alice", "bob"])).unwrap(), "it is so already");
        // Somebody adds a line of their own.
        fs::write(&path, [&text, b"ssh-rsa BBBB other\n".as_slice()].concat()).unwrap();
        assert!(write(&path, &[]).unwrap());
        assert_eq!(fs::read(&path).unwrap(), [own, b"\nssh-rsa BBBB other\n"].concat());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left over");
    }

    #[test]
    fn where_there_is_nothing_to_write_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!write(&dir.path().join("none/authorized_keys"), &[]).unwrap());
        assert!(!write(&dir.path().join("authorized_keys"), &[]).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(write(&dir.path().join("none/authorized_keys"), &logins(&["alice"])).is_err());
    }

    #[test]
    fn no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "a secret\n").unwrap();
        let path = dir.path().join("authorized_keys");
        symlink(&secret, &path).unwrap();
        assert!(matches!(
            write(&path, &logins(&["alice"])),
            Err(BlockError::NotPlain(_))
        ));
        symlink(dir.path(), dir.path().join("ssh")).unwrap();
        let through = dir.path().join("ssh/authorized_keys");
        assert!(matches!(
            write(&through, &logins(&["alice"])),
            Err(BlockError::NotPlain(_))
        ));
        assert_eq!(fs::read_to_string(&secret).unwrap(), "a secret\n");
    }

    #[test]
    fn where_it_is_not_clear_which_lines_are_ours_none_is_touched() {
        for text in [
            format!("{BEGIN}\nssh-rsa AAAA mine\n"),
            format!("ssh-rsa AAAA mine\n{END}\n"),
            format!("{END}\n{BEGIN}\n"),
            format!("{BEGIN}\n{BEGIN}\n{END}\n"),
            format!("{BEGIN}\n{END}\n{BEGIN}\n{END}\n"),
        ] {
            assert_eq!(with_block(text.as_bytes(), &logins(&["alice"])), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_else_a_file_holds_stays(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let with = with_block(&text, &logins(&["alice"])).unwrap();
            prop_assert!(with.starts_with(&text));
            let mut without = with_block(&with, &[]).unwrap();
            if !text.is_empty() && !text.ends_with(b"\n") {
                prop_assert_eq!(without.pop(), Some(b'\n'));
            }
            prop_assert_eq!(without, text);
        }
    }
}
