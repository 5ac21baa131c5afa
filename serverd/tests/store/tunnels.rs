//! Tunnels and their leases: opened, claimed, closed, rested.

use rssh_proto::payload::{TunnelState, Which};
use rssh_proto::{DeviceId, Epoch, Failure, FailureKind, InstanceId, UserId};
use rssh_serverd::ssh_keygen::PublicKey;
use rssh_serverd::store::{Asker, Devices, Grantee, Kind, Opening, StoreError, Terms};

use crate::{KEY, World, another, asker, bounds, close, device, grant, mark, refused, server_id, user};

#[tokio::test]
async fn a_tunnels_stages_are_told_to_its_user_live_or_over() {
    let world = World::new().await;
    let latest = |user: UserId| {
        let store = world.store.clone();
        async move { store.latest_of(&user, &device(), None).await.unwrap() }
    };
    assert!(latest(user("alice")).await.is_none());
    let tunnel = world.requested().await;
    let landed = Some(std::time::Duration::ZERO);
    world.granted("s1", 2000, tunnel).await;
    world.store.activate(tunnel, Epoch(1), landed).await.unwrap().unwrap();
    let (found, times) = latest(user("alice")).await.unwrap();
    assert_eq!((found.id, found.state), (tunnel, TunnelState::Active));
    assert!(times.answered_ms <= times.claimed_ms && times.claimed_ms <= times.active_ms);
    assert!(times.landed_ms.is_some() && times.active_ms.is_some() && times.ended_ms.is_none());
    world.store.end(tunnel, None).await.unwrap();
    let (found, times) = world.store.trace_of(&user("alice"), tunnel).await.unwrap().unwrap();
    assert_eq!(found.state, TunnelState::Closed);
    assert!(times.ended_ms >= times.active_ms);
    assert_eq!(latest(user("alice")).await.unwrap().0.id, tunnel);
    assert!(latest(user("bob")).await.is_none());
    let other = "8080".parse().unwrap();
    let store = &world.store;
    assert!(
        store
            .latest_of(&user("alice"), &device(), Some(&other))
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_name_belongs_to_one_kind_and_a_key_to_one_device() {
    let world = World::new().await;
    let taken = world.store.add_identity(Kind::User, "device-1").await;
    assert!(matches!(taken, Err(StoreError::Taken { .. })), "{taken:?}");
    assert!(matches!(
        world.store.add_identity(Kind::User, "admin").await,
        Err(StoreError::Reserved(_))
    ));
    let key: PublicKey = KEY.parse().unwrap();
    let twice = world.store.add_device(&"device-2".parse().unwrap(), &key).await;
    assert!(matches!(twice, Err(StoreError::KeyTaken(_))), "{twice:?}");
    let carol = Grantee::User(user("carol"));
    let unknown = world
        .store
        .add_grant(&carol, &Devices::All, &[], &Terms::default())
        .await;
    assert!(
        matches!(unknown, Err(StoreError::Unknown { kind: "user", .. })),
        "{unknown:?}"
    );
}

#[tokio::test]
async fn a_request_opens_what_is_granted_once() {
    let world = World::new().await;
    let alice = asker("alice");
    let Opening::New(first) = world.ask(&alice, |_| {}).await else {
        panic!("not new")
    };
    assert_eq!((first.id, first.state), (alice.request, TunnelState::Requested));
    let Opening::Existing(again) = world.ask(&alice, |_| {}).await else {
        panic!("not found again")
    };
    assert_eq!(again.id, first.id);
    let Opening::Existing(shared) = world.ask(&asker("alice"), |_| {}).await else {
        panic!("not shared")
    };
    assert_eq!(shared.id, first.id);
    assert!(matches!(
        world.ask(&asker("alice"), |request| request.new = true).await,
        Opening::New(_)
    ));

    let kind = |opening| match opening {
        Opening::Refused(failure) => failure.kind,
        other => panic!("{other:?}"),
    };
    assert_eq!(kind(world.ask(&asker("bob"), |_| {}).await), FailureKind::Denied);
    let stolen = Asker {
        user: user("bob"),
        ..alice
    };
    grant(&world.store, "bob", &Devices::All, &[]).await;
    assert_eq!(
        kind(world.ask(&stolen, |_| {}).await),
        FailureKind::Denied,
        "another's request id"
    );
    for (name, expected) in [("alice", FailureKind::Denied), ("bob", FailureKind::UnknownDevice)] {
        let elsewhere = world
            .ask(&asker(name), |request| request.device = "device-9".parse().unwrap())
            .await;
        assert_eq!(
            kind(elsewhere),
            expected,
            "bob may open any device, and so may know which there are"
        );
    }
}

#[tokio::test]
async fn a_grant_covers_its_targets_only() {
    let world = World::new().await;
    grant(&world.store, "bob", &Devices::One(device()), &["80"]).await;
    assert!(matches!(world.ask(&asker("bob"), |_| {}).await, Opening::Refused(_)));
    let web = world
        .ask(&asker("bob"), |request| request.target = "80".parse().unwrap())
        .await;
    assert!(matches!(web, Opening::New(_)), "{web:?}");
}

#[tokio::test]
async fn a_port_has_one_tunnel_and_a_tunnel_one_port() {
    let world = World::new().await;
    let (one, two) = (world.requested().await, world.requested().await);
    assert_eq!(world.granted("s1", 2000, one).await.tunnel.epoch, Epoch(1));
    assert_eq!(refused(world.claim("s1", 2000, two).await), FailureKind::Busy);
    assert_eq!(
        world.tunnel(two).await.epoch,
        Epoch(0),
        "a refused claim changes nothing"
    );

    // Elsewhere the same port is another; the older session is to be evicted.
    let moved = world.granted("s2", 2000, one).await;
    assert_eq!((moved.tunnel.epoch, moved.older), (Epoch(2), Some(server_id("s1"))));
    assert_eq!(
        world.store.evictions(&server_id("s1")).await.unwrap(),
        vec![(one, Epoch(1))]
    );
    assert_eq!(world.store.leases(&server_id("s1")).await.unwrap().len(), 0);
    assert_eq!(world.store.leases(&server_id("s2")).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_late_writer_with_an_older_epoch_changes_nothing() {
    let world = World::new().await;
    let tunnel = world.requested().await;
    world.granted("s1", 2000, tunnel).await;
    world.granted("s2", 2001, tunnel).await;
    assert!(world.store.activate(tunnel, Epoch(1), None).await.unwrap().is_none());
    assert!(
        !world
            .store
            .release(&server_id("s1"), 2000, tunnel, Epoch(1), 60)
            .await
            .unwrap()
    );
    assert_eq!(world.tunnel(tunnel).await.state, TunnelState::Claimed);
    assert!(world.store.activate(tunnel, Epoch(2), None).await.unwrap().is_some());
    assert!(
        world.store.evictions(&server_id("s1")).await.unwrap().is_empty(),
        "the release answers the eviction"
    );
}

#[tokio::test]
async fn a_port_rests_for_all_but_its_last_tunnel() {
    let world = World::new().await;
    let (one, two) = (world.requested().await, world.requested().await);
    world.granted("s1", 2000, one).await;
    assert!(
        world
            .store
            .release(&server_id("s1"), 2000, one, Epoch(1), 60)
            .await
            .unwrap()
    );
    assert_eq!(world.tunnel(one).await.state, TunnelState::Reconnecting);
    let resting = world.store.resting(&server_id("s1")).await.unwrap();
    assert!(resting.len() == 1 && resting[0].port == 2000 && (50_000..=60_000).contains(&resting[0].for_ms));
    assert_eq!(refused(world.claim("s1", 2000, two).await), FailureKind::Busy);
    assert_eq!(world.granted("s1", 2000, one).await.tunnel.epoch, Epoch(2));
    world
        .store
        .release(&server_id("s1"), 2000, one, Epoch(2), 0)
        .await
        .unwrap();
    assert_eq!(world.granted("s1", 2000, two).await.tunnel.epoch, Epoch(1));
}

#[tokio::test]
async fn only_the_device_itself_claims_and_only_what_is_not_over() {
    let world = World::new().await;
    let tunnel = world.requested().await;
    let other: DeviceId = "device-2".parse().unwrap();
    let stolen = world
        .store
        .claim(&server_id("s1"), 2000, &other, tunnel, &mark(1), 60)
        .await
        .unwrap();
    assert_eq!(refused(stolen), FailureKind::Denied);
    world.store.end(tunnel, None).await.unwrap();
    assert_eq!(
        refused(world.claim("s1", 2000, tunnel).await),
        FailureKind::UnknownTunnel
    );

    let late = asker("alice");
    let request = another();
    world.store.open(&late, &request, &bounds(1)).await.unwrap();
    while world.tunnel(late.request).await.within_ms > 0 {}
    assert_eq!(
        refused(world.claim("s1", 2000, late.request).await),
        FailureKind::Deadline
    );
    assert!(
        world
            .store
            .landing(&server_id("s1"), &KEY.parse().unwrap())
            .await
            .unwrap()
            .is_none()
    );
    let swept = world.store.sweep().await.unwrap();
    assert_eq!(
        swept.iter().map(|tunnel| tunnel.id).collect::<Vec<_>>(),
        vec![late.request]
    );
    assert_eq!(world.tunnel(late.request).await.state, TunnelState::Failed);
}

#[tokio::test]
async fn a_tunnel_closes_with_its_last_holder_and_a_repeated_close_counts_once() {
    let world = World::new().await;
    let (first, second) = (asker("alice"), asker("alice"));
    world.ask(&first, |_| {}).await;
    world.ask(&second, |_| {}).await;
    let which = || Which::Device {
        device: device(),
        target: None,
    };
    let closer = asker("alice");
    for _ in 0..3 {
        let outcomes = world.store.close(&closer, &close(which(), false)).await.unwrap();
        assert_eq!(
            outcomes.iter().map(|outcome| outcome.holders_left).collect::<Vec<_>>(),
            vec![1]
        );
    }
    assert!(
        world
            .store
            .close(&asker("bob"), &close(which(), true))
            .await
            .unwrap()
            .is_empty(),
        "not bob's"
    );
    let last = asker("alice");
    for _ in 0..2 {
        let outcomes = world
            .store
            .close(&last, &close(Which::Tunnel(second.request), false))
            .await
            .unwrap();
        assert_eq!(
            outcomes.iter().map(|outcome| outcome.holders_left).collect::<Vec<_>>(),
            vec![0]
        );
    }
    assert_eq!(world.tunnel(first.request).await.state, TunnelState::Closed);
}

#[tokio::test]
async fn a_close_that_comes_again_late_leaves_what_was_opened_since() {
    let world = World::new().await;
    let which = || Which::Device {
        device: device(),
        target: None,
    };
    let first = world.requested().await;
    let closer = asker("alice");
    let closed = world.store.close(&closer, &close(which(), true)).await.unwrap();
    assert_eq!(closed.len(), 1);
    let since = world.requested().await;
    let again = world.store.close(&closer, &close(which(), true)).await.unwrap();
    let told: Vec<_> = again.iter().map(|outcome| outcome.tunnel.id).collect();
    assert_eq!(told, [first], "the same as before");
    assert_eq!(world.tunnel(since).await.state, TunnelState::Requested);
    // One that gave up a hold, and closed nothing, is remembered too.
    let second = asker("alice");
    world.ask(&second, |_| {}).await;
    let one = asker("alice");
    let left = world.store.close(&one, &close(which(), false)).await.unwrap();
    assert_eq!(left.iter().map(|outcome| outcome.holders_left).collect::<Vec<_>>(), [1]);
    world.store.close(&asker("alice"), &close(which(), true)).await.unwrap();
    let later = world.requested().await;
    world.store.close(&one, &close(which(), false)).await.unwrap();
    assert_eq!(world.tunnel(later).await.state, TunnelState::Requested);
}

#[tokio::test]
async fn force_closes_whoever_holds_and_ends_the_session() {
    let world = World::new().await;
    let first = asker("alice");
    world.ask(&first, |_| {}).await;
    world.ask(&asker("alice"), |_| {}).await;
    world.granted("s2", 2000, first.request).await;
    let outcomes = world
        .store
        .close(&asker("alice"), &close(Which::Tunnel(first.request), true))
        .await
        .unwrap();
    assert_eq!(outcomes[0].holders_left, 0);
    assert_eq!(
        world.store.evictions(&server_id("s2")).await.unwrap(),
        vec![(first.request, Epoch(1))]
    );
    assert!(
        !world
            .store
            .release(&server_id("s2"), 2000, first.request, Epoch(1), 60)
            .await
            .unwrap(),
        "it is over"
    );
}

#[tokio::test]
async fn a_device_fails_its_own_tunnels_before_they_are_active_and_only_remarks_on_them_after() {
    let world = World::new().await;
    let tunnel = world.requested().await;
    let failure = Failure::new(FailureKind::TargetRefused, "nothing answers");
    let other: DeviceId = "device-2".parse().unwrap();
    assert!(
        world
            .store
            .fail(tunnel, &other, &failure, false)
            .await
            .unwrap()
            .is_none()
    );
    world.granted("s1", 2000, tunnel).await;
    world.store.activate(tunnel, Epoch(1), None).await.unwrap();
    assert!(
        world
            .store
            .fail(tunnel, &device(), &failure, false)
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(world.tunnel(tunnel).await.failure, None);
    world.store.note_fault(tunnel, &device(), &failure).await.unwrap();
    let noted = world.tunnel(tunnel).await;
    assert_eq!(
        (noted.state, noted.failure),
        (TunnelState::Active, Some(failure.clone()))
    );

    let early = world.requested().await;
    let agent = InstanceId::generate();
    world.store.acknowledged(early, &device(), &agent).await.unwrap();
    assert!(
        world
            .store
            .fail(early, &device(), &failure, true)
            .await
            .unwrap()
            .is_none(),
        "it has answered"
    );
    let (failed, askers) = world
        .store
        .fail(early, &device(), &failure, false)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((failed.state, askers.len()), (TunnelState::Failed, 1));
}

#[tokio::test]
async fn a_landing_that_is_over_ends_no_later_one() {
    let world = World::new().await;
    let tunnel = world.requested().await;
    let first = world.granted("s1", 2000, tunnel).await.tunnel.epoch;
    let second = world.granted("s2", 2000, tunnel).await.tunnel.epoch;
    assert!(!world.store.end(tunnel, Some(first)).await.unwrap());
    assert_eq!(world.tunnel(tunnel).await.state, TunnelState::Claimed);
    assert!(world.store.end(tunnel, Some(second)).await.unwrap());
    assert_eq!(world.tunnel(tunnel).await.state, TunnelState::Closed);
}
