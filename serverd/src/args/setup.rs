//! `rssh-serverd setup`.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use rssh_proto::name::ProxyDomain;
use rssh_proto::{HttpsUrl, RouterId, ServerId};

#[derive(Debug, Args)]
pub struct SetupArgs {
    /// The domain of signed names, which points at this machine; asked for on a terminal
    #[arg(long, value_name = "DOMAIN")]
    pub domain: Option<ProxyDomain>,
    /// This server's id; drawn at random when absent, and kept from then on
    #[arg(long, value_name = "ID")]
    pub id: Option<ServerId>,
    /// The id of the router on this machine
    #[arg(long, value_name = "ID", default_value = "lb1")]
    pub router: RouterId,
    /// Where leased ports and sshd listen: an IPv4 address that the load balancers reach; 127.0.0.1 when absent, and asked
    /// for on a terminal with --join
    #[arg(long, value_name = "IP")]
    pub address: Option<Ipv4Addr>,
    /// Let another server use the PostgreSQL and the Redis of this machine, from that address; may be given several times
    #[arg(long, value_name = "ID=IP", conflicts_with = "join")]
    pub admit: Vec<Admitted>,
    /// Make this machine another server of the installation at that URL, with a token of: rssh-serverd server add
    #[arg(long, value_name = "URL", conflicts_with = "id")]
    pub join: Option<HttpsUrl>,
    /// The token's file, which only its owner may read; without it, it is asked for, or read from standard input
    #[arg(long, value_name = "FILE", requires = "join")]
    pub token_file: Option<PathBuf>,
    /// The database; that of the domain's machine when absent
    #[arg(long, value_name = "URL", requires = "join")]
    pub database: Option<String>,
    /// Redis; that of the domain's machine when absent
    #[arg(long, value_name = "URL", requires = "join")]
    pub redis: Option<String>,
    /// A load balancer, which leased ports are for; may be given several times, and is where the domain leads when absent
    #[arg(long, value_name = "IP", requires = "join")]
    pub balancer: Vec<Ipv4Addr>,
    /// Say what would be changed, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Another server and where it connects from, written `s2=10.0.0.12`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    pub id: ServerId,
    pub address: Ipv4Addr,
}

impl FromStr for Admitted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (id, address) = text.split_once('=')?;
            Some(Self {
                id: id.parse().ok()?,
                address: address.parse().ok()?,
            })
        };
        parse().ok_or_else(|| "not a server and its address; use ID=IP, such as s2=10.0.0.12".to_owned())
    }
}
