//! Faults of PostgreSQL and of Redis.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::Action;
use crate::faults::case::{Bound, Case, Measured};
use crate::faults::scene::{PROBER, Scene};
use crate::parts::redis;
use crate::place::{LB, LB_DEVICES, Place, TUNNEL_ACCOUNT};
use crate::postgres::{ACCOUNT, SERVERD};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "postgres-killed-5s",
        injects: "SIGKILL to PostgreSQL; started again after 5 s",
        bound: Bound::seconds("resumed", 10.0),
        defence: "sessions need no database; opens are refused by name; nobody is swept",
        switch: Some("a living server is declared lost all the same"),
        servers: 2,
        devices: 5,
        ha: false,
        run: |scene| postgres(scene, Away::Killed, Duration::from_secs(5)),
    },
    Case {
        name: "postgres-frozen-5s",
        injects: "SIGSTOP to PostgreSQL for 5 s",
        bound: Bound::seconds("resumed", 10.0),
        defence: "every question to the database has a limit",
        switch: Some("a living server is declared lost all the same"),
        servers: 2,
        devices: 5,
        ha: false,
        run: |scene| postgres(scene, Away::Frozen, Duration::from_secs(5)),
    },
    Case {
        name: "postgres-frozen-20s",
        injects: "SIGSTOP to PostgreSQL for longer than a server may be silent",
        bound: Bound::seconds("resumed", 10.0),
        defence: "a server is lost only if the database answered throughout and its health check fails",
        switch: Some("a living server is declared lost all the same"),
        servers: 3,
        devices: 5,
        ha: false,
        run: |scene| postgres(scene, Away::Frozen, Duration::from_secs(20)),
    },
    Case {
        name: "postgres-out-of-connections",
        injects: "the servers' connections to PostgreSQL end, and no new ones are let in for 10 s",
        bound: Bound::seconds("resumed", 10.0),
        defence: "a server is lost only if the database answered throughout and its health check fails",
        switch: Some("a living server is declared lost all the same"),
        servers: 2,
        devices: 5,
        ha: false,
        run: |scene| postgres(scene, Away::Full, Duration::from_secs(10)),
    },
    Case {
        name: "tunnel-expires-without-postgres",
        injects: "SIGSTOP to PostgreSQL over the end of a tunnel's life",
        bound: Bound::seconds("ended after its life", 10.0),
        defence: "serverd knows a tunnel's life without the database",
        switch: Some("that serverd is frozen too"),
        servers: 2,
        devices: 2,
        ha: false,
        run: expires_without,
    },
    Case {
        name: "redis-killed",
        injects: "SIGKILL to Redis for 10 s, twice its registrations' life; it comes back empty",
        bound: Bound::count("opens that failed", 0.0),
        defence: "absence in Redis alone removes no route",
        switch: Some("PostgreSQL says that the servers are lost"),
        servers: 2,
        devices: 3,
        ha: false,
        run: |scene| redis(scene, Action::Kill),
    },
    Case {
        name: "redis-frozen",
        injects: "SIGSTOP to Redis for 10 s",
        bound: Bound::count("opens that failed", 0.0),
        defence: "questions to Redis have a limit; the last good routes stay",
        switch: Some("PostgreSQL says that the servers are lost"),
        servers: 2,
        devices: 3,
        ha: false,
        run: |scene| redis(scene, Action::Stop),
    },
    Case {
        name: "redis-flushed",
        injects: "FLUSHALL, five times",
        bound: Bound::count("opens that failed", 0.0),
        defence: "absence in Redis alone removes no route",
        switch: Some("PostgreSQL says that the servers are lost"),
        servers: 2,
        devices: 3,
        ha: false,
        run: flushed,
    },
];

/// A device's login by hand, with a key that is registered; says how long its refusal took.
fn refused_login(scene: &Scene, n: u32) -> Result<Duration> {
    let key = scene.lab.dir().inside(format_args!("devices/device-{n}/state/ssh_key"));
    let port = LB_DEVICES.to_string();
    let mut command = scene.lab.command(
        &Place::Device(n),
        &[
            "timeout",
            "30",
            "ssh",
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "KexAlgorithms=curve25519-sha256",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "IdentitiesOnly=yes",
            "-i",
            &key,
            "-p",
            &port,
            &format!("{TUNNEL_ACCOUNT}@{LB}"),
            "claim",
        ],
    );
    let began = Instant::now();
    let output = command.output()?;
    let took = began.elapsed();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("Permission denied"), "the login was not refused: {said}");
    Ok(took)
}

/// How PostgreSQL is out of reach.
#[derive(Clone, Copy)]
enum Away {
    Killed,
    Frozen,
    /// It has no connection left for servers.
    Full,
}

impl Away {
    fn begin(self, scene: &Scene) -> Result<()> {
        match self {
            Self::Killed => scene.ctl(Action::Kill, "postgres"),
            Self::Frozen => scene.ctl(Action::Stop, "postgres"),
            Self::Full => {
                scene.fault("no connection is left for servers");
                let limit = format!("ALTER ROLE {SERVERD} CONNECTION LIMIT 0");
                scene.lab.psql_as(ACCOUNT, &limit)?;
                let ended = scene.lab.psql_as(
                    ACCOUNT,
                    &format!(
                        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{SERVERD}'"
                    ),
                )?;
                scene.effect(format!("{ended} connections are ended"), ended != "0");
                Ok(())
            }
        }
    }

    fn end(self, scene: &Scene) -> Result<()> {
        match self {
            Self::Killed => scene.start("postgres"),
            Self::Frozen => scene.ctl(Action::Cont, "postgres"),
            Self::Full => scene
                .lab
                .psql_as(ACCOUNT, &format!("ALTER ROLE {SERVERD} CONNECTION LIMIT -1"))
                .map(drop),
        }
    }
}

fn postgres(scene: &Scene, away: Away, lasts: Duration) -> Result<Measured> {
    let sessions = (1..=3).map(|n| scene.session(n)).collect::<Result<Vec<_>>>()?;
    let servers = |scene: &Scene| {
        scene
            .lab
            .psql("SELECT id, generation, state, lost_at IS NOT NULL FROM servers ORDER BY 1")
    };
    let leases = |scene: &Scene| {
        scene
            .lab
            .psql("SELECT tunnel_id, port, epoch FROM live_leases ORDER BY 1")
    };
    let before = (servers(scene)?, leases(scene)?);
    let began = Instant::now();
    away.begin(scene)?;
    let refusal = refused_login(scene, 5)?;
    let answer = scene.try_open(PROBER, 4, Duration::from_secs(15))?;
    ensure!(!answer.succeeded(), "an open succeeded without PostgreSQL");
    // A new login through a tunnel that is open needs no database either, while its name lives.
    let other = thread::scope(|scope| {
        let again = scope.spawn(|| scene.login(1));
        thread::sleep(lasts.saturating_sub(began.elapsed()));
        again.join()
    });
    let logged_in = matches!(other, Ok(Ok(_)));
    let began = Instant::now();
    away.end(scene)?;
    if scene.without {
        scene.until(Duration::from_secs(10), "PostgreSQL answers", || {
            Ok(scene.lab.psql("SELECT 1").is_ok())
        })?;
        servers_lost(scene)?;
    }
    scene.until_opens(PROBER, 4, Duration::from_secs(40))?;
    let took = began.elapsed();
    // Whoever wakes first must not sweep the others.
    scene.last(Duration::from_secs(8));
    ensure!(
        servers(scene)? == before.0,
        "a living server was swept:\n{}",
        servers(scene)?
    );
    let now = leases(scene)?;
    ensure!(
        before.1.lines().all(|lease| now.contains(lease)),
        "a living tunnel was swept: {} became {now}",
        before.1
    );
    ensure!(
        sessions.iter().all(|session| session.goes_on(Duration::from_secs(5))),
        "a session ended"
    );
    let (refused, named) = (refusal.as_secs_f64(), answer.took.as_secs_f64());
    ensure!(
        refused <= 2.0,
        "a login was refused after {refused:.1} s only (2 s promised)"
    );
    ensure!(
        named <= 5.0,
        "an open was refused after {named:.1} s only (5 s promised)"
    );
    Ok(Measured::seconds(
        took,
        format!(
            "login refused after {refused:.1} s, open after {named:.1} s: {}; a login through an open tunnel {}",
            answer.stderr.trim(),
            if logged_in {
                "went through"
            } else {
                "did not go through"
            },
        ),
    ))
}

fn expires_without(scene: &Scene) -> Result<Measured> {
    let life = Duration::from_secs(12);
    let other = scene.session(2)?;
    let answer = scene.ask(
        "alice",
        "device-1",
        Duration::from_secs(15),
        &["rssh", "open", "device-1", "--json", "--ttl", "12s"],
    )?;
    let opened = Instant::now();
    let tunnel: crate::faults::scene::Opened = serde_json::from_str(&answer.stdout).context(answer.stderr)?;
    let place = (
        tunnel.server_number()?,
        tunnel.host.split('-').nth(1).unwrap_or_default().parse::<u16>()?,
    );
    let listens = || -> Result<bool> {
        let seen = scene.seen()?;
        Ok(seen
            .listeners
            .iter()
            .any(|listener| (listener.server, listener.port) == place))
    };
    scene.until(Duration::from_secs(5), "the tunnel listens", listens)?;
    scene.ctl(Action::Stop, "postgres")?;
    if scene.without {
        scene.ctl(Action::Stop, &format!("serverd-{}", place.0))?;
        // The agent knows the life of its tunnel too.
        scene.ctl(Action::Stop, "agentd-1")?;
    }
    ensure!(listens()?, "the tunnel ended before its life");
    scene.until(life + Duration::from_secs(15), "the tunnel has ended", || {
        Ok(!listens()?)
    })?;
    let late = opened.elapsed().saturating_sub(life);
    ensure!(
        opened.elapsed() + Duration::from_secs(2) >= life,
        "the tunnel ended before its life"
    );
    scene.ctl(Action::Cont, "postgres")?;
    scene.until(Duration::from_secs(15), "the lease is taken back", || {
        Ok(!scene.rows().leases.iter().any(|lease| lease.tunnel == tunnel.tunnel))
    })?;
    ensure!(other.goes_on(Duration::from_secs(5)), "the other session ended");
    Ok(Measured::seconds(late, ""))
}

/// Has the database say that every server is lost, and of an earlier generation.
fn servers_lost(scene: &Scene) -> Result<()> {
    scene
        .lab
        .psql("UPDATE servers SET lost_at = clock_timestamp(), state = 'offline', generation = generation + 1")
        .map(drop)
}

/// Opens and closes for a while; says how often, and how often that failed.
fn opens(scene: &Scene, lasts: Duration) -> Result<(usize, usize)> {
    let began = Instant::now();
    let (mut all, mut failed) = (0, 0);
    while began.elapsed() < lasts {
        all += 1;
        if scene.try_open(PROBER, 2, Duration::from_secs(8))?.succeeded() {
            scene.close_tunnel(PROBER, 2)?;
        } else {
            failed += 1;
        }
        thread::sleep(Duration::from_millis(200));
    }
    Ok((all, failed))
}

fn redis(scene: &Scene, action: Action) -> Result<Measured> {
    let session = scene.session(1)?;
    scene.ctl(action, "redis")?;
    if scene.without {
        session.touched();
        servers_lost(scene)?;
    }
    let (all, mut failed) = opens(scene, Duration::from_secs(10))?;
    match action {
        Action::Kill => scene.start("redis")?,
        _ => scene.ctl(Action::Cont, "redis")?,
    }
    let (more, late) = opens(scene, Duration::from_secs(3))?;
    failed += late;
    ensure!(session.goes_on(Duration::from_secs(5)), "the session ended");
    scene.until(Duration::from_secs(10), "both servers are registered again", || {
        Ok(keys(scene)?.lines().count() == 2)
    })?;
    Ok(Measured::count(failed, format!("{} opens", all + more)))
}

fn redis_cli(scene: &Scene, argv: &[&str]) -> Result<String> {
    let all = redis::cli(scene.lab.dir(), 1, argv);
    scene.at(&Place::Core, &all.iter().map(String::as_str).collect::<Vec<_>>())
}

fn keys(scene: &Scene) -> Result<String> {
    redis_cli(scene, &["KEYS", "rssh:server:*"])
}

fn flushed(scene: &Scene) -> Result<Measured> {
    let session = scene.session(1)?;
    if scene.without {
        session.touched();
        servers_lost(scene)?;
    }
    let (mut all, mut failed) = (0, 0);
    for _ in 0..5 {
        scene.fault("FLUSHALL");
        redis_cli(scene, &["FLUSHALL"])?;
        let left = keys(scene)?;
        // A server may have registered again in between.
        scene.effect(
            "the registry is empty",
            left.lines().filter(|line| !line.is_empty()).count() <= 1,
        );
        let (more, bad) = opens(scene, Duration::from_secs(2))?;
        all += more;
        failed += bad;
    }
    ensure!(session.goes_on(Duration::from_secs(5)), "the session ended");
    scene.until(Duration::from_secs(10), "both servers are registered again", || {
        Ok(keys(scene)?.lines().count() == 2)
    })?;
    Ok(Measured::count(failed, format!("{all} opens")))
}
