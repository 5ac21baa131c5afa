//! Faults of one of two: a PostgreSQL with a stand-by, a Redis with Sentinels, a broker, a load balancer.
//!
//! Each goes for good while tunnels are held and another user opens and closes without a pause.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::faults::case::{Bound, Case, Measured};
use crate::faults::scene::{Answer, PROBER, Scene, TIMEOUT};
use crate::parts::{redis, router};
use crate::place::Place;
use crate::setup::ask_haproxy;
use crate::{Action, files, postgres};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "ha-postgres-lost",
        injects: "SIGKILL to PostgreSQL under load; its stand-by is promoted; the old one comes back and takes writes",
        bound: Bound::seconds("an open succeeds after the promotion", 10.0),
        defence: "the URL names both; the one that takes writes, of the newer timeline, is used",
        switch: Some("the servers' URL names the first only"),
        servers: 2,
        devices: 4,
        ha: true,
        run: |scene| postgres_lost(scene, Action::Kill),
    },
    Case {
        name: "ha-postgres-hangs",
        injects: "SIGSTOP to PostgreSQL under load; its stand-by is promoted; the old one wakes",
        bound: Bound::seconds("an open succeeds after the promotion", 10.0),
        defence: "in doubt every host is asked; connections to one that hangs make room",
        switch: Some("the servers' URL names the first only"),
        servers: 2,
        devices: 4,
        ha: true,
        run: |scene| postgres_lost(scene, Action::Stop),
    },
    Case {
        name: "ha-redis-lost",
        injects: "SIGKILL to the Redis that is master, under load; Sentinels promote the other",
        bound: Bound::seconds("both servers registered at the new master", 20.0),
        defence: "daemons ask the Sentinels where the master is",
        switch: Some("two of three Sentinels are frozen: no quorum"),
        servers: 2,
        devices: 4,
        ha: true,
        run: redis_lost,
    },
    Case {
        name: "ha-broker-lost",
        injects: "SIGKILL to the first of two brokers under load; it comes back, and some are at one, some at the other",
        bound: Bound::seconds("an open succeeds", 15.0),
        defence: "servers hold a session with each broker; agents and users try them in turn",
        switch: Some("servers know the first only"),
        servers: 2,
        devices: 4,
        ha: true,
        run: broker_lost,
    },
    Case {
        name: "ha-load-balancer-lost",
        injects: "SIGKILL to the first of two HAProxies and its routerd under load",
        bound: Bound::seconds("every tunnel is back", 20.0),
        defence: "orders and profiles name both; their maps are equal",
        switch: Some("servers and users know the first only"),
        servers: 2,
        devices: 4,
        ha: true,
        run: balancer_lost,
    },
];

/// Changes the configuration of every server, and has them read it.
fn reconfigure(scene: &Scene, from: &str, to: &str) -> Result<()> {
    for n in 1..=2 {
        let path = scene.lab.dir().join(format!("servers/s{n}/serverd.toml"));
        let text = files::read(&path)?;
        ensure!(text.contains(from), "the configuration of s{n} has no {from}");
        files::write(&path, text.replace(from, to))?;
        scene.ctl(Action::Restart, &format!("serverd-{n}"))?;
    }
    Ok(())
}

/// How opens went: how many, and what those said that failed.
fn told(answers: &[Answer]) -> String {
    let failed: BTreeSet<&str> = answers
        .iter()
        .filter(|answer| !answer.succeeded())
        .map(|answer| answer.stderr.trim())
        .collect();
    let good = answers.iter().filter(|answer| answer.succeeded()).count();
    let all = answers.len();
    match failed.is_empty() {
        true => format!("{all} opens meanwhile, all good"),
        false => format!("{good} of {all} opens meanwhile good; {failed:?}"),
    }
}

/// Who serves, and which tunnels are where.
fn standing(scene: &Scene) -> Result<(String, String)> {
    Ok((
        scene
            .lab
            .psql("SELECT id, generation, lost_at IS NOT NULL FROM servers ORDER BY 1")?,
        scene
            .lab
            .psql("SELECT tunnel_id, server_id, port, epoch FROM live_leases ORDER BY 1")?,
    ))
}

fn postgres_lost(scene: &Scene, action: Action) -> Result<Measured> {
    if scene.without {
        let [_, two] = postgres::PORTS;
        reconfigure(scene, &format!(",{}:{two}", postgres::HOST), "")?;
    }
    for n in 1..=3 {
        scene.open(n)?;
    }
    let sessions = (1..=3).map(|n| scene.session(n)).collect::<Result<Vec<_>>>()?;
    let before = standing(scene)?;
    let (took, answers) = scene.while_probing(4, Duration::from_secs(8), || {
        scene.last(Duration::from_secs(2));
        scene.ctl(action, "postgres")?;
        scene.last(Duration::from_secs(3));
        postgres::promote(scene.lab.dir(), scene.lab.programs())?;
        scene.note("the stand-by is promoted");
        let opened = scene.until_opens("alice", 4, Duration::from_secs(40))?;
        // The old one is as it was, and knows nothing of what happened since.
        match action {
            Action::Kill => scene.start("postgres")?,
            _ => scene.ctl(Action::Cont, "postgres")?,
        }
        scene.last(Duration::from_secs(5));
        Ok(opened)
    })?;
    scene.until_opens("alice", 4, Duration::from_secs(10))?;
    // Longer than a server may be silent: nobody was declared lost over it.
    scene.last(Duration::from_secs(6));
    let at_the_new = |sql: &str| -> Result<String> {
        let psql = postgres::program_dir()?.join("psql");
        let port = postgres::PORTS[1].to_string();
        let psql = psql.to_string_lossy();
        let argv = [&*psql, "-XAtq", "-h", postgres::HOST, "-p", &port, "-c", sql];
        Ok(scene.at(&Place::Core, &argv)?.trim_end().to_owned())
    };
    let servers = at_the_new("SELECT id, generation, lost_at IS NOT NULL FROM servers ORDER BY 1")?;
    ensure!(servers == before.0, "a living server was swept:\n{servers}");
    let leases = at_the_new("SELECT tunnel_id, server_id, port, epoch FROM live_leases ORDER BY 1")?;
    ensure!(
        before.1.lines().all(|lease| leases.contains(lease)),
        "a living tunnel was swept: {} became {leases}",
        before.1
    );
    ensure!(
        sessions.iter().all(|session| session.goes_on(Duration::from_secs(5))),
        "a session ended"
    );
    for n in 1..=3 {
        scene.login(n)?;
    }
    Ok(Measured::seconds(took, told(&answers)))
}

fn redis_lost(scene: &Scene) -> Result<Measured> {
    let session = scene.session(1)?;
    if scene.without {
        for n in [1, 2] {
            scene.ctl(Action::Stop, &format!("sentinel-{n}"))?;
        }
    }
    // It ends connections when its role changes.
    let asked = |argv: &[&str]| -> String {
        let all = redis::cli(scene.lab.dir(), 2, argv);
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        scene.at(&Place::Core, &all).unwrap_or_default()
    };
    let registered = || {
        let keys = asked(&["KEYS", "rssh:server:*"]);
        keys.lines().filter(|key| !key.is_empty()).count()
    };
    let (took, answers) = scene.while_probing(4, Duration::from_secs(8), || {
        scene.last(Duration::from_secs(2));
        scene.ctl(Action::Kill, "redis")?;
        // What the replica had of them has run out by itself, or is written anew.
        scene.until(
            Duration::from_secs(30),
            "both servers are registered at a new master",
            || Ok(asked(&["ROLE"]).starts_with("master") && registered() == 2),
        )
    })?;
    // It stays so: they are not left-overs.
    scene.last(Duration::from_secs(6));
    ensure!(registered() == 2, "{} are registered at the new master", registered());
    // The old master comes back as a replica.
    scene.start("redis")?;
    let failed = answers.iter().filter(|answer| !answer.succeeded()).count();
    ensure!(failed == 0, "{failed} opens failed: {}", told(&answers));
    ensure!(session.goes_on(Duration::from_secs(5)), "the session ended");
    scene.until_opens(PROBER, 4, Duration::from_secs(10))?;
    Ok(Measured::seconds(took, told(&answers)))
}

fn broker_lost(scene: &Scene) -> Result<Measured> {
    if scene.without {
        reconfigure(scene, ", \"198.51.100.4:8883\"", "")?;
        scene.until_opens(PROBER, 4, Duration::from_secs(20))?;
    }
    let sessions = (1..=3).map(|n| scene.session(n)).collect::<Result<Vec<_>>>()?;
    let before = standing(scene)?;
    let (took, answers) = scene.while_probing(4, Duration::from_secs(8), || {
        scene.last(Duration::from_secs(2));
        scene.ctl(Action::Kill, "mosquitto")?;
        let took = scene.until_opens("alice", 4, Duration::from_secs(60))?;
        scene.last(Duration::from_secs(3));
        // Agents stay at the second; a user's program begins with the first.
        scene.start("mosquitto")?;
        scene.last(Duration::from_secs(3));
        Ok(took)
    })?;
    for n in 1..=3 {
        let answer = scene.try_open(PROBER, n, TIMEOUT)?;
        ensure!(
            answer.succeeded(),
            "an open failed with both brokers up: {}",
            answer.stderr
        );
        scene.close_tunnel(PROBER, n)?;
    }
    ensure!(standing(scene)?.0 == before.0, "a living server was swept");
    ensure!(
        sessions.iter().all(|session| session.goes_on(Duration::from_secs(5))),
        "a session ended"
    );
    Ok(Measured::seconds(took, told(&answers)))
}

/// The maps that a router keeps, by name.
fn maps(scene: &Scene, n: u32) -> Result<Vec<String>> {
    let below = scene.lab.dir().join(router::dir(n)).join("haproxy/maps");
    let names = ["addresses.map", "keys-current.map", "keys-previous.map"];
    names.iter().map(|name| files::read(&below.join(name))).collect()
}

fn balancer_lost(scene: &Scene) -> Result<Measured> {
    ensure!(maps(scene, 1)? == maps(scene, 2)?, "the routers' maps differ");
    if scene.without {
        reconfigure(scene, ", \"198.51.100.4:2222\"", "")?;
        for user in ["alice", PROBER] {
            let path = scene
                .lab
                .dir()
                .join(format!("users/{user}/home/.config/rssh/profile.toml"));
            let text = files::read(&path)?;
            files::write(&path, text.replace(", \"198.51.100.4:443\"", ""))?;
        }
        scene.until_opens(PROBER, 4, Duration::from_secs(20))?;
    }
    let opened = (1..=3).map(|n| scene.open(n)).collect::<Result<Vec<_>>>()?;
    let sessions = (1..=3).map(|n| scene.session(n)).collect::<Result<Vec<_>>>()?;
    // Users begin with the first, and each device's ssh drew one.
    sessions.iter().for_each(crate::faults::session::Session::touched);
    let through = |scene: &Scene| -> Result<usize> {
        let table = ask_haproxy(scene.lab.dir(), "router/haproxy/admin.sock", "show sess")?;
        Ok(table.matches("fe=devices").count())
    };
    let moving = through(scene)?;
    let (took, answers) = scene.while_probing(4, TIMEOUT, || {
        scene.last(Duration::from_secs(2));
        scene.ctl(Action::Kill, "routerd")?;
        scene.ctl(Action::Kill, "haproxy")?;
        let began = Instant::now();
        for tunnel in &opened {
            scene.until(Duration::from_secs(40), "the tunnel is back", || {
                Ok(scene.place_of(&tunnel.tunnel).is_some())
            })?;
        }
        for n in 1..=3 {
            scene.until(Duration::from_secs(40), "a login succeeds", || {
                Ok(scene.login(n).is_ok())
            })?;
        }
        Ok(began.elapsed())
    })?;
    let failed = answers.iter().filter(|answer| !answer.succeeded()).count();
    ensure!(failed == 0, "{failed} opens failed: {}", told(&answers));
    scene.start("haproxy")?;
    scene.start("routerd")?;
    scene
        .until(Duration::from_secs(20), "the routers' maps are equal", || {
            Ok(maps(scene, 1)? == maps(scene, 2)? && router::servers_up_at(scene.lab.dir(), 1).is_ok_and(|up| up == 2))
        })
        .context("after its return")?;
    Ok(Measured::seconds(
        took,
        format!("{moving} devices' connections went through it; {}", told(&answers)),
    ))
}
