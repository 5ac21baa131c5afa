//! `rssh-routerd doctor`: examines a router and the HAProxy beside it, and changes nothing.
//!
//! [`judge`] says what the facts mean; here they are gathered.

mod judge;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use redis::AsyncConnectionConfig;
use rssh_mqtt::examine::{self, PATIENCE, tell};
use rssh_proto::{Finding, ServerId, UserId};
use rssh_stores::Postgres;
use tokio::time::{sleep, timeout};

use crate::config::Config;
use crate::desired::{Desired, Map};
use crate::files::Files;
use crate::plan::{Command, plan};
use crate::render;
use crate::route::{Local, Routes, Row, Source};
use crate::runtime::Runtime;
use crate::source;
use crate::verify::Verifier;

const ENROL: &str = "run: rssh-routerd join";
/// How often HAProxy is asked again before it differs from the registry for good.
const SETTLES: u32 = 2;
/// How long the daemon may take to tell HAProxy what has changed.
const SETTLES_WITHIN: Duration = Duration::from_millis(500);

/// Runs the command.
///
/// # Errors
/// When a check fails; it has been told by then.
pub async fn run(config: &Config, json: bool) -> Result<()> {
    let now = examine::now();
    let mut failed = tell(&files(config, now), json)?;
    let router = config.router.as_str();
    let brokers = examine::brokers(&config.mqtt.identity(), router, &config.mqtt.brokers, now, ENROL).await;
    failed += tell(&brokers, json)?;
    failed += tell(&registry(config, now).await, json)?;
    match failed {
        0 => Ok(()),
        1 => anyhow::bail!("1 check failed"),
        n => anyhow::bail!("{n} checks failed"),
    }
}

/// Keys and certificates: this router's own, and what HAProxy takes.
fn files(config: &Config, now: i64) -> Vec<Finding> {
    let haproxy = &config.haproxy;
    let mut found = vec![examine::own_identity(&config.mqtt.identity(), now, ENROL)];
    let renew = "get another from your authority, or: rssh-serverd ca tls; then reload HAProxy";
    let path = haproxy.certificate.path();
    found.push(examine::certificate("lb cert", path, now, renew));
    if let Some(certificate) = rssh_mqtt::files::certificates(path)
        .ok()
        .and_then(|all| all.into_iter().next())
    {
        found.push(judge::names(&certificate, &haproxy.domain.to_string()));
    }
    let users = "put the installation's current users-ca.pem at haproxy.users-ca, and reload HAProxy";
    found.push(examine::certificate("users ca", haproxy.users_ca.path(), now, users));
    let mut secrets = vec![
        config.mqtt.key.clone(),
        config.name_master.clone(),
        config.name_master_previous(),
        path.to_owned(),
    ];
    secrets.extend(config.redis.password_file.clone());
    let maps = Map::ALL.into_iter().filter(|map| map.is_secret());
    secrets.extend(maps.map(|map| render::map_path(haproxy, map).path().to_owned()));
    found.extend(examine::secrets(secrets));
    found
}

/// The registry as it is, and whether HAProxy is equal to it.
async fn registry(config: &Config, now: i64) -> Vec<Finding> {
    let mut found = Vec::new();
    let (database, findings) = database(config, now).await;
    found.extend(findings);
    let (entries, finding) = in_redis(config).await;
    found.push(finding);
    let known = match known(config, database, entries) {
        Ok(known) => known,
        Err(error) => {
            found.push(Finding::fail(
                "registry",
                error.to_string(),
                "check name-master and registry.servers-ca; rssh-routerd check-config names more",
            ));
            return found;
        }
    };
    found.extend(judge::entries(&known.unbelieved, &known.conflicts));
    let path = config.haproxy.dir.join("haproxy.cfg");
    if let Ok(rendered) = render::configuration(&config.haproxy, &known.desired) {
        let there = std::fs::read_to_string(path.path()).ok();
        found.push(judge::configuration(path.path(), there.as_deref(), &rendered));
    }
    found.extend(haproxy(config, &known).await);
    found
}

/// What PostgreSQL has: its rows, the entries of those that are not lost, and the users that it calls revoked.
#[derive(Default)]
struct Stored {
    rows: Vec<Row>,
    entries: Vec<(ServerId, String)>,
    revoked: BTreeSet<UserId>,
}

async fn database(config: &Config, now: i64) -> (Stored, Vec<Finding>) {
    let look = async {
        let postgres = Postgres::parse(config.database.url.as_str()).map_err(|error| error.to_string())?;
        let look = source::postgres::examine(&postgres, &config.router).await;
        look.map_err(|error| error.to_string())
    };
    let outcome = timeout(PATIENCE, look).await;
    match outcome.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}"))) {
        Ok(seen) => {
            let reconcile = i64::try_from(config.registry.reconcile.duration().as_secs()).unwrap_or(i64::MAX);
            let mut findings = vec![judge::rights(&seen.denied), examine::clock(seen.clock, now)];
            if seen.denied.is_empty() {
                let most = reconcile.saturating_mul(3).saturating_add(10);
                findings.push(judge::daemon(seen.told_ago, most));
            }
            let stored = Stored {
                rows: seen.rows,
                entries: seen.entries,
                revoked: seen.revoked,
            };
            (stored, findings)
        }
        Err(fault) => {
            let remedy =
                "start PostgreSQL, or correct database.url; rssh-serverd migrate grants the router's role its rights";
            (Stored::default(), vec![Finding::fail("database", fault, remedy)])
        }
    }
}

async fn in_redis(config: &Config) -> (Vec<(ServerId, String)>, Finding) {
    let look = async {
        let redis = config.redis().map_err(|error| error.to_string())?;
        let connection = redis.connect(&AsyncConnectionConfig::new()).await;
        let mut connection = connection.map_err(|error| error.to_string())?;
        let entries = source::redis::snapshot(&mut connection).await;
        entries.map_err(|error| error.to_string())
    };
    let outcome = timeout(PATIENCE, look).await;
    match outcome.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}"))) {
        Ok(entries) => {
            let detail = format!("it answers, with {} entries", entries.len());
            (entries, Finding::ok("redis", detail))
        }
        Err(fault) => {
            let rights = "%R~rssh:server:* &rssh:servers +scan +get +mget +subscribe +role";
            (Vec::new(), examine::redis(&fault, rights))
        }
    }
}

/// What the registry comes to.
struct Known {
    desired: Desired,
    servers: usize,
    unbelieved: Vec<(ServerId, String)>,
    conflicts: Vec<(ServerId, ServerId)>,
}

fn known(config: &Config, stored: Stored, entries: Vec<(ServerId, String)>) -> Result<Known> {
    let (master, previous) = config.masters()?;
    let verifier = Verifier::load(&config.registry.servers_ca)?;
    let files = Files::look(config.haproxy.clone());
    let (revoked_users, revoked_serials) = files.revoked()?;
    let mut routes = Routes::default();
    let mut unbelieved = Vec::new();
    let present = entries.iter().map(|(server, _)| server.clone()).collect();
    let in_redis = entries.into_iter().map(|(server, text)| (server, text, Source::Redis));
    // None of one that has been found lost, which may have let its certificate run out.
    let in_database = stored.entries.into_iter();
    let in_database = in_database.map(|(server, text)| (server, text, Source::Database));
    for (server, text, source) in in_redis.chain(in_database) {
        match verifier.verify(&server, &text, SystemTime::now()) {
            Ok(verified) => routes.handle_registration(verified, source),
            Err(error) => unbelieved.push((server, error.to_string())),
        }
    }
    unbelieved.dedup_by(|one, other| one.0 == other.0);
    let known_before = routes.known();
    routes.handle_redis(&present);
    routes.handle_database(&stored.rows, &known_before);
    let conflicts = routes.conflicts().into_iter();
    let conflicts = conflicts.map(|(server, holder)| (server.clone(), holder.clone()));
    Ok(Known {
        conflicts: conflicts.collect(),
        servers: routes.known().len(),
        desired: routes.desired(&Local {
            master,
            previous,
            revoked: stored.revoked,
            revoked_users,
            revoked_serials,
        }),
        unbelieved,
    })
}

/// What HAProxy itself says.
async fn haproxy(config: &Config, known: &Known) -> Vec<Finding> {
    let runtime = Runtime::new(config.haproxy.clone());
    let mut differs: Vec<Command> = Vec::new();
    for turn in 0..=SETTLES {
        if turn > 0 {
            sleep(SETTLES_WITHIN).await;
        }
        match runtime.actual().await {
            Ok(actual) => differs = plan(&known.desired, &actual),
            Err(error) => {
                let remedy = "systemctl start rssh-haproxy; and if it does not stay: journalctl -u rssh-haproxy";
                return vec![Finding::fail("haproxy", error.to_string(), remedy)];
            }
        }
        if differs.is_empty() {
            break;
        }
    }
    let mut found = vec![
        Finding::ok("haproxy", "it answers on its admin socket"),
        judge::equal(&differs, known.servers),
    ];
    if let Ok(down) = runtime.down().await {
        found.push(judge::reachable(&down));
    }
    found
}
