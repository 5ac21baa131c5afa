//! What is amiss with the database itself, as `doctor` asks.

use super::{Store, StoreError, migrator};

/// What an examination of the database finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// As whom we are connected.
    pub role: String,
    /// Migrations that it lacks.
    pub missing: usize,
    /// What its clock says, in Unix seconds.
    pub clock: i64,
    /// What the role may not do though it has to: `UPDATE on tunnels`.
    pub denied: Vec<String>,
}

/// What the daemon needs of each table, and of the functions that write what happened.
const DENIED: &str = "\
    SELECT p || ' on ' || c.relname AS denied FROM pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p \
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') \
    AND (p = 'SELECT' OR c.relname NOT IN ('audit_events', 'audit_heads', '_sqlx_migrations')) \
    AND NOT has_table_privilege(c.oid, p) \
    UNION ALL SELECT 'EXECUTE on ' || proname FROM pg_proc \
    WHERE pronamespace = 'public'::regnamespace AND proname IN ('audit_append', 'audit_anchor') \
    AND NOT has_function_privilege(oid, 'EXECUTE') ORDER BY denied";

/// Whether the list of migrations can be read, and whether its owner's rights are ours.
const SCHEMA: &str = "\
    SELECT coalesce(has_table_privilege(t, 'SELECT'), false), \
    coalesce((SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = t), has_schema_privilege('public', 'CREATE')) \
    FROM (SELECT to_regclass('public._sqlx_migrations')::oid AS t) AS list";

impl Store {
    /// Examines the schema, the role's rights and the clock.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn examine(&self) -> Result<Examined, StoreError> {
        self.within(async {
            let (role, clock) =
                sqlx::query_as("SELECT current_user::text, extract(epoch FROM clock_timestamp())::bigint")
                    .fetch_one(&self.pool)
                    .await?;
            let (missing, _) = self.schema().await?;
            let denied = sqlx::query_scalar(DENIED).fetch_all(&self.pool).await?;
            Ok(Examined {
                role,
                missing,
                clock,
                denied,
            })
        })
        .await
    }

    /// How many migrations the database lacks, and whether our role owns its tables; before there are any, whoever may
    /// make them does.
    pub(super) async fn schema(&self) -> Result<(usize, bool), StoreError> {
        let (readable, owner): (bool, bool) = sqlx::query_as(SCHEMA).fetch_one(&self.pool).await?;
        let done: Vec<i64> = if readable {
            sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
                .fetch_all(&self.pool)
                .await?
        } else {
            Vec::new()
        };
        let known = migrator();
        let missing = known.migrations.iter().filter(|known| !done.contains(&known.version));
        Ok((missing.count(), owner))
    }

    /// Whether this program can work on the tables as they are. Those of a later version are fine.
    ///
    /// # Errors
    /// When they are older than this program, or the database is away.
    pub async fn is_up_to_date(&self) -> Result<(), StoreError> {
        match self.within(self.schema()).await? {
            (0, _) => Ok(()),
            (missing, _) => Err(StoreError::Older(missing)),
        }
    }
}
