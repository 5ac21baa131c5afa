//! Who asks for tunnels: opening them, sharing them and giving them up.

use rssh_proto::payload::{CloseRequest, OpenRequest, Which};
use rssh_proto::{Failure, FailureKind, Target};
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::grants::limit;
use super::quotas::{self, Quotas, Usage};
use super::row::{Asker, Tunnel, live, read, tunnel_columns};
use super::tunnels::end;
use super::{PATIENCE, Store, StoreError};

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
        let call = Call {
            asker: asker.clone(),
            request: request.clone(),
            bounds: *bounds,
        };
        let store = self.clone();
        let run = move |calls: Vec<Call>| {
            let store = store.clone();
            async move { store.within(open_all(&store, &calls)).await }
        };
        self.groups.opens.ask(PATIENCE, call, run).await
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

/// A request to open, with whose it is.
#[derive(Debug, Clone)]
pub(super) struct Call {
    asker: Asker,
    request: OpenRequest,
    bounds: Bounds,
}

async fn open_all(store: &Store, calls: &[Call]) -> Result<Vec<Opening>, StoreError> {
    let Some(quotas) = calls.first().map(|call| call.bounds.quotas) else {
        return Ok(Vec::new());
    };
    if calls.iter().any(|call| call.bounds.quotas != quotas) {
        return Err(StoreError::Apart);
    }
    fn all<T>(calls: &[Call], value: impl Fn(&Call) -> T) -> Vec<T> {
        calls.iter().map(value).collect()
    }
    // A transaction of one statement: a server that stands still keeps nobody's rows locked.
    let rows = sqlx::query(concat!(
        "SELECT c.outcome, c.who, c.most, c.most_opens, c.alive, c.recent, c.frees_in_s, ",
        tunnel_columns!(),
        " FROM take_requests($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) c,
              LATERAL (SELECT (c.tunnel).*) t"
    ))
    .bind(all(calls, |call| call.asker.request.uuid()))
    .bind(all(calls, |call| call.asker.session.to_string()))
    .bind(all(calls, |call| call.asker.user.to_string()))
    .bind(all(calls, |call| call.request.device.to_string()))
    .bind(all(calls, |call| call.request.target.to_string()))
    .bind(all(calls, |call| call.request.remote_port.map(i32::from)))
    .bind(all(calls, |call| {
        let idle_s = call.request.idle_s.filter(|seconds| *seconds > 0);
        idle_s.map(|seconds| i32::try_from(seconds).unwrap_or(i32::MAX))
    }))
    .bind(all(calls, |call| call.request.new))
    .bind(all(calls, |call| call.request.hold))
    .bind(all(calls, |call| f64::from(call.bounds.deadline_ms)))
    .bind(all(calls, |call| f64::from(call.bounds.ttl_s)))
    .bind(limit(quotas.user_tunnels))
    .bind(limit(quotas.user_opens_per_minute))
    .bind(limit(quotas.device_tunnels))
    .bind(limit(quotas.device_opens_per_minute))
    .fetch_all(&store.pool)
    .await?;
    calls.iter().zip(&rows).map(|(call, row)| opening(call, row)).collect()
}

/// What became of a request, as the database says.
fn opening(call: &Call, row: &PgRow) -> Result<Opening, StoreError> {
    let Call {
        asker: Asker { user, .. },
        request: OpenRequest { device, target, .. },
        ..
    } = call;
    let refuse = |kind, message: String| Ok(Opening::Refused(Failure::new(kind, message)));
    match row.try_get("outcome")? {
        "new" => Ok(Opening::New(read(row)?)),
        "existing" => Ok(Opening::Existing(read(row)?)),
        "another-users" => refuse(
            FailureKind::Denied,
            "the request's id belongs to another user".to_owned(),
        ),
        "not-enrolled" => refuse(FailureKind::Denied, format!("the user {user} is not enrolled")),
        // Whether the device exists is not for everyone to know.
        "not-granted" => refuse(
            FailureKind::Denied,
            format!("{user} may not open {target} on {device}; ask an administrator for a grant"),
        ),
        "unknown-device" => refuse(
            FailureKind::UnknownDevice,
            format!("{device} is not a registered device; check the name"),
        ),
        "quarantined" => refuse(
            FailureKind::Quarantined,
            format!("{device} is quarantined: two agents use its identity; stop one of them and wait ten minutes"),
        ),
        "used-up" => {
            let number = |column| Ok::<i64, StoreError>(row.try_get::<Option<_>, _>(column)?.unwrap_or_default());
            let usage = Usage {
                who: row.try_get::<Option<_>, _>("who")?.unwrap_or_default(),
                max_tunnels: row.try_get("most")?,
                opens_per_minute: row.try_get("most_opens")?,
                tunnels: number("alive")?,
                opens: number("recent")?,
                frees_in_s: number("frees_in_s")?,
            };
            let failure = quotas::refusal(&usage).ok_or_else(|| StoreError::value("a limit", format!("{usage:?}")))?;
            Ok(Opening::Refused(failure))
        }
        "grant-used-up" => Ok(Opening::Refused(quotas::grant_is_used_up(user, device))),
        other => Err(StoreError::value("an outcome", other)),
    }
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
