//! The agent's program from an order to its end.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rssh_mqtt::Publish;
use rssh_proto::payload::{CloseOrder, DeviceEventKind, OpenOrder, Presence, V1};
use rssh_proto::topic::Topic;
use rssh_proto::{Epoch, FailureKind, Target, TunnelId};

use crate::broker::{Broker, Server};
use crate::rig::{Running, Sshd, banner, processes_with, run, serve_banner, wait_for};

/// A device with all that its agent talks to.
pub(crate) struct World {
    sshd: Sshd,
    pub(crate) broker: Broker,
    dir: tempfile::TempDir,
    /// The port of the service that the device may offer.
    service: u16,
}

impl World {
    pub(crate) fn new() -> Self {
        let world = Self {
            sshd: Sshd::start(),
            broker: Broker::start(),
            dir: tempfile::Builder::new().prefix("device").tempdir().unwrap(),
            service: serve_banner("SSH-2.0-device-1\r\n").port(),
        };
        let (mqtt, ssh) = (world.broker.identity("device-1"), world.sshd.ssh_config());
        let config = format!(
            "device = \"device-1\"\nstate-dir = {state:?}\n\
             [mqtt]\nbrokers = [\"127.0.0.1:{broker}\"]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n\
             [ssh]\nkey = {ssh_key:?}\nknown-hosts = {known_hosts:?}\n\
             [tunnels]\nmax = 2\n\
             [targets]\nallow = [\"localhost:{service}\", \"localhost:1\"]\n\
             [targets.named]\nservice = \"127.0.0.1:{service}\"\n",
            state = world.state(),
            broker = world.broker.port,
            ca = mqtt.ca,
            cert = mqtt.cert,
            key = mqtt.key,
            ssh_key = ssh.key,
            known_hosts = ssh.known_hosts,
            service = world.service,
        );
        fs::write(world.config(), config).unwrap();
        world
    }

    pub(crate) fn config(&self) -> std::path::PathBuf {
        self.dir.path().join("agentd.toml")
    }

    fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn agent(&self) -> Running {
        self.agent_with(&self.config())
    }

    fn agent_with(&self, config: &Path) -> Running {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("agentd.log"))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_rssh-agentd"))
            .args(["run", "--log", "debug", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Running(child)
    }

    pub(crate) fn ssh_processes(&self) -> Vec<u32> {
        processes_with(&self.state())
    }

    pub(crate) fn order(&self, target: &str) -> OpenOrder {
        OpenOrder {
            v: V1,
            tunnel: TunnelId::generate(),
            epoch: Epoch(1),
            target: target.parse::<Target>().unwrap(),
            lb: format!("127.0.0.1:{}", self.sshd.port).parse().unwrap(),
            other_lbs: Vec::new(),
            ssh_user: "root".into(),
            within_ms: 10_000,
            ttl_s: 600,
            jitter_ms: 0,
        }
    }

    /// Waits until the device's service is reached through the tunnel.
    pub(crate) async fn proven(&self) {
        let port = self.sshd.granted;
        tokio::task::spawn_blocking(move || {
            wait_for("the tunnel carries", || {
                banner(port).filter(|text| text == "SSH-2.0-device-1\r\n")
            });
        })
        .await
        .unwrap();
    }
}

pub(crate) fn terminate(agent: &mut Running) -> ExitStatus {
    run("kill", &["-TERM", &agent.0.id().to_string()]);
    agent.0.wait().unwrap()
}

#[tokio::test]
async fn an_order_opens_a_tunnel_and_another_closes_it() {
    let world = World::new();
    let mut server = Server::connect(&world.broker).await;
    let mut agent = world.agent();
    let online = server.hear_status().await;
    assert_eq!(online.presence, Presence::Online);
    assert_eq!(online.tunnels, []);

    let order = world.order("service");
    server.open(&order).await;
    let event = server.hear_event().await;
    assert_eq!(event.event, DeviceEventKind::Accepted);
    assert_eq!(
        (event.tunnel, event.epoch, &event.instance),
        (order.tunnel, Epoch(0), &online.instance)
    );
    world.proven().await;

    server.open(&order).await;
    assert_eq!(server.hear_event().await.event, DeviceEventKind::Accepted);
    assert_eq!(
        world.sshd.commands().lines().count(),
        1,
        "a repeated order opens nothing"
    );
    assert_eq!(world.ssh_processes().len(), 1);

    let close = CloseOrder {
        v: V1,
        tunnel: order.tunnel,
        epoch: Epoch(1),
    };
    server.close(&close).await;
    assert_eq!(server.hear_event().await.event, DeviceEventKind::Closed);
    assert_eq!(world.ssh_processes(), [] as [u32; 0]);
    server.open(&order).await;
    assert_eq!(
        server.hear_event().await.event,
        DeviceEventKind::Closed,
        "a late copy opens nothing"
    );

    assert!(terminate(&mut agent).success());
    let offline = server.hear_status().await;
    assert_eq!(offline.presence, Presence::Offline);
    assert_eq!(
        (offline.generation, offline.instance),
        (online.generation, online.instance)
    );
}

#[tokio::test]
async fn a_terminated_agent_leaves_no_ssh_and_says_what_it_closed() {
    let world = World::new();
    let mut server = Server::connect(&world.broker).await;
    let mut agent = world.agent();
    server.hear_status().await;
    server.open(&world.order("service")).await;
    server.hear_event().await;
    world.proven().await;
    assert!(terminate(&mut agent).success());
    assert_eq!(server.hear_event().await.event, DeviceEventKind::Closed);
    assert_eq!(server.hear_status().await.presence, Presence::Offline);
    assert_eq!(world.ssh_processes(), [] as [u32; 0]);
}

#[tokio::test]
async fn a_lost_ssh_comes_back_by_itself_under_the_next_epoch() {
    let world = World::new();
    let mut server = Server::connect(&world.broker).await;
    let _agent = world.agent();
    server.hear_status().await;
    let order = world.order("service");
    server.open(&order).await;
    server.hear_event().await;
    world.proven().await;
    run("kill", &["-9", &world.ssh_processes()[0].to_string()]);
    let lost = server.hear_event().await;
    assert!(matches!(lost.event, DeviceEventKind::Lost { .. }), "{lost:?}");
    assert_eq!(lost.epoch, Epoch(1));
    world.proven().await;
    assert_eq!(world.sshd.commands().lines().count(), 2);
}

/// Opens a tunnel, has the agent go, and checks that the next one carries it on.
async fn survives(go: impl FnOnce(&mut Running)) {
    let world = World::new();
    let mut server = Server::connect(&world.broker).await;
    let mut agent = world.agent();
    let first = server.hear_status().await;
    let order = world.order("service");
    server.open(&order).await;
    server.hear_event().await;
    world.proven().await;
    let ssh = world.ssh_processes();
    wait_for("the record is written", || {
        let record = world.state().join("run").join(order.tunnel.to_string()).join("record");
        record.exists().then_some(())
    });
    go(&mut agent);
    let offline = server.hear_status().await;
    assert_eq!(offline.presence, Presence::Offline);
    assert_eq!(offline.generation, first.generation);
    assert_eq!(world.ssh_processes(), ssh, "it outlives its agent");
    world.proven().await;

    let mut next = world.agent();
    let second = server.hear_status().await;
    assert!(second.generation > first.generation);
    assert_ne!(second.instance, first.instance);
    assert_eq!(second.tunnels, [(order.tunnel, Epoch(1))]);
    assert_eq!(world.ssh_processes(), ssh);
    world.proven().await;
    assert_eq!(world.sshd.commands().lines().count(), 1, "it landed once");

    // It is the next agent's in full: a loss is noticed, and so is the end of the agent.
    run("kill", &["-9", &ssh[0].to_string()]);
    let lost = server.hear_event().await;
    assert!(matches!(lost.event, DeviceEventKind::Lost { .. }), "{lost:?}");
    world.proven().await;
    assert!(terminate(&mut next).success());
    assert_eq!(world.ssh_processes(), [] as [u32; 0]);
}

#[tokio::test]
async fn a_tunnel_outlives_a_killed_agent_and_the_next_carries_it_on() {
    survives(|agent| {
        agent.0.kill().unwrap();
        agent.0.wait().unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_outlives_an_agent_that_is_told_to_keep_it() {
    survives(|agent| {
        run("kill", &["-USR1", &agent.0.id().to_string()]);
        assert!(agent.0.wait().unwrap().success());
    })
    .await;
}

#[tokio::test]
async fn an_adopted_tunnel_ends_on_order() {
    let world = World::new();
    let mut server = Server::connect(&world.broker).await;
    let mut agent = world.agent();
    server.hear_status().await;
    let order = world.order("service");
    server.open(&order).await;
    server.hear_event().await;
    world.proven().await;
    run("kill", &["-USR1", &agent.0.id().to_string()]);
    agent.0.wait().unwrap();
    server.hear_status().await;
    let _next = world.agent();
    server.hear_status().await;
    let close = CloseOrder {
        v: V1,
        tunnel: order.tunnel,
        epoch: Epoch(1),
    };
    server.close(&close).await;
    assert_eq!(server.hear_event().await.event, DeviceEventKind::Closed);
    assert_eq!(world.ssh_processes(), [] as [u32; 0]);
    assert!(!world.state().join("run").join(order.tunnel.to_string()).exists());
}

#[tokio::test]
async fn an_ssh_that_does_not_answer_the_next_agent_is_ended() {
    let world = World::new();
    let mut server = Server::connect(&world.broker).await;
    let mut agent = world.agent();
    server.hear_status().await;
    server.open(&world.order("service")).await;
    server.hear_event().await;
    world.proven().await;
    run("kill", &["-USR1", &agent.0.id().to_string()]);
    agent.0.wait().unwrap();
    server.hear_status().await;
    run("kill", &["-STOP", &world.ssh_processes()[0].to_string()]);
    let _next = world.agent();
    assert_eq!(server.hear_status().await.tunnels, []);
    assert_eq!(world.ssh_processes(), [] as [u32; 0]);
}

#[test]
fn two_agents_with_one_identity_keep_out_of_each_others_way_and_say_why() {
    let mut world = World::new();
    // With ids that can be guessed, each takes the other's session over.
    world.broker.restart_with("use_username_as_clientid true");
    let config = fs::read_to_string(world.config()).unwrap();
    let state = world.state().display().to_string();
    let _one = world.agent();
    let other = world.dir.path().join("other.toml");
    fs::write(&other, config.replace(&state, &format!("{state}-2"))).unwrap();
    let _other = world.agent_with(&other);
    let log = || fs::read_to_string(world.dir.path().join("agentd.log")).unwrap_or_default();
    let says = "another program uses the identity device-1";
    wait_for("one of them says why it stays away", || {
        log().contains(says).then_some(())
    });
}

#[tokio::test]
async fn what_the_device_may_not_do_is_a_named_failure() {
    let world = World::new();
    let mut server = Server::connect(&world.broker).await;
    let _agent = world.agent();
    server.hear_status().await;
    for (target, kind) in [
        ("localhost:23", FailureKind::TargetNotAllowed),
        ("192.0.2.1:22", FailureKind::TargetNotAllowed),
        ("plc-1", FailureKind::TargetNotAllowed),
        ("localhost:1", FailureKind::TargetRefused),
    ] {
        server.open(&world.order(target)).await;
        let failure = loop {
            match server.hear_event().await.event {
                DeviceEventKind::Failed(failure) => break failure,
                DeviceEventKind::Accepted => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(failure.kind, kind, "{target}: {failure}");
        assert!(failure.message().contains("device-1"), "{failure}");
    }
    assert_eq!(world.sshd.commands(), "", "no ssh was started");
}

#[tokio::test]
async fn messages_that_are_no_orders_change_nothing() {
    let world = World::new();
    let mut server = Server::connect(&world.broker).await;
    let _agent = world.agent();
    server.hear_status().await;
    let topic = Topic::DeviceOpen("device-1".parse().unwrap());
    for bad in [
        b"\xff\xfe".to_vec(),
        b"{}".to_vec(),
        b"[".repeat(4000),
        br#"{"v":2,"tunnel":"x"}"#.to_vec(),
    ] {
        server.send(Publish::new(&topic, bad)).await;
    }
    let order = world.order("localhost:23");
    server.open(&order).await;
    let event = server.hear_event().await;
    assert_eq!(event.tunnel, order.tunnel, "the agent lives on");
}

#[tokio::test]
async fn tunnels_outlive_the_broker_and_are_reported_to_the_next() {
    let mut world = World::new();
    let mut server = Server::connect(&world.broker).await;
    let _agent = world.agent();
    let before = server.hear_status().await;
    let order = world.order("service");
    server.open(&order).await;
    server.hear_event().await;
    world.proven().await;
    world.broker.restart();
    let after = loop {
        let status = server.hear_status().await;
        if status.presence == Presence::Online {
            break status;
        }
    };
    assert!(after.generation > before.generation);
    assert_eq!(after.tunnels, [(order.tunnel, Epoch(1))]);
    world.proven().await;
    assert_eq!(world.sshd.commands().lines().count(), 1);
}

#[test]
fn a_configuration_that_cannot_work_is_exit_code_78_and_one_line() {
    let world = World::new();
    let good = fs::read_to_string(world.config()).unwrap();
    for (text, says) in [
        (good.replace("max = 2", "max = 0"), "use 1 to 64"),
        (
            good.replace("[ssh]", "[ssh]\nprogram = \"/nowhere/ssh\""),
            "openssh-client",
        ),
        (good.replace("device-1.pem", "gone.pem"), "gone.pem"),
        (good.replace("known_hosts\"", "gone\""), "gone"),
    ] {
        fs::write(world.config(), text).unwrap();
        for command in ["run", "check-config"] {
            let output = Command::new(env!("CARGO_BIN_EXE_rssh-agentd"))
                .args([command, "--config"])
                .arg(world.config())
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(78), "{command}");
            let error = String::from_utf8(output.stderr).unwrap();
            assert!(error.contains(says) && error.lines().count() == 1, "{error}");
        }
    }
}

#[test]
fn a_good_configuration_passes_the_check() {
    let world = World::new();
    let output = Command::new(env!("CARGO_BIN_EXE_rssh-agentd"))
        .args(["check-config", "--config"])
        .arg(world.config())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!Path::new(&world.state()).exists(), "a check writes nothing");
}
