//! Who may open what: grants, groups, tags, limits, and names that are revoked.

use clap::{Args, Subcommand};
use rssh_proto::duration::Span;
use rssh_proto::{Account, DeviceId, GroupId, Tag, Target, UserId};

use super::WithConfig;

#[derive(Debug, Subcommand)]
pub enum Grant {
    /// Let a user, or the members of a group, open targets of devices; prints the grants' numbers
    Add {
        #[command(flatten)]
        holder: HolderArgs,
        #[command(flatten)]
        at: WithConfig,
        #[command(flatten)]
        devices: DevicesArgs,
        /// A target, such as 22 or plc-1; may be given several times, and means every target when absent
        #[arg(long, value_name = "TARGET")]
        target: Vec<Target>,
        /// A login account for user certificates; may be given several times
        #[arg(long, value_name = "NAME")]
        account: Vec<Account>,
        /// How many tunnels each holder may have by this grant at once
        #[arg(long, value_name = "N")]
        max_tunnels: Option<u32>,
        /// How long such a tunnel may live
        #[arg(long, value_name = "TIME")]
        max_ttl: Option<Span>,
        /// Let the holder hand names to others
        #[arg(long)]
        share: bool,
    },
    /// List grants: all, or those that a user holds directly or by a group
    List {
        #[arg(long, value_name = "USER")]
        user: Option<UserId>,
        #[command(flatten)]
        at: WithConfig,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Take a grant away, and end the tunnels that no other grant covers
    Remove {
        /// Its number, as list prints it
        #[arg(value_name = "NUMBER")]
        id: i64,
        #[command(flatten)]
        at: WithConfig,
    },
    /// Explain whether a user may open a target of a device; ends with 0 if so, and else with 77
    Test {
        user: UserId,
        device: DeviceId,
        #[arg(default_value = "22")]
        target: Target,
        #[command(flatten)]
        at: WithConfig,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Who holds a grant.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct HolderArgs {
    /// The user
    pub user: Option<UserId>,
    /// The group, instead of a user
    #[arg(long, value_name = "GROUP")]
    pub group: Option<GroupId>,
}

/// Which devices a grant is for.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct DevicesArgs {
    /// The device
    #[arg(long, value_name = "ID")]
    pub device: Option<DeviceId>,
    /// Every device with this tag, also those that get it later
    #[arg(long, value_name = "KEY=VALUE")]
    pub tag: Option<Tag>,
    /// Every device, also those added later
    #[arg(long)]
    pub all_devices: bool,
}

#[derive(Debug, Subcommand)]
pub enum Group {
    /// Make a group of users
    Add {
        group: GroupId,
        #[command(flatten)]
        at: WithConfig,
    },
    /// Take a group away with its grants, and end the tunnels that no other grant covers
    Remove {
        group: GroupId,
        #[command(flatten)]
        at: WithConfig,
    },
    /// List groups and their members
    List {
        #[command(flatten)]
        at: WithConfig,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Limit what the members of a group have together
    Limit {
        group: GroupId,
        #[command(flatten)]
        limits: LimitArgs,
        #[command(flatten)]
        at: WithConfig,
    },
    /// Who belongs to a group
    #[command(subcommand)]
    Member(Member),
}

#[derive(Debug, Subcommand)]
pub enum Member {
    /// Put a user into a group
    Add {
        group: GroupId,
        user: UserId,
        #[command(flatten)]
        at: WithConfig,
    },
    /// Take a user out of a group, and end the tunnels that no other grant covers
    Remove {
        group: GroupId,
        user: UserId,
        #[command(flatten)]
        at: WithConfig,
    },
}

/// Limits; what is not given is the configuration's again.
#[derive(Debug, Args)]
pub struct LimitArgs {
    /// Tunnels at once
    #[arg(long, value_name = "N")]
    pub max_tunnels: Option<u32>,
    /// New tunnels within a minute
    #[arg(long, value_name = "N")]
    pub opens_per_minute: Option<u32>,
}

/// What happened.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Audit {
    #[command(subcommand)]
    pub command: Option<AuditCommand>,
    /// Only of this user
    #[arg(long, value_name = "USER")]
    pub user: Option<UserId>,
    /// Only of this device
    #[arg(long, value_name = "ID")]
    pub device: Option<DeviceId>,
    /// Only of the last while, such as 2h
    #[arg(long, value_name = "TIME")]
    pub since: Option<Span>,
    /// Go on with what happens from now on
    #[arg(long)]
    pub follow: bool,
    /// Check that nothing was changed, taken out or put in
    #[arg(long, conflicts_with_all = ["user", "device", "since", "follow"])]
    pub verify: bool,
    #[command(flatten)]
    pub at: WithConfig,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Drop old events; what is left can still be checked
    Prune {
        /// How old, such as 90d
        #[arg(long, value_name = "TIME")]
        older_than: Span,
    },
}
