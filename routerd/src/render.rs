//! HAProxy's configuration and map files, as text.

use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::config::{HaproxyConfig, Limits, PlainPath};
use crate::desired::{Desired, Map, Pool, PoolName, PoolServer, Rows};

/// The template; it can be read on its own.
pub const TEMPLATE: &str = include_str!("../../haproxy/haproxy.cfg.tmpl");

/// Takes what a client says first with its first packet (TCP Fast Open): ssh does not wait for the server's word.
const EARLY: &str = "tfo";

/// Why a template cannot be rendered: a fault of ours, found by a test.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("the template's placeholder {0} has no value")]
    Unknown(String),
    #[error("the template has no placeholder {0}")]
    Unused(String),
    #[error("the template has a placeholder that does not end")]
    Open,
}

/// Puts values in a template's `{{placeholders}}`. Each placeholder needs a value and each value a placeholder; values
/// are not looked into.
///
/// # Errors
/// When they do not match.
pub fn substitute(template: &str, values: &[(&str, String)]) -> Result<String, TemplateError> {
    let mut text = String::with_capacity(template.len() * 2);
    let mut used = vec![false; values.len()];
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").ok_or(TemplateError::Open)?;
        let index = values
            .iter()
            .position(|(known, _)| *known == name)
            .ok_or_else(|| TemplateError::Unknown(name.to_owned()))?;
        used[index] = true;
        text.push_str(before);
        text.push_str(&values[index].1);
        rest = after;
    }
    text.push_str(rest);
    match used.iter().position(|used| !used) {
        Some(index) => Err(TemplateError::Unused(values[index].0.to_owned())),
        None => Ok(text),
    }
}

/// Where a map's file lies.
pub fn map_path(haproxy: &HaproxyConfig, map: Map) -> PlainPath {
    haproxy.dir.join("maps").join(map.file())
}

/// `haproxy.cfg`.
///
/// # Errors
/// When the template and the values do not match.
pub fn configuration(haproxy: &HaproxyConfig, desired: &Desired) -> Result<String, TemplateError> {
    let limits = &haproxy.limits;
    let tls = format!("ssl crt {} strict-sni", haproxy.certificate);
    let users_tls = format!("{tls} ca-file {} verify required", haproxy.users_ca);
    let access = match &haproxy.socket_group {
        Some(group) => format!("group {group} mode 660"),
        None => "mode 600".to_owned(),
    };
    // Where the public door hands TLS on; and a door without an address still needs one to be valid.
    let internal = |name: &str, options: &str| {
        let socket = haproxy.dir.join(name);
        format!("    bind unix@{socket} mode 600 accept-proxy {options}\n")
    };
    let servers = |pool: Pool| -> String {
        let members = desired.pool.iter().filter(|(name, _)| name.pool() == pool);
        members.map(|(name, server)| pool_line(name, server, limits)).collect()
    };
    let https = if haproxy.https.is_empty() {
        format!("    bind unix@{} mode 600\n", haproxy.dir.join("https.sock"))
    } else {
        binds(&haproxy.https, "")
    };
    let public = haproxy.public.as_ref();
    let listen = public.map_or(&[][..], |public| &public.listen);
    let public_binds = if listen.is_empty() {
        internal("public.sock", "").replace(" accept-proxy ", "")
    } else {
        binds(listen, EARLY)
    };
    let brokers: String = public
        .map_or(&[][..], |public| &public.brokers)
        .iter()
        .enumerate()
        // One whose name is not found at the start does not keep the others from being served.
        .map(|(nth, broker)| {
            format!("    server broker_{nth} {broker} check inter 1s rise 1 fall 2 init-addr last,libc,none\n")
        })
        .collect();
    let lines = |mut text: String| {
        text.truncate(text.trim_end_matches('\n').len());
        text
    };
    let count = |count: u32| count.to_string();
    let milliseconds = |span: rssh_proto::duration::Span| format!("{}ms", span.duration().as_millis());
    // The admin socket, health checks and the log need some too.
    let public_max = if listen.is_empty() { 0 } else { limits.public };
    let doors = [limits.devices, limits.users, limits.bearer, limits.https, public_max];
    let total = doors.into_iter().map(u64::from).sum::<u64>() + 1000;
    let values = [
        ("domain", haproxy.domain.to_string()),
        ("domain-pattern", haproxy.domain.to_string().replace('.', "\\.")),
        ("socket", haproxy.socket.to_string()),
        ("socket-access", access),
        ("log", haproxy.log.to_string()),
        ("max-total", total.to_string()),
        ("hard-stop-after", milliseconds(limits.hard_stop)),
        ("timeout-tunnel", milliseconds(limits.silence)),
        ("dir", haproxy.dir.to_string()),
        ("maps", haproxy.dir.join("maps").to_string()),
        ("devices-binds", lines(binds(&haproxy.devices, EARLY))),
        ("devices-max", count(limits.devices)),
        ("devices-rate", count(limits.devices_rate)),
        ("servers", lines(servers(Pool::Sshd))),
        ("https-binds", lines(https)),
        ("https-max", count(limits.https)),
        ("https-rate", count(limits.https_rate)),
        ("https-servers", lines(servers(Pool::Https))),
        (
            "users-binds",
            lines(binds(&haproxy.users, &users_tls) + &internal("users.sock", &users_tls)),
        ),
        ("users-max", count(limits.users)),
        ("users-rate", count(limits.users_rate)),
        (
            "bearer-binds",
            lines(binds(&haproxy.bearer, &tls) + &internal("bearer.sock", &tls)),
        ),
        ("bearer-max", count(limits.bearer)),
        ("bearer-rate", count(limits.bearer_rate)),
        ("public-binds", lines(public_binds)),
        ("public-max", count(limits.public)),
        ("public-rate", count(limits.public_rate)),
        ("brokers", lines(brokers)),
        ("devices-source", count(limits.devices_source)),
        ("users-source", count(limits.users_source)),
        ("bearer-source", count(limits.bearer_source)),
        ("https-source", count(limits.https_source)),
        ("public-source", count(limits.public_source)),
    ];
    substitute(TEMPLATE, &values)
}

fn binds(addresses: &[SocketAddr], options: &str) -> String {
    addresses.iter().fold(String::new(), |mut text, address| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", format!("    bind {address} {options}").trim_end());
        text
    })
}

/// What follows a server's name, in the file and in `add server` alike: runtime servers inherit no defaults.
pub fn server_settings(server: &PoolServer, limits: &Limits) -> String {
    let interval = limits.check_interval.duration().as_millis();
    format!(
        "{} check addr {} port {} inter {interval}ms fastinter {}ms fall 2 rise 1 weight {}",
        server.address,
        server.health.ip(),
        server.health.port(),
        (interval / 4).max(50),
        server.weight,
    )
}

fn pool_line(name: &PoolName, server: &PoolServer, limits: &Limits) -> String {
    let disabled = if server.enabled { "" } else { " disabled" };
    format!("    server {name} {}{disabled}\n", server_settings(server, limits))
}

/// A map's file.
pub fn map(rows: &Rows) -> String {
    rows.iter().fold(String::new(), |mut text, (key, value)| {
        let _ = writeln!(text, "{key} {value}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_and_its_values_must_match_exactly() {
        let values = [("a", "{{b}}".to_owned())];
        assert_eq!(substitute("x {{a}} y {{a}}", &values).unwrap(), "x {{b}} y {{b}}");
        assert_eq!(
            substitute("{{a}} {{c}}", &values),
            Err(TemplateError::Unknown("c".into()))
        );
        assert_eq!(substitute("x", &values), Err(TemplateError::Unused("a".into())));
        assert_eq!(substitute("{{a", &values), Err(TemplateError::Open));
    }
}
