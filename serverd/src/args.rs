//! The command line.

mod authorization;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::token::Scope;
use clap::{Args, Parser, Subcommand};
use rssh_proto::duration::Span;
use rssh_proto::{DeviceId, RouterId, ServerId, Tag, UserId};

pub use authorization::{Audit, AuditCommand, DevicesArgs, Grant, Group, HolderArgs, LimitArgs, Member};

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
    /// Check the configuration and exit
    CheckConfig(WithConfig),
    /// Bring the database's schema up to date
    Migrate(WithConfig),
    /// Certificate authorities
    #[command(subcommand)]
    Ca(Ca),
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
}

#[derive(Debug, Subcommand)]
pub enum Sshd {
    /// Send small packets at once: sets TCP_NODELAY on the running sshd's listening sockets, which connections inherit
    Nodelay(WithConfig),
}

#[derive(Debug, Subcommand)]
pub enum Router {
    /// Register a router and sign its certificate
    Add {
        id: RouterId,
        #[command(flatten)]
        at: WithConfig,
        #[command(flatten)]
        request: Request,
    },
}

#[derive(Debug, Subcommand)]
pub enum Device {
    /// Register a device and sign its certificate
    Add {
        id: DeviceId,
        #[command(flatten)]
        at: WithConfig,
        #[command(flatten)]
        request: Request,
        /// The public key that the device's ssh logs in with
        #[arg(long, value_name = "FILE")]
        ssh_key: PathBuf,
    },
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

#[derive(Debug, Subcommand)]
pub enum User {
    /// Register a user and sign the user's certificate
    Add {
        name: UserId,
        #[command(flatten)]
        at: WithConfig,
        #[command(flatten)]
        request: Request,
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
    /// Put a pseudonym in the place of a revoked user in the audit trail, and drop the user's addresses from it
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

/// A certificate request and where its answer goes.
#[derive(Debug, Args)]
pub struct Request {
    /// The certificate request, which names the same id
    #[arg(long, value_name = "FILE")]
    pub csr: PathBuf,
    /// Where the certificate goes
    #[arg(long, value_name = "FILE")]
    pub cert_out: PathBuf,
}
