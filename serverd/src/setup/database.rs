//! PostgreSQL on this machine: the roles, the database, and who may connect as whom.
//!
//! Nobody has a password. PostgreSQL asks the kernel which account is at the other end of its socket (`peer`).

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::machine::{Machine, output};
use super::{Wanted, admit};
use crate::args::Admitted;

/// The database.
pub(super) const DATABASE: &str = "rssh";
/// serverd's role, and its account.
const SERVERD: &str = "rssh-serverd";
/// routerd's role, and its account.
const ROUTERD: &str = "rssh-routerd";
/// The role of servers on other machines: it owns nothing.
pub(super) const REMOTE: &str = "rssh_serverd";
const ACCOUNT: &str = "postgres";
const SOCKETS: &str = "/var/run/postgresql";
/// The map from the names in servers' certificates to their role.
const MAP: &str = "rssh-servers";
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
pub(super) fn prepare(admit: &[Admitted], machine: &mut Machine) -> Result<()> {
    machine.unit("postgresql.service")?;
    if machine.is_dry() && ask("SELECT 1").is_err() {
        machine.change(&format!(
            "make the roles {SERVERD} and {ROUTERD}, and the database {DATABASE}"
        ));
        return Ok(());
    }
    wait()?;
    for role in [SERVERD, ROUTERD]
        .into_iter()
        .chain((!admit.is_empty()).then_some(REMOTE))
    {
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
    let ids = admit.iter().map(|other| format!("{MAP} {} {REMOTE}\n", other.id));
    let addresses = admit.iter().map(|other| {
        let address = other.address;
        format!("hostssl {DATABASE} {REMOTE} {address}/32 cert map={MAP}\n")
    });
    let wanted = [
        (
            "ident_file",
            // Root examines both.
            format!("rssh root {SERVERD}\nrssh root {ROUTERD}\nrssh {SERVERD} {SERVERD}\nrssh {ROUTERD} {ROUTERD}\n"),
            ids.collect::<Vec<_>>(),
        ),
        // Above the rules that are there: the first that fits decides.
        (
            "hba_file",
            format!("local {DATABASE} {SERVERD},{ROUTERD} peer map=rssh\n"),
            addresses.collect(),
        ),
    ];
    let mut changed = false;
    for (setting, rules, more) in wanted {
        let path = PathBuf::from(ask(&format!("SHOW {setting}"))?);
        let there = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = with_rules(&there, &rules, &more);
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
         AND has_table_privilege('{ROUTERD}', 'identities', 'SELECT') \
         AND has_function_privilege('{ROUTERD}', 'audit_append(text, jsonb)', 'EXECUTE')"
    );
    if in_database(&may).is_ok_and(|answer| answer == "t") {
        return Ok(());
    }
    if machine.change(&format!("let the role {ROUTERD} read the registry")) {
        in_database(&format!(
            "GRANT SELECT ON servers, routers, identities TO \"{ROUTERD}\""
        ))?;
        in_database(&format!("GRANT INSERT, UPDATE ON routers TO \"{ROUTERD}\""))?;
        in_database(&format!("GRANT EXECUTE ON FUNCTION audit_append TO \"{ROUTERD}\""))?;
    }
    Ok(())
}

/// Lets servers on other machines in: PostgreSQL shows a certificate of our authority, asks for one, and listens where
/// they come from.
///
/// # Errors
/// When it shows or believes another authority's already, or refuses.
pub(super) fn let_servers_in(wanted: &Wanted, machine: &mut Machine, listen: &[Ipv4Addr]) -> Result<()> {
    let data = PathBuf::from(ask("SHOW data_directory")?);
    let file = |name: &str| data.join(name).display().to_string();
    let mut changed = false;
    for (setting, to, defaults) in [
        (
            "ssl_cert_file",
            file("rssh.pem"),
            ["/etc/ssl/certs/ssl-cert-snakeoil.pem", "server.crt"],
        ),
        (
            "ssl_key_file",
            file("rssh.key"),
            ["/etc/ssl/private/ssl-cert-snakeoil.key", "server.key"],
        ),
        ("ssl_ca_file", file("rssh-ca.pem"), ["", ""]),
        ("ssl", "on".to_owned(), ["off", "off"]),
    ] {
        // The files are there before they are named.
        if setting == "ssl_cert_file" {
            let (cert, key) = (data.join("rssh.pem"), data.join("rssh.key"));
            changed |= admit::certificate(wanted, machine, "PostgreSQL", &cert, &key, ACCOUNT)?;
            admit::copy_authority(machine, &data.join("rssh-ca.pem"), ACCOUNT)?;
        }
        let is = ask(&format!("SHOW {setting}"))?;
        if is == to {
            continue;
        }
        if !defaults.contains(&is.as_str()) {
            bail!(
                "PostgreSQL has {setting} = '{is}', which is yours; let the other servers in by hand, see docs/operate.md"
            );
        }
        changed |= set(machine, setting, &to)?;
    }
    if changed {
        ask("SELECT pg_reload_conf()")?;
    }
    let is = ask("SHOW listen_addresses")?;
    let mut addresses: Vec<String> = is.split(',').map(|address| address.trim().to_owned()).collect();
    if addresses.iter().any(|address| address == "*" || address == "0.0.0.0") {
        return Ok(());
    }
    let there = addresses.len();
    for address in listen.iter().map(ToString::to_string) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.len() > there && set(machine, "listen_addresses", &addresses.join(", "))? {
        let command = ["systemctl", "restart", "postgresql.service"];
        machine.run("let PostgreSQL listen there", &command)?;
        wait()?;
    }
    Ok(())
}

/// Changes a setting of PostgreSQL; says whether it did.
fn set(machine: &mut Machine, setting: &str, to: &str) -> Result<bool> {
    let change = machine.change(&format!("set PostgreSQL's {setting} to '{to}'"));
    if change {
        ask(&format!("ALTER SYSTEM SET {setting} = '{to}'"))?;
    }
    Ok(change)
}

/// The text with our rules at its top, in place of those that were there; those of other servers stay.
fn with_rules(text: &str, rules: &str, more: &[String]) -> String {
    let (ours, rest) = match (text.find(BEGIN), text.find(END)) {
        (Some(begin), Some(end)) if begin < end => (
            &text[begin + BEGIN.len()..end],
            format!("{}{}", &text[..begin], &text[end + END.len()..]),
        ),
        _ => ("", text.to_owned()),
    };
    let admitted = ours.split_inclusive('\n').filter(|line| line.contains(REMOTE));
    let mut others: Vec<&str> = admitted.collect();
    for line in more {
        if !others.contains(&line.as_str()) {
            others.push(line);
        }
    }
    format!("{BEGIN}{rules}{}{END}{rest}", others.concat())
}

fn put(machine: &mut Machine, path: &Path, text: &str) -> Result<()> {
    if machine.is_dry() {
        machine.change(&format!("add the accounts' rules to {}", path.display()));
        return Ok(());
    }
    machine.file(path, text, 0o640, ACCOUNT)
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
        ACCOUNT,
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
        let first = with_rules("local all all peer\n", "local rssh a peer\n", &[]);
        assert_eq!(
            first,
            "# rssh: begin\nlocal rssh a peer\n# rssh: end\nlocal all all peer\n"
        );
        assert_eq!(with_rules(&first, "local rssh a peer\n", &[]), first);
        let changed = with_rules(&first, "local rssh b peer\n", &[]);
        assert_eq!(
            changed,
            "# rssh: begin\nlocal rssh b peer\n# rssh: end\nlocal all all peer\n"
        );
    }

    #[test]
    fn rules_for_other_servers_stay_when_setup_runs_without_them() {
        let other = "rssh-servers s2 rssh_serverd\n".to_owned();
        let first = with_rules("", "rssh root a\n", std::slice::from_ref(&other));
        assert_eq!(
            first,
            "# rssh: begin\nrssh root a\nrssh-servers s2 rssh_serverd\n# rssh: end\n"
        );
        assert_eq!(with_rules(&first, "rssh root a\n", &[]), first);
        assert_eq!(with_rules(&first, "rssh root a\n", &[other]), first);
    }
}
