//! Who asks for tunnels: opening them, sharing them and giving them up.

use rssh_proto::payload::{CloseRequest, OpenRequest, Which};
use rssh_proto::{Failure, FailureKind, Target, TunnelId};
use sqlx::postgres::PgConnection;
use sqlx::{Postgres, Transaction};

use super::quotas::{self, Quotas};
use super::tunnels::{Asker, Tunnel, end, live, read, tunnel_columns};
use super::{Store, StoreError};

/// What became of a request to open.
#[derive(Debug)]
pub enum Opening {
    /// A new tunnel: tell the device.
    New(Tunnel),
    /// The same request came before, or a live tunnel serves it too.
    Existing(Tunnel),
    /// It opens nothing.
    Refused(Failure),
}

/// What a server allows a request.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How long the tunnel may live, in seconds; a grant may say less.
    pub ttl_s: u32,
    /// How long the asker waits, in milliseconds.
    pub deadline_ms: u32,
    pub quotas: Quotas,
}

/// A tunnel that someone gave up.
#[derive(Debug)]
pub struct CloseOutcome {
    pub tunnel: Tunnel,
    /// How many others hold it; with none it is closed now.
    pub holders_left: u32,
}

impl Store {
    /// Takes a request to open a tunnel: checks the grants and the limits, and finds or makes the tunnel.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn open(&self, asker: &Asker, request: &OpenRequest, bounds: &Bounds) -> Result<Opening, StoreError> {
        self.within(async {
            let mut tx = self.pool.begin().await?;
            let opening = open(&mut tx, asker, request, bounds).await?;
            match opening {
                // It has written nothing but its locks, and a commit would wait for the disk.
                Opening::Refused(_) => tx.rollback().await?,
                _ => tx.commit().await?,
            }
            Ok(opening)
        })
        .await
    }

    /// Gives tunnels up for a user; those that nobody else holds are closed, and their sessions are to end. The same
    /// request, repeated, gives up nothing more.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn close(&self, asker: &Asker, request: &CloseRequest) -> Result<Vec<CloseOutcome>, StoreError> {
        self.within(async {
            let mut tx = self.pool.begin().await?;
            let mut outcomes = Vec::new();
            for tunnel in closing(&mut tx, asker, &request.which).await? {
                let holders_left = give_up(&mut tx, &tunnel, asker, request).await?;
                if holders_left == 0 && end(&mut tx, tunnel.id, None).await? {
                    sqlx::query("UPDATE tunnels SET closed_by = $2 WHERE id = $1")
                        .bind(tunnel.id.uuid())
                        .bind(asker.request.uuid())
                        .execute(&mut *tx)
                        .await?;
                }
                outcomes.push(CloseOutcome { tunnel, holders_left });
            }
            tx.commit().await?;
            Ok(outcomes)
        })
        .await
    }
}

async fn open(
    tx: &mut Transaction<'_, Postgres>,
    asker: &Asker,
    request: &OpenRequest,
    bounds: &Bounds,
) -> Result<Opening, StoreError> {
    let refuse = |kind, message: String| Ok(Opening::Refused(Failure::new(kind, message)));
    // The locks put one user's requests in a row: two at once find the same tunnel, and each counts the other.
    quotas::lock(tx, &asker.user, &request.device).await?;
    let (enrolled, known, quarantined, permitted): (bool, bool, bool, bool) = sqlx::query_as(
        "SELECT EXISTS (SELECT FROM users WHERE id = $1),
                EXISTS (SELECT FROM devices WHERE id = $2),
                EXISTS (SELECT FROM devices WHERE id = $2 AND quarantined_until > clock_timestamp()),
                EXISTS (SELECT FROM permits($1, $2, $3))",
    )
    .bind(asker.user.as_str())
    .bind(request.device.as_str())
    .bind(request.target.to_string())
    .fetch_one(&mut **tx)
    .await?;
    match (enrolled, permitted, known, quarantined) {
        (false, ..) => return refuse(FailureKind::Denied, format!("the user {} is not enrolled", asker.user)),
        // Whether the device exists is not for everyone to know.
        (true, false, ..) => {
            let message = format!(
                "{} may not open {} on {}; ask an administrator for a grant",
                asker.user, request.target, request.device
            );
            return refuse(FailureKind::Denied, message);
        }
        (true, true, false, _) => {
            let message = format!("{} is not a registered device; check the name", request.device);
            return refuse(FailureKind::UnknownDevice, message);
        }
        (true, true, true, true) => {
            let message = format!(
                "{} is quarantined: two agents use its identity; stop one of them and wait ten minutes",
                request.device
            );
            return refuse(FailureKind::Quarantined, message);
        }
        (true, true, true, false) => {}
    }

    let earlier = sqlx::query(concat!(
        "SELECT ",
        tunnel_columns!(),
        " FROM openers o JOIN tunnels t ON t.id = o.tunnel_id WHERE o.request_id = $1"
    ))
    .bind(asker.request.uuid())
    .fetch_optional(&mut **tx)
    .await?;
    if let Some(row) = earlier {
        let tunnel = read(&row)?;
        if tunnel.user != asker.user {
            return refuse(
                FailureKind::Denied,
                "the request's id belongs to another user".to_owned(),
            );
        }
        return Ok(Opening::Existing(tunnel));
    }

    let shared = sqlx::query(concat!(
        "SELECT ",
        tunnel_columns!(),
        " FROM tunnels t WHERE t.user_id = $1 AND t.device_id = $2 AND t.target = $3 AND NOT $4
             AND t.expires_at > clock_timestamp()
             AND (t.state <> 'requested' OR t.deadline_at > clock_timestamp()) AND t.state IN ",
        live!(),
        " ORDER BY t.created_at DESC LIMIT 1"
    ))
    .bind(asker.user.as_str())
    .bind(request.device.as_str())
    .bind(request.target.to_string())
    .bind(request.new)
    .fetch_optional(&mut **tx)
    .await?;
    if let Some(row) = shared {
        let tunnel = read(&row)?;
        add_opener(tx, tunnel.id, asker, request.hold, bounds.deadline_ms).await?;
        // Whoever waits longest decides how long the device has.
        sqlx::query(
            "UPDATE tunnels SET deadline_at = greatest(deadline_at, clock_timestamp() + $2 * interval '1 ms')
             WHERE id = $1 AND state = 'requested'",
        )
        .bind(tunnel.id.uuid())
        .bind(f64::from(bounds.deadline_ms))
        .execute(&mut **tx)
        .await?;
        return Ok(Opening::Existing(tunnel));
    }

    let usages = quotas::usages(tx, &asker.user, &request.device, &bounds.quotas).await?;
    if let Some(failure) = quotas::refusal(&usages) {
        return Ok(Opening::Refused(failure));
    }
    let (grant, max_ttl_s) = match grant_with_room(tx, asker, request).await? {
        Ok(found) => found,
        Err(failure) => return Ok(Opening::Refused(failure)),
    };
    let row = sqlx::query(concat!(
        "INSERT INTO tunnels AS t (id, user_id, device_id, target, remote_port, idle_s, deadline_at, expires_at, grant_id)
         VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp() + $7 * interval '1 ms', clock_timestamp() + $8 * interval '1 s',
                 $9)
         RETURNING ",
        tunnel_columns!()
    ))
    .bind(asker.request.uuid())
    .bind(asker.user.as_str())
    .bind(request.device.as_str())
    .bind(request.target.to_string())
    .bind(request.remote_port.map(i32::from))
    .bind(request.idle_s.filter(|seconds| *seconds > 0).map(|seconds| i32::try_from(seconds).unwrap_or(i32::MAX)))
    .bind(f64::from(bounds.deadline_ms))
    .bind(f64::from(max_ttl_s.map_or(bounds.ttl_s, |most| bounds.ttl_s.min(most))))
    .bind(grant)
    .fetch_one(&mut **tx)
    .await?;
    let tunnel = read(&row)?;
    add_opener(tx, tunnel.id, asker, request.hold, bounds.deadline_ms).await?;
    Ok(Opening::New(tunnel))
}

/// Of the grants that allow a tunnel, one that has room for it: the one that lets it live longest, with how long that is.
async fn grant_with_room(
    connection: &mut PgConnection,
    asker: &Asker,
    request: &OpenRequest,
) -> Result<Result<(i64, Option<u32>), Failure>, StoreError> {
    let found: Option<(i64, Option<i32>)> = sqlx::query_as(concat!(
        "SELECT p.id, p.max_ttl_s FROM permits($1, $2, $3) p
         WHERE p.max_tunnels IS NULL OR p.max_tunnels > (
             SELECT count(*) FROM tunnels t WHERE t.grant_id = p.id AND t.user_id = $1 AND t.state IN ",
        live!(),
        ")
         ORDER BY p.max_ttl_s DESC NULLS FIRST, p.id LIMIT 1"
    ))
    .bind(asker.user.as_str())
    .bind(request.device.as_str())
    .bind(request.target.to_string())
    .fetch_optional(connection)
    .await?;
    Ok(match found {
        Some((grant, max_ttl_s)) => Ok((grant, max_ttl_s.and_then(|seconds| u32::try_from(seconds).ok()))),
        None => Err(quotas::grant_is_used_up(&asker.user, &request.device)),
    })
}

async fn add_opener(
    connection: &mut PgConnection,
    tunnel: TunnelId,
    asker: &Asker,
    hold: bool,
    deadline_ms: u32,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO openers (request_id, tunnel_id, session, hold, waits_until)
         VALUES ($1, $2, $3, $4, clock_timestamp() + $5 * interval '1 ms')",
    )
    .bind(asker.request.uuid())
    .bind(tunnel.uuid())
    .bind(asker.session.as_str())
    .bind(hold)
    .bind(f64::from(deadline_ms))
    .execute(connection)
    .await?;
    Ok(())
}

/// The live tunnels that a user wants closed, locked; or those that this very request has given up before, and no other:
/// a server that was frozen may come to a request when the user has opened another tunnel since.
async fn closing(connection: &mut PgConnection, asker: &Asker, which: &Which) -> Result<Vec<Tunnel>, StoreError> {
    let (tunnel, device, target) = match which {
        Which::Tunnel(id) => (Some(id.uuid()), None, None),
        Which::Device { device, target } => (None, Some(device.as_str()), target.as_ref().map(Target::to_string)),
    };
    // A tunnel may be named by any request that opened or shared it.
    let rows = sqlx::query(concat!(
        "SELECT ",
        tunnel_columns!(),
        " FROM tunnels t WHERE t.user_id = $1
             AND ($2::uuid IS NULL OR t.id IN (SELECT tunnel_id FROM openers WHERE request_id = $2))
             AND ($3::text IS NULL OR t.device_id = $3) AND ($4::text IS NULL OR t.target = $4)
             AND CASE WHEN EXISTS (SELECT FROM tunnels WHERE closed_by = $5)
                        OR EXISTS (SELECT FROM openers WHERE released_by = $5)
                 THEN t.closed_by = $5 OR t.id IN (SELECT tunnel_id FROM openers WHERE released_by = $5)
                 ELSE t.state IN ",
        live!(),
        " END ORDER BY t.id FOR UPDATE"
    ))
    .bind(asker.user.as_str())
    .bind(tunnel)
    .bind(device)
    .bind(target)
    .bind(asker.request.uuid())
    .fetch_all(connection)
    .await?;
    rows.iter().map(read).collect()
}

/// Takes one holder from a tunnel, the named one if a request was named, or all of them; returns how many are left.
async fn give_up(
    connection: &mut PgConnection,
    tunnel: &Tunnel,
    asker: &Asker,
    request: &CloseRequest,
) -> Result<u32, StoreError> {
    let named = match &request.which {
        Which::Tunnel(id) => Some(id.uuid()),
        Which::Device { .. } => None,
    };
    sqlx::query(
        "UPDATE openers SET released_by = $2
         WHERE tunnel_id = $1 AND hold AND released_by IS NULL
             AND NOT EXISTS (SELECT 1 FROM openers WHERE tunnel_id = $1 AND released_by = $2)
             AND ($3 OR request_id = (SELECT request_id FROM openers WHERE tunnel_id = $1 AND hold AND released_by IS NULL
                                      ORDER BY request_id IS NOT DISTINCT FROM $4 DESC, asked_at LIMIT 1))",
    )
    .bind(tunnel.id.uuid())
    .bind(asker.request.uuid())
    .bind(request.force)
    .bind(named)
    .execute(&mut *connection)
    .await?;
    let (left,): (i64,) =
        sqlx::query_as("SELECT count(*) FROM openers WHERE tunnel_id = $1 AND hold AND released_by IS NULL")
            .bind(tunnel.id.uuid())
            .fetch_one(connection)
            .await?;
    Ok(u32::try_from(left).unwrap_or(u32::MAX))
}
