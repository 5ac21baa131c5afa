use proptest::prelude::*;

use super::*;

fn server(n: u8) -> impl Strategy<Value = PoolServer> {
    let address = (1..4_u8, 1..4_u16).prop_map(move |(host, port)| SocketAddr::from(([10, n, 0, host], port)));
    (address.clone(), address, 0..=256_u16, any::<bool>()).prop_map(|(address, health, weight, enabled)| PoolServer {
        address,
        health,
        weight,
        enabled,
    })
}

fn desired() -> impl Strategy<Value = Desired> {
    let pool = prop::collection::vec((0..6_u8, 0..3_usize), 0..10).prop_flat_map(|names| {
        let servers: Vec<_> = names.iter().map(|(n, _)| server(*n)).collect();
        (Just(names), servers)
    });
    let pool = pool.prop_map(|(names, servers)| {
        let name = |(n, index)| PoolName {
            server: format!("s{n}").parse().unwrap(),
            index: Some(index),
        };
        names.into_iter().map(name).zip(servers).collect()
    });
    let rows = prop::collection::btree_map("[a-z][0-9]", "[a-z]{4}", 0..30);
    (pool, prop::collection::vec(rows, Map::ALL.len())).prop_map(|(pool, rows)| Desired {
        pool,
        maps: Map::ALL.into_iter().zip(rows).collect(),
    })
}

/// What HAProxy would say after it was made to do all that is desired.
fn reached(desired: &Desired) -> Actual {
    Actual {
        pool: desired
            .pool
            .iter()
            .map(|(name, server)| {
                let server = ActualServer {
                    address: server.address,
                    health: Some(server.health),
                    weight: server.weight,
                    enabled: server.enabled,
                    checked: true,
                    leaving: false,
                };
                (name.to_string(), server)
            })
            .collect(),
        maps: desired
            .maps
            .iter()
            .map(|(map, rows)| {
                (
                    *map,
                    ActualRows {
                        rows: rows.clone(),
                        duplicates: false,
                    },
                )
            })
            .collect(),
    }
}

fn execute(actual: &mut Actual, commands: &[Command]) {
    for command in commands {
        actual.apply(command);
    }
}

proptest! {
    #[test]
    fn after_the_commands_haproxy_does_what_is_desired(from in desired(), to in desired()) {
        let mut actual = reached(&from);
        let commands = plan(&to, &actual);
        execute(&mut actual, &commands);
        prop_assert!(actual == reached(&to));
        prop_assert!(plan(&to, &actual).is_empty(), "a second plan has nothing to do");
    }

    #[test]
    fn from_nothing_haproxy_comes_to_what_is_desired(to in desired()) {
        let mut actual = Actual::default();
        execute(&mut actual, &plan(&to, &Actual::default()));
        // A map without rows was never spoken of.
        for map in Map::ALL {
            actual.maps.entry(map).or_default();
        }
        prop_assert!(actual == reached(&to));
    }

    #[test]
    fn a_server_is_deleted_only_once_it_is_disabled(from in desired(), to in desired()) {
        let mut actual = reached(&from);
        for command in plan(&to, &actual.clone()) {
            if let Command::ServerDelete(name) = &command {
                prop_assert!(!actual.pool[name].enabled);
            }
            actual.apply(&command);
        }
    }
}

#[test]
fn rows_that_came_twice_are_replaced_as_a_whole() {
    let desired = Desired {
        maps: [(Map::Addresses, Rows::from([("s1".to_owned(), "10.0.0.1".to_owned())]))].into(),
        ..Desired::default()
    };
    let mut actual = reached(&desired);
    actual.maps.get_mut(&Map::Addresses).unwrap().duplicates = true;
    let commands = plan(&desired, &actual);
    assert!(
        matches!(&commands[..], [Command::MapReplace(Map::Addresses, rows)] if rows.len() == 1),
        "{commands:?}"
    );
}

#[test]
fn a_server_that_still_carries_connections_is_asked_for_again_only_after_haproxy_is_read_anew() {
    let name = PoolName {
        server: "s1".parse().unwrap(),
        index: Some(0),
    };
    let address = "10.0.0.1:22".parse().unwrap();
    let server = PoolServer {
        address,
        health: address,
        weight: 1,
        enabled: true,
    };
    let with = Desired {
        pool: [(name.clone(), server)].into(),
        ..Desired::default()
    };
    let mut actual = reached(&with);
    let commands = plan(&Desired::default(), &actual);
    assert_eq!(
        commands,
        [
            Command::ServerDisable("s1_0".into()),
            Command::ServerDelete("s1_0".into())
        ]
    );
    actual.apply(&commands[0]);
    actual.still_leaving("s1_0");
    assert!(plan(&Desired::default(), &actual).is_empty());
    // Back before it was gone: it is only enabled again.
    assert_eq!(plan(&with, &actual), [Command::ServerEnable(name)]);
}

#[test]
fn only_a_small_change_of_weight_can_wait() {
    let weigh = |from: u16, to: u16| {
        let name = PoolName {
            server: "s1".parse().unwrap(),
            index: Some(0),
        };
        let address = "10.0.0.1:22".parse().unwrap();
        let known = ActualServer {
            address,
            health: None,
            weight: from,
            enabled: true,
            checked: true,
            leaving: false,
        };
        let actual = Actual {
            pool: [("s1_0".to_owned(), known)].into(),
            ..Actual::default()
        };
        Command::ServerWeight(name, to).can_wait(&actual)
    };
    assert!(weigh(16, 32));
    assert!(!weigh(16, 0));
    assert!(!weigh(0, 16));
}

#[test]
fn commands_do_not_print_the_values_of_maps() {
    let command = Command::MapAdd(Map::KeysCurrent, "s1".into(), "c2VjcmV0".into());
    assert_eq!(format!("{command:?}"), "add s1 to keys-current.map");
}

#[test]
fn a_key_is_the_one_before_as_soon_as_there_is_another() {
    let keys = |current: &str, previous: Option<&str>| {
        let rows = |key: &str| Rows::from([("s1".to_owned(), key.to_owned())]);
        let mut maps = BTreeMap::from([(Map::KeysCurrent, rows(current))]);
        maps.extend(previous.map(|previous| (Map::KeysPrevious, rows(previous))));
        Desired {
            maps,
            ..Desired::default()
        }
    };
    let actual = reached(&keys("old", None));
    assert_eq!(
        plan(&keys("new", Some("old")), &actual),
        [
            Command::MapAdd(Map::KeysPrevious, "s1".to_owned(), "old".to_owned()),
            Command::MapSet(Map::KeysCurrent, "s1".to_owned(), "new".to_owned()),
        ]
    );
}
