//! What the database alone takes for the least that an open has to leave on the disk.

use anyhow::Result;

use crate::place::Place;
use crate::{Lab, files, postgres, run};

/// How many opens go into one transaction, as about as many steps go into one when many are under way.
const GROUP: u32 = 6;
/// How many connections there are, and what each of them does.
const CLIENTS: u32 = 4;
const EACH: u32 = 400;

/// Opens that are measured.
pub(super) const OPENS: u32 = GROUP * CLIENTS * EACH;

const TABLES: &str = "
    CREATE TABLE floor_tunnels (id uuid PRIMARY KEY, user_id text, device_id text, target text, asked_at timestamptz);
    CREATE TABLE floor_leases (server_id text, port bigint GENERATED ALWAYS AS IDENTITY, tunnel_id uuid, epoch bigint,
                               claimed_at timestamptz, PRIMARY KEY (server_id, port))";

/// Writes that there is a tunnel, and in another transaction that it has a lease, for so many tunnels: prepared statements,
/// a key for each row, and nothing checked, counted, answered or audited.
///
/// # Errors
/// When pgbench fails.
pub(super) fn write(lab: &Lab) -> Result<()> {
    lab.psql(TABLES)?;
    let script = format!(
        "INSERT INTO floor_tunnels SELECT gen_random_uuid(), 'asker-' || n, 'device-' || n, 'localhost:22', clock_timestamp()\n\
         \x20   FROM generate_series(1, {GROUP}) n;\n\
         INSERT INTO floor_leases (server_id, tunnel_id, epoch, claimed_at)\n\
         \x20   SELECT 's1', gen_random_uuid(), 1, clock_timestamp() FROM generate_series(1, {GROUP});\n"
    );
    const SCRIPT: &str = "floor.sql";
    files::write(&lab.dir().join(SCRIPT), script)?;
    let pgbench = postgres::program_dir()?.join("pgbench");
    let (clients, each) = (CLIENTS.to_string(), EACH.to_string());
    let script = lab.dir().inside(SCRIPT);
    let pgbench = pgbench.to_string_lossy();
    let mut arguments = vec![&*pgbench, "-n", "-M", "prepared", "-f", &script];
    arguments.extend(["-c", &clients, "-t", &each]);
    run::checked(&mut lab.command(&Place::Core, &arguments)).map(drop)
}
