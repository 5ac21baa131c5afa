//! Messages that come twice, late, retained, or from someone who should not send or hear them.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use rssh_proto::id::{SessionId, TunnelId};
use rssh_proto::payload::{OpenRequest, Operation, Request, V1, encode};

use crate::Action;
use crate::faults::case::{Bound, Case, Measured};
use crate::faults::scene::{PROBER, Scene, USER};
use crate::place::{BROKER_PORT, LB, Place, device_name};
use crate::{files, run};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "request-delivered-twice",
        injects: "one open published 12 times with one id, to two servers",
        bound: Bound::count("tunnels beyond the first", 0.0),
        defence: "the request's id is the tunnel's primary key",
        switch: Some("each copy has an id of its own, and asks for a tunnel of its own"),
        servers: 2,
        devices: 2,
        ha: false,
        run: twice,
    },
    Case {
        name: "request-late",
        injects: "an open with 4 s to live, heard 12 s later by a serverd that was frozen",
        bound: Bound::count("tunnels that opened", 0.0),
        defence: "a request past its deadline opens nothing",
        switch: Some("it has 60 s to live"),
        servers: 1,
        devices: 2,
        ha: false,
        run: late,
    },
    Case {
        name: "request-retained",
        injects: "a retained open; the broker and the servers start again",
        bound: Bound::count("tunnels that opened", 0.0),
        defence: "retained messages do not reach shared subscriptions; servers drop them",
        switch: Some("it is published anew, and not retained"),
        servers: 2,
        devices: 2,
        ha: false,
        run: retained,
    },
    Case {
        name: "two-agents-with-one-id",
        injects: "a second agent with a copy of the first one's state on the same device",
        bound: Bound::seconds("quarantined, and said so", 60.0),
        defence: "two that take turns are noticed, and nobody is let in for them",
        switch: Some("the database does not count the turns"),
        servers: 2,
        devices: 2,
        ha: false,
        run: two_agents,
    },
    Case {
        name: "rogue-subscriber",
        injects: "a device that subscribes to the users' requests, shared and not",
        bound: Bound::count("opens that failed", 0.0),
        defence: "the broker denies by default, subscriptions included",
        switch: Some("the broker lets everybody subscribe"),
        servers: 2,
        devices: 3,
        ha: false,
        run: rogue,
    },
    Case {
        name: "client-id-stolen",
        injects: "a device that connects with another's name as its client id, 5 times",
        bound: Bound::count("devices that went offline", 0.0),
        defence: "client ids end in 128 random bits",
        switch: Some("it has read the whole id in the broker's log"),
        servers: 2,
        devices: 2,
        ha: false,
        run: stolen,
    },
];

/// A command of mosquitto's clients with a certificate, as its owner has it.
fn client(scene: &Scene, program: &str, place: &Place, dir: &str, name: &str, args: &[&str]) -> std::process::Command {
    let file = |name: &str| scene.lab.dir().inside(format_args!("{dir}/{name}"));
    let (ca, cert, key) = (
        file("servers-ca.pem"),
        file(&format!("{name}.pem")),
        file(&format!("{name}.key")),
    );
    let (host, port) = (LB.to_string(), BROKER_PORT.to_string());
    let mut argv = vec![
        program, "-V", "mqttv5", "-h", &host, "-p", &port, "--cafile", &ca, "--cert", &cert, "--key", &key,
    ];
    argv.extend(args);
    scene.lab.command(place, &argv)
}

/// Publishes a user's request.
fn publish(scene: &Scene, user: &str, request: &Request, more: &[&str]) -> Result<()> {
    let topic = format!("rssh/v1/user/{user}/request");
    let mut args = vec!["-q", "1", "-t", &topic, "-s"];
    args.extend(more);
    let dir = format!("users/{user}/home/.config/rssh");
    let place = scene.lab.place(Some(user))?;
    let mut command = client(scene, "mosquitto_pub", &place, &dir, "user", &args);
    run::fed(&mut command, &String::from_utf8(encode(request))?).map(drop)
}

fn request(device: u32, id: TunnelId, deadline: Duration, new: bool) -> Result<Request> {
    Ok(Request {
        v: V1,
        id,
        session: SessionId::generate(),
        deadline_ms: u32::try_from(deadline.as_millis())?,
        op: Operation::Open(OpenRequest {
            new,
            ..OpenRequest::new(device_name(device).parse()?, "localhost:22".parse()?)
        }),
    })
}

/// How many tunnels to a device ever became active.
fn opened(scene: &Scene, device: u32) -> Result<usize> {
    Ok(scene
        .lab
        .psql(&format!(
            "SELECT count(*) FROM tunnels WHERE device_id = 'device-{device}' AND active_at IS NOT NULL"
        ))?
        .parse()?)
}

fn twice(scene: &Scene) -> Result<Measured> {
    let session = scene.session(2)?;
    let id = TunnelId::generate();
    scene.fault("12 copies of one open");
    let results: Vec<Result<()>> = thread::scope(|scope| {
        let copies: Vec<_> = (0..12)
            .map(|_| {
                scope.spawn(move || {
                    let id = if scene.without { TunnelId::generate() } else { id };
                    publish(
                        scene,
                        USER,
                        &request(1, id, Duration::from_secs(15), scene.without)?,
                        &[],
                    )
                })
            })
            .collect();
        copies
            .into_iter()
            .map(|copy| copy.join().unwrap_or_else(|_| bail!("a copy panicked")))
            .collect()
    });
    scene.effect("the broker took every copy", results.iter().all(Result::is_ok));
    scene.until(Duration::from_secs(10), "the tunnel is open", || {
        Ok(opened(scene, 1)? > 0)
    })?;
    scene.last(Duration::from_secs(3));
    let heard: usize = (1..=2)
        .map(|n| scene.log_since(&format!("serverd-{n}"), 0).matches("requested").count())
        .sum();
    let rows: usize = scene
        .lab
        .psql("SELECT count(*) FROM tunnels WHERE device_id = 'device-1'")?
        .parse()?;
    ensure!(session.goes_on(Duration::from_secs(5)), "the other session ended");
    scene.login(1)?;
    Ok(Measured::count(
        rows.saturating_sub(1),
        format!("{rows} tunnel of device-1, made {} times", heard.saturating_sub(1)),
    ))
}

fn late(scene: &Scene) -> Result<Measured> {
    // Login names and all else warm.
    scene.until_opens(PROBER, 1, Duration::from_secs(10))?;
    let before = opened(scene, 1)?;
    scene.ctl(Action::Stop, "serverd-1")?;
    let life = Duration::from_secs(if scene.without { 60 } else { 4 });
    let seconds = life.as_secs().to_string();
    // As the CLI does: the message's expiry is the deadline.
    publish(
        scene,
        USER,
        &request(1, TunnelId::generate(), life, false)?,
        &["-D", "publish", "message-expiry-interval", &seconds],
    )?;
    scene.last(Duration::from_secs(12));
    let from = scene.log_length("serverd-1");
    scene.ctl(Action::Cont, "serverd-1")?;
    scene.last(Duration::from_secs(5));
    let log = scene.log_since("serverd-1", from);
    let heard = if log.contains("requested") {
        "serverd took it up"
    } else {
        "serverd did not take it up"
    };
    let now = opened(scene, 1)?;
    scene.until_opens(PROBER, 2, Duration::from_secs(30))?;
    Ok(Measured::count(now - before, heard))
}

fn retained(scene: &Scene) -> Result<Measured> {
    let session = scene.session(2)?;
    scene.fault("a retained open");
    let sent = publish(
        scene,
        USER,
        &request(1, TunnelId::generate(), Duration::from_secs(5), false)?,
        &["-r"],
    );
    scene.effect("the broker took or refused it", true);
    scene.last(Duration::from_secs(2));
    if scene
        .lab
        .psql("SELECT count(*) FROM tunnels WHERE device_id = 'device-1'")?
        != "0"
    {
        scene.close_tunnel(USER, 1)?;
    }
    let before = opened(scene, 1)?;
    for server in ["serverd-1", "serverd-2"] {
        scene.ctl(Action::Restart, server)?;
    }
    scene.ctl(Action::Restart, "mosquitto")?;
    scene.until_opens(PROBER, 2, Duration::from_secs(40))?;
    if scene.without {
        publish(
            scene,
            USER,
            &request(1, TunnelId::generate(), Duration::from_secs(5), false)?,
            &[],
        )?;
    }
    scene.last(Duration::from_secs(3));
    let now = opened(scene, 1)?;
    ensure!(session.goes_on(Duration::from_secs(5)), "the session ended");
    Ok(Measured::count(
        now - before,
        match sent {
            Ok(()) => "the broker took it".to_owned(),
            Err(error) => format!("the broker refused it: {error}"),
        },
    ))
}

/// Somebody with a server's certificate who subscribes to requests and answers none.
pub(super) fn deaf_subscriber(scene: &Scene) -> Result<Running> {
    let filter = "$share/serverd/rssh/v1/user/+/request";
    let file = |name: &str| scene.lab.dir().inside(format_args!("servers/s1/state/{name}"));
    let (ca, cert, key) = (
        scene.lab.dir().inside("pki/servers-ca.pem"),
        file("server.pem"),
        file("server.key"),
    );
    let (host, port) = (LB.to_string(), BROKER_PORT.to_string());
    let argv = [
        "mosquitto_sub",
        "-V",
        "mqttv5",
        "-h",
        &host,
        "-p",
        &port,
        "--cafile",
        &ca,
        "--cert",
        &cert,
        "--key",
        &key,
        "-q",
        "1",
        "-t",
        filter,
    ];
    let before = scene.log_length("mosquitto");
    let child = scene
        .lab
        .command(&Place::Core, &argv)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let there = crate::process::wait(Duration::from_secs(5), || {
        scene.log_since("mosquitto", before).contains("New client connected")
    });
    // And subscribed, a moment later.
    scene.last(Duration::from_millis(500));
    scene.effect("a deaf subscriber is connected", there);
    Ok(Running(child))
}

/// A program that ends with the value.
pub(super) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has become the program itself; an agent's own ssh end with its word.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).ok();
        self.0.wait().ok();
    }
}

fn two_agents(scene: &Scene) -> Result<Measured> {
    let other = scene.session(2)?;
    let dir = scene.lab.dir().join("devices/device-1");
    let (state, copy) = (dir.join("state"), dir.join("copy"));
    run::checked(std::process::Command::new("cp").arg("-a").args([&state, &copy]))?;
    for run in ["run", "instance"] {
        std::fs::remove_dir_all(copy.join(run)).ok();
    }
    let config = files::read(&dir.join("agentd.toml"))?.replace("/device-1/state", "/device-1/copy");
    files::write(&dir.join("copy.toml"), config)?;
    scene.fault("a second agent with the same id");
    let file = scene.lab.dir().inside("devices/device-1/copy.toml");
    let agentd = scene.lab.programs().path("rssh-agentd");
    let log = std::fs::File::create(scene.lab.log("agentd-copy"))?;
    let second = Running(
        scene
            .lab
            .command(
                &Place::Device(1),
                &[&agentd.to_string_lossy(), "run", "--config", &file],
            )
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?,
    );
    scene.last(Duration::from_secs(1));
    let connected = files::read(&scene.lab.log("mosquitto"))?
        .lines()
        .filter(|line| line.contains("New client connected") && line.contains("as device-1-"))
        .count();
    scene.effect("both are connected", connected >= 2);
    if scene.without {
        scene.lab.psql(
            "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.turns = 0; RETURN NEW; END'; \
             CREATE TRIGGER forget BEFORE UPDATE ON devices FOR EACH ROW EXECUTE FUNCTION forget()",
        )?;
    }
    let (mut good, mut named) = (0, BTreeSet::new());
    let began = Instant::now();
    let quarantined = scene.until(Duration::from_secs(90), "the device is quarantined", || {
        let answer = scene.try_open(PROBER, 1, Duration::from_secs(10))?;
        if answer.succeeded() {
            good += 1;
            // The other agent may hold it.
            let name = device_name(1);
            scene.ask(
                PROBER,
                &name,
                Duration::from_secs(5),
                &["rssh", "close", &name, "--force", "--timeout", "5s"],
            )?;
        } else {
            named.insert(answer.stderr.trim().to_owned());
        }
        Ok(answer.exit == Some(90))
    });
    let took = began.elapsed();
    drop(second);
    if scene
        .lab
        .psql("SELECT quarantined_until > clock_timestamp() FROM devices WHERE id = 'device-1'")?
        == "t"
    {
        // The ten minutes are over.
        scene
            .lab
            .psql("UPDATE devices SET quarantined_until = NULL, turns = 0 WHERE id = 'device-1'")?;
    }
    scene.until_opens(PROBER, 1, Duration::from_secs(30))?;
    ensure!(other.goes_on(Duration::from_secs(5)), "the other session ended");
    quarantined?;
    Ok(Measured::seconds(
        took,
        format!("{good} opens succeeded before; {named:?}"),
    ))
}

fn rogue(scene: &Scene) -> Result<Measured> {
    let session = scene.session(3)?;
    if scene.without {
        let root = scene.lab.dir();
        // As it is where nobody thinks of subscriptions.
        let path = root.join("broker/dynamic-security.json");
        let text = files::read(&path)?;
        let mut config: serde_json::Value = serde_json::from_str(&text)?;
        config["defaultACLAccess"]["subscribe"] = true.into();
        config["defaultACLAccess"]["publishClientReceive"] = true.into();
        scene.ctl(Action::Term, "mosquitto")?;
        files::write(&path, serde_json::to_string(&config)?)?;
        scene.start("mosquitto")?;
        scene.until_opens(PROBER, 1, Duration::from_secs(40))?;
    }
    scene.fault("device-2 subscribes to requests");
    let mut refused = 0;
    let mut subscribers = Vec::new();
    let filters = ["$share/serverd/rssh/v1/user/+/request", "rssh/v1/user/+/request", "#"];
    for filter in filters {
        let mut command = client(
            scene,
            "mosquitto_sub",
            &Place::Device(2),
            "devices/device-2/state",
            "device",
            &["-q", "1", "-t", filter],
        );
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // One whose every subscription is refused ends.
        let mut ended = false;
        crate::process::wait(Duration::from_secs(1), || {
            ended = child.try_wait().is_ok_and(|status| status.is_some());
            ended
        });
        refused += usize::from(ended);
        subscribers.push(Running(child));
    }
    scene.effect(
        format!(
            "{refused} of {} subscriptions were refused, the rest stand",
            filters.len()
        ),
        scene.without || refused == filters.len(),
    );
    let mut failed = 0;
    for _ in 0..10 {
        // In time for the first try only: what is swallowed is not made good by a repetition.
        let answer = scene.try_open(PROBER, 1, Duration::from_millis(950))?;
        if answer.succeeded() {
            scene.close_tunnel(PROBER, 1)?;
        } else {
            failed += 1;
        }
    }
    drop(subscribers);
    ensure!(session.goes_on(Duration::from_secs(5)), "the session ended");
    Ok(Measured::count(
        failed,
        format!("{refused} of 3 subscriptions refused; 10 opens"),
    ))
}

fn stolen(scene: &Scene) -> Result<Measured> {
    scene.until_opens(PROBER, 1, Duration::from_secs(10))?;
    let log = files::read(&scene.lab.log("mosquitto"))?;
    let real = log
        .lines()
        .filter(|line| line.contains("New client connected"))
        .find_map(|line| line.split(' ').find(|word| word.starts_with("device-1-")))
        .context("device-1 is not connected")?
        .to_owned();
    let taken = if scene.without { real } else { "device-1".to_owned() };
    let from = scene.log_length("mosquitto");
    scene.fault(format!("device-2 connects as {taken}"));
    for _ in 0..5 {
        let mut command = client(
            scene,
            "mosquitto_sub",
            &Place::Device(2),
            "devices/device-2/state",
            "device",
            &["-q", "1", "-i", &taken, "-t", "rssh/v1/device/device-2/open", "-W", "1"],
        );
        command.stdin(Stdio::null()).output()?;
    }
    let log = scene.log_since("mosquitto", from);
    scene.effect(
        "the broker accepted or refused the stranger",
        log.contains(&taken) || log.contains("not authorised"),
    );
    let kicked = log.matches("already connected, closing old connection").count();
    let offline = (1..=2)
        .map(|n| scene.log_since(&format!("serverd-{n}"), 0))
        .map(|log| log.matches("device=device-1 presence=Offline").count())
        .sum::<usize>();
    let answer = scene.try_open(PROBER, 1, Duration::from_secs(10))?;
    ensure!(answer.succeeded(), "an open failed: {}", answer.stderr);
    Ok(Measured::count(
        offline.max(kicked),
        format!("{kicked} times someone else was thrown out"),
    ))
}
