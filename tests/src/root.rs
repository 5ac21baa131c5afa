//! The lab's directory, under the two paths that it has.

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The lab's directory.
///
/// Outside, it is where its user wants it. Inside, every program of the lab sees it at a short path in its private mount
/// namespace: so unix sockets fit (sun_path, 108 bytes), and accounts other than root reach their files wherever the
/// directory lies. The inner path differs from lab to lab, since programs find their own kind by paths in command lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    outside: PathBuf,
    inside: String,
}

impl Root {
    /// An existing directory.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(dir: &Path) -> Result<Self> {
        let outside = dir
            .canonicalize()
            .with_context(|| format!("there is no directory {}", dir.display()))?;
        // FNV-1a: two labs at a time only need two values.
        let hash = outside
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .fold(0x811c_9dc5_u32, |hash, &byte| {
                (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
            });
        Ok(Self {
            outside,
            inside: format!("/run/lab-{hash:08x}"),
        })
    }

    /// The path that programs of the lab see.
    pub fn mounted_at(&self) -> &str {
        &self.inside
    }

    /// A path below, as programs of the lab see it.
    pub fn inside(&self, relative: impl fmt::Display) -> String {
        format!("{}/{relative}", self.inside)
    }
}

impl Deref for Root {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.outside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_directories_have_two_paths_inside_and_both_are_short() {
        let dir = tempfile::tempdir().unwrap();
        let roots = ["a", "b"].map(|name| {
            let path = dir.path().join(name.repeat(100));
            std::fs::create_dir(&path).unwrap();
            Root::new(&path).unwrap()
        });
        assert_ne!(roots[0].mounted_at(), roots[1].mounted_at());
        assert!(roots[0].inside("x").len() < 25);
        assert!(Root::new(&dir.path().join("c")).is_err());
    }
}
