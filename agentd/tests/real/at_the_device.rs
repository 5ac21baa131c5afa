//! What whoever is at the device can ask and say.

use std::process::{Command, Output};

use rssh_proto::FailureKind;
use rssh_proto::payload::DeviceEventKind;

use crate::agent::{World, terminate};
use crate::broker::Server;

fn told(world: &World, command: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rssh-agentd"))
        .args(command)
        .arg("--config")
        .arg(world.config())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn failure(server: &mut Server) -> rssh_proto::Failure {
    match server.hear_event().await.event {
        DeviceEventKind::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_last_failure_is_told_at_the_device_itself() {
    let world = World::new();
    let mut server = Server::connect(&world.broker).await;
    let mut agent = world.agent();
    server.hear_status().await;
    let status = told(&world, &["status"]);
    assert!(status.status.success(), "{status:?}");
    let text = stdout(&status);
    assert!(text.starts_with("device-1: connected to the broker for "), "{text}");
    assert!(text.contains("no tunnels\nnothing has failed"), "{text}");
    let figures = stdout(&told(&world, &["status", "--metrics"]));
    assert!(figures.contains("\nrssh_agent_broker_connected 1\n"), "{figures}");
    assert!(figures.contains("\nrssh_agent_tunnels{state=\"up\"} 0\n"), "{figures}");

    server.open(&world.order("localhost:1")).await;
    assert_eq!(server.hear_event().await.event, DeviceEventKind::Accepted);
    assert_eq!(failure(&mut server).await.kind, FailureKind::TargetRefused);
    let text = stdout(&told(&world, &["status"]));
    assert!(
        text.contains("ago: nothing answers at localhost:1 from device-1"),
        "{text}"
    );

    assert!(terminate(&mut agent).success());
    let status = told(&world, &["status"]);
    assert_eq!(status.status.code(), Some(69));
    let said = String::from_utf8_lossy(&status.stderr).into_owned();
    assert!(said.contains("no rssh-agentd runs with this configuration"), "{said}");
}

#[tokio::test]
async fn a_paused_device_opens_nothing_until_it_is_resumed_not_even_after_a_restart() {
    let world = World::new();
    let mut server = Server::connect(&world.broker).await;
    let mut agent = world.agent();
    server.hear_status().await;
    server.open(&world.order("service")).await;
    assert_eq!(server.hear_event().await.event, DeviceEventKind::Accepted);
    world.proven().await;
    let text = stdout(&told(&world, &["pause", "--for", "2h"]));
    assert!(text.contains("paused: no tunnel is opened"), "{text}");
    assert_eq!(server.hear_event().await.event, DeviceEventKind::Closed);
    assert_eq!(world.ssh_processes(), [] as [u32; 0]);
    server.open(&world.order("service")).await;
    let refused = failure(&mut server).await;
    assert_eq!(refused.kind, FailureKind::Denied);
    assert!(refused.message().contains("120 min"), "{refused}");

    assert!(terminate(&mut agent).success());
    server.hear_status().await;
    let _next = world.agent();
    server.hear_status().await;
    let status: serde_json::Value = serde_json::from_str(&stdout(&told(&world, &["status", "--json"]))).unwrap();
    assert!(status["paused_s"].as_u64() > Some(7000), "{status}");
    server.open(&world.order("service")).await;
    assert_eq!(failure(&mut server).await.kind, FailureKind::Denied);
    assert!(told(&world, &["resume"]).status.success());
    server.open(&world.order("service")).await;
    assert_eq!(server.hear_event().await.event, DeviceEventKind::Accepted);
    world.proven().await;
}

#[tokio::test]
async fn a_check_names_what_cannot_be_reached_from_the_device() {
    let world = World::new();
    let output = told(&world, &["check"]);
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    let text = stdout(&output);
    let port = world.broker.port;
    assert!(text.contains(&format!("ok    broker 127.0.0.1:{port}\n")), "{text}");
    assert!(text.contains("FAIL  target localhost:1: "), "{text}");
    let config = std::fs::read_to_string(world.config()).unwrap();
    std::fs::write(world.config(), config.replace(&format!(":{port}"), ":1")).unwrap();
    let text = stdout(&told(&world, &["check"]));
    assert!(
        text.contains("FAIL  broker 127.0.0.1:1: cannot reach the broker"),
        "{text}"
    );
}
