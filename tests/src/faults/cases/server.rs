//! Faults of servers: the daemon, its sshd, the whole machine.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::load::{Load, load_on_both};
use super::messages::deaf_subscriber;
use crate::Action;
use crate::bench::stats::quantile;
use crate::faults::case::{Bound, Case, Measured};
use crate::faults::scene::{PROBER, Scene, USER};
use crate::parts::router;
use crate::place::Place;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "serverd-killed",
        injects: "SIGKILL to serverd under live sessions; started again",
        bound: Bound::seconds("adopted", 10.0),
        defence: "sessions are taken over by pid, start time and boot id",
        switch: Some("the leases name another boot while it is dead"),
        servers: 2,
        devices: 6,
        ha: false,
        run: |scene| restarted(scene, Action::Kill),
    },
    Case {
        name: "serverd-terminated",
        injects: "SIGTERM to serverd under live sessions; started again",
        bound: Bound::seconds("adopted", 10.0),
        defence: "sessions are taken over by pid, start time and boot id",
        switch: Some("the leases name another boot while it is away"),
        servers: 2,
        devices: 6,
        ha: false,
        run: |scene| restarted(scene, Action::Term),
    },
    Case {
        name: "serverd-frozen",
        injects: "SIGSTOP to serverd until its tunnels are elsewhere; then SIGCONT",
        bound: Bound::seconds("elsewhere, the last", 20.0),
        defence: "another server declares it lost, and fences it",
        switch: Some("the database lets nobody be declared lost"),
        servers: 2,
        devices: 6,
        ha: false,
        run: frozen,
    },
    Case {
        name: "server-host-killed",
        injects: "SIGKILL to serverd, sshd and all sessions of a server",
        bound: Bound::seconds("elsewhere, the last", 20.0),
        defence: "agents land again where HAProxy leads them",
        switch: Some("the other server takes no landings"),
        servers: 2,
        devices: 12,
        ha: false,
        run: |scene| host_lost(scene, Signal::SIGKILL),
    },
    Case {
        name: "server-host-hangs",
        injects: "SIGSTOP to serverd, sshd and all sessions of a server; SIGCONT when its tunnels are elsewhere",
        bound: Bound::seconds("elsewhere, the last", 20.0),
        defence: "another server declares it lost, and has the agents land again",
        switch: Some("the database lets nobody be declared lost"),
        servers: 2,
        devices: 12,
        ha: false,
        run: |scene| host_lost(scene, Signal::SIGSTOP),
    },
    Case {
        name: "serverd-drained",
        injects: "rssh-serverd drain under live sessions",
        bound: Bound::seconds("ended once empty", 5.0),
        defence: "a draining server takes no landings, and moves nothing",
        switch: Some("a service manager ends and starts it instead"),
        servers: 2,
        devices: 6,
        ha: false,
        run: drained,
    },
    Case {
        name: "one-of-two-serverds-frozen",
        injects: "SIGSTOP to one of two serverds, and 20 opens at once after",
        bound: Bound::count("opens that failed", 0.0),
        defence: "the CLI repeats its request with the same id",
        switch: Some("the CLI gives up before it repeats"),
        servers: 2,
        devices: 4,
        ha: false,
        run: one_frozen,
    },
    Case {
        name: "no-serverd",
        injects: "SIGKILL to every serverd",
        bound: Bound::seconds("refused with a name", 2.0),
        defence: "the broker says that nobody subscribes",
        switch: Some("somebody subscribes to requests and answers none"),
        servers: 2,
        devices: 2,
        ha: false,
        run: no_serverd,
    },
];

fn restarted(scene: &Scene, action: Action) -> Result<Measured> {
    let load = load_on_both(scene, 5)?;
    let held = load.on("s1").len();
    let leases = |scene: &Scene| {
        scene
            .lab
            .psql("SELECT tunnel_id, port, epoch FROM live_leases ORDER BY 1")
    };
    let before = leases(scene)?;
    scene.ctl(action, "serverd-1")?;
    ensure!(
        load.sessions
            .iter()
            .all(|session| session.goes_on(Duration::from_secs(5))),
        "a session ended with serverd"
    );
    if scene.without {
        scene.lab.psql("UPDATE leases SET boot_id = 'another'")?;
    }
    let began = Instant::now();
    scene.start("serverd-1")?;
    // It speaks for its tunnels again when it signs a name for one.
    let at = load.on("s1")[0];
    let again = scene.open(u32::try_from(at + 1)?)?;
    let took = began.elapsed();
    ensure!(again.tunnel == load.tunnels[at].tunnel, "another tunnel was opened");
    scene.last(Duration::from_secs(2));
    ensure!(leases(scene)? == before, "the leases are others now");
    ensure!(
        load.sessions
            .iter()
            .all(|session| session.goes_on(Duration::from_secs(5))),
        "a session ended"
    );
    scene.until_opens(PROBER, 6, Duration::from_secs(15))?;
    Ok(Measured::seconds(took, format!("{held} tunnels on it, 0 lost")))
}

/// Keeps servers from being declared lost.
fn nobody_is_lost(scene: &Scene) -> Result<()> {
    scene.lab.psql(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER keep BEFORE UPDATE ON servers FOR EACH ROW \
         WHEN (NEW.lost_at IS DISTINCT FROM OLD.lost_at) EXECUTE FUNCTION keep()",
    )?;
    Ok(())
}

/// Waits until all of some tunnels are back on server 2; says how long each took.
fn until_elsewhere(scene: &Scene, load: &Load, which: &[usize], limit: Duration) -> Result<Vec<f64>> {
    let began = Instant::now();
    let mut took = vec![None; which.len()];
    scene
        .until(limit, "every tunnel of s1 is on s2", || {
            for (span, at) in took.iter_mut().zip(which) {
                let place = scene.place_of(&load.tunnels[*at].tunnel);
                if span.is_none() && place.is_some_and(|(epoch, server)| epoch > load.epochs[*at] && server == 2) {
                    *span = Some(began.elapsed().as_secs_f64());
                }
            }
            Ok(took.iter().all(Option::is_some))
        })
        .with_context(|| format!("{} of {} came", took.iter().flatten().count(), which.len()))?;
    Ok(took.into_iter().flatten().collect())
}

/// Brings a server that was lost back, and sees that nothing of its past is left and that it takes landings.
fn back_again(scene: &Scene, components: &[&str]) -> Result<()> {
    for component in components {
        scene.start(component)?;
    }
    scene.until(Duration::from_secs(20), "HAProxy sees both servers up", || {
        Ok(router::servers_up(scene.lab.dir())? == 2)
    })?;
    scene.until(Duration::from_secs(5), "server 1 holds nothing from before", || {
        Ok(!scene.seen()?.listeners.iter().any(|listener| listener.server == 1))
    })?;
    Ok(())
}

fn frozen(scene: &Scene) -> Result<Measured> {
    let load = load_on_both(scene, 6)?;
    let moving = load.on("s1");
    for at in &moving {
        load.sessions[*at].touched();
    }
    if scene.without {
        nobody_is_lost(scene)?;
    }
    scene.ctl(Action::Stop, "serverd-1")?;
    let took = until_elsewhere(scene, &load, &moving, Duration::from_secs(40))?;
    for at in &moving {
        scene.login(u32::try_from(at + 1)?)?;
    }
    let process = scene.process("serverd-1").context("serverd-1 has ended")?;
    let began = Instant::now();
    scene.ctl(Action::Cont, "serverd-1").ok();
    scene.until(Duration::from_secs(15), "the fenced serverd ends", || {
        Ok(!process.is_alive())
    })?;
    let fenced = began.elapsed();
    back_again(scene, &["serverd-1"])?;
    for (at, session) in load.sessions.iter().enumerate() {
        ensure!(
            moving.contains(&at) || session.goes_on(Duration::from_secs(5)),
            "a session on s2 ended"
        );
    }
    Ok(Measured {
        value: quantile(&took, 1.0),
        note: format!(
            "{} tunnels, p50 {:.1} s; fenced {:.1} s after it woke",
            moving.len(),
            quantile(&took, 0.5),
            fenced.as_secs_f64()
        ),
    })
}

fn host_lost(scene: &Scene, signal: Signal) -> Result<Measured> {
    let load = load_on_both(scene, 12)?;
    let moving = load.on("s1");
    for at in &moving {
        load.sessions[*at].touched();
    }
    if scene.without {
        if signal == Signal::SIGSTOP {
            nobody_is_lost(scene)?;
        } else {
            scene.ctl(Action::Stop, "serverd-2")?;
        }
    }
    scene.machine(&["serverd-1", "sshd-1"], signal)?;
    let took = until_elsewhere(scene, &load, &moving, Duration::from_secs(60))?;
    for at in &moving {
        scene.login(u32::try_from(at + 1)?)?;
    }
    if signal == Signal::SIGSTOP {
        let process = scene.process("serverd-1").context("serverd-1 has ended")?;
        scene.machine(&["sshd-1", "serverd-1"], Signal::SIGCONT)?;
        scene.until(Duration::from_secs(15), "the fenced serverd ends", || {
            Ok(!process.is_alive())
        })?;
        back_again(scene, &["serverd-1"])?;
    } else {
        back_again(scene, &["sshd-1", "serverd-1"])?;
    }
    let p50 = quantile(&took, 0.5);
    ensure!(p50 <= 8.0, "p50 is {p50:.1} s, above 8 s");
    Ok(Measured {
        value: quantile(&took, 1.0),
        note: format!("{} tunnels, p50 {p50:.1} s (<= 8 s)", moving.len()),
    })
}

fn drained(scene: &Scene) -> Result<Measured> {
    let load = load_on_both(scene, 5)?;
    let staying = load.on("s1");
    let process = scene.process("serverd-1").context("serverd-1 does not run")?;
    let leases = |scene: &Scene| {
        scene
            .lab
            .psql("SELECT tunnel_id, port, epoch FROM live_leases ORDER BY 1")
    };
    let before = leases(scene)?;
    scene.fault("rssh-serverd drain on s1");
    let config = scene.lab.dir().inside("servers/s1/serverd.toml");
    if scene.without {
        scene.ctl(Action::Restart, "serverd-1")?;
    } else {
        let said = scene.at(&Place::Server(1), &["rssh-serverd", "drain", "--config", &config])?;
        scene.effect(format!("it says: {}", said.trim()), said.contains("drain"));
    }
    for _ in 0..10 {
        let answer = scene.try_open(PROBER, 6, Duration::from_secs(15))?;
        ensure!(answer.succeeded(), "an open failed while s1 drains: {}", answer.stderr);
        ensure!(
            answer.stdout.contains("\"server\":\"s2\""),
            "a tunnel landed on s1: {}",
            answer.stdout
        );
        scene.close_tunnel(PROBER, 6)?;
    }
    ensure!(leases(scene)? == before, "a tunnel moved");
    ensure!(
        load.sessions
            .iter()
            .all(|session| session.goes_on(Duration::from_secs(5))),
        "a session ended"
    );
    ensure!(process.is_alive(), "serverd ended before it was empty");
    for at in staying {
        load.sessions[at].touched();
        scene.close_tunnel(USER, u32::try_from(at + 1)?)?;
    }
    let took = scene.until(Duration::from_secs(20), "the empty serverd ends", || {
        Ok(!process.is_alive())
    })?;
    Ok(Measured::seconds(took, ""))
}

fn one_frozen(scene: &Scene) -> Result<Measured> {
    scene.ctl(Action::Stop, "serverd-2")?;
    let timeout = Duration::from_millis(if scene.without { 900 } else { 15_000 });
    let (mut failed, mut longest, mut repeated) = (0, Duration::ZERO, 0);
    for n in 0..20 {
        let device = n % 4 + 1;
        let answer = scene.try_open(USER, device, timeout)?;
        longest = longest.max(answer.took);
        repeated += usize::from(answer.took > Duration::from_secs(1));
        if answer.succeeded() {
            scene.close_tunnel(USER, device)?;
        } else {
            scene.note(format!("failed: {}", answer.stderr));
            failed += 1;
        }
    }
    let process = scene.process("serverd-2");
    scene.ctl(Action::Cont, "serverd-2").ok();
    if let Some(process) = process {
        // It was lost meanwhile, or not: both are right.
        crate::process::wait_ended(&[process], Duration::from_secs(3));
    }
    Ok(Measured::count(
        failed,
        format!(
            "{repeated} took a repetition, the longest {:.1} s",
            longest.as_secs_f64()
        ),
    ))
}

fn no_serverd(scene: &Scene) -> Result<Measured> {
    let session = scene.session(1)?;
    for server in ["serverd-1", "serverd-2"] {
        scene.ctl(Action::Kill, server)?;
    }
    let deaf = scene.without.then(|| deaf_subscriber(scene)).transpose()?;
    let answer = scene.try_open(PROBER, 2, Duration::from_secs(15))?;
    drop(deaf);
    ensure!(!answer.succeeded(), "an open succeeded without a server");
    ensure!(session.goes_on(Duration::from_secs(5)), "the session ended");
    for server in ["serverd-1", "serverd-2"] {
        scene.start(server)?;
    }
    scene.until_opens(PROBER, 2, Duration::from_secs(20))?;
    ensure!(session.goes_on(Duration::from_secs(5)), "the session ended");
    Ok(Measured::seconds(answer.took, answer.stderr.trim()))
}
