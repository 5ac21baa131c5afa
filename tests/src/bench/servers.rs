//! What a load balancer takes for each server that it knows, and for each connection that it holds.
//!
//! The servers are registered as serverd does it: with identities of their own, entries signed with their certificates,
//! in the lab's Redis and PostgreSQL, and with somebody who answers HAProxy's health checks. Nothing lands on them.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use rssh_mqtt::renewal::Renewable;
use rssh_mqtt::{Identity, IdentityFiles, identity};
use rssh_proto::payload::{ServerState, V1};
use rssh_proto::registration::{REDIS_CHANNEL, Registration, redis_key};
use rssh_proto::{Generation, ServerId};
use rssh_serverd::config::Database;
use rssh_serverd::domain::Domain;
use rssh_serverd::pki::{CertificateRequest, Pki};
use rssh_serverd::registry::Signer;
use rssh_serverd::store::Store;
use tokio::runtime::Runtime;

use super::memory::{self, KIB};
use super::results::{Figure, Reach, number};
use super::rig::Rig;
use crate::component::Record;
use crate::parts::{redis, router};
use crate::place::{LB, LB_DEVICES, Place, server_address};
use crate::postgres::{ACCOUNT, ROLE, program_dir};
use crate::{Lab, files, process, run};

/// How many servers there are in the end, with the lab's own.
const SERVERS: u32 = 1000;
/// What each announces: nothing, then its share of six million leases, and last as many as a large one can hold, which needs
/// both of its ssh addresses; and with a door for HTTPS.
const EMPTY: Announced = Announced {
    tunnels: 0,
    capacity: 7000,
    https: false,
};
const HELD: Announced = Announced { tunnels: 6000, ..EMPTY };
const LARGE: Announced = Announced {
    tunnels: 60_000,
    capacity: 61_000,
    https: true,
};
/// Where they say that they answer; the lab's own servers have other ports.
const HEALTH: u16 = 8122;
const SSH: [u16; 2] = [2291, 2292];
const HTTPS: u16 = 8123;
/// How long an entry stays in Redis.
const TTL: Duration = Duration::from_secs(600);
/// How long routerd and HAProxy may take to learn of them all.
const LEARNS: Duration = Duration::from_secs(300);
/// The same for loads, which no state of HAProxy's says it has learnt.
const LEARNS_LOADS: Duration = Duration::from_secs(5);
/// How often they beat: four times in the time to live that the lab's servers go by.
const BEATS: Duration = Duration::from_millis(1250);
/// How many threads answer health checks; there are thousands in a second.
const ANSWERING: usize = 4;
/// Connections that do nothing: fewer than HAProxy lets one source begin in ten seconds.
const IDLE: usize = 2000;

/// What a server says of itself that is not the same for all.
#[derive(Debug, Clone, Copy)]
struct Announced {
    tunnels: u32,
    capacity: u32,
    https: bool,
}

/// A server that is there in the registry only.
struct Registered {
    id: ServerId,
    n: u32,
    signer: Signer,
}

/// Measures the growth of routerd and HAProxy.
///
/// # Errors
/// When the servers are not taken up.
pub fn measure(rig: &mut Rig) -> Result<Vec<Figure>> {
    let lab = &rig.lab;
    let before = [part(lab, "routerd")?, part(lab, "haproxy")?];
    let own = router::servers_up(lab.dir())? as u32;
    let fleet = Fleet::make(lab, own + 1..=SERVERS)?;
    let done = AtomicBool::new(false);
    let measured = thread::scope(|scope| {
        let beats = scope.spawn(|| beat(lab, &done));
        let figures = measured(lab, &fleet, own, before);
        done.store(true, Ordering::Relaxed);
        let beaten = beats.join().map_err(|_| anyhow!("the thread of heartbeats panicked"))?;
        beaten.and(figures)
    });
    fleet.forget(lab, own as usize)?;
    measured
}

fn measured(lab: &Lab, fleet: &Fleet, own: u32, [routerd, haproxy]: [f64; 2]) -> Result<Vec<Figure>> {
    fleet.answer(lab)?;
    let up = || router::addresses_up(lab.dir());
    let (there, begin) = (up()?, Instant::now());
    fleet.register(lab, 1, EMPTY)?;
    let learn = |each: u32| {
        let wanted = there + (each * (SERVERS - own)) as usize;
        let learnt = process::wait(LEARNS, || up().is_ok_and(|up| up >= wanted));
        ensure!(
            learnt,
            "HAProxy sees {:?} of {wanted} addresses up after {} s",
            up(),
            LEARNS.as_secs()
        );
        Ok(())
    };
    learn(1)?;
    let learnt = begin.elapsed();
    let added = f64::from(SERVERS - own);
    // What is there for each now: routerd's, and all of it.
    let each = || -> Result<[f64; 2]> {
        let all = rested(lab)?;
        let own = part(lab, "routerd")?;
        Ok([(own - routerd) / added, (all - routerd - haproxy) / added])
    };
    let empty = each()?;
    // The same servers with all of their leases.
    fleet.register(lab, 2, HELD)?;
    thread::sleep(LEARNS_LOADS);
    let held = each()?;
    // Large ones are empty at first too, when they weigh most.
    fleet.register(lab, 3, Announced { tunnels: 0, ..LARGE })?;
    learn(3)?;
    fleet.register(lab, 4, LARGE)?;
    thread::sleep(LEARNS_LOADS);
    let large = each()?;

    let idle = idle_connections(lab)?;
    Ok(vec![
        Figure::amount(
            "router_state_bytes_per_server",
            Reach::AtMost(16_384.0),
            &[held[1]],
            format!(
                "bytes that the PSS of routerd and HAProxy (both of its processes) grows by for each server from {own} to \
                 {SERVERS} in Redis and PostgreSQL, with health checks; {} of them are routerd's, and {} have come since each \
                 announces {} leases and not none; learnt in {:.1} s",
                number(held[0]),
                number(held[1] - empty[1]),
                HELD.tunnels,
                learnt.as_secs_f64()
            ),
        ),
        Figure::amount(
            "router_state_bytes_per_large_server",
            Reach::None,
            &[large[1]],
            format!(
                "the same where each announces {} leases, which takes two ssh addresses, and an address for HTTPS: three \
                 servers of HAProxy's pools for each; {} of them are routerd's",
                LARGE.tunnels,
                number(large[0])
            ),
        ),
        Figure::amount(
            "router_kib_per_connection",
            Reach::None,
            &[idle.0],
            format!(
                "KiB that HAProxy's PSS grows by for each of {IDLE} idle connections of devices; beside it the kernel's, for \
                 HAProxy's two sockets and the two at their far ends"
            ),
        )
        .against(idle.1),
    ])
}

/// Beats for all of them, as often as serverd does: of one that is silent, and slow to answer, the others would soon say
/// that it is lost.
fn beat(lab: &Lab, done: &AtomicBool) -> Result<()> {
    while !done.load(Ordering::Relaxed) {
        psql(
            lab,
            "UPDATE server_heartbeats SET counter = counter + 1 WHERE server_id LIKE 'x%'",
        )?;
        thread::sleep(BEATS);
    }
    Ok(())
}

/// What routerd and HAProxy take now.
fn there(lab: &Lab) -> Result<f64> {
    Ok(part(lab, "routerd")? + part(lab, "haproxy")?)
}

/// What one of them takes now.
fn part(lab: &Lab, name: &str) -> Result<f64> {
    let record = Record::read(lab.dir(), name).with_context(|| format!("there is no {name}"))?;
    Ok(memory::pss_of(&record.members(&lab.networks().inodes())))
}

/// The same, once two looks a second apart differ by less than a hundredth.
fn rested(lab: &Lab) -> Result<f64> {
    let mut last = there(lab)?;
    for _ in 0..20 {
        thread::sleep(Duration::from_secs(1));
        let now = there(lab)?;
        if (now - last).abs() < last / 100.0 {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

/// HAProxy's and the kernel's KiB for each connection of a device that does nothing.
fn idle_connections(lab: &Lab) -> Result<(f64, f64)> {
    let (before, kernel) = (rested(lab)?, memory::kernels()?);
    let connections = lab.networks().inside(&Place::Core, || -> Result<Vec<TcpStream>> {
        let mut connections = Vec::with_capacity(IDLE);
        for _ in 0..IDLE {
            let mut stream = TcpStream::connect((LB, LB_DEVICES))?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            // The far side has taken it once it has said something.
            stream.read_exact(&mut [0; 4])?;
            connections.push(stream);
        }
        Ok(connections)
    })??;
    let (grown, kernels) = (rested(lab)? - before, memory::kernels()? - kernel);
    let each = |bytes: f64| bytes / connections.len() as f64 / KIB;
    Ok((each(grown), each(kernels)))
}

/// Servers in the registry.
struct Fleet {
    all: Vec<Registered>,
    store: Store,
    runtime: Runtime,
}

impl Fleet {
    /// Makes identities for them, signed by the lab's authority, and rows in PostgreSQL as if they had started once.
    fn make(lab: &Lab, numbers: std::ops::RangeInclusive<u32>) -> Result<Self> {
        let dir = lab.dir().join("pki/bench");
        files::make_dir(&dir)?;
        let pki = Pki::at(&lab.dir().join("pki"));
        let ca = pki.ca_cert(Domain::Servers);
        let mut all = Vec::new();
        let mut rows = String::new();
        for n in numbers {
            let id = format!("x{n}");
            let [cert, key] = ["pem", "key"].map(|ext| dir.join(format!("{id}.{ext}")));
            let request = identity::certificate_request(&id, &key)?;
            let issued = pki.issue(Domain::Servers, &id, &CertificateRequest::from_pem(&request)?)?;
            files::write(&cert, issued.pem)?;
            let files = IdentityFiles {
                ca: ca.clone(),
                cert,
                key,
            };
            let signer = Signer::new(&Identity::load(&files)?, Renewable::load(&files)?)?;
            let _ = writeln!(
                rows,
                "INSERT INTO identities (name, kind) VALUES ('{id}', 'server');
                 INSERT INTO servers (id, generation) VALUES ('{id}', 1);"
            );
            all.push(Registered {
                id: id.parse()?,
                n,
                signer,
            });
        }
        psql(lab, &format!("BEGIN;{rows}COMMIT;"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let socket = lab.dir().join("postgres");
        let url = format!("postgres://{ROLE}@localhost/{ROLE}?host={}", socket.display());
        let store = {
            let _inside = runtime.enter();
            Store::new(&Database {
                url: url.into(),
                connections: 2,
            })?
        };
        Ok(Self { all, store, runtime })
    }

    /// Answers for all of them: health checks, and connections to their sshd, which get four bytes and are held.
    fn answer(&self, lab: &Lab) -> Result<()> {
        let listen = |port| {
            lab.networks()
                .inside(&Place::Core, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        };
        let health = listen(HEALTH)??;
        for _ in 0..ANSWERING {
            let health = health.try_clone()?;
            thread::spawn(move || {
                for mut stream in health.incoming().flatten() {
                    // One that goes away is not answered; the next check comes soon.
                    let _ = answer_check(&mut stream);
                }
            });
        }
        for port in SSH.into_iter().chain([HTTPS]) {
            let sshd = listen(port)??;
            thread::spawn(move || {
                let mut held = Vec::new();
                for mut stream in sshd.incoming().flatten() {
                    stream.write_all(b"SSH-").ok();
                    held.push(stream);
                }
            });
        }
        Ok(())
    }

    /// Writes what each says of itself, as serverd does at every heartbeat.
    fn register(&self, lab: &Lab, counter: u64, announced: Announced) -> Result<()> {
        let mut commands = String::new();
        for server in &self.all {
            let address = server_address(server.n);
            let at = |port| SocketAddr::new(address.into(), port);
            let registration = Registration {
                v: V1,
                server: server.id.clone(),
                address: address.into(),
                ssh: SSH.map(at).to_vec(),
                health: at(HEALTH),
                https: announced.https.then(|| at(HTTPS)),
                state: ServerState::Serving,
                capacity: announced.capacity,
                tunnels: announced.tunnels,
                load: 0.1,
                generation: Generation(1),
                instance: format!("{:032x}", server.n).parse()?,
                counter,
            };
            let signed = server.signer.sign(&registration)?;
            ensure!(!signed.contains('\''), "an entry cannot be written for redis-cli");
            let (key, ttl) = (redis_key(&server.id), TTL.as_millis());
            let _ = writeln!(
                commands,
                "PSETEX {key} {ttl} '{signed}'\nPUBLISH {REDIS_CHANNEL} {}",
                server.id
            );
            let written = self.runtime.block_on(async {
                let (store, id, generation) = (&self.store, &server.id, Generation(1));
                let registered = store
                    .register(id, generation, ServerState::Serving, registration.health, &signed)
                    .await?;
                // The first beat; the others follow by themselves.
                anyhow::Ok(registered && (counter > 1 || store.heartbeat(id, generation, counter).await?))
            })?;
            ensure!(written, "{} has been declared lost", server.id);
        }
        redis_cli(lab, &commands)
    }

    /// Takes them out of the registry again, and waits until HAProxy has forgotten them.
    fn forget(&self, lab: &Lab, left: usize) -> Result<()> {
        let commands: String = self
            .all
            .iter()
            .map(|server| format!("DEL {}\n", redis_key(&server.id)))
            .collect();
        psql(lab, "DELETE FROM identities WHERE kind = 'server' AND name LIKE 'x%'")?;
        redis_cli(lab, &commands)?;
        let forgotten = process::wait(LEARNS, || router::servers_up(lab.dir()).is_ok_and(|up| up == left));
        ensure!(forgotten, "HAProxy still has servers that are in no registry");
        Ok(())
    }
}

/// Answers one health check as the server whose address was asked would.
fn answer_check(stream: &mut TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut request = [0; 512];
    let _ = stream.read(&mut request)?;
    let SocketAddr::V4(asked) = stream.local_addr()? else {
        return Ok(());
    };
    let [_, _, high, low] = asked.ip().octets();
    let n = u32::from(high - 1) * 250 + u32::from(low);
    let body = format!("{{\"server\":\"x{n}\"}}\n");
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(())
}

fn redis_cli(lab: &Lab, commands: &str) -> Result<()> {
    let argv = redis::cli(lab.dir(), 1, &[]);
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    run::fed(&mut lab.command(&Place::Core, &argv), commands).map(drop)
}

fn psql(lab: &Lab, sql: &str) -> Result<()> {
    let psql = program_dir()?.join("psql");
    let psql = psql.to_string_lossy();
    let argv = [&psql, "-U", ACCOUNT, "-d", ROLE, "-XAtq", "-v", "ON_ERROR_STOP=1"];
    run::fed(&mut lab.command(&Place::Core, &argv), sql).map(drop)
}
