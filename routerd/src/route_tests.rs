use proptest::prelude::*;
use rssh_proto::InstanceId;
use rssh_proto::payload::V1;

use super::*;
use crate::desired::Pool;

fn id(text: &str) -> ServerId {
    text.parse().unwrap()
}

fn registration(server: &str, generation: u64, counter: u64) -> Registration {
    let n: u8 = server[1..].parse().unwrap();
    Registration {
        v: V1,
        server: id(server),
        address: IpAddr::from([10, 0, 0, n]),
        ssh: vec![
            SocketAddr::from(([10, 0, 0, n], 2201)),
            SocketAddr::from(([10, 0, 0, n], 2202)),
        ],
        health: SocketAddr::from(([10, 0, 0, n], 8022)),
        https: None,
        state: ServerState::Serving,
        capacity: 1000,
        tunnels: 0,
        load: 0.0,
        generation: Generation(generation),
        instance: InstanceId::generate(),
        counter,
    }
}

fn verified(registration: Registration) -> Verified {
    let signed = SignedRegistration::new(serde_json::to_string(&registration).unwrap(), &[], &[]);
    Verified { registration, signed }
}

fn local() -> Local {
    Local {
        master: NameMaster::generate(),
        previous: None,
        revoked: BTreeSet::new(),
        revoked_users: BTreeSet::new(),
        revoked_serials: BTreeSet::new(),
    }
}

fn row(server: &str, generation: u64, lost: bool) -> Row {
    Row {
        server: id(server),
        generation: Generation(generation),
        lost,
    }
}

fn status(generation: u64, state: ServerState) -> ServerStatus {
    ServerStatus {
        v: V1,
        state,
        generation: Generation(generation),
        instance: InstanceId::generate(),
    }
}

fn routed(routes: &Routes, server: &str) -> bool {
    routes.desired(&local()).maps[&Map::Addresses].contains_key(server)
}

/// Whether a server takes landings, and whether it is enabled at all.
fn landing(routes: &Routes, server: &str) -> (bool, bool) {
    let desired = routes.desired(&local());
    let name = PoolName {
        server: id(server),
        index: Some(0),
    };
    (desired.pool[&name].weight > 0, desired.pool[&name].enabled)
}

fn with(servers: &[&str]) -> Routes {
    let mut routes = Routes::default();
    for server in servers {
        routes.handle_registration(verified(registration(server, 5, 1)), Source::Redis);
    }
    routes
}

#[test]
fn a_server_that_needs_several_ssh_addresses_becomes_several_servers_of_the_pool() {
    let mut routes = Routes::default();
    let large = Registration {
        capacity: 30_000,
        ..registration("s1", 5, 1)
    };
    routes.handle_registration(verified(large), Source::Redis);
    let desired = routes.desired(&local());
    let names: Vec<String> = desired.pool.keys().map(PoolName::to_string).collect();
    assert_eq!(names, ["s1_0", "s1_1"]);
    assert_eq!(desired.maps[&Map::Addresses]["s1"], "10.0.0.1");
    assert!(desired.maps[&Map::KeysPrevious].is_empty());
}

#[test]
fn a_server_that_takes_no_landings_still_answers_https_until_it_is_offline() {
    let enabled = |state| {
        let mut routes = Routes::default();
        let registration = Registration {
            https: Some(SocketAddr::from(([10, 0, 0, 1], 8443))),
            state,
            ..registration("s1", 5, 1)
        };
        routes.handle_registration(verified(registration), Source::Redis);
        let desired = routes.desired(&local());
        let (name, server) = desired
            .pool
            .iter()
            .find(|(name, _)| name.pool() == Pool::Https)
            .unwrap();
        assert_eq!(name.to_string(), "s1_https");
        assert_eq!(Pool::of(&name.to_string()), Pool::Https);
        (server.enabled, server.weight > 0)
    };
    assert_eq!(enabled(ServerState::Draining), (true, true));
    assert_eq!(enabled(ServerState::Offline), (false, true));
}

#[test]
fn absence_in_redis_alone_never_removes_a_route() {
    let mut routes = with(&["s1"]);
    routes.handle_database(&[row("s1", 5, false)], &routes.known());
    routes.handle_redis(&BTreeSet::new());
    assert!(routed(&routes, "s1"));
    assert_eq!(landing(&routes, "s1"), (true, true));
}

#[test]
fn without_a_row_and_without_an_entry_a_server_is_gone() {
    let mut routes = with(&["s1"]);
    routes.handle_database(&[], &routes.known());
    // Redis still has it: users keep their routes, but nobody lands on a server that PostgreSQL does not know.
    assert!(routed(&routes, "s1"));
    assert_eq!(landing(&routes, "s1"), (false, true));
    routes.handle_redis(&BTreeSet::new());
    assert!(!routed(&routes, "s1"));
}

#[test]
fn a_look_into_postgresql_says_nothing_about_servers_that_came_after_it_began() {
    let mut routes = Routes::default();
    let before = routes.known();
    routes.handle_registration(verified(registration("s1", 5, 1)), Source::Redis);
    routes.handle_database(&[], &before);
    assert_eq!(landing(&routes, "s1"), (true, true));
}

#[test]
fn while_redis_is_away_a_missing_row_removes_nothing() {
    let mut routes = with(&["s1"]);
    routes.handle_away(Source::Redis);
    routes.handle_database(&[], &routes.known());
    assert!(routed(&routes, "s1"));
    assert!(routes.is_stale());
}

#[test]
fn a_lost_server_is_removed_and_comes_back_with_a_higher_generation_only() {
    let mut routes = with(&["s1"]);
    routes.handle_redis(&routes.known());
    routes.handle_database(&[row("s1", 5, true)], &routes.known());
    assert!(!routed(&routes, "s1"));
    routes.handle_registration(verified(registration("s1", 5, 99)), Source::Redis);
    assert!(!routed(&routes, "s1"));
    routes.handle_registration(verified(registration("s1", 6, 1)), Source::Redis);
    assert!(routed(&routes, "s1"));
    routes.handle_database(&[row("s1", 5, true)], &routes.known());
    assert!(routed(&routes, "s1"), "the word was about an older generation");
}

#[test]
fn an_offline_of_the_current_generation_takes_the_landings_and_leaves_the_routes() {
    let mut routes = with(&["s1"]);
    routes.handle_status(&id("s1"), &status(5, ServerState::Offline));
    assert_eq!(landing(&routes, "s1"), (false, false));
    assert!(routed(&routes, "s1"));
    // A heartbeat that was under way proves nothing.
    routes.handle_registration(verified(registration("s1", 5, 2)), Source::Redis);
    assert_eq!(landing(&routes, "s1"), (false, false));
    routes.handle_status(&id("s1"), &status(5, ServerState::Serving));
    assert_eq!(landing(&routes, "s1"), (true, true));
}

#[test]
fn a_late_offline_means_nothing() {
    let mut routes = with(&["s1"]);
    routes.handle_status(&id("s1"), &status(4, ServerState::Offline));
    assert_eq!(landing(&routes, "s1"), (true, true));
    routes.handle_status(&id("s1"), &status(6, ServerState::Serving));
    routes.handle_status(&id("s1"), &status(5, ServerState::Offline));
    assert_eq!(landing(&routes, "s1"), (true, true));
}

#[test]
fn a_restarted_server_serves_again_by_its_status_while_redis_is_frozen() {
    let mut routes = Routes::default();
    let goodbye = Registration {
        state: ServerState::Offline,
        ..registration("s1", 5, 9)
    };
    routes.handle_registration(verified(goodbye), Source::Redis);
    assert_eq!(landing(&routes, "s1"), (false, false));
    routes.handle_status(&id("s1"), &status(6, ServerState::Serving));
    assert_eq!(landing(&routes, "s1"), (true, true));
}

#[test]
fn a_draining_server_takes_no_landings_and_is_still_checked() {
    let mut routes = with(&["s1"]);
    routes.handle_status(&id("s1"), &status(5, ServerState::Draining));
    assert_eq!(landing(&routes, "s1"), (false, true));
    assert!(routed(&routes, "s1"));
}

#[test]
fn an_older_entry_never_overwrites_a_newer_one() {
    let mut routes = with(&["s1"]);
    let moved = |generation, counter| Registration {
        address: "10.0.9.9".parse().unwrap(),
        ..registration("s1", generation, counter)
    };
    let address = |routes: &Routes| routes.desired(&local()).maps[&Map::Addresses]["s1"].clone();
    for (generation, counter) in [(4, 99), (5, 0), (5, 1)] {
        routes.handle_registration(verified(moved(generation, counter)), Source::Database);
        assert_eq!(address(&routes), "10.0.0.1");
    }
    routes.handle_registration(verified(moved(6, 0)), Source::Database);
    assert_eq!(address(&routes), "10.0.9.9");
}

#[test]
fn an_address_belongs_to_the_first_that_claimed_it_until_that_one_is_gone() {
    let mut routes = with(&["s1"]);
    let thief = Registration {
        address: "::ffff:10.0.0.1".parse().unwrap(),
        ..registration("s2", 1, 1)
    };
    routes.handle_registration(verified(thief), Source::Redis);
    assert!(routed(&routes, "s1") && !routed(&routes, "s2"));
    assert_eq!(routes.conflicts(), [(&id("s2"), &id("s1"))]);
    routes.handle_database(&[row("s1", 5, true), row("s2", 1, false)], &routes.known());
    assert!(!routed(&routes, "s1") && routed(&routes, "s2"));
    assert!(routes.conflicts().is_empty());
}

#[test]
fn weights_follow_headroom() {
    let weigh = |capacity, tunnels, load| {
        let one = Registration {
            capacity,
            tunnels,
            load,
            ssh: vec!["10.0.0.1:22".parse().unwrap()],
            ..registration("s1", 1, 1)
        };
        weight(&one, 1, 1000)
    };
    assert_eq!(weigh(1000, 0, 0.0), 8);
    assert_eq!(weigh(1000, 500, 0.0), 4);
    assert_eq!(weigh(500, 0, 0.5), 2);
    assert_eq!(weigh(1000, 1000, 0.0), 0, "full");
    assert_eq!(weigh(1000, 2000, 0.0), 0, "more than full");
    assert_eq!(weigh(1000, 999, 1.0), 1, "the last one is still to be had");
    assert_eq!(weigh(1000, 0, f32::NAN), 1);
    assert_eq!(weigh(1000, 1, 0.0), 8, "one tunnel changes nothing");
}

#[test]
fn a_server_is_led_to_by_as_many_addresses_as_its_largest_capacity_needs() {
    let mut routes = Routes::default();
    let mut led_to = |generation, counter, capacity| {
        let registration = Registration {
            capacity,
            ..registration("s1", generation, counter)
        };
        routes.handle_registration(verified(registration), Source::Redis);
        let pool = routes.desired(&local()).pool;
        (pool.len(), pool.values().map(|server| server.weight).sum::<u16>())
    };
    assert_eq!(led_to(1, 1, 20_000), (1, 8));
    assert_eq!(led_to(1, 2, 20_001), (2, 8));
    assert_eq!(led_to(1, 3, 19_999), (2, 8), "it has needed both");
    assert_eq!(led_to(2, 1, 19_999), (1, 8), "it has started anew");
    assert_eq!(led_to(2, 2, 60_000), (2, 8), "it has no more");
    assert_eq!(led_to(2, 3, 0), (2, 0));
}

#[derive(Debug, Clone)]
enum Event {
    Registration(u8, u64, u64, bool),
    Status(u8, u64, ServerState),
    Redis(Vec<u8>),
    Database(Vec<(u8, u64, bool)>),
    Away(bool),
}

fn event() -> impl Strategy<Value = Event> {
    let state = prop_oneof![
        Just(ServerState::Serving),
        Just(ServerState::Draining),
        Just(ServerState::Offline)
    ];
    prop_oneof![
        (1..5_u8, 0..4_u64, 0..4_u64, any::<bool>()).prop_map(|(s, g, c, redis)| Event::Registration(s, g, c, redis)),
        (1..5_u8, 0..4_u64, state).prop_map(|(s, g, state)| Event::Status(s, g, state)),
        prop::collection::vec(1..5_u8, 0..4).prop_map(Event::Redis),
        prop::collection::vec((1..5_u8, 0..4_u64, any::<bool>()), 0..4).prop_map(Event::Database),
        any::<bool>().prop_map(Event::Away),
    ]
}

fn take(routes: &mut Routes, event: &Event) {
    let server = |n: &u8| id(&format!("s{n}"));
    match event {
        Event::Registration(n, generation, counter, redis) => {
            let source = if *redis { Source::Redis } else { Source::Database };
            routes.handle_registration(verified(registration(&format!("s{n}"), *generation, *counter)), source);
        }
        Event::Status(n, generation, state) => routes.handle_status(&server(n), &status(*generation, *state)),
        Event::Redis(present) => routes.handle_redis(&present.iter().map(server).collect()),
        Event::Database(rows) => {
            let rows: Vec<Row> = rows
                .iter()
                .map(|(n, g, lost)| row(&format!("s{n}"), *g, *lost))
                .collect();
            let known = routes.known();
            routes.handle_database(&rows, &known);
        }
        Event::Away(redis) => routes.handle_away(if *redis { Source::Redis } else { Source::Database }),
    }
}

proptest! {
    #[test]
    fn maps_and_pool_speak_of_known_servers_only(events in prop::collection::vec(event(), 0..40)) {
        let mut routes = Routes::default();
        for event in &events {
            take(&mut routes, event);
            let desired = routes.desired(&local());
            let known = routes.known();
            for rows in desired.maps.values() {
                prop_assert!(rows.keys().all(|server| known.contains(&id(server))));
            }
            prop_assert!(desired.pool.keys().all(|name| known.contains(&name.server)));
            let keyed = &desired.maps[&Map::KeysCurrent];
            prop_assert!(desired.maps[&Map::Addresses].keys().eq(keyed.keys()), "a route without a key, or a key without a route");
            prop_assert!(keyed.values().all(|key| key.len() >= 44), "a key that is none");
        }
    }

    #[test]
    fn only_postgresql_takes_a_route_away(events in prop::collection::vec(event(), 0..40)) {
        let mut routes = Routes::default();
        for event in &events {
            let before = routes.known();
            take(&mut routes, event);
            let gone: Vec<ServerId> = before.difference(&routes.known()).cloned().collect();
            let by_database = matches!(event, Event::Database(_));
            // Redis may be the second to say so.
            let second = matches!(event, Event::Redis(_)) && events.iter().any(|event| matches!(event, Event::Database(_)));
            prop_assert!(gone.is_empty() || by_database || second, "{gone:?} went with {event:?}");
        }
    }

    #[test]
    fn generations_never_go_back(events in prop::collection::vec(event(), 0..40)) {
        let mut routes = Routes::default();
        for event in &events {
            let before: BTreeMap<_, _> = routes.entries.iter().map(|(s, e)| (s.clone(), (e.registration.generation, e.registration.counter))).collect();
            take(&mut routes, event);
            for (server, entry) in &routes.entries {
                let now = (entry.registration.generation, entry.registration.counter);
                prop_assert!(before.get(server).is_none_or(|before| *before <= now));
            }
        }
    }
}
