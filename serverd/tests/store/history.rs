//! What is over is dropped in its time and nothing else is; and two who migrate at once both end well.

use rssh_proto::duration::Span;
use rssh_proto::{Epoch, TunnelId};
use rssh_serverd::config::Database;
use rssh_serverd::store::Store;
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use crate::postgres::Postgres;
use crate::{World, server_id};

const DAY: Span = Span::seconds(86_400);

impl World {
    /// A tunnel of alice's that landed on a port and is closed.
    async fn over(&self, port: u16) -> TunnelId {
        let tunnel = self.requested().await;
        self.granted("s1", port, tunnel).await;
        assert!(self.store.end(tunnel, None).await.unwrap());
        tunnel
    }

    /// Its port is given back, and rests for so long.
    async fn released(&self, tunnel: TunnelId, port: u16, rest_s: u32) {
        self.store
            .release(&server_id("s1"), port, tunnel, Epoch(1), rest_s)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_tunnel_that_ended_long_ago_goes_and_one_that_is_young_or_held_or_whose_port_rests_stays() {
    let (world, url) = World::with_url().await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    let old = world.over(2000).await;
    world.released(old, 2000, 0).await;
    let resting = world.over(2001).await;
    world.released(resting, 2001, 60).await;
    let held = world.over(2002).await;
    sqlx::query("UPDATE tunnels SET ended_at = ended_at - interval '2 days'")
        .execute(&mut database)
        .await
        .unwrap();
    let young = world.over(2003).await;
    world.released(young, 2003, 0).await;
    let live = world.requested().await;

    assert_eq!(world.store.drop_over(DAY).await.unwrap(), (1, false));
    assert_eq!(world.store.drop_over(DAY).await.unwrap(), (0, false));
    let left: Vec<(uuid::Uuid,)> = sqlx::query_as("SELECT id FROM tunnels")
        .fetch_all(&mut database)
        .await
        .unwrap();
    for tunnel in [resting, held, young, live] {
        assert!(left.contains(&(tunnel.uuid(),)), "{tunnel} is gone");
    }
    assert_eq!(left.len(), 4);
    let (rows,): (i64,) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM leases WHERE tunnel_id = $1) + (SELECT count(*) FROM openers WHERE tunnel_id = $1)",
    )
    .bind(old.uuid())
    .fetch_one(&mut database)
    .await
    .unwrap();
    assert_eq!(rows, 0, "what belonged to it went with it");
    database.close().await.unwrap();
    // The port is another's now.
    let next = world.requested().await;
    world.granted("s1", 2000, next).await;
}

#[tokio::test]
async fn of_two_that_migrate_at_once_the_second_waits_for_the_first() {
    let postgres = Postgres::shared();
    let (_, url) = postgres.database().await;
    let mut first = PgConnection::connect(&url).await.unwrap();
    // As whoever migrates holds it, for longer than any call waits.
    sqlx::query("SELECT pg_advisory_lock(hashtext('rssh-serverd migrate'))")
        .execute(&mut first)
        .await
        .unwrap();
    let second = Store::new(&Database {
        url: url.into(),
        connections: 1,
    })
    .unwrap();
    let mut migrating = std::pin::pin!(second.migrate());
    let early = tokio::time::timeout(rssh_serverd::store::PATIENCE * 2, &mut migrating).await;
    assert!(early.is_err(), "{early:?}");
    first.close().await.unwrap();
    migrating.await.unwrap();
}
