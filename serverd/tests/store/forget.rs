//! Forgetting a user: nothing in the database tells of one any more, but what keeps others safe.

use rssh_proto::audit::Event;
use rssh_serverd::clock::{self, UnixTime};
use rssh_serverd::pki::Issued;
use rssh_serverd::store::{Devices, Kind, Limited, NewEnrolment, StoreError};
use rssh_serverd::token::{ApiToken, Scope};
use sqlx::{Connection as _, Row as _};

use crate::audit::faults;
use crate::{World, device, grant, user};

/// Every row of every table that tells of a name, as text, by its table.
async fn tells_of(url: &str, name: &str) -> Vec<(String, String)> {
    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
    let tables = sqlx::query("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let mut found = Vec::new();
    for table in tables {
        let table: String = table.get(0);
        let rows = format!("SELECT t::text FROM \"{table}\" t");
        for row in sqlx::query(sqlx::AssertSqlSafe(rows))
            .fetch_all(&mut connection)
            .await
            .unwrap()
        {
            let row: String = row.get(0);
            if row.contains(name) {
                found.push((table.clone(), row));
            }
        }
    }
    connection.close().await.unwrap();
    found
}

fn certificate(serial: &str, lives_s: i64) -> Issued {
    Issued {
        pem: String::new(),
        serial: serial.to_owned(),
        not_after: UnixTime(clock::now().0 + lives_s),
    }
}

#[tokio::test]
async fn nothing_tells_of_a_forgotten_user_but_that_the_name_is_revoked() {
    let (world, url) = World::with_url().await;
    let (store, alice) = (&world.store, user("alice"));
    let live = world.requested().await;
    world.granted("s1", 2000, live).await;
    grant(store, "alice", &Devices::All, &["80"]).await;
    store.add_group(&"staff".parse().unwrap()).await.unwrap();
    store.add_member(&"staff".parse().unwrap(), &alice).await.unwrap();
    store
        .set_limits(&Limited::User(alice.clone()), Some(7), None)
        .await
        .unwrap();
    store
        .add_api_token("t1", &ApiToken::generate(), &alice, &[Scope::Read], "alice's", 3600.0)
        .await
        .unwrap();
    for (serial, lives_s) in [("a1", 60), ("a2", 3600), ("a3", -60)] {
        store
            .add_certificate("alice", &certificate(serial, lives_s))
            .await
            .unwrap();
    }
    let event = Event::now("request")
        .user(&alice)
        .device(&device())
        .source("192.0.2.1:4711");
    store.audit("s1", &[event]).await.unwrap();

    let new = NewEnrolment {
        id: "e1",
        hash: &[1; 32],
        kind: Kind::User,
        name: Some("alice"),
        uses: 1,
        tags: &[],
        lives_s: 60.0,
    };
    store.add_enrolment(&new).await.unwrap();
    let early = store.forget(&alice, &Event::now("user-forgotten")).await;
    assert!(matches!(early, Err(StoreError::NotRevoked(_))), "{early:?}");
    store.revoke(Kind::User, "alice").await.unwrap();
    store.end(live, None).await.unwrap();

    let tables = |found: Vec<(String, String)>| {
        let mut tables: Vec<String> = found.into_iter().map(|(table, _)| table).collect();
        tables.dedup();
        tables
    };
    let before = tables(tells_of(&url, "alice").await);
    for table in [
        "api_tokens",
        "audit_events",
        "certificates",
        "grants",
        "group_members",
        "tunnels",
    ] {
        assert!(before.iter().any(|found| found == table), "{table}: {before:?}");
    }
    let forgotten = store.forget(&alice, &Event::now("user-forgotten")).await.unwrap();
    assert_eq!((forgotten.events, forgotten.tunnels), (1, 1));
    assert!(forgotten.stays_until.is_some());
    let left = tells_of(&url, "alice").await;
    assert_eq!(
        tables(left.clone()),
        ["certificates", "identities", "users"],
        "{left:?}"
    );
    assert_eq!(left.len(), 3, "{left:?}");
    // The name lets nobody in, and the port of its tunnel rests as before.
    assert_eq!(store.kind("alice").await.unwrap(), None);
    assert!(store.is_revoked("alice").await.unwrap());
    assert!(!tells_of(&url, &live.to_string()).await.is_empty());
    assert!(tells_of(&url, "192.0.2.1").await.is_empty());
    assert_eq!(faults(store).await, Vec::<String>::new());

    // With its last certificate the name goes too.
    crate::audit::sql(
        &url,
        "UPDATE certificates SET not_after = clock_timestamp() WHERE name = 'alice'",
    )
    .await
    .unwrap();
    let again = store.forget(&alice, &Event::now("user-forgotten")).await.unwrap();
    assert_eq!((again.events, again.tunnels, again.stays_until), (0, 0, None));
    assert_eq!(tells_of(&url, "alice").await, []);
    assert_eq!(faults(store).await, Vec::<String>::new());
    // Bob is as he was.
    assert!(!tells_of(&url, "bob").await.is_empty());
}
