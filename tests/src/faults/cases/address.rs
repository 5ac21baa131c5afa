//! Servers whose addresses change, or become another's.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::load::load_on_both;
use crate::faults::case::{Bound, Case, Measured};
use crate::faults::scene::{PROBER, Scene, USER};
use crate::faults::watch::{moved_address, successor};
use crate::files;
use crate::place::{LB, LB_USERS, Place, server_address};
use crate::{Action, Lab};

pub(super) const CASES: &[Case] = &[
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
];

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
