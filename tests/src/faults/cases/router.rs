//! Faults of HAProxy and of the daemon beside it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::Action;
use crate::faults::case::{Bound, Case, Measured};
use crate::faults::scene::{PROBER, Scene};
use crate::files;
use crate::parts::router;
use crate::process;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "haproxy-reloaded-20-times",
        injects: "SIGUSR2 to HAProxy's master, 20 times",
        bound: Bound::count("sessions lost", 0.0),
        defence: "files are written before HAProxy is told; old processes carry their connections on",
        switch: Some("routerd is frozen and a route is taken from its file"),
        servers: 2,
        devices: 4,
        ha: false,
        run: reloaded,
    },
    Case {
        name: "haproxy-killed",
        injects: "SIGKILL to HAProxy with all its processes; started again",
        bound: Bound::seconds("back with a complete map", 5.0),
        defence: "it starts from files that are complete",
        switch: Some("routerd is frozen and a route is taken from its file"),
        servers: 2,
        devices: 4,
        ha: false,
        run: haproxy_killed,
    },
    Case {
        name: "routerd-killed",
        injects: "SIGKILL to routerd; a server comes back meanwhile; started again",
        bound: Bound::count("opens that failed", 0.0),
        defence: "HAProxy needs routerd for changes only",
        switch: Some("the routes' file is emptied, and HAProxy started anew from it"),
        servers: 2,
        devices: 3,
        ha: false,
        run: routerd_killed,
    },
    Case {
        name: "routerd-starts-without-stores",
        injects: "routerd restarted while Redis and PostgreSQL are away",
        bound: Bound::count("routes lost", 0.0),
        defence: "the last good registry is a file",
        switch: Some("that file is removed, and HAProxy is started anew from an empty configuration"),
        servers: 2,
        devices: 2,
        ha: false,
        run: without_stores,
    },
];

/// The rows of a map as HAProxy has them, and as its file has them.
fn map(scene: &Scene, name: &str) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let row = |line: &str| line.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    let list = scene.haproxy("show map")?;
    let id = list
        .lines()
        .find(|line| line.contains(name))
        .and_then(|line| line.split_ascii_whitespace().next())
        .with_context(|| format!("HAProxy has no map {name}"))?;
    let told = scene
        .haproxy(&format!("show map #{id}"))?
        .lines()
        .filter(|line| line.starts_with("0x"))
        .filter_map(|line| line.split_once(' '))
        .map(|(_, rest)| row(rest))
        .collect();
    let file = scene.lab.dir().join("router/haproxy/maps").join(name);
    let written = files::read(&file)?
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(row)
        .collect();
    Ok((told, written))
}

/// Checks that HAProxy, its files and the registry say the same.
fn consistent(scene: &Scene) -> Result<()> {
    let registered: BTreeSet<String> = scene
        .lab
        .psql("SELECT id FROM servers WHERE state = 'serving' AND lost_at IS NULL")?
        .lines()
        .map(str::to_owned)
        .collect();
    for name in ["addresses.map", "keys-current.map"] {
        let (told, written) = map(scene, name)?;
        ensure!(told == written, "{name}: HAProxy and the file differ");
        let servers: BTreeSet<String> = told
            .iter()
            .filter_map(|row| row.split(' ').next())
            .map(str::to_owned)
            .collect();
        ensure!(
            servers == registered,
            "{name} has {servers:?}, the registry {registered:?}"
        );
    }
    Ok(())
}

/// The number of HAProxy's working process.
fn worker(scene: &Scene) -> Option<String> {
    let info = scene.haproxy("show info").ok()?;
    info.lines()
        .find_map(|line| line.strip_prefix("Pid: "))
        .map(str::to_owned)
}

/// Takes a server's route from the file behind routerd's back.
fn spoil(scene: &Scene) -> Result<()> {
    scene.ctl(Action::Stop, "routerd")?;
    files::write(&scene.lab.dir().join("router/haproxy/maps/addresses.map"), "")
}

fn reloaded(scene: &Scene) -> Result<Measured> {
    let sessions = (1..=3).map(|n| scene.session(n)).collect::<Result<Vec<_>>>()?;
    if scene.without {
        spoil(scene)?;
    }
    let work = || -> Result<usize> {
        let mut signals = 0;
        for n in 1..=20 {
            let before = worker(scene).context("HAProxy does not answer")?;
            let master = scene.process("haproxy").context("HAProxy has ended")?;
            scene.fault(format!("reload {n}"));
            let another = process::wait(Duration::from_secs(15), || {
                signals += 1;
                master.signal(Signal::SIGUSR2).ok();
                // One that comes while it starts is lost.
                process::wait(Duration::from_secs(2), || {
                    worker(scene).is_some_and(|worker| worker != before)
                })
            });
            scene.effect(format!("another process works after reload {n}"), another);
            scene.last(Duration::from_millis(200));
        }
        Ok(signals)
    };
    let (signals, answers) = scene.while_probing(4, Duration::from_secs(8), work)?;
    let lost = sessions
        .iter()
        .filter(|session| !session.goes_on(Duration::from_secs(5)))
        .count();
    scene.until(Duration::from_secs(10), "map, file and registry are equal", || {
        Ok(consistent(scene).is_ok())
    })?;
    let failed: Vec<_> = answers.iter().filter(|answer| !answer.succeeded()).collect();
    ensure!(
        failed.is_empty(),
        "{} of {} opens failed meanwhile: {}",
        failed.len(),
        answers.len(),
        failed[0].stderr.trim()
    );
    Ok(Measured::count(
        lost,
        format!(
            "{signals} signals, {} opens meanwhile, map = file = registry",
            answers.len()
        ),
    ))
}

fn haproxy_killed(scene: &Scene) -> Result<Measured> {
    let opened = (1..=3).map(|n| scene.open(n)).collect::<Result<Vec<_>>>()?;
    let sessions = (1..=3).map(|n| scene.session(n)).collect::<Result<Vec<_>>>()?;
    sessions.iter().for_each(crate::faults::session::Session::touched);
    scene.ctl(Action::Kill, "haproxy")?;
    if scene.without {
        spoil(scene)?;
    }
    let began = Instant::now();
    scene.start("haproxy")?;
    scene.until(Duration::from_secs(20), "the map is complete", || {
        Ok(consistent(scene).is_ok() && router::servers_up(scene.lab.dir())? == 2)
    })?;
    let took = began.elapsed();
    let mut slowest = Duration::ZERO;
    for tunnel in &opened {
        slowest = slowest.max(scene.until_back(&tunnel.tunnel, 1, Duration::from_secs(30))?.0);
    }
    for n in 1..=3 {
        scene.login(n)?;
    }
    let again = began.elapsed();
    ensure!(
        again < Duration::from_secs(20),
        "tunnels came back after {again:?} only"
    );
    Ok(Measured::seconds(
        took,
        format!(
            "every tunnel reopened and logged in to after {:.1} s",
            again.as_secs_f64()
        ),
    ))
}

fn routerd_killed(scene: &Scene) -> Result<Measured> {
    let session = scene.session(1)?;
    scene.ctl(Action::Kill, "routerd")?;
    if scene.without {
        session.touched();
        spoil_file(scene)?;
    }
    let (_, answers) = scene.while_probing(2, Duration::from_secs(8), || {
        scene.last(Duration::from_secs(5));
        scene.ctl(Action::Restart, "serverd-2")?;
        scene.last(Duration::from_secs(3));
        scene.start("routerd")
    })?;
    scene.until(Duration::from_secs(10), "map, file and registry are equal", || {
        Ok(consistent(scene).is_ok())
    })?;
    ensure!(session.goes_on(Duration::from_secs(5)), "the session ended");
    let failed: Vec<_> = answers.iter().filter(|answer| !answer.succeeded()).collect();
    Ok(Measured::count(
        failed.len(),
        format!(
            "{} opens{}",
            answers.len(),
            failed
                .first()
                .map_or_else(String::new, |answer| format!("; {}", answer.stderr.trim()))
        ),
    ))
}

fn without_stores(scene: &Scene) -> Result<Measured> {
    let session = scene.session(1)?;
    let routes = |scene: &Scene| Ok::<_, anyhow::Error>(map(scene, "addresses.map")?.0);
    let before = routes(scene)?;
    ensure!(before.len() == 2, "routes before: {before:?}");
    scene.ctl(Action::Kill, "redis")?;
    scene.ctl(Action::Kill, "postgres")?;
    scene.ctl(Action::Kill, "routerd")?;
    if scene.without {
        session.touched();
        std::fs::remove_file(scene.lab.dir().join("router/registry.json"))?;
        spoil_file(scene)?;
    }
    scene.start("routerd")?;
    scene.last(Duration::from_secs(5));
    let now = routes(scene)?;
    let lost = before.difference(&now).count();
    scene.start("postgres")?;
    scene.start("redis")?;
    scene.until_opens(PROBER, 2, Duration::from_secs(20))?;
    ensure!(session.goes_on(Duration::from_secs(5)), "the session ended");
    consistent_soon(scene)?;
    Ok(Measured::count(lost, format!("{} routes kept", now.len())))
}

fn spoil_file(scene: &Scene) -> Result<()> {
    files::write(&scene.lab.dir().join("router/haproxy/maps/addresses.map"), "")?;
    scene.ctl(Action::Restart, "haproxy")
}

fn consistent_soon(scene: &Scene) -> Result<()> {
    scene
        .until(Duration::from_secs(10), "map, file and registry are equal", || {
            Ok(consistent(scene).is_ok())
        })
        .map(drop)
}
