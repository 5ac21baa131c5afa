//! What runs out: ports, disks, descriptors, places for logins.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::Action;
use crate::bench::stats::quantile;
use crate::faults::case::{Bound, Case, Measured};
use crate::faults::scene::{Opened, PROBER, Scene, TIMEOUT, USER, sshd_says};
use crate::place::{Place, device_name};
use crate::run;

/// Devices of a storm.
const STORM: u32 = 300;

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
        name: "storm-after-haproxy-restart",
        injects: "HAProxy restarted under 300 tunnels of 300 devices",
        bound: Bound::seconds("every tunnel is back", 90.0),
        defence: "jitter on the agents, MaxStartups raised on the servers",
        switch: Some("sshd's MaxStartups is 1"),
        servers: 2,
        devices: STORM,
        ha: false,
        run: |scene| storm(scene, "haproxy"),
    },
    Case {
        name: "storm-after-broker-restart",
        injects: "mosquitto restarted under 300 tunnels of 300 devices",
        bound: Bound::seconds("every device is online", 90.0),
        defence: "agents come back by themselves, after random pauses; tunnels do not pass through the broker",
        switch: Some("30 agents are frozen"),
        servers: 2,
        devices: STORM,
        ha: false,
        run: |scene| storm(scene, "mosquitto"),
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
        let config = scene.lab.dir().inside("servers/s2/serverd.toml");
        scene.at(&Place::Server(2), &["rssh-serverd", "drain", "--config", &config])?;
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
    let began = Instant::now();
    scene.until(Duration::from_secs(60), "a tunnel lands on s1 again", || {
        let answer = scene.try_open(PROBER, 5, TIMEOUT)?;
        if answer.succeeded() {
            scene.close_tunnel(PROBER, 5)?;
        }
        Ok(answer.stdout.contains("\"server\":\"s1\""))
    })?;
    let took = began.elapsed();
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

/// Opens a tunnel to every device, a few at a time.
fn open_all(scene: &Scene, devices: u32) -> Result<Vec<Opened>> {
    let next = Mutex::new(1..=devices);
    let opened = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        loop {
            let Some(n) = next.lock().ok().and_then(|mut next| next.next()) else {
                return Ok(());
            };
            let one = scene.open(n)?;
            if let Ok(mut opened) = opened.lock() {
                opened.push(one);
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(result) => result,
            Err(_) => anyhow::bail!("a worker panicked"),
        })
    })?;
    opened.into_inner().map_err(|_| anyhow::anyhow!("a worker panicked"))
}

/// Lets every sshd work on one login at a time; sessions live on.
fn few_startups(scene: &Scene) -> Result<()> {
    (1..=2).try_for_each(|n| sshd_says(scene, n, &["MaxStartups 1:100:1"]))
}

fn storm(scene: &Scene, component: &str) -> Result<Measured> {
    let devices = scene.lab.options().devices;
    let opened = open_all(scene, devices)?;
    scene.until(Duration::from_secs(10), "every tunnel is seen", || {
        Ok(opened.iter().all(|opened| scene.place_of(&opened.tunnel).is_some()))
    })?;
    if scene.without && component == "haproxy" {
        few_startups(scene)?;
    }
    let from: Vec<usize> = (1..=2).map(|n| scene.log_length(&format!("sshd-{n}"))).collect();
    let broker = component == "mosquitto";
    let before = scene.lab.psql("SELECT id, generation FROM devices ORDER BY 1")?;
    if scene.without && broker {
        for n in 1..=30 {
            scene.lab.ctl(Action::Stop, &format!("agentd-{n}"))?;
        }
    }
    scene.ctl(Action::Restart, component)?;
    let began = Instant::now();
    let mut back = vec![None; opened.len()];
    scene
        .until(
            Duration::from_secs(240),
            "every tunnel is back and every device online",
            || {
                let above = u64::from(!broker);
                for (span, opened) in back.iter_mut().zip(&opened) {
                    if span.is_none() && scene.place_of(&opened.tunnel).is_some_and(|(epoch, _)| epoch > above) {
                        *span = Some(began.elapsed().as_secs_f64());
                    }
                }
                let online = !broker || {
                    thread::sleep(Duration::from_millis(200));
                    let now = scene
                        .lab
                        .psql("SELECT id, generation FROM devices WHERE online ORDER BY 1")?;
                    now.lines().count() == before.lines().count()
                        && now.lines().zip(before.lines()).all(|(now, before)| now != before)
                };
                Ok(online && back.iter().all(Option::is_some))
            },
        )
        .with_context(|| format!("{} of {} are back", back.iter().flatten().count(), back.len()))?;
    let took = began.elapsed();
    let spans: Vec<f64> = back.into_iter().flatten().collect();
    let logs: String = (1..=2)
        .zip(from)
        .map(|(n, from)| scene.log_since(&format!("sshd-{n}"), from))
        .collect();
    let dropped = logs.matches("MaxStartups").count() + logs.matches("drop connection").count();
    ensure!(dropped == 0, "sshd dropped {dropped} logins");
    for n in [1, devices / 2, devices] {
        scene.login(n)?;
    }
    if broker {
        let moved = scene.lab.psql("SELECT count(*) FROM live_leases WHERE epoch > 1")?;
        ensure!(
            moved == "0",
            "{moved} tunnels landed again though only the broker was restarted"
        );
        scene.close_tunnel(USER, 1)?;
    }
    Ok(Measured::seconds(
        took,
        if broker {
            "no tunnel moved".to_owned()
        } else {
            // As the servers saw it, in one go.
            let claims = scene.lab.psql(
                "SELECT round(extract(epoch FROM max(claimed_at) - min(claimed_at))::numeric, 2) || ' s, at most ' || \
                 (SELECT max(n) FROM (SELECT count(*) AS n FROM live_leases \
                 GROUP BY floor(extract(epoch FROM claimed_at) * 10)) AS tenths) || ' in a tenth' FROM live_leases",
            )?;
            format!(
                "p50 {:.1} s, p90 {:.1} s; claims spread over {claims}; no login dropped",
                quantile(&spans, 0.5),
                quantile(&spans, 0.9)
            )
        },
    ))
}
