//! The command line.

mod authorization;
mod setup;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::token::Scope;
use clap::{Args, Parser, Subcommand};
use rssh_proto::duration::Span;
use rssh_proto::{DeviceId, HostPort, HttpsUrl, RouterId, ServerId, Tag, UserId};

pub use authorization::{Audit, AuditCommand, DevicesArgs, Grant, Group, HolderArgs, LimitArgs, Member};
pub use setup::{Admitted, SetupArgs};

/// The rssh server daemon and the administration of an installation.
#[derive(Debug, Parser)]
#[command(name = "rssh-serverd", version, propagate_version = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve: lease ports, authorize devices' logins, watch their sessions
    Run(WithConfig),
    /// Take no new landings, and end the running daemon when its last tunnel has ended
    Drain {
        #[command(flatten)]
        at: WithConfig,
        /// End all the same after this time; the devices of what is left then land elsewhere
        #[arg(long, value_name = "TIME", default_value = "1h")]
        within: Span,
    },
    /// Say how many tunnels this server can hold, how many it holds, and what binds the number
    Capacity {
        #[command(flatten)]
        at: WithConfig,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Make this server one of an installation: its keys are made here, its certificates come from there
    Join {
        /// Where the installation answers: https://HOST[:PORT]
        url: HttpsUrl,
        #[command(flatten)]
        at: WithConfig,
        /// Connect here instead, to a server: as long as no load balancer leads to one
        #[arg(long, value_name = "HOST:PORT")]
        connect: Option<HostPort>,
        /// Read the one-time token from this file, which only its owner may read, and not from a prompt or standard input
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Check the configuration and exit
    CheckConfig(WithConfig),
    /// Set this machine up: database, broker, Redis, authorities, sshd, HAProxy and their units
    ///
    /// Looks first and changes only what is not as it should be, so that it can be run again.
    Setup(SetupArgs),
    /// Examine this server, from its files to its neighbours, and say what to do where something is amiss
    ///
    /// Changes nothing. Run it as root, which reads all that it asks for. Ends with 1 when a check fails, with 0 when all
    /// is well or could only be better.
    Doctor {
        #[command(flatten)]
        at: WithConfig,
        /// Print one JSON object for each check: check, status (ok, warn or fail), detail and remedy
        #[arg(long)]
        json: bool,
    },
    /// Bring the database's schema up to date
    Migrate(WithConfig),
    /// Certificate authorities
    #[command(subcommand)]
    Ca(Ca),
    /// The keys that host names are signed with
    #[command(subcommand)]
    Names(Names),
    /// The MQTT broker's configuration
    #[command(subcommand)]
    Broker(Broker),
    /// This server's identity
    #[command(subcommand)]
    Server(Server),
    /// The dedicated sshd
    #[command(subcommand)]
    Sshd(Sshd),
    /// Routers
    #[command(subcommand)]
    Router(Router),
    /// Devices
    #[command(subcommand)]
    Device(Device),
    /// Users
    #[command(subcommand)]
    User(User),
    /// What users may open
    #[command(subcommand)]
    Grant(Grant),
    /// Bearer tokens for the HTTP API
    #[command(subcommand)]
    Token(Token),
    /// Groups of users
    #[command(subcommand)]
    Group(Group),
    /// What happened: who asked for what, landed, connected, was refused or was changed
    Audit(Audit),
}

/// A command that works on an installation.
#[derive(Debug, Args)]
pub struct WithConfig {
    /// The configuration
    #[arg(long, value_name = "FILE", global = true, default_value = "/etc/rssh/serverd.toml")]
    pub config: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Ca {
    /// Make the authorities for servers, devices, users and sshd host keys, and the master of the name keys
    Init {
        /// Where they are kept; the directory must not hold any yet
        #[arg(long, value_name = "DIR")]
        pki: PathBuf,
        /// The name that agents pin sshd's host keys under
        #[arg(long, value_name = "NAME", default_value = crate::sshd::HOST_ALIAS)]
        ssh_host_name: String,
    },
    /// Issue a TLS server certificate, for the broker or HAProxy
    Tls {
        /// Where the authorities are kept
        #[arg(long, value_name = "DIR")]
        pki: PathBuf,
        /// A DNS name; may be given several times
        #[arg(long, value_name = "DNS", required = true)]
        name: Vec<String>,
        /// An IP address; may be given several times
        #[arg(long, value_name = "IP")]
        ip: Vec<IpAddr>,
        /// Where the certificate goes
        #[arg(long, value_name = "FILE")]
        cert_out: PathBuf,
        /// Where its private key goes
        #[arg(long, value_name = "FILE")]
        key_out: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum Names {
    /// Draw another master of all name keys; routers and servers take it by themselves, and no connection and no name is lost
    Rotate {
        #[command(flatten)]
        at: WithConfig,
        /// How long names by the keys before stay good
        #[arg(long, value_name = "TIME", default_value = "1h")]
        overlap: Span,
    },
    /// Take the master before back at once: names by its keys are refused within seconds
    Retire(WithConfig),
}

#[derive(Debug, Subcommand)]
pub enum Broker {
    /// Write mosquitto.conf and the initial dynamic-security.json, which denies everything to everyone
    Render {
        /// Where the authorities are kept
        #[arg(long, value_name = "DIR")]
        pki: PathBuf,
        /// Where mosquitto listens
        #[arg(long, value_name = "IP:PORT")]
        listen: SocketAddr,
        /// The broker's TLS certificate
        #[arg(long, value_name = "FILE")]
        cert: PathBuf,
        /// Its private key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Where the two files go
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The account that mosquitto runs as
        #[arg(long, value_name = "USER", default_value = "mosquitto")]
        user: String,
    },
    /// Write dynamic-security.json anew from the database, for a broker that is stopped: everyone who is enrolled, and not revoked
    Rebuild {
        /// Where the broker has its files
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The account that mosquitto runs as
        #[arg(long, value_name = "USER", default_value = "mosquitto")]
        user: String,
        #[command(flatten)]
        at: WithConfig,
    },
}

#[derive(Debug, Subcommand)]
pub enum Server {
    /// Give this server its id, keys, certificates and sshd configuration, and register it
    Init {
        #[command(flatten)]
        at: WithConfig,
        /// The id; drawn at random when absent, and kept from then on
        #[arg(long)]
        id: Option<ServerId>,
    },
    /// Print a one-time token with which a server joins
    Add {
        /// The id; drawn at random when absent
        id: Option<ServerId>,
        #[command(flatten)]
        at: WithConfig,
        #[command(flatten)]
        offer: Offer,
    },
}

#[derive(Debug, Subcommand)]
pub enum Sshd {
    /// Send small packets at once: sets TCP_NODELAY on the running sshd's listening sockets, which connections inherit
    Nodelay(WithConfig),
}

#[derive(Debug, Subcommand)]
pub enum Router {
    /// Print a one-time token with which a router joins; or, with its request, sign its certificate here
    Add {
        id: RouterId,
        #[command(flatten)]
        at: WithConfig,
        #[command(flatten)]
        offer: Offer,
        #[command(flatten)]
        request: Carried,
    },
    /// Shut a router out: it is told no master of the name keys any more, and the broker drops it
    Revoke {
        id: RouterId,
        #[command(flatten)]
        at: WithConfig,
    },
    /// Give a revoked name back; the router is let in once router add has enrolled it again
    Unrevoke {
        id: RouterId,
        #[command(flatten)]
        at: WithConfig,
        /// Also while a certificate from before is valid
        #[arg(long)]
        all_the_same: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum Device {
    /// Print a one-time token with which a device enrols; or, with its request, sign its certificate here
    ///
    /// Without an id it is a fleet's token: each device that has it names itself.
    Add(DeviceAdd),
    /// Tag a device, and end the tunnels that no grant covers any more
    Tag {
        id: DeviceId,
        /// What is set
        #[arg(value_name = "KEY=VALUE", required_unless_present = "remove")]
        set: Vec<Tag>,
        /// A key that is taken away; may be given several times
        #[arg(long, value_name = "KEY")]
        remove: Vec<String>,
        #[command(flatten)]
        at: WithConfig,
    },
    /// Limit a device
    Limit {
        id: DeviceId,
        #[command(flatten)]
        limits: LimitArgs,
        #[command(flatten)]
        at: WithConfig,
    },
    /// Shut a device out everywhere, at once: its tunnels end, and it can no longer connect
    Revoke {
        id: DeviceId,
        #[command(flatten)]
        at: WithConfig,
    },
    /// Give a revoked name back; the device is let in once device add has enrolled it again
    Unrevoke {
        id: DeviceId,
        #[command(flatten)]
        at: WithConfig,
        /// Also while a certificate from before is valid
        #[arg(long)]
        all_the_same: bool,
    },
}

#[derive(Debug, Args)]
pub struct DeviceAdd {
    #[arg(required_unless_present = "uses")]
    pub id: Option<DeviceId>,
    #[command(flatten)]
    pub at: WithConfig,
    #[command(flatten)]
    pub offer: Offer,
    /// What the device is for, or where it stands; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub tag: Vec<Tag>,
    /// How many devices may enrol with it
    #[arg(long, value_name = "N", conflicts_with = "id", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub uses: Option<u32>,
    #[command(flatten)]
    pub request: Carried,
    /// The public key that the device's ssh logs in with
    #[arg(long, value_name = "FILE", requires = "csr")]
    pub ssh_key: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum User {
    /// Print a one-time token with which a user logs in for the first time; or, with the request, sign the certificate here
    Add {
        name: UserId,
        #[command(flatten)]
        at: WithConfig,
        #[command(flatten)]
        offer: Offer,
        #[command(flatten)]
        request: Carried,
    },
    /// Limit a user
    Limit {
        name: UserId,
        #[command(flatten)]
        limits: LimitArgs,
        #[command(flatten)]
        at: WithConfig,
    },
    /// Shut a user out everywhere, at once: the user's tunnels end, and no connection is let in
    Revoke {
        name: UserId,
        #[command(flatten)]
        at: WithConfig,
    },
    /// Give a revoked name back; the user is let in once user add has enrolled the name again
    Unrevoke {
        name: UserId,
        #[command(flatten)]
        at: WithConfig,
        /// Also while a certificate from before is valid
        #[arg(long)]
        all_the_same: bool,
    },
    /// Put a pseudonym in the place of a revoked user wherever the database tells of one, and drop what was the user's alone
    Forget {
        name: UserId,
        #[command(flatten)]
        at: WithConfig,
    },
}

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token that acts for a user, and print it: this once
    Add {
        #[command(flatten)]
        at: WithConfig,
        /// Whom it acts for
        #[arg(long, value_name = "NAME")]
        user: UserId,
        /// What it may do: read, open; may be given several times
        #[arg(long, value_name = "SCOPE", required = true, value_delimiter = ',')]
        scope: Vec<Scope>,
        /// How long it lives
        #[arg(long, value_name = "TIME", default_value = "90d")]
        expires: Span,
        /// What it is for, in your words
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// Show the tokens that there are, without the tokens themselves
    List {
        #[command(flatten)]
        at: WithConfig,
        /// Of this user only
        #[arg(long, value_name = "NAME")]
        user: Option<UserId>,
        /// Print one JSON object for each
        #[arg(long)]
        json: bool,
    },
    /// Take a token back, at once
    Revoke {
        /// Its id, as the list shows it
        id: String,
        #[command(flatten)]
        at: WithConfig,
    },
}

/// A one-time token that is to be printed.
#[derive(Debug, Args)]
pub struct Offer {
    /// How long the token may be used
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub expires: Span,
}

/// A certificate request that was carried here, if one was.
#[derive(Debug, Args)]
pub struct Carried {
    /// The certificate request, which names the same id; without one, a token is printed
    #[arg(long, value_name = "FILE", requires = "cert_out")]
    csr: Option<PathBuf>,
    /// Where the certificate goes
    #[arg(long, value_name = "FILE", requires = "csr")]
    cert_out: Option<PathBuf>,
}

impl Carried {
    /// The request, and where its answer goes.
    pub fn request(self) -> Option<Request> {
        Some(Request {
            csr: self.csr?,
            cert_out: self.cert_out?,
        })
    }
}

/// A certificate request and where its answer goes.
#[derive(Debug)]
pub struct Request {
    pub csr: PathBuf,
    pub cert_out: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_argument_is_consistent() {
        Arguments::command().debug_assert();
    }
}
