//! PostgreSQL: a cluster of the lab's own, reached by unix socket only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::accounts;
use crate::component::Component;
use crate::files;
use crate::place::Place;
use crate::programs::Programs;
use crate::ready::Ready;
use crate::root::Root;
use crate::run;

/// The account that the server runs under: it refuses root.
const ACCOUNT: &str = "postgres";
/// The role and database of the product.
pub const ROLE: &str = "rssh";

const CONFIG: &str = "
# The lab's own lines. Durability stays as it is by default: what is measured is what one gets.
listen_addresses = ''
max_connections = 300
dynamic_shared_memory_type = mmap
log_line_prefix = '%m [%p] '
";

/// The directory with `postgres` and `initdb`: the newest that Debian has installed.
///
/// # Errors
/// When there is none.
pub fn program_dir() -> Result<PathBuf> {
    let mut versions: Vec<u32> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| {
            entries
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
                .filter(|version| binaries(*version).join("postgres").exists())
                .collect()
        })
        .unwrap_or_default();
    versions.sort_unstable();
    let newest = versions
        .last()
        .context("PostgreSQL's server is not installed; run: apt install postgresql")?;
    Ok(binaries(*newest))
}

fn binaries(version: u32) -> PathBuf {
    format!("/usr/lib/postgresql/{version}/bin").into()
}

/// What makes psql find the lab's database.
pub fn client_environment(root: &Root) -> [(String, String); 3] {
    [
        ("PGHOST".to_owned(), root.inside("postgres")),
        ("PGUSER".to_owned(), ROLE.to_owned()),
        ("PGDATABASE".to_owned(), ROLE.to_owned()),
    ]
}

/// The database as a URL.
pub fn url(root: &Root) -> String {
    format!("postgres://{ROLE}@localhost/{ROLE}?host={}", root.inside("postgres"))
}

/// Puts a fresh cluster into the lab: a copy of one made earlier, or else a new one.
///
/// # Errors
/// When initdb or a copy fails.
pub fn prepare(root: &Root, programs: &Programs) -> Result<()> {
    let (uid, gid) = accounts::ids(ACCOUNT)?;
    let dir = root.join("postgres");
    let data = dir.join("data");
    files::make_dir(&dir)?;
    std::os::unix::fs::chown(&dir, Some(uid.as_raw()), Some(gid.as_raw()))?;
    files::set_mode(&dir, 0o700)?;

    let binaries = program_dir()?;
    let version = binaries.to_string_lossy().replace('/', "-");
    let cached = programs.cache().join(format!("cluster{version}"));
    if !cached.exists() {
        initialise(root, programs, &binaries)?;
        // Others may do the same now, in this process too: the first rename wins, and all copies are equal.
        files::make_dir(&programs.cache())?;
        let new = tempfile::Builder::new().prefix("new-").tempdir_in(programs.cache())?;
        let cluster = new.path().join("cluster");
        copy(&data, &cluster)?;
        if let Err(error) = fs::rename(&cluster, &cached)
            && !cached.exists()
        {
            return Err(error).with_context(|| format!("cannot keep a cluster in {}", cached.display()));
        }
    } else {
        copy(&cached, &data)?;
    }
    let config = data.join("postgresql.conf");
    let socket = format!("unix_socket_directories = '{}'\n", root.inside("postgres"));
    files::write(&config, files::read(&config)? + CONFIG + &socket)
}

fn initialise(root: &Root, programs: &Programs, binaries: &Path) -> Result<()> {
    let as_postgres = |program: &str| {
        let mut command = programs.at(root, &Place::Core, Some(ACCOUNT));
        command.arg(binaries.join(program));
        command
    };
    let data = root.inside("postgres/data");
    run::checked(
        as_postgres("initdb")
            .args([
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--auth=trust",
                "--username",
                ACCOUNT,
            ])
            .args(["--pgdata", &data]),
    )?;
    // Without a server: `--single` takes one statement per line.
    run::fed(
        as_postgres("postgres").args(["--single", "-D", &data, "postgres"]),
        &format!("CREATE ROLE {ROLE} LOGIN\nCREATE DATABASE {ROLE} OWNER {ROLE}\n"),
    )
    .map(drop)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    run::checked(Command::new("cp").args(["-a", "--reflink=auto"]).args([from, to])).map(drop)
}

/// The server.
///
/// # Errors
/// When PostgreSQL is not installed.
pub fn component(root: &Root) -> Result<Component> {
    let postgres = program_dir()?.join("postgres");
    let mut component = Component::new(
        "postgres",
        Place::Core,
        &[&postgres.to_string_lossy(), "-D", &root.inside("postgres/data")],
    )
    .address(root.inside("postgres/.s.PGSQL.5432"))
    .ready(Ready::Line(
        "postgres/data/postmaster.pid".to_owned(),
        "ready".to_owned(),
    ));
    component.account = Some(ACCOUNT.to_owned());
    component.interrupt = true;
    Ok(component)
}
