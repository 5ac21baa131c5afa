//! A PostgreSQL of the tests' own, in a temporary directory, reached by a unix socket only.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rssh_serverd::config::Database;
use rssh_serverd::store::Store;
use tempfile::TempDir;

/// A running PostgreSQL; it ends with the value.
pub(crate) struct Postgres {
    dir: TempDir,
    server: Child,
}

impl Postgres {
    /// The one that the tests of this binary share while any of them runs.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let started = Arc::new(Self::start());
            *shared = Arc::downgrade(&started);
            started
        })
    }

    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        run(Command::new("chown").arg("postgres").arg(dir.path()));
        run(program(dir.path(), "initdb")
            .args(["--auth=trust", "--no-sync", "--username=rssh", "-D"])
            .arg(data(dir.path())));
        let server = program(dir.path(), "postgres")
            .arg("-D")
            .arg(data(dir.path()))
            .arg("-k")
            .arg(dir.path())
            .args(["-h", "", "-F"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Self { dir, server };
        let ready = || {
            Command::new(binary("pg_isready"))
                .arg("-q")
                .arg("-h")
                .arg(started.dir.path())
                .status()
                .is_ok_and(|s| s.success())
        };
        for _ in 0..600 {
            if ready() {
                return started;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("PostgreSQL does not come up");
    }

    /// A database of its own with the schema of this version, and how to reach it as its owner.
    pub(crate) async fn database(&self) -> (Store, String) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed));
        run(Command::new(binary("createdb"))
            .arg("-h")
            .arg(self.dir.path())
            .args(["-U", "rssh", &name]));
        let url = format!("postgres://rssh@localhost/{name}?host={}", self.dir.path().display());
        let store = Store::new(&Database {
            url: url.clone().into(),
            connections: 4,
        })
        .unwrap();
        store.migrate().await.unwrap();
        (store, url)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.server.id()).unwrap());
        // Ends sessions and shuts down at once (postgres(1)).
        let _ = kill(pid, Signal::SIGINT);
        let _ = self.server.wait();
    }
}

fn data(dir: &Path) -> PathBuf {
    dir.join("data")
}

/// PostgreSQL refuses to run as root.
fn program(dir: &Path, name: &str) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"])
        .arg(binary(name))
        .current_dir(dir);
    command
}

/// Debian keeps each version's programs in a directory of its own.
fn binary(name: &str) -> PathBuf {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .unwrap_or_else(|error| panic!("install postgresql: {error}"))
        .flatten()
        .map(|entry| entry.path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    versions.sort();
    versions
        .pop()
        .unwrap_or_else(|| panic!("install postgresql: there is no {name}"))
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
}
