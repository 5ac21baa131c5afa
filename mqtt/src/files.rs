//! Files of keys, certificates and state: secrets are their owner's alone, and each is replaced in one step.

use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown, lchown};
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{0} is readable by others; run: chmod 600 {0}")]
    Exposed(PathBuf),
    #[error("{path} holds no {what} in PEM form")]
    Pem { path: PathBuf, what: &'static str },
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(|source| FileError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Reads the certificates of a PEM file; there is at least one.
///
/// # Errors
/// When the file cannot be read or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let pem = read(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .unwrap_or_default();
    if certificates.is_empty() {
        return Err(FileError::Pem {
            path: path.to_owned(),
            what: "certificate",
        });
    }
    Ok(certificates)
}

/// Reads a secret, refusing one that group or others may read.
///
/// # Errors
/// When the file cannot be read or is exposed.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, FileError> {
    let bytes = read(path)?;
    let mode = fs::metadata(path).map_or(0, |metadata| metadata.mode());
    if mode & 0o077 != 0 {
        return Err(FileError::Exposed(path.to_owned()));
    }
    Ok(bytes)
}

/// Writes a secret with mode 0600, replacing the file in one step; one that was there keeps its owner, and a new one is
/// its directory's.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_file(path, 0o600, |file| file.write_all(bytes))
}

/// Writes a file anyone may read, replacing it in one step.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_file(path, 0o644, |file| file.write_all(bytes))
}

/// Writes a file anyone may read as `fill` does, piece by piece, replacing it in one step.
///
/// # Errors
/// When the directory cannot be written, or `fill` fails.
pub fn write_public_by(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&fs::File>) -> io::Result<()>,
) -> Result<(), FileError> {
    write_file(path, 0o644, |file| {
        let mut pieces = BufWriter::new(&*file);
        fill(&mut pieces)?;
        pieces.flush()
    })
}

fn write_file(path: &Path, mode: u32, fill: impl FnOnce(&mut fs::File) -> io::Result<()>) -> Result<(), FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = path.with_file_name(name);
    let write = || {
        // Nothing that lies there already is followed or written to, in a directory of another account least of all.
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        fill(&mut file)?;
        keep_owner(path, &file)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&new);
        FileError::Write {
            path: path.to_owned(),
            source,
        }
    })
}

/// Gives a file the owner of the one whose place it takes, or of the directory it is new in: what root writes, a daemon
/// under its own account still reads.
fn keep_owner(path: &Path, file: &fs::File) -> io::Result<()> {
    let before = fs::metadata(path).or_else(|_| fs::metadata(directory(path)));
    let (Ok(before), ours) = (before, file.metadata()?) else {
        return Ok(());
    };
    if (before.uid(), before.gid()) == (ours.uid(), ours.gid()) {
        return Ok(());
    }
    match fchown(file, Some(before.uid()), Some(before.gid())) {
        // Only root gives files away; to others it is theirs from now on.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// The directory that a file lies in.
fn directory(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Gives what root made in an account's directory, and below, to that account; what links lead to is left alone.
///
/// # Errors
/// When something cannot be handed over.
pub fn hand_over(dir: &Path) -> Result<(), FileError> {
    let hand = || {
        let account = fs::metadata(dir)?;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if account.uid() != 0 && entry.metadata()?.uid() == 0 {
                lchown(entry.path(), Some(account.uid()), Some(account.gid()))?;
            }
            if entry.file_type()?.is_dir() {
                hand_over(&entry.path()).map_err(io::Error::other)?;
            }
        }
        Ok(())
    };
    hand().map_err(|source| FileError::Write {
        path: dir.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_root_makes_in_the_directory_of_an_account_is_that_account_s() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        if std::os::unix::fs::chown(&home, Some(12_345), Some(54_321)).is_err() {
            // Not root: then nothing can be given away, and nothing is.
            write_secret(&home.join("key"), b"secret").unwrap();
            hand_over(&home).unwrap();
            return;
        }
        // What the account planted where the new file goes is not written through.
        let victim = dir.path().join("victim");
        fs::write(&victim, "as it was").unwrap();
        let planted = home.join(format!("key.new-{}", std::process::id()));
        std::os::unix::fs::symlink(&victim, &planted).unwrap();
        write_secret(&home.join("key"), b"secret").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "as it was");

        fs::create_dir(home.join("run")).unwrap();
        fs::write(home.join("run/made"), "").unwrap();
        std::os::unix::fs::symlink(&victim, home.join("link")).unwrap();
        hand_over(&home).unwrap();
        for name in ["key", "run", "run/made", "link"] {
            let metadata = fs::symlink_metadata(home.join(name)).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (12_345, 54_321), "{name}");
        }
        assert_eq!(fs::metadata(home.join("key")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&victim).unwrap().uid(), 0);
    }
}
