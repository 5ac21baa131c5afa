//! What the findings of an examination mean: pure judgements, each with its remedy.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use rssh_proto::Finding;
use rssh_proto::payload::ServerState;

use crate::capacity::Bound;
use crate::config::PortRange;
use crate::control::Answer;
use crate::store::Examined;

/// The account of devices' sessions; only root reads shadow(5).
pub(super) fn account(name: &str, exists: bool, shadow: Option<&str>) -> Finding {
    let check = "account";
    if !exists {
        return Finding::fail(
            check,
            format!("the account {name} does not exist"),
            "run: systemd-sysusers, or install the package rssh-serverd again",
        );
    }
    let password = shadow.and_then(|shadow| {
        let mut lines = shadow.lines().map(|line| line.split(':'));
        lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.next())?)
    });
    if password.is_some_and(|password| password.starts_with('!')) {
        return Finding::fail(
            check,
            format!("the account {name} is locked: sshd refuses every device"),
            format!("run: usermod --password '*' {name}"),
        );
    }
    Finding::ok(check, format!("{name} runs devices' sessions"))
}

/// A helper of sshd, which refuses one that others than root could change.
pub(super) fn helper(path: &Path, exists: bool, writable: Option<&Path>) -> Finding {
    let check = "helpers";
    let shown = path.display();
    if !exists {
        return Finding::fail(
            check,
            format!("{shown} is not there"),
            "install the package rssh-serverd, or correct sshd.helpers",
        );
    }
    match writable {
        Some(part) => Finding::fail(
            check,
            format!(
                "sshd does not run {shown}: others than root can change {}",
                part.display()
            ),
            format!("run: chown root:root {0} && chmod go-w {0}", part.display()),
        ),
        None => Finding::ok(check, shown.to_string()),
    }
}

/// The ports to lease: what the kernel draws, and who listens on them at every address.
pub(super) fn ports(ports: PortRange, conflict: Option<&str>, taken: &[u16]) -> Finding {
    let check = "ports";
    if let Some(conflict) = conflict {
        return Finding::of_error(check, conflict);
    }
    match taken {
        [] => Finding::ok(check, format!("{}-{} are free to lease", ports.first, ports.last)),
        [port, ..] => Finding::fail(
            check,
            format!("another program listens on port {port} of sshd.ports, at every address"),
            format!("find it with: ss -ltnp 'sport = :{port}'; end it, or take the port out of sshd.ports"),
        ),
    }
}

/// Who can reach leased ports; `rules` as nft(8) lists them.
pub(super) fn firewall(address: IpAddr, ports: PortRange, rules: Option<&str>) -> Finding {
    let check = "firewall";
    if address.is_loopback() {
        return Finding::ok(check, "leased ports listen on this machine only");
    }
    let remedy = "put your load balancers into /etc/rssh/nftables.nft, and run: nft -f /etc/rssh/nftables.nft";
    let PortRange { first, last } = ports;
    if address.is_unspecified() {
        return Finding::fail(
            check,
            format!("sshd.address is {address}: leased ports listen at every address of this machine"),
            "give sshd.address one address, which only the load balancers reach",
        );
    }
    let Some(rules) = rules.filter(|rules| !rules.trim().is_empty()) else {
        return Finding::warn(
            check,
            format!("nothing here keeps others than the load balancers from ports {first}-{last} of {address}"),
            remedy,
        );
    };
    if rules.contains("0.0.0.0/0") {
        return Finding::fail(check, "the rules take every address for a load balancer's", remedy);
    }
    let closed = |line: &str| line.contains("hook input") && line.contains("policy drop");
    let shuts = |line: &str| (line.contains("drop") || line.contains("reject")) && covers(line, ports);
    if rules.lines().any(|line| closed(line) || shuts(line)) {
        Finding::ok(check, "leased ports are for the load balancers")
    } else {
        Finding::fail(
            check,
            format!("the rules do not cover sshd.ports, {first}-{last}"),
            format!("write {first}-{last} into /etc/rssh/nftables.nft, and run: nft -f /etc/rssh/nftables.nft"),
        )
    }
}

/// Whether a rule speaks of a range of destination ports, all of it.
fn covers(line: &str, ports: PortRange) -> bool {
    let Some((_, after)) = line.split_once("dport") else {
        return false;
    };
    let of_ports = after.split('}').next().unwrap_or_default();
    let words = of_ports.split(|c: char| !c.is_ascii_digit() && c != '-');
    let mut ranges = words.filter_map(|word| {
        let (first, last) = word.split_once('-')?;
        Some((first.parse::<u16>().ok()?, last.parse::<u16>().ok()?))
    });
    ranges.any(|(first, last)| first <= ports.first && ports.last <= last)
}

/// Whether what load balancers send to leased ports is encrypted on its way; `interface` has the address, if any does.
pub(super) fn encryption(address: IpAddr, interface: Option<(&str, bool)>) -> Finding {
    let check = "encryption";
    if address.is_loopback() {
        return Finding::ok(check, "load balancers and leased ports are on one machine");
    }
    match interface {
        Some((name, true)) => Finding::ok(check, format!("{address} is reached by WireGuard, at {name}")),
        Some((name, false)) => Finding::warn(
            check,
            format!(
                "load balancers reach {address} at {name}, where nothing encrypts: targets other than ssh go in the clear"
            ),
            "lead the load balancers to this server by WireGuard, and give sshd.address its address",
        ),
        None => Finding::fail(
            check,
            format!("no interface of this machine has the address {address}"),
            "correct sshd.address, or bring the interface up",
        ),
    }
}

/// sshd's configuration on disk, against what this version renders.
pub(super) fn sshd_config(path: &Path, there: Option<&str>, rendered: &str) -> Finding {
    let check = "sshd config";
    let remedy = "run: systemctl restart rssh-serverd, which writes it anew, and systemctl restart rssh-sshd; \
                  sessions live on";
    let shown = path.display();
    let Some(there) = there else {
        return Finding::fail(check, format!("{shown} is not there"), remedy);
    };
    let (have, want) = (lines(there), lines(rendered));
    let key = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let lacks = want.iter().find(|line| !have.contains(*line));
    let more = have.iter().find(|line| !want.contains(*line));
    let what = match (lacks, more) {
        (None, None) => return Finding::ok(check, format!("{shown} is as rendered")),
        (Some(line), _) if line.starts_with("PerSource") => format!(
            "{shown} does not say {line}: all devices come from the load balancers' addresses, and one bad device locks out the rest"
        ),
        (Some(line), Some(other)) if key(line) == key(other) => format!("{shown} says {other}, not {line}"),
        (Some(line), _) => format!("{shown} does not say {line}"),
        (None, Some(line)) => format!("{shown} says {line}, which was not rendered"),
    };
    Finding::fail(check, what, remedy)
}

/// The settings in a text of sshd_config(5).
fn lines(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

/// Whether the dedicated sshd runs, and listens where it should.
pub(super) fn sshd(running: bool, deaf: &[SocketAddr], certified: bool) -> Vec<Finding> {
    let check = "sshd";
    let mut found = Vec::new();
    if !certified {
        found.push(Finding::fail(
            check,
            "its host key has no certificate: devices refuse it",
            "run: rssh-serverd server init, or join anew, and systemctl restart rssh-sshd",
        ));
    }
    if !running {
        found.push(Finding::fail(
            check,
            "it does not run",
            "run: systemctl start rssh-sshd",
        ));
    } else if let [address, ..] = deaf {
        found.push(Finding::fail(
            check,
            format!("it does not listen on {address}, which sshd.listen names"),
            "run: systemctl restart rssh-sshd; its sessions live on",
        ));
    } else if found.is_empty() {
        found.push(Finding::ok(check, "it runs, and listens"));
    }
    found
}

/// The running daemon: whether it serves, how full it is, and what binds.
pub(super) fn daemon(answer: &Answer, ports: PortRange) -> Vec<Finding> {
    let check = "daemon";
    let (counts, capacity) = (answer.counts, answer.capacity);
    let detail = format!("it holds {} of {} tunnels", counts.held, capacity.tunnels);
    let state = if answer.state != ServerState::Serving {
        Finding::warn(
            check,
            "it takes no landings: it is being drained, or has just started",
            "when it is to serve again: systemctl restart rssh-serverd",
        )
    } else if u64::from(capacity.tunnels) * 8 < u64::try_from(counts.held).unwrap_or(u64::MAX).saturating_mul(10) {
        Finding::warn(
            check,
            format!("{detail}: little is left"),
            "add a server: rssh-serverd server add",
        )
    } else {
        Finding::ok(check, detail)
    };
    let leasable = u32::from(ports.last - ports.first) + 1;
    let remedy = match capacity.bound {
        Bound::Ports | Bound::Memory => None,
        Bound::Processes => Some((
            "processes",
            "raise kernel.pid_max and kernel.threads-max, as in /usr/lib/sysctl.d/60-rssh-serverd.conf",
        )),
        Bound::Descriptors => Some((
            "open files of rssh-serverd",
            "raise LimitNOFILE of rssh-serverd.service",
        )),
        Bound::Connections => Some(("connections from one load balancer", "add ports to sshd.listen")),
    };
    let limits = match remedy {
        Some((what, remedy)) if capacity.tunnels < leasable => Finding::warn(
            "limits",
            format!(
                "{what} bind: {} tunnels fit, and there are {leasable} ports to lease",
                capacity.tunnels
            ),
            remedy,
        ),
        _ => Finding::ok(
            "limits",
            "files, processes and connections suffice for the ports to lease",
        ),
    };
    vec![state, limits]
}

/// How many processes sshd and its sessions may be, by their control group.
pub(super) fn tasks(most: Option<u64>, ports: PortRange) -> Option<Finding> {
    let (most, wanted) = (most?, (u64::from(ports.last - ports.first) + 1) * 2);
    (most < wanted).then(|| {
        Finding::warn(
            "limits",
            format!("sshd and its sessions may be {most} processes; two for each port to lease are {wanted}"),
            "set TasksMax=infinity in rssh-sshd.service",
        )
    })
}

/// The database: its schema, and what the role may do.
pub(super) fn database(examined: &Examined) -> Finding {
    let check = "database";
    let Examined {
        role, missing, denied, ..
    } = examined;
    if *missing > 0 {
        return Finding::fail(
            check,
            format!("its schema is older than this program, by {missing} steps"),
            "run, as the tables' owner: rssh-serverd migrate",
        );
    }
    match denied.as_slice() {
        [] => Finding::ok(check, format!("it answers {role}, and its schema is up to date")),
        [first, rest @ ..] => {
            let more = if rest.is_empty() {
                String::new()
            } else {
                format!(", and {} more", rest.len())
            };
            Finding::fail(
                check,
                format!("the role {role} lacks {first}{more}"),
                "run, as the tables' owner: rssh-serverd migrate, which grants the roles what they need",
            )
        }
    }
}

/// The addresses of the domain, and of a name below it.
pub(super) fn names(domain: &str, own: &[IpAddr], below: &[IpAddr]) -> Finding {
    let check = "dns";
    let Some(first) = own.first() else {
        return Finding::fail(
            check,
            format!("{domain} is not found"),
            format!("add an A or AAAA record for {domain}, with the address of the load balancer"),
        );
    };
    let wildcard = format!("add a record for *.{domain}, as that of {domain}");
    if below.is_empty() {
        return Finding::fail(
            check,
            format!("names below {domain} are not found: shared names lead nowhere"),
            wildcard,
        );
    }
    let sorted = |all: &[IpAddr]| {
        let mut all = all.to_vec();
        all.sort_unstable();
        all.dedup();
        all
    };
    if sorted(own) != sorted(below) {
        return Finding::warn(
            check,
            format!("names below {domain} lead elsewhere than {domain} itself"),
            wildcard,
        );
    }
    Finding::ok(check, format!("{domain} and what is below it are at {first}"))
}

/// Whether the domain's zone is signed; nothing where the resolver did not say.
pub(super) fn dnssec(domain: &str, signed: Option<bool>) -> Finding {
    let check = "dnssec";
    match signed {
        Some(true) => Finding::ok(check, format!("the answer for {domain} is signed")),
        Some(false) => Finding::warn(
            check,
            format!("the answer for {domain} is not signed: whoever is on the way can lead users astray"),
            "sign the zone (DNSSEC), and give its DS record to the registrar",
        ),
        None => Finding::warn(
            check,
            format!("this machine's resolver does not say whether {domain} is signed"),
            "check the nameserver in /etc/resolv.conf",
        ),
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
