//! Devices and servers that come, go and are lost.

use rssh_proto::payload::{DeviceStatus, Presence, ServerState, TunnelState, V1};
use rssh_proto::{Epoch, FailureKind, Generation, InstanceId, TunnelId};
use rssh_serverd::process::Holder;
use rssh_serverd::store::Opening;
use rssh_serverd::suspicion::Beat;

use crate::{World, asker, device, server_id};

#[tokio::test]
async fn presence_is_ordered_by_generation_and_reconciles_both_sides() {
    let world = World::new().await;
    let (known, strange) = (world.requested().await, TunnelId::generate());
    let status = |presence, generation, tunnels| DeviceStatus {
        v: V1,
        presence,
        generation: Generation(generation),
        instance: InstanceId::generate(),
        tunnels,
    };
    let online = status(Presence::Online, 5, vec![(strange, Epoch(1))]);
    let reconcile = world.store.presence(&device(), &online).await.unwrap().unwrap();
    assert_eq!(
        reconcile.open.iter().map(|tunnel| tunnel.id).collect::<Vec<_>>(),
        vec![known]
    );
    assert_eq!(reconcile.close, vec![(strange, Epoch(1))]);
    let late = status(Presence::Offline, 4, vec![]);
    assert!(world.store.presence(&device(), &late).await.unwrap().is_none());
    assert!(world.store.last_seen(&device()).await.unwrap().0, "still online");
    let gone = status(Presence::Offline, 5, vec![]);
    assert!(world.store.presence(&device(), &gone).await.unwrap().is_some());
    let repeated = status(Presence::Online, 5, vec![]);
    assert!(
        world.store.presence(&device(), &repeated).await.unwrap().is_none(),
        "its goodbye is newer"
    );
    assert!(!world.store.last_seen(&device()).await.unwrap().0);
}

#[tokio::test]
async fn two_agents_that_take_turns_quarantine_their_device() {
    let world = World::new().await;
    let (one, two) = (InstanceId::generate(), InstanceId::generate());
    for agent in [&one, &one, &two, &one] {
        assert!(!world.store.note_instance(&device(), agent).await.unwrap());
    }
    assert!(world.store.note_instance(&device(), &two).await.unwrap());
    assert!(
        !world.store.note_instance(&device(), &one).await.unwrap(),
        "it is already"
    );
    match world.ask(&asker("alice"), |_| {}).await {
        Opening::Refused(failure) => assert_eq!(failure.kind, FailureKind::Quarantined),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_is_lost_only_at_the_beat_that_was_seen_and_is_fenced_then() {
    let world = World::new().await;
    let (s1, s2) = (server_id("s1"), server_id("s2"));
    let holder = Holder::this().unwrap();
    let generation = world.store.take(&s1, Generation(0), &holder).await.unwrap().unwrap();
    assert_eq!(
        world.store.take(&s1, Generation(0), &holder).await.unwrap(),
        None,
        "two at the same moment"
    );
    let health = "127.0.0.1:1".parse().unwrap();
    assert!(
        world
            .store
            .register(&s1, generation, ServerState::Serving, health, "{}")
            .await
            .unwrap()
    );
    assert!(world.store.heartbeat(&s1, generation, 1).await.unwrap());
    let tunnel = world.requested().await;
    world.granted("s1", 2000, tunnel).await;

    let seen = world.store.heartbeats(&s2).await.unwrap();
    assert_eq!(
        (seen.len(), seen[0].beat, seen[0].health),
        (1, Beat { generation, counter: 1 }, Some(health))
    );
    world.store.heartbeat(&s1, generation, 2).await.unwrap();
    assert!(
        world.store.declare_lost(&s1, seen[0].beat, 60).await.unwrap().is_none(),
        "it has beaten since"
    );
    let beat = Beat { generation, counter: 2 };
    let lost = world.store.declare_lost(&s1, beat, 60).await.unwrap().unwrap();
    assert_eq!(
        lost.iter().map(|tunnel| (tunnel.id, tunnel.state)).collect::<Vec<_>>(),
        vec![(tunnel, TunnelState::Reconnecting)]
    );
    assert!(world.store.declare_lost(&s1, beat, 60).await.unwrap().is_none(), "once");

    assert!(!world.store.heartbeat(&s1, generation, 3).await.unwrap(), "fenced");
    assert!(
        !world
            .store
            .register(&s1, generation, ServerState::Serving, health, "{}")
            .await
            .unwrap(),
        "fenced"
    );
    assert!(world.store.leases(&s1).await.unwrap().is_empty());
    assert_eq!(world.granted("s2", 2000, tunnel).await.tunnel.epoch, Epoch(2));
    assert!(
        world.store.take(&s1, generation, &holder).await.unwrap().is_some(),
        "it may come back, at a new generation"
    );
}

#[tokio::test]
async fn closing_releasing_and_a_servers_loss_at_once_block_nothing_for_good() {
    let world = World::new().await;
    let s1 = server_id("s1");
    let holder = Holder::this().unwrap();
    let generation = world.store.take(&s1, Generation(0), &holder).await.unwrap().unwrap();
    assert!(world.store.heartbeat(&s1, generation, 1).await.unwrap());
    let mut held = Vec::new();
    for port in 2001..2041 {
        let tunnel = world.requested().await;
        held.push((port, tunnel, world.granted("s1", port, tunnel).await.tunnel.epoch));
    }

    let mut racing = tokio::task::JoinSet::new();
    for (port, tunnel, epoch) in held.clone() {
        let (store, other, s1) = (world.store.clone(), world.store.clone(), s1.clone());
        racing.spawn(async move { store.end(tunnel, Some(epoch)).await.map(drop) });
        racing.spawn(async move { other.release(&s1, port, tunnel, epoch, 60).await.map(drop) });
    }
    let store = world.store.clone();
    racing.spawn(async move {
        let beat = Beat { generation, counter: 1 };
        store.declare_lost(&s1, beat, 60).await.map(drop)
    });
    for outcome in racing.join_all().await {
        outcome.unwrap();
    }
    for (_, tunnel, _) in held {
        assert_eq!(world.tunnel(tunnel).await.state, TunnelState::Closed);
    }
}
