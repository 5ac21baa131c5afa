//! Who may open what, how much of it, and who may nothing any more.

use rssh_proto::payload::TunnelState;
use rssh_proto::{Failure, FailureKind, Target, TunnelId};
use rssh_serverd::clock::{self, UnixTime};
use rssh_serverd::pki::Issued;
use rssh_serverd::ssh_keygen::PublicKey;
use rssh_serverd::store::{Devices, Grantee, Kind, Limited, NewEnrolment, Opening, StoreError, Terms, Verdict};
use rssh_serverd::token::ApiToken;

use crate::{KEY, PATIENT_MS, World, another, asker, bounds, device, grant, server_id, user};

const OTHER_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF4b4OqFP4OqF3b4OqFP4OqF3b4OqFP4OqF3b4OqFP4O";

fn refusal(opening: Opening) -> Failure {
    match opening {
        Opening::Refused(failure) => failure,
        other => panic!("{other:?}"),
    }
}

fn new_tunnel(opening: Opening) -> TunnelId {
    match opening {
        Opening::New(tunnel) => tunnel.id,
        other => panic!("{other:?}"),
    }
}

/// bob's request for a new tunnel to a target of device-1.
async fn bob_asks(world: &World, target: &str) -> Opening {
    world
        .ask(&asker("bob"), |request| {
            request.target = target.parse().unwrap();
            request.new = true;
        })
        .await
}

#[tokio::test]
async fn a_grant_of_a_group_for_a_tag_holds_for_as_long_as_both_do() {
    let world = World::new().await;
    let store = &world.store;
    let (staff, berlin) = ("staff".parse().unwrap(), "site=berlin".parse().unwrap());
    store.add_group(&staff).await.unwrap();
    let terms = Terms {
        accounts: vec!["root".parse().unwrap()],
        max_ttl_s: Some(60),
        ..Terms::default()
    };
    let by_tag = Devices::Tagged("site=berlin".parse().unwrap());
    let holder = Grantee::Group("staff".parse().unwrap());
    store
        .add_grant(&holder, &by_tag, &["22".parse().unwrap()], &terms)
        .await
        .unwrap();
    assert_eq!(refusal(bob_asks(&world, "22").await).kind, FailureKind::Denied);
    store.add_member(&staff, &user("bob")).await.unwrap();
    assert_eq!(refusal(bob_asks(&world, "22").await).kind, FailureKind::Denied);
    assert!(store.devices_of(&user("bob")).await.unwrap().is_empty());
    store.tag_device(&device(), &[berlin], &[]).await.unwrap();

    let tunnel = new_tunnel(bob_asks(&world, "22").await);
    assert_eq!(refusal(bob_asks(&world, "80").await).kind, FailureKind::Denied);
    assert_eq!(store.devices_of(&user("bob")).await.unwrap().len(), 1);
    let held = store.tunnels_of(&user("bob")).await.unwrap();
    assert!(held.len() == 1 && held[0].ttl_s <= 60, "{held:?}");
    let accounts = store.accounts_of(&user("bob"), &device(), &[]).await.unwrap();
    assert_eq!(accounts, ["root".parse().unwrap()]);

    // Without the tag the tunnel ends, and nothing can be read of it.
    assert_eq!(store.tag_device(&device(), &[], &["site".to_owned()]).await.unwrap(), 1);
    assert!(store.tunnel_of(&user("bob"), tunnel).await.unwrap().is_none());
    assert!(store.trace_of(&user("bob"), tunnel).await.unwrap().is_none());
    store
        .tag_device(&device(), &["site=berlin".parse().unwrap()], &[])
        .await
        .unwrap();
    let seen = store.tunnel_of(&user("bob"), tunnel).await.unwrap().unwrap();
    assert_eq!(seen.state, TunnelState::Closed);

    new_tunnel(bob_asks(&world, "22").await);
    assert_eq!(store.remove_member(&staff, &user("bob")).await.unwrap(), 1);
    assert_eq!(refusal(bob_asks(&world, "22").await).kind, FailureKind::Denied);
}

#[tokio::test]
async fn a_grant_taken_away_ends_the_tunnels_that_no_other_covers() {
    let world = World::new().await;
    let all = grant(&world.store, "bob", &Devices::All, &[]).await;
    grant(&world.store, "bob", &Devices::One(device()), &["80"]).await;
    let (ssh, web) = (
        new_tunnel(bob_asks(&world, "22").await),
        new_tunnel(bob_asks(&world, "80").await),
    );
    world.granted("s1", 2000, ssh).await;
    let (removed, closed) = world.store.remove_grant(all).await.unwrap().unwrap();
    assert_eq!((removed.id, closed), (all, 1));
    assert!(world.store.remove_grant(all).await.unwrap().is_none());
    let evicted = world.store.evictions(&server_id("s1")).await.unwrap();
    assert_eq!(evicted.iter().map(|(tunnel, _)| *tunnel).collect::<Vec<_>>(), [ssh]);
    let left = world.store.tunnels_of(&user("bob")).await.unwrap();
    assert_eq!(left.iter().map(|tunnel| tunnel.id).collect::<Vec<_>>(), [web]);
    assert!(
        world.store.tunnel_of(&user("bob"), ssh).await.unwrap().is_none(),
        "no new names"
    );
}

#[tokio::test]
async fn a_decision_is_explained_by_what_decides() {
    let world = World::new().await;
    let target: Target = "22".parse().unwrap();
    let alice = world.store.explain(&user("alice"), &device(), &target).await.unwrap();
    assert!(alice.allowed && alice.grants[0].0 == Verdict::Matches, "{alice:?}");
    grant(&world.store, "bob", &Devices::One(device()), &["80"]).await;
    grant(
        &world.store,
        "bob",
        &Devices::Tagged("site=berlin".parse().unwrap()),
        &[],
    )
    .await;
    let bob = world.store.explain(&user("bob"), &device(), &target).await.unwrap();
    assert!(!bob.allowed);
    let verdicts: Vec<Verdict> = bob.grants.iter().map(|(verdict, _)| *verdict).collect();
    assert_eq!(verdicts, [Verdict::OtherTarget, Verdict::OtherDevice]);
    world.store.revoke(Kind::Device, "device-1").await.unwrap();
    let revoked = world.store.explain(&user("alice"), &device(), &target).await.unwrap();
    assert_eq!(
        (revoked.allowed, revoked.obstacle.as_deref()),
        (false, Some("device-1 is revoked"))
    );
}

#[tokio::test]
async fn requests_at_the_same_moment_do_not_exceed_a_limit() {
    let world = World::new().await;
    let store = &world.store;
    let team = "team".parse().unwrap();
    store.add_group(&team).await.unwrap();
    for name in ["alice", "bob"] {
        grant(store, name, &Devices::All, &[]).await;
        store.add_member(&team, &user(name)).await.unwrap();
    }
    for (limited, most) in [
        (Limited::User(user("alice")), 3),
        (Limited::Device(device()), 5),
        (Limited::Group(team.clone()), 4),
    ] {
        store.set_limits(&limited, Some(most), None).await.unwrap();
        let mut racing = tokio::task::JoinSet::new();
        for nth in 0..8 {
            let store = store.clone();
            let name = if nth % 2 == 0 || matches!(limited, Limited::User(_)) {
                "alice"
            } else {
                "bob"
            };
            let request = another();
            racing.spawn(async move { store.open(&asker(name), &request, &bounds(PATIENT_MS)).await });
        }
        let outcomes: Vec<Opening> = racing.join_all().await.into_iter().map(Result::unwrap).collect();
        let opened = outcomes
            .iter()
            .filter(|opening| matches!(opening, Opening::New(_)))
            .count();
        assert_eq!(opened, most as usize, "{limited:?}");
        for opening in outcomes {
            if let Opening::Refused(failure) = opening {
                assert!(
                    failure.kind == FailureKind::Busy && failure.retry_after_s > Some(0),
                    "{failure:?}"
                );
            }
        }
        store.set_limits(&limited, None, None).await.unwrap();
        for name in ["alice", "bob"] {
            for tunnel in store.tunnels_of(&user(name)).await.unwrap() {
                store.end(tunnel.id, None).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn opens_within_a_minute_are_limited_and_the_refusal_says_until_when() {
    let world = World::new().await;
    let alice = Limited::User(user("alice"));
    world.store.set_limits(&alice, None, Some(2)).await.unwrap();
    for _ in 0..2 {
        let tunnel = world.requested().await;
        // Closing one gives no open back.
        world.store.end(tunnel, None).await.unwrap();
    }
    let failure = refusal(world.ask(&asker("alice"), |request| request.new = true).await);
    assert_eq!(failure.kind, FailureKind::Busy);
    assert!((1..=60).contains(&failure.retry_after_s.unwrap()), "{failure:?}");
}

#[tokio::test]
async fn a_grants_own_limit_counts_its_own_tunnels() {
    let world = World::new().await;
    let (holder, terms) = (
        Grantee::User(user("bob")),
        Terms {
            max_tunnels: Some(1),
            ..Terms::default()
        },
    );
    let one = Devices::One(device());
    world
        .store
        .add_grant(&holder, &one, &["22".parse().unwrap()], &terms)
        .await
        .unwrap();
    world
        .store
        .add_grant(&holder, &one, &["80".parse().unwrap()], &terms)
        .await
        .unwrap();
    let first = new_tunnel(bob_asks(&world, "22").await);
    assert_eq!(refusal(bob_asks(&world, "22").await).kind, FailureKind::Busy);
    new_tunnel(bob_asks(&world, "80").await);
    world.store.end(first, None).await.unwrap();
    new_tunnel(bob_asks(&world, "22").await);
}

#[tokio::test]
async fn a_revoked_device_lands_nothing_and_its_tunnels_end() {
    let world = World::new().await;
    let store = &world.store;
    let tunnel = world.requested().await;
    world.granted("s1", 2000, tunnel).await;
    let waiting = world.requested().await;
    let revoked = store.revoke(Kind::Device, "device-1").await.unwrap();
    assert_eq!((revoked.already, revoked.tunnels), (false, 2));
    assert!(store.is_revoked("device-1").await.unwrap());
    assert_eq!(store.evictions(&server_id("s1")).await.unwrap().len(), 1);
    let landing = store.landing(&server_id("s1"), &KEY.parse().unwrap()).await.unwrap();
    assert!(landing.is_none(), "{landing:?}");
    assert_eq!(
        crate::refused(world.claim("s1", 2001, waiting).await),
        FailureKind::UnknownTunnel
    );
    assert_eq!(
        refusal(world.ask(&asker("alice"), |_| {}).await).kind,
        FailureKind::Denied
    );
    assert!(store.devices_of(&user("alice")).await.unwrap().is_empty());
    let again = store.add_device(&device(), &OTHER_KEY.parse().unwrap()).await;
    assert!(matches!(again, Err(StoreError::Revoked { .. })), "{again:?}");
    assert!(store.revoke(Kind::Device, "device-1").await.unwrap().already);
    let unknown = store.revoke(Kind::Device, "alice").await;
    assert!(matches!(unknown, Err(StoreError::Unknown { .. })), "{unknown:?}");

    store.unrevoke(Kind::Device, "device-1", false).await.unwrap();
    store.add_device(&device(), &OTHER_KEY.parse().unwrap()).await.unwrap();
    new_tunnel(world.ask(&asker("alice"), |_| {}).await);
}

#[tokio::test]
async fn a_name_is_not_given_back_while_an_old_certificate_would_let_someone_in() {
    let world = World::new().await;
    let token = ApiToken::generate();
    let alice = user("alice");
    world
        .store
        .add_api_token("t1", &token, &alice, &[], "", 3600.0)
        .await
        .unwrap();
    assert!(world.store.api_token(&token).await.unwrap().is_some());
    let lasting = Issued {
        pem: String::new(),
        serial: "0a".to_owned(),
        not_after: UnixTime(clock::now().0 + 3600),
    };
    world.store.add_certificate("alice", &lasting).await.unwrap();
    world.store.revoke(Kind::User, "alice").await.unwrap();
    let early = world.store.unrevoke(Kind::User, "alice", false).await;
    assert!(matches!(early, Err(StoreError::StillValid { .. })), "{early:?}");
    assert!(world.store.is_revoked("alice").await.unwrap());
    // Nor is the user known to HTTP; a token from before stays taken back.
    assert_eq!(world.store.kind("alice").await.unwrap(), None);
    assert!(world.store.api_token(&token).await.unwrap().is_none());
    world.store.unrevoke(Kind::User, "alice", true).await.unwrap();
    assert_eq!(world.store.kind("alice").await.unwrap(), Some(Kind::User));
    assert!(world.store.api_token(&token).await.unwrap().is_none());
    assert!(!world.store.is_revoked("alice").await.unwrap());
}

#[tokio::test]
async fn a_revoked_name_gets_no_certificate_and_is_not_enrolled_by_a_token_from_before() {
    let world = World::new().await;
    let store = &world.store;
    let fleets = NewEnrolment {
        id: "e1",
        hash: b"fleet",
        kind: Kind::Device,
        name: None,
        uses: 2,
        tags: &[],
        lives_s: 3600.0,
    };
    let own = NewEnrolment {
        id: "e2",
        hash: b"own",
        name: Some("pump-2"),
        ..fleets
    };
    store.add_enrolment(&fleets).await.unwrap();
    store.add_enrolment(&own).await.unwrap();
    let enrol = async |hash: &[u8], name| store.use_enrolment(hash, Kind::Device, Some(name), b"key").await;
    let key: PublicKey = OTHER_KEY.parse().unwrap();
    enrol(b"fleet", "pump-1").await.unwrap();
    store.add_device(&"pump-1".parse().unwrap(), &key).await.unwrap();
    enrol(b"own", "pump-2").await.unwrap();
    let issued = Issued {
        pem: String::new(),
        serial: "0b".to_owned(),
        not_after: UnixTime(clock::now().0 + 3600),
    };
    store.revoke(Kind::Device, "pump-1").await.unwrap();
    let refused = |error: &StoreError| matches!(error, StoreError::Revoked { .. });
    assert!(refused(&enrol(b"fleet", "pump-1").await.unwrap_err()));
    assert!(refused(&store.add_certificate("pump-1", &issued).await.unwrap_err()));
    let again = NewEnrolment {
        id: "e3",
        hash: b"again",
        name: Some("pump-1"),
        ..fleets
    };
    assert!(refused(&store.add_enrolment(&again).await.unwrap_err()));

    // Given back, it is enrolled by a new token only.
    store.unrevoke(Kind::Device, "pump-1", false).await.unwrap();
    let before = enrol(b"fleet", "pump-1").await.unwrap_err();
    assert!(matches!(before, StoreError::Taken { .. }), "{before}");
    store.add_enrolment(&again).await.unwrap();
    enrol(b"again", "pump-1").await.unwrap();
    store.add_certificate("pump-1", &issued).await.unwrap();
    enrol(b"own", "pump-2").await.unwrap();
}

#[tokio::test]
async fn a_grant_that_names_no_account_stands_for_the_operators() {
    let world = World::new().await;
    let store = &world.store;
    let pi = ["pi".parse().unwrap()];
    grant(store, "bob", &Devices::One(device()), &["80"]).await;
    assert!(
        store
            .accounts_of(&user("bob"), &device(), &pi)
            .await
            .unwrap()
            .is_empty()
    );
    grant(store, "bob", &Devices::One(device()), &["22"]).await;
    assert_eq!(store.accounts_of(&user("bob"), &device(), &pi).await.unwrap(), pi);
    assert!(
        store
            .accounts_of(&user("bob"), &device(), &[])
            .await
            .unwrap()
            .is_empty()
    );
    store.revoke(Kind::Device, "device-1").await.unwrap();
    assert!(
        store
            .accounts_of(&user("bob"), &device(), &pi)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn no_request_slips_past_a_revocation_at_the_same_moment() {
    for (kind, name) in [(Kind::User, "alice"), (Kind::Device, "device-1")] {
        let world = World::new().await;
        let mut racing = tokio::task::JoinSet::new();
        for nth in 0..10 {
            let store = world.store.clone();
            racing.spawn(async move {
                if nth == 5 {
                    store.revoke(kind, name).await.map(drop)
                } else {
                    store
                        .open(&asker("alice"), &another(), &bounds(PATIENT_MS))
                        .await
                        .map(drop)
                }
            });
        }
        for outcome in racing.join_all().await {
            // On a busy machine one may have had to wait for longer than it has patience.
            assert!(matches!(outcome, Ok(()) | Err(StoreError::Away)), "{outcome:?}");
        }
        while !world.store.is_revoked(name).await.unwrap() {
            world.store.revoke(kind, name).await.unwrap();
        }
        // Listing shows nothing of what is revoked, so give it back to look.
        world.store.unrevoke(kind, name, true).await.unwrap();
        assert!(
            world.store.tunnels_of(&user("alice")).await.unwrap().is_empty(),
            "{name}"
        );
    }
}
