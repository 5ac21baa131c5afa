//! HAProxy is told what to do, and does it, without a reload.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use rssh_proto::ServerId;
use rssh_routerd::desired::{Desired, Map, PoolName, PoolServer, Rows};
use rssh_routerd::plan::{Actual, plan};
use rssh_routerd::render;
use rssh_routerd::runtime::{Outcome, RuntimeError};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::front::Front;
use crate::parts::{banner, free, greeter, health, loopback, until};

/// A state with these servers: each one's address, ssh address, health address and weight.
fn state(front: &Front, servers: &[(&str, SocketAddr, SocketAddr, u16)]) -> Desired {
    let mut desired = Desired {
        maps: Map::ALL.map(|map| (map, Rows::new())).into(),
        ..Desired::default()
    };
    for (id, address, health, weight) in servers {
        let server: ServerId = id.parse().unwrap();
        let mut put = |map, value: String| desired.maps.get_mut(&map).unwrap().insert((*id).to_owned(), value);
        put(Map::Addresses, address.ip().to_string());
        put(Map::KeysCurrent, front.master.key(&server).to_base64());
        let wanted = PoolServer {
            address: *address,
            health: *health,
            weight: *weight,
            enabled: true,
        };
        desired.pool.insert(PoolName { server, index: Some(0) }, wanted);
    }
    desired
}

/// Writes the files, then tells HAProxy.
async fn make(front: &Front, desired: &Desired) -> Actual {
    front.write(desired);
    let runtime = front.runtime();
    for command in plan(desired, &runtime.actual().await.unwrap()) {
        let outcome = runtime
            .execute(&command)
            .await
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert_eq!(outcome, Outcome::Done, "{command:?}");
    }
    runtime.actual().await.unwrap()
}

fn map_file(front: &Front, map: Map) -> Rows {
    let path = render::map_path(&front.config.haproxy, map);
    let text = std::fs::read_to_string(path.path()).unwrap();
    let row = |line: &str| {
        line.split_once(' ')
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .unwrap()
    };
    text.lines().map(row).collect()
}

/// Who greets on the devices' door.
async fn land(front: &Front) -> Option<String> {
    let mut stream = TcpStream::connect(front.config.haproxy.devices[0]).await.ok()?;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(line).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_twenty_changes_map_file_and_registry_are_one_without_a_reload() {
    let mut front = Front::alone();
    front.write(&state(&front, &[]));
    front.start().await;
    let worker = front.runtime().worker().await.unwrap();
    let addresses: Vec<SocketAddr> = (0..8).map(|_| free(loopback())).collect();
    let ids: Vec<String> = (0..40).map(|n| format!("s{n}")).collect();
    for change in 0..20_usize {
        // Servers come, go, move and change weight; the last changes are too large for single rows.
        let count = if change < 15 { 1 + change % 6 } else { 40 - change % 20 };
        let servers: Vec<_> = (0..count)
            .map(|n| {
                let address = addresses[(n + change) % addresses.len()];
                (ids[n].as_str(), address, address, ((change * 16) % 257) as u16)
            })
            .collect();
        let desired = state(&front, &servers);
        let actual = make(&front, &desired).await;
        assert!(
            plan(&desired, &actual).is_empty(),
            "change {change}: {:?}",
            plan(&desired, &actual)
        );
        for map in [Map::Addresses, Map::KeysCurrent, Map::KeysPrevious] {
            assert!(actual.maps[&map].rows == desired.maps[&map], "change {change}");
            assert!(!actual.maps[&map].duplicates, "change {change}");
            assert!(map_file(&front, map) == desired.maps[&map], "change {change}");
        }
    }
    assert_eq!(front.runtime().worker().await.unwrap(), worker, "no reload");
    // A new process starts from the same state.
    let before = front.runtime().actual().await.unwrap();
    front.stop();
    front.start().await;
    let after = front.runtime().actual().await.unwrap();
    assert_eq!(after.pool, before.pool);
    assert!(after.maps == before.maps);
}

#[tokio::test(flavor = "multi_thread")]
async fn landings_go_to_healthy_servers_with_headroom_only() {
    let mut front = Front::alone();
    let (ip1, ip2) = (loopback(), loopback());
    let (s1, s2) = (greeter(free(ip1), "s1").await, greeter(free(ip2), "s2").await);
    let healthy = health(free(ip1)).await;
    front.write(&state(&front, &[]));
    front.start().await;
    assert_eq!(land(&front).await, None, "nobody serves");
    // Both up: both get some.
    make(
        &front,
        &state(&front, &[("s1", s1, healthy, 256), ("s2", s2, healthy, 256)]),
    )
    .await;
    let mut seen = BTreeSet::new();
    until("both servers get landings", async || {
        seen.extend(land(&front).await);
        seen.len() == 2
    })
    .await;
    // Weight 0: nothing more lands there, whatever its health.
    let drained = state(&front, &[("s1", s1, healthy, 256), ("s2", s2, healthy, 0)]);
    make(&front, &drained).await;
    for _ in 0..30 {
        assert_eq!(land(&front).await.as_deref(), Some(banner("s1").as_str()));
    }
    // The same after a restart from the file.
    front.stop();
    front.start().await;
    for _ in 0..30 {
        assert_eq!(land(&front).await.as_deref(), Some(banner("s1").as_str()));
    }
    // Disabled, as an offline server is: here too.
    let mut offline = state(&front, &[("s1", s1, healthy, 256), ("s2", s2, healthy, 256)]);
    for (name, server) in &mut offline.pool {
        server.enabled = name.server.as_str() == "s1";
    }
    make(&front, &offline).await;
    for _ in 0..30 {
        assert_eq!(land(&front).await.as_deref(), Some(banner("s1").as_str()));
    }
    // Its health no longer answers: its sshd would still greet, and is not asked.
    let sick = free(ip1);
    make(
        &front,
        &state(&front, &[("s1", s1, healthy, 256), ("s2", s2, sick, 256)]),
    )
    .await;
    let mut in_a_row = 0;
    until("s2 is found sick", async || {
        let on_s1 = land(&front).await.as_deref() == Some(banner("s1").as_str());
        in_a_row = if on_s1 { in_a_row + 1 } else { 0 };
        in_a_row == 50
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_connections_is_deleted_once_they_are_over() {
    let mut front = Front::alone();
    let s1 = greeter(free(loopback()), "s1").await;
    let healthy = health(free(s1.ip())).await;
    front.write(&state(&front, &[("s1", s1, healthy, 256)]));
    front.start().await;
    let mut device = TcpStream::connect(front.config.haproxy.devices[0]).await.unwrap();
    let mut greeting = vec![0; banner("s1").len()];
    device.read_exact(&mut greeting).await.unwrap();
    let runtime = front.runtime();
    let commands = plan(&state(&front, &[]), &runtime.actual().await.unwrap());
    let (delete, before) = commands.split_last().unwrap();
    for command in before {
        assert_eq!(runtime.execute(command).await.unwrap(), Outcome::Done, "{command:?}");
    }
    assert_eq!(runtime.execute(delete).await.unwrap(), Outcome::InUse);
    // The tunnel that is there goes on meanwhile.
    use tokio::io::AsyncWriteExt as _;
    device.write_all(b"still here").await.unwrap();
    let mut echo = [0; 10];
    device.read_exact(&mut echo).await.unwrap();
    drop(device);
    until("HAProxy lets it go", async || {
        runtime.execute(delete).await.unwrap() == Outcome::Done
    })
    .await;
    assert!(runtime.actual().await.unwrap().pool.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxys_refusals_are_errors_with_their_reason() {
    use rssh_routerd::plan::Command;
    let mut front = Front::alone();
    let runtime = front.runtime();
    assert!(matches!(runtime.worker().await, Err(RuntimeError::Away { .. })));
    front.write(&state(&front, &[]));
    front.start().await;
    let name = PoolName {
        server: "s1".parse().unwrap(),
        index: Some(0),
    };
    for command in [
        Command::ServerWeight(name.clone(), 1),
        Command::ServerEnable(name.clone()),
        Command::MapSet(Map::Addresses, "s1".into(), "10.0.0.1".into()),
        Command::MapDelete(Map::Addresses, "s1".into()),
        Command::MapAdd(Map::Addresses, "s1".into(), "junk".into()),
    ] {
        let refused = runtime.execute(&command).await;
        assert!(
            matches!(refused, Err(RuntimeError::Refused { .. })),
            "{command:?}: {refused:?}"
        );
    }
    for value in ["10.0.0.1; del map x", "10.0.0.1\ndel map x", "<<"] {
        let command = Command::MapAdd(Map::Addresses, "s1".into(), value.into());
        assert!(
            matches!(runtime.execute(&command).await, Err(RuntimeError::Unfit(_))),
            "{value}"
        );
    }
    assert_eq!(
        runtime.actual().await.unwrap().maps[&Map::Addresses].rows,
        BTreeMap::new()
    );
}
