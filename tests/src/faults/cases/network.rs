//! Faults of the network between devices and servers: there is real NAT in between.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::Action;
use crate::faults::case::{Bound, Case, Measured};
use crate::faults::scene::{PROBER, Scene};
use crate::place::{Place, SITE, SITE_GATEWAY, device_address, device_name};
use crate::process;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "link-cut-5s",
        injects: "the device's link down for 5 s",
        bound: Bound::seconds("session goes on", 10.0),
        defence: "TCP and keepalives that are patient enough",
        switch: Some("the agent and its ssh are frozen"),
        servers: 2,
        devices: 2,
        ha: false,
        run: |scene| link_cut(scene, Duration::from_secs(5)),
    },
    Case {
        name: "link-cut-30s",
        injects: "the device's link down for 30 s",
        // TCP sends again after pauses that double: after 30 s the next is up to 26 s away.
        bound: Bound::seconds("a login succeeds", 35.0),
        defence: "TCP goes on, or the agent notices a dead connection and lands again",
        switch: Some("the agent and its ssh are frozen"),
        servers: 2,
        devices: 2,
        ha: false,
        run: |scene| link_cut(scene, Duration::from_secs(30)),
    },
    Case {
        name: "link-cut-120s",
        injects: "the device's link down for 120 s",
        bound: Bound::seconds("a login succeeds", 45.0),
        defence: "the agent tries again, at most 30 s apart",
        switch: Some("the agent and its ssh are frozen"),
        servers: 2,
        devices: 2,
        ha: false,
        run: |scene| link_cut(scene, Duration::from_secs(120)),
    },
    Case {
        name: "device-address-changed",
        injects: "the device gets another address; its connections have the old one",
        bound: Bound::seconds("reopened", 15.0),
        defence: "the agent notices, and a newer epoch evicts the older session",
        switch: Some("the agent is frozen"),
        servers: 2,
        devices: 3,
        ha: false,
        run: device_moves,
    },
    Case {
        name: "site-address-changed",
        injects: "the NAT router gets another public address and forgets its flows",
        bound: Bound::seconds("reopened, the last of 4", 15.0),
        defence: "the agent lands again; a newer epoch evicts the older session",
        switch: Some("the agents are frozen"),
        servers: 2,
        devices: 4,
        ha: false,
        run: site_moves,
    },
    Case {
        name: "device-loses-power",
        injects: "packets of 6 devices dropped, agents and ssh killed; the devices start again",
        bound: Bound::seconds("reopened, the last of 6", 15.0),
        defence: "a newer epoch evicts the session that hangs, on the same and on the other server",
        switch: Some("the database keeps the old lease"),
        servers: 2,
        devices: 6,
        ha: false,
        run: power_lost,
    },
];

fn link(scene: &Scene, n: u32, state: &str) -> Result<()> {
    let what = format!("link of device-{n} {state}");
    match state {
        "up" => scene.note(&what),
        _ => scene.fault(&what),
    }
    scene.net(&Place::Site, &["ip", "link", "set", &format!("d{n}"), state])?;
    let shows = if state == "up" { "LOWER_UP" } else { "NO-CARRIER" };
    let shown = process::wait(Duration::from_secs(5), || {
        scene
            .net(&Place::Device(n), &["ip", "-o", "link", "show", "eth0"])
            .is_ok_and(|text| text.contains(shows))
    });
    scene.effect(format!("{what}: eth0 shows {shows}"), shown);
    Ok(())
}

/// Logs in again and again until it succeeds.
fn until_login(scene: &Scene, n: u32, limit: Duration) -> Result<Duration> {
    let name = device_name(n);
    scene.until(limit, &format!("a login to {name} succeeds"), || {
        let output = scene.lab.exec("alice", &["timeout", "6", "ssh", &name, "hostname"])?;
        Ok(output.status.success() && output.stdout.trim_ascii() == name.as_bytes())
    })
}

fn link_cut(scene: &Scene, lasts: Duration) -> Result<Measured> {
    let session = scene.session(1)?;
    session.touched();
    let other = scene.session(2)?;
    link(scene, 1, "down")?;
    let began = Instant::now();
    // What was seen as online a moment ago is not answered for by its device now.
    let answer = scene.try_open(PROBER, 1, Duration::from_secs(10))?;
    ensure!(!answer.succeeded(), "an open succeeded over a cut link");
    scene.last(lasts.saturating_sub(began.elapsed()));
    if scene.without {
        scene.ctl(Action::Stop, "agentd-1")?;
    }
    let began = Instant::now();
    link(scene, 1, "up")?;
    let lives = if lasts < Duration::from_secs(10) {
        ensure!(session.goes_on(Duration::from_secs(30)), "the session ended");
        Some(began.elapsed())
    } else {
        None
    };
    let login = until_login(scene, 1, Duration::from_secs(120))?;
    let session_lives = session.goes_on(Duration::from_secs(5));
    let open = scene.until_opens(PROBER, 1, Duration::from_secs(90))?;
    ensure!(other.goes_on(Duration::from_secs(5)), "the other session ended");
    Ok(Measured::seconds(
        lives.unwrap_or(login),
        format!(
            "login after {:.1} s, an open {:.1} s later; the session {}; an open meanwhile was refused after {:.1} s: {}",
            login.as_secs_f64(),
            open.as_secs_f64(),
            if session_lives { "lives on" } else { "was lost" },
            answer.took.as_secs_f64(),
            answer.stderr.trim()
        ),
    ))
}

fn device_moves(scene: &Scene) -> Result<Measured> {
    let opened = scene.open(1)?;
    let session = scene.session(1)?;
    session.touched();
    let other = scene.session(2)?;
    let epoch = epoch_of(scene, &opened.tunnel)?;
    let old = format!("{}/16", device_address(1));
    let gateway = SITE_GATEWAY.to_string();
    if scene.without {
        scene.ctl(Action::Stop, "agentd-1")?;
    }
    scene.fault("device-1 moves to 10.77.200.1");
    for argv in [
        &["ip", "addr", "del", &old, "dev", "eth0"][..],
        &["ip", "addr", "add", "10.77.200.1/16", "dev", "eth0"],
        &["ip", "route", "replace", "default", "via", &gateway],
    ] {
        scene.net(&Place::Device(1), argv)?;
    }
    let shows = scene.net(&Place::Device(1), &["ip", "-o", "-4", "addr", "show", "eth0"])?;
    scene.effect(
        "eth0 has the new address only",
        shows.contains("10.77.200.1/") && !shows.contains("10.77.0.2/"),
    );
    let (took, server) = scene.until_back(&opened.tunnel, epoch, Duration::from_secs(90))?;
    scene.login(1)?;
    let open = scene.until_opens(PROBER, 1, Duration::from_secs(60))?;
    ensure!(other.goes_on(Duration::from_secs(5)), "the other session ended");
    Ok(Measured::seconds(
        took,
        format!(
            "from {} to s{server}; an open {:.1} s later",
            opened.server,
            open.as_secs_f64()
        ),
    ))
}

fn epoch_of(scene: &Scene, tunnel: &str) -> Result<u64> {
    scene.until(Duration::from_secs(5), "the tunnel is seen", || {
        Ok(scene.place_of(tunnel).is_some())
    })?;
    Ok(scene.place_of(tunnel).context("the tunnel is not seen")?.0)
}

fn site_moves(scene: &Scene) -> Result<Measured> {
    let opened = (1..=4).map(|n| scene.open(n)).collect::<Result<Vec<_>>>()?;
    let sessions = (1..=4).map(|n| scene.session(n)).collect::<Result<Vec<_>>>()?;
    sessions.iter().for_each(crate::faults::session::Session::touched);
    let epochs = opened
        .iter()
        .map(|opened| epoch_of(scene, &opened.tunnel))
        .collect::<Result<Vec<_>>>()?;
    if scene.without {
        for n in 1..=4 {
            scene.ctl(Action::Stop, &format!("agentd-{n}"))?;
        }
    }
    scene.fault("the site moves to 198.51.100.3");
    let old = format!("{SITE}/24");
    scene.net(&Place::Site, &["ip", "addr", "del", &old, "dev", "uplink"])?;
    scene.net(&Place::Site, &["ip", "addr", "add", "198.51.100.3/24", "dev", "uplink"])?;
    let shows = scene.net(&Place::Site, &["ip", "-o", "-4", "addr", "show", "uplink"])?;
    scene.effect(
        "uplink has the new address only",
        shows.contains("198.51.100.3/") && !shows.contains("198.51.100.2/"),
    );
    let began = Instant::now();
    let mut moved = 0;
    for ((opened, epoch), n) in opened.iter().zip(epochs).zip(1..) {
        let (_, server) = scene.until_back(&opened.tunnel, epoch, Duration::from_secs(90))?;
        moved += usize::from(format!("s{server}") != opened.server);
        scene.login(n)?;
    }
    let took = began.elapsed();
    Ok(Measured::seconds(took, format!("{moved} of 4 on the other server")))
}

fn power_lost(scene: &Scene) -> Result<Measured> {
    let opened = (1..=6).map(|n| scene.open(n)).collect::<Result<Vec<_>>>()?;
    let epochs = opened
        .iter()
        .map(|opened| epoch_of(scene, &opened.tunnel))
        .collect::<Result<Vec<_>>>()?;
    let before = scene.seen()?.listeners.len();
    scene.fault("packets of all devices are dropped, their agents and ssh killed");
    // Nobody hears of their end: no FIN, no RST.
    scene.net(
        &Place::Site,
        &["nft", "insert", "rule", "ip", "filter", "forward", "drop"],
    )?;
    for n in 1..=6 {
        for process in scene.members(&format!("agentd-{n}")) {
            process.signal(Signal::SIGKILL)?;
        }
    }
    scene.last(Duration::from_secs(1));
    scene.effect(
        "the servers still hold every session",
        scene.seen()?.listeners.len() == before && scene.process("agentd-1").is_none(),
    );
    // A NAT's flows outlive the device, its packets to the dead sockets do not.
    let handle = scene.net(&Place::Site, &["nft", "-a", "list", "chain", "ip", "filter", "forward"])?;
    let handle = handle
        .lines()
        .find(|line| line.trim_start().starts_with("drop #"))
        .and_then(|line| line.rsplit(' ').next())
        .context("the rule is gone")?
        .to_owned();
    if scene.without {
        scene.lab.psql(
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''kept''; END'; \
             CREATE TRIGGER keep BEFORE UPDATE OR INSERT ON leases FOR EACH ROW EXECUTE FUNCTION keep()",
        )?;
    }
    scene.net(
        &Place::Site,
        &["nft", "delete", "rule", "ip", "filter", "forward", "handle", &handle],
    )?;
    let began = Instant::now();
    for n in 1..=6 {
        scene.start(&format!("agentd-{n}"))?;
    }
    let mut moved = 0;
    for ((opened, epoch), n) in opened.iter().zip(epochs).zip(1..) {
        let (_, server) = scene.until_back(&opened.tunnel, epoch, Duration::from_secs(60))?;
        moved += usize::from(format!("s{server}") != opened.server);
        scene.login(n)?;
    }
    let took = began.elapsed();
    scene.until(Duration::from_secs(5), "no older session is left", || {
        Ok(scene.seen()?.listeners.len() == 6)
    })?;
    Ok(Measured::seconds(
        took,
        format!(
            "{moved} on the other server, {} on the same; older sessions gone",
            6 - moved
        ),
    ))
}
