//! PostgreSQL on this machine: the roles, the database, and who may connect as whom.
//!
//! Nobody has a password. PostgreSQL asks the kernel which account is at the other end of its socket (`peer`).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::machine::{Machine, output};

/// The database.
const DATABASE: &str = "rssh";
/// serverd's role, and its account.
const SERVERD: &str = "rssh-serverd";
/// routerd's role, and its account.
const ROUTERD: &str = "rssh-routerd";
const SOCKETS: &str = "/var/run/postgresql";
const BEGIN: &str = "# rssh: begin\n";
const END: &str = "# rssh: end\n";
/// How long PostgreSQL may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// The URL by which an account connects.
pub(super) fn url(role: &str) -> String {
    format!("postgres://{role}@localhost/{DATABASE}?host={SOCKETS}")
}

/// Makes roles and database.
///
/// # Errors
/// When PostgreSQL does not run, or refuses.
pub(super) fn prepare(machine: &mut Machine) -> Result<()> {
    machine.unit("postgresql.service")?;
    if machine.is_dry() && ask("SELECT 1").is_err() {
        machine.change(&format!(
            "make the roles {SERVERD} and {ROUTERD}, and the database {DATABASE}"
        ));
        return Ok(());
    }
    wait()?;
    for role in [SERVERD, ROUTERD] {
        if ask(&format!("SELECT 1 FROM pg_roles WHERE rolname = '{role}'"))?.is_empty()
            && machine.change(&format!("make the role {role}"))
        {
            ask(&format!("CREATE ROLE \"{role}\" LOGIN"))?;
        }
    }
    if ask(&format!("SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'"))?.is_empty()
        && machine.change(&format!("make the database {DATABASE}"))
    {
        ask(&format!("CREATE DATABASE \"{DATABASE}\" OWNER \"{SERVERD}\""))?;
    }
    let names = |file: &str, rules: &str| (file.to_owned(), rules.to_owned());
    let wanted = [
        names(
            "ident_file",
            // Root examines both.
            &format!("rssh root {SERVERD}\nrssh root {ROUTERD}\nrssh {SERVERD} {SERVERD}\nrssh {ROUTERD} {ROUTERD}\n"),
        ),
        // Above the rules that are there: the first that fits decides.
        names(
            "hba_file",
            &format!("local {DATABASE} {SERVERD},{ROUTERD} peer map=rssh\n"),
        ),
    ];
    let mut changed = false;
    for (setting, rules) in wanted {
        let path = PathBuf::from(ask(&format!("SHOW {setting}"))?);
        let there = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = with_rules(&there, &rules);
        if text != there {
            put(machine, &path, &text)?;
            changed = true;
        }
    }
    if changed && !machine.is_dry() {
        ask("SELECT pg_reload_conf()")?;
    }
    Ok(())
}

/// Lets the router read the registry and who is revoked, and write down where it leads users; nothing else.
///
/// # Errors
/// When the tables are not there yet.
pub(super) fn let_router_in(machine: &mut Machine) -> Result<()> {
    let may = format!(
        "SELECT has_table_privilege('{ROUTERD}', 'servers', 'SELECT') \
         AND has_table_privilege('{ROUTERD}', 'routers', 'SELECT') \
         AND has_table_privilege('{ROUTERD}', 'routers', 'INSERT') \
         AND has_table_privilege('{ROUTERD}', 'routers', 'UPDATE') \
         AND has_table_privilege('{ROUTERD}', 'identities', 'SELECT')"
    );
    if in_database(&may).is_ok_and(|answer| answer == "t") {
        return Ok(());
    }
    if machine.change(&format!("let the role {ROUTERD} read the registry")) {
        in_database(&format!(
            "GRANT SELECT ON servers, routers, identities TO \"{ROUTERD}\""
        ))?;
        in_database(&format!("GRANT INSERT, UPDATE ON routers TO \"{ROUTERD}\""))?;
    }
    Ok(())
}

/// The text with our rules at its top, in place of those that were there.
fn with_rules(text: &str, rules: &str) -> String {
    let rest = match (text.find(BEGIN), text.find(END)) {
        (Some(begin), Some(end)) if begin < end => format!("{}{}", &text[..begin], &text[end + END.len()..]),
        _ => text.to_owned(),
    };
    format!("{BEGIN}{rules}{END}{rest}")
}

fn put(machine: &mut Machine, path: &Path, text: &str) -> Result<()> {
    if machine.is_dry() {
        machine.change(&format!("add the accounts' rules to {}", path.display()));
        return Ok(());
    }
    machine.file(path, text, 0o640, "postgres")
}

fn ask(sql: &str) -> Result<String> {
    psql("postgres", sql)
}

fn in_database(sql: &str) -> Result<String> {
    psql(DATABASE, sql)
}

fn psql(database: &str, sql: &str) -> Result<String> {
    output(&[
        "runuser",
        "--user",
        "postgres",
        "--",
        "psql",
        "--no-psqlrc",
        "--tuples-only",
        "--no-align",
        "--set",
        "ON_ERROR_STOP=1",
        "--dbname",
        database,
        "--command",
        sql,
    ])
}

/// Waits until PostgreSQL answers: its unit is up before the clusters are.
fn wait() -> Result<()> {
    let since = Instant::now();
    while let Err(error) = ask("SELECT 1") {
        if since.elapsed() > PATIENCE {
            bail!("PostgreSQL does not answer: {error:#}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_put_at_the_top_once_and_replaced_later() {
        let first = with_rules("local all all peer\n", "local rssh a peer\n");
        assert_eq!(
            first,
            "# rssh: begin\nlocal rssh a peer\n# rssh: end\nlocal all all peer\n"
        );
        assert_eq!(with_rules(&first, "local rssh a peer\n"), first);
        let changed = with_rules(&first, "local rssh b peer\n");
        assert_eq!(
            changed,
            "# rssh: begin\nlocal rssh b peer\n# rssh: end\nlocal all all peer\n"
        );
    }
}
