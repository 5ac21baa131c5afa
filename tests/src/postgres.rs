//! PostgreSQL: a cluster of the lab's own, reached by unix socket only; or two, of which the second follows the first.

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
use crate::setup::{self, Setup, numbered};

/// The account that the server runs under, since it refuses root, and the role that may do anything.
pub const ACCOUNT: &str = "postgres";
/// The database of the product, and the role that owns it.
pub const ROLE: &str = "rssh";
/// The roles of the daemons.
pub const SERVERD: &str = "rssh_serverd";
pub const ROUTERD: &str = "rssh_routerd";

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

/// What makes psql find the lab's database: of two clusters the one that takes writes.
pub fn client_environment(root: &Root) -> Vec<(String, String)> {
    let mut environment = vec![("PGUSER", ROLE.to_owned()), ("PGDATABASE", ROLE.to_owned())];
    if root.join("postgres-2").exists() {
        let [one, two] = PORTS;
        environment.push(("PGHOST", format!("{HOST},{HOST}")));
        environment.push(("PGPORT", format!("{one},{two}")));
        environment.push(("PGTARGETSESSIONATTRS", "read-write".to_owned()));
        environment.push(("PGCONNECT_TIMEOUT", "2".to_owned()));
    } else {
        environment.push(("PGHOST", root.inside("postgres")));
    }
    let named = environment.into_iter();
    named.map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Where clusters listen that are two.
pub const HOST: &str = "127.0.0.1";
pub const PORTS: [u16; 2] = [5432, 5433];

/// The database as a URL, for one of the roles.
pub fn url(setup: &Setup, role: &str) -> String {
    let [one, two] = PORTS;
    match setup.options.ha {
        true => format!("postgres://{role}@{HOST}:{one},{HOST}:{two}/{ROLE}?target_session_attrs=read-write"),
        false => format!(
            "postgres://{role}@localhost/{ROLE}?host={}",
            setup.root.inside("postgres")
        ),
    }
}

/// Puts a fresh cluster into the lab: a copy of one made earlier, or else a new one.
///
/// # Errors
/// When initdb or a copy fails.
pub fn prepare(root: &Root, programs: &Programs, ha: bool) -> Result<()> {
    make_dir(root, 1)?;
    let data = root.join("postgres/data");
    let binaries = program_dir()?;
    let version = binaries.to_string_lossy().replace('/', "-");
    let cached = programs.cache().join(format!("cluster{version}-with-roles"));
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
    let listen = if ha {
        format!("listen_addresses = '{HOST}'\n")
    } else {
        String::new()
    };
    files::write(&config, files::read(&config)? + CONFIG + &socket + &listen)
}

/// A cluster's directory, which is its account's.
fn make_dir(root: &Root, n: u32) -> Result<()> {
    let (uid, gid) = accounts::ids(ACCOUNT)?;
    let dir = root.join(numbered("postgres", n));
    files::make_dir(&dir)?;
    std::os::unix::fs::chown(&dir, Some(uid.as_raw()), Some(gid.as_raw()))?;
    files::set_mode(&dir, 0o700)
}

/// Has a second cluster follow the first, which waits for it with every commit from then on: nothing that was promised
/// is lost with the first.
///
/// # Errors
/// When a program of PostgreSQL fails.
pub fn add_stand_by(root: &Root, programs: &Programs) -> Result<()> {
    make_dir(root, 2)?;
    let [one, two] = PORTS.map(|port| port.to_string());
    let data = root.inside("postgres-2/data");
    let mut copying = programs.at(root, &Place::Core, Some(ACCOUNT));
    copying.arg(program_dir()?.join("pg_basebackup"));
    copying.args(["--host", HOST, "--port", &one, "--username", ACCOUNT, "--pgdata", &data]);
    run::checked(copying.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]))?;
    let config = root.join("postgres-2/data/postgresql.conf");
    let own = format!(
        "port = {two}\nunix_socket_directories = '{}'\n",
        root.inside("postgres-2")
    );
    files::write(&config, files::read(&config)? + &own)?;
    setup::start(root, programs, &[component(root, 2)?])?;
    let mut waiting = programs.at(root, &Place::Core, Some(ACCOUNT));
    waiting.arg(program_dir()?.join("psql"));
    waiting.args([
        "-XAtq",
        "--host",
        HOST,
        "--port",
        &one,
        "--username",
        ACCOUNT,
        "postgres",
    ]);
    for statement in [
        "ALTER SYSTEM SET synchronous_standby_names = '*'",
        "SELECT pg_reload_conf()",
    ] {
        waiting.args(["-c", statement]);
    }
    run::checked(&mut waiting).map(drop)
}

/// Makes the second cluster the one that takes writes.
///
/// # Errors
/// When it does not.
pub fn promote(root: &Root, programs: &Programs) -> Result<()> {
    let mut promoting = programs.at(root, &Place::Core, Some(ACCOUNT));
    promoting.arg(program_dir()?.join("pg_ctl"));
    run::checked(promoting.args(["promote", "--wait", "--pgdata", &root.inside("postgres-2/data")])).map(drop)
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
        &format!(
            "CREATE ROLE {ROLE} LOGIN\nCREATE ROLE {SERVERD} LOGIN\nCREATE ROLE {ROUTERD} LOGIN\n\
             CREATE DATABASE {ROLE} OWNER {ROLE}\n"
        ),
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
pub fn component(root: &Root, n: u32) -> Result<Component> {
    let postgres = program_dir()?.join("postgres");
    let name = numbered("postgres", n);
    let data = format!("{name}/data");
    let mut component = Component::new(
        &name,
        Place::Core,
        &[&postgres.to_string_lossy(), "-D", &root.inside(&data)],
    )
    .address(root.inside(format_args!("{name}/.s.PGSQL.{}", PORTS[n as usize - 1])))
    .ready(Ready::Line(format!("{data}/postmaster.pid"), "ready".to_owned()));
    // What psql is told is none of the server's.
    component = component.env("PGPORT", PORTS[n as usize - 1].to_string());
    component.account = Some(ACCOUNT.to_owned());
    component.interrupt = true;
    Ok(component)
}
