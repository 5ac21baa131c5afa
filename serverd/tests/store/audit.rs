//! The audit trail: it holds until someone changes it, and forgetting and pruning are no change.

use rssh_proto::audit::Event;
use rssh_serverd::audit::{Entry, Verifier};
use rssh_serverd::config::Database;
use rssh_serverd::store::{Kind, Store, Wanted};
use sqlx::{Connection as _, Executor as _};

use crate::postgres::Postgres;
use crate::{device, user};

fn event(nth: u64) -> Event {
    Event::now("request")
        .user(&user(if nth.is_multiple_of(2) { "alice" } else { "bob" }))
        .device(&device())
        .source("192.0.2.1:4711")
        .with("nth", nth)
}

pub(crate) async fn faults(store: &Store) -> Vec<String> {
    let mut verifier = Verifier::new(store.audit_known().await.unwrap());
    store.audit_chains(|entry| verifier.take(entry)).await.unwrap();
    verifier.finish();
    verifier.faults
}

async fn all(store: &Store, wanted: &Wanted) -> Vec<Entry> {
    let mut entries = Vec::new();
    store
        .audited(wanted, |entry| {
            entries.push(entry);
            Ok(())
        })
        .await
        .unwrap();
    entries
}

pub(crate) async fn sql(url: &str, statement: &str) -> Result<(), sqlx::Error> {
    let mut connection = sqlx::PgConnection::connect(url).await?;
    connection.execute(sqlx::AssertSqlSafe(statement.to_owned())).await?;
    connection.close().await
}

/// Two chains of five events, each of which has noted where the other was.
async fn two_chains(store: &Store) {
    for chain in ["s1", "s2"] {
        let events: Vec<Event> = (0..5).map(event).collect();
        store.audit(chain, &events[..2]).await.unwrap();
        store.audit(chain, &events[2..]).await.unwrap();
    }
    for chain in ["s1", "s2"] {
        store.audit_anchor(chain).await.unwrap();
    }
}

#[tokio::test]
async fn nothing_that_was_recorded_is_lost_at_the_end_and_one_bad_event_keeps_no_other_out() {
    let postgres = Postgres::shared();
    let (store, _) = postgres.database().await;
    let (recorder, sealer) = rssh_serverd::audit::recorder("s1");
    for nth in 0..300 {
        recorder.record(event(nth));
        if nth == 150 {
            // PostgreSQL's jsonb holds no NUL.
            let mut bad = event(nth);
            bad.detail = serde_json::json!({"nth": "\0"});
            recorder.record(bad);
        }
    }
    // The daemon ends at once.
    let began = std::time::Instant::now();
    sealer.start(store.clone()).finish().await;
    println!("sealing 301 events: {:?}", began.elapsed());
    let entries = all(&store, &Wanted::default()).await;
    let kinds = |kind: &str| entries.iter().filter(|entry| entry.kind == kind).count();
    assert_eq!(
        (kinds("request"), kinds("event-unsealable"), entries.len()),
        (300, 1, 301)
    );
    assert_eq!(faults(&store).await, Vec::<String>::new());
    // What comes too late is in the log only, and says so there.
    recorder.record(event(301));
}

#[tokio::test]
async fn recording_never_waits_for_the_database_and_counts_what_it_loses() {
    let postgres = Postgres::shared();
    let (store, _) = postgres.database().await;
    let (recorder, sealer) = rssh_serverd::audit::recorder("s1");
    // Nobody takes them: the database is away.
    let began = std::time::Instant::now();
    for nth in 0..20_500 {
        recorder.record(event(nth));
    }
    let each = began.elapsed() / 20_500;
    println!("recording one event: {each:?}");
    // An open takes a hundred milliseconds and more; its events are to cost it nothing.
    assert!(each < std::time::Duration::from_millis(1), "{each:?}");
    let sealing = sealer.start(store.clone());
    let lost = Wanted::default();
    let began = std::time::Instant::now();
    loop {
        let entries = all(&store, &lost).await;
        if let Some(entry) = entries.iter().find(|entry| entry.kind == "events-lost") {
            assert_eq!(entry.detail["count"], 500);
            break;
        }
        assert!(
            began.elapsed() < std::time::Duration::from_secs(60),
            "{}",
            entries.len()
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    sealing.finish().await;
}

#[tokio::test]
async fn a_change_to_what_is_written_down_is_found() {
    let postgres = Postgres::shared();
    for (what, tampering) in [
        (
            "was changed",
            "UPDATE audit_events SET kind = 'active' WHERE chain = 's1' AND seq = 2",
        ),
        (
            "was changed",
            "UPDATE audit_events SET detail = '{\"nth\": 9}' WHERE chain = 's1' AND seq = 2",
        ),
        (
            "user or address was changed",
            "UPDATE audit_events SET user_id = 'carol' WHERE chain = 's1' AND seq = 2",
        ),
        (
            "was taken away",
            "UPDATE audit_events SET user_id = 'x', source = NULL, salt = NULL WHERE seq = 2",
        ),
        (
            "some are missing",
            "DELETE FROM audit_events WHERE chain = 's1' AND seq = 2",
        ),
        (
            "does not reach its end",
            "DELETE FROM audit_events WHERE chain = 's1' AND seq = 6",
        ),
        (
            "another chain has noted, is missing",
            "DELETE FROM audit_events WHERE chain = 's1' AND seq > 3;
             UPDATE audit_heads SET seq = 3, hash = (SELECT hash FROM audit_events WHERE chain = 's1' AND seq = 3)
             WHERE chain = 's1'",
        ),
        (
            "missing with its chain",
            "DELETE FROM audit_events WHERE chain = 's1'; DELETE FROM audit_heads WHERE chain = 's1'",
        ),
    ] {
        let (store, url) = postgres.database().await;
        two_chains(&store).await;
        assert_eq!(faults(&store).await, Vec::<String>::new(), "{tampering}");
        sql(&url, tampering).await.unwrap();
        let found = faults(&store).await;
        assert!(found.iter().any(|fault| fault.contains(what)), "{tampering}: {found:?}");
    }
}

#[tokio::test]
async fn a_chain_written_anew_is_not_what_another_has_noted() {
    let postgres = Postgres::shared();
    let (store, url) = postgres.database().await;
    two_chains(&store).await;
    // With all hashes right: only the other chain remembers.
    sql(
        &url,
        "DELETE FROM audit_events WHERE chain = 's1'; DELETE FROM audit_heads WHERE chain = 's1'",
    )
    .await
    .unwrap();
    let events: Vec<Event> = (10..16).map(event).collect();
    store.audit("s1", &events).await.unwrap();
    let found = faults(&store).await;
    assert_eq!(found, ["s1/6 is not what another chain has noted"].map(str::to_owned));
}

#[tokio::test]
async fn forgetting_and_pruning_leave_a_trail_that_holds() {
    let postgres = Postgres::shared();
    let (store, _) = postgres.database().await;
    two_chains(&store).await;
    store.add_identity(Kind::User, "alice").await.unwrap();
    store.revoke(Kind::User, "alice").await.unwrap();
    let alices = Wanted {
        user: Some(user("alice")),
        ..Wanted::default()
    };
    assert_eq!(all(&store, &alices).await.len(), 6);
    let forgotten = store
        .forget(&user("alice"), &Event::now("user-forgotten"))
        .await
        .unwrap();
    assert_eq!(forgotten.events, 6);
    assert!(all(&store, &alices).await.is_empty());
    assert_eq!(faults(&store).await, Vec::<String>::new());
    let left = all(&store, &Wanted::default()).await;
    let hers: Vec<&Entry> = left
        .iter()
        .filter(|entry| entry.user.as_deref() == Some(forgotten.pseudonym.as_str()))
        .collect();
    assert!(
        hers.len() == 6 && hers.iter().all(|entry| entry.source.is_none()),
        "{hers:?}"
    );
    assert!(!format!("{left:?}").contains("alice"), "{left:?}");

    let cut = Event::now("").at_us;
    store.audit("s1", &[event(20)]).await.unwrap();
    assert!(store.audit_prune(cut).await.unwrap() >= 12);
    // Those who forgot are pruned too: what is left holds still.
    let left = all(&store, &Wanted::default()).await;
    assert_eq!(left.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [7]);
    store.audit("s1", &[event(21)]).await.unwrap();
    assert_eq!(faults(&store).await, Vec::<String>::new());
    assert_eq!(store.audit_prune(cut).await.unwrap(), 0);
}

#[tokio::test]
async fn the_daemons_roles_append_and_change_nothing() {
    let postgres = Postgres::shared();
    let (store, url) = postgres.database().await;
    for role in ["rssh_serverd", "rssh_routerd"] {
        // Another test's database is of the same cluster.
        let make = format!("DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object THEN END $$");
        sql(&url, &make).await.unwrap();
    }
    store.migrate().await.unwrap();
    two_chains(&store).await;
    let as_role = |role: &str| url.replace("postgres://rssh@", &format!("postgres://{role}@"));
    let serverd = Store::new(&Database {
        url: as_role("rssh_serverd").into(),
        connections: 1,
    })
    .unwrap();
    serverd.audit("s1", &[event(30)]).await.unwrap();
    serverd.audit_anchor("s1").await.unwrap();
    sql(&as_role("rssh_routerd"), "SELECT audit_append('lb1', '[]')")
        .await
        .unwrap();
    sql(&as_role("rssh_routerd"), "SELECT id, registration FROM servers")
        .await
        .unwrap();
    for (role, statement) in [
        ("rssh_serverd", "UPDATE audit_events SET kind = 'x'"),
        ("rssh_serverd", "DELETE FROM audit_events"),
        ("rssh_serverd", "TRUNCATE audit_events"),
        ("rssh_serverd", "INSERT INTO audit_events SELECT * FROM audit_events"),
        ("rssh_serverd", "UPDATE audit_heads SET seq = 0"),
        ("rssh_serverd", "DROP TABLE tunnels"),
        ("rssh_serverd", "CREATE TABLE mine (x integer)"),
        ("rssh_routerd", "SELECT * FROM audit_events"),
        ("rssh_routerd", "SELECT * FROM tunnels"),
        ("rssh_routerd", "SELECT * FROM devices"),
        ("rssh_routerd", "UPDATE servers SET registration = NULL"),
        ("rssh_routerd", "UPDATE identities SET revoked_at = NULL"),
        ("rssh_routerd", "INSERT INTO grants (user_id) VALUES ('alice')"),
    ] {
        let denied = sql(&as_role(role), statement).await.unwrap_err().to_string();
        let plainly = denied.contains("permission denied") || denied.contains("must be owner");
        assert!(plainly, "{role}: {statement}: {denied}");
    }
    assert_eq!(faults(&store).await, Vec::<String>::new());
}
