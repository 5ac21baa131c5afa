//! What a lease costs: the time of a claim in a database that is full, and the memory of a server that holds many.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rssh_proto::{Epoch, ServerId, TunnelId};
use rssh_serverd::config::{Database, PortRange};
use rssh_serverd::lease::{Leases, Limits, Terms};
use rssh_serverd::ports::Ports;
use rssh_serverd::process::Process;
use rssh_serverd::store::{ClaimOutcome, SessionMark, Store};
use tokio::runtime::Runtime;

use super::crowd::at_once;
use super::results::{Figure, Reach};
use super::rig::Rig;
use super::stats::{Pairs, quantile};
use crate::place::Place;
use crate::postgres::{ACCOUNT, ROLE, program_dir};
use crate::run;

const SERVERS: u32 = 100;
/// The ports that each leases: 60,000 of them.
const RANGE: PortRange = PortRange {
    first: 2_000,
    last: 61_999,
};
/// How many claims are timed in each database; the first tenth is not counted.
const CLAIMS: usize = 440;
/// How many users and devices the tunnels are spread over.
const USERS: u32 = 1_000;
const DEVICES: u32 = 60_000;
/// Leases of one server whose memory is measured.
const HELD: u16 = 60_000;

/// Measures claims with one port in a hundred leased and with ninety-nine, in turns, and a server's memory per lease.
///
/// # Errors
/// When a database cannot be filled, or a claim is refused.
pub(super) fn measure(rig: &mut Rig) -> Result<Vec<Figure>> {
    let runtime = runtime()?;
    let begin = Instant::now();
    let (nearly_empty, nearly_full) = (Fleet::fill(rig, "one", 1)?, Fleet::fill(rig, "all", 99)?);
    let filled = begin.elapsed().as_secs_f64();
    let mut pairs = Pairs::default();
    let mut fleets = [
        (nearly_empty.open(&runtime, rig)?, Vec::new()),
        (nearly_full.open(&runtime, rig)?, Vec::new()),
    ];
    for turn in 0..CLAIMS {
        for (fleet, times) in &mut fleets {
            let took = runtime.block_on(fleet.claim(turn))?;
            if turn >= CLAIMS / 10 {
                times.push(took.as_secs_f64() * 1e6);
            }
        }
    }
    let [(_, empty), (full, times)] = fleets;
    let size = psql(rig, "postgres", "SELECT pg_database_size('fleet_all') / 1073741824.0")?;
    let size: f64 = size.trim().parse()?;
    let leased = psql(
        rig,
        &nearly_full.database,
        "SELECT count(*) FROM leases WHERE released_at IS NULL",
    )?;
    let (p99_empty, p99_full) = (quantile(&empty, 0.99), quantile(&times, 0.99));
    pairs.theirs = empty;
    pairs.ours = times;
    drop(full);
    for fleet in [&nearly_empty, &nearly_full] {
        fleet.forget(rig)?;
    }
    let flat = Figure::ratio(
        "lease_flatness",
        Reach::AtMost(1.2),
        &pairs,
        "us",
        &format!(
            "one claim, a free port taken and the lease committed with fsync: among {} live leases of {SERVERS} \
             servers, against a hundredth of that; p99 {p99_full:.0} us against {p99_empty:.0} us; the full database has \
             {size:.1} GiB, and to fill both took {filled:.0} s",
            leased.trim()
        ),
    );
    Ok(vec![flat, memory()?])
}

/// A database of its own in the lab's cluster, with servers that have leased a share of their ports.
struct Fleet {
    database: String,
    percent: u16,
}

impl Fleet {
    fn fill(rig: &Rig, name: &str, percent: u16) -> Result<Self> {
        let database = format!("fleet_{name}");
        let psql = |database: &str, sql: &str| psql(rig, database, sql);
        psql("postgres", &format!("CREATE DATABASE {database} OWNER {ROLE}"))?;
        let fleet = Self { database, percent };
        runtime()?.block_on(async { anyhow::Ok(fleet.store(rig)?.migrate().await?) })?;
        // Rows as the product writes them. What the keys of other tables are is not looked up six million times over.
        let quickly = "SET session_replication_role = replica; SET synchronous_commit = off;";
        let known = format!(
            "{quickly}
             INSERT INTO identities (name, kind) SELECT 'user-' || n, 'user' FROM generate_series(1, {USERS}) n;
             INSERT INTO users (id) SELECT 'user-' || n FROM generate_series(1, {USERS}) n;
             INSERT INTO identities (name, kind) SELECT 'device-' || n, 'device' FROM generate_series(1, {DEVICES}) n;
             INSERT INTO devices (id, ssh_key)
                 SELECT 'device-' || n, 'ssh-ed25519 ' || n FROM generate_series(1, {DEVICES}) n;
             INSERT INTO identities (name, kind) SELECT 's' || n, 'server' FROM generate_series(1, {SERVERS}) n;
             INSERT INTO servers (id, generation, state)
                 SELECT 's' || n, 1, 'serving' FROM generate_series(1, {SERVERS}) n;
             INSERT INTO tunnels (id, user_id, device_id, target, deadline_at, expires_at)
                 SELECT ('01940000' || lpad(to_hex(n), 24, '0'))::uuid, 'user-' || 1 + n % {USERS},
                     'device-' || 1 + n % {DEVICES}, 'localhost:80', now() + interval '8 hours', now() + interval '8 hours'
                 FROM generate_series(0, {CLAIMS} - 1) n"
        );
        psql(&fleet.database, &known)?;
        let each = u32::from(RANGE.last - RANGE.first + 1) * u32::from(percent) / 100;
        let first = RANGE.first;
        // Two connections, since each takes a processor for minutes.
        at_once([(1, SERVERS / 2), (SERVERS / 2 + 1, SERVERS)], |(from, to)| {
            let held = format!(
                "{quickly}
                 INSERT INTO tunnels (id, user_id, device_id, target, state, epoch, server_id, port, deadline_at,
                         answered_at, claimed_at, active_at, expires_at)
                     SELECT ('01930000' || lpad(to_hex(s * 65536 + p), 24, '0'))::uuid, 'user-' || 1 + p % {USERS},
                         'device-' || 1 + (p * 100 + s) % {DEVICES}, 'localhost:22', 'active', 1, 's' || s, {first} + p,
                         now(), now(), now(), now(), now() + interval '8 hours'
                     FROM generate_series({from}, {to}) s, generate_series(0, {each} - 1) p;
                 INSERT INTO leases (server_id, port, tunnel_id, epoch, session_pid, session_start, boot_id)
                     SELECT 's' || s, {first} + p, ('01930000' || lpad(to_hex(s * 65536 + p), 24, '0'))::uuid, 1,
                         1000 + {first} + p, 7, 'boot'
                     FROM generate_series({from}, {to}) s, generate_series(0, {each} - 1) p"
            );
            psql(&fleet.database, &held).map(drop)
        })?;
        psql(&fleet.database, "VACUUM ANALYZE")?;
        psql(&fleet.database, "CHECKPOINT")?;
        Ok(fleet)
    }

    /// The store as serverd has it.
    fn store(&self, rig: &Rig) -> Result<Store> {
        let socket = rig.lab.dir().join("postgres");
        let url = format!(
            "postgres://{ROLE}@localhost/{}?host={}",
            self.database,
            socket.display()
        );
        Ok(Store::new(&Database {
            url: url.into(),
            connections: 2,
        })?)
    }

    fn open(&self, runtime: &Runtime, rig: &Rig) -> Result<Open> {
        let taken = u32::from(RANGE.last - RANGE.first + 1) * u32::from(self.percent) / 100;
        let ports = (1..=SERVERS).map(|_| {
            let mut ports = Ports::new(RANGE);
            for port in (RANGE.first..=RANGE.last).take(taken as usize) {
                ports.take(port);
            }
            ports
        });
        let _inside = runtime.enter();
        Ok(Open {
            store: self.store(rig)?,
            ports: ports.collect(),
        })
    }

    /// Takes its database away.
    fn forget(&self, rig: &Rig) -> Result<()> {
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.database);
        psql(rig, "postgres", &drop)?;
        Ok(())
    }
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// The servers of a fleet, ready to claim.
struct Open {
    store: Store,
    ports: Vec<Ports>,
}

impl Open {
    /// Claims for the next tunnel, on one server after the other; says how long it took.
    async fn claim(&mut self, turn: usize) -> Result<Duration> {
        let at = turn % self.ports.len();
        let server: ServerId = format!("s{}", at + 1).parse()?;
        let device = format!("device-{}", 1 + turn % DEVICES as usize).parse()?;
        let tunnel: TunnelId = format!("01940000-0000-0000-0000-{turn:012x}").parse()?;
        let pid = i32::try_from(turn)? + 100_000;
        let mark = SessionMark {
            process: Process { pid, start: 7 },
            boot_id: "boot".to_owned(),
        };
        let draw = (turn as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let began = Instant::now();
        let port = self.ports[at].take_any(draw).context("no port is free")?;
        let outcome = self.store.claim(&server, port, &device, tunnel, &mark, 120).await?;
        let took = began.elapsed();
        ensure!(matches!(outcome, ClaimOutcome::Granted(_)), "refused: {outcome:?}");
        Ok(took)
    }
}

/// Runs SQL as the one who may do anything.
fn psql(rig: &Rig, database: &str, sql: &str) -> Result<String> {
    let psql = program_dir()?.join("psql");
    let psql = psql.to_string_lossy();
    let argv = [
        &psql,
        "-U",
        ACCOUNT,
        "-d",
        database,
        "-XAtq",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        sql,
    ];
    run::checked(&mut rig.lab.command(&Place::Core, &argv))
}

/// The memory that a server's lease machine takes for each lease, in a process of its own.
fn memory() -> Result<Figure> {
    let program = std::env::current_exe()?;
    let said = run::checked(Command::new(program).arg("hold-leases"))?;
    let grown: f64 = said.trim().parse()?;
    Ok(Figure::amount(
        "serverd_bytes_per_lease",
        Reach::AtMost(1024.0),
        &[grown / f64::from(HELD)],
        format!("bytes of private memory that serverd's lease machine grows by, from none to {HELD} held leases, each"),
    ))
}

/// Takes over as many leases as one server has, and prints by how many bytes that made this process grow.
///
/// # Errors
/// When a lease is not taken, or the memory cannot be read.
pub(super) fn hold() -> Result<()> {
    let limits = Limits {
        claim_within: Duration::from_secs(10),
        rest: Duration::from_secs(150),
    };
    let mut leases = Leases::new(RANGE, limits);
    let before = private_bytes()?;
    let now = Instant::now();
    for n in 0..HELD {
        let child = Process {
            pid: i32::from(n) + 100_000,
            start: u64::from(n),
        };
        let device = format!("warehouse-berlin-{n:05}").parse()?;
        let terms = Terms {
            epoch: Epoch(1),
            ttl: Duration::from_secs(8 * 3600),
            idle: Some(Duration::from_secs(1800)),
        };
        let taken = leases.adopt(child, RANGE.first + n, device, TunnelId::generate(), terms, now);
        ensure!(taken, "lease {n} is not taken");
    }
    println!("{}", private_bytes()? - before);
    drop(leases);
    Ok(())
}

/// This process's own memory (proc(5), smaps_rollup).
fn private_bytes() -> Result<i64> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("smaps_rollup has no Private_Dirty")?.parse::<i64>()? * 1024)
}
