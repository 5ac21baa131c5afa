//! Which ssh is installed.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rssh_proto::text::quoted;

/// The oldest OpenSSH whose options and multiplexing the agent uses.
pub const OLDEST: (u32, u32) = (8, 0);

/// Why the installed ssh cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    #[error("{0} is not there; install the package openssh-client")]
    Missing(PathBuf),
    #[error("cannot run {path}: {source}; install the package openssh-client")]
    Run { path: PathBuf, source: io::Error },
    #[error("{path} is not OpenSSH but says {says}; install the package openssh-client")]
    NotOpenSsh { path: PathBuf, says: String },
    #[error("{path} is OpenSSH {}.{}, older than {}.{}; upgrade the package openssh-client", found.0, found.1, OLDEST.0, OLDEST.1)]
    TooOld { path: PathBuf, found: (u32, u32) },
}

/// Asks ssh for its version.
///
/// # Errors
/// When it is missing, not OpenSSH, or older than [`OLDEST`].
pub fn check(program: &Path) -> Result<(u32, u32), VersionError> {
    let path = program.to_owned();
    let output = Command::new(program)
        .arg("-V")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => VersionError::Missing(path.clone()),
            _ => VersionError::Run {
                path: path.clone(),
                source,
            },
        })?;
    let says = String::from_utf8_lossy(&output.stderr);
    let found = parse(&says).ok_or_else(|| VersionError::NotOpenSsh {
        path: path.clone(),
        says: quoted(says.lines().next().unwrap_or(""), 60),
    })?;
    if found < OLDEST {
        return Err(VersionError::TooOld { path, found });
    }
    Ok(found)
}

fn parse(says: &str) -> Option<(u32, u32)> {
    let (major, rest) = says.strip_prefix("OpenSSH_")?.split_once('.')?;
    let minor = rest.bytes().take_while(u8::is_ascii_digit).count();
    Some((major.parse().ok()?, rest[..minor].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_ssh_says() {
        for (says, found) in [
            (
                "OpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.22 25 Aug 2026",
                Some((9, 2)),
            ),
            ("OpenSSH_10.0p2 Debian-7, OpenSSL 3.5.4 30 Sep 2025", Some((10, 0))),
            ("OpenSSH_7.9p1, LibreSSL 2.7.3", Some((7, 9))),
            ("Dropbear v2022.83", None),
            ("", None),
        ] {
            assert_eq!(parse(says), found, "{says}");
        }
    }

    #[test]
    fn a_missing_ssh_names_the_package() {
        let error = check(Path::new("/nowhere/ssh")).unwrap_err().to_string();
        assert!(error.contains("openssh-client"), "{error}");
        let error = check(Path::new("/bin/true")).unwrap_err();
        assert!(matches!(error, VersionError::NotOpenSsh { .. }), "{error}");
    }
}
