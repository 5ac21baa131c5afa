//! Grants, groups, tags, limits and revocations.

use std::fmt::Write as _;

use anyhow::Result;
use rssh_proto::audit::Event;
use rssh_proto::{DeviceId, GroupId, Tag, Target, UserId};
use serde::Serialize;
use serde_json::json;

use super::{audit, enroll, office};
use crate::args::{Device, DevicesArgs, Grant, Group, HolderArgs, LimitArgs, Member, Router, User, WithConfig};
use crate::config::Config;
use crate::store::{Devices, Explanation, Grantee, Kind, Limited, Permission, Store, Terms, Verdict};
use crate::who::Who;

/// The end of `grant test` when the answer is no.
#[derive(Debug, thiserror::Error)]
#[error("{user} may not open {target} on {device}; rssh-serverd grant add lets someone")]
pub(super) struct NotAllowed {
    user: UserId,
    device: DeviceId,
    target: Target,
}

fn store(at: &WithConfig) -> Result<Store> {
    Ok(Store::new(&Config::load(&at.config)?.database)?)
}

fn holder(args: HolderArgs) -> Option<Grantee> {
    let user = args.user.map(Grantee::User);
    user.or_else(|| args.group.map(Grantee::Group))
}

fn devices(args: DevicesArgs) -> Devices {
    match (args.device, args.tag) {
        (Some(device), _) => Devices::One(device),
        (None, Some(tag)) => Devices::Tagged(tag),
        (None, None) => Devices::All,
    }
}

pub(super) async fn grant(command: Grant) -> Result<()> {
    match command {
        Grant::Add {
            holder: by,
            at,
            devices: which,
            target,
            account,
            max_tunnels,
            max_ttl,
            share,
        } => {
            let Some(holder) = holder(by) else {
                anyhow::bail!("a grant needs a user or --group GROUP");
            };
            let terms = Terms {
                accounts: account,
                max_tunnels,
                max_ttl_s: max_ttl.map(|span| u32::try_from(span.duration().as_secs().max(1)).unwrap_or(u32::MAX)),
                share,
            };
            let (store, which) = (store(&at)?, devices(which));
            let ids = store.add_grant(&holder, &which, &target, &terms).await?;
            let event = of_grant("grant-added", &holder, &which);
            audit::record(&store, event.with("grants", ids.clone())).await?;
            for id in ids {
                println!("{id}");
            }
        }
        Grant::List { user, at, json } => {
            for permission in store(&at)?.grants(user.as_ref()).await? {
                print(json, &permission, || sentence(&permission))?;
            }
        }
        Grant::Remove { id, at } => {
            let store = store(&at)?;
            let Some((permission, closed)) = store.remove_grant(id).await? else {
                anyhow::bail!("there is no grant {id}; rssh-serverd grant list shows them");
            };
            let event = of_grant("grant-removed", &permission.holder, &permission.devices);
            audit::record(&store, event.with("grants", vec![id]).with("closed", closed)).await?;
            println!("removed: {}; {}", sentence(&permission), ended(closed));
        }
        Grant::Test {
            user,
            device,
            target,
            at,
            json,
        } => {
            let explanation = store(&at)?.explain(&user, &device, &target).await?;
            print(json, &explanation, || {
                explained(&explanation, &user, &device, &target).trim_end().to_owned()
            })?;
            if !explanation.allowed {
                return Err(NotAllowed { user, device, target }.into());
            }
        }
    }
    Ok(())
}

pub(super) async fn group(command: Group) -> Result<()> {
    match command {
        Group::Add { group, at } => {
            let store = store(&at)?;
            store.add_group(&group).await?;
            audit::record(&store, of_group("group-added", &group)).await?;
        }
        Group::Remove { group, at } => {
            let store = store(&at)?;
            let closed = store.remove_group(&group).await?;
            audit::record(&store, of_group("group-removed", &group)).await?;
            println!("{}", ended(closed));
        }
        Group::List { at, json } => {
            for (group, members) in store(&at)?.groups().await? {
                let object = json!({"group": group, "members": members});
                print(json, &object, || {
                    let members: Vec<&str> = members.iter().map(UserId::as_str).collect();
                    format!("{group}: {}", members.join(" "))
                })?;
            }
        }
        Group::Limit { group, limits, at } => limit(&at, &Limited::Group(group), &limits).await?,
        Group::Member(Member::Add { group, user, at }) => {
            let store = store(&at)?;
            store.add_member(&group, &user).await?;
            audit::record(&store, of_group("member-added", &group).user(&user)).await?;
        }
        Group::Member(Member::Remove { group, user, at }) => {
            let store = store(&at)?;
            let closed = store.remove_member(&group, &user).await?;
            audit::record(&store, of_group("member-removed", &group).user(&user)).await?;
            println!("{}", ended(closed));
        }
    }
    Ok(())
}

pub(super) async fn device(command: Device) -> Result<()> {
    match command {
        Device::Add(add) => enroll::device(add).await?,
        Device::Tag { id, set, remove, at } => {
            let store = store(&at)?;
            let closed = store.tag_device(&id, &set, &remove).await?;
            let tags: Vec<String> = set.iter().map(Tag::to_string).collect();
            let event = audit::by_administrator("device-tagged").device(&id);
            audit::record(&store, event.with("set", tags).with("removed", remove)).await?;
            println!("{}", ended(closed));
        }
        Device::Limit { id, limits, at } => limit(&at, &Limited::Device(id), &limits).await?,
        Device::Revoke { id, at } => revoke(&at, Who::Device(id)).await?,
        Device::Unrevoke { id, at, all_the_same } => {
            unrevoke(&at, Kind::Device, id.as_str(), all_the_same).await?;
        }
    }
    Ok(())
}

pub(super) async fn user(command: User) -> Result<()> {
    match command {
        User::Add {
            name,
            at,
            offer,
            request,
        } => match request.request() {
            Some(request) => enroll::user(&office(&at)?, name, &request).await?,
            None => enroll::offer(&office(&at)?, Kind::User, Some(name.as_str()), &offer).await?,
        },
        User::Limit { name, limits, at } => limit(&at, &Limited::User(name), &limits).await?,
        User::Revoke { name, at } => revoke(&at, Who::User(name)).await?,
        User::Unrevoke { name, at, all_the_same } => {
            unrevoke(&at, Kind::User, name.as_str(), all_the_same).await?;
        }
        User::Forget { name, at } => audit::forget(&at, &name).await?,
    }
    Ok(())
}

pub(super) async fn router(command: Router) -> Result<()> {
    match command {
        Router::Add { id, at, offer, request } => match request.request() {
            Some(request) => enroll::router(&office(&at)?, id, &request).await,
            None => enroll::offer(&office(&at)?, Kind::Router, Some(id.as_str()), &offer).await,
        },
        Router::Revoke { id, at } => revoke(&at, Who::Router(id)).await,
        Router::Unrevoke { id, at, all_the_same } => unrevoke(&at, Kind::Router, id.as_str(), all_the_same).await,
    }
}

async fn limit(at: &WithConfig, who: &Limited, limits: &LimitArgs) -> Result<()> {
    let store = store(at)?;
    store
        .set_limits(who, limits.max_tunnels, limits.opens_per_minute)
        .await?;
    let event = audit::by_administrator("limit-set");
    let event = match who {
        Limited::User(user) => event.user(user),
        Limited::Device(device) => event.device(device),
        Limited::Group(group) => event.with("group", group.as_str()),
    };
    let event = event.with("max_tunnels", limits.max_tunnels);
    audit::record(&store, event.with("opens_per_minute", limits.opens_per_minute)).await
}

fn of_grant(what: &str, holder: &Grantee, devices: &Devices) -> Event {
    let event = audit::by_administrator(what);
    let event = match holder {
        Grantee::User(user) => event.user(user),
        Grantee::Group(group) => event.with("group", group.as_str()),
    };
    match devices {
        Devices::One(device) => event.device(device),
        Devices::Tagged(tag) => event.with("tag", tag.to_string()),
        Devices::All => event.with("devices", "all"),
    }
}

fn of_group(what: &str, group: &GroupId) -> Event {
    audit::by_administrator(what).with("group", group.as_str())
}

async fn unrevoke(at: &WithConfig, kind: Kind, name: &str, all_the_same: bool) -> Result<()> {
    let store = store(at)?;
    store.unrevoke(kind, name, all_the_same).await?;
    audit::record_name(&store, "unrevoked", kind, name, audit::by_administrator("")).await
}

/// The database first: from then on nothing is opened, landed or signed. Servers and routers read it; the broker is told.
async fn revoke(at: &WithConfig, client: Who) -> Result<()> {
    let office = office(at)?;
    let revoked = office.store.revoke(client.kind(), client.name()).await?;
    let event = audit::by_administrator("").with("closed", revoked.tunnels);
    audit::record_name(&office.store, "revoked", client.kind(), client.name(), event).await?;
    office.expel(&client).await?;
    let again = if revoked.already { " already" } else { "" };
    println!("{} is revoked{again}; {}", client.name(), ended(revoked.tunnels));
    Ok(())
}

fn ended(tunnels: u64) -> String {
    match tunnels {
        1 => "1 tunnel ended".to_owned(),
        many => format!("{many} tunnels ended"),
    }
}

fn print(json: bool, object: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(object)?);
    } else {
        println!("{}", text());
    }
    Ok(())
}

/// A grant in one line.
fn sentence(permission: &Permission) -> String {
    let Permission {
        id,
        holder,
        devices,
        target,
        terms,
    } = permission;
    let target = target.as_ref().map_or("every target".to_owned(), Target::to_string);
    let mut text = format!("{id}: {holder} may open {target} on {devices}");
    // Writing to a String cannot fail.
    if !terms.accounts.is_empty() {
        let accounts: Vec<&str> = terms.accounts.iter().map(AsRef::as_ref).collect();
        let _ = write!(text, ", as {}", accounts.join(" or "));
    }
    if let Some(most) = terms.max_tunnels {
        let _ = write!(text, ", at most {most} at once");
    }
    if let Some(seconds) = terms.max_ttl_s {
        let _ = write!(text, ", for at most {seconds} s");
    }
    if terms.share {
        text.push_str(", and share it");
    }
    text
}

/// The decision and what led to it: what matched, or what came near.
fn explained(explanation: &Explanation, user: &UserId, device: &DeviceId, target: &Target) -> String {
    let decision = if explanation.allowed { "may" } else { "may not" };
    let mut text = format!("{user} {decision} open {target} on {device}\n");
    if let Some(obstacle) = &explanation.obstacle {
        let _ = writeln!(text, "  {obstacle}");
    }
    for (verdict, permission) in &explanation.grants {
        let why = match verdict {
            Verdict::Matches => "matches",
            Verdict::OtherTarget => "is for another target",
            Verdict::OtherDevice => "is for other devices",
        };
        let _ = writeln!(text, "  {why}: grant {}", sentence(permission));
    }
    if explanation.grants.is_empty() {
        let _ = writeln!(text, "  {user} holds no grant, directly or by a group");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permission(target: Option<&str>) -> Permission {
        Permission {
            id: 7,
            holder: Grantee::Group("staff".parse().unwrap()),
            devices: Devices::Tagged("site=berlin".parse().unwrap()),
            target: target.map(|target| target.parse().unwrap()),
            terms: Terms {
                accounts: vec!["root".parse().unwrap()],
                max_tunnels: Some(2),
                max_ttl_s: Some(60),
                share: true,
            },
        }
    }

    #[test]
    fn a_decision_names_what_matched_or_what_came_near() {
        let (user, device, target) = (
            "alice".parse().unwrap(),
            "device-42".parse().unwrap(),
            "22".parse().unwrap(),
        );
        let near = Explanation {
            allowed: false,
            obstacle: None,
            grants: vec![(Verdict::OtherTarget, permission(Some("80")))],
        };
        assert_eq!(
            explained(&near, &user, &device, &target),
            "alice may not open localhost:22 on device-42\n  is for another target: grant 7: the group staff may open \
             localhost:80 on devices with site=berlin, as root, at most 2 at once, for at most 60 s, and share it\n"
        );
        let none = Explanation {
            allowed: false,
            obstacle: Some("device-42 is revoked".to_owned()),
            grants: vec![],
        };
        let text = explained(&none, &user, &device, &target);
        assert!(
            text.contains("device-42 is revoked\n") && text.contains("holds no grant"),
            "{text}"
        );
    }
}
