//! Faults of servers: the daemon, its sshd, the whole machine.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::messages::deaf_subscriber;
use crate::bench::stats::quantile;
use crate::faults::case::{Bound, Case, Measured};
use crate::faults::scene::{Opened, PROBER, Scene, USER};
use crate::faults::session::Session;
use crate::faults::watch::{moved_address, successor};
use crate::files;
use crate::parts::router;
use crate::place::{LB, LB_USERS, Place, server_address};
use crate::{Action, Lab};

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
        name: "server-address-changed",
        injects: "a server ends and comes back at another address",
        bound: Bound::seconds("routes follow", 1.0),
        defence: "it registers at a higher generation; routerd changes its maps at once",
        switch: Some("routerd is frozen"),
        servers: 2,
        devices: 6,
        ha: false,
        run: address_changed,
    },
    Case {
        name: "server-address-reused",
        injects: "a server dies; one of another id starts at its address while routerd is frozen; a name of before is used",
        bound: Bound::count("connections led to another device", 0.0),
        defence: "it claims nothing until every living router has let go of the old route",
        switch: Some("the database forgets what routers lead to"),
        servers: 2,
        devices: 3,
        ha: false,
        run: address_reused,
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

/// Tunnels to the first devices, a session through each, and the epoch of each.
struct Load {
    tunnels: Vec<Opened>,
    epochs: Vec<u64>,
    sessions: Vec<Session>,
}

fn load(scene: &Scene, devices: u32) -> Result<Load> {
    let tunnels = (1..=devices).map(|n| scene.open(n)).collect::<Result<Vec<_>>>()?;
    let sessions = (1..=devices).map(|n| scene.session(n)).collect::<Result<Vec<_>>>()?;
    scene.until(Duration::from_secs(5), "every tunnel is seen", || {
        Ok(tunnels.iter().all(|tunnel| scene.place_of(&tunnel.tunnel).is_some()))
    })?;
    let epochs = tunnels
        .iter()
        .map(|tunnel| Ok(scene.place_of(&tunnel.tunnel).context("a tunnel is not seen")?.0))
        .collect::<Result<_>>()?;
    Ok(Load {
        tunnels,
        epochs,
        sessions,
    })
}

impl Load {
    /// Those on a server, by position.
    fn on(&self, server: &str) -> Vec<usize> {
        (0..self.tunnels.len())
            .filter(|at| self.tunnels[*at].server == server)
            .collect()
    }
}

/// Opens to the last devices until both servers hold some.
fn load_on_both(scene: &Scene, devices: u32) -> Result<Load> {
    let spread = load(scene, devices)?;
    if !spread.on("s1").is_empty() {
        return Ok(spread);
    }
    drop(spread);
    scene.close_tunnel(USER, 1)?;
    scene.open_on(1, 1)?;
    load(scene, devices)
}

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

fn address_changed(scene: &Scene) -> Result<Measured> {
    let load = load_on_both(scene, 5)?;
    let moving = load.on("s1");
    for at in &moving {
        load.sessions[*at].touched();
    }
    let generation = |scene: &Scene| -> Result<u64> {
        Ok(scene
            .lab
            .psql("SELECT generation FROM servers WHERE id = 's1'")?
            .parse()?)
    };
    let before = generation(scene)?;
    scene.machine(&["serverd-1", "sshd-1"], Signal::SIGKILL)?;
    let (old, new) = (server_address(1).to_string(), moved_address(1).to_string());
    for file in [
        "servers/s1/serverd.toml",
        "servers/s1/admin.toml",
        "servers/s1/sshd/sshd_config",
        "components/serverd-1.json",
        "components/sshd-1.json",
    ] {
        let path = scene.lab.dir().join(file);
        let text = files::read(&path)?;
        scene.effect(format!("{file} has the new address"), text.contains(&old));
        files::write(&path, text.replace(&old, &new))?;
    }
    if scene.without {
        scene.ctl(Action::Stop, "routerd")?;
    }
    scene.start("sshd-1")?;
    scene.start("serverd-1")?;
    let began = Instant::now();
    scene.until(Duration::from_secs(20), "HAProxy has the new address", || {
        routes_to(scene, "s1", &new)
    })?;
    let took = began.elapsed();
    ensure!(generation(scene)? > before, "the generation did not rise");
    for at in &moving {
        let tunnel = &load.tunnels[*at];
        scene.until_back(&tunnel.tunnel, load.epochs[*at], Duration::from_secs(30))?;
        scene.login(u32::try_from(at + 1)?)?;
    }
    // Tunnels land on it where it is now.
    scene.until(Duration::from_secs(30), "a tunnel lands on s1 again", || {
        let answer = scene.try_open(PROBER, 6, Duration::from_secs(15))?;
        if answer.succeeded() {
            scene.close_tunnel(PROBER, 6)?;
        }
        Ok(answer.succeeded() && answer.stdout.contains("\"server\":\"s1\""))
    })?;
    for (at, session) in load.sessions.iter().enumerate() {
        ensure!(
            moving.contains(&at) || session.goes_on(Duration::from_secs(5)),
            "a session on s2 ended"
        );
    }
    Ok(Measured::seconds(took, format!("{} tunnels came back", moving.len())))
}

/// Starts a server of another id at the address of server 1.
fn succeed(scene: &Scene, id: &str) -> Result<()> {
    let dir = scene.lab.dir();
    files::make_dir(&dir.join("servers/s1/state-of-another"))?;
    for name in ["admin", "serverd"] {
        let path = dir.join(format!("servers/s1/{name}.toml"));
        let text = files::read(&path)?;
        files::write(
            &path,
            text.replace("/servers/s1/state\"", "/servers/s1/state-of-another\""),
        )?;
    }
    let config = dir.inside("servers/s1/admin.toml");
    scene.at(
        &Place::Server(1),
        &["rssh-serverd", "server", "init", "--config", &config, "--id", id],
    )?;
    Ok(())
}

fn address_reused(scene: &Scene) -> Result<Measured> {
    let other = scene.session(3)?;
    let opened = scene.open_on(1, 1)?;
    let port = opened
        .host
        .split('-')
        .nth(1)
        .context("a name without a port")?
        .to_owned();
    scene.until(Duration::from_secs(30), "routerd has written its routes down", || {
        Ok(scene
            .lab
            .psql("SELECT count(*) FROM routers WHERE routes::text LIKE '%\"s1\"%'")?
            == "1")
    })?;
    scene.ctl(Action::Stop, "routerd")?;
    scene.machine(&["serverd-1", "sshd-1"], Signal::SIGKILL)?;
    // The tunnel lands on server 2; its name of before lives on for two minutes.
    scene.until_back(&opened.tunnel, 1, Duration::from_secs(30))?;
    if scene.without {
        scene.lab.psql(
            "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
             CREATE TRIGGER forget BEFORE INSERT OR UPDATE ON routers FOR EACH ROW EXECUTE FUNCTION forget(); \
             DELETE FROM routers; UPDATE servers SET lost_at = clock_timestamp(), address = NULL WHERE id = 's1'",
        )?;
    }
    let id = format!("s{}", successor(1));
    scene.fault(format!("{id} starts at the address of s1"));
    succeed(scene, &id)?;
    scene.lab.ctl(Action::Start, "sshd-1")?;
    let lab = Lab::attach(scene.lab.dir())?;
    let starting = thread::spawn(move || lab.ctl(Action::Start, "serverd-1"));
    let address = server_address(1).to_string();
    // Device 2 asks for the port that device 1 had, and somebody has a name of device 1's.
    let leases = format!("SELECT count(*) FROM leases WHERE server_id = '{id}'");
    let argv = [
        "rssh",
        "open",
        "device-2",
        "--json",
        "--new",
        "--remote-port",
        &port,
        "--timeout",
        "5s",
    ];
    let stop = Instant::now() + Duration::from_secs(15);
    let astray = thread::scope(|scope_of| -> Result<usize> {
        let opening = scope_of.spawn(|| -> Result<()> {
            while Instant::now() < stop {
                if scene
                    .ask(PROBER, "device-2", Duration::from_secs(5), &argv)?
                    .succeeded()
                {
                    scene.close_tunnel(PROBER, 2)?;
                }
            }
            Ok(())
        });
        let mut astray = 0;
        while !opening.is_finished() {
            astray += usize::from(banner_of(scene, &opened.host)?.contains("device-2"));
        }
        opening
            .join()
            .unwrap_or_else(|_| anyhow::bail!("the prober panicked"))?;
        Ok(astray)
    })?;
    let landed = scene.lab.psql(&leases)? != "0";
    let held = !landed;
    scene.effect(
        format!("{id} is at {address}, and s1's route is still there"),
        routes_to(scene, "s1", &address)?,
    );
    scene.ctl(Action::Cont, "routerd")?;
    let began = Instant::now();
    match starting.join() {
        Ok(started) => started?,
        Err(_) => anyhow::bail!("the start panicked"),
    }
    let took = began.elapsed();
    scene.until(Duration::from_secs(60), "a tunnel lands on it", || {
        let answer = scene.try_open(PROBER, 2, Duration::from_secs(10))?;
        if answer.succeeded() {
            scene.close_tunnel(PROBER, 2)?;
        }
        Ok(answer.stdout.contains(&format!("\"server\":\"{id}\"")))
    })?;
    ensure!(
        banner_of(scene, &opened.host)?.is_empty(),
        "a name of before leads somewhere"
    );
    ensure!(other.goes_on(Duration::from_secs(5)), "the other session ended");
    Ok(Measured::count(
        astray,
        format!(
            "it claimed nothing meanwhile: {held}; serving {:.1} s after routerd went on",
            took.as_secs_f64()
        ),
    ))
}

/// What answers at a signed name of alice's, without asking anybody for a newer one.
fn banner_of(scene: &Scene, host: &str) -> Result<String> {
    let home = scene.lab.dir().inside("users/alice/home/.config/rssh");
    let file = |name: &str| format!("{home}/{name}");
    let (ca, cert, key) = (file("servers-ca.pem"), file("user.pem"), file("user.key"));
    let to = format!("{LB}:{LB_USERS}");
    let output = scene.lab.exec(
        USER,
        &[
            "timeout",
            "2",
            "openssl",
            "s_client",
            "-quiet",
            "-connect",
            &to,
            "-servername",
            host,
            "-CAfile",
            &ca,
            "-cert",
            &cert,
            "-key",
            &key,
        ],
    )?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(said.lines().next().unwrap_or_default().to_owned())
}

/// Whether HAProxy leads a server's users to an address.
fn routes_to(scene: &Scene, server: &str, address: &str) -> Result<bool> {
    let list = scene.haproxy("show map")?;
    let id = list
        .lines()
        .find(|line| line.contains("addresses.map"))
        .and_then(|line| line.split(' ').next())
        .context("HAProxy has no map of addresses")?;
    Ok(scene
        .haproxy(&format!("show map #{id}"))?
        .contains(&format!("{server} {address}")))
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
