//! The audit trail, for the administrator: reading, checking, pruning, forgetting.

use std::time::Duration;

use anyhow::{Result, bail};
use rssh_proto::audit::Event;
use rssh_proto::{UserId, text};

use crate::args::{Audit, AuditCommand, WithConfig};
use crate::audit::{ADMIN, Entry, Verifier};
use crate::config::Config;
use crate::store::{Kind, Store, StoreError, Wanted};

/// How often new events are looked for, and how far back: their writers' clocks and batches differ.
const FOLLOW: Duration = Duration::from_secs(1);
const OVERLAP_US: i64 = 30_000_000;

pub(super) async fn run(audit: Audit) -> Result<()> {
    let store = Store::new(&Config::load(&audit.at.config)?.database)?;
    if let Some(AuditCommand::Prune { older_than }) = audit.command {
        let before = before(older_than.duration());
        let event = by_administrator("audit-pruned").with("before_us", before);
        store.audit(ADMIN, &[event]).await?;
        println!("{} events pruned", store.audit_prune(before).await?);
        return Ok(());
    }
    if audit.verify {
        return verify(&store).await;
    }
    let mut wanted = Wanted {
        user: audit.user,
        device: audit.device,
        since_us: audit.since.map(|span| before(span.duration())),
    };
    let mut seen = std::collections::HashSet::new();
    loop {
        let mut newest = wanted.since_us;
        store
            .audited(&wanted, |entry| {
                newest = newest.max(Some(entry.at_us));
                if !audit.follow || seen.insert((entry.chain.clone(), entry.seq)) {
                    let line = if audit.json {
                        serde_json::to_string(&entry).map_err(|error| StoreError::Value {
                            what: "an event",
                            value: error.to_string(),
                        })?
                    } else {
                        sentence(&entry)
                    };
                    println!("{line}");
                }
                Ok(())
            })
            .await?;
        if !audit.follow {
            return Ok(());
        }
        wanted.since_us = newest.map(|newest| newest - OVERLAP_US);
        tokio::time::sleep(FOLLOW).await;
    }
}

/// Forgets a user who is revoked: what happened is kept, under a name that means nobody.
pub(super) async fn forget(at: &WithConfig, user: &UserId) -> Result<()> {
    let store = Store::new(&Config::load(&at.config)?.database)?;
    let forgotten = store.forget(user, &by_administrator("user-forgotten")).await?;
    println!(
        "{} events and {} tunnels are now those of {}",
        forgotten.events, forgotten.tunnels, forgotten.pseudonym
    );
    if let Some(until) = forgotten.stays_until {
        println!("the name stays revoked until its last certificate ends, {until} UTC; forget it again after that");
    }
    Ok(())
}

async fn verify(store: &Store) -> Result<()> {
    let mut verifier = Verifier::new(store.audit_known().await?);
    store.audit_chains(|entry| verifier.take(entry)).await?;
    verifier.finish();
    if verifier.faults.is_empty() {
        println!(
            "{} events hold; {} of them tell of someone forgotten",
            verifier.entries, verifier.forgotten
        );
        return Ok(());
    }
    for fault in &verifier.faults {
        eprintln!("{fault}");
    }
    bail!("the audit trail does not hold; keep the database as it is and compare with the daemons' logs");
}

/// An event of the administrator's, with who that was on this machine.
pub(super) fn by_administrator(kind: &str) -> Event {
    // The account behind sudo says more than root.
    let by = std::env::var("SUDO_USER").unwrap_or_else(|_| nix::unistd::getuid().to_string());
    Event::now(kind).with("by", by)
}

/// Writes down what the administrator did.
pub(super) async fn record(store: &Store, event: Event) -> Result<()> {
    store.audit(ADMIN, &[event]).await?;
    Ok(())
}

/// The same, for what was done to someone.
pub(super) async fn record_name(store: &Store, what: &str, kind: Kind, name: &str, more: Event) -> Result<()> {
    let event = Event {
        kind: format!("{}-{what}", kind.name()),
        ..more
    };
    let event = match kind {
        Kind::User => name.parse().map(|user| event.clone().user(&user)).unwrap_or(event),
        Kind::Device => name
            .parse()
            .map(|device| event.clone().device(&device))
            .unwrap_or(event),
        Kind::Server | Kind::Router => event.with("name", name),
    };
    record(store, event).await
}

fn before(span: Duration) -> i64 {
    let back = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
    Event::now("").at_us.saturating_sub(back)
}

/// One event in one line.
fn sentence(entry: &Entry) -> String {
    let seconds = entry.at_us.div_euclid(1_000_000);
    let at = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (hour, minute, second) = at.to_hms();
    let mut line = format!(
        "{} {hour:02}:{minute:02}:{second:02}.{:03} {}/{} {}",
        at.date(),
        entry.at_us.rem_euclid(1_000_000) / 1000,
        entry.chain,
        entry.seq,
        entry.kind
    );
    let mut word = |key: &str, value: &str| {
        line.push_str(&format!(" {key}={}", text::sanitize(value, 300)));
    };
    let named = [
        ("user", &entry.user),
        ("device", &entry.device),
        ("source", &entry.source),
    ];
    for (key, value) in named {
        if let Some(value) = value {
            word(key, value);
        }
    }
    if let Some(tunnel) = entry.tunnel {
        word("tunnel", &tunnel.to_string());
    }
    if let serde_json::Value::Object(detail) = &entry.detail {
        for (key, value) in detail {
            match value {
                serde_json::Value::String(value) => word(key, value),
                other => word(key, &other.to_string()),
            }
        }
    }
    line
}
