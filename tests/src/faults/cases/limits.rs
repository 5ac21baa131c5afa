//! What runs out: ports, disks, descriptors, processes.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::Action;
use crate::cgroup::Group;
use crate::faults::case::{Bound, Case, Measured};
use crate::faults::scene::{Opened, PROBER, Scene, TIMEOUT};
use crate::place::{Place, device_name};
use crate::run;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "ports-held-by-a-stranger",
        injects: "5,000 of the 10,000 leased ports are bound by another program on both servers",
        bound: Bound::count("opens that failed", 0.0),
        defence: "a port is tried before it is reserved",
        switch: Some("the stranger holds every port"),
        servers: 2,
        devices: 4,
        ha: false,
        run: stranger,
    },
    Case {
        name: "agent-disk-full",
        injects: "the agent's run directory is on a full file system",
        bound: Bound::seconds("an open succeeds", 15.0),
        defence: "a named failure, and another try once there is space",
        switch: Some("the agent is frozen"),
        servers: 2,
        devices: 3,
        ha: false,
        run: agent_disk,
    },
    Case {
        name: "serverd-descriptors-used-up",
        injects: "serverd's limit of open files is set to what it has open",
        bound: Bound::seconds("an open lands on it", 30.0),
        defence: "logins are refused, and land elsewhere; nothing that is there ends",
        switch: Some("the other server takes no landings"),
        servers: 2,
        devices: 6,
        ha: false,
        run: descriptors,
    },
    Case {
        name: "sshd-processes-used-up",
        injects: "a server's sshd may start no more processes",
        bound: Bound::count("opens that failed", 0.0),
        defence: "a login that ends at once is tried elsewhere; nothing that is there ends",
        switch: Some("the other server takes no landings"),
        servers: 2,
        devices: 6,
        ha: false,
        run: processes,
    },
];

fn stranger(scene: &Scene) -> Result<Measured> {
    let session = scene.session(4)?;
    let end = if scene.without { 29_999 } else { 24_999 };
    scene.fault(format!("a stranger binds 20000-{end}"));
    let held: Vec<TcpListener> = scene.lab.networks().inside(&Place::Core, || {
        // On every address, so also on both servers'.
        (20_000..=end)
            .filter_map(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).ok())
            .collect()
    })?;
    // A tunnel may hold one of them already.
    scene.effect(format!("{} ports are bound", held.len()), held.len() > 4_990);
    let (mut failed, mut inside, mut slowest) = (0, 0, Duration::ZERO);
    for n in 0..12 {
        let device = n % 3 + 1;
        let port = (20_100 + n).to_string();
        let name = device_name(device);
        let answer = scene.ask(
            PROBER,
            &name,
            TIMEOUT,
            &["rssh", "open", &name, "--json", "--remote-port", &port],
        )?;
        slowest = slowest.max(answer.took);
        if answer.succeeded() {
            let opened: Opened = serde_json::from_str(&answer.stdout)?;
            let port: u16 = opened.host.split('-').nth(1).unwrap_or_default().parse()?;
            inside += usize::from(port <= end);
            scene.close_tunnel(PROBER, device)?;
        } else {
            scene.note(answer.stderr);
            failed += 1;
        }
    }
    drop(held);
    ensure!(inside == 0, "{inside} tunnels got a port that a stranger held");
    ensure!(session.goes_on(Duration::from_secs(5)), "the session ended");
    Ok(Measured::count(
        failed,
        format!(
            "12 opens that wished for a held port, the slowest {:.2} s",
            slowest.as_secs_f64()
        ),
    ))
}

fn agent_disk(scene: &Scene) -> Result<Measured> {
    let other = scene.session(2)?;
    let agent = scene.process("agentd-1").context("agentd-1 does not run")?;
    let pid = agent.pid.to_string();
    let dir = scene.lab.dir().inside("devices/device-1/state/run");
    scene.fault("a full file system at the agent's run directory");
    let inside = |argv: &[&str]| {
        let mut all = vec!["-t", &pid, "-m"];
        all.extend(argv);
        run::checked(Command::new("nsenter").args(all))
    };
    inside(&["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=1", "full", &dir])?;
    let refused = inside(&["mkdir", &format!("{dir}/x")]);
    scene.effect(
        "nothing can be made there",
        refused.is_err_and(|error| error.to_string().contains("No space left")),
    );
    let answer = scene.try_open(PROBER, 1, Duration::from_secs(10))?;
    ensure!(!answer.succeeded(), "an open succeeded on a full disk");
    ensure!(agent.is_alive(), "the agent has ended");
    inside(&["umount", &dir])?;
    scene.note("there is space again");
    if scene.without {
        scene.ctl(Action::Stop, "agentd-1")?;
    }
    let took = scene.until_opens(PROBER, 1, Duration::from_secs(60))?;
    ensure!(other.goes_on(Duration::from_secs(5)), "the other session ended");
    Ok(Measured::seconds(
        took,
        format!(
            "meanwhile after {:.1} s: {}",
            answer.took.as_secs_f64(),
            answer.stderr.trim()
        ),
    ))
}

fn descriptors(scene: &Scene) -> Result<Measured> {
    scene.open_on(1, 1)?;
    let sessions = (1..=4).map(|n| scene.session(n)).collect::<Result<Vec<_>>>()?;
    let serverd = scene.process("serverd-1").context("serverd-1 does not run")?;
    let open = || fs::read_dir(format!("/proc/{}/fd", serverd.pid)).map_or(0, Iterator::count);
    let limits = files_limit(serverd.pid)?;
    let now = open().to_string();
    scene.fault(format!("serverd-1 may open {now} files"));
    run::checked(Command::new("prlimit").args([
        "--pid",
        &serverd.pid.to_string(),
        &format!("--nofile={now}:{limits}"),
    ]))?;
    scene.effect("the limit is set", files_soft(serverd.pid)? == now);
    if scene.without {
        drain_second(scene)?;
    }
    let (mut good, mut named) = (0, BTreeSet::new());
    for n in 0..8 {
        let device = n % 2 + 5;
        let answer = scene.try_open(PROBER, device, TIMEOUT)?;
        if answer.succeeded() {
            good += 1;
            scene.close_tunnel(PROBER, device)?;
        } else {
            named.insert(answer.stderr.trim().to_owned());
        }
    }
    ensure!(serverd.is_alive(), "serverd has ended");
    ensure!(good >= 6, "{good} of 8 opens succeeded meanwhile; {named:?}");
    run::checked(Command::new("prlimit").args([
        "--pid",
        &serverd.pid.to_string(),
        &format!("--nofile={limits}:{limits}"),
    ]))?;
    let took = lands_again(scene)?;
    ensure!(
        sessions.iter().all(|session| session.goes_on(Duration::from_secs(5))),
        "a session ended"
    );
    scene.login(1)?;
    Ok(Measured::seconds(
        took,
        format!("meanwhile {good} of 8 opens succeeded; {named:?}"),
    ))
}

fn processes(scene: &Scene) -> Result<Measured> {
    scene.open_on(1, 1)?;
    let sessions = (1..=4).map(|n| scene.session(n)).collect::<Result<Vec<_>>>()?;
    let group = Group::of_pids("sshd-1")?;
    for member in scene.members("sshd-1") {
        group.take(member.pid.unsigned_abs())?;
    }
    if scene.without {
        drain_second(scene)?;
    }
    let most = group.bound(true)?;
    scene.fault(format!("sshd-1 may have {most} processes"));
    let (mut failed, mut on_second, mut slowest) = (BTreeSet::new(), 0, Duration::ZERO);
    for n in 0..12 {
        let device = n % 2 + 5;
        let answer = scene.try_open(PROBER, device, TIMEOUT)?;
        slowest = slowest.max(answer.took);
        if answer.succeeded() {
            on_second += usize::from(answer.stdout.contains("\"server\":\"s2\""));
            scene.close_tunnel(PROBER, device)?;
        } else {
            failed.insert(format!("{n}: {}", answer.stderr.trim()));
        }
    }
    let refused = group.refused()?;
    scene.effect(format!("{refused} processes were refused"), refused > 0);
    group.bound(false)?;
    lands_again(scene)?;
    ensure!(
        sessions.iter().all(|session| session.goes_on(Duration::from_secs(5))),
        "a session ended"
    );
    let slowest = slowest.as_secs_f64();
    Ok(Measured::count(
        failed.len(),
        format!("{on_second} of 12 opens on the other server, the slowest {slowest:.2} s; {failed:?}"),
    ))
}

/// Waits until a tunnel lands on the first server; says how long that took.
fn lands_again(scene: &Scene) -> Result<Duration> {
    scene.until(Duration::from_secs(60), "a tunnel lands on s1 again", || {
        let answer = scene.try_open(PROBER, 5, TIMEOUT)?;
        if answer.succeeded() {
            scene.close_tunnel(PROBER, 5)?;
        }
        Ok(answer.stdout.contains("\"server\":\"s1\""))
    })
}

/// Lets the second server take no more landings.
fn drain_second(scene: &Scene) -> Result<()> {
    let config = scene.lab.dir().inside("servers/s2/serverd.toml");
    let drain = ["rssh-serverd", "drain", "--config", &config];
    scene.at(&Place::Server(2), &drain).map(drop)
}

/// Column of a process's limit of open files in /proc/PID/limits: 3 is the soft one, 4 the hard one.
fn limit_column(pid: i32, column: usize) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = text.lines().find(|line| line.starts_with("Max open files"));
    line.and_then(|line| line.split_ascii_whitespace().nth(column))
        .map(str::to_owned)
        .context("the kernel tells no limits")
}

fn files_soft(pid: i32) -> Result<String> {
    limit_column(pid, 3)
}

fn files_limit(pid: i32) -> Result<String> {
    limit_column(pid, 4)
}
